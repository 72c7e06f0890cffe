"""Joint scaling: the column statistics of all sites become one document, by which every site scales alike.

The plan's ``config.json`` says which columns (``harmonise``). Before round 1 each site sends count, sum and
sum of squared deviations per column (``figures``); the hub joins them in the plan's order into
``statistics.json``, canonical JSON whose digest stands in every later order, in the train receipts and in
the round statements. Whoever holds the sites' figures gets the same bytes.

A column that fewer than two sites may tell of keeps the ``center`` and ``scale`` that the plan states, by
name: one site's own figures would else be everybody's. Pure: no numpy, no files.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from federation.fields import Rule, Schema, boolean, decimal, integer, listing, one_of, problems, text
from federation.figures import MOST_ROWS, Column, ColumnFigures
from storage.encoding import canonical, read_canonical
from storage.errors import Rejected

STATISTICS_FILE = "statistics.json"
STATISTICS_TYPE = "https://fedhub.dev/statistics/v1"
STATISTICS_BYTES = 1 << 20
DEFAULT_COHORT = 10
LEAST_SITES = 2
KEPT = ("too few", "out of range")

_LARGEST = Decimal(999_999_999)
_STEP = Decimal("0.000000000001")
_COLUMN_NAME = text(r"[A-Za-z0-9_.-]{1,64}", "a column's name")

HARMONISE: Schema = {"columns": listing(_COLUMN_NAME, 1, 1024, distinct=True), "labels": boolean}


@dataclass(frozen=True)
class Harmonise:
    """What a plan asks for: columns to scale alike, and whether rows are counted by class."""

    columns: tuple[str, ...]
    labels: bool


@dataclass(frozen=True)
class Scaling:
    """One column of the joint statistics.

    Attributes:
        center, scale: decimals as text, as the recipe takes them; both None when the plan's own are kept.
        rows, missing: cells with and without a value over all sites; sites: how many told of the column.
        kept: why the plan's own are kept, one of ``KEPT``.
    """

    name: str
    center: str | None = None
    scale: str | None = None
    rows: int = 0
    missing: int = 0
    sites: int = 0
    kept: str | None = None


@dataclass(frozen=True)
class Statistics:
    """``statistics.json``: the columns, and the receipts of the sites' figures in the plan's order."""

    plan: str
    cohort: int
    columns: tuple[Scaling, ...]
    receipts: tuple[str, ...]
    labels: tuple[int | None, ...] | None
    raw: bytes

    def scaled(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's parameters with the joint ``center`` and ``scale`` of the columns that have them."""
        return rescaled(parameters, self.columns)


def rescaled(parameters: Mapping[str, Any], columns: Iterable[Scaling]) -> dict[str, Any]:
    """A recipe's parameters with the ``center`` and ``scale`` of these columns; others keep their own."""
    found = {column.name: column for column in columns if column.kept is None}
    known = zip(parameters["columns"], parameters["center"], parameters["scale"], strict=True)
    pairs = [
        (found[name].center, found[name].scale) if name in found else (center, scale)
        for name, center, scale in known
    ]
    return {**parameters, "center": [one for one, _ in pairs], "scale": [one for _, one in pairs]}


# --- the sum ------------------------------------------------------------------------------------------------


def pool(parts: Sequence[Column]) -> tuple[int, float, float]:
    """Count, mean and sum of squared deviations of several parts taken together, added one after the other.

    Only + - * / of binary64 in the order given, so equal parts give equal bits on any machine.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1: no
        difference of large sums of squares, which would lose every digit of a small spread.

    >>> pool([Column("a", 2, 0, 3.0, 0.5), Column("a", 1, 0, 3.0, 0.0)])
    (3, 2.0, 2.0)
    """
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        together = count + part.count
        apart = part.sum / part.count - mean
        mean += apart * part.count / together
        squares += part.squares + apart * apart * count * part.count / together
        count = together
    return count, mean, squares


def scaling(name: str, parts: Sequence[Column], *, least: int = LEAST_SITES) -> Scaling:
    """One column over the sites that told of it, or why it keeps its own: fewer than ``least`` did."""
    if len(parts) < least:
        return Scaling(name, kept="too few")
    count, mean, squares = pool(parts)
    center = decimal_text(mean)
    # A column that never varies is only moved to 0: there is nothing to divide by.
    scale = "1" if squares == 0 else decimal_text(math.sqrt(squares / count))
    if center is None or scale in (None, "0"):
        return Scaling(name, kept="out of range")
    missing = sum(part.missing for part in parts)
    return Scaling(name, center, scale, count, missing, len(parts))


def decimal_text(value: float) -> str | None:
    """A number as a plan writes it, rounded to 12 decimals; None beyond nine digits before the point.

    >>> decimal_text(0.1 + 0.2), decimal_text(-2.0), decimal_text(1e12)
    ('0.3', '-2', None)
    """
    if not math.isfinite(value) or abs(Decimal(value)) > _LARGEST:
        return None
    rounded = Decimal(value).quantize(_STEP, rounding=ROUND_HALF_EVEN)
    plain = f"{rounded:f}".rstrip("0").rstrip(".")
    return "0" if plain in ("", "-0") else plain


def join(
    plan: str, harmonise: Harmonise, cohort: int, figures: Sequence[tuple[str, ColumnFigures]]
) -> Statistics:
    """The joint statistics of a plan.

    Args:
        cohort: the plan's smallest; a site's own may have been larger.
        figures: (id of the receipt, what the site said), in the plan's order.
    Raises:
        Rejected: ``E_FIGURES``: figures of another plan or other columns, or about too few rows.
    """
    for receipt, each in figures:
        _check_asked(plan, harmonise, cohort, receipt, each)
    columns = []
    for name in harmonise.columns:
        parts = [column for _, each in figures if (column := each.columns[name]) is not None]
        columns.append(scaling(name, parts))
    labels = _labels([each.labels for _, each in figures if each.labels is not None])
    value: dict[str, Any] = {
        "type": STATISTICS_TYPE,
        "plan": plan,
        "smallestCohort": cohort,
        "columns": [_entry(column) for column in columns],
        "receipts": [receipt for receipt, _ in figures],
    }
    if harmonise.labels:
        value["labels"] = labels
    return read_statistics(canonical(value, code="E_STATISTICS"))


def _check_asked(plan: str, harmonise: Harmonise, cohort: int, receipt: str, each: ColumnFigures) -> None:
    wrong = None
    if each.plan != plan:
        wrong = f"of plan {each.plan}"
    elif tuple(each.columns) != harmonise.columns or (each.labels is not None) != harmonise.labels:
        wrong = "about other columns than the plan names"
    elif each.cohort < cohort:
        wrong = f"about cohorts of {each.cohort}, the plan says {cohort}"
    if wrong:
        raise Rejected("E_FIGURES", f"figures of receipt {receipt}: {wrong}")


def _labels(told: Sequence[Sequence[int | None]]) -> list[int | None]:
    """Rows of each class over the sites; None where a site could not tell: its part could be read off."""
    if not told or len({len(each) for each in told}) > 1:
        return []
    totals: list[int | None] = []
    for counts in zip(*told, strict=True):
        known = [count for count in counts if count is not None]
        totals.append(sum(known) if len(known) == len(counts) else None)
    return totals


# --- the document -------------------------------------------------------------------------------------------


def _entry(column: Scaling) -> dict[str, Any]:
    if column.kept is not None:
        return {"name": column.name, "kept": column.kept}
    names = ("name", "center", "scale", "rows", "missing", "sites")
    return {name: getattr(column, name) for name in names}


_KEPT_COLUMN: Schema = {"name": _COLUMN_NAME, "kept": one_of(*KEPT)}
_JOINT_COLUMN: Schema = {
    "name": _COLUMN_NAME,
    "center": decimal("-999999999", "999999999"),
    "scale": decimal("0", "999999999", above=True),
    "rows": integer(1, MOST_ROWS * 1000),
    "missing": integer(0, MOST_ROWS * 1000),
    "sites": integer(LEAST_SITES, 1000),
}


def _total(value: object) -> str | None:
    return None if value is None else integer(0, MOST_ROWS * 1000)(value)


_DOCUMENT: dict[str, Rule] = {
    "type": one_of(STATISTICS_TYPE),
    "plan": text(r"[0-9a-f]{64}", "64 hex digits"),
    "smallestCohort": integer(1, MOST_ROWS),
    "columns": lambda value: None if isinstance(value, list) and value else "a list of columns",
    "receipts": listing(text(r"[0-9a-f]{64}", "64 hex digits"), 1, 1000, distinct=True),
}


def read_statistics(raw: bytes) -> Statistics:
    """The bytes of a ``statistics.json``.

    Raises:
        Rejected: ``E_STATISTICS``, naming every bad field.
    """
    value = read_canonical(raw, code="E_STATISTICS", limit=STATISTICS_BYTES)
    asked = isinstance(value, dict) and "labels" in value
    found = problems(value, {**_DOCUMENT, "labels": listing(_total, 0, 100_000)} if asked else _DOCUMENT)
    entries = value["columns"] if not found else []
    for place, entry in enumerate(entries):
        kept = isinstance(entry, dict) and "kept" in entry
        found += problems(entry, _KEPT_COLUMN if kept else _JOINT_COLUMN, f"columns[{place}]")
    if found:
        raise Rejected("E_STATISTICS", f"{STATISTICS_FILE}: " + "; ".join(found[:5]))
    return Statistics(
        plan=value["plan"],
        cohort=value["smallestCohort"],
        columns=tuple(Scaling(**entry) for entry in entries),
        receipts=tuple(value["receipts"]),
        labels=tuple(value["labels"]) if asked else None,
        raw=raw,
    )


# --- what a plan says ---------------------------------------------------------------------------------------

# Members of config.json that a plan may leave out: older plans have none of them, and keep their digests.
OPTIONS: Schema = {
    "harmonise": lambda value: None if isinstance(value, dict) else "an object",
    "report": boolean,
    "smallestCohort": integer(1, 1_000_000),
}


def option_problems(value: Mapping[str, Any], *, recipe: bool) -> list[str]:
    """What is wrong between the options of a ``config.json`` whose fields are each well by themselves.

    Args:
        recipe: whether the plan's code is a recipe; of an app nobody here knows what it scales or measures.
    """
    if not recipe:
        return [f"{name}: for recipes only" for name in ("harmonise", "report") if value.get(name)]
    asked, parameters = value.get("harmonise"), value["recipe"]["parameters"]
    if asked is not None and not {"columns", "center", "scale"} <= set(parameters):
        return [f"harmonise: recipe {value['recipe']['name']} has no columns that are scaled"]
    found = problems(asked, HARMONISE, "harmonise") if asked is not None else []
    if ("harmonise" in value or value.get("report")) and "smallestCohort" not in value:
        found.append("smallestCohort: missing; joint statistics and a report need it")
    if found or asked is None:
        return found
    strange = [name for name in asked["columns"] if name not in parameters["columns"]]
    if strange:
        found.append(f"harmonise.columns: {strange[0]} is no column of the recipe ({len(strange)} such)")
    return found


def read_harmonise(value: Mapping[str, Any]) -> Harmonise | None:
    """The ``harmonise`` member of a checked ``config.json``."""
    asked = value.get("harmonise")
    return None if asked is None else Harmonise(tuple(asked["columns"]), asked["labels"])


def options(
    parameters: Mapping[str, Any],
    *,
    harmonise: bool | Sequence[str],
    count_labels: bool,
    report: bool,
    smallest_cohort: int | None,
) -> dict[str, Any]:
    """The options of a new ``config.json``; empty when nothing is asked for, as in plans before them.

    Args:
        harmonise: names of columns, or True for all that the recipe names.
    """
    made: dict[str, Any] = {}
    if harmonise:
        columns = list(parameters.get("columns", ())) if harmonise is True else list(harmonise)
        made["harmonise"] = {"columns": columns, "labels": count_labels}
    if report:
        made["report"] = True
    if made or smallest_cohort is not None:
        made["smallestCohort"] = DEFAULT_COHORT if smallest_cohort is None else smallest_cohort
    return made
