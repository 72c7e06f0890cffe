"""Released versions, and how far a version is from its release: facts of the log, counted here and shown.

Whether a release may be logged is decided by admission (``storage.admission``); nothing here replaces it.
"""

from collections.abc import Iterable
from typing import Protocol

from sqlmodel import Session, col, select

from federation import wire
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.glances import Glance
from hub.tables import ModelRow, StatementRow, VersionRow
from storage.consents import participants
from storage.encoding import format_time
from storage.evidence import Entry
from storage.links import approvals_of, release_of


class Signed(Protocol):
    """What is asked of a version, however it was read."""

    @property
    def name(self) -> str:
        """The model."""

    @property
    def version(self) -> int:
        """Its number."""

    @property
    def statement(self) -> str:
        """Id of its asset statement."""


def released(
    hub: Hub, source: Session | Glance, rows: Iterable[Signed], *, log_rows: int | None = None
) -> dict[tuple[str, int], Entry]:
    """Of these versions, those with a standing release statement: (name, version) -> the statement.

    Args:
        log_rows: as ``Ledger.evidence`` takes it.
    """
    found = {}
    with hub.ledger.evidence(source, rows=log_rows) as evidence:
        for row in rows:
            asset = evidence.get(row.statement)
            release = None if asset is None else release_of(evidence, asset)
            if release is not None:
                found[row.name, row.version] = release
    return found


def releases(hub: Hub, session: Session, actor: Actor) -> list[wire.Release]:
    """Every released version, newest first; those of private models only for their owner."""
    decide(actor, "list assets", Thing("releases"))
    with hub.ledger.evidence(session) as evidence:
        assets = {entry.subject for entry in evidence.find("release")}
    query = select(VersionRow, ModelRow).join(ModelRow).where(col(VersionRow.asset_id).in_(assets))
    rows = [
        version
        for version, model in session.exec(query)
        if model.visibility != "private" or model.owner == actor.institution
    ]
    found = released(hub, session, rows)
    listed = [
        _release(hub, session, row, entry) for row in rows if (entry := found.get((row.name, row.version)))
    ]
    return sorted(listed, key=lambda each: (each.released_at, each.name, each.version), reverse=True)


def _release(hub: Hub, session: Session, row: VersionRow, entry: Entry) -> wire.Release:
    return wire.Release(
        name=row.name,
        version=row.version,
        asset_id=row.asset_id,
        statement=entry.id,
        plan=row.plan,
        approved_by=approvals(hub, session, row).approved_by,
        released_at=format_time(session.get_one(StatementRow, entry.id).logged_at),
    )


def approvals(hub: Hub, session: Session, row: VersionRow) -> wire.Approvals:
    """Who has approved a version's release, and how many it needs; a version without a plan has none."""
    needed, participating, approved = 0, set[str](), set[str]()
    with hub.ledger.evidence(session) as evidence:
        asset = evidence.get(row.statement)
        plan = None if row.plan is None else evidence.standing(row.plan, "plan")
        release = None if asset is None else release_of(evidence, asset)
        if asset is not None and plan is not None:
            needed, participating = plan.says["approvals"], participants(plan.statement)
            approved = {entry.institution for entry in approvals_of(evidence, asset, plan)}
    return wire.Approvals(
        asset_id=row.asset_id,
        plan=row.plan,
        needed=needed,
        participants=sorted(participating),
        approved_by=sorted(approved),
        release=None if release is None else release.id,
    )
