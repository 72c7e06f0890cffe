"""A run's updates in the store, which go once they are folded into an aggregate."""

from collections.abc import Iterable

from sqlmodel import Session, col, select

from hub.context import Hub
from hub.services.keeping import COORDINATOR, hold_blobs, needed
from hub.tables import RoundRow, RunRow, UploadRow


def drop(hub: Hub, plan: str, digests: Iterable[str] | None = None) -> None:
    """Forget a run's updates once they are folded in, unless something else needs the same bytes.

    Args:
        digests: these updates only; None for every upload of the plan but what it could go on from.
    """
    keys = []
    with hub.database.session_scope() as session:
        kept = _last_state(session, plan) if digests is None else set[str]()
        uploads = select(UploadRow).where(UploadRow.plan == plan, UploadRow.state == "stored")
        if digests is not None:
            uploads = uploads.where(col(UploadRow.sha256).in_(set(digests)))
        dropped = set()
        for row in session.exec(uploads).all():
            if row.uploader == COORDINATOR and (row.sha256 in kept or _is_aggregate(session, row.sha256)):
                continue
            session.delete(row)
            dropped.add(row.sha256)
        session.flush()
        blobs = hold_blobs(session, dropped)
        wanted = needed(session, dropped)
        for sha256, blob in blobs.items():
            if sha256 not in wanted:
                session.delete(blob)
                keys.append(blob.key)
    for key in keys:
        hub.store.delete(key)


def _last_state(session: Session, plan: str) -> set[str]:
    """What the server optimiser remembers after the last closed round, unless the run was cancelled."""
    run = session.get(RunRow, plan)
    query = select(RoundRow).where(RoundRow.plan == plan).order_by(col(RoundRow.round).desc()).limit(1)
    last = session.exec(query).first()
    if run is None or run.state == "cancelled" or last is None:
        return set()
    return {file["sha256"] for file in (last.state or {}).values()}


def _is_aggregate(session: Session, sha256: str) -> bool:
    return (
        session.exec(select(RoundRow.plan).where(RoundRow.aggregate == sha256).limit(1)).first() is not None
    )
