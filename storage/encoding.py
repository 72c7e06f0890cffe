"""The one form in which documents become bytes: canonical JSON, digests, base64, times, decimals, names.

Canonical JSON is RFC 8785 limited to ASCII member names, integers below 2**53 in size and nesting below
16, so that Python's own ``json.dumps`` with sorted keys is exact. Every reader here is strict: duplicate
member names, NaN, odd base64, half-written times and texts that UTF-8 cannot hold are refused, never
repaired. Nothing here reads a file or knows what a document means.
"""

import base64
import binascii
import hashlib
import json
import re
from calendar import timegm
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NoReturn

from storage.errors import Rejected, shown

JSON_LIMIT_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_READ_DEPTH = 64  # of standard documents, which others may nest deeper than we do
MAX_INTEGER = 2**53 - 1
LAST_SECOND = 253_402_300_799  # of the year 9999

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z")
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,12})?")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_INSTITUTION = re.compile(rf"{_LABEL}(\.{_LABEL})+")
_ASSET_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


# --- canonical JSON -------------------------------------------------------------------------------


def canonical(value: Any, *, code: str = "E_MALFORMED") -> bytes:
    """The bytes of a value that every signer and every verifier agrees on.

    Raises:
        Rejected: ``code``; the value holds a float, a big integer, a non-ASCII member name, a lone surrogate,
            deep nesting, or something that is not JSON.
    Source: RFC 8785, limited as the module says.

    >>> canonical({"b": 1, "a": [True, None, "é"]}).decode()
    '{"a":[true,null,"é"],"b":1}'
    """
    _check_canonical(value, code, 0)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Rejected(code, "canonical JSON: a text holds a lone surrogate, which UTF-8 cannot") from error


def _check_canonical(value: Any, code: str, depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise Rejected(code, f"canonical JSON: nesting must stay below {MAX_DEPTH}")
    kind = type(value)
    if kind is dict:
        for name, member in value.items():
            if type(name) is not str or not name.isascii():
                raise Rejected(code, f"canonical JSON: member names must be ASCII text, found {shown(name)}")
            _check_canonical(member, code, depth + 1)
    elif kind is list:
        for item in value:
            _check_canonical(item, code, depth + 1)
    elif kind is int:
        if abs(value) > MAX_INTEGER:
            raise Rejected(
                code, f"canonical JSON: integers must be below 2**53 in size, found {shown(value)}"
            )
    elif kind not in (str, bool, type(None)):
        raise Rejected(code, f"canonical JSON: {kind.__name__} {shown(value)} has no canonical form")


def read_json(raw: bytes, *, code: str = "E_MALFORMED", limit: int = JSON_LIMIT_BYTES) -> Any:
    """What strict JSON says: UTF-8, no duplicate member, no NaN or infinity, no lone surrogate.

    Raises:
        Rejected: ``E_LIMIT`` when ``raw`` is longer than ``limit`` bytes, else ``code``.
    """
    if len(raw) > limit:
        raise Rejected("E_LIMIT", f"JSON document: at most {limit} bytes are read, found {len(raw)}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            counts = Counter(name for name, _ in pairs)  # linear: an object may have a hundred thousand
            twice = next(name for name, count in counts.items() if count > 1)
            raise Rejected(code, f"JSON document: member {shown(twice)} stands twice in one object")
        return members

    def finite(text: str) -> float:
        number = float(text)
        if number in (float("inf"), float("-inf")):
            refuse_constant(text)
        return number

    def refuse_constant(text: str) -> NoReturn:
        raise Rejected(code, f"JSON document: {shown(text)} is not a finite number")

    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant, parse_float=finite)
        if "\\u" in text:  # only an escape can spell a lone surrogate
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Rejected(code, f"JSON document: not UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise Rejected(code, "JSON document: a text holds a lone surrogate") from error
    except RecursionError as error:
        raise Rejected(code, "JSON document: nested too deep") from error
    except json.JSONDecodeError as error:
        raise Rejected(code, f"JSON document: {error.msg} at character {error.pos}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise Rejected(code, "JSON document: a number has too many digits") from error
    _check_depth(value, code)
    return value


def _check_depth(value: Any, code: str) -> None:
    level = [value]
    for _ in range(MAX_READ_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise Rejected(code, f"JSON document: nested deeper than {MAX_READ_DEPTH}")


def read_canonical(raw: bytes, *, code: str = "E_MALFORMED", limit: int = JSON_LIMIT_BYTES) -> Any:
    """What canonical JSON says; bytes that differ from the canonical form of their own value are refused."""
    value = read_json(raw, code=code, limit=limit)
    if canonical(value, code=code) != raw:
        raise Rejected(code, "JSON document: the bytes are not in canonical form (RFC 8785)")
    return value


# --- digests and base64 ---------------------------------------------------------------------------


def sha256_hex(data: bytes) -> str:
    """Lower-case hex SHA-256, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def is_digest(value: object) -> bool:
    """True for the text of a SHA-256 digest as we write it: 64 lower-case hex digits."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def b64(data: bytes) -> str:
    """RFC 4648 section 4 base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def unb64(text: object, code: str = "E_MALFORMED") -> bytes:
    """The bytes behind base64 text; any text that is not the one spelling of its bytes is refused."""
    if not isinstance(text, str):
        raise Rejected(code, f"base64: expected text, found {type(text).__name__}")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise Rejected(code, "base64: a character or the padding is not RFC 4648 section 4") from error
    if b64(data) != text:
        raise Rejected(code, "base64: not the one spelling of its bytes (RFC 4648 section 3.5)")
    return data


# --- times and decimals ---------------------------------------------------------------------------


def format_time(seconds: int) -> str:
    """Whole seconds since 1970 as ``YYYY-MM-DDThh:mm:ssZ``.

    Raises:
        Rejected: ``E_STATEMENT``; before 1970 or after the year 9999.

    >>> format_time(0)
    '1970-01-01T00:00:00Z'
    """
    if not 0 <= seconds <= LAST_SECOND:
        raise Rejected("E_STATEMENT", f"time: expected a moment from 1970 to 9999, found {shown(seconds)}")
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19] + "Z"


def parse_time(text: object, code: str = "E_STATEMENT") -> int:
    """Seconds since 1970 of a time in our one form; only compare these numbers, never the texts."""
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise Rejected(code, f"time: expected YYYY-MM-DDThh:mm:ssZ, found {shown(text)}")
    try:
        moment = datetime(*(int(part) for part in match.groups()), tzinfo=UTC)  # type: ignore[misc,arg-type]
    except ValueError as error:
        raise Rejected(code, f"time: {shown(text)} is not a moment of the calendar") from error
    seconds = timegm(moment.timetuple())
    if seconds < 0:
        raise Rejected(code, f"time: {shown(text)} is before 1970")
    return seconds


def parse_decimal(text: object, code: str = "E_STATEMENT") -> Decimal:
    """The exact value of a decimal written as text, such as an epsilon or a metric; never negative.

    >>> parse_decimal("0.00001") < parse_decimal("0.0001")
    True
    """
    if not isinstance(text, str) or _DECIMAL.fullmatch(text) is None:
        raise Rejected(
            code,
            "decimal: expected text such as '0.5', at most 9 digits before and 12 after the point, "
            f"found {shown(text)}",
        )
    return Decimal(text)


# --- names ----------------------------------------------------------------------------------------


def check_institution(name: object, code: str = "E_STATEMENT") -> str:
    """The name itself when it is a lower-case DNS-like name with a dot, such as ``lab-a.example``.

    The origin of a hub has the same form.
    """
    if not isinstance(name, str) or len(name) > 253 or _INSTITUTION.fullmatch(name) is None:
        raise Rejected(
            code, f"institution: expected a lower-case name such as lab-a.example, found {shown(name)}"
        )
    return name


def check_asset_name(name: object, code: str = "E_STATEMENT") -> str:
    """The name itself when it is ``<institution>/<path>``, at most 512 characters, safe in a URL and a purl.

    Parts of the path start with a letter or digit and go on with letters, digits, ``.``, ``_`` or ``-``.
    """
    owner, _, path = name.partition("/") if isinstance(name, str) else ("", "", "")
    good = len(owner) + len(path) < 512 and all(_ASSET_PART.fullmatch(part) for part in path.split("/"))
    if not good:
        raise Rejected(
            code, f"asset name: expected <institution>/<path>, at most 512 characters, found {shown(name)}"
        )
    check_institution(owner, code)
    return f"{owner}/{path}"
