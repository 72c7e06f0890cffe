"""The reader's state file: the last checkpoint that it accepted, ``{"size","root"}``.

It is what catches a log that shrank, or that shows another history than it showed before (step V4). It is
written only after everything held, and then whole or not at all.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from storage.encoding import is_digest, read_json
from storage.errors import Misuse, Rejected, Unchecked
from storage.report import Report

HINT = (
    "it is your own file: restore it, or remove it and lose the protection against rollback until next time"
)


@dataclass(frozen=True)
class State:
    """The last checkpoint that this reader accepted: number of entries, and root (32 bytes)."""

    size: int
    root: bytes


def read_state(path: Path) -> State | None:
    """The checkpoint that was saved last, or None when none was.

    Raises:
        Unchecked: ``E_INPUT``; the file cannot be read or says something else.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unchecked("E_INPUT", f"state file {path}: cannot be read ({error.strerror})", HINT) from error
    try:
        found = read_json(raw, code="E_INPUT")
    except Rejected as error:
        raise Unchecked("E_INPUT", f"state file {path}: {error.message}", HINT) from error
    if not isinstance(found, dict) or set(found) != {"size", "root"}:
        raise Unchecked("E_INPUT", f"state file {path}: expected exactly size and root", HINT)
    if type(found["size"]) is not int or found["size"] < 0 or not is_digest(found["root"]):
        raise Unchecked("E_INPUT", f"state file {path}: expected a number of entries and a root in hex", HINT)
    return State(found["size"], bytes.fromhex(found["root"])) if found["size"] else None


def save_state(path: Path, report: Report) -> None:
    """Write the checkpoint of a report in which everything held, whole or not at all.

    Raises:
        Misuse: something failed.
        Unchecked: ``E_INPUT``; the file cannot be written.
    """
    if not report.ok:
        raise Misuse("E_MISUSE", "the checkpoint of a refused pack is never saved")
    text = json.dumps({"size": report.size, "root": report.root.hex()}).encode() + b"\n"
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise Unchecked("E_INPUT", f"state file {path}: cannot be written ({error.strerror})") from error
