"""Models and their versions, and the data sets that members described.

A version is taken in whole or not at all: its manifest, its files (checked, and the pusher's to use), their
formats, then OMS signature, ``asset`` statement and provenance are admitted to the log in one transaction
with the version's rows. Versions never change; tags are made once. What may be seen follows the model's
visibility: ``public`` files need no grant, ``gated`` ones (the default) do, and a ``private`` model is
unknown to all others.

Read ``publish``, ``show``, ``search``. Files go out through ``services.pulls``.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

from sqlalchemy import bindparam
from sqlalchemy import select as rows_of
from sqlmodel import Session, SQLModel, col, func, select

from federation import wire
from federation.licences import check_license
from hub.access import Actor, Thing, decide, may
from hub.context import Hub
from hub.errors import bad_field, conflict, not_found
from hub.services import formats, releases, statements
from hub.services.keeping import hold, manifest_key
from hub.services.lookup import LOG_ROWS
from hub.services.pulls import may_pull
from hub.services.revisions import SEGMENT, Repo, check_tag_free, record_version, shared_statements
from hub.services.uploads import may_use
from hub.tables import (
    AttachmentRow,
    BlobRow,
    ModelRow,
    StatementRow,
    TagRow,
    VersionFileRow,
    VersionRow,
)
from storage.encoding import format_time, unb64
from storage.errors import Refused, Rejected, Unchecked
from storage.evidence import Entry
from storage.manifests import FileEntry, Manifest, check_oms, read_manifest
from storage.signing import open_envelope
from storage.statements import Statement, read_statement

TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
Visibility = Literal["public", "gated", "private"]
VISIBILITIES = ("public", "gated", "private")  # widest first

_models, _versions, _files, _tags = (
    SQLModel.metadata.tables[name] for name in ("model", "version", "version_file", "tag")
)
WHOLE_MODEL = (
    rows_of(
        *(_models.c.owner, _models.c.visibility, LOG_ROWS.label("log_rows")),
        *(each for each in _versions.c if each.name != "name"),
        *(_versions.c.name, _files.c.name.label("file"), _files.c.sha256, _files.c.size, _files.c.parts),
    )
    .select_from(
        _models.outerjoin(_versions, _versions.c.name == _models.c.name).outerjoin(
            _files, _files.c.asset_id == _versions.c.asset_id
        )
    )
    .where(_models.c.name == bindparam("name"))
    .order_by(_versions.c.version)
)
TAGS_OF_MODEL = rows_of(_tags.c.tag, _tags.c.version).where(_tags.c.name == bindparam("name"))
FILES = rows_of(_files).where(_files.c.asset_id.in_(bindparam("assets", expanding=True)))
TAGS = rows_of(_tags).where(_tags.c.name.in_(bindparam("names", expanding=True)))


# --- taking in ------------------------------------------------------------------------------------------


def publish(hub: Hub, actor: Actor, name: str, post: wire.VersionPost) -> wire.ModelVersion:
    """Make uploaded files a signed version; a repeat answers with the version that is there.

    Raises:
        Rejected: manifest, OMS signature or a statement breaks a rule of the format or of the log.
        Refused: ``E_ACCESS`` (another's namespace), ``E_NAME``, ``E_LIMIT``, ``E_UNSAFE_FORMAT``, ``E_TAG``,
            ``E_BLOB_MISSING`` (not uploaded).
    """
    owner = _check_name(name)
    decide(actor, "push version", Thing(f"model {name}", owner))
    manifest = read_manifest(unb64(post.manifest, "E_FIELD"))
    asset = _check_papers(name, manifest, post)
    _check_size(hub, manifest)
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
        return _describe(hub, session, [row])[0]


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
        created_at=now,
    )
    session.add(row)
    add_files(session, manifest)
    repo = Repo("model", manifest.name, owner, "gated", now)
    record_version(session, repo, row.asset_id, row.statement, row.version, now)
    return row


def add_files(session: Session, manifest: Manifest) -> None:
    """Note the files of a manifest, once."""
    known = select(VersionFileRow.name).where(VersionFileRow.asset_id == manifest.asset_id).limit(1)
    if session.exec(known).first() is None:
        session.add_all(_file_row(manifest.asset_id, entry) for entry in manifest.files)
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
    return _describe(hub, session, [row])[0]


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
    return _model(hub, session, row)


# --- reading --------------------------------------------------------------------------------------------


def search(
    hub: Hub, session: Session, actor: Actor, *, text: str | None = None, cursor: str | None = None
) -> tuple[list[wire.Model], str | None]:
    """Models that the actor may see, by name, with the cursor of the next page."""
    query = select(ModelRow).order_by(col(ModelRow.name))
    if cursor is not None:
        query = query.where(col(ModelRow.name) > cursor)
    if text:
        query = query.where(func.lower(ModelRow.name).contains(text.lower(), autoescape=True))
    size = hub.settings.page_size
    found: list[ModelRow] = []
    for row in session.exec(query):
        if len(found) == size:
            return [_model(hub, session, each) for each in found], found[-1].name
        if may(actor, "read model", _thing(hub, session, actor, row)):
            found.append(row)
    return [_model(hub, session, row) for row in found], None


def show(hub: Hub, session: Session, actor: Actor, name: str) -> wire.Model:
    """One model with its versions."""
    return _model(hub, session, _model_row(hub, session, actor, name))


def version(hub: Hub, session: Session, actor: Actor, name: str, number: int) -> wire.ModelVersion:
    """One version of a model."""
    _model_row(hub, session, actor, name)
    return _describe(hub, session, [_version_row(session, name, number)])[0]


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
    decide(actor, "read model", _thing(hub, session, actor, row))
    return row


def _version_row(session: Session, name: str, number: int) -> VersionRow:
    row = session.get(VersionRow, (name, number))
    if row is None:
        raise not_found("version", f"{name}@{number}")
    return row


def _thing(hub: Hub, session: Session, actor: Actor, row: ModelRow) -> Thing:
    parties = frozenset[str]()
    if row.visibility == "private" and actor.institution not in (None, row.owner):
        assets = session.exec(select(VersionRow.asset_id).where(VersionRow.name == row.name))
        if any(may_pull(hub, session, str(actor.institution), asset_id) for asset_id in assets):
            parties = frozenset({str(actor.institution)})
    return Thing(
        f"model {row.name}",
        row.owner,
        parties,
        members=row.visibility == "gated",
        public=row.visibility == "public",
    )


def _model(hub: Hub, session: Session, row: ModelRow) -> wire.Model:
    rows = session.exec(
        select(VersionRow).where(VersionRow.name == row.name).order_by(col(VersionRow.version))
    ).all()
    visibility = cast(Visibility, row.visibility)
    versions = _describe(hub, session, rows)
    return wire.Model(name=row.name, owner=row.owner, visibility=visibility, versions=versions)


def show_json(hub: Hub, session: Session, actor: Actor, name: str) -> bytes:
    """What ``show`` says, as JSON: two statements, and no row becomes more than it must."""
    connection = session.connection()
    rows = connection.execute(WHOLE_MODEL, {"name": name}).all()
    if not rows:
        raise not_found("model", name)
    owner, visibility = rows[0].owner, rows[0].visibility
    model = ModelRow(name=name, owner=owner, visibility=visibility, created_at=0)
    decide(actor, "read model", _thing(hub, session, actor, model))
    versions: dict[int, tuple[Any, list[dict[str, Any]]]] = {}
    for row in rows:
        if row.version is not None:
            files = versions.setdefault(row.version, (row, []))[1]
            if row.file is not None:
                file = {"name": row.file, "sha256": row.sha256, "size": row.size, "parts": row.parts}
                files.append(file)
    tags: dict[int, list[str]] = defaultdict(list)
    for each in connection.execute(TAGS_OF_MODEL, {"name": name}).all():
        tags[each.version].append(each.tag)
    released = releases.released(
        hub, session, [row for row, _ in versions.values()], log_rows=rows[0].log_rows
    )
    described = [
        {
            "name": name,
            "version": number,
            "asset_id": row.asset_id,
            "statement": row.statement,
            "license": row.license,
            "plan": row.plan,
            "released": (name, number) in released,
            "tags": sorted(tags[number]),
            "files": sorted(files, key=lambda file: file["name"].split("/")),
            "created_at": format_time(row.created_at),
        }
        for number, (row, files) in versions.items()
    ]
    said = {"name": name, "owner": owner, "visibility": visibility, "versions": described}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()


def _describe(hub: Hub, session: Session, rows: Sequence[VersionRow]) -> list[wire.ModelVersion]:
    connection = session.connection()
    files: dict[str, list[wire.ModelFile]] = defaultdict(list)
    for file in connection.execute(FILES, {"assets": [row.asset_id for row in rows]}).all():
        files[file.asset_id].append(
            wire.ModelFile(name=file.name, sha256=file.sha256, size=file.size, parts=file.parts)
        )
    tags: dict[tuple[str, int], list[str]] = defaultdict(list)
    for each in connection.execute(TAGS, {"names": sorted({row.name for row in rows})}).all():
        tags[each.name, each.version].append(each.tag)
    released = releases.released(hub, session, rows)
    return [
        wire.ModelVersion(
            name=row.name,
            version=row.version,
            asset_id=row.asset_id,
            statement=row.statement,
            license=row.license,
            plan=row.plan,
            released=(row.name, row.version) in released,
            tags=sorted(tags[row.name, row.version]),
            files=sorted(files[row.asset_id], key=lambda file: file.name.split("/")),
            created_at=format_time(row.created_at),
        )
        for row in rows
    ]


# --- data sets ------------------------------------------------------------------------------------------


def datasets(
    hub: Hub, session: Session, actor: Actor, *, cursor: str | None = None
) -> tuple[list[wire.Dataset], str | None]:
    """Data sets that stay on-site, in log order, with the next page's cursor; shared ones lie elsewhere."""
    decide(actor, "list assets", Thing("data sets"))
    after = -1 if cursor is None else statements.read_cursor(cursor)
    shared = shared_statements(session)
    with hub.ledger.evidence(session) as evidence:
        found = [
            entry
            for entry in evidence.find("asset")
            if entry.index > after and entry.says["type"] == "dataset" and entry.id not in shared
        ]
    size = hub.settings.page_size
    following = str(found[size - 1].index) if len(found) > size else None
    return _datasets(session, found[:size]), following


def dataset(hub: Hub, session: Session, actor: Actor, asset_id: str) -> wire.Dataset:
    """One data set."""
    decide(actor, "read dataset", Thing(f"dataset {asset_id}"))
    with hub.ledger.evidence(session) as evidence:
        found = [e for e in evidence.find("asset", subject=asset_id) if e.says["type"] == "dataset"]
    if not found:
        raise not_found("dataset", asset_id)
    return _datasets(session, found[:1])[0]


def _datasets(session: Session, entries: Iterable[Entry]) -> list[wire.Dataset]:
    described = []
    for entry in entries:
        croissant = session.get(AttachmentRow, entry.statement.subjects[1].digest)
        described.append(
            wire.Dataset(
                name=entry.says["name"],
                owner=entry.institution,
                version=entry.says["version"],
                asset_id=entry.subject,
                croissant="" if croissant is None else croissant.data.decode("utf-8", errors="replace"),
                created_at=format_time(session.get_one(StatementRow, entry.id).logged_at),
            )
        )
    return described
