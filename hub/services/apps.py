"""A lab's own code at the hub: bytes by digest, never run, read once when a plan names them.

A bundle is uploaded like any file. A plan that names it holds it (``keeping``), and from then on whoever may
read the plan may read the code: a steward before it consents, a site before it runs it.
"""

from sqlmodel import Session, col, select

from federation.app_bundle import check_named, read_bundle
from federation.app_terms import APP_BYTES, AppTerms
from federation.wire import WeightsLocation
from hub.access import Actor, Thing, decide, may
from hub.context import Hub
from hub.errors import not_found
from hub.services.keeping import hold_blob
from hub.services.uploads import uploader_of
from hub.tables import BlobRow, PlanRow, UploadRow, VersionFileRow
from storage.encoding import is_digest
from storage.errors import Refused


def check_app(hub: Hub, session: Session, issuer: str, app: AppTerms) -> None:
    """Return only when a plan's app is here, uploaded by the plan's issuer, and is what the plan says.

    Raises:
        Refused: ``E_APP_MISSING``. Rejected: ``E_APP``: it is no bundle that a site would run.
    """
    blob = hold_blob(session, app.sha256)
    if blob is None or blob.size != app.size or not _uploaded(session, issuer, app.sha256):
        raise Refused(
            "E_APP_MISSING",
            f"the app {app.sha256} of {app.size} bytes was not uploaded by {issuer}",
            "Upload it first: fedhub app push",
            status=409,
            field="config",
        )
    check_named(read_bundle(hub.store.get(blob.key)), app)


def find(hub: Hub, session: Session, actor: Actor, sha256: str) -> WeightsLocation:
    """Where a bundle can be read: for readers of a plan that names it, and for who uploaded it.

    Raises:
        Unchecked: ``E_NOT_FOUND``, also for those who may not read it.
    """
    decide(actor, "list assets", Thing("apps"))
    blob = session.get(BlobRow, sha256) if is_digest(sha256) else None
    if blob is not None and _may_read(session, actor, blob):
        url = hub.store.signed_url(blob.key, expires_s=hub.settings.weights_url_s)
        return WeightsLocation(sha256=sha256, size=blob.size, url=url, parts=blob.parts)
    raise not_found("app", sha256, "Upload it first: fedhub app push")


def _may_read(session: Session, actor: Actor, blob: BlobRow) -> bool:
    for row in session.exec(select(PlanRow).where(PlanRow.recipe == blob.sha256)):
        if may(actor, "read plan", Thing(f"plan {row.id}", row.issuer, frozenset(row.participants))):
            return True
    if blob.size > APP_BYTES or not _uploaded(session, uploader_of(actor), blob.sha256):
        return False
    # A version's files go out by pulls, which leave receipts.
    listed = select(VersionFileRow.sha256).where(VersionFileRow.sha256 == blob.sha256)
    return session.exec(listed).first() is None


def _uploaded(session: Session, institution: str, sha256: str) -> bool:
    query = select(UploadRow.id).where(
        UploadRow.uploader == institution,
        UploadRow.sha256 == sha256,
        col(UploadRow.plan).is_(None),
        UploadRow.state == "stored",
    )
    return session.exec(query).first() is not None
