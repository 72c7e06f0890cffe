"""Which Flower app bundles SuperLink may start besides our coordinator, and which it was told to start.

Both are small files in SuperLink's own folder, written by the operator's commands: ``allowed-apps``, one full
digest a line, looked at whenever a run begins, and ``unsigned-runs``, one JSON object a line. A file that
cannot be read allows nothing. Runs of such bundles are Flower's own: by value, without orders, consents and
receipts. No plan knows them, so no version can be made of them and nothing of them released.
"""

import json
import os
from pathlib import Path
from typing import Any

from storage.encoding import is_digest
from storage.errors import Unchecked

ALLOWED = "allowed-apps"
RUNS = "unsigned-runs"
MOST = 1000  # bundles, and runs that are listed


def read_allowed(folder: Path) -> frozenset[str]:
    """The digests that the operator allows; none when the file is missing or is not ours."""
    try:
        lines = (folder / ALLOWED).read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset(lines) if len(lines) <= MOST and all(map(is_digest, lines)) else frozenset()


def set_allowed(folder: Path, sha256: str, allowed: bool) -> frozenset[str]:
    """Allow a bundle from the next run on, or no more; returns all that are allowed then.

    Raises:
        Unchecked: ``E_SUPERLINK_DIR``: the folder cannot be written; ``E_USAGE``: no digest.
    """
    if not is_digest(sha256):
        raise Unchecked("E_USAGE", f"{sha256!r} is no digest", "give all 64 hex digits, or the file")
    found = read_allowed(folder) | {sha256} if allowed else read_allowed(folder) - {sha256}
    temporary = folder / f".{ALLOWED}.new"
    try:
        temporary.write_text("".join(f"{each}\n" for each in sorted(found)), "ascii")
        temporary.chmod(0o600)
        os.replace(temporary, folder / ALLOWED)
    except OSError as error:
        raise _no_folder(folder, error) from error
    return found


def note_run(folder: Path, run: dict[str, Any]) -> None:
    """Remember a run that was started for its operator; not evidence of anything."""
    try:
        with (folder / RUNS).open("a") as file:
            file.write(json.dumps(run, sort_keys=True) + "\n")
    except OSError as error:
        raise _no_folder(folder, error) from error


def noted_runs(folder: Path) -> list[dict[str, Any]]:
    """The newest of the runs that ``note_run`` remembers, oldest first."""
    try:
        lines = (folder / RUNS).read_text().splitlines()[-MOST:]
    except OSError:
        return []
    return [json.loads(line) for line in lines]


def _no_folder(folder: Path, error: OSError) -> Unchecked:
    return Unchecked(
        "E_SUPERLINK_DIR",
        f"{folder}: {error.strerror}",
        "run this where the hub runs, with its settings: FEDHUB_DATA_DIR or FEDHUB_SHARED_DIR",
    )
