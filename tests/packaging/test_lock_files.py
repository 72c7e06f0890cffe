"""The lock files hold what ``pyproject.toml`` asks for, so that a checkout or an image never lacks a package."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, set[str]]:
    """Package -> its versions (one per Python version or system where they differ)."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(
        r"^([a-z0-9-]+)(?:\[[^\]]*\])?==(\S+)", (ROOT / name).read_text(), re.MULTILINE
    ):
        found.setdefault(package, set()).add(version)
    return found


def asked(*requirements: Any) -> set[str]:
    """Names of packages, those of our own extras and groups included."""
    names: set[str] = set()
    for each in requirements:
        if isinstance(each, dict):
            names |= asked(*PROJECT["dependency-groups"][each["include-group"]])
        elif each.startswith("fedhub["):
            names |= asked(*PROJECT["project"]["optional-dependencies"][each[7:-1]])
        else:
            match = re.match(r"[A-Za-z0-9_.-]+", each)
            assert match is not None, each
            names.add(match[0].lower().replace("_", "-"))
    return names


@pytest.mark.parametrize(
    ("name", "extra", "group"),
    [("requirements.lock", "all", "dev"), ("requirements-hub.lock", "hub", "build")],
)
def test_a_lock_file_holds_everything_that_is_asked_for(name: str, extra: str, group: str) -> None:
    wanted = asked(*PROJECT["project"]["dependencies"], f"fedhub[{extra}]", {"include-group": group})
    assert wanted - set(locked(name)) == set(), "run: make lock"


def test_both_lock_files_name_the_same_versions_and_the_hub_needs_no_torch() -> None:
    whole, hub = locked("requirements.lock"), locked("requirements-hub.lock")
    assert {name: versions for name, versions in hub.items() if not versions <= whole.get(name, set())} == {}
    assert "torch" not in hub
