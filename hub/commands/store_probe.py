"""Whether an object store keeps the promises that the hub leans on, tried out with a few small objects.

Each finding names one promise. ``Finding.vital`` says that the hub must not run on a store which breaks it.
Everything written here is removed again.
"""

import hashlib
import http.client
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from storage.blobs import BlobStore, Order
from storage.errors import FedhubError

TIMEOUT_S = 10.0
_CONTENT = b"fedhub store probe: sixty-four bytes that mean nothing to anybody."


@dataclass(frozen=True)
class Finding:
    """One promise, whether it was kept, and what was seen."""

    promise: str
    kept: bool
    seen: str
    vital: bool = True


def probe(store: BlobStore) -> list[Finding]:
    """Try every promise; a store that does not answer at all ends the list early."""
    folder = f"probe/{secrets.token_hex(8)}"
    findings: list[Finding] = []
    tries: list[Callable[[BlobStore, str], Finding]] = [
        _right_bytes,
        _wrong_bytes,
        _cut,
        _create_only,
        _range,
        _unsigned,
    ]
    for number, attempt in enumerate(tries):
        key = f"{folder}/{number}"
        try:
            findings.append(attempt(store, key))
        except (OSError, FedhubError) as error:
            findings.append(Finding(attempt.__doc__ or key, False, f"no answer: {error}"))
        finally:
            store.delete(key)
    return findings


def _right_bytes(store: BlobStore, key: str) -> Finding:
    """an order puts the bytes it names"""
    status = _send(_order(store, key), _CONTENT)
    kept = status in (200, 201, 204) and store.get(key) == _CONTENT
    return Finding(_promise(_right_bytes), kept, f"status {status}")


def _wrong_bytes(store: BlobStore, key: str) -> Finding:
    """an order refuses other bytes"""
    wrong = bytes([_CONTENT[0] ^ 1]) + _CONTENT[1:]
    status = _send(_order(store, key), wrong)
    return Finding(_promise(_wrong_bytes), store.size(key) is None, f"status {status}")


def _cut(store: BlobStore, key: str) -> Finding:
    """a cut upload is never visible"""
    _send(_order(store, key), _CONTENT, cut=10)
    return Finding(
        _promise(_cut), store.size(key) is None, "nothing is there" if store.size(key) is None else "a stump"
    )


def _create_only(store: BlobStore, key: str) -> Finding:
    """a key is written once"""
    store.put(key, _CONTENT)
    try:
        store.put(key, b"other", create_only=True)
        refused = False
    except FedhubError as error:
        refused = error.code == "E_BLOB_EXISTS"
    return Finding(
        _promise(_create_only),
        refused and store.get(key) == _CONTENT,
        "refused" if refused else "overwritten",
    )


def _range(store: BlobStore, key: str) -> Finding:
    """a signed address reads a range"""
    store.put(key, _CONTENT)
    status, body = _fetch(store.signed_url(key, expires_s=30), {"Range": "bytes=7-11"})
    return Finding(
        _promise(_range), status == 206 and body == _CONTENT[7:12], f"status {status}", vital=False
    )


def _unsigned(store: BlobStore, key: str) -> Finding:
    """without a signature nothing is read"""
    store.put(key, _CONTENT)
    address = urlsplit(store.signed_url(key, expires_s=30))
    status, _body = _fetch(f"{address.scheme}://{address.netloc}{address.path}", {})
    return Finding(_promise(_unsigned), status in (401, 403, 404), f"status {status}")


def _promise(attempt: Callable[[BlobStore, str], Finding]) -> str:
    return attempt.__doc__ or attempt.__name__


def _order(store: BlobStore, key: str) -> Order:
    return store.order(key, hashlib.sha256(_CONTENT).hexdigest(), len(_CONTENT))


def _connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return kind(parts.netloc, timeout=TIMEOUT_S), path


def _send(order: Order, data: bytes, *, cut: int = 0) -> int:
    """Status of an upload, 0 when the store closed the door; ``cut`` bytes are announced and not sent."""
    connection, path = _connect(order.url)
    try:
        connection.putrequest(order.method, path, skip_host=True, skip_accept_encoding=True)
        headers = {"Host": urlsplit(order.url).netloc, **order.headers, "Content-Length": str(len(data))}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(data[: len(data) - cut])
        return 0 if cut else connection.getresponse().status
    except (ConnectionError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _fetch(url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    connection, path = _connect(url)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read(1 << 16)
    finally:
        connection.close()
