"""Rules for the fields of a JSON document, and every broken one named at once.

A rule is a function of a value that answers None, or what was expected. A schema is a closed set of fields: a
missing and an unknown field are as wrong as a bad value. Read by ``plan`` and ``recipes.catalogue``; it does
not read files and knows no document.
"""

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from storage.errors import shown

Rule = Callable[[object], str | None]
Schema = Mapping[str, Rule]

_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,12})?")


def integer(least: int, most: int) -> Rule:
    """A whole number from ``least`` to ``most``; true and false are not numbers."""
    expected = f"an integer from {least} to {most}"

    def rule(value: object) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return None if good else expected

    return rule


def decimal(least: str, most: str, *, above: bool = False, below: bool = False) -> Rule:
    """A decimal number written as text, such as ``"0.05"``, from ``least`` to ``most``.

    ``above`` and ``below`` leave the least and the most value out themselves.
    """
    low, high = Decimal(least), Decimal(most)
    bounds = f"{'above' if above else 'from'} {least} {'and below' if below else 'to'} {most}"
    expected = f'a decimal as text {bounds}, such as "0.1"'

    def rule(value: object) -> str | None:
        if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
            return expected
        number = Decimal(value)
        good = (low < number if above else low <= number) and (number < high if below else number <= high)
        return None if good else expected

    return rule


def one_of(*values: str) -> Rule:
    """One of the texts given."""
    expected = "one of " + ", ".join(values)
    return lambda value: None if isinstance(value, str) and value in values else expected


def boolean(value: object) -> str | None:
    """true or false."""
    return None if isinstance(value, bool) else "true or false"


def text(pattern: str, meaning: str) -> Rule:
    """Text that matches ``pattern`` from end to end; ``meaning`` says so in words."""
    compiled = re.compile(pattern)
    return lambda value: None if isinstance(value, str) and compiled.fullmatch(value) else meaning


def listing(rule: Rule, least: int, most: int, *, distinct: bool = False) -> Rule:
    """A list of ``least`` to ``most`` values that all keep ``rule``."""

    def check(value: object) -> str | None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            return f"a list of {least} to {most} values"
        broken = next((expected for expected in map(rule, value) if expected), None)
        if broken:
            return f"a list whose every value is {broken}"
        return "a list without repeats" if distinct and len(set(value)) < len(value) else None

    return check


def as_expected(value: object, rule: Rule) -> object:
    """What a person typed, as a rule wants it: text where text will do, else the JSON that it spells.

    >>> as_expected("1", integer(0, 9)), as_expected("1", decimal("0", "9"))
    (1, '1')
    """
    if not isinstance(value, str) or rule(value) is None:
        return value
    try:
        read = json.loads(value)
    except ValueError:
        return value
    return read if rule(read) is None else value


def problems(value: object, schema: Schema, where: str = "") -> list[str]:
    """Every field of ``value`` that breaks ``schema``, as text; empty when all is well.

    >>> problems({"seed": -1, "sed": 2}, {"seed": integer(0, 9), "quorum": integer(1, 9)})
    ['quorum: missing', 'sed: unknown field', 'seed: expected an integer from 0 to 9, found -1']
    """
    if not isinstance(value, dict):
        return [f"{where or 'document'}: expected an object, found {shown(value)}"]
    prefix = f"{where}." if where else ""
    found = [f"{prefix}{name}: missing" for name in schema if name not in value]
    found += [f"{prefix}{name}: unknown field" for name in sorted(map(_name, value)) if name not in schema]
    for name, rule in schema.items():
        if name in value and (expected := rule(value[name])) is not None:
            found.append(f"{prefix}{name}: expected {expected}, found {shown(value[name])}")
    return found


def _name(name: object) -> str:
    """A field's name as a message may show it: as it is when harmless, else quoted."""
    text = str(name)
    return text if text.isidentifier() and text.isascii() and len(text) <= 60 else shown(name)
