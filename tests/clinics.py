"""Real rows over clinics whose patients differ: scikit-learn's bundled copy of the UCI "Breast Cancer Wisconsin
(Diagnostic)" data (Wolberg, Street and Mangasarian 1995), 569 cases, the ten mean measurements of each.

The split is ours: cases are dealt by their radius, with some chance, so that one clinic sees mostly small
tumours and another mostly large ones. Each clinic alone would centre and scale its columns elsewhere.
"""

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from federation import training
from federation.aggregation import SiteUpdate, aggregate
from federation.figures import told_column
from federation.harmonising import rescaled, scaling
from federation.recipes.rows import read_rows
from federation.strategies import make_strategy

RECIPE = "tabular-classification"

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


# --- what a joint scaling is worth --------------------------------------------------------------------------


@dataclass(frozen=True)
class Learnt:
    """On the held-out rows of all clinics: share right, area under the ROC curve, and how many rows."""

    accuracy: float
    auc: float
    rows: int


def scalings(clinics: Mapping[str, Path], parameters: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Three ways to scale -> clinic -> the recipe's parameters there."""
    told = {}
    for name, data in clinics.items():
        features = read_rows(data / "train.csv", COLUMNS, 2).features.astype(np.float64)
        moments = zip(COLUMNS, features.mean(0), np.square(features - features.mean(0)).sum(0), strict=True)
        told[name] = [
            told_column(column, len(features), 0, float(m), float(s), 10) for column, m, s in moments
        ]
    own = {
        name: rescaled(parameters, [scaling(one.name, [one], least=1) for one in each if one])
        for name, each in told.items()
    }
    columns = zip(*told.values(), strict=True)
    joint = rescaled(
        parameters,
        [scaling(name, [one for one in each if one]) for name, each in zip(COLUMNS, columns, strict=True)],
    )
    return {
        "as they come": dict.fromkeys(clinics, parameters),
        "scaled by each clinic for itself": own,
        "scaled alike": dict.fromkeys(clinics, joint),
    }


def federated(
    clinics: Mapping[str, Path],
    base: Path,
    work: Path,
    parameters: Mapping[str, dict[str, Any]],
    *,
    rounds: int,
) -> Learnt:
    """Rounds of FedAvg from ``base``, each clinic scaling as its parameters say."""
    weights = work / "start.safetensors"
    shutil.copy(base, weights)
    for number in range(1, rounds + 1):
        updates = []
        for name, data in clinics.items():
            out = work / f"{name}.safetensors"
            made = training.train(RECIPE, parameters[name], weights, data, out, 1, number, site=name)
            updates.append(SiteUpdate(name, out, made.examples))
        out = work / f"round-{number % 2}.safetensors"
        aggregate(make_strategy("FedAvg", {}), weights, updates, out, round_number=number)
        weights = out
    return _measured(clinics, weights, parameters)


def _measured(clinics: Mapping[str, Path], weights: Path, parameters: Mapping[str, dict[str, Any]]) -> Learnt:
    right, rows, scores, labels = 0.0, 0, [], []
    for name, data in clinics.items():
        found = training.evaluate(RECIPE, parameters[name], weights, data)
        right += found["accuracy"] * found["examples"]
        rows += int(found["examples"])
        read = read_rows(data / "heldout.csv", COLUMNS, 2)
        scores.append(_malignant(weights, parameters[name], read.features))
        labels.append(read.labels)
    return Learnt(right / rows, _auc(np.concatenate(scores), np.concatenate(labels)), rows)


def _malignant(weights: Path, parameters: dict[str, Any], features: Any) -> Any:
    """The linear model's own answer, which orders cases as its probability does."""
    from federation.recipes.tabular_classification import inputs
    from federation.tensors import TensorFile

    with TensorFile(weights) as file:
        kernel, bias = (np.array(file.array(name)) for name in ("0.weight", "0.bias"))
    answers = inputs(parameters, features).numpy() @ kernel.T + bias
    return answers[:, 1] - answers[:, 0]


def _auc(scores: Any, labels: Any) -> float:
    """Share of (malignant, benign) pairs in the right order; ties count half."""
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)
