"""The training loop: its steps are those of torch's own optimizer, at a fraction of the memory."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from federation.recipes import image_classification, loop


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


def test_a_blank_model_has_the_layers_of_a_fresh_one_and_takes_no_random_numbers() -> None:
    parameters = {"channels": 1, "height": 4, "width": 4, "filters": 2, "hidden": 3, "classes": 2}
    learner = image_classification.learner(parameters, ())
    with loop.repeatable(7):
        state = torch.random.get_rng_state()
        blank = learner.travelling(learner.blank())
        assert torch.equal(torch.random.get_rng_state(), state)
        fresh = learner.travelling(learner.fresh())
    assert {name: one.shape for name, one in blank.items()} == {
        name: one.shape for name, one in fresh.items()
    }
    assert all(one.is_meta for one in blank.values())


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_callers_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    drawn = []
    for _ in range(2):
        with loop.repeatable(11) as generator:
            drawn.append((torch.rand(4), torch.rand(4, generator=generator)))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(11)
    known = torch.rand(4)
    assert all(torch.equal(one, known) for pair in drawn for one in pair)
