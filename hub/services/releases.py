"""Which versions are released, and how far one is from its release: facts of the log, counted here and shown.

Whether a release may be logged is decided by admission (``storage.admission``); nothing here replaces it.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from sqlmodel import Session

from federation import wire
from hub.context import Hub
from hub.glances import Glance
from hub.tables import VersionRow
from storage.consents import participants
from storage.evidence import Entry, Evidence
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


def approvals(hub: Hub, session: Session, row: VersionRow) -> wire.Approvals:
    """Who has approved a version's release, and how many it needs; a version without a plan has none."""
    with hub.ledger.evidence(session) as evidence:
        return approvals_in(evidence, row)


def approvals_in(evidence: Evidence, row: Any) -> wire.Approvals:
    """``approvals`` of a version, however it was read, by evidence that is at hand."""
    needed, participating, approved = 0, set[str](), set[str]()
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
