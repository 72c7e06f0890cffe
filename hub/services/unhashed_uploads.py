"""Large files that go to the store while their sender hashes them: announced by size, named at the end.

Only where the store takes a file in one stream and finds its digest itself as it comes. What came has no name
before its sender tells the digest and the store has found the same, and no order can change it after that; so
the rule holds that only a check says what bytes are. Whoever may use a file of this size already is asked for
the digest first, as is who has begun one in parts: nothing is sent that need not be.

Read ``announce``, ``complete``.
"""

import secrets

from sqlmodel import Session, col, func, select

from federation.stock_names import LARGEST_BYTES
from federation.wire import UnhashedUpload, Upload
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import conflict
from hub.services import uploads
from hub.services.plain_uploads import drop, drop_object
from hub.services.quotas import check_quota
from hub.tables import BlobRow, UnhashedUploadRow, UploadRow
from storage.blobs import ORDER_BYTES
from storage.errors import Refused, Rejected, Unchecked
from storage.manifests import PART_BYTES

LIFE_S = 3600  # a file goes up so while that takes seconds (``federation.streams.Watch``)
SAME_SIZE_MOST = 50  # files that are looked through; of more, one is likely to be the caller's


def announce(hub: Hub, actor: Actor, size: int) -> UnhashedUpload | None:
    """An order for a file whose digest will follow; None: the caller hashes it first and announces it so."""
    decide(actor, "upload", Thing("a file"))
    largest = min(ORDER_BYTES, LARGEST_BYTES, hub.settings.upload_limit)
    if not (hub.store.one_stream and PART_BYTES < size <= largest):
        return None
    with hub.database.session_scope(write=False) as session:
        if _may_be_there(hub, session, actor, size):
            return None
    upload_id = secrets.token_hex(16)
    key = f"blobs/unhashed/{upload_id[:2]}/{upload_id}"
    order, multipart = hub.store.unhashed_order(key, size)
    row = UnhashedUploadRow(
        id=upload_id,
        uploader=uploads.uploader_of(actor),
        size=size,
        key=key,
        multipart=multipart,
        expires_at=hub.ledger.now() + LIFE_S,
    )
    try:
        with hub.database.session_scope() as session:
            _check_room(hub, session, row)
            session.add(row)
    except Refused:  # its digest may show that it is counted already; else the caller hears this then
        drop_object(hub, row)
        return None
    except BaseException:
        drop_object(hub, row)
        raise
    return UnhashedUpload(id=upload_id, order=uploads.wire_order(0, order))


def _may_be_there(hub: Hub, session: Session, actor: Actor, size: int) -> bool:
    """Whether the caller may use a file of this size, or has begun to send one."""
    begun = select(UploadRow.id).where(
        UploadRow.uploader == uploads.uploader_of(actor),
        col(UploadRow.state).in_(("open", "checking")),
        UploadRow.size == size,
    )
    if session.exec(begun.limit(1)).first() is not None:
        return True
    same = session.exec(select(BlobRow.sha256).where(BlobRow.size == size).limit(SAME_SIZE_MOST + 1)).all()
    return len(same) > SAME_SIZE_MOST or bool(uploads.may_use(hub, session, actor, same))


def _check_room(hub: Hub, session: Session, row: UnhashedUploadRow) -> None:
    waiting = select(func.count()).where(UnhashedUploadRow.uploader == row.uploader)
    uploads.check_open_uploads(hub, session, row.uploader, besides=session.exec(waiting).one())
    check_quota(hub, session, row.uploader, row.size)


def complete(hub: Hub, actor: Actor, upload_id: str, sha256: str) -> Upload:
    """Give what came its digest, if the store has found the same; a repeat changes nothing.

    Raises:
        Refused: ``E_INCOMPLETE`` (409), not all of it has come.
        Rejected: ``E_DIGEST``, the bytes are others, and were dropped.
    """
    with hub.database.session_scope(write=False) as session:
        row = session.get(UnhashedUploadRow, upload_id)
    if row is None:
        return uploads.complete(hub, actor, upload_id)
    decide(actor, "use upload", Thing(f"upload {upload_id}", owner=row.uploader))
    _take(hub, row, sha256)
    with hub.database.session_scope() as session:
        mine = session.get(UnhashedUploadRow, upload_id, with_for_update=True)
        if mine is not None:  # else another request has just done this
            session.delete(mine)
            session.add(_named(hub, mine, sha256))
    return uploads.complete(hub, actor, upload_id)


def _take(hub: Hub, row: UnhashedUploadRow, sha256: str) -> None:
    try:
        taken = hub.store.take_unhashed(row.key, row.multipart, sha256, row.size)
    except Unchecked as error:
        if error.code not in ("E_NO_BLOB", "E_NO_UPLOAD"):
            raise
        raise conflict(
            "E_INCOMPLETE",
            f"upload {row.id}: the store holds no bytes of it",
            "Announce the file by its digest.",
        ) from error
    if not taken:
        drop(hub, row)
        raise Rejected(
            "E_DIGEST",
            f"upload {row.id}: the store holds other bytes than {row.size} of {sha256}",
            "The file changed while it was sent: announce it by its digest.",
        )


def _named(hub: Hub, row: UnhashedUploadRow, sha256: str) -> UploadRow:
    now = hub.ledger.now()
    return UploadRow(
        id=row.id,
        uploader=row.uploader,
        sha256=sha256,
        size=row.size,
        key=row.key,
        etags={},
        state="open",
        created_at=now,
        expires_at=now + LIFE_S,
    )


def expire(hub: Hub) -> int:
    """Drop what was announced and not finished in time; returns how many."""
    with hub.database.session_scope(write=False) as session:
        late = UnhashedUploadRow.expires_at <= hub.ledger.now()
        rows = session.exec(select(UnhashedUploadRow).where(late)).all()
    for row in rows:
        drop(hub, row)
    return len(rows)
