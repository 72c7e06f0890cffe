"""No byte of a bundle can change unnoticed, for every kind of statement."""

import json
from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage.errors import Rejected
from storage.signing import check_signature, open_envelope, sign
from storage.statements import KINDS, Statement, read_statement
from tests.vectors.make_vectors import KEY, example_payload

KEY_HINT_KINDS = sorted(KINDS)


@cache
def bundle_of(kind: str) -> bytes:
    return sign(KEY, example_payload(kind))


def accept(raw: bytes) -> Statement:
    envelope = open_envelope(raw)
    check_signature(KEY.public_key(), envelope)
    return read_statement(envelope)


@given(st.binary(max_size=2000))
def test_any_payload_is_signed_and_opened_unchanged(payload: bytes) -> None:
    envelope = open_envelope(sign(KEY, payload))
    check_signature(KEY.public_key(), envelope)
    assert envelope.payload == payload


@settings(max_examples=600)
@given(st.sampled_from(KEY_HINT_KINDS), st.data())
def test_edited_byte_of_a_bundle_is_rejected_or_harmless(kind: str, data: st.DataObject) -> None:
    raw = bundle_of(kind)
    place = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from(["replace", "insert", "remove"]))
    tail = raw[place + 1 :] if cut != "insert" else raw[place:]
    edited = raw[:place] + (b"" if cut == "remove" else bytes([byte])) + tail
    try:
        statement = accept(edited)
    except Rejected:
        return
    # Only the outer JSON may have been respelled (white space, or a hint that V7 compares with the rings).
    assert statement == accept(raw)
    before, after = json.loads(raw), json.loads(edited)
    del before["verificationMaterial"], after["verificationMaterial"]
    assert after == before


@settings(max_examples=200)
@given(st.sampled_from(KEY_HINT_KINDS), st.data())
def test_cut_bundle_is_rejected(kind: str, data: st.DataObject) -> None:
    raw = bundle_of(kind)
    try:
        accept(raw[: data.draw(st.integers(0, len(raw) - 1))])
    except Rejected:
        return
    raise AssertionError("a cut bundle was accepted")


@given(st.sampled_from(KEY_HINT_KINDS))
@example("grant")
def test_bundle_with_other_spacing_is_the_same_statement(kind: str) -> None:
    spaced = json.dumps(json.loads(bundle_of(kind)), indent=2).encode()
    assert accept(spaced) == accept(bundle_of(kind))
