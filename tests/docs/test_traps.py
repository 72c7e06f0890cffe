"""Every trap that the page names has its test, and the page's tests are there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "traps.md"
NAMED = re.compile(r"`([a-z0-9_/]+\.py)::(test_\w+)`")


def _tests_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_page_of_traps_names_is_there() -> None:
    named = NAMED.findall(PAGE.read_text())
    there = {file: _tests_of(TESTS / file) for file, _name in named if (TESTS / file).is_file()}
    assert [f"{file}::{name}" for file, name in named if name not in there.get(file, ())] == []


def test_every_trap_of_the_page_names_a_test() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and line != "|---|---|"]
    traps = [row for row in rows if not row.startswith("| a naive hub |")]
    assert len(traps) > 40
    for row in traps:
        _empty, _trap, tests, _end = row.split("|")
        assert NAMED.sub("", tests).strip(" ,") == "" and NAMED.search(tests), row
