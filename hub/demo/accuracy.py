"""What federation is worth on the demo's data: each lab alone, pooled, federated, and the majority class.

Every model starts from the same base version and passes over its rows equally often; all are measured on the
same rows, the held-out rows of all labs together. Only the demo can pool the rows: it made the split.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.demo import digits


@dataclass(frozen=True)
class Comparison:
    """Shares of right answers on ``n`` rows that no model was trained on."""

    local: dict[str, float]
    pooled: float
    federated: float
    majority: float
    n: int


def compare(data: Path, work: Path, base: Path, federated: Path, epochs: int, seed: int) -> Comparison:
    """Train the comparisons and measure all models.

    Args:
        data: folder of the split, one folder per lab.
        work: a new folder for what is made here.
        base: folder of the base version. federated: folder of the released version.
        epochs: passes over the rows that the federated model saw: rounds times local epochs.
    """
    from federation import training

    recipe, parameters = training.read_model_folder(base)
    start = base / training.WEIGHTS_FILE
    everywhere = _gather(data, work)
    local = {}
    for lab in digits.LABS:
        folder = _folder(work / lab, data / lab / "train.csv", everywhere / "heldout.csv")
        weights = work / f"{lab}.safetensors"
        training.train_alone(recipe, parameters, folder, weights, seed, epochs=epochs, start=start)
        local[f"{lab}.example"] = _accuracy(recipe, parameters, weights, folder)
    pooled = work / "pooled.safetensors"
    training.train_alone(recipe, parameters, everywhere, pooled, seed, epochs=epochs, start=start)
    found = training.evaluate(recipe, parameters, federated / training.WEIGHTS_FILE, everywhere)
    return Comparison(
        local=local,
        pooled=_accuracy(recipe, parameters, pooled, everywhere),
        federated=float(found["accuracy"]),
        majority=float(found["majority"]),
        n=int(found["examples"]),
    )


def predict_some(model: Path, rows: Path, count: int) -> list[tuple[int, int]]:
    """What the model in a pulled folder says of the first rows, each with what is true."""
    import numpy as np

    from federation import training

    some = digits.read_rows(rows)[:count]
    features = np.array([row[1:] for row in some], dtype=np.float32)
    labels = training.predict(model, features).labels.tolist()
    return [(int(said), row[0]) for said, row in zip(labels, some, strict=True)]


def _gather(data: Path, work: Path) -> Path:
    folder = work / "all"
    folder.mkdir(parents=True)
    for part in ("train", "heldout"):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(digits.HEADER)
            for lab in digits.LABS:
                writer.writerows(digits.read_rows(data / lab / f"{part}.csv"))
    return folder


def _folder(folder: Path, train: Path, held_out: Path) -> Path:
    folder.mkdir()
    (folder / "train.csv").write_bytes(train.read_bytes())
    (folder / "heldout.csv").write_bytes(held_out.read_bytes())
    return folder


def _accuracy(recipe: str, parameters: Mapping[str, Any], weights: Path, folder: Path) -> float:
    from federation import training

    return float(training.evaluate(recipe, parameters, weights, folder)["accuracy"])
