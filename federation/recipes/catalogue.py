"""Which recipes there are, which of our files make each of them, and which parameters each takes. No torch.

Every parameter is always written out in the plan's ``config.json``: a default kept in code would decide the
result without being signed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from federation.fields import Rule, Schema, decimal, integer, listing, one_of, problems, text
from federation.recipes.base_files import CONFIG, is_base_file

MAX_COLUMNS = 65_536


@dataclass(frozen=True)
class Recipe:
    """One recipe as installed here.

    Attributes:
        module: name of the torch module in this package that builds the model.
        files: every source file that decides the result, relative to ``federation``, in ascending order.
        parameters: the rule of each parameter; all of them are required.
        together: what is wrong with parameters that are each well by themselves.
        weights: name of the file of a model folder that travels.
        usual: what a new model is given where its author says nothing; its ``config.json`` writes it out.
        extra: of ``pip install 'fedhub[EXTRA]'``, which brings what the module imports.
    """

    name: str
    version: str
    module: str
    files: tuple[str, ...]
    parameters: Schema
    together: Callable[[Mapping[str, Any]], list[str]]
    weights: str = "model.safetensors"
    usual: Mapping[str, Any] = field(default_factory=dict)
    extra: str = "lab"

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


def _files(module: str, *more: str) -> tuple[str, ...]:
    shared = (
        "compression.py",
        "recipes/labelled_rows.py",
        "recipes/loop.py",
        "recipes/rows.py",
        "tensors.py",
        "training.py",
    )
    return tuple(sorted((f"recipes/{module}.py", *shared, *more)))


_TEXT_FILES = ("recipes/adapters.py", "recipes/base_files.py", "recipes/texts.py")


def _base(value: object) -> str | None:
    """The files of a frozen base model: name -> SHA-256."""
    expected = (
        "an object of 3 to 64 file names and their SHA-256 in hex: config.json, tokenizer.json, "
        "weights as .safetensors, and no other kind than those of a tokenizer"
    )
    if not isinstance(value, dict) or not 3 <= len(value) <= 64:
        return expected
    good = all(
        isinstance(name, str) and _FILE_NAME(name) is None and is_base_file(name) and _DIGEST(digest) is None
        for name, digest in value.items()
    )
    whole = {CONFIG, "tokenizer.json"} <= set(value) and any(name.endswith(".safetensors") for name in value)
    return None if good and whole else expected


_FILE_NAME = text(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", "a file name")
_DIGEST = text(r"[0-9a-f]{64}", "64 hex digits")

_ADAPTER: dict[str, Rule] = {
    "base": _base,
    "rank": integer(1, 512),
    "alpha": integer(1, 4096),
    "targets": listing(text(r"[A-Za-z0-9_.]{1,64}", "how a module's name ends"), 1, 64, distinct=True),
    "maxTokens": integer(4, 8192),
    "epochs": integer(1, 1000),
    "batch": integer(1, 4096),
    "learningRate": decimal("0", "1", above=True),
    "weightDecay": decimal("0", "1"),
    "proximalMu": decimal("0", "1000"),
}
_USUAL_ADAPTER: dict[str, Any] = {
    "rank": 8,
    "alpha": 16,
    "maxTokens": 128,
    "epochs": 1,
    "batch": 16,
    "learningRate": "0.001",
    "weightDecay": "0",
    "proximalMu": "0",
}


def _nothing_together(parameters: Mapping[str, Any]) -> list[str]:
    return []


_ALL = (
    Recipe(
        name="causal-language-modelling",
        version="1",
        module="causal_language_modelling",
        files=_files("causal_language_modelling", *_TEXT_FILES),
        parameters={**_ADAPTER, "longText": one_of("split", "refuse")},
        together=_nothing_together,
        weights="adapter_model.safetensors",
        usual={**_USUAL_ADAPTER, "longText": "split"},
        extra="text",
    ),
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
    Recipe(
        name="text-classification",
        version="1",
        module="text_classification",
        files=_files("text_classification", *_TEXT_FILES),
        parameters={
            **_ADAPTER,
            "labels": listing(
                text(r"[^\x00-\x1f\x7f]{1,100}", "1 to 100 printable characters"), 2, 1000, distinct=True
            ),
            "longText": one_of("truncate", "refuse"),
        },
        together=_nothing_together,
        weights="adapter_model.safetensors",
        usual={**_USUAL_ADAPTER, "longText": "truncate"},
        extra="text",
    ),
)

RECIPES = {recipe.name: recipe for recipe in _ALL}
