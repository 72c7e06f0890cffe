"""Two of eight sites lie in every round of real training: robust strategies keep the accuracy, FedAvg loses it.

In one process, with the product's training, update files and aggregation; no hub, no Flower.
"""

from typing import Any

import pytest

from tests.learning import Federation, Learnt, Lie, inverted, noise, scaled

pytestmark = pytest.mark.slow

LIARS = ("site-2", "site-5")
LOSS = 0.06  # how much accuracy a robust strategy may cost, against FedAvg among honest sites


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("attacks"), 8)


@pytest.fixture(scope="module")
def honest(federation: Federation) -> Learnt:
    return federation.train()


def attacked(federation: Federation, lie: Lie, **plan: Any) -> float:
    return federation.train(liars=dict.fromkeys(LIARS, lie), **plan).accuracy


def test_honest_sites_learn(honest: Learnt) -> None:
    assert honest.accuracy > 0.92


@pytest.mark.parametrize("lie", [inverted, scaled, noise])
def test_fedavg_visibly_loses_its_accuracy(federation: Federation, honest: Learnt, lie: Lie) -> None:
    assert attacked(federation, lie) < honest.accuracy - 0.15


@pytest.mark.parametrize("lie", [inverted, scaled, noise])
@pytest.mark.parametrize(
    ("strategy", "parameters"),
    [
        ("FedMedian", {}),
        ("FedTrimmedAvg", {"beta": "0.25"}),
        ("Krum", {"malicious": 2}),
        ("MultiKrum", {"malicious": 2, "select": 4}),
    ],
)
def test_a_robust_strategy_keeps_its_accuracy(
    federation: Federation, honest: Learnt, lie: Lie, strategy: str, parameters: dict[str, Any]
) -> None:
    found = attacked(federation, lie, strategy=strategy, strategy_parameters=parameters)
    assert found > honest.accuracy - LOSS


@pytest.mark.parametrize("lie", [inverted, scaled])
def test_bulyan_with_as_many_sites_as_its_promise_needs_keeps_its_accuracy(
    tmp_path_factory: pytest.TempPathFactory, lie: Lie
) -> None:
    """4 f + 3 sites for f liars: eleven for two."""
    many = Federation(tmp_path_factory.mktemp("bulyan"), 11)
    bulyan = {"strategy": "Bulyan", "strategy_parameters": {"malicious": 2}}
    assert attacked(many, lie, **bulyan) > many.train().accuracy - LOSS
    assert attacked(many, lie) < 0.5


def test_compression_does_not_hide_a_lie_from_a_robust_strategy(
    federation: Federation, honest: Learnt
) -> None:
    found = attacked(federation, inverted, strategy="FedMedian", compression="int8")
    assert found > honest.accuracy - LOSS


@pytest.mark.parametrize("form", ["bf16", "fp16", "int8"])
def test_a_compressed_run_learns_as_much_and_the_same_bytes_every_time(
    federation: Federation, honest: Learnt, form: str
) -> None:
    first, second = federation.train(compression=form), federation.train(compression=form)
    assert first == second
    assert first.accuracy > honest.accuracy - 0.02
    assert first.update_bytes < 0.55 * honest.update_bytes
