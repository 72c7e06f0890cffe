"""Uploads that wait: for the hub's one look at the whole of several parts, or for somebody to finish them.

Done in the background, by any replica; a repeat after a crash does no harm.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from sqlmodel import col, select

from federation.ahead import ahead
from hub.context import Hub
from hub.errors import not_found
from hub.services.uploads import settle
from hub.tables import UploadRow


def check_waiting(hub: Hub) -> int:
    """Read every upload of several parts that waits for it, once; returns how many were looked at."""
    with hub.database.session_scope(write=False) as session:
        waiting = session.exec(
            select(UploadRow.id).where(UploadRow.state == "checking").order_by(col(UploadRow.created_at))
        ).all()
    for upload_id in waiting:
        check_whole(hub, upload_id)
    return len(waiting)


def check_whole(hub: Hub, upload_id: str) -> UploadRow:
    """Hash a joined upload from the store and settle it, or refuse it; a repeat only reads it again."""
    with hub.database.session_scope(write=False) as session:
        row = session.get(UploadRow, upload_id)
        if row is None:
            raise not_found("upload", upload_id)
    if row.state != "checking":
        return row
    found, size = hashlib.sha256(), 0
    with ThreadPoolExecutor(1, thread_name_prefix="sync") as pool:
        synced = pool.submit(hub.store.sync, row.key)  # the disk writes while we read what it will hold
        for chunk in ahead(hub.store.stream(row.key), 1):
            found.update(chunk)
            size += len(chunk)
        synced.result()
    if (found.hexdigest(), size) == (row.sha256, row.size):
        return settle(hub, upload_id, checked_by="hub")
    with hub.database.session_scope() as session:
        row = session.get(UploadRow, upload_id, with_for_update=True) or row
        row.state = "refused"
        row.reason = (
            f"announced were {row.size} bytes of {row.sha256}, the store holds {size} of {found.hexdigest()}"
        )
    hub.store.delete(row.key)
    return row


def expire(hub: Hub) -> int:
    """Drop uploads that nobody finished, and refused ones; returns how many.

    Their orders died long before: every order that is handed out moves the end on by hours.
    """
    with hub.database.session_scope(write=False) as session:
        rows = session.exec(
            select(UploadRow).where(
                col(UploadRow.state).in_(("open", "refused")), UploadRow.expires_at <= hub.ledger.now()
            )
        ).all()
    return sum(_expire_one(hub, row) for row in rows)


def _expire_one(hub: Hub, row: UploadRow) -> bool:
    """Forget an upload, then its bytes: one that is settled at this moment keeps both."""
    with hub.database.session_scope() as session:
        stale = session.get(UploadRow, row.id, with_for_update=True)
        if stale is None or stale.state not in ("open", "refused") or stale.expires_at > hub.ledger.now():
            return False
        session.delete(stale)
    if row.multipart is not None:
        hub.store.abort_parts(row.key, row.multipart)
    hub.store.delete(row.key)
    return True
