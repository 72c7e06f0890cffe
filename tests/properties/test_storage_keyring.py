"""TUF's canonical JSON against securesystemslib's, and rings against single edits."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical

from storage.encoding import sha256_hex
from storage.errors import Rejected
from storage.keyring import read_ring, tuf_canonical
from tests.vectors.make_vectors import ISSUER, make_keyring

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FIRST, SECOND = make_keyring()
PIN = sha256_hex(FIRST)


@given(VALUES)
def test_tuf_canonical_json_is_that_of_securesystemslib(value: Any) -> None:
    assert tuf_canonical(value) == (encode_canonical(value) or "").encode()


def test_tuf_canonical_json_leaves_line_ends_and_refuses_floats() -> None:
    assert tuf_canonical({"b": "\n", "a": '"\\'}) == b'{"a":"\\"\\\\","b":"\n"}'
    with pytest.raises(Rejected, match="E_KEYRING"):
        tuf_canonical([1.5])


@settings(max_examples=300)
@given(st.integers(0, len(SECOND) - 1), st.integers(0, 255))
def test_edited_byte_of_a_later_version_is_rejected_or_harmless(place: int, byte: int) -> None:
    edited = SECOND[:place] + bytes([byte]) + SECOND[place + 1 :]
    good = read_ring(ISSUER, [FIRST, SECOND], PIN).newest
    try:
        found = read_ring(ISSUER, [FIRST, edited], PIN).newest
    except Rejected:
        return
    # A signature beyond the threshold may be spoiled; what is signed may not.
    assert (found.roles, found.expires, found.root_threshold) == (
        good.roles,
        good.expires,
        good.root_threshold,
    )
