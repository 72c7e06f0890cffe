"""Parts sent by clients that can give no headers, on every store: bound to place, size and time, dead once joined."""

import hashlib
import http.client
import os
from urllib.parse import urlsplit

import pytest

from storage.blobs import BlobStore
from storage.errors import Refused, Unchecked
from storage.order_signing import OrderSigner
from tests.servers import StoreMaker

PART = os.urandom(5 << 20)  # S3 refuses smaller parts but the last
KEY = "blobs/parts.x"


def put(url: str, body: bytes) -> int:
    """Status; 0 when the server closed the connection instead of answering."""
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.netloc, timeout=30)
    try:
        connection.request("PUT", f"{split.path}?{split.query}", body)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except ConnectionError:
        return 0
    finally:
        connection.close()


def test_parts_of_both_kinds_become_one_object(store: BlobStore) -> None:
    upload = store.begin_parts(KEY)
    assert put(store.part_url(KEY, upload, 1, len(PART), expires_s=60), PART) == 200
    store.put_part(KEY, upload, 2, b"our own tail")
    assert sorted(store.stored_parts(KEY, upload)) == [1, 2]
    store.complete_parts(KEY, upload, store.stored_parts(KEY, upload))
    assert b"".join(store.stream(KEY)) == PART + b"our own tail"


def test_part_that_is_sent_again_counts_in_its_newest_form(store: BlobStore) -> None:
    upload = store.begin_parts(KEY)
    url = store.part_url(KEY, upload, 1, 3, expires_s=60)
    assert [put(url, body) for body in (b"old", b"new")] == [200, 200]
    store.put_part(KEY, upload, 1, b"own")
    store.complete_parts(KEY, upload, store.stored_parts(KEY, upload))
    assert store.get(KEY) == b"own"


def test_address_of_a_part_is_dead_once_the_object_is_joined(store: BlobStore) -> None:
    upload = store.begin_parts(KEY)
    url = store.part_url(KEY, upload, 1, 5, expires_s=60)
    assert put(url, b"first") == 200
    store.complete_parts(KEY, upload, store.stored_parts(KEY, upload))
    assert put(url, b"later") not in (200, 201, 204)
    assert store.get(KEY) == b"first"


def test_address_is_for_one_part_of_one_upload_until_it_expires(make: StoreMaker, store: BlobStore) -> None:
    upload, other = store.begin_parts(KEY), store.begin_parts(KEY)
    url = store.part_url(KEY, upload, 1, 3, expires_s=60)
    for changed in (
        url.replace("partNumber=1", "partNumber=2"),
        url.replace(upload, other),
        url.replace("blobs/parts.x", "blobs/parts.y"),
        make(-120).part_url(KEY, upload, 1, 3, expires_s=60),
        url.partition("?")[0] + f"?partNumber=1&uploadId={upload}",
    ):
        assert put(changed, b"abc") not in (200, 201, 204), changed
    assert store.stored_parts(KEY, upload) == store.stored_parts(KEY, other) == {}
    store.abort_parts(KEY, upload)
    assert put(url, b"abc") not in (200, 201, 204)
    with pytest.raises(Unchecked):
        store.put_part(KEY, upload, 1, b"abc")


def test_folder_store_holds_a_part_to_its_size() -> None:
    signer = OrderSigner(b"secret")
    query = signer.part_query(KEY, "a" * 32, 7, 3, 1000)
    assert signer.check_part(KEY, query, 999) == ("a" * 32, 7, 3)
    with pytest.raises(Refused, match="expired"):
        signer.check_part(KEY, query, 1001)
    for changed in (
        query.replace("size=3", "size=4"),
        query + "&x=1",
        f"x=1&{query}",
        "",
        "size=x",
        query[:-1] + "é",
    ):
        with pytest.raises(Refused):
            signer.check_part(KEY, changed, 999)


def test_cut_part_is_not_there(store: BlobStore) -> None:
    upload = store.begin_parts(KEY)
    split = urlsplit(store.part_url(KEY, upload, 1, 1000, expires_s=60))
    connection = http.client.HTTPConnection(split.netloc, timeout=30)
    connection.putrequest("PUT", f"{split.path}?{split.query}")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"x" * 10)
    connection.close()
    found = store.stored_parts(KEY, upload)
    # An S3 server may keep what came of it; nothing leans on a part before the whole has been hashed.
    assert found.get(1) != hashlib.sha256(b"x" * 1000).hexdigest()
