"""SIGTERM for a process that holds a lease on a node: it ends in order, and never with a lease left behind.

An exception that a signal raises may come anywhere: between SuperLink's yes to a lease and our reading it, or
while the lease is given back. SuperLink would then show the node as online until the lease ends by itself, a
minute later. Managers of services signal all processes of a service at once and our supervisor signals again,
so a second signal in the middle of the end is the rule there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Ending:
    """The first signal is raised as ``SystemExit``, later ones are nothing new. For the main thread."""

    def __init__(self) -> None:
        self._told = False
        self._later = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The handler, for ``signal.signal``."""
        first, self._told = not self._told, True
        if first and not self._later:
            raise SystemExit(0)

    def check(self) -> None:
        """End now if a signal has come: it was put off, or Python dropped its exception, as in finalisers."""
        if self._told:
            raise SystemExit(0)

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """What is done here is done to its end first; it must not take long."""
        self._later = True
        try:
            yield
        finally:
            self._later = False
            self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside ``put_off``: what may take as long as it likes."""
        self._later = False
        self.check()
        try:
            yield
        finally:
            self._later = True
