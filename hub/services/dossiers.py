"""What stands behind one asset, for people: its signed papers and whether they count, its evaluations, where
it came from, its card, and who holds a grant for it.

Everything is read from what the caller may read (``services.statements``) and judged by the rules that the
verifier uses; nothing here decides. A model's card is its ``README.md``: like its name and its list of files
it is shown to all who may see the model; a private model's only to those who may pull it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session, col, select

from federation import wire
from federation.evaluation import interval
from hub.access import Actor
from hub.context import Hub
from hub.services import plans, registry, statements
from hub.services.pulls import may_pull
from hub.tables import BlobRow, PlanRow, RunRow, StatementRow, VersionRow
from storage.encoding import format_time, is_digest
from storage.errors import FedhubError, Rejected
from storage.evidence import Entry, Evidence
from storage.grants import check_grant
from storage.keys_in_force import revocation_of
from storage.statements import KINDS
from storage.status_lists import check_status

CARD = "README.md"
CARD_BYTES = 256 * 1024  # a longer card is shown up to here
PAPERS = ("oms", "asset", "provenance", "test-result", "verdict", "release")
_MEASURE = re.compile(r"([a-z0-9_.-]+)>=([0-9.]+) \(([0-9.]+)\) n=([0-9]+)")


# --- papers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paper:
    """One signed statement and its standing.

    Attributes:
        text: what the document is.
        state: ``counts``, ``revoked`` (by who may) or ``void`` (its key was revoked from before it).
        reason: of a revocation.
        published: whether the log's signed head covers it already.
    """

    id: str
    kind: str
    text: str
    issuer: str
    index: int
    logged_at: str
    state: str
    reason: str
    published: bool
    says: dict[str, Any] = field(repr=False)


def papers(hub: Hub, session: Session, actor: Actor, asset_id: str) -> list[Paper]:
    """The statements about an asset that the actor may read, in log order, with its OMS signature."""
    records = [record for kind in PAPERS for record in _about(hub, session, actor, kind, asset_id)]
    with hub.ledger.evidence(session) as evidence:
        entries = [entry for record in records if (entry := evidence.get(record.id)) is not None]
        # An OMS signature is about the files' root digest; the asset statement names it.
        signatures = {entry.says.get("oms") for entry in entries if entry.kind == "asset"}
        entries += [entry for each in signatures if each and (entry := evidence.get(each)) is not None]
        found = {entry.id: _paper(hub, session, evidence, entry) for entry in entries}
    return sorted(found.values(), key=lambda paper: paper.index)


def paper(hub: Hub, session: Session, actor: Actor, statement_id: str) -> Paper:
    """One statement, if the actor may read it.

    Raises:
        Unchecked: ``E_NOT_FOUND``.
    """
    statements.get(session, actor, statement_id)
    with hub.ledger.evidence(session) as evidence:
        entry = evidence.get(statement_id)
        assert entry is not None  # it has a row
        return _paper(hub, session, evidence, entry)


def place_in_log(session: Session, statement_id: str) -> int | None:
    """The log index of a statement: public, since the log's entries name every statement's digest."""
    row = session.get(StatementRow, statement_id) if is_digest(statement_id) else None
    return None if row is None else row.log_index


def _about(
    hub: Hub, session: Session, actor: Actor, kind: str, subject: str
) -> Iterator[wire.StatementRecord]:
    cursor: str | None = None
    while True:
        page = statements.page(
            hub, session, actor, kind=kind, subject=subject, issuer=None, plan=None, cursor=cursor
        )
        yield from page.items
        if page.next is None:
            return
        cursor = page.next


def _paper(hub: Hub, session: Session, evidence: Evidence, entry: Entry) -> Paper:
    state, reason = standing(evidence, entry)
    head = hub.ledger.head(session)
    return Paper(
        id=entry.id,
        kind=entry.kind,
        text=KINDS[entry.kind].text,
        issuer=entry.institution,
        index=entry.index,
        logged_at=format_time(session.get_one(StatementRow, entry.id).logged_at),
        state=state,
        reason=reason,
        published=head is not None and entry.index < head.size,
        says=entry.says,
    )


def standing(evidence: Evidence, entry: Entry) -> tuple[str, str]:
    """Whether a statement counts now, and why not: (state, reason)."""
    if evidence.is_void(entry):
        return "void", "the key that signed it was revoked"
    revocation = revocation_of(evidence, entry)
    if revocation is not None:
        return "revoked", f"{revocation.says['reason']}, by {revocation.institution}"
    return "counts", ""


# --- evaluations ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """What one institution measured on its own rows; ``low`` and ``high`` bound 95 % of a share."""

    institution: str
    metric: str
    value: float
    bar: float
    count: int
    passed: bool
    low: float
    high: float
    statement: str
    index: int


def measures(found: list[Paper]) -> list[Measure]:
    """The evaluations among an asset's papers that count, the newest of each institution and metric."""
    newest: dict[tuple[str, str], Measure] = {}
    for each in found:
        if each.kind != "test-result" or each.state != "counts":
            continue
        tests = [(text, True) for text in each.says.get("passedTests", [])]
        tests += [(text, False) for text in each.says.get("failedTests", [])]
        for text, passed in tests:
            match = _MEASURE.fullmatch(text)
            if match is None or int(match[4]) < 1:
                continue
            value, count = float(match[3]), int(match[4])
            low, high = interval(value, count) if 0 <= value <= 1 else (value, value)
            newest[each.issuer, match[1]] = Measure(
                each.issuer, match[1], value, float(match[2]), count, passed, low, high, each.id, each.index
            )
    return sorted(newest.values(), key=lambda one: (one.metric, one.institution))


# --- where it came from ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relative:
    """A version by name; ``name`` is None where the reader may not know it."""

    asset_id: str
    name: str | None
    version: int


@dataclass(frozen=True)
class Source:
    """A data set that took part, which stayed where it is."""

    institution: str
    dataset: str


@dataclass(frozen=True)
class Lineage:
    """The way to a version and on from it. ``plan`` is None for a version that its owner pushed."""

    base: Relative | None
    plan: str | None
    rounds: int
    sources: list[Source]
    children: list[Relative]


def lineage(hub: Hub, session: Session, actor: Actor, version: wire.ModelVersion) -> Lineage:
    """Base version, plan with its data sets, and what was made from it, as far as the actor may see."""
    base, rounds, sources = None, 0, []
    if version.plan is not None:
        row = session.get(PlanRow, version.plan)
        base = None if row is None else version_of(hub, session, actor, row.base_asset)
        try:
            plan = plans.read(hub, session, actor, version.plan)
        except FedhubError:  # others' plans are not for everybody
            plan = None
        if plan is not None:
            rounds = plan.rounds
            sources = [Source(one.institution, one.dataset) for one in plan.participants]
    built = select(VersionRow.asset_id).join(PlanRow, col(PlanRow.id) == VersionRow.plan)
    assets = session.exec(built.where(PlanRow.base_asset == version.asset_id).distinct())
    children = [version_of(hub, session, actor, asset) for asset in assets]
    return Lineage(base, version.plan, rounds, sources, [one for one in children if one.name is not None])


def version_of(hub: Hub, session: Session, actor: Actor, asset_id: str) -> Relative:
    """The first version with these files that the actor may see, by name."""
    query = select(VersionRow).where(VersionRow.asset_id == asset_id).order_by(col(VersionRow.version))
    for row in session.exec(query):
        try:
            found = registry.version(hub, session, actor, row.name, row.version)
        except FedhubError:  # private to others
            continue
        return Relative(asset_id, found.name, found.version)
    return Relative(asset_id, None, 0)


# --- the card -------------------------------------------------------------------------------------------


def card(hub: Hub, session: Session, actor: Actor, model: wire.Model, version: wire.ModelVersion) -> str:
    """The text of a version's ``README.md``, for who may see the model; empty when there is none to show."""
    if model.visibility == "private" and not may_pull(
        hub, session, actor.institution or "", version.asset_id
    ):
        return ""
    file = next((one for one in version.files if one.name == CARD), None)
    blob = None if file is None or file.size == 0 else session.get(BlobRow, file.sha256)
    if file is None or blob is None:
        return ""
    data = hub.store.read(blob.key, 0, min(file.size, CARD_BYTES))
    return data.decode("utf-8", errors="replace")


# --- grants ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grant:
    """One grant and whether it holds now.

    Attributes:
        name: of the asset, or None where it is unknown here.
        state: ``valid``, ``revoked``, ``expired``, ``not yet`` or ``refused``.
        reason: why it does not hold.
    """

    id: str
    index: int
    issuer: str
    grantee: str
    actions: list[str]
    asset_id: str
    asset_type: str
    name: str | None
    version: int
    conditions: dict[str, Any]
    not_before: str
    expires: str
    parent: str | None
    state: str
    reason: str


STATES = {
    "E_GRANT_EXPIRED": "expired",
    "E_GRANT_NOT_YET": "not yet",
    "E_REVOKED": "revoked",
    "E_STATUS_MISSING": "stale",
    "E_STATUS_STALE": "stale",
    "E_KEYRING_STALE": "stale",
}


def grants(
    hub: Hub, session: Session, actor: Actor, *, asset_id: str | None = None, cursor: str | None = None
) -> tuple[list[Grant], str | None]:
    """Grants that concern the actor, in log order, with the cursor of the next page."""
    page = statements.page(
        hub, session, actor, kind="grant", subject=asset_id, issuer=None, plan=None, cursor=cursor
    )
    with hub.ledger.evidence(session) as evidence:
        entries = [entry for record in page.items if (entry := evidence.get(record.id)) is not None]
        now = hub.ledger.now()
        return [_grant(evidence, entry, now) for entry in entries], page.next


def _grant(evidence: Evidence, entry: Entry, now: int) -> Grant:
    says = entry.says
    state, reason = standing(evidence, entry)
    if state == "counts":
        try:
            chain = check_grant(evidence, entry, at=now, index=None)
            if "plan" not in says["conditions"]:  # a consent is not pulled by
                for institution in sorted({link.institution for link in chain}):
                    check_status(evidence, institution, now=now, fresh=True)
            state = "valid"
        except Rejected as error:
            state, reason = STATES.get(error.code, "refused"), error.message
    else:
        state = "revoked"
    assets = evidence.find("asset", subject=entry.subject)
    return Grant(
        id=entry.id,
        index=entry.index,
        issuer=entry.institution,
        grantee=says["grantee"],
        actions=list(says["actions"]),
        asset_id=entry.subject,
        asset_type=assets[0].says["type"] if assets else "asset",
        name=assets[0].says["name"] if assets else None,
        version=assets[0].says["version"] if assets else 0,
        conditions=dict(says["conditions"]),
        not_before=says["notBefore"],
        expires=says["expires"],
        parent=says.get("parent"),
        state=state,
        reason=reason,
    )


# --- runs ------------------------------------------------------------------------------------------------


def run_is_over(session: Session, plan: str) -> bool:
    """Whether a plan's run has ended."""
    run = session.get(RunRow, plan)
    return run is None or not run.active
