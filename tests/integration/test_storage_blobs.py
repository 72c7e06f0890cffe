"""One suite for every store: a folder behind its server process, and real S3 servers where there are any."""

import hashlib
import http.client
import os
import socket
import time
from urllib.parse import urlsplit

import pytest

from storage.blobs import BlobStore, Order
from storage.blobs_minio import MinioStore
from storage.errors import FedhubError, Misuse, Refused, Unchecked
from storage.stores import open_store
from tests.servers import StoreMaker, store_names

DATA = os.urandom(3_000_000)
SHA = hashlib.sha256(DATA).hexdigest()
WRONG = bytes([DATA[0] ^ 1]) + DATA[1:]
PART = os.urandom(5 << 20)  # S3 refuses smaller parts but the last
FOLDER, *S3_SERVERS = store_names()
ON_S3 = pytest.mark.parametrize("make", S3_SERVERS, indirect=True)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key of this test's own."""
    return f"blobs/{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}.x"


def send(
    order: Order, body: bytes, extra: dict[str, str] | None = None, url: str | None = None
) -> tuple[int, str]:
    """Status and ETag; status 0 when the server closed the connection instead of answering."""
    split = urlsplit(url or order.url)
    connection = http.client.HTTPConnection(split.netloc, timeout=30)
    try:
        target = split.path + (f"?{split.query}" if split.query else "")
        connection.request(order.method, target, body, order.headers | (extra or {}))
        answer = connection.getresponse()
        answer.read()
        return answer.status, (answer.getheader("ETag") or "").strip('"')
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.netloc, timeout=30)
    try:
        connection.request(method, f"{split.path}?{split.query}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


# --- the hub's own reading and writing --------------------------------------------------------------------------


def test_object_is_read_back_whole_in_pieces_and_by_range(store: BlobStore, key: str) -> None:
    store.put(key, DATA)
    assert store.size(key) == len(DATA)
    assert store.get(key) == DATA
    assert b"".join(store.stream(key)) == DATA
    assert store.read(key, 1_000_000, 10) == DATA[1_000_000:1_000_010]
    assert store.read(key, len(DATA) - 3, 10) == DATA[-3:]
    assert store.read(key, 5, 0) == b""
    assert store.read(key, len(DATA) + 5, 10) == b""
    store.put(key, b"")
    assert (store.size(key), store.get(key)) == (0, b"")


def test_missing_object_is_named(store: BlobStore, key: str) -> None:
    assert store.size(key) is None
    store.delete(key)
    for read in (lambda: store.get(key), lambda: store.read(key, 0, 1), lambda: list(store.stream(key))):
        with pytest.raises(Unchecked, match=f"E_NO_BLOB.*{key}"):
            read()


def test_create_only_never_replaces(store: BlobStore, key: str) -> None:
    store.put(key, b"first", create_only=True)
    with pytest.raises(Refused, match=r"E_BLOB_EXISTS") as error:
        store.put(key, b"second", create_only=True)
    assert (error.value.status, store.get(key)) == (409, b"first")
    store.put(key, b"third")
    assert store.get(key) == b"third"
    store.delete(key)
    assert store.size(key) is None


def test_keys_are_listed_by_prefix_in_order(store: BlobStore) -> None:
    names = ["list/a/1", "list/a/10", "list/a/2", "list/ab", "list/b/1", "listen"]
    for name in names:
        store.put(name, b"x")
    assert list(store.list("list/")) == names[:5]
    assert list(store.list("list/a")) == names[:4]
    assert list(store.list("list/a/")) == names[:3]
    assert list(store.list("nothing/")) == []


@pytest.mark.parametrize(
    "bad",
    ["", "/a", "a//b", "a/../b", "../a", "a/", ".a", "a/.b", "a b", "a\\b", "a\n", "é", "a?b", "x" * 1001],
)
def test_key_that_is_no_key_is_a_bug_of_ours(store: BlobStore, bad: str) -> None:
    for use in (
        lambda: store.put(bad, b""),
        lambda: store.order(bad, SHA, 1),
        lambda: store.signed_url(bad, expires_s=9),
    ):
        with pytest.raises(Misuse, match=r"E_BLOB_KEY"):
            use()


# --- upload orders ----------------------------------------------------------------------------------------------


def test_order_puts_the_bytes_it_names(store: BlobStore, key: str) -> None:
    order = store.order(key, SHA, len(DATA))
    assert send(order, DATA)[0] == 200
    assert store.get(key) == DATA
    assert send(order, DATA)[0] == 200  # an answer that was lost may be asked for again


def test_store_that_copies_parts_to_join_them_takes_a_large_file_in_one_stream(
    store: BlobStore, key: str
) -> None:
    server = fetch(store.signed_url(key, expires_s=9))[2].get("server", "")
    assert store.one_stream == (not isinstance(store, MinioStore) or server == "VERSITYGW")


def test_order_puts_an_empty_file(store: BlobStore, key: str) -> None:
    assert send(store.order(key, hashlib.sha256(b"").hexdigest(), 0), b"")[0] == 200
    assert store.size(key) == 0


@pytest.mark.parametrize(
    "body", [WRONG, DATA[:-1], DATA + b"x", b""], ids=["one bit", "short", "long", "empty"]
)
def test_order_refuses_other_bytes_and_nothing_is_visible(store: BlobStore, key: str, body: bytes) -> None:
    assert send(store.order(key, SHA, len(DATA)), body)[0] in (400, 0)
    assert store.size(key) is None


def test_order_refuses_another_key_another_digest_and_a_missing_header(store: BlobStore, key: str) -> None:
    order = store.order(key, SHA, len(DATA))
    assert send(order, DATA, url=order.url[:-1] + "y")[0] in (403, 0)
    digest_header = next(name for name in order.headers if name.endswith("content-sha256"))
    assert send(order, WRONG, {digest_header: hashlib.sha256(WRONG).hexdigest()})[0] in (403, 0)
    for name in order.headers:
        partial = Order(
            order.method, order.url, {k: v for k, v in order.headers.items() if k != name}, order.expires
        )
        assert send(partial, DATA)[0] in (400, 403, 0)
    assert store.size(key) is None
    assert store.size(key[:-1] + "y") is None


def test_order_is_good_for_15_minutes(make: StoreMaker, key: str) -> None:
    assert send(make(-16 * 60).order(key, SHA, len(DATA)), DATA)[0] in (403, 0)
    assert make().size(key) is None
    assert send(make(-14 * 60).order(key, SHA, len(DATA)), DATA)[0] == 200


def test_order_does_not_replace_where_the_request_says_so(store: BlobStore, key: str) -> None:
    order = store.order(key, SHA, len(DATA))
    assert send(order, DATA, {"If-None-Match": "*"})[0] == 200
    assert send(order, DATA, {"If-None-Match": "*"})[0] in (412, 0)
    assert store.get(key) == DATA


def test_upload_that_is_cut_is_never_visible(store: BlobStore, key: str) -> None:
    order = store.order(key, SHA, len(DATA))
    split = urlsplit(order.url)
    head = f"PUT {split.path} HTTP/1.1\r\nHost: {split.netloc}\r\nContent-Length: {len(DATA)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in order.headers.items())
    with socket.create_connection((split.hostname or "", split.port or 80)) as raw:
        raw.sendall(head.encode() + b"\r\n" + DATA[:100_000])
    time.sleep(0.5)
    assert store.size(key) is None


# --- several parts ----------------------------------------------------------------------------------------------


def put_parts(store: BlobStore, key: str, upload: str, parts: list[bytes]) -> dict[int, str]:
    etags = {}
    for number, part in enumerate(parts, 1):
        status, etag = send(
            store.part_order(key, upload, number, hashlib.sha256(part).hexdigest(), len(part)), part
        )
        assert status == 200
        etags[number] = etag
    return etags


def test_parts_become_one_object_only_when_completed(store: BlobStore, key: str) -> None:
    upload = store.begin_parts(key)
    assert store.stored_parts(key, upload) == {}
    etags = put_parts(store, key, upload, [PART, PART[::-1], b"last"])
    assert store.stored_parts(key, upload) == etags
    assert store.size(key) is None
    store.complete_parts(key, upload, etags)
    assert store.get(key) == PART + PART[::-1] + b"last"
    store.complete_parts(key, upload, etags)  # after a crash the hub may ask again


def test_part_order_refuses_other_bytes_another_part_and_another_upload(store: BlobStore, key: str) -> None:
    upload, other = store.begin_parts(key), store.begin_parts(key)
    order = store.part_order(key, upload, 1, SHA, len(DATA))
    assert send(order, WRONG)[0] in (400, 0)
    assert send(order, DATA, url=order.url.replace("partNumber=1", "partNumber=2"))[0] in (403, 0)
    assert send(order, DATA, url=order.url.replace(upload, other))[0] in (403, 0)
    assert send(order, DATA, url=order.url.split("?")[0])[0] in (403, 0)
    assert store.stored_parts(key, upload) == store.stored_parts(key, other) == {}
    assert store.size(key) is None


def test_part_sent_again_is_held_once(store: BlobStore, key: str) -> None:
    upload = store.begin_parts(key)
    put_parts(store, key, upload, [PART])
    etags = put_parts(store, key, upload, [PART, b"last"])
    store.complete_parts(key, upload, etags)
    assert store.get(key) == PART + b"last"


def test_upload_with_a_missing_or_renamed_part_is_not_completed(store: BlobStore, key: str) -> None:
    upload = store.begin_parts(key)
    etags = put_parts(store, key, upload, [PART, b"last"])
    for named in (
        {},
        {2: etags[2]},
        {1: etags[1], 3: etags[2]},
        {1: etags[1], 2: etags[2], 3: etags[2]},
        {1: etags[2], 2: etags[1]},
    ):
        with pytest.raises(Refused, match=r"E_PARTS"):
            store.complete_parts(key, upload, named)
    assert store.size(key) is None
    store.complete_parts(key, upload, etags)


def test_dropped_upload_takes_no_more_parts(store: BlobStore, key: str) -> None:
    upload = store.begin_parts(key)
    order = store.part_order(key, upload, 1, SHA, len(DATA))
    put_parts(store, key, upload, [PART])
    store.abort_parts(key, upload)
    store.abort_parts(key, upload)
    assert send(order, DATA)[0] in (404, 0)
    for use in (lambda: store.stored_parts(key, upload), lambda: store.complete_parts(key, upload, {1: "x"})):
        with pytest.raises(Unchecked, match=r"E_NO_UPLOAD"):
            use()


# --- signed reads -----------------------------------------------------------------------------------------------


def test_signed_url_reads_the_object_and_ranges_of_it(store: BlobStore, key: str) -> None:
    store.put(key, DATA)
    url = store.signed_url(key, expires_s=60, filename='mein "Modell" ü.bin')
    status, body, headers = fetch(url)
    assert (status, body == DATA) == (200, True)
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''mein%20%22Modell%22%20%C3%BC.bin"
    for asked, start, end in [
        ("0-0", 0, 1),
        ("5-9", 5, 10),
        ("2999990-", 2_999_990, 3_000_000),
        ("-7", 2_999_993, 3_000_000),
        ("2999990-9999999", 2_999_990, 3_000_000),
    ]:
        status, body, headers = fetch(url, Range=f"bytes={asked}")
        assert (status, body) == (206, DATA[start:end])
        assert headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert fetch(url, Range=f"bytes={len(DATA)}-")[0] == 416


def test_signed_url_is_refused_once_expired_or_altered(make: StoreMaker, store: BlobStore, key: str) -> None:
    store.put(key, DATA)
    store.put(key + "y", DATA)
    url = store.signed_url(key, expires_s=60)
    assert fetch(make(-61).signed_url(key, expires_s=60))[0] == 403
    last = "0" if url[-1] != "0" else "1"
    for bad in (
        url.replace(key, key + "y"),
        url[:-1] + last,
        url.split("?")[0] + "?x=1",
        url.replace("xpires=", "xpires=9"),
    ):
        assert fetch(bad)[0] in (400, 403)


def test_signed_url_of_nothing_is_not_found(store: BlobStore, key: str) -> None:
    assert fetch(store.signed_url(key, expires_s=60))[0] == 404


def test_url_for_reading_does_not_write(store: BlobStore, key: str) -> None:
    store.put(key, DATA)
    url = store.signed_url(key, expires_s=60)
    assert send(Order("PUT", url, {}, ""), WRONG)[0] in (400, 403, 0)
    assert fetch(url, "DELETE")[0] in (403, 405)
    assert store.get(key) == DATA


def test_every_error_of_a_store_is_one_of_ours(store: BlobStore) -> None:
    with pytest.raises(FedhubError):
        store.part_order("blobs/x", "../../etc", 1, SHA, 1)
        store.stored_parts("blobs/x", "../../etc")


# --- opening ----------------------------------------------------------------------------------------------------


def opened(store: MinioStore, bucket: str = "", secret: str = "", **options: bool) -> BlobStore:
    """The same server opened again, by settings that may be wrong."""
    credentials, url = store._credentials, f"s3+{store._public}/{bucket or store._bucket}"
    return open_store(url, None, credentials.access_key, secret or credentials.secret_key, **options)


@ON_S3
def test_bucket_that_is_not_there_is_told_and_not_made_by_one_who_only_looks(store: MinioStore) -> None:
    for _ in range(2):
        with pytest.raises(Unchecked, match="has no bucket other-bucket") as caught:
            opened(store, "other-bucket", make=False)
        assert caught.value.code == "E_STORE" and "FEDHUB_STORE_URL" in caught.value.hint
    opened(store, make=False).put("probe/x", b"1")


@ON_S3
def test_wrong_secret_of_an_s3_server_is_told_by_its_setting(store: MinioStore) -> None:
    with pytest.raises(Unchecked, match="E_STORE") as caught:
        opened(store, secret="another secret")
    assert "FEDHUB_STORE_SECRET_KEY" in caught.value.hint and "another secret" not in str(caught.value)
