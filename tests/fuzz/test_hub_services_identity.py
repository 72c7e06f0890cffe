"""Logins and tokens from strangers: whatever the text, nothing but a refusal comes out."""

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hub.services.identity import _read_jwt
from storage.errors import Refused

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


@given(st.text(max_size=200))
@example("..")
@example("a.b.c")
@example("é.é.é")
def test_any_text_is_a_jwt_or_refused(text: str) -> None:
    try:
        header, claims = _read_jwt(text)
    except Refused as error:
        assert error.code == "E_LOGIN" and error.status == 401
    else:
        assert isinstance(header, dict) and isinstance(claims, dict)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_in_the_parts_are_read_strictly_or_refused(first: bytes, second: bytes) -> None:
    try:
        _read_jwt(f"{b64url(first)}.{b64url(second)}.x")
    except Refused as error:
        assert error.code == "E_LOGIN"


@given(json_like, json_like)
def test_only_two_objects_are_a_jwt(first: Any, second: Any) -> None:
    token = f"{b64url(json.dumps(first).encode())}.{b64url(json.dumps(second).encode())}.x"
    try:
        header, claims = _read_jwt(token)
    except Refused as error:
        assert error.code == "E_LOGIN"
    else:
        assert isinstance(first, dict) and isinstance(second, dict)
        assert set(header) == set(first) and set(claims) == set(second)


def test_a_text_without_end_is_refused_by_its_length() -> None:
    with pytest.raises(Refused):
        _read_jwt("a" * 10_000 + ".b.c")
