"""Recipe ``image-classification``: small images as rows of pixels, a few convolutions or none, then classes.

Columns are ``p00``, ``p01``, ...: pixels from 0 to ``pixelMax``, channel after channel, line after line. With
``filters`` 0 the model is a perceptron on the pixels.

Letters: N rows, K channels, H height, W width.
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
    """The feature columns of a row, in order.

    >>> columns({"channels": 1, "height": 2, "width": 2})
    ('p00', 'p01', 'p02', 'p03')
    """
    count = parameters["channels"] * parameters["height"] * parameters["width"]
    return tuple(f"p{number:02d}" for number in range(count))


def inputs(parameters: Mapping[str, Any], features: NDArray[np.float32]) -> Tensor:
    """What the model takes, shape (N, K, H, W), from 0 to 1.

    Args:
        features: shape (N, K * H * W), as in the rows.
    """
    shape = (len(features), parameters["channels"], parameters["height"], parameters["width"])
    pixels: Tensor = torch.from_numpy(features).reshape(shape) / parameters["pixelMax"]
    return pixels


def build(parameters: Mapping[str, Any]) -> nn.Module:
    """The model with fresh weights from torch's global generator.

    With filters: two 3 x 3 convolutions, each with ReLU, and a 2 x 2 maximum between them and the classifier.
    """
    channels, height, width = parameters["channels"], parameters["height"], parameters["width"]
    filters, hidden, classes = parameters["filters"], parameters["hidden"], parameters["classes"]
    if not filters:
        return nn.Sequential(nn.Flatten(), *layers(channels * height * width, hidden, classes))
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(filters, filters, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *layers(filters * (height // 2) * (width // 2), hidden, classes),
    )
