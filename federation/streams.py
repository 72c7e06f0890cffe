"""Several streams side by side: threads with connections of their own, what counts for them, how they wait.

Used by ``federation.sending`` and ``federation.fetching``.
"""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from federation.origins import Peers

ATTEMPTS = 9  # of one part, each longer after the last: about 16 s of patience, as a hub that restarts needs
LONGEST_WAIT_S = 5.0
QUICK_S = 10.0  # a file goes whole while the rest of it takes less: that much is lost with its sender
LOOK_S = 1.0  # of sending, before that is judged

T = TypeVar("T")
Progress = Callable[[int, int], None]  # bytes done, bytes in all; called from several threads, one at a time


class Counter:
    """Tells the caller how far we are."""

    def __init__(self, total: int, progress: Progress | None, done: int = 0) -> None:
        self._done, self._total, self._progress = done, total, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count these bytes, or take them back where ``count`` is negative."""
        with self._lock:
            self._done += count
            if self._progress:
                self._progress(self._done, self._total)

    def set(self, count: int) -> None:
        """Begin to count at ``count``, of which nobody is told by itself."""
        with self._lock:
            self._done = count


class Slow(Exception):
    """The line is too slow for a whole file at once. Never leaves ``sending`` and ``unhashed``."""


class Watch(Counter):
    """Gives up a line (``Slow``) on which what is left will take longer than ``QUICK_S``.

    Judged once ``LOOK_S`` have passed.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        super().__init__(total, progress)
        self._sent, self._left, self._began = 0, total, time.monotonic()

    def add(self, count: int) -> None:
        super().add(count)
        self._sent, self._left = self._sent + count, self._left - count
        taken = time.monotonic() - self._began
        if count > 0 and taken > LOOK_S and self._left * taken > QUICK_S * self._sent:
            raise Slow


def in_streams(count: int, work: Callable[[T, Peers, threading.Event], None], items: Sequence[T]) -> None:
    """Do ``work`` for every item, ``count`` at a time; the first error stops the rest and is raised.

    Each thread has connections of its own; ``work`` watches the event, which also it may set.
    """
    stop, own, opened = threading.Event(), threading.local(), list[Peers]()

    def one(item: T) -> None:
        if stop.is_set():
            return
        if not hasattr(own, "peers"):
            own.peers = Peers()
            opened.append(own.peers)
        try:
            work(item, own.peers, stop)
        except BaseException:
            stop.set()
            raise

    try:
        if len(items) == 1:
            one(items[0])
            return
        with ThreadPoolExecutor(max(1, min(count, len(items))), thread_name_prefix="transfer") as pool:
            futures = [pool.submit(one, item) for item in items]
            try:
                for future in futures:
                    future.result()
            finally:
                stop.set()
    finally:
        for peers in opened:
            peers.close()


def wait_s(attempt: int) -> float:
    """Seconds to wait after a failed attempt, spread so that many sites do not return at once."""
    return min(LONGEST_WAIT_S, 0.1 * (1 << attempt)) * (0.5 + secrets.randbelow(1000) / 1000)
