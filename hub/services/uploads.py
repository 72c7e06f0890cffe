"""Bytes on their way in: orders that fit announced bytes only, and rows that say what was checked.

Two facts are kept apart. *Where* bytes lie is a key of the store, one per upload. *What* they are is a
``blob`` row, written only after somebody checked the whole digest: the store, for a file that went up in
one order; the hub, which reads a file of several parts once in the background (``uploads_waiting``). Two
uploads of the same bytes end as one blob. Whether a blob is there already is told only to those who may
read it or who uploaded it.

Read ``announce``, ``complete``, ``settle``.
"""

import secrets
from collections.abc import Iterable, Sequence

from sqlalchemy import bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, func, select

from federation.stock_names import LARGEST_BYTES
from federation.wire import Upload, UploadOrder, UploadRequest
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import bad_field, conflict, not_found
from hub.services.keeping import COORDINATOR, hold_blob, hold_blobs
from hub.services.pulls import may_pull
from hub.services.quotas import check_quota
from hub.tables import ACTIVE_RUNS, BlobRow, PlainUploadRow, PlanRow, RunRow, UploadRow, VersionFileRow
from storage.blobs import ORDER_BYTES, Order
from storage.errors import Refused, Rejected, Unchecked
from storage.manifests import PART_BYTES, part_length

COORDINATOR_NAME = COORDINATOR

# Asked for each update of a round: written once.
_RUN = (
    select(PlanRow.participants, RunRow.state)
    .outerjoin(RunRow, col(RunRow.plan) == col(PlanRow.id))
    .where(PlanRow.id == bindparam("plan"))
)
_UNFINISHED = (
    select(UploadRow)
    .where(UploadRow.uploader == bindparam("uploader"), UploadRow.sha256 == bindparam("sha256"))
    .where(col(UploadRow.state).in_(("open", "checking")))
)
_OPEN = select(func.count()).where(UploadRow.uploader == bindparam("uploader"), UploadRow.state == "open")


def uploader_of(actor: Actor) -> str:
    """The name under which an actor's uploads are kept."""
    return actor.institution or COORDINATOR_NAME


# --- announcing -----------------------------------------------------------------------------------------


def announce(hub: Hub, actor: Actor, request: UploadRequest) -> Upload:
    """Give orders for bytes that somebody announces by digest and size; a repeat goes on where it stopped.

    Raises:
        Refused: ``E_FIELD`` (size, parts), ``E_LIMIT`` (open uploads), ``E_QUOTA``, ``E_RUN`` (it takes no
            uploads now).
    """
    _check_announced(hub, request)
    with hub.database.session_scope(write=False) as session:
        _check_may_upload(session, actor, request)
        row = _open_upload(session, actor, request)
        there = _is_there(hub, session, actor, request)
    if row is not None:
        same = _settle_as_there(hub, row.id) if there else None
        return fresh_orders(hub, actor, row.id) if same is None else answer(hub, same)
    row = _new_row(hub, actor, request, stored=there)
    if request.parts is not None and not there:
        row.multipart = hub.store.begin_parts(row.key)
    try:
        with hub.database.session_scope() as session:
            if not there:
                check_open_uploads(hub, session, row.uploader)
                if row.plan is None:
                    check_quota(hub, session, row.uploader, row.size, sha256=row.sha256)
            held = hold_blob(session, row.sha256) if there else None
            swept = there and held is None
            if not swept:
                session.add(row)
            kept = held.key if held else None
    except BaseException:
        if row.multipart is not None:
            hub.store.abort_parts(row.key, row.multipart)
        raise
    if kept is not None:
        _sync_kept(hub, row, kept)
    return announce(hub, actor, request) if swept else answer(hub, row)


def announce_whole(hub: Hub, session: Session, actor: Actor, request: UploadRequest) -> UploadRow:
    """As ``announce``, in the caller's transaction, for a file of a run that goes whole.

    Raises:
        Refused: as ``announce``; ``E_FIELD``, it goes in parts, or belongs to no run.
    """
    if request.parts is not None or request.plan is None:
        raise bad_field("announces", "only a run's file that goes whole is announced with a statement")
    _check_announced(hub, request)
    _check_may_upload(session, actor, request)
    row = _open_upload(session, actor, request)
    if row is None:
        there = _is_there(hub, session, actor, request) and hold_blob(session, request.sha256) is not None
        row = _new_row(hub, actor, request, stored=there)
        if not there:
            check_open_uploads(hub, session, row.uploader)
        session.add(row)
    else:
        _prolong(hub, row)
    return row


def _settle_as_there(hub: Hub, upload_id: str) -> UploadRow | None:
    """An unfinished upload whose bytes came by another way is stored; None: they have just been swept."""
    with hub.database.session_scope() as session:
        row = session.get(UploadRow, upload_id, with_for_update=True)
        blob = None if row is None else hold_blob(session, row.sha256)
        if row is None or blob is None:
            return None
        row.state, kept = "stored", blob.key
    _sync_kept(hub, row, kept)
    if row.multipart is not None:
        hub.store.abort_parts(row.key, row.multipart)
    hub.store.delete(row.key)
    return row


def _sync_kept(hub: Hub, row: UploadRow, key: str) -> None:
    """Bring the object of an upload to the disk that came another way: for a run, which does not wait."""
    if row.plan is None:
        hub.store.sync(key)


def _check_announced(hub: Hub, request: UploadRequest) -> None:
    limit, hint = hub.settings.upload_limit, ""
    if request.plan is None and limit > LARGEST_BYTES:  # whatever goes up so, any client may want to download
        limit, hint = LARGEST_BYTES, "Save it as shards of 5 GB: stock Hugging Face clients download no more."
    if request.size > limit:
        rule = f"size: at most {limit} bytes, found {request.size}"
        raise Refused("E_LIMIT", rule, hint, status=413, field="size")
    if request.parts is None:
        if request.size > ORDER_BYTES:
            raise bad_field("parts", f"more than {ORDER_BYTES} bytes go in parts of 32 MiB, found none")
        return
    expected = -(-request.size // PART_BYTES) if request.size > PART_BYTES else 0
    if len(request.parts) != expected:
        wanted = f"{expected} digests of parts of 32 MiB" if expected else "no parts"
        raise bad_field("parts", f"a file of {request.size} bytes has {wanted}, found {len(request.parts)}")


def _check_may_upload(session: Session, actor: Actor, request: UploadRequest) -> None:
    if request.plan is None:
        decide(actor, "upload", Thing(request.sha256))
        return
    participants, state = session.exec(_RUN, params={"plan": request.plan}).first() or ((), None)
    decide(actor, "upload for a run", Thing(f"run {request.plan}", parties=frozenset(participants)))
    if state not in ACTIVE_RUNS:
        raise conflict("E_RUN", f"run {request.plan}: takes no uploads, it is {state or 'not started'}")


def _open_upload(session: Session, actor: Actor, request: UploadRequest) -> UploadRow | None:
    rows = session.exec(_UNFINISHED, params={"uploader": uploader_of(actor), "sha256": request.sha256})
    wanted = (request.plan, request.size, request.parts)
    return next((row for row in rows if (row.plan, row.size, row.parts) == wanted), None)


def _is_there(hub: Hub, session: Session, actor: Actor, request: UploadRequest) -> bool:
    blob = session.get(BlobRow, request.sha256)
    if blob is None or blob.size != request.size:
        return False
    return may_use(hub, session, actor, [request.sha256]) == {request.sha256}


def may_use(hub: Hub, session: Session, actor: Actor, digests: Iterable[str]) -> set[str]:
    """Which of these blobs the actor uploaded, or can read as files of a version."""
    wanted = set(digests)
    uploads = select(UploadRow.sha256).where(
        UploadRow.uploader == uploader_of(actor),
        UploadRow.state == "stored",
        col(UploadRow.sha256).in_(wanted),
    )
    usable = set(session.exec(uploads))
    if actor.institution is None or usable == wanted:
        return usable
    files = select(VersionFileRow.asset_id, VersionFileRow.sha256).where(
        col(VersionFileRow.sha256).in_(wanted - usable)
    )
    readable: dict[str, bool] = {}
    for asset_id, sha256 in session.exec(files):
        if asset_id not in readable:
            readable[asset_id] = may_pull(hub, session, actor.institution, asset_id)
        if readable[asset_id]:
            usable.add(sha256)
    return usable


def _new_row(hub: Hub, actor: Actor, request: UploadRequest, *, stored: bool) -> UploadRow:
    now, upload_id = hub.ledger.now(), secrets.token_hex(16)
    return UploadRow(
        id=upload_id,
        uploader=uploader_of(actor),
        sha256=request.sha256,
        size=request.size,
        parts=request.parts,
        plan=request.plan,
        key=f"blobs/sha256/{request.sha256[:2]}/{request.sha256}.{upload_id}",
        etags={},
        state="stored" if stored else "open",
        created_at=now,
        expires_at=_expiry(hub),
    )


def check_open_uploads(hub: Hub, session: Session, uploader: str, *, besides: int = 0) -> None:
    """Refuse one more unfinished upload than an uploader may have; ``besides``: those of another kind."""
    waiting = session.exec(_OPEN, params={"uploader": uploader}).one() + besides
    if waiting >= hub.settings.uploads_open:
        raise Refused(
            "E_LIMIT",
            f"{uploader} has {waiting} unfinished uploads, at most {hub.settings.uploads_open}",
            f"Finish them, or wait: they expire {hub.settings.upload_hours} hours after their last order.",
            status=429,
        )


# --- orders ---------------------------------------------------------------------------------------------


def fresh_orders(hub: Hub, actor: Actor, upload_id: str) -> Upload:
    """The upload as it stands, with orders for what the store does not hold yet."""
    with hub.database.session_scope() as session:
        row = _owned(session, actor, upload_id)
        _prolong(hub, row)
    _raise_if_refused(row)
    if row.state == "open" and _is_joined(hub, row):
        return complete(hub, actor, upload_id)
    try:
        return answer(hub, row)
    except Unchecked as error:
        if error.code != "E_NO_UPLOAD":
            raise
    if _is_joined(hub, row):
        return complete(hub, actor, upload_id)
    begin_anew(hub, row)
    with hub.database.session_scope(write=False) as session:
        row = _owned(session, actor, upload_id)
    return answer(hub, row)


def begin_anew(hub: Hub, row: UploadRow | PlainUploadRow) -> None:
    """Begin the parts anew that the store has dropped by itself, as by a rule for old unfinished uploads."""
    multipart, mine = hub.store.begin_parts(row.key), False
    with hub.database.session_scope() as session:
        now = session.get(type(row), row.id, with_for_update=True)
        if (
            isinstance(now, PlainUploadRow) or (isinstance(now, UploadRow) and now.state == "open")
        ) and now.multipart == row.multipart:
            now.multipart, mine = multipart, True
    if not mine:  # somebody else has, or all of it came meanwhile
        hub.store.abort_parts(row.key, multipart)


def _prolong(hub: Hub, row: UploadRow) -> None:
    """Whoever gets orders has the whole time for them."""
    if row.state == "open":
        row.expires_at = _expiry(hub)


def _expiry(hub: Hub) -> int:
    return hub.ledger.now() + hub.settings.upload_hours * 3600


def _is_joined(hub: Hub, row: UploadRow) -> bool:
    """Whether the store has joined the parts already: a crash may have kept us from noting it."""
    return row.multipart is not None and hub.store.size(row.key) is not None


def _owned(session: Session, actor: Actor, upload_id: str) -> UploadRow:
    row = session.get(UploadRow, upload_id)
    if row is None:
        raise not_found("upload", upload_id, "It may have expired: announce the file again.")
    decide(actor, "use upload", Thing(f"upload {upload_id}", owner=row.uploader))
    return row


def answer(hub: Hub, row: UploadRow) -> Upload:
    """An upload as its uploader is told of it, with orders for what is missing."""
    if row.state != "open":
        return Upload(id=row.id, state="stored" if row.state == "stored" else "checking")
    store = hub.coordinator_store if row.uploader == COORDINATOR_NAME else hub.store
    if row.parts is None or row.multipart is None:
        order = store.order(row.key, row.sha256, row.size, lasting=row.plan is None)
        beside = hub.folder if row.uploader == COORDINATOR_NAME else None
        file = str(beside.beside(row.id)) if beside else None
        return Upload(id=row.id, state="open", orders=[wire_order(0, order)], file=file)
    done = sorted(hub.store.stored_parts(row.key, row.multipart))
    orders = []
    for number, sha256 in enumerate(row.parts, start=1):
        if number not in done:
            length = part_length(number, row.size)
            order = store.part_order(row.key, row.multipart, number, sha256, length)
            orders.append(wire_order(number, order))
    return Upload(id=row.id, state="open", one_stream=store.one_stream, orders=orders, done_parts=done)


def wire_order(part: int, order: Order) -> UploadOrder:
    """An order of the store as clients get it."""
    return UploadOrder(
        part=part,
        method="PUT",
        url=order.url,
        headers=order.headers,
        expires=order.expires,
        trailer=order.trailer,
    )


def _raise_if_refused(row: UploadRow) -> None:
    if row.state == "refused":
        raise Rejected(
            "E_DIGEST",
            f"upload {row.id}: {row.reason}",
            "The file changed while it was sent, or its parts were hashed wrongly: announce it again.",
        )


# --- completing -----------------------------------------------------------------------------------------


def complete(hub: Hub, actor: Actor, upload_id: str) -> Upload:
    """Take note that all bytes are in the store; several parts are then checked as a whole.

    Raises:
        Refused: ``E_INCOMPLETE``, bytes are missing.
        Rejected: ``E_DIGEST``, the whole is not what was announced.
    """
    with hub.database.session_scope(write=False) as session:
        row = _owned(session, actor, upload_id)
    _raise_if_refused(row)
    if row.state != "open":
        return answer(hub, row)
    if row.parts is None or row.multipart is None:
        if _take(hub, row):
            return answer(hub, settle(hub, row.id, checked_by="hub"))
        if not came_whole(hub, row):
            size = hub.store.size(row.key)
            raise _incomplete(row, f"the store holds {size or 'no'} bytes of it, announced were {row.size}")
        return answer(hub, settle(hub, row.id, checked_by="store"))
    if not _is_joined(hub, row):
        _join(hub, row, row.multipart, len(row.parts))
    with hub.database.session_scope() as session:
        row = _owned(session, actor, upload_id)
        if row.state == "open":
            row.state = "checking"
    hub.bell.ring()  # for ``uploads_waiting``
    return answer(hub, row)


def _take(hub: Hub, row: UploadRow) -> bool:
    """Whether the coordinator has left the file beside the store's, and it is what was announced."""
    beside = hub.folder if row.uploader == COORDINATOR_NAME else None
    return beside is not None and beside.take(row.id, row.key, row.sha256)


def came_whole(hub: Hub, row: UploadRow) -> bool:
    """Whether the store took the file of an upload without parts; it has then checked the digest."""
    return (row.parts is None or row.multipart is None) and hub.store.size(row.key) == row.size


def _join(hub: Hub, row: UploadRow, multipart: str, count: int) -> None:
    """Make the parts one object; the store's own list of them counts, not what a client was answered."""
    try:
        etags = hub.store.stored_parts(row.key, multipart)
    except Unchecked as error:
        if error.code != "E_NO_UPLOAD":
            raise
        etags = {}  # joined by another process, or dropped by the store
    missing = [number for number in range(1, count + 1) if number not in etags]
    if missing and _is_joined(hub, row):
        return  # by another process, between our two looks
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise _incomplete(row, f"parts {', '.join(map(str, missing[:10]))}{more} are not in the store")
    hub.store.complete_parts(row.key, multipart, etags)


def _incomplete(row: UploadRow, found: str) -> Refused:
    return conflict(
        "E_INCOMPLETE", f"upload {row.id}: {found}", "Ask for fresh orders and send what is missing."
    )


def settle(hub: Hub, upload_id: str, *, checked_by: str) -> UploadRow:
    """Make checked bytes a blob, or drop them where the same blob is there already.

    What will be kept is on the disk before anybody hears that it is stored. A run's files can be made again,
    so the store may take its time with them.
    """
    with hub.database.session_scope(write=False) as session:
        row = session.get(UploadRow, upload_id)
    if row is not None and row.plan is None and row.state != "stored":
        hub.store.sync(row.key)
    found = _settle(hub, [upload_id], checked_by)
    if not found:
        raise not_found("upload", upload_id)
    return found[0]


def settle_sent(hub: Hub, plan: str, digests: Iterable[str]) -> None:
    """Settle those of a run's open uploads that have come whole, all at once."""
    with hub.database.session_scope(write=False) as session:
        query = select(UploadRow).where(UploadRow.plan == plan, UploadRow.state == "open")
        query = query.where(col(UploadRow.sha256).in_(set(digests)))
        rows = session.exec(query).all()
    whole = [row.id for row in rows if came_whole(hub, row)]
    if whole:
        _settle(hub, whole, "store")


def _settle(hub: Hub, upload_ids: Sequence[str], checked_by: str) -> Sequence[UploadRow]:
    """The settled uploads, without those that are gone."""
    spare: list[tuple[UploadRow, str]] = []  # with the key that is kept
    with hub.database.session_scope() as session:
        query = select(UploadRow).where(col(UploadRow.id).in_(upload_ids))
        rows = session.exec(query.order_by(UploadRow.sha256).with_for_update()).all()
        settled = [row for row in rows if row.state != "stored"]
        blobs = add_blobs(hub, session, settled, checked_by)
        for row in settled:
            row.state = "stored"
            if blobs[row.sha256].key != row.key:
                spare.append((row, blobs[row.sha256].key))
    for row, kept in spare:
        _sync_kept(hub, row, kept)
        if row.multipart is not None:
            hub.store.abort_parts(row.key, row.multipart)
        hub.store.delete(row.key)
    for row in settled:
        if row.size > PART_BYTES:
            _drop_others(hub, row)
    return rows


def _drop_others(hub: Hub, stored: UploadRow) -> None:
    """Forget the other ways on which the same uploader began to send a large file: in parts, or whole.

    Who is still sending on one of them announces the file anew, and hears that it is there.
    """
    with hub.database.session_scope() as session:
        query = select(UploadRow).where(
            UploadRow.uploader == stored.uploader,
            UploadRow.sha256 == stored.sha256,
            UploadRow.plan == stored.plan,
            UploadRow.state == "open",
        )
        others = session.exec(query.with_for_update()).all()
        for other in others:
            session.delete(other)
    for other in others:
        if other.multipart is not None:
            hub.store.abort_parts(other.key, other.multipart)
        hub.store.delete(other.key)


def add_blobs(hub: Hub, session: Session, rows: Iterable[UploadRow], checked_by: str) -> dict[str, BlobRow]:
    """The blobs of checked bytes, each held: these uploads', or those that are there already."""
    by_digest = {row.sha256: row for row in rows}
    held = hold_blobs(session, by_digest)
    new = [row for sha256, row in sorted(by_digest.items()) if sha256 not in held]
    if not new:
        return held
    values = [
        {
            "sha256": row.sha256,
            "size": row.size,
            "key": row.key,
            "parts": row.parts,
            "checked_by": checked_by,
            "created_at": hub.ledger.now(),
        }
        for row in new
    ]
    # Another upload of the same bytes may be settled at this moment: then its blob is the one.
    insert = sqlite.insert if hub.database.is_sqlite else postgresql.insert
    session.connection().execute(insert(BlobRow).on_conflict_do_nothing(), values)
    return held | hold_blobs(session, [row.sha256 for row in new])
