"""A model's versions as OCI artifacts: each file is one raw layer, so a layer's digest is the file's own.

Nothing is kept for it. Manifest and configuration follow from what was signed (name, number, files, licence)
and from nothing else, so the same version has the same digest on every hub that holds it, also after a
restore. They take the form of ModelPack (CNCF, https://github.com/modelpack/model-spec, v1). The Sigstore
bundles of a version are its referrers (OCI distribution-spec 1.1): OMS signature, ``asset`` statement,
provenance and release, each a manifest of one layer.

Drafts are not here: an artifact is signed or it does not exist.

Read ``named``, ``by_digest``, ``referrers``, ``file_by_digest``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, func, select

from hub.access import Actor
from hub.context import Hub
from hub.services.refs import tags
from hub.services.revisions import Repo, find, no_revision, readable, repo_not_found, resolve
from hub.tables import ModelRow, RevisionRow, StatementRow, VersionFileRow
from storage.encoding import canonical, sha256_hex
from storage.errors import Refused
from storage.evidence import Evidence
from storage.links import provenance_of, release_of
from storage.signing import BUNDLE_TYPE

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
MODEL_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_LAYER = "application/vnd.cncf.model.{}.v1.raw"
TITLE = "org.opencontainers.image.title"
FILEPATH = "org.cncf.model.filepath"
STATEMENT = "dev.fedhub.statement"
KIND = "dev.fedhub.statement.kind"
MANIFEST_BYTES = 4 << 20  # most that the distribution-spec has every registry and client take
KNOWN = 4096  # versions whose documents' digests are remembered

_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DOC = re.compile(r"(?i)(?:.*/)?(?:readme|licen[cs]e|notice|changelog|copying)[^/]*|.*\.(?:md|rst|pdf)")
_WEIGHT = re.compile(r"(?i).*\.(?:safetensors|onnx|gguf|npz|npy|h5|tflite|bin|ubj)")
_CODE = re.compile(r"(?i).*\.(?:py|sh|ipynb|js|c|h|cpp|rs)")
_DATA = re.compile(r"(?i).*\.(?:csv|parquet|arrow|jsonl)")


@dataclass(frozen=True)
class Document:
    """Bytes that the hub makes, with the type under which they go out."""

    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits."""
        return f"sha256:{sha256_hex(self.data)}"

    def descriptor(self, **members: Any) -> dict[str, Any]:
        """How other documents name this one (image-spec, descriptor.md)."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data), **members}


EMPTY = Document(EMPTY_TYPE, b"{}")


@dataclass(frozen=True)
class Artifact:
    """A version's documents: its manifest, those of its bundles, and the small blobs that they name."""

    manifest: Document
    bundles: tuple[Document, ...]  # manifests of the referrers
    blobs: tuple[Document, ...]
    listed: tuple[dict[str, Any], ...]  # descriptors of the referrers

    @property
    def digests(self) -> frozenset[str]:
        """Digests of all of them."""
        return frozenset(each.digest for each in (self.manifest, *self.bundles, *self.blobs))


@dataclass(frozen=True)
class _Paper:
    """One statement beside a version."""

    kind: str
    id: str


_known_digests: dict[tuple[str, tuple[_Paper, ...]], frozenset[str]] = {}


# --- names ------------------------------------------------------------------------------------------------


def repository(hub: Hub, session: Session, actor: Actor, namespace: str, name: str) -> Repo:
    """The model that a repository's name means; OCI names are lower case, models' names need not be.

    Raises:
        Unchecked: ``E_REPOSITORY``; unknown, private to others, or two models differ in case alone.
    """
    full = f"{namespace}/{name}"
    if session.get(ModelRow, full) is None:
        query = select(ModelRow.name).where(
            ModelRow.owner == namespace, func.lower(ModelRow.name) == full.lower()
        )
        found = session.exec(query.limit(2)).all()
        if len(found) != 1:
            raise repo_not_found(full)
        full = found[0]
    return find(hub, session, actor, "model", full)


def tag_names(session: Session, actor: Actor, repo: Repo) -> list[str]:
    """Names of versions, in lexical order as the distribution-spec asks: ``v3`` and tags."""
    signed = {row.id for row in _versions(session, repo)}
    return sorted(
        ref.name for ref in tags(session, actor, repo) if ref.revision in signed and _TAG.fullmatch(ref.name)
    )


def _versions(session: Session, repo: Repo) -> list[RevisionRow]:
    """The first commit of every version, newest version first."""
    query = select(RevisionRow).where(
        RevisionRow.kind == repo.kind, RevisionRow.name == repo.name, col(RevisionRow.version).is_not(None)
    )
    first: dict[int, RevisionRow] = {}
    for row in session.exec(query.order_by(col(RevisionRow.created_at), col(RevisionRow.id))):
        first.setdefault(row.version or 0, row)
    return [first[version] for version in sorted(first, reverse=True)]


# --- finding ----------------------------------------------------------------------------------------------


def named(hub: Hub, session: Session, actor: Actor, repo: Repo, tag: str) -> Document:
    """The manifest that a tag or version number (``v3``) names.

    Raises:
        Unchecked: ``E_REVISION``.
        Refused: ``E_GATED``; no grant opens it. ``E_LIMIT``; too many files for a manifest.
    """
    row = resolve(session, actor, repo, f"refs/tags/{tag}")
    if row.version is None:
        raise no_revision(repo, tag)
    readable(hub, session, actor, repo, row)
    return _artifact(hub, session, repo, row).manifest


def by_digest(
    hub: Hub, session: Session, actor: Actor, repo: Repo, digest: str, *, manifests: bool
) -> Document:
    """A manifest (a version's or a referrer's), or a small blob that one of them names.

    Raises:
        Unchecked: ``E_REVISION``.
        Refused: ``E_GATED``; no grant opens a version that it belongs to.
    """
    if digest == EMPTY.digest and not manifests:
        return EMPTY
    refused: Refused | None = None
    for row, artifact in _holding(hub, session, repo, digest):
        documents = (artifact.manifest, *artifact.bundles) if manifests else artifact.blobs
        for document in documents:
            if document.digest != digest:
                continue
            try:
                readable(hub, session, actor, repo, row)
            except Refused as error:
                refused = refused or error
            else:
                return document
    raise refused or no_revision(repo, digest)


def referrers(hub: Hub, session: Session, actor: Actor, repo: Repo, digest: str) -> list[dict[str, Any]]:
    """Descriptors of the bundles of the version whose manifest has this digest; unknown digests have none.

    Raises:
        Refused: ``E_GATED``.
    """
    for row, artifact in _holding(hub, session, repo, digest):
        if artifact.manifest.digest == digest:
            readable(hub, session, actor, repo, row)
            return list(artifact.listed)
    return []


@dataclass(frozen=True)
class FoundFile:
    """A file of a version that the actor may read, and the grant that opens it."""

    row: RevisionRow
    path: str
    sha256: str
    size: int
    grant: str | None


def file_by_digest(hub: Hub, session: Session, actor: Actor, repo: Repo, digest: str) -> FoundFile | None:
    """A file with these bytes in any version here that the actor may read; None: no version has one.

    Raises:
        Refused: ``E_GATED``; only versions have it that no grant opens.
    """
    query = select(VersionFileRow, RevisionRow).where(
        RevisionRow.kind == repo.kind,
        RevisionRow.name == repo.name,
        col(RevisionRow.version).is_not(None),
        RevisionRow.asset_id == VersionFileRow.asset_id,
        VersionFileRow.sha256 == digest.removeprefix("sha256:"),
    )
    order = (col(RevisionRow.version).desc(), col(RevisionRow.created_at), col(RevisionRow.id))
    refused: Refused | None = None
    seen = set[int]()
    for file, row in session.exec(query.order_by(*order, col(VersionFileRow.name))):
        if row.version is None or row.version in seen:
            continue
        seen.add(row.version)
        try:
            grant = readable(hub, session, actor, repo, row)
        except Refused as error:
            refused = refused or error
            continue
        return FoundFile(row, file.name, file.sha256, file.size, grant)
    if refused is not None:
        raise refused
    return None


def _holding(hub: Hub, session: Session, repo: Repo, digest: str) -> list[tuple[RevisionRow, Artifact]]:
    """Versions with a document of this digest; one with too many files for a manifest has none."""
    rows = _versions(session, repo)
    with hub.ledger.evidence(session) as evidence:
        papers = [_papers(evidence, row) for row in rows]
    found = []
    for row, beside in zip(rows, papers, strict=True):
        known = _known_digests.get((str(row.statement), beside))
        if known is not None and digest not in known:
            continue
        try:
            artifact = _artifact(hub, session, repo, row)
        except Refused as error:
            if error.code != "E_LIMIT":
                raise
            _remember((str(row.statement), beside), frozenset())
            continue
        if digest in artifact.digests:
            found.append((row, artifact))
    return found


# --- making -----------------------------------------------------------------------------------------------


def _artifact(hub: Hub, session: Session, repo: Repo, row: RevisionRow) -> Artifact:
    with hub.ledger.evidence(session) as evidence:
        papers = _papers(evidence, row)
        asset = evidence.get(str(row.statement))
        license_ = "" if asset is None else str(asset.says.get("license", ""))
    query = select(VersionFileRow).where(VersionFileRow.asset_id == row.asset_id)
    files = sorted(session.exec(query), key=lambda file: file.name)  # not as a database would sort letters
    config = _config(repo, row, files, license_)
    manifest = _manifest(repo, row, files, config, license_)
    blobs, bundles, listed = [config, EMPTY], [], []
    for paper in papers:
        blob = Document(BUNDLE_TYPE, session.get_one(StatementRow, paper.id).bundle)
        bundle = _referrer(manifest, paper, blob)
        blobs.append(blob)
        bundles.append(bundle)
        listed.append(bundle.descriptor(artifactType=BUNDLE_TYPE, annotations=_about(paper)))
    made = Artifact(manifest, tuple(bundles), tuple(blobs), tuple(listed))
    _remember((str(row.statement), papers), made.digests)
    return made


def _remember(key: tuple[str, tuple[_Paper, ...]], digests: frozenset[str]) -> None:
    while len(_known_digests) >= KNOWN:
        _known_digests.pop(next(iter(_known_digests)), None)
    _known_digests[key] = digests


def _papers(evidence: Evidence, row: RevisionRow) -> tuple[_Paper, ...]:
    asset = evidence.get(str(row.statement))
    if asset is None:
        return ()
    papers = [_Paper("oms", str(asset.says["oms"])), _Paper("asset", asset.id)]
    for kind, found in (
        ("provenance", provenance_of(evidence, asset) if "plan" in asset.says else None),
        ("release", release_of(evidence, asset)),
    ):
        if found is not None:
            papers.append(_Paper(kind, found.id))
    return tuple(papers)


def _config(repo: Repo, row: RevisionRow, files: Sequence[VersionFileRow], license_: str) -> Document:
    """ModelPack's configuration: what is known of the model, and the digests of its layers in order."""
    descriptor: dict[str, Any] = {
        "name": repo.name,
        "vendor": repo.owner,
        "version": str(row.version),
        "revision": str(row.asset_id),
    }
    if license_:
        descriptor["licenses"] = [license_]
    layers = {"type": "layers", "diffIds": [f"sha256:{file.sha256}" for file in files]}
    return Document(CONFIG_TYPE, canonical({"descriptor": descriptor, "config": {}, "modelfs": layers}))


def _manifest(
    repo: Repo, row: RevisionRow, files: Sequence[VersionFileRow], config: Document, license_: str
) -> Document:
    annotations = {
        TITLE: repo.name,
        "org.opencontainers.image.vendor": repo.owner,
        "org.opencontainers.image.version": str(row.version),
        "dev.fedhub.asset": str(row.asset_id),
        STATEMENT: str(row.statement),
    }
    if license_:
        annotations["org.opencontainers.image.licenses"] = license_
    data = canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": MODEL_TYPE,
            "config": config.descriptor(),
            "layers": [_layer(file) for file in files],
            "annotations": annotations,
        }
    )
    if len(data) > MANIFEST_BYTES:
        raise Refused(
            "E_LIMIT",
            f"{repo.name}@{row.version}: its OCI manifest would be {len(data)} bytes for {len(files)} files;"
            f" OCI clients take {MANIFEST_BYTES}",
            "Pull it with fedhub, a Hugging Face client or MLflow.",
            status=413,
        )
    return Document(MANIFEST_TYPE, data)


def _layer(file: VersionFileRow) -> dict[str, Any]:
    return {
        "mediaType": layer_type(file.name),
        "digest": f"sha256:{file.sha256}",
        "size": file.size,
        "annotations": {TITLE: file.name, FILEPATH: file.name},
    }


def layer_type(path: str) -> str:
    """ModelPack's media type of an unpacked file, by its name alone.

    >>> layer_type("model.safetensors"), layer_type("config.json")
    ('application/vnd.cncf.model.weight.v1.raw', 'application/vnd.cncf.model.weight.config.v1.raw')
    """
    for kind, pattern in (("doc", _DOC), ("weight", _WEIGHT), ("code", _CODE), ("dataset", _DATA)):
        if pattern.fullmatch(path):
            return _LAYER.format(kind)
    return _LAYER.format("weight.config")


def _referrer(subject: Document, paper: _Paper, bundle: Document) -> Document:
    """The manifest of one bundle; its form is the one that Sigstore's own tools write for OCI 1.1."""
    layer = bundle.descriptor(annotations={TITLE: f"{paper.kind}.sigstore.json"})
    return Document(
        MANIFEST_TYPE,
        canonical(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": BUNDLE_TYPE,
                "config": EMPTY.descriptor(),
                "layers": [layer],
                "subject": subject.descriptor(),
                "annotations": _about(paper),
            }
        ),
    )


def _about(paper: _Paper) -> dict[str, str]:
    return {"dev.sigstore.bundle.content": "dsse-envelope", KIND: paper.kind, STATEMENT: paper.id}
