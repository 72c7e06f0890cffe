"""A store in memory, for tests of what lies above one: a stand-in, never a store of the product."""

import hashlib
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from urllib.parse import quote

from storage.blobs import (
    CHUNK_BYTES,
    ORDER_S,
    Order,
    blob_exists,
    check_key,
    check_parts,
    no_blob,
    no_upload,
)
from storage.encoding import format_time
from storage.errors import Refused
from storage.order_signing import OrderSigner


class MemoryStore:
    """``storage.blobs.BlobStore`` in a dictionary; ``send`` stands for the store's own door."""

    one_stream = False

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.objects: dict[str, bytes] = {}
        self.times: dict[str, float] = {}  # of objects and of unfinished uploads
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self._signer = OrderSigner(secrets.token_bytes(32))
        self._clock = clock

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        if create_only and check_key(key) in self.objects:
            raise blob_exists(key)
        self.objects[check_key(key)] = bytes(data)
        self.times[key] = self._clock()

    def get(self, key: str) -> bytes:
        if check_key(key) not in self.objects:
            raise no_blob(key)
        return self.objects[key]

    def read(self, key: str, offset: int, length: int) -> bytes:
        return self.get(key)[offset : offset + length]

    def stream(self, key: str) -> Generator[bytes, None, None]:
        data = self.get(key)
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]

    def size(self, key: str) -> int | None:
        return len(self.objects[key]) if check_key(key) in self.objects else None

    def written_at(self, key: str) -> float | None:
        return self.times[key] if check_key(key) in self.objects else None

    def delete(self, key: str) -> None:
        self.objects.pop(check_key(key), None)

    def list(self, prefix: str) -> Iterator[str]:
        yield from sorted(key for key in self.objects if key.startswith(prefix))

    def sync(self, key: str) -> None:
        self.get(key)  # nothing in memory outlives a power cut; a missing key is the same error

    def order(self, key: str, sha256: str, size: int, *, lasting: bool = False) -> Order:
        del lasting
        return self._order(check_key(key), "", sha256, size)

    def _order(self, key: str, query: str, sha256: str, size: int) -> Order:
        expires = int(self._clock()) + ORDER_S
        headers = self._signer.order_headers(key, query, sha256, size, expires)
        return Order("PUT", f"memory://store/{key}{query}", headers, format_time(expires))

    def begin_parts(self, key: str) -> str:
        upload_id = secrets.token_hex(16)
        self.uploads[upload_id] = (check_key(key), {})
        self.times[upload_id] = self._clock()
        return upload_id

    def part_order(self, key: str, upload_id: str, number: int, sha256: str, size: int) -> Order:
        self._parts(key, upload_id)
        return self._order(key, f"?partNumber={number}&uploadId={upload_id}", sha256, size)

    def _parts(self, key: str, upload_id: str) -> dict[int, bytes]:
        owner, parts = self.uploads.get(upload_id, ("", {}))
        if owner != key:
            raise no_upload(upload_id)
        return parts

    def stored_parts(self, key: str, upload_id: str) -> dict[int, str]:
        return {n: hashlib.sha256(data).hexdigest() for n, data in self._parts(key, upload_id).items()}

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> None:
        self._parts(key, upload_id)[number] = bytes(data)

    def complete_parts(self, key: str, upload_id: str, etags: dict[int, str]) -> None:
        if upload_id not in self.uploads and key in self.objects:
            return
        parts = self._parts(key, upload_id)
        numbers = check_parts(upload_id, etags, self.stored_parts(key, upload_id))
        self.put(key, b"".join(parts[number] for number in numbers))
        del self.uploads[upload_id]

    def unfinished(self) -> Iterator[tuple[str, str, float]]:
        for upload_id, (key, _parts) in sorted(self.uploads.items()):
            yield key, upload_id, self.times[upload_id]

    def abort_parts(self, key: str, upload_id: str) -> None:
        self.uploads.pop(upload_id, None)

    def signed_url(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        query = self._signer.read_query(check_key(key), int(self._clock()) + expires_s, filename)
        return f"memory://store/{quote(key)}?{query}"

    def part_url(self, key: str, upload_id: str, number: int, size: int, *, expires_s: int) -> str:
        expires = int(self._clock()) + expires_s
        query = self._signer.part_query(check_key(key), upload_id, number, size, expires)
        return f"memory://store/{key}?{query}"

    def send(self, order: Order, data: bytes) -> str:
        """Do what the store does with this order's request; returns the ETag.

        Raises:
            Refused: a wrong signature, an expired order (403), or bytes that the order does not name (400).
        """
        target = order.url.removeprefix("memory://store/")
        key, mark, rest = target.partition("?")
        query = mark + rest
        sha256, size = self._signer.check_order(key, query, order.headers, int(self._clock()))
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise Refused(
                "E_DIGEST", f"the bytes sent for {key} are not those that the order names", status=400
            )
        if query:
            fields = dict(item.split("=") for item in rest.split("&"))
            self._parts(key, fields["uploadId"])[int(fields["partNumber"])] = data
        else:
            self.put(key, data)
        return sha256
