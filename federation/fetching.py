"""Large files from the object store: in parts side by side, each checked as it comes, resumable.

A file has its name only once it holds exactly the bytes that the caller knows from a signed document.
Standard library only, because general HTTP clients spend more time per byte than SHA-256 does.

Read ``fetch``.
"""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from federation.origins import Answer, Broken, Peers, origin_of, refusal_of
from federation.partials import CHUNK_BYTES, Partial, Piece, WholeDigest, reserve, write_at
from federation.splicing import can_splice, splice_body
from federation.streams import ATTEMPTS, Counter, Progress, in_streams, wait_s
from storage.early_sync import EARLY_BYTES, EarlySync
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.manifests import PART_BYTES, part_length

READ_STREAMS = max(3, min(4, os.cpu_count() or 3))  # down: one comes while others are hashed here
TELL = "the store holds other bytes than were signed: tell the hub's operator"


def fetch(
    url: str,
    path: Path,
    sha256: str,
    size: int,
    parts: Sequence[str] | None = None,
    *,
    parts_are_signed: bool = False,
    durable: bool = False,
    over: Path | None = None,
    progress: Progress | None = None,
    streams: int = READ_STREAMS,
    by_hub: bool = False,
) -> None:
    """Bring a file to ``path``, where it stands only once it holds exactly the bytes of this digest.

    Until then it fills under a hidden name in the same folder. A file of several parts leaves that and a
    journal behind when it fails, and a repeat fetches only what is missing; other failures leave nothing.

    Args:
        url: http(s) address that answers with the bytes, or redirects to where they are; asked once for each
            part, so that it may decide anew. It must bear its own permission.
        sha256, size: what the caller knows the file to be, from a signed document.
        parts: digests of the 32 MiB parts, if any: they allow several streams, and to go on after a failure.
        parts_are_signed: the parts come from the signed document too, as in a manifest. Otherwise somebody
            may have made up parts for other bytes, so the whole is checked besides.
        durable: return only when the file is on the disk.
        over: a file beside it that is needed no more and is written over (``Partial``).
        streams: how many parts to read side by side.
        by_hub: the address is one of the hub's, which leads on to the store.
    Raises:
        Rejected: ``E_DIGEST`` (other bytes), ``E_SIZE`` (more or fewer than announced).
        Refused: the address's own refusal, with its code and status.
        Unchecked: ``E_STORE_UNREACHABLE`` or ``E_HUB_UNREACHABLE`` after several tries; ``E_DISK_FULL``;
            ``E_BUSY`` (somebody else is fetching the same file).
    """
    pieces = _pieces(path, sha256, size, parts)
    several = len(pieces) > 1
    with Partial(path, sha256, size, over) as partial:
        try:
            kept = partial.start(pieces) if several else set[int]()
            reserve(partial.file, size)
            counter = Counter(size, progress, sum(piece.size for piece in pieces if piece.number in kept))
            whole = WholeDigest(partial.path, pieces, kept) if several and not parts_are_signed else None
            missing = [piece for piece in pieces if piece.number not in kept]
            with EarlySync(partial.file, EARLY_BYTES if durable else size) as disk:
                splices = can_splice(partial.file)
                target = _Target(path.name, partial.file, size, splices, counter, disk, by_hub)
                _fetch_pieces(url, missing, partial, target, whole, streams)
            if whole and whole.result() != sha256:
                partial.remove()
                message = f"{path.name}: the whole has digest {whole.result()}, expected {sha256}"
                raise Rejected("E_DIGEST", message, TELL)
            partial.finish(durable=durable)
        except OSError as error:
            partial.remove()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                hint = "make room and try again: nothing was left behind"
                raise Unchecked("E_DISK_FULL", f"no room for the {size} bytes of {path}", hint) from error
            raise
        except FedhubError:
            if not several:
                partial.remove()
            raise


def fetch_bytes(url: str, size: int) -> bytes:
    """The ``size`` bytes at an address of the hub, tried several times; the caller checks what they are.

    Raises:
        Rejected: ``E_SIZE``.
        Refused, Unchecked: as ``fetch``.
    """
    peers = Peers()
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _read_bytes(peers, url, size)
            except Broken as error:
                peers.close()
                if attempt == ATTEMPTS:
                    raise Unchecked(_away(error, url, by_hub=True), str(error), "try again") from error
                time.sleep(wait_s(attempt))
    finally:
        peers.close()
    raise AssertionError("every attempt returns or raises")


def _read_bytes(peers: Peers, url: str, size: int) -> bytes:
    answer = peers.get(url, {})
    if answer.response.status != 200:
        refused = refusal_of(answer)
        if refused.status >= 500 or refused.status in (408, 429):
            raise _may_pass(answer, refused)
        raise refused
    data, buffer = bytearray(), memoryview(bytearray(min(CHUNK_BYTES, size + 1)))
    while count := _read_some(answer, buffer):
        data += buffer[:count]
        if len(data) > size:
            raise Rejected("E_SIZE", f"{origin_of(url)}: more than the {size} bytes of these files come")
    if len(data) < size:
        raise Broken(answer.url, f"the answer ended after {len(data)} of {size} bytes")
    return bytes(data)


def _may_pass(answer: Answer, refused: Refused) -> Broken:
    return Broken(answer.url, refused.message.removeprefix(f"{origin_of(answer.url)} "))


def _away(error: Broken, url: str, *, by_hub: bool) -> str:
    """Whose failing it is: the hub's where its own address failed, and not the store to which that leads."""
    return "E_HUB_UNREACHABLE" if by_hub and error.origin == origin_of(url) else "E_STORE_UNREACHABLE"


def _fetch_pieces(
    url: str,
    pieces: Sequence[Piece],
    partial: Partial,
    target: "_Target",
    whole: WholeDigest | None,
    streams: int,
) -> None:
    def read(piece: Piece, peers: Peers, stop: threading.Event) -> None:
        if _read_piece(peers, url, piece, target, stop):
            partial.note(piece.number)
            if whole:
                whole.add(piece.number)

    try:
        in_streams(streams, read, pieces)
    except BaseException:
        if whole:
            whole.stop()
        raise


def _pieces(path: Path, sha256: str, size: int, parts: Sequence[str] | None) -> list[Piece]:
    if size > PART_BYTES and parts:
        if len(parts) != -(-size // PART_BYTES):
            raise Rejected("E_SIZE", f"{path.name}: {size} bytes are not {len(parts)} parts of {PART_BYTES}")
        return [
            Piece(n, (n - 1) * PART_BYTES, part_length(n, size), digest) for n, digest in enumerate(parts, 1)
        ]
    return [Piece(1, 0, size, sha256)]


@dataclass(frozen=True)
class _Target:
    """The file that is being filled."""

    name: str
    file: int
    size: int
    splices: bool  # the kernel can move bytes into it by itself
    counter: Counter
    disk: EarlySync
    by_hub: bool


def _read_piece(peers: Peers, url: str, piece: Piece, target: _Target, stop: threading.Event) -> bool:
    """Bring one piece to its place, trying several times; false when ``stop`` was set before it was whole."""
    for attempt in range(1, ATTEMPTS + 1):
        done = 0
        try:
            for count in _stream_piece(peers, url, piece, target):
                if stop.is_set():
                    peers.close()
                    return False
                done += count
                target.counter.add(count)
            return True
        except Broken as error:
            peers.close()
            target.counter.add(-done)
            if attempt == ATTEMPTS:
                raise Unchecked(
                    _away(error, url, by_hub=target.by_hub),
                    f"{target.name} from {error}",
                    "try again: what has arrived is kept",
                ) from error
            if stop.wait(wait_s(attempt)):
                break
    return False


def _stream_piece(peers: Peers, url: str, piece: Piece, target: _Target) -> Iterator[int]:
    """Yield how many bytes were written, as they come; ends only when the piece is whole and true."""
    name = target.name
    answer = _ask_for(peers, url, piece, target)
    response = answer.response
    if response.length is not None and response.length != piece.size:
        peers.close()
        raise Rejected(
            "E_SIZE", f"{name}: {response.length} bytes come for part {piece.number}, expected {piece.size}"
        )
    digest, done = hashlib.sha256(), 0
    if target.splices and answer.plain is not None and response.length is not None:
        coming = splice_body(answer, target.file, piece.offset, piece.size, digest.update)
    else:
        coming = _copy_body(answer, piece, target, digest.update)
    for count in coming:
        target.disk.wrote(count)
        done += count
        yield count
    if response.will_close or done < piece.size:
        peers.close()
    if done < piece.size:
        raise Broken(answer.url, f"the answer ended after {done} of {piece.size} bytes")
    if digest.hexdigest() != piece.sha256:
        raise Rejected(
            "E_DIGEST",
            f"{name}: part {piece.number} ({piece.size} bytes from {piece.offset}) has digest "
            f"{digest.hexdigest()}, expected {piece.sha256}",
            TELL,
        )


def _ask_for(peers: Peers, url: str, piece: Piece, target: _Target) -> Answer:
    """The answer that brings this piece, or its refusal."""
    whole = piece.size == target.size
    headers = {} if whole else {"Range": f"bytes={piece.offset}-{piece.offset + piece.size - 1}"}
    answer = peers.get(url, headers)
    if answer.response.status == (200 if whole else 206):
        return answer
    refused = refusal_of(answer)
    peers.close()
    if answer.redirected or refused.status >= 500 or refused.status in (408, 429):
        raise _may_pass(answer, refused)  # a signed URL lives for seconds: ask anew
    raise refused


def _copy_body(
    answer: Answer, piece: Piece, target: _Target, update: Callable[[memoryview], object]
) -> Iterator[int]:
    """Read the body and write it to its place; yield how many bytes were written, as they come."""
    buffer, done = memoryview(bytearray(min(CHUNK_BYTES, piece.size + 1))), 0
    while count := _read_some(answer, buffer):
        if done + count > piece.size:
            raise Rejected(
                "E_SIZE", f"{target.name}: more than the {piece.size} bytes of part {piece.number} come"
            )
        update(buffer[:count])
        write_at(target.file, buffer[:count], piece.offset + done)
        done += count
        yield count


def _read_some(answer: Answer, buffer: memoryview) -> int:
    try:
        return answer.response.readinto(buffer)
    except (HTTPException, OSError) as error:
        raise Broken(answer.url, type(error).__name__) from error
