"""A file that goes to the disk while it still fills: who then syncs it waits for the rest only."""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

EARLY_BYTES = 64 << 20  # what the disk is given at a time while more comes


class EarlySync:
    """Brings each ``every`` bytes of an open file to the disk, in a thread of its own, inside ``with``.

    That ends when what was begun is there: the last bytes, and the file's name, are the caller's to bring.

    Args:
        file: descriptor, open for writing.
        every: bytes; while the disk takes some, more are let come together.
    Raises:
        OSError: at the end of the block, the disk did not take them.
    """

    def __init__(self, file: int, every: int = EARLY_BYTES) -> None:
        self._file, self._every, self._waiting = file, every, 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self._begun: Future[None] | None = None

    def wrote(self, count: int) -> None:
        """Take note that so many more bytes were written; may be called by several threads.

        Raises:
            OSError: what was written before cannot be brought to the disk.
        """
        with self._lock:
            self._waiting += count
            if self._waiting <= self._every or (self._begun and not self._begun.done()):
                return
            if self._begun:
                self._begun.result()
            self._begun, self._waiting = self._pool.submit(os.fdatasync, self._file), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        self._pool.shutdown()
        if kind is None and self._begun:
            self._begun.result()
