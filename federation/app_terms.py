"""What a plan says of a lab's own code: the member ``app`` of ``config.json``, in the place of ``recipe``.

``{"sha256", "size", "parameters"}`` name a Flower app bundle by its full digest; the same digest is the
plan's ``subject[0]`` and the ``code`` of every consent. To the rest of the reader such a plan has a recipe
whose name nobody can install, so whatever knows only recipes refuses it. Read by ``plan``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from federation.fields import Schema, integer, problems, text
from storage.errors import shown

APP_BYTES = 10 << 20  # flwr build makes none larger
APP_FILE = "app.fab"  # the name of a plan's first subject
MOST_PARAMETERS = 64

_SCHEMA: Schema = {
    "sha256": text(r"[0-9a-f]{64}", "64 hex digits"),
    "size": integer(1, APP_BYTES),
    "parameters": lambda value: None if isinstance(value, dict) else "an object",
}
_NAME = text(r"[A-Za-z0-9_.-]{1,100}", "a setting's name")


@dataclass(frozen=True)
class AppTerms:
    """The app that a plan names.

    Attributes:
        sha256, size: of the FAB, in bytes.
        parameters: settings of the app that the plan decides; decimals as text.
    """

    sha256: str
    size: int
    parameters: Mapping[str, Any]


def app_members(app: AppTerms) -> dict[str, Any]:
    """What stands in a new ``config.json`` for an app."""
    return {"app": {"sha256": app.sha256, "size": app.size, "parameters": dict(app.parameters)}}


def take_app(value: Any) -> tuple[AppTerms | None, Any, list[str]]:
    """The app of a ``config.json``, the document as it reads with a recipe, and what is wrong with the app.

    A document without ``app`` comes back as it is.
    """
    if not isinstance(value, dict) or "app" not in value:
        return None, value, []
    app, rest = value["app"], {name: each for name, each in value.items() if name != "app"}
    found = problems(app, _SCHEMA, "app")
    if "recipe" in rest:
        found.append("app: a plan has a recipe or an app, not both")
    if "harmonise" in rest:
        found.append("harmonise: an app reads its rows itself, so nothing scales them")
    if rest.get("report"):
        found.append("report: an app has no model of a site's own to compare with")
    if not found:
        found = _parameter_problems(app["parameters"])
    if found:
        return None, rest, found
    rest["recipe"] = {"name": stand_in(app["sha256"]), "version": "1", "parameters": app["parameters"]}
    return AppTerms(app["sha256"], app["size"], app["parameters"]), rest, []


def stand_in(sha256: str) -> str:
    """What stands where others read a recipe's name."""
    return f"app-{sha256[:12]}"


def _parameter_problems(parameters: Mapping[str, Any]) -> list[str]:
    found = []
    if len(parameters) > MOST_PARAMETERS:
        found.append(f"app.parameters: at most {MOST_PARAMETERS}, found {len(parameters)}")
    for name, value in parameters.items():
        if _NAME(name):
            found.append(f"app.parameters: {shown(name)} is no setting's name")
        elif not isinstance(value, bool | int | str) or (isinstance(value, str) and len(value) > 1000):
            found.append(f"app.parameters.{name}: expected true, false, an integer or text")
    return found
