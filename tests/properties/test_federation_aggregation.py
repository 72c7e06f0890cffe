"""Whatever the sites send, the fold is the weighted mean, the robust merges ignore the order of sites."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.aggregation import SiteUpdate, aggregate
from federation.strategies import Krum, Median, NearestToMedian, TrimmedMean, make_strategy
from federation.tensors import TensorFile, write_tensors

floats = st.floats(-1e6, 1e6, width=32)


def same_length(sites: int) -> st.SearchStrategy[list[list[float]]]:
    return st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(floats, min_size=n, max_size=n), min_size=sites + 1, max_size=sites + 1)
    )


@settings(max_examples=60)
@given(same_length(3), st.lists(st.integers(1, 1 << 40), min_size=3, max_size=3))
def test_fedavg_is_the_weighted_mean_and_repeats_to_the_byte(
    values: list[list[float]], weights: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tensors(folder / "start", {"w": np.array(values[0], np.float32)})
        sites = []
        for place, (delta, weight) in enumerate(zip(values[1:], weights, strict=True)):
            write_tensors(folder / str(place), {"w": np.array(delta, np.float32)})
            sites.append(SiteUpdate(str(place), folder / str(place), weight))
        first = aggregate(make_strategy("FedAvg", {}), folder / "start", sites, folder / "one")
        again = aggregate(make_strategy("FedAvg", {}), folder / "start", sites, folder / "two")
        assert first.sha256 == again.sha256
        with TensorFile(folder / "one") as file:
            found = file.array("w").astype(np.float64)
    shares = np.array(weights, np.float64) / sum(weights)
    expected = np.array(values[0], np.float64) + shares @ np.array(values[1:], np.float64)
    largest = max(abs(value) for row in values for value in row)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * (1 + largest))


@settings(max_examples=60)
@given(st.lists(floats, min_size=5, max_size=5), st.permutations(range(5)))
def test_robust_merges_do_not_depend_on_the_order_of_sites(values: list[float], order: list[int]) -> None:
    deltas = [np.array([value], np.float32) for value in values]
    merges: list[Any] = [Median(), TrimmedMean(0.3), NearestToMedian(1)]
    for merge in merges:
        shuffled = merge([deltas[place] for place in order], [1] * 5)
        assert merge(deltas, [1] * 5).tobytes() == shuffled.tobytes()


@settings(max_examples=60)
@given(st.lists(floats, min_size=3, max_size=7))
def test_the_median_is_numpys(values: list[float]) -> None:
    merged = Median()([np.array([value], np.float32) for value in values], [1] * len(values))
    np.testing.assert_allclose(merged[0], np.median(np.array(values, np.float32)), rtol=1e-6, atol=1e-38)


@settings(max_examples=60)
@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=5, unique=True))
def test_krum_picks_no_site_that_is_far_from_all_others(values: list[float]) -> None:
    points = [*values[:4], max(values) + 1e5]
    distances = [[(a - b) ** 2 for b in points] for a in points]
    for count in (1, 2):
        assert 4 not in Krum(1, count)(distances)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=5, max_size=5))
def test_krum_picks_the_same_updates_in_any_order_of_sites(points: list[tuple[float, float]]) -> None:
    def picked(order: tuple[int, ...]) -> float:
        distances = [
            [sum((x - y) ** 2 for x, y in zip(points[a], points[b], strict=True)) for b in order]
            for a in order
        ]
        scores = [sum(sorted(row)[1:3]) for row in distances]
        return scores[Krum(1, 1)(distances)[0]]

    orders = list(itertools.permutations(range(5)))[::17]
    assert max(map(picked, orders)) - min(map(picked, orders)) < 1e-9
