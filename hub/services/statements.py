"""Signed statements: admitting them to the log, and showing them to those whom they concern.

``admit`` is the one way into the log for every service. Statements about the alliance (rings, assets, status
lists, revocations, releases and what vouches for them) are for all members; grants, plans, receipts and
refusals are for their parties, auditors and the operator.
"""

import binascii
from collections.abc import Mapping

from sqlmodel import Session, col, insert, or_, select, update

from federation import wire
from federation.licences import check_license
from hub.access import Actor, Thing, decide, sees_all
from hub.context import Hub
from hub.errors import bad_field, not_found
from hub.ledger import Admitted, Ledger
from hub.services.remembering import attachment, keep_attachment
from hub.tables import (
    AttachmentRow,
    ModelRow,
    StatementPartyRow,
    StatementRow,
    StatementSubjectRow,
    VersionRow,
)
from storage.encoding import is_digest, sha256_hex, unb64
from storage.errors import Refused, Rejected
from storage.evidence import Entry, Evidence
from storage.signing import open_envelope
from storage.statements import KINDS, read_statement

FOR_PARTIES = frozenset({"grant", "plan", "round", "receipt", "refusal"})
# Kinds that only make sense together with more than their text; each has a route of its own.
ELSEWHERE = {
    "keyring": "POST /api/v1/institutions/{name}/keyring",
    "plan": "POST /api/v1/plans",
    "round": "the hub itself, when its coordinator reports",
    "order": "nobody: orders are not logged",
}


def admit(
    session: Session, ledger: Ledger, raw: bytes, attachments: Mapping[str, bytes] | None = None
) -> StatementRow:
    """Log a statement in this transaction, with the files it names; a repeat answers with the first.

    Args:
        raw: text of the bundle.
        attachments: file name -> content; each must be a subject of the statement, by name and digest.
    Raises:
        Rejected: the statement breaks a rule of the log.
        Refused: an attachment is not one of its subjects.
    """
    admitted = ledger.sequence(session, raw, parties_of)
    _attach(session, admitted.entry, attachments or {})
    if admitted.fresh:
        _index(session, admitted)
    return admitted.row


def readmit(hub: Hub, session: Session, raw: bytes, leaf: bytes) -> Entry:
    """Log a published statement again that the database has lost (``services.restoring``)."""
    admitted = hub.ledger.replay(session, raw, leaf, parties_of)
    for subject in admitted.entry.statement.subjects:
        data = attachment(hub.store, subject.digest) if subject.name == "croissant.json" else None
        if data is not None and sha256_hex(data) == subject.digest:
            _attach(session, admitted.entry, {subject.name: data})
    _index(session, admitted)
    return admitted.entry


def _attach(session: Session, entry: Entry, attachments: Mapping[str, bytes]) -> None:
    subjects = {(subject.name, subject.digest) for subject in entry.statement.subjects}
    for name, data in attachments.items():
        digest = sha256_hex(data)
        if (name, digest) not in subjects:
            raise bad_field(
                "attachments", f"{name!r} ({digest}) is not a subject of statement {entry.statement.id}"
            )
        if session.get(AttachmentRow, digest) is None:
            session.add(AttachmentRow(sha256=digest, name=name, data=data))
            session.flush()


def _index(session: Session, admitted: Admitted) -> None:
    row, statement = admitted.row, admitted.entry.statement
    row.audience = "parties" if statement.kind in FOR_PARTIES else "members"
    session.flush()
    # A plan may have a hundred parties: plain rows, which nothing in this session looks at again.
    connection, digests = session.connection(), {subject.digest for subject in statement.subjects}
    connection.execute(insert(StatementSubjectRow), [{"statement": row.id, "digest": one} for one in digests])
    parties = [{"statement": row.id, "institution": one} for one in admitted.parties]
    connection.execute(insert(StatementPartyRow), parties)
    if statement.kind == "release":
        note_release(session, statement.subject)


def note_release(session: Session, asset_id: str) -> None:
    """Let lists find the models with these files among the released ones."""
    names = select(VersionRow.name).where(VersionRow.asset_id == asset_id)
    session.exec(update(ModelRow).where(col(ModelRow.name).in_(names)).values(released=True))


def has_release(session: Session, asset_id: str) -> bool:
    """Whether a release of this asset was ever logged."""
    query = select(StatementRow.id).join(StatementSubjectRow)
    query = query.where(StatementSubjectRow.digest == asset_id, StatementRow.kind == "release")
    return session.exec(query.limit(1)).first() is not None


def parties_of(entry: Entry, evidence: Evidence) -> set[str]:
    """The institutions that a statement concerns: its issuer, and those of the papers it stands on."""
    statement, parties = entry.statement, {entry.institution}
    if not KINDS[statement.kind].own:
        return parties
    predicate = statement.predicate
    if statement.kind == "grant":
        parties.add(predicate["grantee"])
    if statement.kind == "plan":
        parties.update(one["institution"] for one in predicate["participants"])
    above = [predicate.get("plan"), predicate.get("parent"), predicate.get("grant")]
    if statement.kind == "grant":
        above.append(predicate["conditions"].get("plan"))
    for found in (evidence.get(one) for one in above if isinstance(one, str)):
        if found is not None:
            parties |= parties_of(found, evidence)
    return parties


# --- what the API does ----------------------------------------------------------------------------------


def post(hub: Hub, session: Session, actor: Actor, request: wire.StatementPost) -> wire.StatementRecord:
    """Log a member's own statement."""
    raw = request.bundle.encode()
    statement = read_statement(open_envelope(raw))
    way = ELSEWHERE.get(statement.kind)
    if statement.kind == "asset" and statement.predicate["type"] == "model":
        way = "POST /api/v1/models/{name}/versions, with its manifest and files"
    if statement.kind == "asset" and "license" in statement.predicate:
        check_license(statement.predicate["license"])
    if way is not None:
        raise Refused(
            "E_KIND_ELSEWHERE",
            f"a {statement.kind} statement is not posted here",
            f"It goes through {way}.",
            status=422,
            field="bundle",
        )
    # Standard kinds do not name their issuer: the ring that holds the key does, and admission finds it.
    issuer = statement.issuer if KINDS[statement.kind].own else actor.institution
    decide(actor, "post statement", Thing(f"{statement.kind} of {issuer}", issuer))
    files = _files(hub, request.attachments)
    row = admit(session, hub.ledger, raw, files)
    decide(actor, "post statement", Thing(f"{row.kind} {row.id}", row.issuer))
    for data in files.values():
        keep_attachment(hub.store, sha256_hex(data), data)
    return record_of(row)


def _files(hub: Hub, attachments: Mapping[str, str]) -> dict[str, bytes]:
    found = {}
    for name, text in attachments.items():
        try:
            found[name] = unb64(text, "E_FIELD")
        except (Rejected, binascii.Error) as error:
            raise bad_field("attachments", f"{name!r} is not base64") from error
        if len(found[name]) > hub.settings.attachment_limit:
            raise Refused(
                "E_LIMIT",
                f"attachment {name!r} has {len(found[name])} bytes, over {hub.settings.attachment_limit}",
                status=413,
                field="attachments",
            )
    return found


def get(session: Session, actor: Actor, statement_id: str) -> wire.StatementRecord:
    """One statement, if the caller may read it."""
    row = session.get(StatementRow, statement_id) if is_digest(statement_id) else None
    if row is None:
        raise not_found("statement", statement_id)
    decide(actor, "read statement", _thing(session, row))
    return record_of(row)


def _thing(session: Session, row: StatementRow) -> Thing:
    query = select(StatementPartyRow.institution).where(StatementPartyRow.statement == row.id)
    parties = frozenset(session.exec(query))
    return Thing(f"statement {row.id}", row.issuer, parties, members=row.audience == "members")


def page(
    hub: Hub,
    session: Session,
    actor: Actor,
    *,
    kind: str | None,
    subject: str | None,
    issuer: str | None,
    plan: str | None,
    cursor: str | None,
) -> wire.StatementPage:
    """Statements in log order, of those the caller may read; ``cursor`` is the last index seen."""
    decide(actor, "see alliance", Thing("statements"))
    query = select(StatementRow).order_by(col(StatementRow.log_index)).limit(hub.settings.page_size + 1)
    if cursor is not None:
        query = query.where(col(StatementRow.log_index) > read_cursor(cursor))
    if kind is not None:
        if kind not in KINDS:
            raise bad_field("kind", f"must be one of {', '.join(sorted(KINDS))}")
        query = query.where(StatementRow.kind == kind)
    if issuer is not None:
        query = query.where(StatementRow.issuer == issuer)
    if plan is not None:
        query = query.where(StatementRow.plan == plan)
    if subject is not None:
        about = select(StatementSubjectRow.statement).where(StatementSubjectRow.digest == subject)
        query = query.where(col(StatementRow.id).in_(about))
    if not sees_all(actor):
        me = actor.institution
        concerned = select(StatementPartyRow.statement).where(StatementPartyRow.institution == me)
        query = query.where(or_(StatementRow.audience == "members", col(StatementRow.id).in_(concerned)))
    rows = session.exec(query).all()
    more = len(rows) > hub.settings.page_size
    rows = rows[: hub.settings.page_size]
    return wire.StatementPage(
        items=[record_of(row) for row in rows], next=str(rows[-1].log_index) if more else None
    )


def read_cursor(text: str) -> int:
    """A cursor of this hub as a number.

    Raises:
        Refused: ``E_FIELD``; cursors are only ever those that an answer gave.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise bad_field("cursor", "not a cursor of this hub", "Use what the last answer gave.")
    return int(text)


def record_of(row: StatementRow) -> wire.StatementRecord:
    """A row as the API tells it."""
    return wire.StatementRecord(
        id=row.id, index=row.log_index, kind=row.kind, issuer=row.issuer, bundle=row.bundle.decode()
    )
