"""Where bytes lie: one small protocol over object stores, and the store that needs no server.

``BlobStore`` is what the rest of the house knows. ``FolderStore`` keeps one file per key under a folder and
signs upload orders and read URLs for ``storage.blob_server``; the S3 store is in ``storage.blobs_minio``. One
code path and one test suite hold for both.

An *order* is a signed request that can put exactly these bytes at exactly this key, until it expires: whoever
holds it can do nothing else, and the store itself refuses other bytes. Keys say where bytes lie, never what
they are: that is known once someone has checked the whole digest.
"""

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from storage.encoding import format_time
from storage.errors import Misuse, Refused, Rejected, Unchecked
from storage.folder_parts import BOOT, check_part, join_parts, note_boot, same_boot
from storage.order_signing import LASTING, OrderSigner

CHUNK_BYTES = 1 << 20
STREAM_BYTES = 4 << 20  # of an object at a time: handing one to another thread costs little beside it
MAX_KEY_BYTES = 1000
ORDER_BYTES = 5 << 30  # the most that one order carries: S3 servers take no more in one request
ORDER_S = 900  # seconds that an upload order lives: S3's own rule for a signed header
NOT_THERE = "mend FEDHUB_STORE_URL, or bring the store back: only the first start of a hub makes one"
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Order:
    """A signed upload request: send ``method url`` with these headers and the bytes that it names."""

    method: str
    url: str
    headers: dict[str, str]
    expires: str  # YYYY-MM-DDThh:mm:ssZ
    trailer: bool = False  # the body goes in chunks, and its digest after them (``storage.aws_chunked``)


class BlobStore(Protocol):
    """Immutable bytes under slash-separated keys. A missing key raises ``Unchecked`` with ``E_NO_BLOB``."""

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        """Store durably, whole or not at all; ``create_only`` refuses a taken key (``E_BLOB_EXISTS``)."""

    def get(self, key: str) -> bytes:
        """All bytes of a small object."""

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Bytes from ``offset``, fewer than ``length`` only at the object's end."""

    def stream(self, key: str) -> Generator[bytes, None, None]:
        """All bytes in order, in pieces of at most a few MiB."""

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None where there is none."""

    def written_at(self, key: str) -> float | None:
        """When the object was written, seconds since 1970 by the store's own clock; None: none is there."""

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that start with ``prefix``, ascending."""

    @property
    def one_stream(self) -> bool:
        """Whether one order brings a large file as quickly as parts side by side would.

        Parts cost more afterwards: they are joined, and the whole is read once.
        """

    def order(self, key: str, sha256: str, size: int, *, lasting: bool = False) -> Order:
        """A request that puts the bytes of this digest and size at ``key``.

        Args:
            lasting: ``sync`` will be asked for as soon as they are there.
        """

    def unhashed_order(self, key: str, size: int) -> tuple[Order, str | None]:
        """A request that puts any ``size`` bytes, of which the store itself finds the digest as they come.

        They are nobody's before ``take_unhashed``. Only for stores with ``one_stream``.

        Returns:
            The order; the id of an upload of parts to abort, where the store keeps them as one.
        """

    def take_unhashed(self, key: str, upload_id: str | None, sha256: str, size: int) -> bool:
        """Whether the bytes that came have this digest and size by the store's own finding.

        Then they are the object, which no order can change any more.
        """

    def begin_parts(self, key: str) -> str:
        """Start an object of several parts; returns the upload's id."""

    def part_order(self, key: str, upload_id: str, number: int, sha256: str, size: int) -> Order:
        """A request that puts part ``number`` (from 1); its answer's ``ETag`` names the part."""

    def stored_parts(self, key: str, upload_id: str) -> dict[int, str]:
        """Parts that the store holds by now: number -> ETag."""

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> None:
        """Store part ``number`` (from 1; all but the last of at least 5 MiB) ourselves."""

    def complete_parts(self, key: str, upload_id: str, etags: dict[int, str]) -> None:
        """Join the parts 1..n into the object. Repeating it after it succeeded is no error.

        The object outlives a power cut only after ``sync``.
        """

    def abort_parts(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; an unknown one is no error."""

    def unfinished(self) -> Iterator[tuple[str, str, float]]:
        """Key, id and beginning (seconds since 1970) of each upload of parts neither joined nor dropped."""

    def sync(self, key: str) -> None:
        """Return once an object that an order has brought would outlive a power cut."""

    def signed_url(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        """URL that reads this object, without any other credential, for ``expires_s`` seconds."""

    def part_url(self, key: str, upload_id: str, number: int, size: int, *, expires_s: int) -> str:
        """URL at which a client without headers PUTs any ``size`` bytes as part ``number``, until completion.

        The store does not check what they are: nothing may lean on the joined object before somebody has
        hashed it. Whole objects have no such URLs, since those could still be overwritten after the check.
        """


def is_key(key: str) -> bool:
    """Whether ``check_key`` accepts it."""
    return len(key) <= MAX_KEY_BYTES and _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """The key itself, if it is one.

    Parts hold letters, digits and ``._-``, and none starts with a dot: no ``..``, hidden file or ``//``.

    >>> check_key("log/tile/0/x001/234.p/5")
    'log/tile/0/x001/234.p/5'
    """
    if not is_key(key):
        raise Misuse("E_BLOB_KEY", f"{key[:80]!r} is not a key of the object store")
    return key


def no_blob(key: str) -> Unchecked:
    return Unchecked("E_NO_BLOB", f"the object store has no object {key}")


def blob_exists(key: str) -> Refused:
    return Refused("E_BLOB_EXISTS", f"the object {key} exists already", status=409)


def no_upload(upload_id: str) -> Unchecked:
    return Unchecked("E_NO_UPLOAD", f"the object store has no unfinished upload {upload_id[:80]}")


def check_parts(upload_id: str, etags: dict[int, str], stored: dict[int, str]) -> list[int]:
    """Part numbers in order, if they run from 1 without gaps and the store holds each of them."""
    numbers = sorted(etags)
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise Refused(
            "E_PARTS", f"upload {upload_id}: parts {numbers[:20]} do not run from 1 without gaps", status=400
        )
    for number in numbers:
        if stored.get(number) != etags[number]:
            raise Refused(
                "E_PARTS", f"upload {upload_id}: the store does not hold part {number} as named", status=400
            )
    return numbers


# --- a folder -----------------------------------------------------------------------------------------------


class FolderStore:
    """Objects as files under ``root``; orders and URLs point to the blob server at ``public_url``."""

    one_stream = True  # the blob server hashes beside receiving, and the disk is slower than that

    def __init__(
        self, root: Path, public_url: str, secret: bytes, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._root = root
        self._url = public_url.rstrip("/")
        self._signer = OrderSigner(secret)
        self._clock = clock
        self._incoming = root / ".incoming"
        self._uploads = root / ".parts"
        for folder in (self._incoming, self._uploads):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """The file of this key, whether or not it exists."""
        return self._root / check_key(key)

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        path = self.path(key)
        incoming = self.new_incoming()
        try:
            with incoming.open("xb") as stream:
                stream.write(data)
                sync_file(stream)
            self.install(incoming, path, create_only=create_only)
        finally:
            incoming.unlink(missing_ok=True)

    def new_incoming(self) -> Path:
        """A fresh name on the same file system, outside every key."""
        return self._incoming / secrets.token_hex(16)

    def install(self, incoming: Path, path: Path, *, create_only: bool = False) -> None:
        """Make a finished file visible at its final path, in one step; its name is then on the disk."""
        _make_folder(path.parent)
        if create_only:
            try:
                os.link(incoming, path)
            except FileExistsError:
                raise blob_exists(path.relative_to(self._root).as_posix()) from None
        else:
            incoming.replace(path)
        sync_folder(path.parent)

    def beside(self, name: str) -> Path:
        """Where a process on this machine leaves a file of its own for ``take``."""
        return self._incoming / f"beside-{name}"

    def take(self, name: str, key: str, sha256: str) -> bool:
        """Read the file that was left under a name, and make it the object; false: there is none.

        Neither its bytes nor its name need be on the disk yet (``sync``).

        Raises:
            Rejected: ``E_DIGEST``; the file is gone.
        """
        mine = self.new_incoming()
        try:
            self.beside(name).replace(mine)  # out of reach: what is read is what becomes the object
        except FileNotFoundError:
            return False
        try:
            with mine.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != sha256:
                raise Rejected("E_DIGEST", f"the file left for {key} has digest {found}, expected {sha256}")
            path = self.path(key)
            _make_folder(path.parent)
            mine.replace(path)
        finally:
            mine.unlink(missing_ok=True)
        return True

    def sweep(self, before: float) -> None:
        """Remove unfinished files that nobody has written to since ``before`` (Unix seconds)."""
        for path in self._incoming.iterdir():
            try:
                if path.stat().st_mtime < before:
                    path.unlink()
            except FileNotFoundError:  # finished meanwhile
                continue

    def get(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def read(self, key: str, offset: int, length: int) -> bytes:
        with self.open(key) as stream:
            stream.seek(offset)
            return stream.read(length)

    def stream(self, key: str) -> Generator[bytes, None, None]:
        with self.open(key) as stream:
            while chunk := stream.read(STREAM_BYTES):
                yield chunk

    def open(self, key: str) -> BinaryIO:
        """The object as an open file."""
        try:
            return self.path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise no_blob(key) from None

    def size(self, key: str) -> int | None:
        path = self.path(key)
        return path.stat().st_size if path.is_file() else None

    def written_at(self, key: str) -> float | None:
        try:
            return self.path(key).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        start = self.path(folder) if folder else self._root
        keys = []
        for where, folders, files in os.walk(start):
            folders[:] = [name for name in folders if not name.startswith(".")]
            base = Path(where).relative_to(self._root)
            keys += [(base / name).as_posix() for name in files if not name.startswith(".")]
        yield from sorted(key for key in keys if key.startswith(prefix))

    def sync(self, key: str) -> None:
        with self.open(key) as stream:
            sync_file(stream)

    def order(self, key: str, sha256: str, size: int, *, lasting: bool = False) -> Order:
        order = self._order(check_key(key), "", sha256, size)
        if lasting:
            order.headers[LASTING] = "1"
        return order

    def _order(self, key: str, query: str, sha256: str, size: int) -> Order:
        expires = int(self._clock()) + ORDER_S
        headers = self._signer.order_headers(key, query, sha256, size, expires)
        return Order("PUT", f"{self._url}/{key}{query}", headers, format_time(expires))

    def unhashed_order(self, key: str, size: int) -> tuple[Order, str | None]:
        upload_id = self.begin_parts(key)
        url = self.part_url(key, upload_id, 1, size, expires_s=ORDER_S)
        expires = format_time(int(self._clock()) + ORDER_S)
        return Order("PUT", url, {LASTING: "1"}, expires), upload_id

    def take_unhashed(self, key: str, upload_id: str | None, sha256: str, size: int) -> bool:
        came = {} if upload_id is None else self.stored_parts(key, upload_id)
        if not came:
            raise no_blob(key)
        if upload_id is None or came != {1: sha256}:
            return False
        self.complete_parts(key, upload_id, {1: sha256})
        return self.size(key) == size

    def begin_parts(self, key: str) -> str:
        check_key(key)
        upload_id = secrets.token_hex(16)
        folder = self._uploads / upload_id
        folder.mkdir()
        note_boot(folder)
        (folder / "key").write_text(key)
        sync_folder(self._uploads)
        return upload_id

    def part_order(self, key: str, upload_id: str, number: int, sha256: str, size: int) -> Order:
        self.upload_folder(key, upload_id)
        return self._order(key, f"?partNumber={number}&uploadId={upload_id}", sha256, size)

    def upload_folder(self, key: str, upload_id: str) -> Path:
        """Where the parts of this upload lie; the upload must be one of this key."""
        folder = self._uploads / upload_id
        try:
            known = bool(_UPLOAD_ID.fullmatch(upload_id)) and (folder / "key").read_text() == key
        except FileNotFoundError:
            known = False
        if not known:
            raise no_upload(upload_id)
        return folder

    def stored_parts(self, key: str, upload_id: str) -> dict[int, str]:
        names = [
            path.name.split(".")
            for path in self.upload_folder(key, upload_id).iterdir()
            if path.name not in ("key", BOOT)
        ]
        return {int(number): etag for number, etag in names}

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> None:
        folder, incoming = self.upload_folder(key, upload_id), self.new_incoming()
        try:
            with incoming.open("xb") as stream:
                stream.write(data)
                sync_file(stream)
            self.install_part(incoming, folder, number, hashlib.sha256(data).hexdigest())
        finally:
            incoming.unlink(missing_ok=True)

    def install_part(self, incoming: Path, folder: Path, number: int, sha256: str) -> None:
        """Make a finished file the part of an upload: the newest bytes of a part count.

        Not brought to the disk: a part that a power cut damages or loses is found out and sent again.
        """
        try:
            incoming.replace(folder / f"{number}.{sha256}")
        except FileNotFoundError:
            raise no_upload(folder.name) from None  # dropped meanwhile
        for older in folder.glob(f"{number}.*"):
            if older.name != f"{number}.{sha256}":
                older.unlink(missing_ok=True)

    def complete_parts(self, key: str, upload_id: str, etags: dict[int, str]) -> None:
        path, incoming = self.path(key), self.new_incoming()
        try:
            folder = self.upload_folder(key, upload_id)
            numbers = check_parts(upload_id, etags, self.stored_parts(key, upload_id))
            intact = same_boot(folder)
            parts = [folder / f"{number}.{etags[number]}" for number in numbers]
            for number, part in zip(numbers, parts, strict=True):
                if not intact:
                    check_part(part, etags[number])
            join_parts(incoming, parts)
            self.install(incoming, path)
        except (Unchecked, FileNotFoundError) as error:
            if path.is_file():
                return  # joined before, or at this moment by another process
            raise no_upload(upload_id) from error
        finally:
            incoming.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def unfinished(self) -> Iterator[tuple[str, str, float]]:
        for folder in sorted(self._uploads.iterdir()):
            try:
                yield (folder / "key").read_text(), folder.name, (folder / "key").stat().st_mtime
            except FileNotFoundError:  # just begun, or joined meanwhile
                continue

    def abort_parts(self, key: str, upload_id: str) -> None:
        if _UPLOAD_ID.fullmatch(upload_id):
            shutil.rmtree(self._uploads / upload_id, ignore_errors=True)

    def signed_url(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        query = self._signer.read_query(check_key(key), int(self._clock()) + expires_s, filename)
        return f"{self._url}/{key}?{query}"

    def part_url(self, key: str, upload_id: str, number: int, size: int, *, expires_s: int) -> str:
        expires = int(self._clock()) + expires_s
        return (
            f"{self._url}/{key}?{self._signer.part_query(check_key(key), upload_id, number, size, expires)}"
        )


def sync_file(stream: BinaryIO) -> None:
    """Bring what was written to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries (a rename, a new name) to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    """Like ``mkdir -p``, with each new folder's name brought to the disk."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync_folder(new.parent)


def store_secret(root: Path) -> bytes:
    """The secret that signs for this folder's blob server: made on first use, mode 0600."""
    path = root / ".secret"
    root.mkdir(parents=True, exist_ok=True)
    fresh = root / f".secret.{secrets.token_hex(8)}"
    if not path.exists():
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(secrets.token_hex(32).encode())
            sync_file(stream)
        try:
            os.link(fresh, path)  # two starting at once: one secret wins, both read it
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise Unchecked(
            "E_INPUT", f"the store's secret {path} has mode {mode:04o}, expected 0600", f"chmod 600 {path}"
        )
    return path.read_bytes()
