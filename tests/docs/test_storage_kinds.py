"""The tables of ``docs/trust.md`` name the kinds, roles, members and conditions that the code knows."""

import re
from pathlib import Path

import pytest

from storage.kinds import HEADER
from storage.members import CONDITIONS
from storage.statements import KINDS, Kind

TEXT = (Path(__file__).parents[2] / "docs" / "trust.md").read_text("utf-8")


def row(start: str) -> str:
    """The one table row whose first cell is ``start``."""
    [found] = [line for line in TEXT.splitlines() if line.startswith(f"| {start} |")]
    return found


def names(text: str) -> set[str]:
    return set(re.findall(r"`([A-Za-z]+)\??`", text))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_page_names_each_kind_with_the_role_that_signs_it(kind: Kind) -> None:
    assert kind.role in row(f"`{kind.uri}`").split("|")[3]


def test_page_names_no_kind_that_the_code_does_not_know() -> None:
    listed = set(re.findall(r"^\| `(https://[^`]+)` \|", TEXT, re.MULTILINE))
    assert listed == {kind.uri for kind in KINDS.values()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.own], ids=lambda kind: kind.name)
def test_page_names_each_member_and_says_which_may_be_absent(kind: Kind) -> None:
    members = row(kind.name)
    assert {member.name for member in kind.members} <= names(members)
    if kind.name != "receipt":  # its members depend on the action, which the row says in words
        optional = {member.name for member in kind.members if member.optional} - {"delta"}
        assert set(re.findall(r"`([A-Za-z]+)\?`", members)) - {"delta"} == optional


def test_page_names_the_header_and_every_condition() -> None:
    assert {member.name for member in (*HEADER, *CONDITIONS)} <= names(TEXT)
