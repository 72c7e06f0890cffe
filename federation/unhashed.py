"""A large file on its way to the store while it is hashed: the digest follows the bytes.

Where a push would first read a file for its digest and then once more to send it, both go on at once. The
hub agrees only where the store finds the digest itself and nothing of this size need be left unsent. Whatever
goes wrong on the way, the file is then sent by its digest, as if this had not been tried.

Read ``sent_unhashed``.
"""

import stat
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from federation.origins import Broken, Peers
from federation.streams import Progress, Slow, Watch
from federation.wire import UnhashedUpload, Upload, UploadOrder
from storage.blobs import ORDER_BYTES
from storage.errors import FedhubError
from storage.manifests import PART_BYTES

# What the hub says of bytes that are not, or not all, what was hashed here.
_OTHERS = ("E_INCOMPLETE", "E_NOT_FOUND", "E_DIGEST")

End = Callable[[str], Upload | None]


class UnhashedUploads(Protocol):
    """The part of a hub client that this needs."""

    def upload_unhashed(self, size: int) -> UnhashedUpload | None:
        """Announce a file whose digest will follow; None: the hub wants the digest first."""

    def unhashed_complete(self, upload_id: str, sha256: str) -> Upload:
        """Say that all bytes are in the store, and what their digest is."""


@contextmanager
def sent_unhashed(client: UnhashedUploads, path: Path, progress: Progress | None = None) -> Iterator[End]:
    """Send a file in a thread while the ``with`` block hashes it.

    The value is to be called with the digest once that is known. It returns the stored upload when all has
    gone; None where nothing was sent, or not well: then the file is sent by its digest. A block that ends
    without that call ends the sending.

    Raises:
        FedhubError: what the hub says, but for what another way of sending may mend.
    """
    size = _size(path)
    upload = client.upload_unhashed(size) if PART_BYTES < size <= ORDER_BYTES else None
    if upload is None:
        yield lambda sha256: None
        return
    digest, order, upload_id = Future[str](), upload.order, upload.id
    with ThreadPoolExecutor(1, thread_name_prefix="transfer") as pool:
        sent = pool.submit(_send, path, size, order, digest, progress)

        def end(sha256: str) -> Upload | None:
            digest.set_result(sha256)
            stored = _complete(client, upload_id, sha256) if sent.result() else None
            if stored is None and progress:
                progress(0, size)  # nothing of what went counts
            return stored

        try:
            yield end
        finally:
            digest.cancel()


def _size(path: Path) -> int:
    """Bytes of a regular file; 0 of anything else, which whoever hashes it will refuse."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _send(path: Path, size: int, order: UploadOrder, digest: Future[str], progress: Progress | None) -> bool:
    """Whether all bytes went; ends soon once ``digest`` is cancelled."""
    counter, peers = Watch(size, progress), Peers()

    def gone(count: int) -> None:
        if digest.cancelled():
            raise CancelledError
        counter.add(count)

    trailer = digest.result if order.trailer else None
    try:
        answer = peers.put(order.url, order.headers, path, 0, size, gone, trailer=trailer)
        return answer.status == 200
    except (Broken, Slow, OSError, CancelledError):
        return False
    finally:
        peers.close()


def _complete(client: UnhashedUploads, upload_id: str, sha256: str) -> Upload | None:
    try:
        return client.unhashed_complete(upload_id, sha256)
    except FedhubError as error:
        if error.code not in _OTHERS:
            raise
        return None
