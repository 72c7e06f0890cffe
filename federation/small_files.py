"""Many small files at once: a version of 200 of them costs a handful of requests, not three for each.

Which files are small, and which of them travel together, both sides know from the manifest alone. Down, one
answer holds the bytes of one group, each file after the other; sizes and digests are those of the signed
manifest, so nothing in the answer is believed. Up, one request holds the files of one group, and the hub
hashes each before it counts as there.
"""

import base64
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, TypeVar

from federation.fetching import fetch_bytes
from storage.errors import Refused, Rejected, Unchecked
from storage.manifests import FileEntry

if TYPE_CHECKING:
    from federation import wire

SMALL_BYTES = 128 << 10  # the largest file that travels with others
DOWN_BYTES, DOWN_FILES = 16 << 20, 1000  # of one answer
UP_BYTES, UP_FILES = 2 << 20, 500  # of one request, before base64
WRITERS = 8


class Sized(Protocol):
    """A file as a manifest, or a row of the hub, has it."""

    @property
    def size(self) -> int:
        """In bytes."""


T = TypeVar("T", bound=Sized)


def groups(files: Iterable[T], most_bytes: int, most_files: int) -> list[list[T]]:
    """The small ones among these files, in their order, as many together as the limits allow."""
    found: list[list[T]] = []
    room = -1
    for file in files:
        if file.size > SMALL_BYTES:
            continue
        if file.size > room or len(found[-1]) == most_files:
            found.append([])
            room = most_bytes
        found[-1].append(file)
        room -= file.size
    return found


# --- down -------------------------------------------------------------------------------------------------


def fetch_small(
    files: Sequence[FileEntry],
    address: Callable[[int], str],
    folder: Path,
    moved: Callable[[int], None] | None,
) -> None:
    """Bring the small files of a manifest to ``folder``; those that are there already stay.

    Args:
        files: all files of the manifest, in its order.
        address: number of a group -> where its bytes are.
        moved: told how many bytes arrived.
    Raises:
        Rejected: ``E_DIGEST``, a file has other bytes; ``E_SIZE``, the answer is too long or too short.
        Refused, Unchecked: as ``fetching.fetch``.
    """
    for number, group in enumerate(groups(files, DOWN_BYTES, DOWN_FILES)):
        missing = [entry for entry in group if not _is_there(folder / PurePosixPath(entry.name), entry.size)]
        if missing:
            data = memoryview(fetch_bytes(address(number), sum(entry.size for entry in group)))
            _write_all(_cut(group, data, {entry.name for entry in missing}), folder)
        if moved is not None:
            moved(sum(entry.size for entry in group))


def _is_there(path: Path, size: int) -> bool:
    """Whether an earlier call brought it: a file gets its name only when it is whole."""
    return path.is_file() and path.stat().st_size == size


def _cut(group: Sequence[FileEntry], data: memoryview, wanted: set[str]) -> list[tuple[str, memoryview]]:
    """Name and bytes of the wanted files, after each was checked."""
    found, offset = [], 0
    for entry in group:
        piece = data[offset : offset + entry.size]
        offset += entry.size
        if hashlib.sha256(piece).hexdigest() != entry.sha256:
            raise Rejected(
                "E_DIGEST",
                f"{entry.name}: the bytes that came do not have the digest {entry.sha256}",
                "the hub holds other bytes than were signed: tell its operator",
            )
        if entry.name in wanted:
            found.append((entry.name, piece))
    return found


def _write_all(files: Sequence[tuple[str, memoryview]], folder: Path) -> None:
    """Write each durably under its own name, several at a time: the disk takes their bytes together."""
    for name, _data in files:
        (folder / PurePosixPath(name)).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as pool:
        for written in [pool.submit(_write, folder / PurePosixPath(name), data) for name, data in files]:
            written.result()


def _write(path: Path, data: memoryview) -> None:
    hidden = path.with_name(f".{secrets.token_hex(16)}.partial")
    try:
        with hidden.open("xb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


# --- up ---------------------------------------------------------------------------------------------------


class SmallUploads(Protocol):
    """The part of a hub client that sends small files."""

    def upload_small(self, files: "Sequence[wire.SmallFile]") -> None:
        """Give the hub these files."""


def send_small(
    client: SmallUploads, folder: Path, files: Sequence[FileEntry], moved: Callable[[int], None] | None
) -> set[str]:
    """Give the hub the small files of a manifest; returns the names of those that it has now.

    A hub that takes no requests as large says so, and none of the rest is sent this way.

    Raises:
        Rejected: ``E_FILE_CHANGED``; a file is no longer what the manifest says.
    """
    from federation.wire import SmallFile

    sent: set[str] = set()
    for group in groups(files, UP_BYTES, UP_FILES):
        ready = []
        for entry in group:
            data = _read(folder / PurePosixPath(entry.name), entry)
            ready.append(SmallFile(sha256=entry.sha256, data=base64.b64encode(data).decode()))
        try:
            client.upload_small(ready)
        except Refused as error:
            if error.status == 413:
                break
            raise
        sent |= {entry.name for entry in group}
        if moved is not None:
            moved(sum(entry.size for entry in group))
    return sent


def _read(path: Path, entry: FileEntry) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(entry.size + 1)
    except OSError as error:
        raise Unchecked("E_INPUT", f"file {path}: cannot be read ({error.strerror})") from error
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise Rejected(
            "E_FILE_CHANGED",
            f"{path} changed while it was sent",
            "nothing was stored: send it again when it rests",
        )
    return data
