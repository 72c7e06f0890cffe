"""Real rows over clinics whose patients differ: scikit-learn's bundled copy of the UCI "Breast Cancer Wisconsin
(Diagnostic)" data (Wolberg, Street and Mangasarian 1995), 569 cases, the ten mean measurements of each.

The split is ours: cases are dealt by their radius, with some chance, so that one clinic sees mostly small
tumours and another mostly large ones. Each clinic alone would centre and scale its columns elsewhere.
"""

import csv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

CLINICS = ("lab-a", "lab-b", "lab-c")
COLUMNS = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave_points",
    "symmetry",
    "fractal_dimension",
)
PARAMETERS: dict[str, Any] = {
    "columns": list(COLUMNS),
    "center": ["0"] * len(COLUMNS),
    "scale": ["1"] * len(COLUMNS),
    "classes": 2,
    "hidden": 0,
    "epochs": 2,
    "batch": 16,
    "learningRate": "0.05",
    "momentum": "0",
    "proximalMu": "0",
}
SEED = 7
HELD_OUT = 0.3


def cases() -> tuple[Any, Any]:
    """Features, shape (569, 10), and labels, 1 for malignant."""
    found = find_spec("sklearn")
    assert found is not None and found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "breast_cancer.csv"
    with path.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    rows = np.array([[float(cell) for cell in line] for line in lines])
    return rows[:, : len(COLUMNS)], 1 - rows[:, -1].astype(int)


def write_clinics(folder: Path, names: Sequence[str] = CLINICS) -> dict[str, Path]:
    """``<clinic>/{train,heldout}.csv``, the same on every machine."""
    features, labels = cases()
    random = np.random.default_rng(SEED)
    drawn = features[:, 0] + random.normal(scale=1.0, size=len(features))
    places = np.array_split(np.argsort(drawn), len(names))
    found = {}
    for name, place in zip(names, places, strict=True):
        own = place[random.permutation(len(place))]
        cut = round(len(own) * HELD_OUT)
        found[name] = folder / name
        found[name].mkdir(parents=True, exist_ok=True)
        for part, chosen in (("heldout", own[:cut]), ("train", own[cut:])):
            write_rows(found[name] / f"{part}.csv", features[chosen], labels[chosen])
    return found


def write_rows(path: Path, features: Any, labels: Any) -> None:
    """One CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", *COLUMNS])
        for row, label in zip(features, labels, strict=True):
            writer.writerow([int(label), *(f"{value:.6g}" for value in row)])
