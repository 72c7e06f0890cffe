"""Whether an object store keeps the promises that the hub's safety leans on, tried out with small objects.

Each finding names one promise. ``Finding.vital`` says that a hub must not run on a store which breaks it. The
probe talks to the store as clients do, by orders and signed URLs, and removes all that it wrote. It takes
about three seconds, since one promise is that a URL stops working.
"""

import hashlib
import http.client
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from storage import aws_chunked
from storage.blobs import BlobStore, Order
from storage.errors import FedhubError

TIMEOUT_S = 10.0
SETTLE_S = 0.3  # for a store to notice that a client is gone
_CONTENT = b"fedhub store probe: sixty-six bytes that mean nothing to anybody.\n"
_WRONG = bytes([_CONTENT[0] ^ 1]) + _CONTENT[1:]
_SHA256 = hashlib.sha256(_CONTENT).hexdigest()
_DONE = (200, 201, 204)


@dataclass(frozen=True)
class Finding:
    """One promise, whether it was kept, and what was seen."""

    promise: str
    kept: bool
    seen: str
    vital: bool = True


Attempt = Callable[[BlobStore, str], tuple[bool, str]]


def probe(store: BlobStore) -> list[Finding]:
    """Try every promise, each on a key of its own.

    What a store cannot answer at all counts as a promise broken; the text says why.
    """
    folder, findings = f"probe/{secrets.token_hex(8)}", []
    for number, (promise, attempt, vital) in enumerate(PROMISES):
        key = f"{folder}/{number}"
        try:
            kept, seen = attempt(store, key)
        except (OSError, http.client.HTTPException, FedhubError) as error:
            kept, seen = False, f"no answer: {error}"
        findings.append(Finding(promise, kept, seen, vital))
    for number in range(len(PROMISES)):
        try:
            store.delete(f"{folder}/{number}")
        except FedhubError:
            break  # the store is away, which the findings say already
    return findings


def _right_bytes(store: BlobStore, key: str) -> tuple[bool, str]:
    status = _send(_order(store, key), _CONTENT)
    return status in _DONE and store.get(key) == _CONTENT, _status(status)


def _wrong_bytes(store: BlobStore, key: str) -> tuple[bool, str]:
    statuses = [_send(_order(store, key), body) for body in (_WRONG, _CONTENT[:-1], _CONTENT + b"x")]
    return store.size(key) is None and not set(statuses) & set(_DONE), _status(*statuses)


def _another_place(store: BlobStore, key: str) -> tuple[bool, str]:
    order, other = _order(store, f"{key}x"), f"{key}y"
    moved = Order(order.method, order.url.replace(f"{key}x", other), order.headers, order.expires)
    status = _send(moved, _CONTENT)
    kept = store.size(other) is None and status not in _DONE
    store.delete(other)
    return kept, _status(status)


def _cut(store: BlobStore, key: str) -> tuple[bool, str]:
    _send(_order(store, key), _CONTENT, cut=10)
    time.sleep(SETTLE_S)
    size = store.size(key)
    return size is None, "nothing is there" if size is None else f"a stump of {size} bytes"


def _parts(store: BlobStore, key: str) -> tuple[bool, str]:
    upload = store.begin_parts(key)
    try:
        order = store.part_order(key, upload, 1, _SHA256, len(_CONTENT))
        wrong, right = _send(order, _WRONG), _send(order, _CONTENT)
        hidden = store.size(key) is None
        store.complete_parts(key, upload, store.stored_parts(key, upload))
        whole = store.get(key) == _CONTENT
    finally:
        store.abort_parts(key, upload)
    return whole and hidden and wrong not in _DONE and right in _DONE, _status(wrong, right)


def _unhashed(store: BlobStore, key: str) -> tuple[bool, str]:
    if not store.one_stream:
        return True, "not asked of this store"
    order, upload = store.unhashed_order(key, len(_CONTENT))
    try:
        wrong = _send(order, _CONTENT, trailer=hashlib.sha256(_WRONG).hexdigest()) if order.trailer else 0
        right = _send(order, _CONTENT, trailer=_SHA256)
        taken = store.take_unhashed(key, upload, _SHA256, len(_CONTENT))
        late = _send(order, _WRONG, trailer=hashlib.sha256(_WRONG).hexdigest())
        kept = store.get(key) == _CONTENT
    finally:
        if upload is not None:
            store.abort_parts(key, upload)
    return taken and kept and not {wrong, late} & set(_DONE), _status(wrong, right, late)


def _create_only(store: BlobStore, key: str) -> tuple[bool, str]:
    store.put(key, _CONTENT)
    try:
        store.put(key, _WRONG, create_only=True)
    except FedhubError as error:
        return error.code == "E_BLOB_EXISTS" and store.get(key) == _CONTENT, "refused"
    return False, "overwritten"


def _read_signed(store: BlobStore, key: str) -> tuple[bool, str]:
    store.put(key, _CONTENT)
    status, body = _fetch(store.signed_url(key, expires_s=30), {})
    return status == 200 and body == _CONTENT, _status(status)


def _range(store: BlobStore, key: str) -> tuple[bool, str]:
    store.put(key, _CONTENT)
    status, body = _fetch(store.signed_url(key, expires_s=30), {"Range": "bytes=7-11"})
    return status == 206 and body == _CONTENT[7:12], _status(status)


def _unsigned(store: BlobStore, key: str) -> tuple[bool, str]:
    store.put(key, _CONTENT)
    url = store.signed_url(key, expires_s=30)
    status, _ = _fetch(url.partition("?")[0], {})
    forged, _ = _fetch(url[:-1] + ("0" if url[-1] != "0" else "1"), {})
    return not {status, forged} & {200, 206}, _status(status, forged)


def _expired(store: BlobStore, key: str) -> tuple[bool, str]:
    store.put(key, _CONTENT)
    url = store.signed_url(key, expires_s=1)
    time.sleep(2.2)
    status, _ = _fetch(url, {})
    return status not in (200, 206), _status(status)


PROMISES: tuple[tuple[str, Attempt, bool], ...] = (
    ("an order puts the bytes it names", _right_bytes, True),
    ("an order refuses other bytes", _wrong_bytes, True),
    ("an order is good for one key", _another_place, True),
    ("a cut upload is never visible", _cut, True),
    ("parts are checked, and visible only when completed", _parts, True),
    ("bytes sent before their digest are hashed by the store, and stay as they are", _unhashed, True),
    ("a key is written once where the hub says so", _create_only, True),
    ("a signed URL reads", _read_signed, True),
    ("a signed URL reads a range", _range, False),
    ("without a right signature nothing is read", _unsigned, True),
    ("a signed URL stops working in time", _expired, True),
)


def _order(store: BlobStore, key: str) -> Order:
    return store.order(key, _SHA256, len(_CONTENT))


def _status(*statuses: int) -> str:
    return "status " + ", ".join("closed" if status == 0 else str(status) for status in statuses)


def _connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    split = urlsplit(url)
    kind = http.client.HTTPSConnection if split.scheme == "https" else http.client.HTTPConnection
    return kind(split.netloc, timeout=TIMEOUT_S), split.path + (f"?{split.query}" if split.query else "")


def _send(order: Order, data: bytes, *, cut: int = 0, trailer: str = "") -> int:
    """Status of an upload, 0 when the store hung up; ``cut`` bytes are announced and not sent.

    Args:
        trailer: the digest to send after the bytes, where the order wants one.
    """
    if order.trailer:
        ((before, _),) = aws_chunked.chunks(len(data))
        data = before + data + aws_chunked.END + aws_chunked.end_of_body(trailer)
    connection, target = _connect(order.url)
    try:
        connection.putrequest(order.method, target, skip_accept_encoding=True)
        for name, value in {**order.headers, "Content-Length": str(len(data))}.items():
            connection.putheader(name, value)
        connection.endheaders(data[: len(data) - cut])
        return 0 if cut else connection.getresponse().status
    except (ConnectionError, http.client.RemoteDisconnected):
        return 0
    finally:
        connection.close()


def _fetch(url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    connection, target = _connect(url)
    try:
        connection.request("GET", target, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read(1 << 16)
    finally:
        connection.close()
