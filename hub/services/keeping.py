"""What is still needed, and the promise that nothing needed is swept away.

``needed`` and ``needed_keys`` answer for every part of the hub: a part that leans on blobs or objects adds a
claim here, and nowhere else. Whoever makes something lean on a blob holds the blob's row first, in the same
transaction (``hold``, ``hold_blob``); whoever removes a blob holds its row too and asks ``needed`` again. So
one of the two sees the other, on SQLite and on PostgreSQL alike. A manifest and its list of files are guarded
the same way by a lock on the asset's name.
"""

from collections.abc import Callable, Iterable, Sequence

from sqlmodel import Session, col, or_, select
from sqlmodel.sql.expression import SelectOfScalar

from hub.context import Hub
from hub.errors import conflict
from hub.tables import (
    BlobRow,
    PlainUploadRow,
    PlanRow,
    RevisionRow,
    RoundRow,
    RunRow,
    StatementRow,
    StatementSubjectRow,
    UnhashedUploadRow,
    UploadRow,
    VersionFileRow,
    VersionRow,
    XorbRow,
)
from storage.errors import shown
from storage.manifests import Manifest

BATCH = 500  # values of one IN list
ASSETS = "assets/"
BLOBS = "blobs/"
COORDINATOR = "coordinator"  # as an uploader
LASTING = ("round", "provenance", "release")  # log entries that name weights which are to stay
Digests = Sequence[str]


def manifest_key(asset_id: str) -> str:
    """Where the ``manifest.json`` of a version or draft lies in the store."""
    return f"{ASSETS}{asset_id}/manifest.json"


# --- what is needed -------------------------------------------------------------------------------------


def _files(wanted: Digests, _since: int) -> SelectOfScalar[str]:
    """Files of versions and drafts."""
    return select(VersionFileRow.sha256).where(col(VersionFileRow.sha256).in_(wanted))


def _aggregates(wanted: Digests, _since: int) -> SelectOfScalar[str]:
    """Weights of closed rounds."""
    return select(RoundRow.aggregate).where(col(RoundRow.aggregate).in_(wanted))


def _bases(wanted: Digests, _since: int) -> SelectOfScalar[str]:
    """Weights that plans begin with."""
    return select(PlanRow.weights).where(col(PlanRow.weights).in_(wanted))


def _apps(wanted: Digests, _since: int) -> SelectOfScalar[str]:
    """App bundles that plans name as their code."""
    return select(PlanRow.recipe).where(col(PlanRow.recipe).in_(wanted))


def _logged(wanted: Digests, _since: int) -> SelectOfScalar[str]:
    """What log entries name that others may look up for ever."""
    subject = col(StatementSubjectRow.statement) == col(StatementRow.id)
    query = select(StatementSubjectRow.digest).join(StatementRow, subject)
    return query.where(col(StatementSubjectRow.digest).in_(wanted), col(StatementRow.kind).in_(LASTING))


def _uploads(wanted: Digests, since: int) -> SelectOfScalar[str]:
    """Uploads that are young, or of a run that was not cancelled: the coordinator's, to go on from, and the
    sites' updates, for an auditor. A plan that keeps no updates has them dropped as rounds close.
    """
    alive = select(RunRow.plan).where(RunRow.state != "cancelled")
    in_use = or_(col(UploadRow.created_at) >= since, col(UploadRow.plan).in_(alive))
    query = select(UploadRow.sha256).where(col(UploadRow.sha256).in_(wanted), UploadRow.state == "stored")
    return query.where(in_use)


CLAIMS: tuple[Callable[[Digests, int], SelectOfScalar[str]], ...] = (
    _files,
    _aggregates,
    _bases,
    _apps,
    _logged,
    _uploads,
)


def needed(session: Session, digests: Iterable[str], *, since: int = 0) -> set[str]:
    """Which of these blobs something needs.

    Args:
        since: stored uploads from this time on count by themselves; 0: all of them.
    """
    wanted, found = sorted(set(digests)), set[str]()
    for start in range(0, len(wanted), BATCH):
        some = wanted[start : start + BATCH]
        for claim in CLAIMS:
            found.update(session.exec(claim(some, since)))
    return found


def needed_keys(session: Session, keys: Iterable[str]) -> set[str]:
    """Which of these objects a row names: blobs, and uploads that are not finished."""
    return _named(session, keys, (BlobRow.key, XorbRow.key)) | unfinished_keys(session, keys)


def unfinished_keys(session: Session, keys: Iterable[str]) -> set[str]:
    """Which of these objects are of uploads that are not finished."""
    return _named(session, keys, (UploadRow.key, PlainUploadRow.key, UnhashedUploadRow.key))


def _named(session: Session, keys: Iterable[str], columns: Iterable[str]) -> set[str]:
    wanted, found = sorted(set(keys)), set[str]()
    for start in range(0, len(wanted), BATCH):
        some = wanted[start : start + BATCH]
        for column in columns:
            query = select(column).where(col(column).in_(some))
            if column is UploadRow.key:
                query = query.where(UploadRow.state != "stored")
            found.update(session.exec(query))
    return found


def needed_assets(session: Session, assets: Iterable[str]) -> set[str]:
    """Which of these manifests a version or a draft has."""
    wanted, found = sorted(set(assets)), set[str]()
    for start in range(0, len(wanted), BATCH):
        some = wanted[start : start + BATCH]
        found.update(session.exec(select(VersionRow.asset_id).where(col(VersionRow.asset_id).in_(some))))
        drafts = select(RevisionRow.asset_id).where(col(RevisionRow.asset_id).in_(some))
        found.update(one for one in session.exec(drafts) if one is not None)
    return found


# --- holding --------------------------------------------------------------------------------------------


def hold_blob(session: Session, sha256: str) -> BlobRow | None:
    """A blob's row, which stays until this transaction ends; None: there is no such blob now."""
    return session.get(BlobRow, sha256, with_for_update=True, populate_existing=True)


def hold_blobs(session: Session, digests: Iterable[str]) -> dict[str, BlobRow]:
    """Those of these blobs that are there, each held as by ``hold_blob``, in one order everywhere."""
    wanted, held = sorted(set(digests)), dict[str, BlobRow]()
    for start in range(0, len(wanted), BATCH):
        some = select(BlobRow).where(col(BlobRow.sha256).in_(wanted[start : start + BATCH]))
        rows = session.exec(
            some.order_by(BlobRow.sha256).with_for_update(), execution_options={"populate_existing": True}
        )
        held |= {row.sha256: row for row in rows}
    return held


def hold_asset(hub: Hub, session: Session, asset_id: str) -> None:
    """Keep others from adding or removing this asset's manifest and files until this transaction ends."""
    hub.database.lock(session, f"asset {asset_id}")


def hold(hub: Hub, session: Session, manifest: Manifest) -> None:
    """Make sure that all that a manifest names is there when this transaction commits; call it first in it.

    Raises:
        Refused: ``E_BLOB_MISSING``; a file's bytes were dropped meanwhile.
    """
    hold_asset(hub, session, manifest.asset_id)
    wanted = sorted({entry.sha256 for entry in manifest.files})
    held = set[str]()
    for start in range(0, len(wanted), BATCH):
        some = col(BlobRow.sha256).in_(wanted[start : start + BATCH])
        held.update(
            session.exec(select(BlobRow.sha256).where(some).order_by(BlobRow.sha256).with_for_update())
        )
    for entry in manifest.files:
        if entry.sha256 not in held:
            raise conflict(
                "E_BLOB_MISSING",
                f"file {shown(entry.name)}: its bytes were not used for long and have been dropped",
                "Upload it again.",
            )
    key = manifest_key(manifest.asset_id)
    if hub.store.size(key) is None:
        hub.store.put(key, manifest.raw)
