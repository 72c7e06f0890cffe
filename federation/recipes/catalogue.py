"""Which recipes there are, which of our files make each of them, and which parameters each takes. No torch.

Every parameter is always written out in the plan's ``config.json``: a default kept in code would decide the
result without being signed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from federation.fields import Rule, Schema, decimal, integer, listing, problems, text

MAX_COLUMNS = 65_536


@dataclass(frozen=True)
class Recipe:
    """One recipe as installed here.

    Attributes:
        module: name of the torch module in this package that builds the model.
        files: every source file that decides the result, relative to ``federation``, in ascending order.
        parameters: the rule of each parameter; all of them are required.
        together: what is wrong with parameters that are each well by themselves.
    """

    name: str
    version: str
    module: str
    files: tuple[str, ...]
    parameters: Schema
    together: Callable[[Mapping[str, Any]], list[str]]

    def problems(self, parameters: object, where: str) -> list[str]:
        """Every parameter that breaks a rule, as text; empty when all is well."""
        found = problems(parameters, self.parameters, where)
        if found or not isinstance(parameters, dict):
            return found
        return [f"{where}.{problem}" for problem in self.together(parameters)]


_TRAINING: dict[str, Rule] = {
    "classes": integer(2, 1000),
    "hidden": integer(0, 4096),
    "epochs": integer(1, 1000),
    "batch": integer(1, 65536),
    "learningRate": decimal("0", "10", above=True),
    "momentum": decimal("0", "1", below=True),
    "proximalMu": decimal("0", "1000"),
}


def _image_size(parameters: Mapping[str, Any]) -> list[str]:
    columns = parameters["height"] * parameters["width"] * parameters["channels"]
    if columns <= MAX_COLUMNS:
        return []
    return [f"height: expected height x width x channels of at most {MAX_COLUMNS}, found {columns}"]


def _one_per_column(parameters: Mapping[str, Any]) -> list[str]:
    columns = len(parameters["columns"])
    return [
        f"{name}: expected one value for each of {columns} columns, found {len(parameters[name])}"
        for name in ("center", "scale")
        if len(parameters[name]) != columns
    ]


def _files(module: str) -> tuple[str, ...]:
    shared = ("compression.py", "recipes/loop.py", "recipes/rows.py", "tensors.py", "training.py")
    return tuple(sorted((f"recipes/{module}.py", *shared)))


_ALL = (
    Recipe(
        name="image-classification",
        version="1",
        module="image_classification",
        files=_files("image_classification"),
        parameters={
            **_TRAINING,
            "height": integer(2, 512),
            "width": integer(2, 512),
            "channels": integer(1, 16),
            "filters": integer(0, 512),
            "pixelMax": integer(1, 65535),
        },
        together=_image_size,
    ),
    Recipe(
        name="tabular-classification",
        version="1",
        module="tabular_classification",
        files=_files("tabular_classification"),
        parameters={
            **_TRAINING,
            "columns": listing(
                text(r"[A-Za-z0-9_.-]{1,64}", "a column name of letters, digits, '_', '.' and '-'"),
                1,
                1024,
                distinct=True,
            ),
            "center": listing(decimal("-999999999", "999999999"), 1, 1024),
            "scale": listing(decimal("0", "999999999", above=True), 1, 1024),
        },
        together=_one_per_column,
    ),
)

RECIPES = {recipe.name: recipe for recipe in _ALL}
