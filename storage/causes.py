"""Why something stopped, whose move it is and what that move is: one table for every error code.

The command line, the API, the pages and a site's own log all take their words from here, so that a stop says
the same thing wherever it is read. The table is ``causes.json`` beside this module: code -> owner, cause (one
sentence), step (what to do, with the command). A message names the object that is concerned; a cause does
not, and so can be translated. ``docs/faults.md`` is made from the table.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

SITE, STEWARD, PLAN_OWNER, OPERATOR = OWNERS = ("site operator", "lab steward", "plan owner", "hub operator")
_CODED = re.compile(r"(E_[A-Z0-9_]{1,60}): ?(.*)", re.DOTALL)


@dataclass(frozen=True)
class Cause:
    """What a code says to people.

    Attributes:
        cause: one sentence. owner: one of ``OWNERS``. step: what the owner does, with the command.
    """

    code: str
    cause: str
    owner: str
    step: str


@cache
def table() -> dict[str, Cause]:
    """Every code that can stop a run or a site, with its cause, in the order of the codes."""
    raw = json.loads(files("storage").joinpath("causes.json").read_text(encoding="utf-8"))
    return {code: Cause(code, each["cause"], each["owner"], each["step"]) for code, each in raw.items()}


def find_cause(code: str) -> Cause | None:
    """The table's entry, or None for a code that stops neither a run nor a site."""
    return table().get(code)


def cause_of(code: str) -> Cause:
    """The table's entry; for a code of another release, one that says so."""
    return table().get(code) or Cause(
        code,
        "This release does not know the code.",
        OPERATOR,
        "Compare the versions of hub and site: fedhub site check",
    )


def split_code(text: str) -> tuple[str, str]:
    """The code that a text begins with, or none, and the rest.

    >>> split_code("E_PLAN: expired"), split_code("no code here")
    (('E_PLAN', 'expired'), ('', 'no code here'))
    """
    match = _CODED.fullmatch(text)
    return (match[1], match[2]) if match else ("", text)


def log_line(code: str, message: str) -> str:
    """An error for a log: on one line its message, its cause, its owner and the next step."""
    found = cause_of(code)
    said = " ".join(message.split())
    return f"{code}: {said} | cause: {found.cause} | owner: {found.owner} | next step: {found.step}"
