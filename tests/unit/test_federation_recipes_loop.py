"""The training loop: its steps are those of torch's own optimizer, at a fraction of the memory."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from federation.recipes import loop


def _model() -> nn.Module:
    with loop.repeatable(3):
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize("momentum", ["0", "0.9"])
def test_steps_are_those_of_torchs_sgd_bit_for_bit(momentum: str) -> None:
    ours, theirs = _model(), _model()
    parameters = {"batch": 8, "learningRate": "0.1", "momentum": momentum, "proximalMu": "0"}
    with loop.repeatable(1) as generator:
        features, labels = torch.randn(50, 4), torch.randint(0, 3, (50,))
        loop.fit(ours, features, labels, parameters, 3, generator)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=float(momentum))
    with loop.repeatable(1) as generator:
        for _ in range(3):
            for rows in torch.split(torch.randperm(50, generator=generator), 8):
                optimizer.zero_grad()
                nn.functional.cross_entropy(theirs(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_training_does_not_load_torchs_compiler() -> None:
    program = """
import sys, torch
from torch import nn
from federation.recipes import loop
parameters = {"batch": 2, "learningRate": "0.1", "momentum": "0.5", "proximalMu": "0"}
with loop.repeatable(1) as generator:
    loop.fit(nn.Linear(2, 2), torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), parameters, 1, generator)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
