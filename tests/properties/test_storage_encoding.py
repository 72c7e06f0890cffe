"""Round trips of every small format, and canonical JSON against another implementation."""

import json
from decimal import Decimal
from typing import Any

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from storage.encoding import (
    b64,
    canonical,
    format_time,
    parse_decimal,
    parse_time,
    read_canonical,
    read_json,
    unb64,
)

ASCII = st.text(st.characters(max_codepoint=127), max_size=8)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ASCII, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_canonical_form_reads_back_as_the_same_value(value: Any) -> None:
    assert read_canonical(canonical(value)) == value


@given(VALUES)
def test_canonical_form_is_that_of_another_implementation_of_rfc_8785(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@given(VALUES, st.booleans())
def test_any_spelling_of_a_value_has_one_canonical_form(value: Any, ascii_only: bool) -> None:
    spelled = json.dumps(value, indent=2, ensure_ascii=ascii_only).encode()
    assert canonical(read_json(spelled)) == canonical(value)


@given(st.binary(max_size=200))
def test_base64_keeps_any_bytes(data: bytes) -> None:
    assert unb64(b64(data)) == data


@given(st.integers(0, 253_402_300_799))
def test_times_keep_any_second_up_to_the_year_9999(seconds: int) -> None:
    assert parse_time(format_time(seconds)) == seconds


@given(st.integers(0, 999_999_999), st.text("0123456789", max_size=12))
def test_decimals_keep_their_exact_value(whole: int, fraction: str) -> None:
    text = f"{whole}.{fraction}" if fraction else str(whole)
    assert parse_decimal(text) == Decimal(text)
