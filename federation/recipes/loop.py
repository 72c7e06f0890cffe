"""The training loop that the classification recipes share: plain SGD, and what a model gets right.

Everything is on the CPU, in float32, in one thread, with torch's deterministic algorithms: the same rows,
weights and seed give the same bytes on the same build of torch, which is what a site can be asked to repeat.

Letters: N rows, C classes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MEASURE_BATCH = 4096  # rows


@contextmanager
def repeatable(seed: int) -> Iterator[torch.Generator]:
    """A seeded generator, and torch held to one thread and deterministic algorithms while the block runs.

    The caller's own random state, thread count and settings are put back.

    Args:
        seed: from 0 to 2^63 - 1.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks after every accelerator besides
        torch.set_num_threads(1)  # sums over threads would depend on how many there are
        _set_deterministic(True, warn_only=False)
        try:
            yield torch.Generator().manual_seed(seed)
        finally:
            torch.set_num_threads(threads)
            _set_deterministic(deterministic, warn_only=warn_only)


def _set_deterministic(mode: bool, *, warn_only: bool) -> None:
    """What ``torch.use_deterministic_algorithms`` sets, without the compiler that it imports (150 MB)."""
    torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)


def fit(
    model: nn.Module,
    features: Tensor,
    labels: Tensor,
    parameters: Mapping[str, Any],
    epochs: int,
    generator: torch.Generator,
) -> float:
    """Train a model in place by SGD with momentum on the cross-entropy of its answers.

    Args:
        features: first axis N. labels: shape (N,), int64.
        parameters: reads ``batch``, ``learningRate``, ``momentum`` and ``proximalMu``.
    Returns:
        Mean loss per row in the last epoch, in nats, without the proximal term.
    Source: the proximal term mu / 2 ||w - w_received||^2 is FedProx, Li et al. 2020 (arXiv 1812.06127),
        equation 2; mu = 0 leaves it out.
    """
    learning_rate, momentum = float(parameters["learningRate"]), float(parameters["momentum"])
    mu, batch = float(parameters["proximalMu"]), int(parameters["batch"])
    step = _Sgd(model, learning_rate, momentum)
    received = [weight.detach().clone() for weight in model.parameters()] if mu else []
    model.train()
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for rows in torch.split(torch.randperm(len(labels), generator=generator), batch):
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(features[rows]), labels[rows])
            total += loss.item() * len(rows)
            if mu:
                distance = torch.stack(
                    [(w - r).square().sum() for w, r in zip(model.parameters(), received, strict=True)]
                ).sum()
                loss = loss + mu / 2 * distance
            loss.backward()  # type: ignore[no-untyped-call]
            step()
    model.zero_grad()  # gives the gradients' memory back
    return total / len(labels)


class _Sgd:
    """One step of SGD with momentum after another, bit for bit those of ``torch.optim.SGD``.

    Written out, because torch's own optimizers import its compiler (3 s, 150 MB), which a small site would
    pay for.
    """

    def __init__(self, model: nn.Module, learning_rate: float, momentum: float) -> None:
        self._weights = list(model.parameters())
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._velocity: list[Tensor | None] = [None] * len(self._weights)

    @torch.no_grad()
    def __call__(self) -> None:
        for place, weight in enumerate(self._weights):
            gradient = weight.grad
            if gradient is None:
                continue
            if self._momentum:
                velocity = self._velocity[place]
                velocity = (
                    gradient.clone() if velocity is None else velocity.mul_(self._momentum).add_(gradient)
                )
                self._velocity[place] = gradient = velocity
            weight.add_(gradient, alpha=-self._learning_rate)


def measure(model: nn.Module, features: Tensor, labels: Tensor) -> tuple[int, float]:
    """How many rows a model gets right, and its mean cross-entropy per row in nats.

    Args:
        features: first axis N > 0. labels: shape (N,), int64.
    """
    right, loss = 0, 0.0
    for rows in torch.split(torch.arange(len(labels)), MEASURE_BATCH):
        answers = answer(model, features[rows])
        right += int((answers.argmax(1) == labels[rows]).sum())
        loss += float(nn.functional.cross_entropy(answers, labels[rows], reduction="sum"))
    return right, loss / len(labels)


def answer(model: nn.Module, features: Tensor) -> Tensor:
    """The model's scores (logits) per row and class, shape (N, C)."""
    model.eval()
    with torch.inference_mode():
        scores: Tensor = model(features)
    return scores


def layers(inputs: int, hidden: int, classes: int) -> list[nn.Module]:
    """From features to scores: one hidden layer, or none when ``hidden`` is 0."""
    if not hidden:
        return [nn.Linear(inputs, classes)]
    return [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
