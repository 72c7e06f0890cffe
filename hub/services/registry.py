"""Models and their versions.

A version is taken in whole or not at all: its manifest, its files (checked, and the pusher's to use), their
formats, then OMS signature, ``asset`` statement and provenance are admitted to the log in one transaction
with the version's rows. Versions never change; tags are made once. What may be seen follows the model's
visibility: ``public`` files need no grant, ``gated`` ones (the default) do, and a ``private`` model is
unknown to all others.

Read ``publish``, ``show``, ``search``. Files go out through ``services.pulls``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

from sqlmodel import Session, select

from federation import wire
from federation.licences import check_license
from federation.stock_names import check_portable, check_unreserved
from hub.access import Actor, Thing, decide, sees_all
from hub.context import Hub
from hub.errors import bad_field, conflict, not_found
from hub.glances import Glance, session_of
from hub.services import described, formats, releases, statements
from hub.services.keeping import hold, manifest_key
from hub.services.pulls import may_pull
from hub.services.refs import check_tag_free
from hub.services.remembering import keep_tag, keep_visibility
from hub.services.revisions import SEGMENT, Repo, record_version
from hub.services.uploads import may_use
from hub.tables import (
    BlobRow,
    FileListRow,
    ModelRow,
    TagRow,
    VersionFileRow,
    VersionRow,
)
from storage.encoding import unb64
from storage.errors import Refused, Rejected, Unchecked
from storage.manifests import FileEntry, Manifest, check_oms, read_manifest
from storage.signing import open_envelope
from storage.statements import Statement, read_statement

TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
Visibility = Literal["public", "gated", "private"]
VISIBILITIES = ("public", "gated", "private")  # widest first


# --- taking in ------------------------------------------------------------------------------------------


def publish(hub: Hub, actor: Actor, name: str, post: wire.VersionPost) -> wire.ModelVersion:
    """Make uploaded files a signed version; a repeat answers with the version that is there.

    Raises:
        Rejected: manifest, OMS signature or a statement breaks a rule of the format or of the log; a file has
            the name of one that the hub makes, or one that not every machine can hold (``E_PATH``).
        Refused: ``E_ACCESS`` (another's namespace), ``E_NAME``, ``E_LIMIT``, ``E_UNSAFE_FORMAT``, ``E_TAG``,
            ``E_BLOB_MISSING`` (not uploaded).
    """
    owner = _check_name(name)
    decide(actor, "push version", Thing(f"model {name}", owner))
    manifest = read_manifest(unb64(post.manifest, "E_FIELD"))
    asset = _check_papers(name, manifest, post)
    _check_size(hub, manifest)
    check_unreserved(entry.name for entry in manifest.files)
    check_portable(entry.name for entry in manifest.files)
    for tag in post.tags:
        _check_tag(tag)
    with hub.database.session_scope(write=False) as session:
        blobs = _find_blobs(hub, session, actor, manifest)
    looked_at = check_formats(hub, manifest.files, blobs)
    # Before the rows: whoever reads them finds the manifest. Without rows nobody asks for it.
    hub.store.put(manifest_key(manifest.asset_id), manifest.raw)
    with hub.database.session_scope() as session:
        hold(hub, session, manifest)
        for digest, content in looked_at.items():
            session.get_one(BlobRow, digest).content = content
        with hub.ledger.evidence(session) as evidence:
            # Named by its digest, so it is true whatever becomes of this version: provenance is held to it.
            evidence.manifests[manifest.asset_id] = manifest
        for bundle in (post.oms, post.asset, post.provenance):
            if bundle is not None:
                statements.admit(session, hub.ledger, bundle.encode())
        row = session.get(VersionRow, (name, asset.predicate["version"]))
        row = row or _add_version(hub, session, owner, manifest, asset)
        for tag in post.tags:
            _add_tag(hub, session, row, tag)
        session.flush()
        return described.version(hub, session, row.name, row.version)


def restore(hub: Hub, session: Session, owner: str, manifest: Manifest, asset: Statement) -> None:
    """Make a logged version's rows again; its blobs are held by the caller."""
    if session.get(VersionRow, (manifest.name, asset.predicate["version"])) is None:
        _add_version(hub, session, owner, manifest, asset)


def _check_name(name: str) -> str:
    owner, _, segment = name.partition("/")
    if not SEGMENT.fullmatch(segment) or ".." in segment or "--" in segment:
        raise Refused(
            "E_NAME",
            f"model {name!r}: expected <institution>/<name> with letters, digits and single ._- inside",
            "Choose a plain name of at most 96 characters.",
            status=422,
            field="name",
        )
    return owner


def _check_papers(name: str, manifest: Manifest, post: wire.VersionPost) -> Statement:
    """Check that manifest and statements are about each other; the log checks who signed them."""
    asset = read_statement(open_envelope(post.asset.encode()))
    oms = read_statement(open_envelope(post.oms.encode()))
    if asset.kind != "asset" or asset.predicate["type"] != "model":
        raise bad_field("asset", f"expected an asset statement of a model, found {asset.kind}")
    if manifest.name != name or asset.predicate["name"] != name:
        raise bad_field(
            "manifest", f"manifest and asset name {manifest.name} and {asset.predicate['name']}, not {name}"
        )
    if manifest.salt is not None:
        raise bad_field("manifest", "a model's manifest has no salt")
    if "license" in asset.predicate:
        check_license(asset.predicate["license"])
    if asset.subject != manifest.asset_id:
        raise Rejected(
            "E_SUBJECT",
            f"the asset statement is about {asset.subject}, the manifest is {manifest.asset_id}",
            "Sign the manifest that you send.",
        )
    if asset.predicate["oms"] != oms.id:
        raise Rejected("E_OMS", f"the asset statement names OMS {asset.predicate['oms']}, sent was {oms.id}")
    check_oms(oms, manifest)
    if post.provenance is not None:
        provenance = read_statement(open_envelope(post.provenance.encode()))
        if provenance.kind != "provenance" or provenance.subject != manifest.asset_id:
            raise bad_field("provenance", "expected a provenance statement about this manifest")
    return asset


def _check_size(hub: Hub, manifest: Manifest) -> None:
    most = hub.settings.version_files
    if len(manifest.files) > most:
        raise Refused(
            "E_LIMIT",
            f"a version has at most {most} files, found {len(manifest.files)}",
            "Pack small files together, for example as one parquet or text file.",
            status=413,
            field="manifest",
        )


def _find_blobs(hub: Hub, session: Session, actor: Actor, manifest: Manifest) -> dict[str, BlobRow]:
    wanted = {entry.sha256 for entry in manifest.files}
    usable = may_use(hub, session, actor, wanted)
    found = {digest: session.get(BlobRow, digest) for digest in usable}
    blobs = {digest: blob for digest, blob in found.items() if blob is not None}
    missing = [entry for entry in manifest.files if not _same(entry, blobs.get(entry.sha256))]
    if missing:
        raise _missing(missing)
    return blobs


def _same(entry: FileEntry, blob: BlobRow | None) -> bool:
    if blob is None or blob.size != entry.size:
        return False
    return blob.parts is None or entry.parts is None or tuple(blob.parts) == entry.parts


def _missing(entries: Sequence[FileEntry]) -> Refused:
    names = ", ".join(repr(entry.name) for entry in entries[:5])
    more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    return Refused(
        "E_BLOB_MISSING",
        f"files {names}{more}: no checked upload of yours has these digests and sizes",
        "Upload them and wait until each is stored, then post the version again.",
        status=409,
        field="manifest",
    )


def check_formats(hub: Hub, files: Iterable[FileEntry], blobs: Mapping[str, BlobRow]) -> dict[str, str]:
    """Look at the files that nobody looked at yet; returns what they are, by digest."""
    looked_at = {}
    for entry in files:
        blob = blobs[entry.sha256]
        is_named_so = entry.name.lower().endswith(".safetensors")
        if blob.content is not None and (blob.content == "safetensors" or not is_named_so):
            continue
        read = partial(hub.store.read, blob.key)
        try:
            looked_at[entry.sha256] = formats.check_content(entry.name, entry.size, read)
        except Unchecked as error:
            if error.code != "E_NO_BLOB":
                raise
            raise _missing([entry]) from error  # it was unused for long, and is swept at this moment
    return looked_at


def _add_version(hub: Hub, session: Session, owner: str, manifest: Manifest, asset: Statement) -> VersionRow:
    now = hub.ledger.now()
    if session.get(ModelRow, manifest.name) is None:
        session.add(ModelRow(name=manifest.name, owner=owner, visibility="gated", created_at=now))
        session.flush()
    row = VersionRow(
        asset_id=manifest.asset_id,
        name=manifest.name,
        version=asset.predicate["version"],
        statement=asset.id,
        license=asset.predicate.get("license"),
        plan=asset.predicate.get("plan"),
        size=sum(entry.size for entry in manifest.files),
        created_at=now,
    )
    session.add(row)
    add_files(session, manifest)
    repo = Repo("model", manifest.name, owner, "gated", now)
    record_version(session, repo, row.asset_id, row.statement, row.version, now)
    if statements.has_release(session, row.asset_id):  # when rows are made again from the log
        statements.note_release(session, row.asset_id)
    return row


def add_files(session: Session, manifest: Manifest) -> None:
    """Note the files of a manifest, once."""
    known = select(VersionFileRow.name).where(VersionFileRow.asset_id == manifest.asset_id).limit(1)
    if session.exec(known).first() is None:
        session.add_all(_file_row(manifest.asset_id, entry) for entry in manifest.files)
        text = described.file_text((each.name, each.sha256, each.size, each.parts) for each in manifest.files)
        session.add(FileListRow(asset_id=manifest.asset_id, files=text))
        session.flush()


def _file_row(asset_id: str, entry: FileEntry) -> VersionFileRow:
    parts = None if entry.parts is None else list(entry.parts)
    return VersionFileRow(
        asset_id=asset_id, name=entry.name, sha256=entry.sha256, size=entry.size, parts=parts
    )


# --- tags and visibility --------------------------------------------------------------------------------


def tag(hub: Hub, session: Session, actor: Actor, name: str, text: str, version: int) -> wire.ModelVersion:
    """Give a version one more name; a tag never moves, so a second version under it is refused."""
    decide(actor, "tag version", Thing(f"model {name}", name.partition("/")[0]))
    _check_tag(text)
    row = _version_row(session, name, version)
    _add_tag(hub, session, row, text)
    session.flush()
    return described.version(hub, session, row.name, row.version)


def _check_tag(text: str) -> None:
    digits = text.isdigit() or re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None
    if not TAG.fullmatch(text) or digits or text == "main":
        raise bad_field(
            "tag",
            "letters, digits and ._- inside; not a number, a digest or main",
            "For example v1.2 or stable.",
        )


def _add_tag(hub: Hub, session: Session, row: VersionRow, text: str) -> None:
    known = session.get(TagRow, (row.name, text))
    if known is None:
        check_tag_free(session, row.name, text, row.version)
        session.add(TagRow(name=row.name, tag=text, version=row.version, created_at=hub.ledger.now()))
        session.flush()
        keep_tag(hub, row.name, text, row.version)
    elif known.version != row.version:
        raise conflict(
            "E_TAG",
            f"tag {text!r} of {row.name} is version {known.version}, tags do not move",
            "Choose another tag.",
        )


def set_visibility(hub: Hub, session: Session, actor: Actor, name: str, visibility: Visibility) -> wire.Model:
    """Say who may see a model; only a login with the targets key may open it wider."""
    row = session.get(ModelRow, name, with_for_update=True)
    if row is None:
        raise not_found("model", name)
    wider = VISIBILITIES.index(visibility) < VISIBILITIES.index(row.visibility)
    decide(actor, "open model" if wider else "tighten model", Thing(f"model {name}", row.owner))
    row.visibility = visibility
    session.add(row)
    session.flush()
    keep_visibility(hub, "model", name, visibility)
    return described.model(hub, session, name)


# --- reading --------------------------------------------------------------------------------------------


def show(hub: Hub, session: Session, actor: Actor, name: str) -> wire.Model:
    """One model with its versions."""
    _model_row(hub, session, actor, name)
    return described.model(hub, session, name)


def show_text(hub: Hub, source: Session | Glance, actor: Actor, name: str) -> str:
    """What ``show`` says, as JSON, in two statements."""
    rows = described.one(source, name)
    if not rows:
        raise not_found("model", name)
    thing = thing_of(hub, source, actor, name, rows[0].owner, rows[0].visibility)
    decide(actor, "read model", thing)
    return described.model_text(hub, source, name, rows)


def version(hub: Hub, session: Session, actor: Actor, name: str, number: int) -> wire.ModelVersion:
    """One version of a model."""
    _model_row(hub, session, actor, name)
    _version_row(session, name, number)
    return described.version(hub, session, name, number)


def manifest(hub: Hub, session: Session, actor: Actor, name: str, number: int) -> bytes:
    """The version's ``manifest.json``; its digest is the asset id."""
    _model_row(hub, session, actor, name)
    return hub.store.get(manifest_key(_version_row(session, name, number).asset_id))


def approvals(hub: Hub, session: Session, actor: Actor, name: str, number: int) -> wire.Approvals:
    """Who has approved a version's release, and how many it needs."""
    _model_row(hub, session, actor, name)
    return releases.approvals(hub, session, _version_row(session, name, number))


def _model_row(hub: Hub, session: Session, actor: Actor, name: str) -> ModelRow:
    row = session.get(ModelRow, name)
    if row is None:
        raise not_found("model", name)
    decide(actor, "read model", thing_of(hub, session, actor, name, row.owner, row.visibility))
    return row


def _version_row(session: Session, name: str, number: int) -> VersionRow:
    row = session.get(VersionRow, (name, number))
    if row is None:
        raise not_found("version", f"{name}@{number}")
    return row


def thing_of(
    hub: Hub, source: Session | Glance, actor: Actor, name: str, owner: str, visibility: str
) -> Thing:
    """A model as ``access.decide`` takes it: a private one has those as parties who may pull a version."""
    parties = frozenset[str]()
    if visibility == "private" and actor.institution not in (None, owner) and not sees_all(actor):
        institution, session = str(actor.institution), session_of(source)
        if any(
            may_pull(hub, session, institution, asset_id)
            for asset_id in _granted(hub, session, name, institution)
        ):
            parties = frozenset({institution})
    return Thing(
        f"model {name}", owner, parties, members=visibility == "gated", public=visibility == "public"
    )


def _granted(hub: Hub, session: Session, name: str, institution: str) -> list[str]:
    """The versions of a model for which a grant to this institution was ever logged."""
    assets = session.exec(select(VersionRow.asset_id).where(VersionRow.name == name)).all()
    with hub.ledger.evidence(session) as evidence:
        return [
            asset_id
            for asset_id in assets
            if any(grant.says["grantee"] == institution for grant in evidence.find("grant", subject=asset_id))
        ]
