"""Rows of numbers with a label, as the tabular and the image recipe learn from them.

Letters: N rows, F features.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from federation.recipes.loop import fit, measure
from federation.recipes.rows import Rows, read_rows

Columns = Callable[[Mapping[str, Any]], tuple[str, ...]]
Inputs = Callable[[Mapping[str, Any], NDArray[np.float32]], Tensor]
Build = Callable[[Mapping[str, Any]], nn.Module]


class LabelledRows:
    """What ``federation.training`` asks of a recipe, for one that reads rows of numbers.

    Args:
        columns: names of the F feature columns. inputs: what the model takes of rows of shape (N, F).
        build: the model with fresh weights.
    """

    def __init__(self, parameters: Mapping[str, Any], columns: Columns, inputs: Inputs, build: Build) -> None:
        self._parameters = parameters
        self._inputs = inputs
        self._build = build
        self.columns = columns(parameters)

    def read(self, path: Path) -> Rows:
        """The rows of a file; where a recipe has a center for each column, an empty cell stands for it."""
        blanks = "center" in self._parameters
        return read_rows(path, self.columns, self._parameters["classes"], blanks=blanks)

    def fresh(self) -> nn.Module:
        """The model with fresh weights from torch's global generator."""
        return self._build(self._parameters)

    def blank(self) -> nn.Module:
        """The model without weights: they are never made only to be replaced."""
        with torch.device("meta"), _Unfilled():
            return self._build(self._parameters)

    def travelling(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors that travel: the model's whole state."""
        return dict(model.state_dict())

    def fill(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Give a blank model its weights; they are taken as they are, not copied."""
        model.load_state_dict(state, assign=True)

    def beside(self, model: nn.Module) -> dict[str, bytes]:
        """Files that stand beside the weights in a model's folder: none."""
        return {}

    def measure(self, model: nn.Module, rows: Rows) -> dict[str, float | int]:
        """``accuracy`` (share of rows) and ``loss`` (mean per row, nats)."""
        right, loss = measure(model, self._features(rows), torch.from_numpy(rows.labels))
        return {"accuracy": right / len(rows), "loss": loss}

    def fit(self, model: nn.Module, rows: Rows, epochs: int, generator: torch.Generator) -> float:
        """Train in place; mean loss per row in the last epoch, nats."""
        labels = torch.from_numpy(rows.labels)
        return fit(model, self._features(rows), labels, self._parameters, epochs, generator)

    def majority(self, seen: Rows, rows: Rows) -> float:
        """Share of ``rows`` that always naming the commonest label of ``seen`` gets right."""
        frequent = int(np.bincount(seen.labels).argmax())
        return int((rows.labels == frequent).sum()) / len(rows)

    def _features(self, rows: Rows) -> Tensor:
        return self._inputs(self._parameters, rows.features)


class _Unfilled(TorchFunctionMode):
    """Layers made meanwhile get no first values: without memory to fill, torch would only work them out."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))
