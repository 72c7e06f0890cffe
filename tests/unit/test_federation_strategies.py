"""Each strategy gives what Flower's own strategy class gives on the same numbers; Flower is only the oracle."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from federation.aggregation import SiteUpdate, aggregate
from federation.strategies import Krum, Median, NearestToMedian, TrimmedMean, make_strategy
from federation.strategy_terms import STRATEGIES
from federation.tensors import TensorFile, write_tensors
from storage.errors import Misuse

# Flower brings typer, whose version that Flower allows asks click for names that click moves.
pytestmark = pytest.mark.filterwarnings("ignore:'click.utils:DeprecationWarning")

SHAPES = {"conv.weight": (4, 3, 3), "fc.bias": (5,), "fc.weight": (5, 7)}
ROUNDS = 3

CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("FedAvg", {}, "FedAvg", {}),
    ("FedProx", {}, "FedProx", {"proximal_mu": 0.1}),
    (
        "FedAvgM",
        {"serverLearningRate": "0.7", "serverMomentum": "0.9"},
        "FedAvgM",
        {"server_learning_rate": 0.7, "server_momentum": 0.9},
    ),
    (
        "FedAdam",
        {"eta": "0.1", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"},
        "FedAdam",
        {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001},
    ),
    (
        "FedYogi",
        {"eta": "0.01", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"},
        "FedYogi",
        {"eta": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001},
    ),
    ("FedAdagrad", {"eta": "0.1", "tau": "0.001"}, "FedAdagrad", {"eta": 0.1, "tau": 0.001}),
    ("FedMedian", {}, "FedMedian", {}),
    ("FedTrimmedAvg", {"beta": "0.2"}, "FedTrimmedAvg", {"beta": 0.2}),
    ("Krum", {"malicious": 1}, "Krum", {"num_malicious_nodes": 1}),
    (
        "MultiKrum",
        {"malicious": 1, "select": 4},
        "MultiKrum",
        {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
    ),
    ("Bulyan", {"malicious": 1}, "Bulyan", {"num_malicious_nodes": 1}),
]


class Oracle:
    """Flower's strategy, fed by hand: whole weights of each site in, whole weights out."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        import flwr.serverapp.strategy as flower

        self._strategy = getattr(flower, name)(**arguments)
        self._grid = SimpleNamespace(get_node_ids=lambda: [1, 2])

    def aggregate(
        self, number: int, start: dict[str, Any], sites: list[dict[str, Any]], weights: list[int]
    ) -> dict[str, Any]:
        from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

        def record(arrays: dict[str, Any]) -> ArrayRecord:
            return ArrayRecord({name: Array(value) for name, value in arrays.items()})

        asked = list(self._strategy.configure_train(number, record(start), ConfigRecord(), self._grid))
        replies = [
            Message(
                RecordDict({"arrays": record(site), "metrics": MetricRecord({"num-examples": weight})}),
                reply_to=asked[0],
            )
            for site, weight in zip(sites, weights, strict=True)
        ]
        arrays, _ = self._strategy.aggregate_train(number, replies)
        return {name: array.numpy() for name, array in arrays.items()}


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages want to know whose task they belong to."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def random_sites(
    random: np.random.Generator, start: dict[str, Any], count: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Deltas and the whole weights that they lead to; the last site pulls far away."""
    deltas, wholes = [], []
    for site in range(count):
        scale = 5.0 if site == count - 1 else 0.1
        delta = {
            name: (scale * random.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()
        }
        deltas.append(delta)
        wholes.append({name: start[name] + delta[name] for name in SHAPES})
    return deltas, wholes


@pytest.mark.parametrize(
    ("name", "parameters", "flower", "arguments"), CASES, ids=[case[0] for case in CASES]
)
def test_strategy_equals_flowers_over_three_rounds(
    tmp_path: Path, name: str, parameters: dict[str, Any], flower: str, arguments: dict[str, Any]
) -> None:
    random = np.random.default_rng(7)
    strategy, oracle = make_strategy(name, parameters), Oracle(flower, arguments)
    start = {part: random.standard_normal(shape).astype(np.float32) for part, shape in SHAPES.items()}
    weights, state = [30, 5, 11, 20, 7, 13, 8], None
    for number in range(1, ROUNDS + 1):
        deltas, wholes = random_sites(random, start, len(weights))
        expected = oracle.aggregate(number, start, wholes, weights)
        write_tensors(tmp_path / "start", start)
        sites = []
        for place, delta in enumerate(deltas):
            write_tensors(tmp_path / f"u{place}", delta)
            sites.append(SiteUpdate(str(place), tmp_path / f"u{place}", weights[place]))
        next_state = tmp_path / f"state{number}"
        next_state.mkdir()
        aggregate(
            strategy,
            tmp_path / "start",
            sites,
            tmp_path / "out",
            round_number=number,
            state=state,
            next_state=next_state,
        )
        state = next_state
        with TensorFile(tmp_path / "out") as file:
            found = {part: file.array(part) for part in SHAPES}
        for part in SHAPES:
            np.testing.assert_allclose(found[part], expected[part], rtol=0, atol=2e-6)
        start = found


def test_every_strategy_of_a_plan_has_its_oracle() -> None:
    assert sorted(case[0] for case in CASES) == sorted(STRATEGIES)


def test_fedavg_from_zero_equals_flowers_to_the_last_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    start = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    deltas, wholes = random_sites(random, start, 3)
    expected = Oracle("FedAvg", {}).aggregate(1, start, wholes, [3, 4, 9])
    write_tensors(tmp_path / "start", start)
    for place, delta in enumerate(deltas):
        write_tensors(tmp_path / str(place), delta)
    sites = [SiteUpdate(str(place), tmp_path / str(place), weight) for place, weight in enumerate((3, 4, 9))]
    aggregate(make_strategy("FedAvg", {}), tmp_path / "start", sites, tmp_path / "out")
    with TensorFile(tmp_path / "out") as file:
        for name in SHAPES:
            assert file.array(name).tobytes() == np.asarray(expected[name]).tobytes()


def test_krum_leaves_the_far_site_out_and_folds_in_the_plans_order(tmp_path: Path) -> None:
    write_tensors(tmp_path / "start", {"w": np.zeros(3, np.float32)})
    sites = []
    for place, value in enumerate((100.0, 1.1, 1.0, 0.9, 1.2, -50.0, 1.05)):
        write_tensors(tmp_path / str(place), {"w": np.full(3, value, np.float32)})
        sites.append(SiteUpdate(f"lab-{place}", tmp_path / str(place), 1))
    strategy = make_strategy("MultiKrum", {"malicious": 2, "select": 3})
    result = aggregate(strategy, tmp_path / "start", sites, tmp_path / "out")
    assert result.folded == ("lab-1", "lab-2", "lab-6")


def test_equal_updates_are_picked_in_the_plans_order() -> None:
    distances = [[0.0] * 5 for _ in range(5)]
    assert Krum(1, 2)(distances) == [0, 1]


@pytest.mark.parametrize("merge", [Median(), TrimmedMean(0.2), NearestToMedian(1)])
def test_a_robust_merge_stays_within_the_honest_sites_whatever_one_site_sends(merge: Any) -> None:
    honest = [
        np.array([0.9], np.float32),
        np.array([1.0], np.float32),
        np.array([1.1], np.float32),
        np.array([1.2], np.float32),
    ]
    for lie in (-1e30, 1e30):
        merged = merge([*honest, np.array([lie], np.float32)], [1] * 5)
        assert 0.9 <= merged[0] <= 1.2


def test_a_robust_merge_does_not_depend_on_the_order_of_sites_not_even_in_signs_of_zero() -> None:
    values = [np.array([value], np.float32) for value in (0.0, -0.0, 0.0, -0.0, 1.0)]
    for merge in (Median(), TrimmedMean(0.2), NearestToMedian(1)):
        assert len({merge(list(order), [1] * 5).tobytes() for order in itertools.permutations(values)}) == 1


def test_a_strategy_that_no_plan_can_name_is_our_own_mistake() -> None:
    with pytest.raises(Misuse):
        make_strategy("FedBest", {})
