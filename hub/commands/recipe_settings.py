"""A recipe's parameters from what a person typed, over what is usual."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from federation.fields import as_expected
from federation.plan import check_parameters
from federation.recipes.base_files import base_files
from federation.recipes.catalogue import RECIPES
from storage.errors import Unchecked, shown


def chosen(recipe: str, settings: Sequence[str], base: Path | None) -> Mapping[str, Any]:
    """The parameters of a new model.

    Args:
        settings: ``NAME=VALUE``; a VALUE that spells JSON where a rule wants such is read as JSON.
        base: folder of a frozen base model, whose files are pinned.
    Raises:
        Unchecked: ``E_USAGE``: no such recipe, or a setting without a name.
        Rejected: ``E_CONFIG``, naming every bad parameter; ``E_BASE_MODEL``.
    """
    known = RECIPES.get(recipe)
    if known is None:
        raise Unchecked("E_USAGE", f"no recipe {shown(recipe)}", f"recipes: {', '.join(sorted(RECIPES))}")
    parameters: dict[str, Any] = dict(known.usual)
    for each in settings:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise Unchecked("E_USAGE", f"--set {each!r} is no NAME=VALUE", "such as --set rank=8")
        rule = known.parameters.get(name)
        parameters[name] = as_expected(value, rule) if rule else value
    if base is not None:
        parameters["base"] = base_files(base)
    check_parameters(recipe, parameters)
    return parameters
