"""Large files to and from the object store, checked on the way, in several streams, resumable.

``send_file`` sends a file by upload orders: each names the digest of what it carries, so the store itself
refuses other bytes. ``fetch`` reads a file by URL, in parts side by side, and gives it its name only when it
holds exactly the bytes that the caller knows from a signed document. Standard library only, because general
HTTP clients spend more time per byte than SHA-256 does.
"""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

from federation.origins import Answer, Broken, Peers, origin_of, refusal_of
from federation.partials import CHUNK_BYTES, Partial, Piece, WholeDigest, digest_of, reserve
from federation.streams import Counter, Progress, Slow, Watch, in_streams, wait_s
from federation.wire import Upload, UploadOrder
from storage.blobs import ORDER_BYTES
from storage.early_sync import EARLY_BYTES, EarlySync
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.manifests import PART_BYTES, hash_file

STREAMS = 4  # up: the store checks and writes each
QUICK_S = 10.0  # a file goes whole while the rest of it takes less: that much is lost with its sender
LOOK_S = 1.0  # of sending, before that is judged
READ_STREAMS = max(3, min(4, os.cpu_count() or 3))  # down: one comes while others are hashed here
ATTEMPTS = 9  # of one part, each longer after the last: about 16 s of patience, as a hub that restarts needs
CHECK_POLL_S = 0.05
CHECK_WAIT_S = 600.0
# What the hub says of an upload that another process has ended meanwhile, or time.
OVERTAKEN = ("E_INCOMPLETE", "E_NOT_FOUND")
_HINTS = {
    403: "the store does not take what the hub signed: the hub's operator looks at clocks and keys",
    507: "the store has no room: tell the hub's operator",
}
_LARGER = "the hub's operator lets it pass 32 MiB at least (nginx: client_max_body_size)"
TELL = "the store holds other bytes than were signed: tell the hub's operator"


class Uploads(Protocol):
    """The part of a hub client that uploads need."""

    def upload(
        self, sha256: str, size: int, *, parts: Sequence[str] | None = None, plan: str | None = None
    ) -> Upload:
        """Announce a file."""

    def upload_orders(self, upload_id: str, etags: Mapping[int, str] | None = None) -> Upload:
        """Fresh orders for what the store does not hold."""

    def upload_complete(self, upload_id: str, etags: Mapping[int, str] | None = None) -> Upload:
        """Say that all bytes are in the store."""


# --- up -------------------------------------------------------------------------------------------


def send_file(
    client: Uploads,
    path: Path,
    *,
    plan: str | None = None,
    progress: Progress | None = None,
    check_wait_s: float = CHECK_WAIT_S,
    known: tuple[str, int] | None = None,
    hashed: tuple[str, int, Sequence[str] | None] | None = None,
    announced: Upload | None = None,
    settled: bool = True,
) -> Upload:
    """Bring a file into the store and return its upload, in state ``stored``.

    A repeat after a crash goes on with the parts that are missing: the hub knows which. Where the store takes
    one stream as quickly as several, a file goes whole under one order, as long as what is left of it will
    take less than ``QUICK_S``; a line that turns out slower loses what it has sent, and goes on in parts.

    Args:
        plan: statement id of the plan whose run this file belongs to.
        check_wait_s: how long to wait for the hub to check the whole of a file of several parts, in seconds.
        known: digest and size of the file, from who has just written it. It then goes whole under one order,
            which the store checks as it comes; only a line that breaks on the way makes it go in parts, for
            which it is read again.
        announced: what the hub answered, where the whole of a ``known`` file was announced to it before.
        hashed: digest, size and part digests from who has just read it, as for a manifest: it is not read
            once more for them.
        settled: wait until the hub has it; else return once all bytes are in the store: in state
            ``checking``, or ``open`` where it went whole: the hub takes note when a coordinator asks for it.
    Raises:
        Rejected: ``E_FILE_CHANGED``; the file is no longer what was announced.
        Refused: the hub or the store does not take it.
        Unchecked: ``E_STORE_UNREACHABLE`` after several tries, ``E_UPLOAD_CHECKING`` (still being checked).
    """
    if known is not None and known[1] <= ORDER_BYTES:
        upload = announced or client.upload(*known, plan=plan)
        whole = _send_whole(client, path, upload, *known, progress, complete=settled)
        if whole is not None:
            return whole
    sha256, size, parts = hashed or hash_file(path)

    def announce() -> Upload:
        return client.upload(sha256, size, parts=parts, plan=plan)

    upload = announce()
    if known is None and parts and upload.one_stream and not upload.done_parts and size <= ORDER_BYTES:
        again = client.upload(sha256, size, plan=plan)
        whole = _send_whole(client, path, again, sha256, size, progress, quick_s=QUICK_S)
        if whole is not None:
            return whole
    upload = _send_parts(client, path, upload, (sha256, *(parts or ())), size, progress, announce)
    return wait_stored(client, upload, check_wait_s) if settled else upload


def _send_parts(
    client: Uploads,
    path: Path,
    upload: Upload,
    digests: Sequence[str],
    size: int,
    progress: Progress | None,
    announce: Callable[[], Upload],
) -> Upload:
    """Send what the store lacks of a file until the hub takes note of all of it.

    Another process may send the same file at the same time: it may join the parts under our hands, and once
    it has sent the file whole, the hub drops our upload. So either is asked for anew.
    """
    counter, attempt = Counter(size, progress), 0
    while upload.state == "open":
        counter.set(sum(_part_size(number, size) for number in upload.done_parts))
        etags, failure = _send_orders(path, upload.orders, digests, size, counter)
        if failure is None:
            try:
                upload = client.upload_complete(upload.id, etags)
                break
            except FedhubError as error:
                if error.code not in OVERTAKEN:
                    raise
                etags, failure = {}, error
        attempt = 0 if etags else attempt + 1
        if attempt == ATTEMPTS:
            raise failure
        time.sleep(wait_s(attempt))
        try:
            upload = client.upload_orders(upload.id, etags)
        except Unchecked as error:
            if error.code not in OVERTAKEN:
                raise
            upload = announce()
    if progress:
        progress(size, size)  # also where nothing was left to send
    return upload


def _send_whole(
    client: Uploads,
    path: Path,
    upload: Upload,
    sha256: str,
    size: int,
    progress: Progress | None,
    *,
    complete: bool = True,
    quick_s: float | None = None,
) -> Upload | None:
    """Send a file under one order for all of it; None when it broke on the way.

    Args:
        quick_s: give it up once what is left will take longer; None: never.
    """
    if upload.state != "open":
        if progress:
            progress(size, size)
        return upload
    counter = Counter(size, progress) if quick_s is None else Watch(size, progress, quick_s, LOOK_S)
    try:
        _, failure = _send_orders(path, upload.orders, (sha256,), size, counter)
    except Slow:
        return None
    except Refused as error:
        if error.status == 413:  # a proxy on the way takes no body as large
            return None
        raise
    if failure is not None:
        return None
    try:
        return client.upload_complete(upload.id) if complete else upload
    except FedhubError as error:
        if error.code not in OVERTAKEN:
            raise
        return None


def _part_size(number: int, size: int) -> int:
    """Bytes of part ``number`` from 1; of the whole file for 0."""
    return size if number == 0 else min(PART_BYTES, size - (number - 1) * PART_BYTES)


def _send_orders(
    path: Path, orders: Sequence[UploadOrder], digests: Sequence[str], size: int, counter: Counter
) -> tuple[dict[int, str], FedhubError | None]:
    """Send each order's bytes, several at a time: the ETags of those done, and why one was not."""
    etags: dict[int, str] = {}
    failures: list[Unchecked] = []

    def send(order: UploadOrder, peers: Peers, stop: threading.Event) -> None:
        try:
            etags[order.part] = _send_one(peers, path, order, digests[order.part], size, counter)
        except Unchecked as error:
            if error.code == "E_INPUT":  # of the file: no other try mends that
                raise
            failures.append(error)
            stop.set()

    in_streams(STREAMS, send, orders)
    return etags, failures[0] if failures else None


def _send_one(peers: Peers, path: Path, order: UploadOrder, sha256: str, size: int, counter: Counter) -> str:
    """Send one order's bytes, counted as they go; returns the ETag.

    Raises:
        Unchecked: worth another try, with a fresh order.
        Rejected: the file changed.
        Refused: the store will never take it.
    """
    offset, length, sent = max(0, order.part - 1) * PART_BYTES, _part_size(order.part, size), 0

    def gone(count: int) -> None:
        nonlocal sent
        sent += count
        counter.add(count)

    try:
        response = peers.put(order.url, order.headers, path, offset, length, gone)
        status, reason = response.status, f"answered {response.status}"
    except Broken as error:  # some stores refuse by closing the connection while we send
        status, reason = 0, str(error)
    except Slow:
        counter.add(-sent)
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    if status == 200:
        gone(length - sent)  # nothing but for an empty file, of which somebody is told all the same
        return (response.getheader("ETag") or "").strip('"')
    counter.add(-sent)
    if status in (0, 400):
        _check_unchanged(path, offset, length, sha256)
    where = f"{path.name} to {origin_of(order.url)}: {reason}"
    if status in (0, 403, 404, 408, 429) or status >= 500:  # 403, 404: the order or its upload has expired
        code = "E_HUB_FULL" if status == 507 else "E_STORE_UNREACHABLE"
        raise Unchecked(code, where, _HINTS.get(status, "is the store up?"))
    hint = f"what stands before the store takes no body of {length} bytes: {_LARGER}" if status == 413 else ""
    raise Refused("E_STORE_REFUSED", f"{path.name}: {origin_of(order.url)} {reason}", hint, status=status)


def _check_unchanged(path: Path, offset: int, length: int, sha256: str) -> None:
    """Return only when a range of the file is still what was announced."""
    try:
        found = digest_of(path, offset, length)
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != sha256:
        raise Rejected(
            "E_FILE_CHANGED",
            f"{path} changed while it was sent",
            "nothing was stored: send it again when it rests",
        )


def _unreadable(path: Path, error: OSError) -> Unchecked:
    return Unchecked(
        "E_INPUT",
        f"file {path}: cannot be read any more ({error.strerror})",
        "nothing was stored of it: put it back and send it again",
    )


def wait_stored(client: Uploads, upload: Upload, check_wait_s: float = CHECK_WAIT_S) -> Upload:
    """The upload once the hub has checked all of it; its parts are in the store already.

    Raises:
        Rejected: ``E_DIGEST``, the whole is not what was announced.
        Unchecked: ``E_UPLOAD_CHECKING``, it is still being checked.
    """
    began = time.monotonic()
    while upload.state != "stored":
        waited = time.monotonic() - began
        if waited > check_wait_s:
            raise Unchecked(
                "E_UPLOAD_CHECKING",
                f"the hub still checks upload {upload.id} after {check_wait_s:.0f} s",
                "send it again",
            )
        time.sleep(max(CHECK_POLL_S, min(1.0, waited / 10)))
        upload = client.upload_orders(upload.id)
    return upload


# --- down -----------------------------------------------------------------------------------------


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
                target = _Target(path.name, partial.file, size, counter, disk, by_hub)
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
    while count := _read_some(peers, answer, buffer):
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
            Piece(n, (n - 1) * PART_BYTES, _part_size(n, size), digest) for n, digest in enumerate(parts, 1)
        ]
    return [Piece(1, 0, size, sha256)]


@dataclass(frozen=True)
class _Target:
    """The file that is being filled."""

    name: str
    file: int
    size: int
    counter: Counter
    disk: EarlySync
    by_hub: bool

    def write(self, data: memoryview, offset: int) -> None:
        while data:
            count = os.pwrite(self.file, data, offset)
            data, offset = data[count:], offset + count
            self.disk.wrote(count)


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
    digest, buffer, done = hashlib.sha256(), memoryview(bytearray(min(CHUNK_BYTES, piece.size + 1))), 0
    while count := _read_some(peers, answer, buffer):
        if done + count > piece.size:
            peers.close()
            raise Rejected("E_SIZE", f"{name}: more than the {piece.size} bytes of part {piece.number} come")
        digest.update(buffer[:count])
        target.write(buffer[:count], piece.offset + done)
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


def _read_some(peers: Peers, answer: Answer, buffer: memoryview) -> int:
    try:
        return answer.response.readinto(buffer)
    except (HTTPException, OSError) as error:
        peers.close()
        raise Broken(answer.url, type(error).__name__) from error
