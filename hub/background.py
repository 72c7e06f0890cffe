"""Background work of a hub: workers that look again and again, each in one process at a time.

A worker's work is leased: a row in the database names its holder, who renews it while it lives. Another
process takes over when the lease ends, or at once when the holder was a process of this machine that is no
more."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from hub.context import Bell, Hub
from hub.services import garbage, uploads_waiting
from hub.services.pulls import forget_capabilities
from hub.tables import LeaseRow
from storage.errors import FedhubError

TIDY_EVERY_S = 60.0
PROCESS = secrets.token_hex(4)  # tells this process from one before it under the same number
_log = logging.getLogger("fedhub.background")


# --- leases ---------------------------------------------------------------------------------------------


def new_holder() -> str:
    """A name for this process that tells on which machine, and as which process, it holds a lease."""
    return f"{socket.gethostname()[:32]}:{os.getpid()}:{PROCESS}:{secrets.token_hex(4)}"


class Lease:
    """One leased row: held by one process at a time, taken over when its holder falls silent or is dead."""

    def __init__(self, hub: Hub, name: str, holder: str) -> None:
        self._hub, self._name, self._holder = hub, name, holder
        self._renew_at = 0.0

    def hold(self) -> bool:
        """Whether this process holds the lease now; takes or renews it."""
        if time.monotonic() < self._renew_at:
            return True
        life_ms = self._hub.settings.lease_s * 1000
        try:
            with self._hub.database.session_scope() as session:
                row = session.get(LeaseRow, self._name, with_for_update=True)
                now_ms = time.time_ns() // 1_000_000
                if row is None:
                    row = LeaseRow(name=self._name, holder=self._holder, until_ms=0)
                elif row.holder != self._holder and row.until_ms > now_ms and not _is_dead(row.holder):
                    self._renew_at = 0.0
                    return False
                row.holder, row.until_ms = self._holder, now_ms + life_ms
                session.add(row)
        except IntegrityError:  # another process made the row at this moment
            return False
        self._renew_at = time.monotonic() + life_ms / 3000
        return True

    def release(self) -> None:
        """Let another process take over at once."""
        with self._hub.database.session_scope() as session:
            row = session.get(LeaseRow, self._name, with_for_update=True)
            if row is not None and row.holder == self._holder:
                row.until_ms = 0
                session.add(row)
        self._renew_at = 0.0


def _is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is no more: no need to wait for its lease."""
    host, number, process, *_ = [*holder.split(":"), "", "", ""]
    if host != socket.gethostname()[:32] or not number.isdigit():
        return False
    if int(number) == os.getpid():
        return process != PROCESS
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


# --- small background work ------------------------------------------------------------------------------


class Housekeeper:
    """Checks uploads of several parts, and drops what nobody finished or needs any more."""

    def __init__(self, hub: Hub, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._hub, self._clock = hub, clock
        self._lease = Lease(hub, "housekeeper", new_holder())
        self._tidy_at = 0.0
        # Not at the start: a hub whose database was put back may wait for its last hours to be restored.
        self._sweep_at = clock() + hub.settings.sweep_hours * 3600

    def release(self) -> None:
        """Let another process do it."""
        self._lease.release()

    def look(self) -> None:
        """One look at what waits."""
        if not self._lease.hold():
            return
        uploads_waiting.check_waiting(self._hub)
        if self._clock() >= self._tidy_at:
            self._tidy_at = self._clock() + TIDY_EVERY_S
            garbage.expire(self._hub)
            with self._hub.database.session_scope() as session:
                forget_capabilities(self._hub, session)
        every_s = self._hub.settings.sweep_hours * 3600
        if every_s and self._clock() >= self._sweep_at:
            self._sweep_at = self._clock() + every_s
            swept = garbage.sweep(self._hub)
            if any(swept.as_json().values()):
                _log.info("swept away what nothing needs: %s", swept)


# --- threads --------------------------------------------------------------------------------------------


class Worker(Protocol):
    """Something that looks again and again."""

    def look(self) -> None:
        """One look."""

    def release(self) -> None:
        """Let another process do it."""


class Background:
    """Threads that let workers look, every ``every_s`` seconds and when the bell rings, until ``stop``."""

    def __init__(self, workers: Mapping[str, Worker], every_s: float, bell: Bell) -> None:
        self._workers, self._every_s, self._bell = workers, every_s, bell
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(name, worker), name=f"fedhub-{name}", daemon=True)
            for name, worker in workers.items()
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the looks that are going on; other processes take over at once."""
        self._stop.set()
        self._bell.ring()
        for thread in self._threads:
            thread.join()

    def _run(self, name: str, worker: Worker) -> None:
        heard = 0
        while True:
            heard = self._bell.wait(heard, self._every_s)
            if self._stop.is_set():
                break
            self._try(name, worker.look)
        self._try(name, worker.release)

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (FedhubError, SQLAlchemyError, OSError) as error:
            # Store or database are away for now: nothing is half done, and the next look does it again.
            _log.error("%s: %s: %s", name, type(error).__name__, error)
