"""The demo's data: real scans of handwritten digits, split so unevenly that no lab can do well alone.

Source: scikit-learn's bundled copy of the UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin
and Kaynak 1998): 1,797 images of 8 x 8 pixels with values 0 to 16, by 13 writers. A small part stands for
public data; the rest goes to three labs. Each digit has one home lab that gets ``HOME_SHARE`` of its rows,
the other labs share what is left, so every label is known everywhere and common in one place only.

Letters: N rows, 64 pixels.
"""

import csv
import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from storage.errors import Unchecked

LABS = ("lab-a", "lab-b", "lab-c")
HOME_DIGITS = {"lab-a": (0, 1, 2, 3), "lab-b": (4, 5, 6), "lab-c": (7, 8, 9)}
HOME_SHARE = 0.92
PUBLIC_ROWS_PER_DIGIT = 3
HELD_OUT_SHARE = 0.25
SEED = 20_261_125
PIXELS = 64
HEADER = ["label", *(f"p{number:02d}" for number in range(PIXELS))]

Row = list[int]  # the label, then 64 pixels


def write_split(folder: Path) -> None:
    """Write ``public/train.csv`` and ``<lab>/{train,heldout}.csv`` under ``folder``, unless they are there.

    The same rows land in the same files on every machine.
    """
    if (folder / LABS[-1] / "heldout.csv").exists():
        return
    for name, parts in split().items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for part, rows in parts.items():
            _write(folder / name / f"{part}.csv", rows)


def split() -> dict[str, dict[str, list[Row]]]:
    """Rows by place and part: ``public`` has ``train``, each lab ``train`` and ``heldout``; all disjoint."""
    import numpy as np

    rows = _bundled_rows()
    random = np.random.default_rng(SEED)
    places: dict[str, dict[str, list[Row]]] = {"public": {"train": []}}
    places |= {lab: {"train": [], "heldout": []} for lab in LABS}
    for digit in range(10):
        own = [row for row in rows if row[0] == digit]
        own = [own[place] for place in random.permutation(len(own))]
        places["public"]["train"] += own[:PUBLIC_ROWS_PER_DIGIT]
        for lab, part in _shares(digit, own[PUBLIC_ROWS_PER_DIGIT:]).items():
            held_out = round(len(part) * HELD_OUT_SHARE)
            places[lab]["heldout"] += part[:held_out]
            places[lab]["train"] += part[held_out:]
    return {
        name: {
            part: [found[place] for place in random.permutation(len(found))] for part, found in parts.items()
        }
        for name, parts in places.items()
    }


def read_rows(path: Path) -> list[Row]:
    """The rows of one of the files written here."""
    with path.open(newline="") as file:
        lines = csv.reader(file)
        next(lines)
        return [[int(cell) for cell in line] for line in lines]


def _bundled_rows() -> list[Row]:
    """All rows as scikit-learn's package holds them; importing the package itself would take seconds."""
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("scikit-learn is not installed", name="sklearn")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt", newline="") as file:
            lines = [[int(float(cell)) for cell in line] for line in csv.reader(file)]
    except OSError as error:
        hint = "install scikit-learn again"
        raise Unchecked("E_DATA_MISSING", f"{path}: {error.strerror or error}", hint) from error
    return [[line[PIXELS], *line[:PIXELS]] for line in lines]


def _shares(digit: int, rows: Sequence[Row]) -> dict[str, list[Row]]:
    home = next(lab for lab, digits in HOME_DIGITS.items() if digit in digits)
    others = [lab for lab in LABS if lab != home]
    at_home = round(len(rows) * HOME_SHARE)
    away = list(rows[at_home:])
    return {home: list(rows[:at_home]), others[0]: away[0::2], others[1]: away[1::2]}


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(rows)
