"""A few threads for short work of the event loop, at the least price of a change of threads.

``asyncio`` and ``anyio`` have threads for any work; what they do around it costs more than an indexed read
does. Here one queue and one call back into the loop is all there is.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from hub.database import Database

READS_SQLITE, READS_POSTGRESQL = 1, 3  # threads
WRITES_SQLITE, WRITES_POSTGRESQL = 1, 3
_T = TypeVar("_T")
_Work = tuple[asyncio.Future[Any], Callable[[], Any]]


class Lane:
    """Does one thing after the other in each of its threads, which end with it.

    Args:
        threads: how many; each starts when there is work and none has been started for it.
    """

    def __init__(self, threads: int) -> None:
        self._left = threads
        self._asked: SimpleQueue[_Work | None] = SimpleQueue()
        weakref.finalize(self, _end, self._asked, threads)

    async def do(self, work: Callable[[], _T]) -> _T:
        """What ``work`` returns or raises, called in one of the threads."""
        if self._left:
            self._left -= 1
            threading.Thread(target=_serve, args=(self._asked,), name="fedhub-lane", daemon=True).start()
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._asked.put((future, work))
        return await future


class Lanes:
    """Those of one application.

    Attributes:
        reads: a few indexed reads each. On SQLite one thread: Python runs one at a time anyway, and
            threads that wait for each other cost more than their work; on PostgreSQL a few, which wait for
            the server.
        lists: a page of a list each, in as many threads; it takes some milliseconds, for which no read waits.
        writes: one short transaction each. On SQLite one thread: only one can write anyway.
        endings: ends of transactions, as many as there can be: none waits for another one's.
    """

    def __init__(self, database: Database, pool: int) -> None:
        self.reads = Lane(READS_SQLITE if database.is_sqlite else READS_POSTGRESQL)
        self.lists = Lane(READS_SQLITE if database.is_sqlite else READS_POSTGRESQL)
        self.writes = Lane(WRITES_SQLITE if database.is_sqlite else WRITES_POSTGRESQL)
        self.endings = Lane(pool)


def _end(asked: "SimpleQueue[_Work | None]", threads: int) -> None:
    for _ in range(threads):
        asked.put(None)


def _serve(asked: "SimpleQueue[_Work | None]") -> None:
    while (one := asked.get()) is not None:
        future, work = one
        try:
            found, failure = work(), None
        except BaseException as error:  # whatever it is, it belongs to who waits for it
            found, failure = None, error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            future.get_loop().call_soon_threadsafe(_tell, future, found, failure)
        del one, future, work, found, failure  # nothing of a request outlives it here


def _tell(future: "asyncio.Future[Any]", found: Any, failure: BaseException | None) -> None:
    if future.cancelled():
        return
    if failure is None:
        future.set_result(found)
    else:
        future.set_exception(failure)
