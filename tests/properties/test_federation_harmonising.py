"""For any rows and any split of them: joint statistics are those of all rows together, and nothing that leaves a site
tells a count below the smallest cohort.
"""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.figures import (
    Column,
    ColumnFigures,
    ReportFigures,
    read_columns,
    read_report,
    told_column,
    told_labels,
    write_columns,
    write_report,
)
from federation.harmonising import (
    Harmonise,
    Statistics,
    decimal_text,
    join,
    pool,
    read_statistics,
    rescaled,
    scaling,
)
from storage.errors import Rejected

PLAN, DATASET, RECEIPTS = "a" * 64, "b" * 64, [f"{number:064x}" for number in range(1, 9)]
numbers = st.floats(-1e9, 1e9, width=32)
parts = st.lists(st.lists(numbers, min_size=1, max_size=30), min_size=1, max_size=6)


def column(values: list[float], name: str = "x") -> Column:
    cells = np.array(values, np.float32).astype(np.float64)
    mean = float(cells.mean())
    return Column(name, len(cells), 0, float(cells.sum()), float(np.square(cells - mean).sum()))


@given(parts, st.sampled_from([0.0, 1e6, -3e8]))
def test_the_pool_of_any_split_is_the_whole(split: list[list[float]], far: float) -> None:
    split = [[value + far for value in part] for part in split]
    whole = np.concatenate([np.array(part, np.float32).astype(np.float64) for part in split])
    count, mean, squares = pool([column(part) for part in split])
    size = float(np.abs(whole).max()) or 1.0
    assert count == len(whole)
    assert mean == pytest.approx(whole.mean(), abs=1e-12 * size)
    assert squares == pytest.approx(np.square(whole - whole.mean()).sum(), rel=1e-6, abs=1e-9 * size * size)


def test_a_small_spread_around_a_large_mean_survives() -> None:
    """Sums of squares would lose it: 1e9 squared has no digit left for a spread of 0.5."""
    cells = 1e9 + np.array([-0.5, 0.5] * 50)
    halves = [Column("x", 50, 0, float(half.sum()), 12.5) for half in (cells[:50], cells[50:])]
    count, mean, squares = pool(halves)
    assert (count, mean, (squares / count) ** 0.5) == (100, 1e9, 0.5)


def figures(columns: dict[str, Column | None], **changes: Any) -> ColumnFigures:
    known = {"plan": PLAN, "dataset": DATASET, "cohort": 5, "columns": columns, "labels": None}
    return ColumnFigures(**(known | changes))


def joined(told: list[dict[str, Column | None]], names: tuple[str, ...] = ("x",)) -> Statistics:
    parts_of = [(receipt, figures(each)) for receipt, each in zip(RECEIPTS, told, strict=False)]
    return join(PLAN, Harmonise(names, False), 5, parts_of)


@given(st.lists(st.lists(numbers, min_size=5, max_size=20), min_size=2, max_size=6))
def test_the_same_figures_give_the_same_bytes_and_the_document_reads_back(split: list[list[float]]) -> None:
    told = [{"x": column(part)} for part in split]
    first = joined(told)
    through = [
        (receipt, read_columns(write_columns(figures(each))))
        for receipt, each in zip(RECEIPTS, told, strict=False)
    ]
    assert join(PLAN, Harmonise(("x",), False), 5, through).raw == first.raw
    assert read_statistics(first.raw) == first
    [found] = first.columns
    if found.kept is None:
        whole = np.concatenate([np.array(part, np.float32).astype(np.float64) for part in split])
        assert float(found.center or 0) == pytest.approx(whole.mean(), rel=1e-9, abs=1e-3)
        assert found.rows == len(whole) and found.sites == len(split)


@settings(max_examples=300)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20))
def test_no_count_below_the_smallest_cohort_leaves_a_site(values: int, blanks: int, cohort: int) -> None:
    told = told_column("x", values, blanks, 2.5, 7.0, cohort)
    if told is None:
        assert values < cohort
        return
    assert told.count >= cohort and (told.missing == 0 or told.missing >= cohort)
    assert told.count + told.missing == values + blanks, "blanks that are hidden are among the values"
    raw = json.loads(write_columns(figures({"x": told}, cohort=cohort)))
    assert all(one["count"] >= cohort for one in raw["columns"])
    # Nothing tells hidden blanks: the mean is the site's own either way, and so is the count of all rows.
    assert told.sum / told.count == pytest.approx(2.5) and told.squares == 7.0


@settings(max_examples=300)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=8), st.integers(1, 15))
def test_no_class_can_be_told_from_the_total_and_the_others(counts: list[int], cohort: int) -> None:
    told = told_labels(counts, cohort)
    assert all(one is None or one >= cohort for one in told)
    assert all(one in (None, count) for one, count in zip(told, counts, strict=True))
    hidden = [count for one, count in zip(told, counts, strict=True) if one is None]
    if hidden and len(hidden) < len(counts):
        assert len(hidden) >= 2 and sum(hidden) >= cohort
    if all(count >= cohort for count in counts):
        assert not hidden


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_as_a_plan_writes_it_is_near_and_none_where_it_cannot_be(value: float) -> None:
    text = decimal_text(value)
    if text is None:
        assert abs(value) > 999_999_998
    else:
        assert float(text) == pytest.approx(value, abs=1e-12, rel=1e-12) and "e" not in text


def test_a_column_that_one_site_alone_tells_keeps_what_the_plan_says() -> None:
    told: list[dict[str, Column | None]] = [
        {"x": column([1.0] * 5), "y": column([5.0, 6.0, 7.0, 8.0, 9.0], "y")},
        {"x": column([3.0] * 5), "y": None},
    ]
    made = joined(told, ("x", "y"))
    assert [one.kept for one in made.columns] == [None, "too few"]
    parameters = {
        "columns": ["y", "x", "z"],
        "center": ["7", "8", "9"],
        "scale": ["2", "3", "4"],
        "epochs": 1,
    }
    assert made.scaled(parameters) == {
        "columns": ["y", "x", "z"],
        "center": ["7", "2", "9"],
        "scale": ["2", "1", "4"],
        "epochs": 1,
    }


def test_a_column_beyond_a_plans_decimals_and_one_that_never_varies_are_told_apart() -> None:
    vast = Column("x", 10, 0, 1e13, 1e20)
    assert scaling("x", [vast, vast]).kept == "out of range"
    tiny = Column("x", 10, 0, 0.0, 1e-40)
    assert scaling("x", [tiny, tiny]).kept == "out of range"
    same = scaling("x", [Column("x", 10, 0, 40.0, 0.0)] * 2)
    assert (same.center, same.scale, same.kept) == ("4", "1", None)
    assert rescaled({"columns": ["x"], "center": ["0"], "scale": ["1"]}, [same])["center"] == ["4"]


BAD_COLUMNS = [
    {"type": "other"},
    {"plan": "A" * 64},
    {"smallestCohort": 0},
    {"columns": []},
    {"columns": {}},
    {"columns": [{"name": "x", "count": 4, "missing": 0, "sum": "1.0", "squares": "0.0"}]},
    {"columns": [{"name": "x", "count": 9, "missing": 3, "sum": "1.0", "squares": "0.0"}]},
    {"columns": [{"name": "x", "count": 9, "missing": 0, "sum": "1", "squares": "0.0"}]},
    {"columns": [{"name": "x", "count": 9, "missing": 0, "sum": "nan", "squares": "0.0"}]},
    {"columns": [{"name": "x", "count": 9, "missing": 0, "sum": "1e+999", "squares": "0.0"}]},
    {"columns": [{"name": "x", "count": 9, "missing": 0, "sum": 1, "squares": "0.0"}]},
    {"columns": [{"name": "x", "count": 9, "missing": 0, "sum": "1.0", "squares": "-1.0"}]},
    {"columns": [{"name": "x"}, {"name": "x"}]},
    {"columns": [{"name": "x", "more": 1}]},
    {"columns": ["x"]},
    {"labels": [3, 9]},
    {"labels": None},
    {"more": 1},
    {"action": "evaluate"},
]


@pytest.mark.parametrize("change", BAD_COLUMNS, ids=str)
def test_figures_of_columns_that_break_a_rule_are_refused(change: dict[str, Any]) -> None:
    good = json.loads(write_columns(figures({"x": column([1.0] * 9)})))
    raw = json.dumps({**good, **change}, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(Rejected, match="E_FIGURES"):
        read_columns(raw)
    for cut in (b"", b"{}", b"[]", raw[:-1]):
        with pytest.raises(Rejected, match="E_FIGURES"):
            read_columns(cut)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 4},
        {"rows": -1},
        {"rows": 0},
        {"measured": {}},
        {"measured": {"federated": "0.9", "local": "0.8"}},
        {"measured": {"federated": "1.1", "local": "0.8", "majority": "0.5"}},
        {"measured": {"federated": 0.9, "local": "0.8", "majority": "0.5"}},
        {"measured": []},
        {"round": 0},
        {"statistics": "x"},
        {"more": 1},
    ],
    ids=str,
)
def test_figures_of_a_report_that_break_a_rule_are_refused(change: dict[str, Any]) -> None:
    measured = {"federated": "0.9", "local": "0.8", "majority": "0.5"}
    known = ReportFigures(PLAN, DATASET, 5, 3, "c" * 64, 20, measured)
    assert read_report(write_report(known)) == known
    raw = json.dumps({**json.loads(write_report(known)), **change}, sort_keys=True, separators=(",", ":"))
    with pytest.raises(Rejected, match="E_FIGURES"):
        read_report(raw.encode())


@pytest.mark.parametrize(
    "change",
    [
        {"columns": [{"name": "x", "kept": "because"}]},
        {"columns": [{"name": "x", "center": "1", "scale": "0", "rows": 9, "missing": 0, "sites": 2}]},
        {"columns": [{"name": "x", "center": "1", "scale": "1", "rows": 9, "missing": 0, "sites": 1}]},
        {"receipts": []},
        {"receipts": ["1" * 64, "1" * 64]},
        {"smallestCohort": "5"},
        {"labels": [-1, 2]},
        {"more": 1},
    ],
    ids=str,
)
def test_joint_statistics_that_break_a_rule_are_refused(change: dict[str, Any]) -> None:
    good = json.loads(joined([{"x": column([1.0] * 5)}, {"x": column([2.0] * 5)}]).raw)
    raw = json.dumps({**good, **change}, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(Rejected, match="E_STATISTICS"):
        read_statistics(raw)
