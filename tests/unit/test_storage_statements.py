"""Every kind of statement: the good document, and each way in which a document can be wrong."""

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from storage.encoding import canonical, format_time, read_json
from storage.errors import Misuse, Rejected
from storage.signing import PAYLOAD_LIMIT_BYTES, open_envelope, sign, statement_id
from storage.statements import KINDS, Kind, Statement, compose, compose_standard, read_statement
from tests.vectors.make_vectors import (
    EXAMPLES,
    HUB,
    ISSUER,
    KEY,
    NONCE,
    NOW,
    digest,
    example_payload,
)

OWN = [name for name, kind in KINDS.items() if kind.own]
STANDARD = [name for name, kind in KINDS.items() if not kind.own]
OMS_URI = "https://model_signing/signature/v1.0"


def read(payload: bytes) -> Statement:
    return read_statement(open_envelope(sign(KEY, payload)))


def document(kind: str) -> dict[str, Any]:
    value: dict[str, Any] = read_json(example_payload(kind))
    return value


def rejected(payload: bytes, code: str = "E_STATEMENT") -> Rejected:
    with pytest.raises(Rejected) as error:
        read(payload)
    assert (error.value.code, error.value.step) == (code, "V9")
    return error.value


# --- the table ------------------------------------------------------------------------------------


def test_table_has_the_fifteen_kinds_with_their_roles() -> None:
    assert {name: (kind.role, kind.own, kind.logged) for name, kind in KINDS.items()} == {
        "keyring": ("targets", True, True),
        "asset": ("targets", True, True),
        "grant": ("targets", True, True),
        "revocation": ("targets", True, True),
        "status": ("timestamp", True, True),
        "plan": ("targets", True, True),
        "order": ("snapshot", True, False),
        "round": ("snapshot", True, True),
        "refusal": ("snapshot", True, True),
        "receipt": ("snapshot", True, True),
        "oms": ("targets", False, True),
        "provenance": ("targets", False, True),
        "test-result": ("snapshot", False, True),
        "release": ("targets", False, True),
        "verdict": ("targets", False, True),
    }


def test_uris_are_those_of_the_design() -> None:
    own = {name: f"https://fedhub.dev/{name}/v1" for name in OWN}
    assert {name: kind.uri for name, kind in KINDS.items()} == own | {
        "oms": OMS_URI,
        "provenance": "https://slsa.dev/provenance/v1",
        "test-result": "https://in-toto.io/attestation/test-result/v0.1",
        "release": "https://in-toto.io/attestation/release/v0.2",
        "verdict": "https://slsa.dev/verification_summary/v1",
    }


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_table_says_in_words_what_each_kind_and_member_is(kind: Kind) -> None:
    assert kind.text and kind.subject
    assert all(member.text for member in kind.members)
    assert len({member.name for member in kind.members}) == len(kind.members)


# --- what holds for every kind --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_example_reads_back_as_it_was_composed(kind: str) -> None:
    payload = example_payload(kind)
    statement = read(payload)
    subjects, members = EXAMPLES[kind]
    assert (statement.kind, statement.id, statement.payload) == (kind, statement_id(payload), payload)
    assert list(statement.subjects) == subjects
    assert statement.subject == subjects[0][1]
    assert members.items() <= statement.predicate.items()


@pytest.mark.parametrize("kind", OWN)
def test_own_kind_carries_the_header(kind: str) -> None:
    statement = read(example_payload(kind))
    assert (statement.issuer, statement.issued_at) == (ISSUER, NOW)
    assert statement.predicate["hub"] == HUB
    assert statement.predicate["nonce"] == NONCE


@pytest.mark.parametrize("kind", STANDARD)
def test_standard_kind_has_no_header_to_ask_for(kind: str) -> None:
    statement = read(example_payload(kind))
    with pytest.raises(Misuse):
        _ = statement.issuer
    with pytest.raises(Misuse):
        _ = statement.issued_at


def test_statement_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        read(example_payload("grant")).kind = "plan"  # type: ignore[misc]


def test_nonce_and_time_are_fresh_when_not_given() -> None:
    subjects, members = EXAMPLES["keyring"]
    first, second = (
        read(compose("keyring", subjects, members, issuer=ISSUER, hub=HUB)).predicate for _ in range(2)
    )
    assert first["nonce"] != second["nonce"]
    assert first["issuedAt"] > "2025"


@pytest.mark.parametrize("kind", OWN)
def test_unknown_member_is_rejected_never_ignored(kind: str) -> None:
    value = document(kind)
    value["predicate"]["note"] = "x"
    assert "unknown member 'note'" in rejected(canonical(value)).message


@pytest.mark.parametrize(
    ("kind", "member"),
    [(name, member.name) for name in OWN for member in KINDS[name].members if not member.optional],
)
def test_missing_member_is_rejected(kind: str, member: str) -> None:
    value = document(kind)
    del value["predicate"][member]
    assert f"member {member} is missing" in rejected(canonical(value)).message


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("member", ["issuer", "hub", "issuedAt", "nonce"])
def test_missing_or_null_header_member_is_rejected(kind: str, member: str) -> None:
    value = document(kind)
    value["predicate"][member] = None
    rejected(canonical(value))
    del value["predicate"][member]
    rejected(canonical(value))


@pytest.mark.parametrize(
    ("kind", "member"),
    [(name, member.name) for name in OWN for member in KINDS[name].members if member.name != "conditions"],
)
@pytest.mark.parametrize("wrong", [None, [], {}, "", "x y\n", -1, True, [None], {"a": 1}], ids=repr)
def test_member_of_another_type_is_rejected(kind: str, member: str, wrong: Any) -> None:
    if kind == "status" and wrong == []:
        wrong = [[]]  # an empty list of revoked things is a good one
    value = document(kind)
    value["predicate"][member] = wrong
    assert member in rejected(canonical(value)).message


@pytest.mark.parametrize("kind", OWN)
def test_own_kind_that_is_not_canonical_is_rejected(kind: str) -> None:
    payload = example_payload(kind)
    for respelled in (
        payload.replace(b":", b": ", 1),
        payload + b"\n",
        payload.replace(b"https:", b"https\\u003a", 1),
    ):
        assert "canonical" in rejected(respelled).message


@pytest.mark.parametrize("kind", STANDARD)
def test_standard_kind_may_be_spelled_and_extended_by_others(kind: str) -> None:

    value = document(kind)
    value["predicate"]["extension"] = {"score": 0.5}
    assert read(json.dumps(value, indent=1).encode()).kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_statement_needs_exactly_the_four_members_of_in_toto(kind: str) -> None:
    for member in ("_type", "subject", "predicateType", "predicate"):
        value = document(kind)
        del value[member]
        rejected(canonical(value))
    value = document(kind)
    value["extra"] = 1
    rejected(canonical(value))
    value = document(kind)
    value["_type"] = "https://in-toto.io/Statement/v0.1"
    rejected(canonical(value))


@pytest.mark.parametrize("payload", [b"null", b"[]", b'"x"', b"7", b"{}", b"", b"{", b"\xff"])
def test_payload_that_is_no_statement_is_rejected(payload: bytes) -> None:
    rejected(payload)


@pytest.mark.parametrize(
    "uri", ["https://fedhub.dev/gift/v1", "https://fedhub.dev/grant/v2", "grant", "", None, ["x"], {}]
)
def test_unknown_kind_is_rejected_by_name(uri: Any) -> None:
    value = document("grant")
    value["predicateType"] = uri
    rejected(canonical(value), "E_KIND")


@pytest.mark.parametrize(
    "subject",
    [
        None,
        [],
        {},
        [None],
        [{"name": "manifest.json"}],
        [{"name": "manifest.json", "digest": {}}],
        [{"name": "manifest.json", "digest": {"sha512": digest(1)}}],
        [{"name": "manifest.json", "digest": {"sha256": digest(1), "sha1": ""}}],
        [{"name": "manifest.json", "digest": {"sha256": "A" * 64}}],
        [{"name": "", "digest": {"sha256": digest(1)}}],
        [{"name": "a\nb", "digest": {"sha256": digest(1)}}],
        [{"name": "x" * 513, "digest": {"sha256": digest(1)}}],
        [{"name": None, "digest": {"sha256": digest(1)}}],
        [{"name": "manifest.json", "digest": {"sha256": digest(1)}, "uri": "x"}],
        [{"name": "manifest.json", "digest": {"sha256": digest(1)}}] * 257,
    ],
    ids=lambda subject: repr(subject)[:40],
)
@pytest.mark.parametrize("kind", ["grant", "release"])
def test_malformed_subject_is_rejected(kind: str, subject: Any) -> None:
    value = document(kind)
    value["subject"] = subject
    rejected(canonical(value))


def test_compose_refuses_what_no_reader_would_accept() -> None:
    with pytest.raises(Rejected, match="new grant: member depth: expected an integer from 0 to 3, found 4"):
        example_payload("grant", depth=4)
    with pytest.raises(Rejected, match="institution"):
        compose("keyring", *EXAMPLES["keyring"], issuer="Lab A", hub=HUB)


def test_compose_refuses_a_payload_over_the_limit() -> None:
    resources = [
        {"name": f"{number:0900d}", "algorithm": "sha256", "digest": digest(1)}
        for number in range(PAYLOAD_LIMIT_BYTES // 900)
    ]
    with pytest.raises(Rejected, match="E_LIMIT"):
        example_payload("oms", resources=resources)


def test_calls_that_mix_up_kinds_or_header_are_our_own_bugs() -> None:
    with pytest.raises(Misuse):
        compose("release", *EXAMPLES["release"], issuer=ISSUER, hub=HUB)
    with pytest.raises(Misuse):
        compose_standard("grant", *EXAMPLES["grant"])
    with pytest.raises(Misuse):
        compose("gift", [], {}, issuer=ISSUER, hub=HUB)
    with pytest.raises(Misuse):
        example_payload("grant", issuer="firm.example")


def test_message_names_the_statement_by_its_id() -> None:
    value = document("grant")
    value["predicate"]["depth"] = 9
    payload = canonical(value)
    assert rejected(payload).message.startswith(f"statement {statement_id(payload)}: member depth:")


def test_type_confusion_between_kinds_is_rejected() -> None:
    for kind in OWN:
        for other in OWN:
            if kind != other:
                value = document(kind)
                value["predicateType"] = KINDS[other].uri
                rejected(canonical(value))


def test_issue_time_is_told_in_whole_seconds() -> None:
    assert read(example_payload("keyring")).issued_at == NOW
    assert read(example_payload("keyring")).predicate["issuedAt"] == format_time(NOW)
