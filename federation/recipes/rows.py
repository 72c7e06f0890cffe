"""Labelled rows from a CSV file at a site, read strictly; messages name file, line and rule, never a value.

The first line names the columns; ``label`` is a whole number from 0, the others are numbers. Columns are
picked by name, so their order is free and further columns are an error: rows that nobody described are not
trained on.

Letters: N rows, F features. Needs numpy alone.
"""

import csv
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from storage.errors import Rejected, Unchecked

LABEL = "label"
MAX_ROWS = 1_000_000
MAX_CELLS = 200_000_000  # about 800 MB as float32
MAX_BYTES = 4 << 30

_NUMBER = re.compile(
    r"[+-]?[0-9]{1,32}(\.[0-9]{0,32})?([eE][+-]?[0-9]{1,3})?"
)  # float() takes 1_0 and nan too
_LARGEST = 3.0e38


@dataclass(frozen=True)
class Rows:
    """Rows in memory.

    Attributes:
        features: shape (N, F), float32, in the order of columns asked for.
        labels: shape (N,), int64, from 0.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def read_rows(path: Path, columns: Sequence[str], classes: int, *, blanks: bool = False) -> Rows:
    """Read a whole CSV file.

    Args:
        columns: names of the F feature columns.
        classes: labels are from 0 to ``classes - 1``.
        blanks: whether an empty cell of a feature is a missing value, NaN, rather than an error.
    Raises:
        Unchecked: ``E_DATA_MISSING``, ``E_PERMISSION``: the file cannot be read.
        Rejected: ``E_DATA``, naming the file, the line (from 1) and the rule that it breaks.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _broken(path, 1, f"a file should have at most {MAX_BYTES} bytes")
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _read(path, _lines(path, file), columns, classes, blanks)
    except PermissionError as error:
        message = f"{path.name}: the agent may not read it"
        raise Unchecked("E_PERMISSION", message, "look at the dataset's folder") from error
    except OSError as error:
        raise Unchecked(
            "E_DATA_MISSING",
            f"{path.name}: cannot be read ({error.strerror})",
            "look at the dataset's folder",
        ) from error
    except UnicodeDecodeError as error:
        raise Rejected("E_DATA", f"{path.name}: it is not UTF-8 text") from error


def _lines(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Lines of cells, with their line numbers; a quoted cell may hold line breaks."""
    reader = csv.reader(file, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _broken(path, reader.line_num, "the line is not well-formed CSV") from error
        yield reader.line_num, cells


def _read(
    path: Path, lines: Iterator[tuple[int, list[str]]], columns: Sequence[str], classes: int, blanks: bool
) -> Rows:
    _, header = next(lines, (1, []))
    places = _places(path, header, columns)
    label_place = header.index(LABEL)
    features, labels = array("f"), array("q")  # 4 bytes a cell, where a list of floats takes 32
    for line, cells in lines:
        if len(cells) != len(header):
            raise _broken(path, line, f"expected {len(header)} cells, found {len(cells)}")
        if len(labels) == MAX_ROWS or len(labels) * len(columns) > MAX_CELLS:
            raise _broken(path, line, f"a file should have at most {MAX_ROWS} rows and {MAX_CELLS} cells")
        labels.append(_label(path, line, cells[label_place], classes))
        features.extend(_numbers(path, line, cells, places, header, blanks))
    if not labels:
        raise _broken(path, 1, "expected at least one row below the header")
    shape = (len(labels), len(columns))
    return Rows(np.array(features, np.float32).reshape(shape), np.array(labels, np.int64))


def _places(path: Path, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Where each asked column stands; names of columns are described in public, so messages may show them."""
    known = {name: place for place, name in enumerate(header)}
    if len(known) < len(header):
        raise _broken(path, 1, "two columns have the same name")
    missing = [name for name in (LABEL, *columns) if name not in known]
    if missing:
        raise _broken(path, 1, f"{len(missing)} columns are missing, such as {missing[0]}")
    if len(known) > len(columns) + 1:
        raise _broken(
            path, 1, f"{len(known) - len(columns) - 1} columns stand here that the recipe does not name"
        )
    return [known[name] for name in columns]


def _label(path: Path, line: int, cell: str, classes: int) -> int:
    # isdecimal() knows digits of other scripts: only ASCII ones are meant.
    if not (cell.isascii() and cell.isdecimal() and len(cell) <= 9 and int(cell) < classes):
        raise _broken(path, line, f"column {LABEL} should be a whole number from 0 to {classes - 1}")
    return int(cell)


def _numbers(
    path: Path, line: int, cells: list[str], places: list[int], header: Sequence[str], blanks: bool
) -> list[float]:
    values = [_number(cells[place]) for place in places]
    if any(map(math.isnan, values)):
        wrong = [place for place, value in zip(places, values, strict=True) if math.isnan(value)]
        bad = next((place for place in wrong if cells[place] or not blanks), None)
        if bad is None:
            return values
        raise _broken(path, line, f"column {header[bad]} should be a number such as 12 or -0.5")
    return values


def _number(cell: str) -> float:
    """What a cell says, or NaN when it is not a plain number that float32 can hold."""
    if not _NUMBER.fullmatch(cell):
        return math.nan
    value = float(cell)
    return value if abs(value) <= _LARGEST else math.nan


def _broken(path: Path, line: int, rule: str) -> Rejected:
    return Rejected(
        "E_DATA", f"{path.name} line {line}: {rule}", "correct the file, then describe the data anew"
    )
