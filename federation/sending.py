"""Large files to the object store: by upload orders, in several streams, resumable.

Each order names the digest of what it carries, so the store itself refuses other bytes. Standard library
only, because general HTTP clients spend more time per byte than SHA-256 does. Read ``send_file``.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from federation.origins import Broken, Peers, origin_of
from federation.partials import digest_of
from federation.streams import ATTEMPTS, Counter, Progress, Slow, Watch, in_streams, wait_s
from federation.unhashed import UnhashedUploads, sent_unhashed
from federation.wire import Upload, UploadOrder
from storage.blobs import ORDER_BYTES
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.manifests import PART_BYTES, hash_file, part_length

STREAMS = 4  # up: the store checks and writes each
CHECK_POLL_S = 0.05
CHECK_WAIT_S = 600.0
# What the hub says of an upload that another process has ended meanwhile, or time.
OVERTAKEN = ("E_INCOMPLETE", "E_NOT_FOUND")
_HINTS = {
    403: "the store does not take what the hub signed: the hub's operator looks at clocks and keys",
    507: "the store has no room: tell the hub's operator",
}
_LARGER = "the hub's operator lets it pass 32 MiB at least (nginx: client_max_body_size)"


class Uploads(UnhashedUploads, Protocol):
    """The part of a hub client that uploads need."""

    def upload(
        self, sha256: str, size: int, *, parts: Sequence[str] | None = None, plan: str | None = None
    ) -> Upload:
        """Announce a file."""

    def upload_orders(self, upload_id: str, etags: Mapping[int, str] | None = None) -> Upload:
        """Fresh orders for what the store does not hold."""

    def upload_complete(self, upload_id: str, etags: Mapping[int, str] | None = None) -> Upload:
        """Say that all bytes are in the store."""


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
    take seconds (``Watch``); a line that turns out slower loses what it has sent, and goes on in parts. A
    file that has yet to be hashed goes so while it is.

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
    if known is None and hashed is None and plan is None:
        with sent_unhashed(client, path, progress) as end:
            hashed = hash_file(path)
            sent = end(hashed[0])
        if sent is not None:
            return sent
    sha256, size, parts = hashed or hash_file(path)

    def announce() -> Upload:
        return client.upload(sha256, size, parts=parts, plan=plan)

    upload = announce()
    if known is None and parts and upload.one_stream and not upload.done_parts and size <= ORDER_BYTES:
        again = client.upload(sha256, size, plan=plan)
        whole = _send_whole(client, path, again, sha256, size, progress, watched=True)
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
        counter.set(sum(part_length(number, size) for number in upload.done_parts))
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
    watched: bool = False,
) -> Upload | None:
    """Send a file under one order for all of it; None when it broke on the way.

    Args:
        watched: give it up on a line that turns out slow.
    """
    if upload.state != "open":
        if progress:
            progress(size, size)
        return upload
    counter = Watch(size, progress) if watched else Counter(size, progress)
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


def _length(order: UploadOrder, size: int) -> int:
    return part_length(order.part, size) if order.part else size


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
    offset, length, sent = max(0, order.part - 1) * PART_BYTES, _length(order, size), 0

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
