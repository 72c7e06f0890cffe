"""Files on their way out: every pull is decided by a grant, and every single download is decided anew.

A pull answers with addresses on the download origin, a second origin, so that clients drop their token when
they are sent there. Each holds a capability of at most five minutes that names grant, asset, institution
and action. The origin looks at the grant again on every request and sends the client on to a signed address
of the store that lives seconds. When a grant was used, the operator signs a receipt of the pull, and it is
logged.

Read ``decide_pull``, ``pull``, ``locate``.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, delete, func, select

from federation.small_files import DOWN_BYTES, DOWN_FILES, SMALL_BYTES, groups
from federation.wire import Pull, PullFile, PullRequest
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import not_found
from hub.glances import Glance
from hub.services import statements
from hub.tables import (
    BlobRow,
    CapabilityRow,
    InstitutionRow,
    ModelRow,
    RevisionRow,
    SharedDatasetRow,
    VersionFileRow,
    VersionRow,
)
from storage.admission import check_pull
from storage.asset_versions import valid_versions
from storage.encoding import sha256_hex
from storage.errors import Refused, Rejected, Unchecked

BATCH = 500  # values of one IN list
GATED_HINT = "Ask {owner} for a grant: fedhub grant issue {name}@{version} --to {institution} --action pull"


def decide_pull(
    hub: Hub,
    session: Session,
    model: ModelRow,
    version: VersionRow,
    institution: str,
    duo: Sequence[str] = (),
) -> str | None:
    """Say yes by returning the id of the grant used (None: own or public files need none), no by raising.

    Args:
        duo: terms (``DUO:nnnnnnn``) accepted for this use.
    Raises:
        Refused: the reason why no grant allows it (``E_GRANT_MISSING`` and the other errors of V11 and V13),
            or ``E_REVOKED``: its owner has withdrawn the version.
    """
    use = Use(model.owner, model.visibility, model.name, version.version, version.asset_id)
    return decide_use(hub, session, use, institution, duo)


@dataclass(frozen=True)
class Use:
    """A version that somebody wants to read: whose it is and who may see it."""

    owner: str
    visibility: str
    name: str
    version: int
    asset_id: str


def decide_use(
    hub: Hub,
    source: Session | Glance,
    use: Use,
    institution: str | None,
    duo: Sequence[str] = (),
    *,
    grant: str | None = None,
    log_rows: int | None = None,
) -> str | None:
    """As ``decide_pull``, for a version of any kind.

    Args:
        institution: who wants to read; None: somebody unknown.
        grant: how the id of the grant to lean on begins; None: any.
    """
    if use.owner == institution:
        return None
    try:
        with hub.ledger.evidence(source, rows=log_rows) as evidence:
            if use.visibility == "public":
                valid_versions(evidence, use.asset_id)
                return None
            return check_pull(
                evidence,
                grantee=institution or "",
                asset_id=use.asset_id,
                name=use.name,
                duo=list(duo),
                now=hub.ledger.now(),
                named=grant or "",
            )
    except Rejected as error:
        hint = error.hint or GATED_HINT.format(
            owner=use.owner, name=use.name, version=use.version, institution=institution
        )
        raise Refused(error.code, error.message, hint) from error


def is_public(session: Session, asset_id: str) -> bool:
    """Whether it is a version of a model that everybody may pull."""
    query = select(ModelRow.name).join(VersionRow, col(VersionRow.name) == col(ModelRow.name))
    found = query.where(VersionRow.asset_id == asset_id, ModelRow.visibility == "public")
    return session.exec(found).first() is not None


def may_pull(hub: Hub, session: Session, institution: str, asset_id: str) -> bool:
    """Whether the institution could read this version's files now, accepting no terms."""
    try:
        decide_use(hub, session, _use(hub, session, asset_id), institution)
    except (Refused, Unchecked):
        return False
    return True


def pull(hub: Hub, session: Session, actor: Actor, request: PullRequest) -> Pull:
    """Addresses of a version's files for the one who may have them.

    Raises:
        Refused: no grant allows it, with the reason.
        Unchecked: ``E_NOT_FOUND``, also for a private one.
    """
    decide(actor, "pull", Thing(f"asset {request.asset_id}"))
    institution = actor.institution or ""
    version = _use(hub, session, request.asset_id)
    try:
        grant = decide_use(hub, session, version, institution, request.duo, grant=request.grant)
    except Refused:
        if version.visibility == "private":
            raise not_found("asset", request.asset_id) from None
        raise
    receipt = None
    if grant is not None:
        receipt = _recent_receipt(hub, session, institution, version.asset_id, grant)
        receipt = receipt or _log_receipt(hub, session, version.asset_id, grant)
    capability = secrets.token_urlsafe(32)
    session.add(
        CapabilityRow(
            capability_digest=sha256_hex(capability.encode()),
            institution=institution,
            asset_id=version.asset_id,
            grant=grant,
            receipt=receipt,
            duo=list(request.duo),
            expires_at=hub.ledger.now() + hub.settings.capability_s,
        )
    )
    query = select(VersionFileRow).where(VersionFileRow.asset_id == version.asset_id)
    files = session.exec(query.order_by(col(VersionFileRow.name)))
    address = f"{hub.settings.downloads}/d/{capability}"
    return Pull(
        asset_id=version.asset_id,
        name=version.name,
        version=version.version,
        grant=grant,
        expires_in=hub.settings.capability_s,
        small=f"{address}/small",
        files=[
            PullFile(
                name=file.name,
                sha256=file.sha256,
                size=file.size,
                parts=file.parts,
                url=f"{address}/{file.sha256}",
            )
            for file in files
        ],
    )


def _use(hub: Hub, session: Session, asset_id: str) -> Use:
    """The newest version with these files: of a model, else of a data set that is shared here."""
    query = select(VersionRow).where(VersionRow.asset_id == asset_id).order_by(col(VersionRow.version).desc())
    version = session.exec(query).first()
    model = session.get(ModelRow, version.name) if version is not None else None
    if version is not None and model is not None:
        return Use(model.owner, model.visibility, model.name, version.version, asset_id)
    with hub.ledger.evidence(session) as evidence:
        names = {entry.says["name"] for entry in evidence.find("asset", subject=asset_id)}
    for name in sorted(names):
        repo = session.get(SharedDatasetRow, name)
        of = (RevisionRow.kind == "dataset", RevisionRow.name == name, RevisionRow.asset_id == asset_id)
        numbers = select(func.max(RevisionRow.version)).where(*of)
        number = session.exec(numbers).one() if repo is not None else None
        if repo is not None and number is not None:
            return Use(repo.owner, repo.visibility, name, number, asset_id)
    raise not_found("asset", asset_id)


def _recent_receipt(hub: Hub, session: Session, institution: str, asset_id: str, grant: str) -> str | None:
    """The receipt of this same use while its capability lives: a retry is no second pull."""
    return session.exec(
        select(CapabilityRow.receipt).where(
            CapabilityRow.institution == institution,
            CapabilityRow.asset_id == asset_id,
            CapabilityRow.grant == grant,
            CapabilityRow.expires_at > hub.ledger.now(),
        )
    ).first()


def _log_receipt(hub: Hub, session: Session, asset_id: str, grant: str) -> str:
    members = {"action": "pull", "grant": grant}
    bundle = hub.operator.sign("receipt", [("manifest.json", asset_id)], members, now=hub.ledger.now())
    return statements.admit(session, hub.ledger, bundle).id


def ensure_receipt(hub: Hub, institution: str, asset_id: str, grant: str) -> None:
    """Log the receipt of a pull under a grant, unless this same use was noted moments ago.

    For clients that ask for each file by itself: their questions of a few minutes are one pull.
    """
    with hub.database.session_scope(write=False) as session:
        if _recent_receipt(hub, session, institution, asset_id, grant) is not None:
            return
    with hub.database.session_scope() as session:
        if _recent_receipt(hub, session, institution, asset_id, grant) is not None:
            return
        session.add(
            CapabilityRow(
                capability_digest=sha256_hex(secrets.token_bytes(32)),
                institution=institution,
                asset_id=asset_id,
                grant=grant,
                receipt=_log_receipt(hub, session, asset_id, grant),
                duo=[],
                expires_at=hub.ledger.now() + hub.settings.capability_s,
            )
        )


def locate(hub: Hub, session: Session, capability: str, sha256: str) -> str:
    """The signed address of one file, after the pull that ``capability`` stands for was decided anew.

    Raises:
        Refused: ``E_CAPABILITY`` (unknown or over), or the reason why the grant no longer allows it.
        Unchecked: ``E_NOT_FOUND``, the version has no such file.
    """
    version = _decide_again(hub, session, capability)
    query = select(VersionFileRow).where(VersionFileRow.asset_id == version.asset_id)
    file = session.exec(query.where(VersionFileRow.sha256 == sha256)).first()
    blob = session.get(BlobRow, sha256) if file is not None else None
    if file is None or blob is None:
        raise not_found("file", sha256, f"{version.name}@{version.version} has no such file.")
    filename = file.name.rpartition("/")[2]
    return hub.store.signed_url(blob.key, expires_s=hub.settings.signed_url_s, filename=filename)


def small_files(hub: Hub, session: Session, capability: str, number: int) -> list[str]:
    """Where the bytes of one group of the version's small files lie, decided as ``locate`` does.

    Returns:
        Keys of the store, in the manifest's order.
    """
    version = _decide_again(hub, session, capability)
    query = select(VersionFileRow).where(
        VersionFileRow.asset_id == version.asset_id, col(VersionFileRow.size) <= SMALL_BYTES
    )
    files = sorted(session.exec(query), key=lambda file: file.name.split("/"))
    found = groups(files, DOWN_BYTES, DOWN_FILES)
    if number >= len(found):
        raise not_found("group", f"{number} of the small files of {version.name}@{version.version}")
    wanted = [file.sha256 for file in found[number]]
    keys: dict[str, str] = {}
    for start in range(0, len(wanted), BATCH):
        some = col(BlobRow.sha256).in_(wanted[start : start + BATCH])
        keys |= dict(session.exec(select(BlobRow.sha256, BlobRow.key).where(some)).all())
    lost = [sha256 for sha256 in wanted if sha256 not in keys]
    if lost:
        raise not_found("file", lost[0])
    return [keys[sha256] for sha256 in wanted]


def _decide_again(hub: Hub, session: Session, capability: str) -> Use:
    """The version of a capability, if its bearer may still pull it under the grant of its receipt."""
    row = session.get(CapabilityRow, sha256_hex(capability.encode()))
    if row is None or row.expires_at <= hub.ledger.now():
        raise Refused(
            "E_CAPABILITY", "this download address is unknown or over", "Pull again for a fresh one."
        )
    member = session.get(InstitutionRow, row.institution)
    if member is None or member.state != "approved":
        raise Refused("E_ACCESS", f"{row.institution} is no approved member", "Ask the operator.")
    version = _use(hub, session, row.asset_id)
    decide_use(hub, session, version, row.institution, row.duo, grant=row.grant)
    return version


def forget_capabilities(hub: Hub, session: Session) -> None:
    """Drop the rows of capabilities that are over."""
    session.exec(delete(CapabilityRow).where(col(CapabilityRow.expires_at) <= hub.ledger.now()))
