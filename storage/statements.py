"""The signed papers: composes them with their header, and reads them back with every member checked.

A statement is an in-toto Statement v1 whose ``predicateType`` is its kind; ``storage.kinds`` is the table of
kinds. Reading says that a paper is well formed (the part of step V9 that needs nothing but the paper). Whose
key signed it, whether it was in force and what follows from it are questions for the modules above.
"""

import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from storage.encoding import canonical, format_time, is_digest, parse_time, read_json
from storage.errors import Misuse, Rejected, shown
from storage.kinds import HEADER, KIND_OF_URI, KINDS, ROLES, Kind, Subject, Subjects
from storage.members import check_members
from storage.signing import PAYLOAD_LIMIT_BYTES, Envelope, statement_id

__all__ = ["KINDS", "ROLES", "Kind", "Statement", "Subject", "compose", "compose_standard", "read_statement"]

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MAX_SUBJECTS = 256

_SUBJECT_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,512}")


@dataclass(frozen=True)
class Statement:
    """One well-formed paper.

    Attributes:
        id: the statement's id, which is also the digest in its log entry.
        kind: short name of its kind, a key of ``KINDS``.
        subjects: the files it speaks about, as (name, digest) pairs.
        predicate: what it says; treat it as read-only.
        payload: the bytes that were signed.
    """

    id: str
    kind: str
    subjects: Subjects
    predicate: dict[str, Any]
    payload: bytes

    @property
    def subject(self) -> str:
        """Digest of the first subject."""
        return self.subjects[0].digest

    @property
    def issuer(self) -> str:
        """Who says this, by its own header; only own kinds have one."""
        return str(self._header("issuer"))

    @property
    def issued_at(self) -> int:
        """When it was signed by its own word, in seconds since 1970; only own kinds say so."""
        return parse_time(self._header("issuedAt"))

    def _header(self, name: str) -> Any:
        if not KINDS[self.kind].own:
            raise Misuse("E_MISUSE", f"statement {self.id}: a standard kind ({self.kind}) has no header")
        return self.predicate[name]


def compose(
    kind: str,
    subjects: list[tuple[str, str]],
    members: dict[str, Any],
    *,
    issuer: str,
    hub: str,
    now: int | None = None,
    nonce: str | None = None,
) -> bytes:
    """The payload of a statement of an own kind, header added, ready to be signed.

    Args:
        kind: short name, such as ``grant``.
        subjects: (file name, SHA-256) pairs.
        members: the predicate beside the header.
        issuer: the institution that signs.
        hub: origin of the log.
        now: seconds since 1970; the clock's time when absent.
        nonce: 32 hex digits; random when absent.
    Raises:
        Rejected: ``E_STATEMENT`` or ``E_GRANT_CONDITION``; nobody would accept this statement.
        Misuse: ``kind`` is no own kind, or ``members`` holds a header member.
    """
    if kind not in KINDS or not KINDS[kind].own:
        raise Misuse("E_MISUSE", f"compose: {shown(kind)} is no kind of ours")
    header = {
        "issuer": issuer,
        "hub": hub,
        "issuedAt": format_time(int(time.time()) if now is None else now),
        "nonce": secrets.token_hex(16) if nonce is None else nonce,
    }
    twice = sorted(set(header) & set(members))
    if twice:
        raise Misuse("E_MISUSE", f"compose: {twice[0]} belongs to the header and is no member of {kind}")
    return _payload(KINDS[kind], subjects, {**header, **members})


def compose_standard(kind: str, subjects: list[tuple[str, str]], predicate: dict[str, Any]) -> bytes:
    """The payload of a statement of a standard kind, ready to be signed.

    Raises:
        Rejected: ``E_STATEMENT``; a member that we require is missing or malformed.
        Misuse: ``kind`` is no standard kind.
    """
    if kind not in KINDS or KINDS[kind].own:
        raise Misuse("E_MISUSE", f"compose_standard: {shown(kind)} is no standard kind")
    return _payload(KINDS[kind], subjects, predicate)


def _payload(kind: Kind, subjects: list[tuple[str, str]], predicate: dict[str, Any]) -> bytes:
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects],
        "predicateType": kind.uri,
        "predicate": predicate,
    }
    payload = canonical(document, code="E_STATEMENT")
    if len(payload) > PAYLOAD_LIMIT_BYTES:
        raise Rejected(
            "E_LIMIT", f"{kind.name}: a payload has at most {PAYLOAD_LIMIT_BYTES} bytes, found {len(payload)}"
        )
    _read(payload, f"new {kind.name}")
    return payload


def read_statement(envelope: Envelope) -> Statement:
    """The statement in an envelope, well formed to the last member; its signature is not looked at.

    Raises:
        Rejected: ``E_KIND``, ``E_STATEMENT``, ``E_GRANT_CONDITION`` (V9); ``E_LIMIT``.
    """
    return _read(envelope.payload, f"statement {envelope.id}")


def _read(payload: bytes, what: str) -> Statement:
    try:
        return _checked(payload)
    except Rejected as error:
        step = "V9" if error.code != "E_LIMIT" else error.step
        raise Rejected(error.code, f"{what}: {error.message}", error.hint, step=step) from error


def _checked(payload: bytes) -> Statement:
    document = read_json(payload, code="E_STATEMENT", limit=PAYLOAD_LIMIT_BYTES)
    expected = {"_type", "subject", "predicateType", "predicate"}
    if not isinstance(document, dict) or set(document) != expected:
        raise Rejected("E_STATEMENT", f"expected exactly the members {', '.join(sorted(expected))}")
    if document["_type"] != STATEMENT_TYPE:
        raise Rejected("E_STATEMENT", f"member _type: expected {STATEMENT_TYPE}")
    uri = document["predicateType"]
    kind = KIND_OF_URI.get(uri) if isinstance(uri, str) else None
    if kind is None:
        raise Rejected(
            "E_KIND", f"predicateType {shown(uri)} is no kind that this version knows", "update fedhub"
        )
    subjects = _subjects(document["subject"])
    predicate = document["predicate"]
    if not isinstance(predicate, dict):
        raise Rejected("E_STATEMENT", f"predicate: expected an object, found {type(predicate).__name__}")
    if kind.own:
        if canonical(document, code="E_STATEMENT") != payload:
            raise Rejected("E_STATEMENT", "the payload is not in canonical form (RFC 8785)")
        check_members(predicate, HEADER + kind.members)
    kind.whole(subjects, predicate)
    return Statement(statement_id(payload), kind.name, subjects, predicate, payload)


def _subjects(value: Any) -> Subjects:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SUBJECTS:
        raise Rejected("E_STATEMENT", f"subject: expected a list of 1 to {MAX_SUBJECTS}")
    return tuple(_subject(entry, index) for index, entry in enumerate(value))


def _subject(entry: Any, index: int) -> Subject:
    if not isinstance(entry, dict) or set(entry) != {"name", "digest"}:
        raise Rejected("E_STATEMENT", f"subject[{index}]: expected exactly name and digest")
    name, digest = entry["name"], entry["digest"]
    if not isinstance(name, str) or _SUBJECT_NAME.fullmatch(name) is None:
        raise Rejected("E_STATEMENT", f"subject[{index}].name: expected a file name, found {shown(name)}")
    if not isinstance(digest, dict) or set(digest) != {"sha256"} or not is_digest(digest["sha256"]):
        raise Rejected(
            "E_STATEMENT", f"subject[{index}].digest: expected exactly one sha256, found {shown(digest)}"
        )
    return Subject(name, digest["sha256"])
