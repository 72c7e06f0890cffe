"""How much an institution may keep in the store: asked before bytes are taken, not after.

What counts is every different file that the institution uploaded and the hub keeps, and the uploads that it
has begun. Updates and aggregates of runs do not count: they are of plans, and go with them. A file that two
institutions uploaded counts for both, since each of them alone would keep it here.
"""

from sqlmodel import Session, col, func, select

from hub.context import Hub
from hub.services.keeping import COORDINATOR
from hub.tables import PlainUploadRow, UnhashedUploadRow, UploadRow
from storage.errors import Refused


def used_bytes(session: Session, institution: str, *, but: str = "", size: int = -1) -> int:
    """Bytes that count against an institution's quota.

    Args:
        but: digest of a file that is left out.
        size: of that file: what goes up without a digest yet may be it, begun before, and is left out too.
    """
    kept = select(UploadRow.sha256, UploadRow.size).where(
        UploadRow.uploader == institution,
        UploadRow.state != "refused",
        col(UploadRow.plan).is_(None),
        UploadRow.sha256 != but,
    )
    plain = select(PlainUploadRow.sha256, PlainUploadRow.size).where(
        PlainUploadRow.uploader == institution, PlainUploadRow.sha256 != but
    )
    files = kept.union(plain).subquery()
    total = session.exec(select(func.coalesce(func.sum(files.c.size), 0))).one()
    unhashed = select(func.coalesce(func.sum(UnhashedUploadRow.size), 0))
    unhashed = unhashed.where(UnhashedUploadRow.uploader == institution, UnhashedUploadRow.size != size)
    coming = session.exec(unhashed).one()
    return int(total) + int(coming)


def check_quota(hub: Hub, session: Session, uploader: str, size: int, *, sha256: str = "") -> None:
    """Refuse a new file that would not fit; callers do so in the transaction that opens its upload.

    Args:
        sha256: its digest, where it is known: a file whose upload has begun before counts once.
    Raises:
        Refused: ``E_QUOTA`` (413), with what is used and how to make room.
    """
    quota = hub.settings.institution_bytes
    if quota == 0 or uploader == COORDINATOR:
        return
    hub.database.lock(session, f"quota {uploader}")
    used = used_bytes(session, uploader, but=sha256, size=size if sha256 else -1)
    if used + size > quota:
        raise Refused(
            "E_QUOTA",
            f"{uploader} keeps {used:,} of {quota:,} bytes here, a file of {size:,} bytes does not fit",
            "Files of versions stay. Unused uploads and dropped drafts go after"
            f" {hub.settings.unused_hours} hours; the operator sets FEDHUB_INSTITUTION_BYTES.",
            status=413,
        )
