"""What happens to weights at a site: train for one round, evaluate, predict; and an owner's base model.

Weights come and go as safetensors files, checked against the recipe's own model before a tensor is read. Rows
are read from the dataset's folder (``train.csv``, ``heldout.csv``), used, and forgotten; results hold counts
and means, never a row. torch is imported when a function first needs it, so that what only names this module
starts fast; it runs on the CPU in one thread (``recipes.loop``).

Letters: N rows, F features, C classes.
"""

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from federation.compression import Feedback, write_update
from federation.plan import check_parameters, make_model_config, read_model_config
from federation.recipes.catalogue import RECIPES
from federation.recipes.rows import Rows, read_rows
from federation.tensors import (
    Array,
    FileDigest,
    Layout,
    TensorFile,
    TensorSpec,
    TensorWriter,
    sorted_layout,
)
from storage.errors import Rejected, Unchecked

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAIN_FILE = "train.csv"
HELDOUT_FILE = "heldout.csv"
WEIGHTS_FILE = "model.safetensors"
MODEL_CONFIG_FILE = "config.json"


class RecipeModule(Protocol):
    """What each module in ``federation.recipes`` that a recipe names offers."""

    def columns(self, parameters: Mapping[str, Any]) -> tuple[str, ...]: ...
    def inputs(self, parameters: Mapping[str, Any], features: NDArray[np.float32]) -> "Tensor": ...
    def build(self, parameters: Mapping[str, Any]) -> "nn.Module": ...


@dataclass(frozen=True)
class TrainResult:
    """One file of tensors and how it came about.

    Attributes:
        examples: rows trained on.
        metrics: ``loss`` (mean per row in the last epoch, nats), ``input_accuracy`` and ``input_loss`` (of
            the weights received, on the rows trained on, before the first step).
        sha256, size: of the file written.
    """

    examples: int
    metrics: dict[str, float]
    sha256: str
    size: int


@dataclass(frozen=True)
class Prediction:
    """What a model says of N rows.

    Attributes:
        labels: most likely class per row, shape (N,), int64.
        probabilities: shape (N, C), float32, each row adding up to 1.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


def train(
    recipe: str,
    parameters: Mapping[str, Any],
    input_weights: Path,
    data: Path,
    out: Path,
    seed: int,
    round_number: int,
    *,
    site: str = "",
    feedback: Feedback | None = None,
) -> TrainResult:
    """One site's part in one round: train from the weights received and write the update.

    Args:
        data: folder of the dataset, with ``train.csv``.
        out: where the update goes: what each float tensor moved by, other tensors whole.
        seed: of the plan; with round and site it decides the order of rows.
        site: asset id of the dataset, so that sites do not shuffle alike.
        feedback: the form in which the update travels; whole floats when None.
    Raises:
        Rejected: ``E_DATA``, ``E_LAYOUT``, ``E_TENSORS``, ``E_CONFIG``; ``E_NOT_FINITE``: training diverged.
        Unchecked: a file is missing, or a part of fedhub is not installed.
    """
    module = _module(recipe, parameters)
    rows = _rows(module, parameters, data / TRAIN_FILE)
    from federation.recipes.loop import fit, measure, repeatable

    with repeatable(round_seed(seed, round_number, site)) as generator:
        model = _trained(module, parameters, input_weights)
        features, labels = _tensors(module, parameters, rows)
        right, input_loss = measure(model, features, labels)
        loss = fit(model, features, labels, parameters, parameters["epochs"], generator)
        with TensorFile(input_weights, expect=layout_of_model(model)) as before:
            digest = write_update(out, _Changes(before, model), before.layout, feedback or Feedback())
    metrics = {"loss": loss, "input_accuracy": right / len(rows), "input_loss": input_loss}
    return TrainResult(len(rows), metrics, digest.sha256, digest.size)


def train_alone(
    recipe: str,
    parameters: Mapping[str, Any],
    data: Path,
    out: Path,
    seed: int,
    *,
    epochs: int | None = None,
    start: Path | None = None,
) -> TrainResult:
    """Train on one folder of rows without a round: whole weights out, for a base model or a comparison.

    Args:
        out: the weights file to write.
        epochs: passes over the rows; the recipe's own ``epochs`` when None.
        start: weights to begin from; fresh ones from ``seed`` when None.
    Raises:
        As ``train``.
    """
    module = _module(recipe, parameters)
    rows = _rows(module, parameters, data / TRAIN_FILE)
    from federation.recipes.loop import fit, measure, repeatable

    with repeatable(round_seed(seed, 0, "")) as generator:
        model = module.build(parameters) if start is None else _trained(module, parameters, start)
        features, labels = _tensors(module, parameters, rows)
        right, input_loss = measure(model, features, labels)
        loss = fit(model, features, labels, parameters, epochs or parameters["epochs"], generator)
        digest = save_weights(model, out)
    metrics = {"loss": loss, "input_accuracy": right / len(rows), "input_loss": input_loss}
    return TrainResult(len(rows), metrics, digest.sha256, digest.size)


def train_base(
    recipe: str,
    parameters: Mapping[str, Any],
    data: Path,
    folder: Path,
    seed: int,
    *,
    epochs: int | None = None,
) -> TrainResult:
    """Train a base model on an owner's own rows and write its folder: ``model.safetensors``, ``config.json``.

    Args:
        data: folder with ``train.csv``. folder: existing folder of the model.
    Raises:
        As ``train``.
    """
    config = make_model_config(recipe, parameters)
    result = train_alone(recipe, parameters, data, folder / WEIGHTS_FILE, seed, epochs=epochs)
    (folder / MODEL_CONFIG_FILE).write_bytes(config)
    return result


def evaluate(
    recipe: str, parameters: Mapping[str, Any], weights: Path, data: Path, *, file: str = HELDOUT_FILE
) -> dict[str, float | int]:
    """What weights are worth on a site's held-out rows.

    Returns:
        ``accuracy`` and ``majority`` (shares from 0 to 1), ``loss`` (mean per row, nats), ``examples``. The
        majority is what always naming the site's most frequent training label would reach on the same rows.
    Raises:
        As ``train``.
    """
    module = _module(recipe, parameters)
    rows = _rows(module, parameters, data / file)
    seen = _rows(module, parameters, data / TRAIN_FILE)
    from federation.recipes.loop import measure, repeatable

    with repeatable(0):
        model = _trained(module, parameters, weights)
        right, loss = measure(model, *_tensors(module, parameters, rows))
    frequent = int(np.bincount(seen.labels).argmax())
    majority = int((rows.labels == frequent).sum())
    count = len(rows)
    return {"accuracy": right / count, "loss": loss, "examples": count, "majority": majority / count}


def predict(model: Path, rows: Array, *, weights: Path | None = None) -> Prediction:
    """What a pulled model says of rows.

    Args:
        model: the model's folder. Its ``config.json`` names recipe and parameters.
        rows: shape (N, F), numbers as in a dataset's columns, unscaled.
        weights: other weights of the same recipe; the folder's own when None.
    Raises:
        Rejected: ``E_MODEL_CONFIG``, ``E_LAYOUT``, ``E_TENSORS``; ``E_DATA``: rows of another shape.
        Unchecked: a file is missing.
    """
    recipe, parameters = read_model_folder(model)
    module = _module(recipe, parameters)
    width = len(module.columns(parameters))
    features = np.ascontiguousarray(rows, dtype=np.float32)
    if features.ndim != 2 or features.shape[1] != width or not np.isfinite(features).all():
        raise Rejected(
            "E_DATA", f"rows should be finite numbers of shape (N, {width}), found {features.shape}"
        )
    from federation.recipes.loop import answer, repeatable

    with repeatable(0):
        network = _trained(module, parameters, weights or model / WEIGHTS_FILE)
        scores = answer(network, module.inputs(parameters, features))
        probabilities = scores.softmax(1).numpy()
    return Prediction(probabilities.argmax(1).astype(np.int64), probabilities)


def read_model_folder(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """The recipe and parameters that a model folder names.

    Raises:
        Rejected: ``E_MODEL_CONFIG``. Unchecked: ``E_MODEL_MISSING``.
    """
    path = folder / MODEL_CONFIG_FILE
    try:
        return read_model_config(path.read_bytes())
    except OSError as error:
        raise Unchecked(
            "E_MODEL_MISSING",
            f"{path}: cannot be read ({error.strerror})",
            "name the folder of a pulled model",
        ) from error


def round_seed(seed: int, round_number: int, site: str) -> int:
    """A seed of its own for each round and site, from 0 to 2^63 - 1."""
    digest = hashlib.sha256(f"{seed}/{round_number}/{site}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def layout_of_model(model: "nn.Module") -> Layout:
    """The tensors of a model's state in the order they travel."""
    return sorted_layout(
        [TensorSpec(name, _dtype(tensor), tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    )


def _trained(module: RecipeModule, parameters: Mapping[str, Any], path: Path) -> "nn.Module":
    """A recipe's model with the weights of a file, in memory once: fresh ones are never made.

    Raises:
        Rejected: ``E_LAYOUT``, ``E_TENSORS``. Unchecked: ``E_TENSORS_MISSING``.
    """
    import torch

    with torch.device("meta"):
        model = module.build(parameters)
    with TensorFile(path, expect=layout_of_model(model)) as file:
        state = {spec.name: torch.from_numpy(file.array(spec.name)) for spec in file.layout.tensors}
    model.load_state_dict(state, assign=True)
    return model


def save_weights(model: "nn.Module", path: Path) -> FileDigest:
    """Write a model's state as safetensors.

    Raises:
        Rejected: ``E_NOT_FINITE``: training diverged.
    """
    arrays = _state(model)
    with TensorWriter(path, layout_of_model(model)) as writer:
        for spec in layout_of_model(model).tensors:
            _check_finite(spec, arrays[spec.name])
            writer.write(arrays[spec.name].reshape(-1))
        return writer.finish()


class _Changes(Mapping[str, Array]):
    """What each float tensor moved by since ``before``; other tensors whole. Made when asked for."""

    def __init__(self, before: TensorFile, model: "nn.Module") -> None:
        self._before = before
        self._after = _state(model)
        self._specs = {spec.name: spec for spec in before.layout.tensors}

    def __getitem__(self, name: str) -> Array:
        spec, after = self._specs[name], self._after[name]
        if not spec.is_float:
            return after
        change = self._before.array(name)
        np.subtract(after, change, out=change)
        _check_finite(spec, change)
        return change

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def _check_finite(spec: TensorSpec, values: Array) -> None:
    if spec.is_float and not np.isfinite(values).all():
        raise Rejected(
            "E_NOT_FINITE",
            f"training diverged: tensor {spec.name} holds values that are no finite {spec.dtype}",
            "lower the learning rate in a new plan",
        )


def _module(recipe: str, parameters: Mapping[str, Any]) -> RecipeModule:
    """The recipe's own module, after its parameters were checked."""
    check_parameters(recipe, parameters)
    try:
        module = importlib.import_module(f"federation.recipes.{RECIPES[recipe].module}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise Unchecked(
            "E_EXTRA", f"recipe {recipe} needs torch, which is not installed", "pip install 'fedhub[lab]'"
        ) from error
    return cast(RecipeModule, module)


def _rows(module: RecipeModule, parameters: Mapping[str, Any], path: Path) -> Rows:
    # Where a recipe has a center for each column, that is what an empty cell stands for.
    blanks = "center" in parameters
    return read_rows(path, module.columns(parameters), parameters["classes"], blanks=blanks)


def _tensors(module: RecipeModule, parameters: Mapping[str, Any], rows: Rows) -> "tuple[Tensor, Tensor]":
    import torch

    return module.inputs(parameters, rows.features), torch.from_numpy(rows.labels)


def _state(model: "nn.Module") -> dict[str, Array]:
    """A model's state, not copied: it changes with the model."""
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def _dtype(tensor: "Tensor") -> str:
    import torch

    names = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
    return names[tensor.dtype]
