"""What the documents name exists, and what exists is named."""

import importlib
import re
import sys
from pathlib import Path

import click
import pytest
import typer

from hub.cli import GROUPS
from storage.causes import table

sys.path.insert(0, str(Path(__file__).parent))
import faults_page
from settings_page import PAGE, page

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_settings_page_is_the_settings() -> None:
    assert PAGE.read_text() == page(), "run: python tests/docs/settings_page.py"


def test_the_faults_page_is_the_table_of_causes() -> None:
    assert faults_page.PAGE.read_text() == faults_page.page(), "run: python tests/docs/faults_page.py"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name}: {target}"


GLOBAL_OPTIONS = {"--home", "--json", "--help", "--version"}


def _commands() -> dict[str, set[str]]:
    """Every command by its words, with its options."""
    found: dict[str, set[str]] = {}
    for name, (module, _about) in GROUPS.items():
        command = typer.main.get_command(importlib.import_module(f"hub.commands.{module}").app)
        subcommands = getattr(command, "commands", {})
        if subcommands:
            found |= {f"{name} {each}": _options(inner) for each, inner in subcommands.items()}
        else:
            found[name] = _options(command)
    return found


def _options(command: click.Command) -> set[str]:
    return GLOBAL_OPTIONS | {
        option for each in command.params for option in (*each.opts, *each.secondary_opts)
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_page_exists_with_its_options(path: Path) -> None:
    known = _commands()
    quoted = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", path.read_text(), re.DOTALL)
    for text in (block or inline for block, inline in quoted):
        for line in text.splitlines():
            found = re.search(r"fedhub (?:--home \S+ )?(?:--json )?([a-z]+)(?: ([a-z]+))?\b", line)
            if found is None:
                continue
            words = " ".join(filter(None, found.groups()))
            command = words if words in known else words.split()[0]
            if (
                command not in known
                and found[2] is None
                and any(each.startswith(f"{command} ") for each in known)
            ):
                continue  # a whole group is named
            assert command in known, f"{path.name}: fedhub {words}"
            used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line.split("#")[0]))
            assert used <= known[command], f"{path.name}: {line.strip()}"


def test_every_next_step_names_commands_that_exist_with_their_options() -> None:
    known = _commands()
    for each in table().values():
        for group, name, rest in re.findall(r"fedhub ([a-z]+)(?: ([a-z]+))?([^,;]*)", each.step):
            if (group, name) in (("at", "the"), ("release", "that")):
                continue  # the program's own name, in a sentence
            command = f"{group} {name}" if f"{group} {name}" in known else group
            assert command in known, f"{each.code}: fedhub {group} {name}"
            assert set(re.findall(r"--[a-z-]+", rest)) <= known[command], f"{each.code}: {rest}"


def test_every_make_target_of_a_page_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL):
            for words in re.findall(r"^make ((?:[a-z-]+ ?)+)", block, re.MULTILINE):
                assert set(words.split()) <= targets, f"{path.name}: make {words}"


def test_the_changelog_has_the_version_of_the_code() -> None:
    from hub import __version__

    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
