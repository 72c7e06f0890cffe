"""Recipe ``tabular-classification``: rows of numbers to classes, by a linear model or one hidden layer.

The plan names the columns and, for all sites alike, what is taken from each (``center``) and what the rest is
divided by (``scale``): figures that the sites agreed on, never computed from rows behind their back. A plan
may have them made from all sites' statistics before round 1 (``federation.harmonising``).

Letters: N rows, F columns.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from federation.recipes.labelled_rows import LabelledRows
from federation.recipes.loop import layers


def learner(parameters: Mapping[str, Any], bases: Sequence[Path]) -> LabelledRows:
    """How this recipe learns; it sits on no base model."""
    return LabelledRows(parameters, columns, inputs, build)


def columns(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The feature columns of a row, in the plan's order."""
    return tuple(parameters["columns"])


def inputs(parameters: Mapping[str, Any], features: NDArray[np.float32]) -> Tensor:
    """What the model takes, shape (N, F): ``(value - center) / scale``; 0 where a value is missing (NaN)."""
    center = torch.tensor([float(value) for value in parameters["center"]])
    scale = torch.tensor([float(value) for value in parameters["scale"]])
    return ((torch.from_numpy(features) - center) / scale).nan_to_num(nan=0.0)


def build(parameters: Mapping[str, Any]) -> nn.Module:
    """The model with fresh weights from torch's global generator."""
    return nn.Sequential(*layers(len(parameters["columns"]), parameters["hidden"], parameters["classes"]))
