"""Bytes whose digest follows them, on every store: the store finds it itself, and nobody changes what was taken."""

import hashlib
import http.client
import io
import os
import time
from urllib.parse import urlsplit

import pytest

from storage import aws_chunked
from storage.blobs import BlobStore, FolderStore, Order
from storage.errors import Unchecked

DATA = os.urandom(aws_chunked.CHUNK_BYTES + 1234)  # two chunks
WRONG = bytes([DATA[0] ^ 1]) + DATA[1:]
OTHER = DATA[::-1]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"blobs/unhashed/{sha(request.node.name.encode())[:16]}"


def framed(data: bytes, said: str) -> bytes:
    """A body in chunks that calls ``said`` its digest."""
    body, rest = b"", io.BytesIO(data)
    for before, length in aws_chunked.chunks(len(data)):
        body += before + rest.read(length) + aws_chunked.END
    return body + aws_chunked.end_of_body(said)


def send(
    order: Order, data: bytes, *, said: str = "", cut: int = 0, without: str = "", patience_s: float = 30
) -> int:
    """Status, 0 when the server hung up or lets us wait; the last ``cut`` bytes are announced and not sent."""
    body = framed(data, said or sha(data)) if order.trailer else data
    split = urlsplit(order.url)
    connection = http.client.HTTPConnection(split.netloc, timeout=patience_s)
    try:
        connection.putrequest("PUT", split.path + (f"?{split.query}" if split.query else ""))
        for name, value in {**order.headers, "Content-Length": str(len(body))}.items():
            if name.lower() != without:
                connection.putheader(name, value)
        connection.endheaders()
        connection.send(body[: len(body) - cut])
        return 0 if cut else connection.getresponse().status
    except (ConnectionError, TimeoutError):
        return 0
    finally:
        connection.close()


def test_bytes_become_the_object_once_their_digest_is_told(store: BlobStore, key: str) -> None:
    order, upload = store.unhashed_order(key, len(DATA))
    assert send(order, DATA) == 200
    assert store.take_unhashed(key, upload, sha(DATA), len(DATA))
    assert (store.get(key) == DATA, store.size(key)) == (True, len(DATA))


@pytest.mark.parametrize("wrong", ["digest", "size"])
def test_other_digest_or_size_than_the_store_has_found_is_not_taken(
    store: BlobStore, key: str, wrong: str
) -> None:
    order, upload = store.unhashed_order(key, len(DATA))
    assert send(order, DATA) == 200
    digest, size = (sha(WRONG), len(DATA)) if wrong == "digest" else (sha(DATA), len(DATA) - 1)
    assert not store.take_unhashed(key, upload, digest, size)


def test_nothing_is_taken_where_nothing_came(store: BlobStore, key: str) -> None:
    _order, upload = store.unhashed_order(key, len(DATA))
    with pytest.raises(Unchecked, match=r"E_NO_BLOB"):
        store.take_unhashed(key, upload, sha(DATA), len(DATA))


@pytest.mark.parametrize("body", [DATA[:-1], DATA + b"x", b""], ids=["short", "long", "empty"])
def test_order_refuses_another_size(store: BlobStore, key: str, body: bytes) -> None:
    order, upload = store.unhashed_order(key, len(DATA))
    assert send(order, body) in (400, 0)
    with pytest.raises(Unchecked, match=r"E_NO_BLOB"):
        store.take_unhashed(key, upload, sha(body), len(body))


def test_upload_that_is_cut_is_never_there(store: BlobStore, key: str) -> None:
    order, upload = store.unhashed_order(key, len(DATA))
    send(order, DATA, cut=100_000)
    time.sleep(0.5)
    with pytest.raises(Unchecked, match=r"E_NO_BLOB"):
        store.take_unhashed(key, upload, sha(DATA), len(DATA))


def test_store_refuses_a_body_that_its_trailer_does_not_fit(store: BlobStore, key: str) -> None:
    order, upload = store.unhashed_order(key, len(DATA))
    if not order.trailer:
        assert isinstance(store, FolderStore)  # which needs none: the hub compares what it has found
        return
    assert send(order, DATA, said=sha(OTHER)) == 400
    with pytest.raises(Unchecked, match=r"E_NO_BLOB"):
        store.take_unhashed(key, upload, sha(OTHER), len(OTHER))


def test_what_was_taken_cannot_be_changed_with_the_same_order(store: BlobStore, key: str) -> None:
    order, upload = store.unhashed_order(key, len(DATA))
    assert send(order, DATA) == 200
    assert store.take_unhashed(key, upload, sha(DATA), len(DATA))
    assert send(order, OTHER) in (404, 412, 0)
    for name in order.headers:
        assert send(order, OTHER, without=name.lower()) in (400, 403, 404, 412, 0)
    assert store.get(key) == DATA


def test_late_end_of_a_second_body_changes_nothing(store: BlobStore, key: str) -> None:
    """Both are sent side by side under one order; the one that ends after the other was taken is refused."""
    order, upload = store.unhashed_order(key, len(OTHER))
    body = framed(OTHER, sha(OTHER)) if order.trailer else OTHER
    split = urlsplit(order.url)
    slow = http.client.HTTPConnection(split.netloc, timeout=30)
    slow.putrequest("PUT", split.path + (f"?{split.query}" if split.query else ""))
    for name, value in {**order.headers, "Content-Length": str(len(body))}.items():
        slow.putheader(name, value)
    slow.endheaders()
    slow.send(body[: len(body) // 2])
    time.sleep(0.2)
    quick = send(order, DATA, patience_s=3)
    if quick == 200:  # else it waits for the other, as in MinIO
        assert store.take_unhashed(key, upload, sha(DATA), len(DATA))
    try:
        slow.send(body[len(body) // 2 :])
        status = slow.getresponse().status
    except ConnectionError:
        status = 0
    slow.close()
    if quick == 200:
        assert status != 200
        assert store.get(key) == DATA
    else:
        assert status == 200 and store.take_unhashed(key, upload, sha(OTHER), len(OTHER))
