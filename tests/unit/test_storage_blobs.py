"""The memory store, which other tests stand on, keeps the same promises as the real ones."""

import hashlib

import pytest

from storage.blobs import Order, is_key
from storage.encoding import parse_time
from storage.errors import Misuse, Refused, Unchecked
from tests.memory_store import MemoryStore

DATA = b"0123456789" * 100
SHA = hashlib.sha256(DATA).hexdigest()
NOW = 1_795_600_000


def store_at(now: float = NOW) -> MemoryStore:
    return MemoryStore(clock=lambda: now)


def test_memory_store_reads_back_what_was_put() -> None:
    store = store_at()
    store.put("a/b", DATA)
    assert (store.get("a/b"), store.size("a/b"), store.read("a/b", 3, 4)) == (DATA, 1000, DATA[3:7])
    assert b"".join(store.stream("a/b")) == DATA
    store.put("a/c", b"")
    assert list(store.list("a/")) == ["a/b", "a/c"]
    store.delete("a/b")
    store.delete("a/b")
    assert store.size("a/b") is None
    with pytest.raises(Unchecked, match=r"E_NO_BLOB"):
        store.get("a/b")
    with pytest.raises(Refused, match=r"E_BLOB_EXISTS"):
        store.put("a/c", DATA, create_only=True)
    with pytest.raises(Misuse, match=r"E_BLOB_KEY"):
        store.put("../a", DATA)


def test_memory_store_takes_only_the_bytes_that_an_order_names() -> None:
    store = store_at()
    order = store.order("k", SHA, len(DATA))
    assert parse_time(order.expires, "E_X") == NOW + 900
    for data in (DATA[:-1], DATA + b"x", DATA[::-1]):
        with pytest.raises(Refused, match=r"E_DIGEST"):
            store.send(order, data)
    with pytest.raises(Refused, match=r"E_ORDER_SIGNATURE"):
        store.send(Order("PUT", order.url + "x", order.headers, order.expires), DATA)
    assert store.size("k") is None
    assert store.send(order, DATA) == SHA
    assert store.get("k") == DATA


def test_order_expires_on_the_store_clock() -> None:
    now = [NOW]
    store = MemoryStore(clock=lambda: now[0])
    order = store.order("k", SHA, len(DATA))
    now[0] += 901
    with pytest.raises(Refused, match=r"E_ORDER_EXPIRED"):
        store.send(order, DATA)
    now[0] -= 1
    store.send(order, DATA)


def test_memory_store_joins_parts() -> None:
    store = store_at()
    upload = store.begin_parts("k")
    for number, data in ((2, b"last"), (1, DATA)):
        store.send(store.part_order("k", upload, number, hashlib.sha256(data).hexdigest(), len(data)), data)
    assert store.size("k") is None
    etags = store.stored_parts("k", upload)
    with pytest.raises(Refused, match=r"E_PARTS"):
        store.complete_parts("k", upload, {2: etags[2]})
    store.complete_parts("k", upload, etags)
    store.complete_parts("k", upload, etags)
    assert store.get("k") == DATA + b"last"
    store.abort_parts("k", upload)
    with pytest.raises(Unchecked, match=r"E_NO_UPLOAD"):
        store.stored_parts("k", upload)


def test_signed_urls_differ_by_key_time_and_name() -> None:
    store = store_at()
    store.put("k", DATA)
    urls = {store.signed_url("k", expires_s=s, filename=name) for s in (1, 2) for name in (None, "a", "b")}
    assert len(urls) == 6


def test_keys_of_the_house_are_keys() -> None:
    for key in (
        "log/checkpoint",
        "log/tile/entries/x001/000.p/17",
        f"blobs/sha256/ab/{'0' * 64}.{'1' * 32}",
        "keyrings/lab-a.example/1.root.json",
    ):
        assert is_key(key)
