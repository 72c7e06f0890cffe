"""Updates are folded as the plan says, in bounded pieces, and a bad one is named and nothing is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation import aggregation
from federation.aggregation import SiteUpdate, aggregate, check_update, site_weight, sums_of_squares
from federation.errors import UpdateRejected
from federation.strategies import make_strategy
from federation.tensors import Layout, TensorFile, TensorSpec, TensorWriter, layout_of, write_tensors
from storage.errors import Misuse, Refused, Rejected

FEDAVG = make_strategy("FedAvg", {})


def weights_file(path: Path, **tensors: Any) -> Path:
    write_tensors(path, {name: np.asarray(value) for name, value in tensors.items()})
    return path


def updates(folder: Path, *deltas: Any, weights: tuple[int, ...] = ()) -> list[SiteUpdate]:
    return [
        SiteUpdate(f"lab-{place}", weights_file(folder / f"u{place}", w=delta), (weights or [1] * 99)[place])
        for place, delta in enumerate(deltas)
    ]


def read(path: Path, name: str = "w") -> Any:
    with TensorFile(path) as file:
        return file.array(name).tolist()


def test_new_weights_are_the_input_plus_the_mean_of_deltas_by_weight(tmp_path: Path) -> None:
    start = weights_file(tmp_path / "start", w=np.array([1, 2], np.float32))
    sites = updates(tmp_path, np.array([1, 0], np.float32), np.array([4, 4], np.float32), weights=(3, 1))
    result = aggregate(FEDAVG, start, sites, tmp_path / "out")
    assert read(tmp_path / "out") == [2.75, 3.0]
    assert result.folded == ("lab-0", "lab-1") and result.state == {}
    assert result.size == (tmp_path / "out").stat().st_size


def test_the_aggregate_does_not_depend_on_the_size_of_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(1)
    start = weights_file(tmp_path / "start", w=random.standard_normal((50, 41)).astype(np.float32))
    sites = updates(tmp_path, *(random.standard_normal((50, 41)).astype(np.float32) for _ in range(5)))
    digests = set()
    for block in (1 << 20, 700, 5, 1):
        monkeypatch.setattr(aggregation, "BLOCK", block)
        digests |= {
            aggregate(make_strategy(name, parameters), start, sites, tmp_path / "out").sha256 + name
            for name, parameters in (("FedAvg", {}), ("FedMedian", {}), ("FedTrimmedAvg", {"beta": "0.2"}))
        }
    assert len(digests) == 3


def test_the_aggregate_keeps_the_layout_and_metadata_of_its_input(tmp_path: Path) -> None:
    write_tensors(tmp_path / "start", {"w": np.array([1], np.float32)}, {"format": "pt"})
    aggregate(FEDAVG, tmp_path / "start", updates(tmp_path, np.array([1], np.float32)), tmp_path / "out")
    with TensorFile(tmp_path / "out") as file:
        assert file.metadata == {"format": "pt"}
        assert file.layout == layout_of(tmp_path / "start")


def test_sums_are_kept_in_float32_for_narrow_types_and_float64_for_f64(tmp_path: Path) -> None:
    # 2048 + 1 is not a float16; 1 + 2^-40 is not a float32.
    start = weights_file(tmp_path / "start", half=np.array([0], np.float16), double=np.array([1], np.float64))
    sites = [
        SiteUpdate(
            f"lab-{place}",
            weights_file(
                tmp_path / f"u{place}",
                half=np.array([value], np.float16),
                double=np.array([2.0**-40], np.float64),
            ),
            1,
        )
        for place, value in enumerate((2048, 1, 2047))
    ]
    aggregate(FEDAVG, start, sites, tmp_path / "out")
    assert read(tmp_path / "out", "half") == [float(np.array(4096 / 3, np.float16))]
    assert read(tmp_path / "out", "double")[0] == pytest.approx(1 + 2.0**-40, abs=2.0**-52)


def test_bfloat16_weights_move_by_bfloat16_deltas(tmp_path: Path) -> None:
    layout = Layout((TensorSpec("w", "BF16", (2,)),))
    for name, values in (("start", [1.0, 2.0]), ("u0", [0.5, 0.25]), ("u1", [1.5, 0.25])):
        with TensorWriter(tmp_path / name, layout) as writer:
            writer.write(np.array(values, np.float32))
            writer.finish()
    sites = [SiteUpdate("a", tmp_path / "u0", 1), SiteUpdate("b", tmp_path / "u1", 1)]
    aggregate(FEDAVG, tmp_path / "start", sites, tmp_path / "out")
    assert read(tmp_path / "out") == [2.0, 2.25]


def test_a_buffer_is_the_heaviest_sites_own_value(tmp_path: Path) -> None:
    start = weights_file(tmp_path / "start", n=np.array(0, np.int64), mask=np.array([False]))
    sites = [
        SiteUpdate(
            site,
            weights_file(tmp_path / site, n=np.array(value, np.int64), mask=np.array([bool(value % 2)])),
            weight,
        )
        for site, value, weight in (("a", 10, 1), ("b", 21, 5), ("c", 30, 5))
    ]
    aggregate(FEDAVG, start, sites, tmp_path / "out")
    assert read(tmp_path / "out", "n") == 21 and read(tmp_path / "out", "mask") == [True]


def test_a_buffer_under_a_robust_strategy_is_the_middle_value(tmp_path: Path) -> None:
    start = weights_file(tmp_path / "start", n=np.array(0, np.int64))
    sites = [
        SiteUpdate(site, weights_file(tmp_path / site, n=np.array(value, np.int64)), 1)
        for site, value in (("a", -(10**18)), ("b", 4), ("c", 5), ("d", 10**18))
    ]
    aggregate(make_strategy("FedMedian", {}), start, sites, tmp_path / "out")
    assert read(tmp_path / "out", "n") == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "Krum"])
def test_a_value_that_is_no_number_names_site_and_tensor_and_nothing_is_written(
    tmp_path: Path, value: float, name: str
) -> None:
    start = weights_file(tmp_path / "start", w=np.zeros(4, np.float32))
    sites = updates(
        tmp_path,
        np.array([1, 1, 1, 1], np.float32),
        np.array([1, 1, value, 1], np.float32),
        np.array([0, 0, 0, 0], np.float32),
    )
    strategy = make_strategy(name, {"malicious": 0})
    with pytest.raises(UpdateRejected, match="lab-1: tensor w holds a value that is no finite F32") as caught:
        aggregate(strategy, start, sites, tmp_path / "out")
    assert caught.value.code == "E_NOT_FINITE" and caught.value.site == "lab-1"
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        ({"w": np.array([1, 2, 3], np.float32)}, r"expected F32 \[2\], found F32 \[3\]"),
        ({"w": np.array([1, 2], np.float64)}, "expected F32"),
        ({"v": np.array([1, 2], np.float32)}, "'w' is missing"),
        ({"w": np.array([1, 2], np.float32), "v": np.array([1], np.float32)}, "'v' is not expected"),
    ],
)
def test_an_update_of_another_layout_names_its_site(
    tmp_path: Path, tensors: dict[str, Any], rule: str
) -> None:
    start = weights_file(tmp_path / "start", w=np.array([1, 2], np.float32))
    bad = SiteUpdate("lab-b.example", weights_file(tmp_path / "bad", **tensors), 1)
    with pytest.raises(UpdateRejected, match=rule) as caught:
        aggregate(FEDAVG, start, [*updates(tmp_path, np.array([1, 2], np.float32)), bad], tmp_path / "out")
    assert caught.value.code == "E_LAYOUT" and caught.value.site == "lab-b.example"
    with pytest.raises(UpdateRejected, match=rule):
        check_update("lab-b.example", bad.path, layout_of(start))


def test_check_update_finds_what_the_aggregation_would_refuse(tmp_path: Path) -> None:
    good = weights_file(tmp_path / "good", w=np.array([1], np.float32), mask=np.array([True]))
    check_update("a", good, layout_of(good), size=good.stat().st_size)
    with pytest.raises(UpdateRejected, match="announced"):
        check_update("a", good, layout_of(good), size=3)
    bad = weights_file(tmp_path / "bad", w=np.array([np.inf], np.float32), mask=np.array([True]))
    with pytest.raises(UpdateRejected, match="tensor w"):
        check_update("a", bad, layout_of(good))
    raw = bytearray(good.read_bytes())
    raw[-1] = 2  # a boolean that is neither false nor true
    (tmp_path / "mask").write_bytes(raw)
    with pytest.raises(UpdateRejected, match="tensor mask"):
        check_update("a", tmp_path / "mask", layout_of(good))


def test_a_sum_beyond_the_type_is_refused_though_every_update_is_finite(tmp_path: Path) -> None:
    start = weights_file(tmp_path / "start", w=np.array([3e38], np.float32))
    with pytest.raises(Rejected, match="tensor w: the new weights are no finite F32") as caught:
        aggregate(FEDAVG, start, updates(tmp_path, np.array([3e38], np.float32)), tmp_path / "out")
    assert caught.value.code == "E_NOT_FINITE" and not isinstance(caught.value, UpdateRejected)


def test_a_site_cannot_weigh_more_than_the_cap_nor_less_than_one_row() -> None:
    assert site_weight("a", 10**15, "examples", 1000) == 1000
    assert site_weight("a", 12, "examples", 1000) == 12
    assert site_weight("a", 10**15, "equal", 1000) == 1
    for examples in (0, -9, 1.5, True, "12", None, 1 << 53):
        for weighting in ("examples", "equal"):
            with pytest.raises(UpdateRejected, match="a: examples should be a whole number") as caught:
                site_weight("a", examples, weighting, 1000)
            assert caught.value.code == "E_EXAMPLES"


def test_a_round_without_updates_has_no_aggregate(tmp_path: Path) -> None:
    with pytest.raises(Misuse):
        aggregate(FEDAVG, weights_file(tmp_path / "start", w=np.array([1], np.float32)), [], tmp_path / "out")


def test_a_strategy_refuses_fewer_updates_than_its_promise_needs(tmp_path: Path) -> None:
    start = weights_file(tmp_path / "start", w=np.array([1], np.float32))
    sites = updates(tmp_path, *([np.array([1], np.float32)] * 4))
    with pytest.raises(Refused, match="Krum needs at least 5 updates") as caught:
        aggregate(make_strategy("Krum", {"malicious": 1}), start, sites, tmp_path / "out")
    assert caught.value.code == "E_TOO_FEW_UPDATES"


def test_server_state_is_carried_from_round_to_round_in_files(tmp_path: Path) -> None:
    strategy = make_strategy("FedAvgM", {"serverLearningRate": "1", "serverMomentum": "0.5"})
    start = weights_file(tmp_path / "w0", w=np.array([0], np.float32))
    sites = updates(tmp_path, np.array([1], np.float32))
    state = None
    for number in (1, 2, 3):
        folder = tmp_path / f"state{number}"
        folder.mkdir()
        result = aggregate(
            strategy,
            start,
            sites,
            tmp_path / f"w{number}",
            round_number=number,
            state=state,
            next_state=folder,
        )
        start, state = tmp_path / f"w{number}", folder
        assert list(result.state) == ["momentum"]
    assert read(start) == [1 + 1.5 + 1.75]
    assert read(tmp_path / "state3" / "momentum.safetensors") == [1.75]


def test_state_of_another_round_or_strategy_is_refused(tmp_path: Path) -> None:
    strategy = make_strategy("FedAvgM", {"serverLearningRate": "1", "serverMomentum": "0.5"})
    start = weights_file(tmp_path / "w0", w=np.array([0], np.float32))
    sites = updates(tmp_path, np.array([1], np.float32))

    def go(number: int, state: Path | None, next_state: Path | None, **other: Any) -> None:
        aggregate(
            other.get("strategy", strategy),
            start,
            sites,
            tmp_path / "out",
            round_number=number,
            state=state,
            next_state=next_state,
        )

    (one, two) = (tmp_path / "one", tmp_path / "two")
    one.mkdir()
    two.mkdir()
    go(1, None, one)
    with pytest.raises(Rejected, match="expected the state") as caught:
        go(3, one, two)
    assert caught.value.code == "E_STATE" and not (two / "momentum.safetensors").exists()
    with pytest.raises(Rejected, match=r"expected|missing") as caught:
        write_tensors(one / "momentum.safetensors", {"v": np.array([1], np.float32)})
        go(2, one, two)
    assert caught.value.code == "E_STATE"
    for number, state, next_state in ((1, None, None), (2, None, two), (1, one, two)):
        with pytest.raises(Misuse):
            go(number, state, next_state)


def test_distances_are_added_up_alike_whatever_the_processor() -> None:
    for count in (1, 2, 3, 1000, 1001):
        values = np.random.default_rng(3).standard_normal((2, count))
        expected = [float(np.dot(row, row)) for row in values]
        assert sums_of_squares(values).tolist() == pytest.approx(expected, rel=1e-12)
