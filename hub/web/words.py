"""The words of the pages in the languages that they speak: English as written in the templates, and Chinese.

One small catalogue in a file (``words.zh.json``), and one for the table of causes (``causes.zh.json``); a
text that is in neither is shown in English.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from markupsafe import escape

LANGUAGES = {"en": "English", "zh-Hans": "中文"}
_SHORT = {"en": "en", "zh": "zh-Hans"}


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """English text -> text in this language; empty for English."""
    if language == "en":
        return {}
    found: dict[str, str] = {}
    for name in ("words", "causes"):
        text = files("hub.web").joinpath(f"{name}.zh.json").read_text(encoding="utf-8")
        found |= json.loads(text)
    return found


class Words:
    """Says texts in one language: ``t("{n} found", n=3)``. Values are escaped."""

    def __init__(self, language: str) -> None:
        self._known = catalogue(language)

    def __call__(self, text: str, **values: object) -> str:
        said = self._known.get(text, text)
        return escape(said).format(**values) if values else said


def choose_language(asked: str | None, kept: str | None, accepted: str) -> str:
    """The visitor's language: asked for in the address, chosen before, or as the browser says.

    >>> choose_language(None, None, "zh-CN,zh;q=0.9,en;q=0.8"), choose_language("en", None, "zh")
    ('zh-Hans', 'en')
    """
    for one in (asked, kept):
        code = _SHORT.get((one or "").lower().partition("-")[0])
        if code is not None:
            return code
    weighed = _weighed(accepted)
    return max(weighed, key=lambda pair: pair[1])[0] if weighed else "en"


def _weighed(accepted: str) -> list[tuple[str, float]]:
    """The languages that a header names and we speak, with their weights (RFC 9110, section 12.5.4)."""
    found = []
    for part in accepted[:1000].split(","):
        name, _, quality = part.strip().partition(";")
        code = _SHORT.get(name.strip().lower().partition("-")[0])
        try:
            weight = float(quality.strip().removeprefix("q=") or 1)
        except ValueError:
            continue
        if code is not None and weight > 0:
            found.append((code, weight))
    return found
