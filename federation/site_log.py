"""What a site says of itself when it stops: a line in its log, and the newest trouble in a file.

The line has message, cause, owner and next step from the table of causes. ``site/trouble.json`` holds the
newest trouble for ``fedhub site status`` and for the supervisor, which tells the hub. Work that an order has
begun is noted while it lasts, so that an order that ends the process every time is refused in the end.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from federation.home import Home, write_atomically
from federation.reaching import chain
from storage.causes import log_line
from storage.errors import FedhubError, Refused, Unchecked

LIVES = 3  # times that one order may end the agent's process before it is refused
MESSAGE_LIMIT = 500
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LESS_MEMORY = (
    "cannot allocate memory",  # of the system: a file that cannot be mapped
    "can't allocate memory",  # of torch
    "out of memory",
    "not enough memory",
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trouble:
    """The newest trouble of a site. ``at``: seconds since 1970."""

    code: str
    message: str
    at: int


class SiteLog:
    """The troubles of one home's site.

    Args:
        say: takes a line of the log; stderr when None.
    """

    def __init__(self, home: Home, say: Say | None = None) -> None:
        self._path = home.site / "trouble.json"
        self._say = say or _to_stderr
        self._last = "", ""

    def tell(self, error: FedhubError) -> None:
        """Say a trouble, once while it lasts, and remember it."""
        self.line(error)
        trouble = {"code": error.code, "message": error.message[:MESSAGE_LIMIT], "at": int(time.time())}
        with suppress(OSError):  # a full disk must not hide what is wrong: the line has been said
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self._path, json.dumps(trouble).encode())

    def line(self, error: FedhubError, about: str = "") -> None:
        """Say an error, unless it was the last thing said, of the same order."""
        line = log_line(error.code, error.message)
        if (line, about) != self._last:
            self._last = line, about
            self._say(line)

    def over(self) -> None:
        """What was in the way is gone."""
        self._last = "", ""
        self._path.unlink(missing_ok=True)

    def newest(self) -> Trouble | None:
        """The trouble that lasts, if there is one."""
        try:
            return Trouble(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- work -------------------------------------------------------------------------------------------------


@contextmanager
def at_work(site: Path, order: str) -> Iterator[None]:
    """Note that an order is being carried out; what ends the process leaves the note behind.

    Raises:
        Refused: ``E_AGENT_DIED``: this order has ended the process ``LIVES`` times.
    """
    note = site / "at-work.json"
    try:
        left = json.loads(note.read_text())
        lives = int(left["lives"]) if left["order"] == order else 0
    except (OSError, ValueError, KeyError, TypeError):
        lives = 0
    if lives >= LIVES:
        note.unlink(missing_ok=True)
        raise Refused("E_AGENT_DIED", f"order {order} has ended the agent's process {lives} times")
    note.write_text(json.dumps({"order": order, "lives": lives + 1}))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def explain_failure(error: OSError | MemoryError | RuntimeError | ImportError) -> FedhubError:
    """What ended the work on an order, by its name; its own text may hold rows and is not repeated."""
    for one in chain(error):
        if isinstance(one, MemoryError) or any(text in str(one).lower() for text in _LESS_MEMORY):
            return Refused("E_OUT_OF_MEMORY", "the work on the order needed more memory than there is")
        if isinstance(one, ImportError):
            return Unchecked("E_EXTRA", f"the module {one.name or 'that the recipe needs'} is not installed")
        if isinstance(one, PermissionError):
            return Refused("E_PERMISSION", f"{_named(one)}: the agent may not read or write it")
        if isinstance(one, OSError) and one.errno in _FULL:
            return Unchecked("E_SITE_DISK", f"{_named(one)}: {os.strerror(one.errno or 0)}")
        if isinstance(one, OSError):
            return Unchecked("E_SITE_IO", f"the site cannot go on: {one.strerror}", "free its disk")
    return Refused("E_RECIPE_FAILED", f"the recipe ended with {type(error).__name__}")


def outward(home: Home, text: str) -> str:
    """A text that leaves the site: files by their names, not by where they lie."""
    places = {home.path, home.path.resolve()}
    with suppress(FedhubError):
        places |= {dataset.folder for dataset in home.datasets()}
    for place in sorted(map(str, places), key=len, reverse=True):
        text = text.replace(f"{place}/", "")
    return text


def _named(error: OSError) -> str:
    """The file's own name: where it lies is nobody else's to know."""
    return Path(str(error.filename)).name if error.filename else "a file"
