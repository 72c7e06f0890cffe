"""A stored file that is read by ranges, as archive readers want a file."""

import io
from collections.abc import Callable
from typing import Any

Reader = Callable[[int, int], bytes]
"""``read(offset, length)`` of one stored file; fewer bytes only at its end."""


class RangedFile(io.RawIOBase):
    """A file object over ranged reads: seekable, not to be written."""

    def __init__(self, size: int, read: Reader) -> None:
        self._size, self._read, self._position = size, read, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(0, self._size - self._position))
        if length == 0:
            return 0
        data = self._read(self._position, length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
