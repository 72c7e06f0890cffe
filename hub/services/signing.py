"""Drafts on their way to become versions: what a signer compares, and shared data sets that are signed.

A draft of a model is signed like a folder is pushed (``services.registry.publish``). A shared data set,
whose files its owner put here on purpose, gets an ``asset`` statement with a Croissant description and
no salt; on-site data sets, of which the hub has no file, are apart from it and never share a name.
"""

import base64

from sqlmodel import Session, col, select

from federation import wire
from federation.licences import check_license
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import bad_field, conflict
from hub.services import registry, revisions, statements
from hub.services.remembering import keep_attachment
from hub.services.repo_files import stored_manifest
from hub.services.revisions import Kind, Repo, load, record_version, repo_not_found
from hub.tables import RevisionRow, SharedDatasetRow
from storage.encoding import sha256_hex, unb64
from storage.errors import Rejected
from storage.manifests import Manifest, read_manifest
from storage.signing import open_envelope
from storage.statements import Statement, read_statement


def show(hub: Hub, session: Session, actor: Actor, kind: Kind, name: str, text: str) -> wire.Revision:
    """One revision with its manifest, and the version that it is or became.

    Raises:
        Unchecked: ``E_REPOSITORY``, ``E_REVISION``.
        Refused: ``E_GATED``; a draft of others.
    """
    repo = revisions.find(hub, session, actor, kind, name)
    row = revisions.resolve(session, actor, repo, text)
    revisions.check_visible(actor, repo, row)
    return _told(hub, session, repo, row)


def _told(hub: Hub, session: Session, repo: Repo, row: RevisionRow) -> wire.Revision:
    signed = row if row.version is not None else _signed_as(session, repo, row)
    manifest = None if row.asset_id is None else stored_manifest(hub, row.asset_id)
    newest = revisions.versions(session, repo)
    return wire.Revision(
        kind=repo.kind,
        name=repo.name,
        revision=row.id,
        asset_id=row.asset_id,
        version=None if signed is None else signed.version,
        statement=None if signed is None else signed.statement,
        manifest=None if manifest is None else base64.b64encode(manifest).decode(),
        newest=newest[-1].version if newest else None,
        newest_statement=newest[-1].statement if newest else None,
    )


def _signed_as(session: Session, repo: Repo, row: RevisionRow) -> RevisionRow | None:
    """The version that follows this draft with the same files."""
    query = select(RevisionRow).where(
        RevisionRow.kind == repo.kind,
        RevisionRow.name == repo.name,
        RevisionRow.asset_id == row.asset_id,
        RevisionRow.parent == row.id,
        col(RevisionRow.version).is_not(None),
    )
    return None if row.asset_id is None else session.exec(query).first()


# --- shared data sets -------------------------------------------------------------------------------------


def share(hub: Hub, actor: Actor, name: str, post: wire.SharePost) -> wire.Revision:
    """Make a draft of a shared data set its next version (targets key).

    Raises:
        Unchecked: ``E_REPOSITORY``.
        Refused: ``E_ACCESS``; ``E_DRAFT`` (409), no draft has these files; ``E_NAME`` (409), an on-site data
            set has this name.
        Rejected: a rule of the form or of the log.
    """
    decide(actor, "push version", Thing(f"dataset {name}", name.partition("/")[0]))
    manifest, croissant = read_manifest(unb64(post.manifest, "E_FIELD")), unb64(post.croissant, "E_FIELD")
    if len(croissant) > hub.settings.attachment_limit:
        raise bad_field("croissant", f"at most {hub.settings.attachment_limit} bytes")
    version = _check_papers(name, manifest, croissant, post.asset)
    with hub.database.session_scope() as session:
        repo = load(session, "dataset", name)
        if repo is None:
            raise repo_not_found(name)
        _check_draft(session, repo, manifest)
        _check_apart(hub, session, repo)
        keep_attachment(hub.store, sha256_hex(croissant), croissant)
        row = statements.admit(session, hub.ledger, post.asset.encode(), {"croissant.json": croissant})
        signed = revisions.by_version(session, repo, version)
        if signed is None or signed.statement != row.id:
            record_version(session, repo, manifest.asset_id, row.id, version, hub.ledger.now())
        made = revisions.by_version(session, repo, version)
        assert made is not None
        return _told(hub, session, repo, made)


def restore(hub: Hub, session: Session, owner: str, manifest: Manifest, asset: Statement) -> None:
    """Make a logged version's rows again; its blobs are held by the caller."""
    name, version, now = manifest.name, asset.predicate["version"], hub.ledger.now()
    repo = load(session, "dataset", name)
    if repo is None:
        session.add(SharedDatasetRow(name=name, owner=owner, visibility="gated", created_at=now))
        session.flush()
        repo = Repo("dataset", name, owner, "gated", now)
    if revisions.by_version(session, repo, version) is None:
        registry.add_files(session, manifest)
        record_version(session, repo, manifest.asset_id, asset.id, version, now)


def _check_papers(name: str, manifest: Manifest, croissant: bytes, bundle: str) -> int:
    asset = read_statement(open_envelope(bundle.encode()))
    if asset.kind != "asset" or asset.predicate["type"] != "dataset":
        raise bad_field("asset", f"expected an asset statement of a dataset, found {asset.kind}")
    if {manifest.name, asset.predicate["name"]} != {name}:
        raise bad_field("manifest", f"manifest and asset must both name {name}")
    if manifest.salt is not None:
        raise bad_field("manifest", "files that lie in the hub have a manifest without salt")
    found = [subject.digest for subject in asset.subjects]
    if found != [manifest.asset_id, sha256_hex(croissant)]:
        raise Rejected(
            "E_SUBJECT",
            "the asset statement is not about this manifest and this description",
            "Sign them again.",
        )
    if "license" in asset.predicate:
        check_license(asset.predicate["license"])
    number: int = asset.predicate["version"]
    return number


def _check_draft(session: Session, repo: Repo, manifest: Manifest) -> None:
    query = select(RevisionRow.id).where(
        RevisionRow.kind == "dataset",
        RevisionRow.name == repo.name,
        RevisionRow.asset_id == manifest.asset_id,
    )
    if session.exec(query.limit(1)).first() is None:
        raise conflict(
            "E_DRAFT", f"{repo.name} has no draft with these files", "Upload and commit them first."
        )


def _check_apart(hub: Hub, session: Session, repo: Repo) -> None:
    """No on-site data set may have the name of a shared one: their versions would be one chain."""
    own = {row.statement for row in revisions.versions(session, repo)}
    with hub.ledger.evidence(session) as evidence:
        named = [e for e in evidence.find("asset", issuer=repo.owner) if e.says["name"] == repo.name]
        others = [entry for entry in named if entry.id not in own and entry.says["type"] == "dataset"]
    if any(not _is_shared(session, repo, entry.id) for entry in others):
        raise conflict(
            "E_NAME",
            f"{repo.name} is the name of a data set that stays on-site",
            "Share it under another name.",
        )


def _is_shared(session: Session, repo: Repo, statement: str) -> bool:
    query = select(RevisionRow.id).where(
        RevisionRow.kind == "dataset", RevisionRow.name == repo.name, RevisionRow.statement == statement
    )
    return session.exec(query.limit(1)).first() is not None
