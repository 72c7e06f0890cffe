"""A file that is still arriving: its pieces, the journal that lets a later run go on, its digest as a whole.

The file fills under a hidden name made from its digest (its own may be as long as names can be), with a
journal beside it, and gets its own name only when every byte of it is there and true. Used by
``federation.fetching`` and ``federation.splicing`` only.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from storage.errors import Unchecked

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A range of the file whose digest is known."""

    number: int  # from 1
    offset: int
    size: int
    sha256: str


def digest_of(path: Path, offset: int, length: int) -> str:
    """SHA-256 of ``length`` bytes of a file from ``offset`` on, or of as many as there are."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while length > 0 and (count := file.readinto(buffer[: min(length, CHUNK_BYTES)])):
            digest.update(buffer[:count])
            length -= count
    return digest.hexdigest()


def reserve(file: int, size: int) -> None:
    """Take the room now, so that a full disk is found before the network is asked."""
    os.ftruncate(file, size)
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is None or size == 0:
        return
    try:
        allocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Write all of it."""
    while data:
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count


class Partial:
    """The file under its unfinished name, ours alone inside a ``with`` block.

    Args:
        over: a file in the same file system that is needed no more; unless the fetch goes on with what it had
            begun, it is written over, which is quicker than to write to a new one.
    Raises:
        Unchecked: ``E_BUSY``; another process or thread is filling it.
    """

    def __init__(self, path: Path, sha256: str, size: int, over: Path | None = None) -> None:
        self.path = path.with_name(f".{sha256[:32]}.partial")
        self._over = over
        self.file = -1  # open for reading and writing inside the block
        self._final = path
        self._journal = self.path.with_suffix(".journal")
        self._head = json.dumps({"sha256": sha256, "size": size})
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._over is not None:
            with contextlib.suppress(OSError):  # one is there already, or the file system knows no links
                os.link(self._over, self.path)
                self._over.unlink()
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self.file), os.stat(self.path))
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:  # or it was finished and renamed between our two calls
            os.close(self.file)
            raise Unchecked(
                "E_BUSY", f"{self._final} is being fetched already", "wait for the other one to end"
            )
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.file)

    def start(self, pieces: Sequence[Piece]) -> set[int]:
        """Numbers of the pieces that an earlier run left whole: the journal's word, checked with the file."""
        lines = self._journal.read_text(errors="replace").split("\n") if self._journal.is_file() else [""]
        noted = set(lines[1:]) if lines[0] == self._head else set[str]()
        kept = {
            piece.number
            for piece in pieces
            if str(piece.number) in noted and digest_of(self.path, piece.offset, piece.size) == piece.sha256
        }
        self._journal.write_text("\n".join([self._head, *map(str, sorted(kept)), ""]))
        return kept

    def note(self, number: int) -> None:
        """Remember that this piece is there and true."""
        with self._lock, self._journal.open("a") as file:
            file.write(f"{number}\n")

    def finish(self, *, durable: bool) -> None:
        """Give the file its own name; with ``durable``, bytes and name are on the disk before we return."""
        if durable:
            _sync(self.path, os.O_RDONLY)
        self.path.replace(self._final)
        self._journal.unlink(missing_ok=True)
        if durable:
            _sync(self._final.parent, os.O_RDONLY | os.O_DIRECTORY)

    def remove(self) -> None:
        """Leave nothing behind."""
        self.path.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class WholeDigest:
    """SHA-256 of a file in order, computed in a thread of its own behind the pieces as they arrive."""

    def __init__(self, path: Path, pieces: Sequence[Piece], kept: set[int]) -> None:
        self._path, self._pieces = path, pieces
        self._there, self._stopped = set(kept), False
        self._changed = threading.Condition()
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="transfer-digest", daemon=True)
        self._thread.start()

    def add(self, number: int) -> None:
        """Say that this piece is in the file."""
        with self._changed:
            self._there.add(number)
            self._changed.notify()

    def result(self) -> str:
        """The digest, once every piece has been added; of what there is after ``stop``."""
        self._thread.join()
        return self._digest.hexdigest()

    def stop(self) -> None:
        """Wait for no more pieces."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with self._path.open("rb", buffering=0) as file:
            for piece in self._pieces:
                with self._changed:
                    self._changed.wait_for(lambda number=piece.number: self._stopped or number in self._there)  # type: ignore[misc]
                    if piece.number not in self._there:
                        return
                left = piece.size
                while left and (count := file.readinto(buffer[: min(left, CHUNK_BYTES)])):
                    self._digest.update(buffer[:count])
                    left -= count
