"""What happens to weights at a site: train for one round, evaluate, predict; and an owner's base model.

Weights come and go as safetensors files, checked against the recipe's own model before a tensor is read. Rows
are read from the dataset's folder (``train.csv``, ``heldout.csv``), used, and forgotten; results hold counts
and means, never a row. torch is imported when a function first needs it, so that what only names this module
starts fast; it runs on the CPU in one thread (``recipes.loop``).

Letters: N rows, F features, C classes.
"""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from federation.compression import Changed, Feedback, write_update
from federation.plan import check_parameters, make_model_config, read_model_config
from federation.recipes.catalogue import RECIPES
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
    from torch import Generator, Tensor, nn

TRAIN_FILE = "train.csv"
HELDOUT_FILE = "heldout.csv"
WEIGHTS_FILE = "model.safetensors"
MODEL_CONFIG_FILE = "config.json"


class Examples(Protocol):
    """What a recipe reads from one file of a dataset: rows, or texts."""

    def __len__(self) -> int: ...


class Learner(Protocol):
    """How a recipe learns from data of its own kind; the ``learner`` of its module makes one."""

    def read(self, path: Path) -> Examples:
        """The examples of a file, read strictly."""
        ...

    def fresh(self) -> "nn.Module":
        """The model as training begins from nothing, from torch's global generator."""
        ...

    def blank(self) -> "nn.Module":
        """The model to be filled with weights."""
        ...

    def travelling(self, model: "nn.Module") -> Mapping[str, "Tensor"]:
        """The tensors that are trained and travel; they change with the model."""
        ...

    def fill(self, model: "nn.Module", state: Mapping[str, "Tensor"]) -> None:
        """Give a model the tensors that travel."""
        ...

    def beside(self, model: "nn.Module") -> Mapping[str, bytes]:
        """Files that stand beside the weights in a model's folder."""
        ...

    def measure(self, model: "nn.Module", data: Any) -> dict[str, float | int]:
        """``accuracy``, ``loss`` (nats) and what else the recipe tells."""
        ...

    def fit(self, model: "nn.Module", data: Any, epochs: int, generator: "Generator") -> float:
        """Train in place; mean loss in the last epoch, nats."""
        ...

    def majority(self, seen: Any, data: Any) -> float:
        """The accuracy that always saying what is commonest in ``seen`` has on ``data``."""
        ...


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
    bases: Sequence[Path] = (),
) -> TrainResult:
    """One site's part in one round: train from the weights received and write the update.

    Args:
        data: folder of the dataset, with ``train.csv``.
        out: where the update goes: what each float tensor moved by, other tensors whole.
        seed: of the plan; with round and site it decides the order of rows.
        site: asset id of the dataset, so that sites do not shuffle alike.
        feedback: the form in which the update travels; whole floats when None.
        bases: folders in which the frozen base model may lie, for a recipe that has one.
    Raises:
        Rejected: ``E_DATA``, ``E_LAYOUT``, ``E_TENSORS``, ``E_CONFIG``; ``E_NOT_FINITE``: training diverged.
        Unchecked: a file is missing, or a part of fedhub is not installed.
    """
    learner = find_learner(recipe, parameters, bases)
    rows = learner.read(data / TRAIN_FILE)
    from federation.recipes.loop import repeatable

    with repeatable(round_seed(seed, round_number, site)) as generator:
        model = _trained(learner, input_weights)
        before_it = learner.measure(model, rows)
        loss = learner.fit(model, rows, parameters["epochs"], generator)
        after = learner.travelling(model)
        with TensorFile(input_weights, expect=layout_of_state(after)) as before:
            digest = write_update(out, _changes(before, after), before.layout, feedback or Feedback())
    return TrainResult(len(rows), _told(loss, before_it), digest.sha256, digest.size)


def train_alone(
    recipe: str,
    parameters: Mapping[str, Any],
    data: Path,
    out: Path,
    seed: int,
    *,
    epochs: int | None = None,
    start: Path | None = None,
    bases: Sequence[Path] = (),
) -> TrainResult:
    """Train on one folder of rows without a round: whole weights out, for a base model or a comparison.

    Args:
        out: the weights file to write.
        epochs: passes over the rows; the recipe's own ``epochs`` when None.
        start: weights to begin from; fresh ones from ``seed`` when None.
    Raises:
        As ``train``.
    """
    learner = find_learner(recipe, parameters, bases)
    rows = learner.read(data / TRAIN_FILE)
    from federation.recipes.loop import repeatable

    with repeatable(round_seed(seed, 0, "")) as generator:
        model = learner.fresh() if start is None else _trained(learner, start)
        before = learner.measure(model, rows)
        loss = learner.fit(model, rows, epochs or parameters["epochs"], generator)
        digest = _save_state(learner.travelling(model), out)
    return TrainResult(len(rows), _told(loss, before), digest.sha256, digest.size)


def _told(loss: float, before: Mapping[str, float | int]) -> dict[str, float]:
    return {"loss": loss, "input_accuracy": before["accuracy"], "input_loss": before["loss"]}


def make_model(
    recipe: str, parameters: Mapping[str, Any], folder: Path, seed: int, *, bases: Sequence[Path] = ()
) -> FileDigest:
    """Write the folder of an untaught model: weights, ``config.json`` and what stands beside them.

    Of a recipe with adapters the weights are those of the adapters and the head, and the folder is one that
    ``peft`` loads.

    Args:
        folder: existing folder of the model. seed: of the fresh weights.
    Raises:
        Rejected: ``E_CONFIG``, ``E_RECIPE``, ``E_BASE_DIGEST``. Refused: ``E_BASE_MISSING``.
    """
    learner = find_learner(recipe, parameters, bases)
    from federation.recipes.loop import repeatable

    with repeatable(round_seed(seed, 0, "")):
        model = learner.fresh()
        digest = _save_state(learner.travelling(model), folder / RECIPES[recipe].weights)
    for name, content in learner.beside(model).items():
        (folder / name).write_bytes(content)
    (folder / MODEL_CONFIG_FILE).write_bytes(make_model_config(recipe, parameters))
    return digest


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
    recipe: str,
    parameters: Mapping[str, Any],
    weights: Path,
    data: Path,
    *,
    file: str = HELDOUT_FILE,
    bases: Sequence[Path] = (),
) -> dict[str, float | int]:
    """What weights are worth on a site's held-out rows.

    Returns:
        ``accuracy`` and ``majority`` (shares from 0 to 1), ``loss`` (mean, nats), ``examples``, and what else
        the recipe tells. The majority is what always saying what is commonest in the site's training rows
        would reach on the same rows. Of a language model, shares and mean are of the tokens that follow.
    Raises:
        As ``train``.
    """
    learner = find_learner(recipe, parameters, bases)
    rows, seen = learner.read(data / file), learner.read(data / TRAIN_FILE)
    from federation.recipes.loop import repeatable

    with repeatable(0):
        found = learner.measure(_trained(learner, weights), rows)
    return {**found, "examples": len(rows), "majority": learner.majority(seen, rows)}


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
    learner, module = find_learner(recipe, parameters, ()), _module(recipe)
    if not hasattr(learner, "columns"):
        raise Rejected(
            "E_DATA",
            f"recipe {recipe} reads texts, not rows of numbers",
            "load the model with peft and its base",
        )
    width = len(learner.columns)
    features = np.ascontiguousarray(rows, dtype=np.float32)
    if features.ndim != 2 or features.shape[1] != width or not np.isfinite(features).all():
        raise Rejected(
            "E_DATA", f"rows should be finite numbers of shape (N, {width}), found {features.shape}"
        )
    from federation.recipes.loop import answer, repeatable

    with repeatable(0):
        network = _trained(learner, weights or model / WEIGHTS_FILE)
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
    """The tensors of a model's whole state in the order they travel."""
    return layout_of_state(model.state_dict())


def layout_of_state(state: "Mapping[str, Tensor]") -> Layout:
    """Tensors in the order they travel."""
    return sorted_layout(
        [TensorSpec(name, _dtype(tensor), tuple(tensor.shape)) for name, tensor in state.items()]
    )


def _trained(learner: Learner, path: Path) -> "nn.Module":
    """A recipe's model with the weights of a file.

    Raises:
        Rejected: ``E_LAYOUT``, ``E_TENSORS``. Unchecked: ``E_TENSORS_MISSING``.
    """
    import torch

    model = learner.blank()
    with TensorFile(path, expect=layout_of_state(learner.travelling(model))) as file:
        state = {spec.name: torch.from_numpy(file.array(spec.name)) for spec in file.layout.tensors}
    learner.fill(model, state)
    return model


def save_weights(model: "nn.Module", path: Path) -> FileDigest:
    """Write a model's whole state as safetensors.

    Raises:
        Rejected: ``E_NOT_FINITE``: training diverged.
    """
    return _save_state(model.state_dict(), path)


def _save_state(state: "Mapping[str, Tensor]", path: Path) -> FileDigest:
    layout = layout_of_state(state)
    with TensorWriter(path, layout) as writer:
        for spec in layout.tensors:
            values = state[spec.name].detach().numpy()
            _check_finite(spec, values)
            writer.write(values.reshape(-1))
        return writer.finish()


def _changes(before: TensorFile, after: "Mapping[str, Tensor]") -> Changed:
    """What float tensors moved by since ``before``, and other tensors' values."""
    flat = {name: tensor.detach().numpy().reshape(-1) for name, tensor in after.items()}

    def changed(spec: TensorSpec, start: int, stop: int) -> Array:
        values: Array = flat[spec.name][start:stop]
        if not spec.is_float:
            return values
        change = before.read(spec.name, start, stop)
        np.subtract(values, change, out=change)
        _check_finite(spec, change)
        return change

    return changed


def _check_finite(spec: TensorSpec, values: Array) -> None:
    if spec.is_float and not np.isfinite(values).all():
        raise Rejected(
            "E_NOT_FINITE",
            f"training diverged: tensor {spec.name} holds values that are no finite {spec.dtype}",
            "lower the learning rate in a new plan",
        )


def find_learner(recipe: str, parameters: Mapping[str, Any], bases: Sequence[Path]) -> Learner:
    """How a recipe learns, after its parameters were checked.

    Args:
        bases: folders in which its frozen base model may lie.
    Raises:
        Rejected: ``E_CONFIG``, ``E_RECIPE``. Unchecked: ``E_EXTRA``: a package that it needs is missing.
    """
    check_parameters(recipe, parameters)
    return cast(Learner, _module(recipe).learner(parameters, bases))


def _module(recipe: str) -> Any:
    """The recipe's own module."""
    extra = RECIPES[recipe].extra
    try:
        return importlib.import_module(f"federation.recipes.{RECIPES[recipe].module}")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "peft"):
            raise
        raise Unchecked(
            "E_EXTRA",
            f"recipe {recipe} needs {error.name}, which is not installed",
            f"pip install 'fedhub[{extra}]'",
        ) from error


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
