"""What may be told about tables on disk: column names, column types, a rounded number of rows.

Files are grouped by what they have in common, so that no file name leaves the site: a file may be named
after a person. A table without a header line is refused, because its first row would be published as column
names. Values are looked at to guess a type and are never kept.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import Rejected, Unchecked

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SAMPLED_ROWS = 10_000  # per file, to guess the types of columns
MAX_COLUMNS = 16_384
FEW_ROWS = 10  # fewer are not told apart
E = "E_DATA"

_NAME = re.compile(r"[^\W\d][^\x00-\x1f\x7f-\x9f]{0,127}")
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_TYPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("sc:Boolean", re.compile(r"true|false", re.IGNORECASE)),
    ("sc:Integer", re.compile(r"[+-]?[0-9]{1,18}")),
    ("sc:Float", re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")),
    ("sc:Date", re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")),
)


@dataclass(frozen=True)
class Column:
    """A column's name and its Croissant data type."""

    name: str
    data_type: str


@dataclass(frozen=True)
class Table:
    """Files of one kind with the same header, taken as one table.

    Attributes:
        suffix: ``.csv`` or ``.tsv``.
        columns: in file order.
        rows: in all files together, exact; only ``told_rows`` of it may leave the site.
    """

    suffix: str
    columns: tuple[Column, ...]
    rows: int


def read_tables(folder: Path, names: Sequence[str]) -> list[Table]:
    """The tables in a folder, files with the same header together, in order of first appearance.

    Args:
        folder: where the files are.
        names: their names below it; files that are no tables are passed over.
    Raises:
        Rejected: ``E_DATA``; a table has no proper header line, or a row of another length.
        Unchecked: ``E_INPUT``; a file cannot be read.
    """
    groups: dict[tuple[str, tuple[str, ...]], tuple[list[set[str]], int]] = {}
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix in DELIMITERS:
            header, types, rows = _read_table(folder / name, name, DELIMITERS[suffix])
            known, total = groups.get((suffix, header), ([set() for _ in header], 0))
            merged = [old | new for old, new in zip(known, types, strict=True)]
            groups[suffix, header] = (merged, total + rows)
    return [
        Table(
            suffix,
            tuple(Column(name, _one_type(seen)) for name, seen in zip(header, types, strict=True)),
            rows,
        )
        for (suffix, header), (types, rows) in groups.items()
    ]


def told_rows(rows: int) -> str:
    """A number of rows as it may be told: rounded to two digits and to tens, and small numbers not at all.

    >>> told_rows(1347), told_rows(98), told_rows(3)
    ('about 1300 rows', 'about 100 rows', 'fewer than 10 rows')
    """
    if rows < FEW_ROWS:
        return f"fewer than {FEW_ROWS} rows"
    scale = max(10, 10 ** (len(str(rows)) - 2))
    return f"about {(rows + scale // 2) // scale * scale} rows"


def _read_table(path: Path, name: str, delimiter: str) -> tuple[tuple[str, ...], list[set[str]], int]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter, strict=True)
            return _scan(lines, name)
    except OSError as error:
        raise Unchecked("E_INPUT", f"file {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise _bad(name, "is UTF-8 text") from error
    except csv.Error as error:
        raise _bad(name, f"is well-formed CSV ({error})") from error


def _scan(lines: Iterator[list[str]], name: str) -> tuple[tuple[str, ...], list[set[str]], int]:
    header = tuple(cell.strip() for cell in next(lines, []))
    if not 0 < len(header) <= MAX_COLUMNS or len(set(header)) != len(header):
        raise _bad(name, "starts with a line of column names, all different")
    if not all(_NAME.fullmatch(cell) for cell in header):
        raise _bad(name, "starts with a line of column names, each beginning with a letter")
    types: list[set[str]] = [set() for _ in header]
    rows = 0
    for number, row in enumerate(lines, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise _bad(name, f"has {len(header)} columns in every row; row {number} has {len(row)}")
        rows += 1
        if rows <= SAMPLED_ROWS:
            for seen, cell in zip(types, row, strict=True):
                if "sc:Text" not in seen:
                    seen.update(_type_of(cell.strip()))
    return header, types, rows


def _type_of(cell: str) -> set[str]:
    if cell.lower() in _MISSING:
        return set()
    return {next((kind for kind, pattern in _TYPES if pattern.fullmatch(cell)), "sc:Text")}


def _one_type(seen: set[str]) -> str:
    if seen == {"sc:Integer", "sc:Float"}:
        return "sc:Float"
    return seen.pop() if len(seen) == 1 else "sc:Text"


def _bad(name: str, rule: str) -> Rejected:
    return Rejected(
        E, f"table {name}: expected a file that {rule}", "correct the file, then describe it again"
    )
