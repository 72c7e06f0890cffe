"""A data set's Croissant file as its page shows it. What is malformed is left out, never guessed."""

import json
from dataclasses import dataclass
from typing import Any

SHOWN_FIELDS = 500


@dataclass(frozen=True)
class Column:
    """One column of a table: name and type, never a value."""

    name: str
    type: str


@dataclass(frozen=True)
class TableView:
    """One table; ``about`` holds its rounded counts as the owner told them."""

    name: str
    about: str
    columns: list[Column]


@dataclass(frozen=True)
class Term:
    """One term of use, by its code in the Data Use Ontology."""

    code: str
    name: str


@dataclass(frozen=True)
class View:
    """What a description says."""

    description: str
    license: str
    published: str
    terms: list[Term]
    formats: list[str]
    tables: list[TableView]


def read_view(text: str) -> View:
    """What a Croissant document says to people; empty where it says nothing."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = {}
    if not isinstance(document, dict):
        document = {}
    return View(
        description=_text(document, "description"),
        license=_text(document, "license").removeprefix("https://spdx.org/licenses/"),
        published=_text(document, "datePublished"),
        terms=[
            Term(_text(one, "termCode"), _text(one, "name")) for one in _objects(document.get("usageInfo"))
        ],
        formats=list(
            dict.fromkeys(_text(one, "encodingFormat") for one in _objects(document.get("distribution")))
        ),
        tables=[
            TableView(
                _text(one, "name"),
                _text(one, "description"),
                [
                    Column(_text(each, "name"), _text(each, "dataType").removeprefix("sc:"))
                    for each in _objects(one.get("field"))[:SHOWN_FIELDS]
                ],
            )
            for one in _objects(document.get("recordSet"))
        ],
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    return value[:4096] if isinstance(value, str) else ""
