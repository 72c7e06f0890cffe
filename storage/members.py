"""What single members of a statement may hold: one small check per type, and the closed set of conditions.

A check gets a value and the name of its member; it returns, or raises ``Rejected`` with that name, the rule
and what was found. ``storage.kinds`` puts the checks together into documents.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.encoding import check_asset_name, check_institution, is_digest, parse_decimal, parse_time
from storage.errors import Rejected, shown

Check = Callable[[Any, str], None]
E = "E_STATEMENT"
MAX_INTEGER = 2**53 - 1

_NONCE = re.compile(r"[0-9a-f]{32}")
_SLUG = re.compile(r"E_[A-Z0-9_]{1,62}")
_DUO = re.compile(r"DUO:[0-9]{7}")
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:() -]{0,254}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Member:
    """One member of an object: its name, its check, a word on its meaning, and whether it may be absent."""

    name: str
    check: Check
    text: str
    optional: bool = False


def refuse(name: str, rule: str, value: object) -> Rejected:
    """The error for a member that breaks its rule."""
    return Rejected(E, f"member {name}: expected {rule}, found {shown(value)}")


# --- single values --------------------------------------------------------------------------------


def integer(low: int, high: int = MAX_INTEGER) -> Check:
    """A check for whole numbers from ``low`` to ``high``; true and false are no numbers."""
    rule = f"an integer from {low}" + (f" to {high}" if high != MAX_INTEGER else "")

    def check(value: Any, name: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise refuse(name, rule, value)

    return check


def one_of(*words: str) -> Check:
    """A check for one word of a closed set."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, str) or value not in words:
            raise refuse(name, "one of " + ", ".join(words), value)

    return check


def _matching(pattern: re.Pattern[str], rule: str) -> Check:
    def check(value: Any, name: str) -> None:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise refuse(name, rule, value)

    return check


nonce = _matching(_NONCE, "32 lower-case hex digits")
error_slug = _matching(_SLUG, "an error name such as E_CONSENT")
duo_term = _matching(_DUO, "a term such as DUO:0000042")
license_id = _matching(_LICENSE, "an SPDX licence expression")


def digest(value: Any, name: str) -> None:
    """A SHA-256 digest: of a file, or a statement id, or a key hint."""
    if not is_digest(value):
        raise refuse(name, "64 lower-case hex digits", value)


def line(value: Any, name: str) -> None:
    """A short text on one line."""
    if not isinstance(value, str) or not 0 < len(value) <= 512 or _CONTROL.search(value):
        raise refuse(name, "one line of 1 to 512 characters", value)


def time(value: Any, name: str) -> None:
    """A moment in UTC, ``YYYY-MM-DDThh:mm:ssZ``."""
    _named(name, parse_time, value)


def decimal(value: Any, name: str) -> None:
    """A non-negative decimal as text."""
    _named(name, parse_decimal, value)


def institution(value: Any, name: str) -> None:
    """The name of an institution, or the origin of a hub."""
    _named(name, check_institution, value)


def asset_name(value: Any, name: str) -> None:
    """``<institution>/<path>``."""
    _named(name, check_asset_name, value)


def _named(name: str, check: Callable[[object, str], Any], value: Any) -> None:
    try:
        check(value, E)
    except Rejected as error:
        raise Rejected(E, f"member {name}: {error.message}") from error


# --- lists and objects ----------------------------------------------------------------------------


def ascending(item: Check, *, least: int = 0) -> Check:
    """A check for lists in strictly ascending order, so without duplicates."""

    def check(value: Any, name: str) -> None:
        list_of(item, least=least)(value, name)
        if any(a >= b for a, b in itertools.pairwise(value)):
            raise refuse(name, "a list in strictly ascending order", value)

    return check


def list_of(item: Check, *, least: int = 0) -> Check:
    """A check for lists in any order."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise refuse(name, f"a list of at least {least}", value)
        for index, entry in enumerate(value):
            item(entry, f"{name}[{index}]")

    return check


def exact(*members: Member) -> Check:
    """A check for an object with these members and no others."""

    def check(value: Any, name: str) -> None:
        check_members(value, members, name)

    return check


def check_members(value: Any, members: tuple[Member, ...], name: str = "") -> None:
    """Refuse an object with an unknown or a missing member, or a member that breaks its rule."""
    where = name or "predicate"
    if not isinstance(value, dict):
        raise refuse(where, "an object", value)
    unknown = sorted(set(value) - {member.name for member in members})
    if unknown:
        raise Rejected(
            E, f"{where}: unknown member {shown(unknown[0])}; a new one needs a new version of the kind"
        )
    for member in members:
        if member.name in value:
            member.check(value[member.name], f"{name}.{member.name}" if name else member.name)
        elif not member.optional:
            raise Rejected(E, f"{where}: member {member.name} is missing")


def both_or_neither(value: Mapping[str, Any]) -> None:
    """An epsilon means nothing without its delta, nor a delta without its epsilon."""
    if ("epsilon" in value) != ("delta" in value):
        raise Rejected(E, "members epsilon and delta: both or neither must stand")


# --- conditions of a grant ------------------------------------------------------------------------

CONDITIONS: tuple[Member, ...] = (
    Member("duo", ascending(duo_term, least=1), "terms the grantee must have accepted for this use", True),
    Member("code", digest, "only this code: the plan's first subject", True),
    Member("plan", digest, "consent to this plan only", True),
    Member("maxRounds", integer(1), "last round allowed", True),
    Member("minParticipants", integer(1), "the plan promises and each round reaches this many", True),
    Member("epsilon", decimal, "cumulative ceiling for this site and plan", True),
    Member("delta", decimal, "stands with epsilon", True),
)
TRAIN_NEEDS = ("code", "maxRounds", "minParticipants")


def check_conditions(value: Any, actions: list[str]) -> None:
    """Refuse a condition that we do not know, rather than ignore it.

    Raises:
        Rejected: ``E_GRANT_CONDITION``.
    """
    code = "E_GRANT_CONDITION"
    try:
        check_members(value, CONDITIONS, "conditions")
        both_or_neither(value)
    except Rejected as error:
        raise Rejected(
            code, error.message, "a condition outside the closed set is never ignored", step="V9"
        ) from error
    missing = [name for name in TRAIN_NEEDS if name not in value]
    if "train" in actions and missing:
        raise Rejected(code, f"conditions: a grant to train must state {', '.join(missing)}", step="V9")
