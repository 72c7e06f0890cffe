"""A signature is for one request: whatever else is changed, it is refused."""

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import Refused
from storage.order_signing import MAX_BODY_BYTES, OrderSigner

SIGNER = OrderSigner(b"k" * 32)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
sizes = st.integers(0, MAX_BODY_BYTES)
texts = st.text(max_size=20)
queries = st.sampled_from(["", "?partNumber=1&uploadId=ab", "?partNumber=11&uploadId=b"])


@given(texts, queries, digests, sizes)
def test_order_is_accepted_as_signed_and_says_what_it_allows(
    key: str, query: str, sha256: str, size: int
) -> None:
    headers = SIGNER.order_headers(key, query, sha256, size, 1000)
    assert SIGNER.check_order(key, query, headers, 1000) == (sha256, size)
    with pytest.raises(Refused, match=r"E_ORDER_EXPIRED"):
        SIGNER.check_order(key, query, headers, 1001)


@given(texts, queries, digests, sizes, st.data())
def test_order_with_anything_changed_is_refused(
    key: str, query: str, sha256: str, size: int, data: st.DataObject
) -> None:
    headers = SIGNER.order_headers(key, query, sha256, size, 1000)
    changed = data.draw(st.sampled_from([*headers, "key", "query", "secret"]))
    signer = OrderSigner(b"j" * 32) if changed == "secret" else SIGNER
    other_key = data.draw(texts.filter(lambda text: text != key)) if changed == "key" else key
    other_query = data.draw(queries.filter(lambda text: text != query)) if changed == "query" else query
    if changed in headers:
        headers[changed] = data.draw(texts.filter(lambda text: text != headers[changed]))
    with pytest.raises(Refused, match=r"E_ORDER_SIGNATURE"):
        signer.check_order(other_key, other_query, headers, 0)


@given(texts, st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_url_is_accepted_as_signed_and_bears_its_file_name(key: str, name: str | None) -> None:
    query = SIGNER.read_query(key, 1000, name)
    assert SIGNER.check_read(key, query, 1000) == name
    with pytest.raises(Refused, match=r"E_URL_EXPIRED"):
        SIGNER.check_read(key, query, 1001)
    with pytest.raises(Refused, match=r"E_URL_SIGNATURE"):
        SIGNER.check_read(key + "x", query, 0)


@given(st.data(), st.text(st.characters(codec="utf-8"), min_size=1, max_size=9))
def test_url_with_any_field_changed_added_or_doubled_is_refused(data: st.DataObject, name: str) -> None:
    pairs = parse_qsl(SIGNER.read_query("k", 1000, name))
    which = data.draw(st.integers(0, len(pairs) - 1))
    field, value = pairs[which]
    other = data.draw(st.text(st.characters(codec="utf-8"), max_size=9).filter(lambda text: text != value))
    kind = data.draw(st.sampled_from(["change", "drop", "double", "add"]))
    altered = {
        "change": [*pairs[:which], (field, other), *pairs[which + 1 :]],
        "drop": [*pairs[:which], *pairs[which + 1 :]],
        "double": [*pairs, (field, value)],
        "add": [*pairs, ("more", value)],
    }[kind]
    with pytest.raises(Refused, match=r"E_URL_SIGNATURE"):
        SIGNER.check_read("k", urlencode(altered), 0)
