"""``figures.json``: what a site says of its rows beside a receipt, which names the file's digest.

Two actions have one: ``statistics`` (count, sum and spread of columns, for a joint scaling) and ``evaluate``
(shares of right answers, for the benefit report). Canonical JSON; nothing in it is about fewer rows than the
smallest cohort. Pure: no numpy, no files; sites write it, hub, owners and auditors read it.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from federation.fields import Rule, Schema, decimal, integer, listing, one_of, problems, text
from storage.encoding import canonical, read_canonical
from storage.errors import Rejected

FIGURES_FILE = "figures.json"
FIGURES_TYPE = "https://fedhub.dev/figures/v1"
FIGURES_BYTES = 1 << 20
MOST_ROWS = 1_000_000_000
MEASURED = ("federated", "local", "majority")

_FLOAT = re.compile(r"-?[0-9]{1,17}(\.[0-9]{1,24})?(e[+-][0-9]{2,3})?")
_DIGEST = text(r"[0-9a-f]{64}", "64 hex digits")


@dataclass(frozen=True)
class Column:
    """What one site says of one column.

    Attributes:
        count: cells with a value. missing: blank cells, where their number may be told.
        sum: of the values. squares: sum of the squared deviations from the site's own mean.
    """

    name: str
    count: int
    missing: int
    sum: float
    squares: float


@dataclass(frozen=True)
class ColumnFigures:
    """A site's column statistics.

    Attributes:
        cohort: nothing here is about fewer rows than this.
        columns: by name, in the plan's order; None for a column with too few values.
        labels: rows of each class, None where too few; None altogether where the plan does not ask.
    """

    plan: str
    dataset: str
    cohort: int
    columns: Mapping[str, Column | None]
    labels: tuple[int | None, ...] | None


@dataclass(frozen=True)
class ReportFigures:
    """What one site measured on its held-out rows.

    Attributes:
        round: the round whose aggregate, ``input``, was measured.
        rows: held-out rows; 0 when there are fewer than ``cohort``.
        measured: ``MEASURED`` -> share of right answers, four decimals; empty when ``rows`` is 0.
        statistics: digest of the joint statistics by which the rows were scaled, if they were.
    """

    plan: str
    dataset: str
    cohort: int
    round: int
    input: str
    rows: int
    measured: Mapping[str, str]
    statistics: str | None = None


# --- small cohorts ------------------------------------------------------------------------------------------


def told_column(
    name: str, values: int, blanks: int, mean: float, squares: float, cohort: int
) -> Column | None:
    """A column as it may leave a site; None when too few cells have a value.

    Fewer blanks than the smallest cohort, which would be a count too small to tell, are told as cells that
    hold the site's mean: joint mean and spread hardly move, and the number of blanks cannot be read from
    them.

    Args:
        values, blanks: cells with and without a value. squares: sum of squared deviations from ``mean``.

    >>> told_column("age", 20, 3, 50.0, 80.0, 5)
    Column(name='age', count=23, missing=0, sum=1150.0, squares=80.0)
    >>> told_column("age", 4, 30, 50.0, 80.0, 5) is None
    True
    """
    if values < cohort:
        return None
    if blanks < cohort:
        values, blanks = values + blanks, 0
    return Column(name, values, blanks, mean * values, squares)


def told_labels(counts: Sequence[int], cohort: int) -> tuple[int | None, ...]:
    """Rows of each class as they may leave a site whose number of rows is told.

    Counts below the smallest cohort are left out, and then further ones, the smallest first, until what is
    left out is at least two classes and at least a cohort together: else it could be read from the total.

    >>> told_labels([100, 50, 3], 10)
    (100, None, None)
    >>> told_labels([100, 50, 30], 10)
    (100, 50, 30)
    """
    order = sorted(range(len(counts)), key=lambda place: (counts[place], place))
    hidden: list[int] = []
    for place in order:
        enough = len(hidden) != 1 and (not hidden or sum(counts[one] for one in hidden) >= cohort)
        if counts[place] >= cohort and enough:
            break
        hidden.append(place)
    return tuple(None if place in hidden else count for place, count in enumerate(counts))


# --- writing ------------------------------------------------------------------------------------------------


def write_columns(figures: ColumnFigures) -> bytes:
    """``figures.json`` of a statistics receipt."""
    value: dict[str, Any] = {
        "type": FIGURES_TYPE,
        "action": "statistics",
        "plan": figures.plan,
        "dataset": figures.dataset,
        "smallestCohort": figures.cohort,
        "columns": [_column(name, column) for name, column in figures.columns.items()],
    }
    if figures.labels is not None:
        value["labels"] = list(figures.labels)
    return canonical(value, code="E_FIGURES")


def _column(name: str, column: Column | None) -> dict[str, Any]:
    if column is None:
        return {"name": name}
    return {
        "name": name,
        "count": column.count,
        "missing": column.missing,
        "sum": repr(column.sum),
        "squares": repr(column.squares),
    }


def write_report(figures: ReportFigures) -> bytes:
    """``figures.json`` of an evaluation's receipt."""
    value: dict[str, Any] = {
        "type": FIGURES_TYPE,
        "action": "evaluate",
        "plan": figures.plan,
        "dataset": figures.dataset,
        "smallestCohort": figures.cohort,
        "round": figures.round,
        "input": figures.input,
        "rows": figures.rows,
        "measured": dict(figures.measured),
    }
    if figures.statistics is not None:
        value["statistics"] = figures.statistics
    return canonical(value, code="E_FIGURES")


# --- reading ------------------------------------------------------------------------------------------------


def binary64(value: object) -> str | None:
    """A rule: text that Python's ``repr`` gives for a finite binary64, so that it reads back bit for bit."""
    good = isinstance(value, str) and _FLOAT.fullmatch(value) is not None
    good = good and math.isfinite(float(str(value))) and repr(float(str(value))) == value
    return None if good else 'a number as text, such as "12.5"'


def _count_or_none(value: object) -> str | None:
    return None if value is None else integer(0, MOST_ROWS)(value)


_HEAD: dict[str, Rule] = {
    "type": one_of(FIGURES_TYPE),
    "plan": _DIGEST,
    "dataset": _DIGEST,
    "smallestCohort": integer(1, MOST_ROWS),
}
_COLUMN: Schema = {
    "name": text(r"[^\x00-\x1f]{1,256}", "a column's name"),
    "count": integer(1, MOST_ROWS),
    "missing": integer(0, MOST_ROWS),
    "sum": binary64,
    "squares": binary64,
}
_LABELS = listing(_count_or_none, 2, 100_000)
_COLUMNS: dict[str, Rule] = {
    **_HEAD,
    "action": one_of("statistics"),
    "columns": lambda value: None if isinstance(value, list) and value else "a list of columns",
}
_REPORT: dict[str, Rule] = {
    **_HEAD,
    "action": one_of("evaluate"),
    "round": integer(1, MOST_ROWS),
    "input": _DIGEST,
    "rows": integer(0, MOST_ROWS),
    "measured": lambda value: None if isinstance(value, dict) else "an object",
}


def read_columns(raw: bytes) -> ColumnFigures:
    """The figures of a statistics receipt.

    Raises:
        Rejected: ``E_FIGURES``, naming every bad field; also when a figure is about fewer rows than it says.
    """
    value = _read(raw)
    asked = isinstance(value, dict) and "labels" in value
    found = problems(value, {**_COLUMNS, "labels": _LABELS} if asked else _COLUMNS)
    entries = value["columns"] if not found else []
    for place, entry in enumerate(entries):
        whole = isinstance(entry, dict) and set(entry) != {"name"}
        found += problems(entry, _COLUMN if whole else {"name": _COLUMN["name"]}, f"columns[{place}]")
    if found:
        raise _bad(found)
    cohort = value["smallestCohort"]
    columns = {entry["name"]: _read_column(entry) for entry in entries}
    if len(columns) < len(entries):
        raise _bad(["columns: two have the same name"])
    counts = [one for column in columns.values() if column for one in (column.count, column.missing)]
    small = [one for one in [*counts, *(value.get("labels") or [])] if one is not None and 0 < one < cohort]
    if small or any(column.squares < 0 for column in columns.values() if column):
        raise _bad([f"expected no count from 1 to {cohort - 1} and no negative sum of squares"])
    labels = tuple(value["labels"]) if asked else None
    return ColumnFigures(value["plan"], value["dataset"], cohort, columns, labels)


def _read_column(entry: Mapping[str, Any]) -> Column | None:
    if "count" not in entry:
        return None
    sums = float(entry["sum"]), float(entry["squares"])
    return Column(entry["name"], entry["count"], entry["missing"], *sums)


def read_report(raw: bytes) -> ReportFigures:
    """The figures of an evaluation's receipt.

    Raises:
        Rejected: ``E_FIGURES``, naming every bad field.
    """
    value = _read(raw)
    scaled = isinstance(value, dict) and "statistics" in value
    found = problems(value, {**_REPORT, "statistics": _DIGEST} if scaled else _REPORT)
    if not found:
        names = MEASURED if value["rows"] else ()
        found = problems(value["measured"], dict.fromkeys(names, _SHARE), "measured")
        if 0 < value["rows"] < value["smallestCohort"]:
            found.append(f"rows: expected 0 or at least {value['smallestCohort']}, found {value['rows']}")
    if found:
        raise _bad(found)
    return ReportFigures(
        plan=value["plan"],
        dataset=value["dataset"],
        cohort=value["smallestCohort"],
        round=value["round"],
        input=value["input"],
        rows=value["rows"],
        measured=value["measured"],
        statistics=value.get("statistics"),
    )


_SHARE = decimal("0", "1")


def _read(raw: bytes) -> Any:
    return read_canonical(raw, code="E_FIGURES", limit=FIGURES_BYTES)


def _bad(found: Sequence[str]) -> Rejected:
    shown = "; ".join(itertools.islice(found, 5))
    return Rejected(
        "E_FIGURES", f"{FIGURES_FILE}: {shown}", "site and hub may run different versions of fedhub"
    )
