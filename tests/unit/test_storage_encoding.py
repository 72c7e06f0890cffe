"""Canonical JSON, strict JSON, base64, times, decimals and names."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from storage.encoding import (
    b64,
    canonical,
    check_asset_name,
    check_institution,
    format_time,
    is_digest,
    parse_decimal,
    parse_time,
    read_canonical,
    read_json,
    sha256_hex,
    unb64,
)
from storage.errors import Rejected

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "canonical.json").read_text("utf-8"))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["file"])
def test_canonical_form_equals_the_test_data_of_rfc_8785(vector: dict[str, str]) -> None:
    assert canonical(read_json(vector["input"].encode())).decode() == vector["output"]
    assert read_canonical(vector["output"].encode()) == read_json(vector["input"].encode())


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["file"])
def test_canonical_form_refuses_what_lies_outside_the_subset(vector: dict[str, str]) -> None:
    with pytest.raises(Rejected, match="E_MALFORMED"):
        canonical(read_json(vector["input"].encode()))


@pytest.mark.parametrize(
    "value",
    [1.5, 2**53, -(2**53), {1: 2}, {"é": 1}, (1, 2), b"x", "\ud800", {"a": "\udfff"}, {1, 2}, nested(16)],
    ids=repr,
)
def test_value_without_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(Rejected) as error:
        canonical(value, code="E_STATEMENT")
    assert (error.value.code, error.value.step) == ("E_STATEMENT", "V9")


def test_limits_of_the_subset_are_inside_it() -> None:
    value: list[Any] = [2**53 - 1, -(2**53) + 1, True, None, "\u2028\x7f😀", {"": {}}]
    assert read_canonical(canonical(value)) == value
    assert read_canonical(canonical(nested(15))) == nested(15)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e400]",
        b"[-1e999]",
        b"\xff",
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b"\xef\xbb\xbf{}",
        b"",
        b"{} {}",
        b"{'a':1}",
        b'{"a":1,}',
        b'"\n"',
        b"[" * 100_000,
        b"[" * 65 + b"]" * 65,
        b"9" * 5000,
        b"nul",
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_strict_json_refuses(raw: bytes) -> None:
    with pytest.raises(Rejected, match="E_BUNDLE"):
        read_json(raw, code="E_BUNDLE")


def test_strict_json_reads_what_standard_documents_may_hold() -> None:
    assert read_json(b' {"a": [1.5, 1e3, "\\ud83d\\ude00"],\n "b": null} ') == {
        "a": [1.5, 1000.0, "😀"],
        "b": None,
    }


def test_document_over_its_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(Rejected, match=r"E_LIMIT: .*at most 4 bytes.*found 5"):
        read_json(b"not j", limit=4)


@pytest.mark.parametrize(
    "raw", [b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1}\n', b'"\\u0041"', b'"\\/"', b"-0", b"1.0"]
)
def test_bytes_that_are_not_canonical_are_refused(raw: bytes) -> None:
    with pytest.raises(Rejected, match="E_STATEMENT"):
        read_canonical(raw, code="E_STATEMENT")


def test_message_names_the_member_that_stands_twice() -> None:
    with pytest.raises(Rejected, match="member 'grantee' stands twice"):
        read_json(b'{"grantee":1,"grantee":2}')


def test_digest_is_64_lower_case_hex_digits() -> None:
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert is_digest("0" * 64)
    for value in ("A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "g" * 64, "٠" * 64, b"0" * 64, None):
        assert not is_digest(value)


@pytest.mark.parametrize(
    "text", ["QQ", "QR==", "Q Q=", "QQ==\n", "QQ=", "-_-_", "QUI=Q", "é===", None, 5, b"QQ=="]
)
def test_base64_that_is_not_the_one_spelling_is_refused(text: object) -> None:
    with pytest.raises(Rejected, match="E_PROOF"):
        unb64(text, "E_PROOF")


def test_base64_keeps_bytes() -> None:
    assert [unb64(b64(data)) for data in (b"", b"A", b"AB", b"\xff" * 33)] == [b"", b"A", b"AB", b"\xff" * 33]


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24T22:00:00",
        "2026-11-24 22:00:00Z",
        "2026-11-24T22:00:00z",
        "2026-11-24T22:00:00.0Z",
        "2026-11-24T22:00:00+00:00",
        "2026-13-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:60Z",
        "0000-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "２０２６-01-01T00:00:00Z",
        "2026-1-1T00:00:00Z",
        "2026-11-24T22:00:00Z\n",
        "",
        None,
        1_795_644_000,
    ],
)
def test_time_in_another_form_is_refused(text: object) -> None:
    with pytest.raises(Rejected, match="E_STATEMENT"):
        parse_time(text)


def test_time_is_read_as_it_is_written() -> None:
    assert parse_time("1970-01-01T00:00:00Z") == 0
    assert parse_time("2028-02-29T23:59:59Z") == 1_835_481_599
    assert format_time(1_835_481_599) == "2028-02-29T23:59:59Z"
    assert format_time(0) == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize("seconds", [-1, 253_402_300_800, 10**30])
def test_moment_outside_the_calendar_is_not_written(seconds: int) -> None:
    with pytest.raises(Rejected, match="from 1970 to 9999"):
        format_time(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".5",
        "5.",
        "05",
        "00",
        "-1",
        "+1",
        "1e3",
        "1,5",
        "1234567890",
        "0.1234567890123",
        "٣",
        "1 ",
        "1\n",
        1,
        0.5,
        None,
    ],
)
def test_decimal_in_another_form_is_refused(text: object) -> None:
    with pytest.raises(Rejected, match="E_STATEMENT"):
        parse_decimal(text)


def test_decimals_compare_as_numbers() -> None:
    assert parse_decimal("0.10") == parse_decimal("0.1") == Decimal("0.1")
    assert parse_decimal("10") > parse_decimal("9.999999999999")
    assert parse_decimal("999999999.999999999999") > parse_decimal("0")


@pytest.mark.parametrize(
    "name",
    [
        "lab",
        "Lab-A.example",
        "lab_a.example",
        ".example",
        "lab.",
        "lab..example",
        "-lab.example",
        "lab-.example",
        "lab.example\n",
        "lab a.example",
        "läb.example",
        "a" * 64 + ".example",
        "a." * 130 + "a",
        "",
        None,
        7,
    ],
)
def test_name_that_no_institution_may_have_is_refused(name: object) -> None:
    with pytest.raises(Rejected, match="E_KEYRING_NAME"):
        check_institution(name, "E_KEYRING_NAME")


def test_name_of_an_institution_is_given_back() -> None:
    for name in ("lab-a.example", "x.y", "a1.b2.c3", "xn--bcher-kva.example"):
        assert check_institution(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "lab-a.example",
        "lab-a.example/",
        "/m",
        "lab/m",
        "lab-a.example//m",
        "lab-a.example/m/",
        "lab-a.example/../m",
        "lab-a.example/.hidden",
        "lab-a.example/m n",
        "lab-a.example/m?x",
        "lab-a.example/m#x",
        "lab-a.example/m@1",
        "lab-a.example/é",
        "lab-a.example/" + "m" * 97,
        "lab-a.example/" + "m/" * 260 + "m",
        None,
    ],
)
def test_name_that_no_asset_may_have_is_refused(name: object) -> None:
    with pytest.raises(Rejected, match="E_STATEMENT"):
        check_asset_name(name)


def test_name_of_an_asset_is_given_back() -> None:
    longest = "lab-a.example/" + "/".join(["m" * 96] * 5) + "/" + "m" * 13
    assert len(longest) == 512
    with pytest.raises(Rejected):
        check_asset_name(longest + "m")
    for name in (longest, "lab-a.example/m", "lab-a.example/a/b.c/d_e-f", "lab-a.example/" + "m" * 96):
        assert check_asset_name(name) == name
