"""Which models and shared data sets somebody may see, as a condition for the database.

It lets through everything that the actor may see, and little else: lists ask the rule itself for each row
besides (``access.may``). Who may see a private one is known only from grants, which the log holds.
"""

from typing import Any, Literal

from sqlmodel import Session, col, func, or_, select, true

from hub.access import Actor, sees_all
from hub.context import Hub
from hub.tables import ModelRow, RevisionRow, SharedDatasetRow, VersionRow

BATCH = 500  # values of one IN list


def visible(
    hub: Hub,
    session: Session,
    actor: Actor,
    kind: Literal["model", "dataset"],
    *,
    log_rows: int | None = None,
) -> Any:
    """The condition for one kind of repository.

    Args:
        log_rows: as ``Ledger.evidence`` takes it.
    """
    table = ModelRow if kind == "model" else SharedDatasetRow
    if actor.institution is None:
        return table.visibility == "public"
    if sees_all(actor):
        return true()
    conditions = [table.visibility != "private", table.owner == actor.institution]
    names = _granted_names(hub, session, actor.institution, kind, log_rows)
    return or_(*conditions, col(table.name).in_(names)) if names else or_(*conditions)


def named_like(hub: Hub, name: Any, text: str) -> Any:
    """The condition that a name has this text in it, in any case.

    SQLite's LIKE does not look at case; to lower each name first would take four times as long.
    """
    return (name if hub.database.is_sqlite else func.lower(name)).contains(text.lower(), autoescape=True)


def _granted_names(hub: Hub, session: Session, institution: str, kind: str, log_rows: int | None) -> set[str]:
    """Names of what any grant to the institution is about."""
    with hub.ledger.evidence(session, rows=log_rows) as evidence:
        granted = sorted(
            {grant.subject for grant in evidence.find("grant") if grant.says["grantee"] == institution}
        )
    names: set[str] = set()
    for start in range(0, len(granted), BATCH):
        some = granted[start : start + BATCH]
        if kind == "model":
            query = select(VersionRow.name).where(col(VersionRow.asset_id).in_(some))
        else:
            query = select(RevisionRow.name).where(
                RevisionRow.kind == kind, col(RevisionRow.asset_id).in_(some)
            )
        names.update(session.exec(query))
    return names
