"""Base models at a site: folders that the lab names once, in which its agent looks for what a plan pins.

Naming a folder permits nothing: a plan finds its base by digest, and only a consent lets it train.
"""

import json
from pathlib import Path

from federation.home import Home, write_atomically
from federation.recipes.base_files import base_files
from storage.encoding import read_json
from storage.errors import Unchecked

MOST_FOLDERS = 100
_FILE = "bases.json"


def base_folders(home: Home) -> tuple[Path, ...]:
    """The folders named at this site, in the order they were named.

    Raises:
        Unchecked: ``E_HOME``: the list was altered.
    """
    try:
        raw = (home.site / _FILE).read_bytes()
    except FileNotFoundError:
        return ()
    value = read_json(raw, code="E_HOME")
    good = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not good or len(value) > MOST_FOLDERS:
        raise Unchecked("E_HOME", f"{home.site / _FILE}: expected a list of folders", "name them again")
    return tuple(map(Path, value))


def add_base(home: Home, folder: Path) -> dict[str, str]:
    """Name a folder; what its files are is answered as name -> SHA-256.

    Raises:
        Rejected: ``E_BASE_MODEL``: it holds no base model. Unchecked: the site has too many folders.
    """
    files = base_files(folder)
    known = base_folders(home)
    place = folder.resolve()
    if place not in known:
        if len(known) == MOST_FOLDERS:
            raise Unchecked(
                "E_BASE_MODEL", f"this site names {MOST_FOLDERS} folders already", "forget one first"
            )
        _write(home, (*known, place))
    return files


def forget_base(home: Home, folder: Path) -> bool:
    """Name a folder no more; whether it was named."""
    known = base_folders(home)
    _write(home, tuple(each for each in known if each != folder.resolve()))
    return folder.resolve() in known


def _write(home: Home, folders: tuple[Path, ...]) -> None:
    home.site.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = json.dumps([str(each) for each in folders], indent=2)
    write_atomically(home.site / _FILE, text.encode() + b"\n")
