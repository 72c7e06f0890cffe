"""Texts from a CSV file at a site, with or without labels, read strictly; messages never show either.

The first line names the columns: ``text``, and ``label`` where texts are classified. A label is one of the
plan's, letter for letter. Further columns are an error, as with rows of numbers.

Letters: N texts.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.recipes.rows import LABEL, MAX_BYTES, MAX_ROWS
from storage.errors import Rejected, Unchecked

TEXT = "text"
MAX_CHARACTERS = 100_000  # of one text; the csv module stops at 131,072 for a cell


@dataclass(frozen=True)
class Texts:
    """Texts in memory.

    Attributes:
        texts: N texts, none of them blank.
        labels: shape (N,), int64, places in the plan's ``labels``; all 0 where there are none.
        lines: shape (N,), int64, the line of the file at which each text ends, for messages.
        name: of the file.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    lines: NDArray[np.int64]
    name: str

    def __len__(self) -> int:
        return len(self.texts)


def read_texts(path: Path, labels: Sequence[str] | None) -> Texts:
    """Read a whole CSV file.

    Args:
        labels: the classes, in the plan's order; None where the file has texts only.
    Raises:
        Unchecked: ``E_DATA_MISSING``: the file cannot be read.
        Rejected: ``E_DATA``, naming the file, the line (from 1) and the rule that it breaks.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise broken(path.name, 1, f"a file should have at most {MAX_BYTES} bytes")
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                return _read(path.name, reader, labels)
            except csv.Error as error:
                rule = f"the line is not well-formed CSV, or a text has over {MAX_CHARACTERS} characters"
                raise broken(path.name, reader.line_num, rule) from error
    except OSError as error:
        raise Unchecked(
            "E_DATA_MISSING",
            f"{path.name}: cannot be read ({error.strerror})",
            "look at the dataset's folder",
        ) from error
    except UnicodeDecodeError as error:
        raise Rejected("E_DATA", f"{path.name}: it is not UTF-8 text") from error


def _read(name: str, reader: Any, labels: Sequence[str] | None) -> Texts:
    header: list[str] = next(reader, [])
    wanted = [TEXT] if labels is None else [TEXT, LABEL]
    if sorted(header) != sorted(wanted):
        raise broken(name, 1, f"expected the columns {' and '.join(wanted)}, and no other")
    place = {column: number for number, column in enumerate(header)}
    known = {label: number for number, label in enumerate(labels or ())}
    texts: list[str] = []
    found: list[int] = []
    lines: list[int] = []
    for cells in reader:
        line = reader.line_num
        if len(cells) != len(header):
            raise broken(name, line, f"expected {len(header)} cells, found {len(cells)}")
        if len(texts) == MAX_ROWS:
            raise broken(name, line, f"a file should have at most {MAX_ROWS} rows")
        text = cells[place[TEXT]]
        _check_text(name, line, text)
        texts.append(text)
        lines.append(line)
        found.append(0 if labels is None else _label(name, line, cells[place[LABEL]], known))
    if not texts:
        raise broken(name, 1, "expected at least one row below the header")
    return Texts(tuple(texts), np.array(found, np.int64), np.array(lines, np.int64), name)


def _check_text(name: str, line: int, text: str) -> None:
    if not text.strip():
        raise broken(name, line, f"column {TEXT} is empty")
    if len(text) > MAX_CHARACTERS:
        raise broken(name, line, f"a text should have at most {MAX_CHARACTERS} characters")


def _label(name: str, line: int, cell: str, known: dict[str, int]) -> int:
    if not cell:
        raise broken(name, line, f"column {LABEL} is empty")
    if cell not in known:
        raise broken(
            name, line, f"column {LABEL} should be one of the {len(known)} labels that the plan names"
        )
    return known[cell]


def broken(name: str, line: int, rule: str) -> Rejected:
    """The refusal of a file, naming the line and the rule."""
    return Rejected("E_DATA", f"{name} line {line}: {rule}", "correct the file, then describe the data anew")
