"""Removes what nothing needs any more: files of dropped drafts, blobs, stray objects, uploads cut long ago.

Everything is asked of ``services.keeping``. Rows go first, in a transaction that asks again under lock, and
objects after it: a crash between the two leaves a stray object, which the next sweep removes. Objects and
parts without a row are removed only when they are older than the grace period, since some are written moments
before their row. A sweep never waits for a push: rows that somebody holds are left for the next one.

Read ``sweep``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TypeVar

from sqlmodel import Session, col, delete, select

from hub.context import Hub
from hub.services import plain_uploads, unhashed_uploads, uploads_waiting, xet_ingest
from hub.services.keeping import (
    ASSETS,
    BATCH,
    BLOBS,
    hold_asset,
    manifest_key,
    needed,
    needed_assets,
    needed_keys,
    unfinished_keys,
)
from hub.tables import (
    BlobRow,
    FileListRow,
    PlainUploadRow,
    RevisionRow,
    UnhashedUploadRow,
    UploadRow,
    VersionFileRow,
    VersionRow,
    XorbRow,
)

T = TypeVar("T")


@dataclass
class Swept:
    """What was removed, or with a dry run would be."""

    uploads: int = 0  # not finished in time
    assets: int = 0  # manifests of no version and no draft
    blobs: int = 0
    objects: int = 0  # of the store that no row names
    parts: int = 0  # unfinished uploads of the store that no row names
    bytes: int = 0  # of blobs and objects

    def as_json(self) -> dict[str, int]:
        """The figures by name."""
        return asdict(self)


def sweep(hub: Hub, *, now: int | None = None, dry_run: bool = False) -> Swept:
    """Remove what no version, draft, log entry, run in progress or upload needs; one sweep at a time.

    Args:
        now: seconds since 1970; by default the hub's clock.
        dry_run: only count.
    """
    since = (hub.ledger.now() if now is None else now) - hub.settings.unused_hours * 3600
    swept = Swept()
    with hub.database.only_one("sweep"):
        swept.uploads = _late_uploads(hub) if dry_run else expire(hub)
        sweep_assets(hub, swept, since, dry_run=dry_run)
        sweep_blobs(hub, swept, since, dry_run=dry_run)
        sweep_objects(hub, swept, since, dry_run=dry_run)
        sweep_parts(hub, swept, since, dry_run=dry_run)
    return swept


def expire(hub: Hub) -> int:
    """Drop every kind of upload that nobody finished in time; returns how many."""
    kinds = (uploads_waiting, plain_uploads, unhashed_uploads, xet_ingest)
    return sum(kind.expire(hub) for kind in kinds)


def _late_uploads(hub: Hub) -> int:
    now = hub.ledger.now()
    states = col(UploadRow.state).in_(("open", "refused"))
    with hub.database.session_scope(write=False) as session:
        late = [
            session.exec(select(UploadRow.id).where(states, UploadRow.expires_at <= now)).all(),
            session.exec(select(PlainUploadRow.id).where(PlainUploadRow.expires_at <= now)).all(),
            session.exec(select(UnhashedUploadRow.id).where(UnhashedUploadRow.expires_at <= now)).all(),
            session.exec(select(XorbRow.hash).where(XorbRow.expires_at <= now)).all(),
        ]
    return sum(map(len, late))


# --- manifests and their lists of files -----------------------------------------------------------------


def sweep_assets(hub: Hub, swept: Swept, since: int, *, dry_run: bool = False) -> None:
    """Forget the files, and remove the manifests, that belong to no version and no draft."""
    with hub.database.session_scope(write=False) as session:
        versions, drafts = select(VersionRow.asset_id), select(RevisionRow.asset_id)
        listed = select(VersionFileRow.asset_id).distinct()
        listed = listed.where(col(VersionFileRow.asset_id).not_in(versions))
        listed = listed.where(
            col(VersionFileRow.asset_id).not_in(drafts.where(col(RevisionRow.asset_id).is_not(None)))
        )
        for asset_id in session.exec(listed).all():
            _drop_asset(hub, swept, asset_id, since, dry_run=dry_run)
    stored = (key.removeprefix(ASSETS).partition("/")[0] for key in hub.store.list(ASSETS))
    for some in _batches(stored):
        with hub.database.session_scope(write=False) as session:
            spare = set(some) - needed_assets(session, some)
        for asset_id in sorted(spare):
            _drop_asset(hub, swept, asset_id, since, dry_run=dry_run)


def _drop_asset(hub: Hub, swept: Swept, asset_id: str, since: int, *, dry_run: bool) -> None:
    key = manifest_key(asset_id)
    with hub.database.session_scope(write=not dry_run) as session:
        if not dry_run:
            hold_asset(hub, session, asset_id)
        written = hub.store.written_at(key)
        if (written is not None and written >= since) or needed_assets(session, [asset_id]):
            return
        swept.assets += 1
        if not dry_run:
            for table in (VersionFileRow, FileListRow):
                session.exec(delete(table).where(col(table.asset_id) == asset_id))
            hub.store.delete(key)  # whoever makes a version of it next waits for us, and writes it again


# --- blobs ----------------------------------------------------------------------------------------------


def sweep_blobs(hub: Hub, swept: Swept, since: int, *, dry_run: bool = False) -> None:
    """Forget blobs older than ``since`` that nothing needs, with their uploads, and remove their objects."""
    for some in _pages(hub, since):
        with hub.database.session_scope(write=False) as session:
            spare = sorted(set(some) - needed(session, some, since=since))
        for row in _read(hub, spare) if dry_run else _forget(hub, spare, since):
            swept.blobs += 1
            swept.bytes += row.size
            if not dry_run:
                hub.store.delete(row.key)


def _pages(hub: Hub, since: int) -> Iterator[list[str]]:
    """Digests of old blobs, in order, some at a time."""
    last = ""
    while True:
        query = select(BlobRow.sha256).where(col(BlobRow.sha256) > last, BlobRow.created_at < since)
        with hub.database.session_scope(write=False) as session:
            some = list(session.exec(query.order_by(col(BlobRow.sha256)).limit(BATCH)))
        if not some:
            return
        last = some[-1]
        yield some


def _read(hub: Hub, digests: list[str]) -> list[BlobRow]:
    with hub.database.session_scope(write=False) as session:
        return list(session.exec(select(BlobRow).where(col(BlobRow.sha256).in_(digests))))


def _forget(hub: Hub, digests: list[str], since: int) -> list[BlobRow]:
    """Remove the rows of these blobs, all but those that somebody holds or needs by now."""
    if not digests:
        return []
    with hub.database.session_scope() as session:
        held = select(BlobRow).where(col(BlobRow.sha256).in_(digests), BlobRow.created_at < since)
        rows = session.exec(held.order_by(col(BlobRow.sha256)).with_for_update(skip_locked=True)).all()
        still = needed(session, [row.sha256 for row in rows], since=since)
        spare = [row for row in rows if row.sha256 not in still]
        for row in spare:
            forget_uploads(session, row.sha256)
            session.delete(row)
    return spare


def forget_uploads(session: Session, sha256: str) -> None:
    """Forget who uploaded a blob that goes."""
    session.exec(delete(UploadRow).where(col(UploadRow.sha256) == sha256, col(UploadRow.state) == "stored"))


# --- what no row names ----------------------------------------------------------------------------------


def sweep_objects(hub: Hub, swept: Swept, since: int, *, dry_run: bool = False) -> None:
    """Remove objects older than ``since`` that no row names: of crashes, and of rows that went before."""
    for prefix in (BLOBS, xet_ingest.PREFIX):
        for some in _batches(hub.store.list(prefix)):
            with hub.database.session_scope(write=False) as session:
                spare = sorted(set(some) - needed_keys(session, some))
            for key in spare:
                written = hub.store.written_at(key)
                if written is None or written >= since:
                    continue
                swept.objects += 1
                swept.bytes += hub.store.size(key) or 0
                if not dry_run:
                    hub.store.delete(key)


def sweep_parts(hub: Hub, swept: Swept, since: int, *, dry_run: bool = False) -> None:
    """Drop the parts of uploads begun before ``since`` that no row names.

    Those of an upload that was joined are no exception: one that came late stays in some stores.
    """
    for key, upload_id, begun in list(hub.store.unfinished()):
        if begun >= since:
            continue
        with hub.database.session_scope(write=False) as session:
            if unfinished_keys(session, [key]):
                continue
        swept.parts += 1
        if not dry_run:
            hub.store.abort_parts(key, upload_id)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, BATCH)):
        yield some
