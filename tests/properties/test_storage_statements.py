"""Any statement that can be composed reads back as it was meant."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from storage.encoding import format_time
from storage.signing import open_envelope, sign
from storage.statements import compose, read_statement
from tests.vectors.make_vectors import KEY

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
INSTITUTIONS = st.lists(LABELS, min_size=2, max_size=3).map(".".join)
TIMES = st.integers(0, 4_000_000_000)
DECIMALS = st.from_regex(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,12})?", fullmatch=True).filter(str.isascii)
DUO = st.integers(0, 9_999_999).map(lambda number: f"DUO:{number:07d}")


def ascending(items: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[list[Any]]:
    return st.lists(items, min_size=least, max_size=4, unique=True).map(sorted)


@st.composite
def grants(draw: st.DrawFn) -> dict[str, Any]:
    start = draw(TIMES)
    privacy = {"epsilon": draw(DECIMALS), "delta": draw(DECIMALS)} if draw(st.booleans()) else {}
    conditions = {
        "code": draw(DIGESTS),
        "maxRounds": draw(st.integers(1, 2**53 - 1)),
        "minParticipants": draw(st.integers(1, 50)),
        **privacy,
        **draw(st.fixed_dictionaries({}, optional={"plan": DIGESTS, "duo": ascending(DUO, 1)})),
    }
    return {
        "grantee": draw(INSTITUTIONS),
        "actions": draw(ascending(st.sampled_from(["evaluate", "pull", "train"]), 1)),
        "conditions": conditions,
        "notBefore": format_time(start),
        "expires": format_time(start + draw(st.integers(1, 366 * 86_400))),
        "depth": draw(st.integers(0, 3)),
        **draw(st.fixed_dictionaries({}, optional={"parent": DIGESTS})),
    }


@st.composite
def status_lists(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    now = draw(TIMES)
    hints = draw(ascending(DIGESTS))
    return {
        "sequence": draw(st.integers(0, 2**53 - 1)),
        "nextUpdate": format_time(now + draw(st.integers(1, 86_400))),
        "revoked": draw(ascending(DIGESTS)),
        "keys": [{"hint": hint, "fromIndex": draw(st.integers(0, 10**9))} for hint in hints],
    }, now


@given(grants(), DIGESTS, INSTITUTIONS, INSTITUTIONS, TIMES)
def test_grant_reads_back_as_it_was_meant(
    members: dict[str, Any], asset: str, issuer: str, hub: str, now: int
) -> None:
    payload = compose("grant", [("manifest.json", asset)], members, issuer=issuer, hub=hub, now=now)
    statement = read_statement(open_envelope(sign(KEY, payload)))
    assert {name: statement.predicate[name] for name in members} == members
    assert (statement.issuer, statement.predicate["hub"], statement.issued_at) == (issuer, hub, now)
    assert statement.subject == asset


@given(status_lists(), st.integers(1, 999_999_999))
def test_status_list_reads_back_as_it_was_meant(drawn: tuple[dict[str, Any], int], version: int) -> None:
    members, now = drawn
    subjects = [(f"{version}.root.json", "0" * 64)]
    payload = compose("status", subjects, members, issuer="a.example", hub="hub.example", now=now)
    assert members.items() <= read_statement(open_envelope(sign(KEY, payload))).predicate.items()
