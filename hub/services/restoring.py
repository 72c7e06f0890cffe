"""Brings a database from a backup up to the published log, so that going on does not fork it.

A backup is older than the log in the store. What was logged since is there: the log's entries name
statements by digest, and the statements, key rings and manifests lie beside them. Each missing entry
becomes a row again, in log order and one transaction each, so that a crash leaves a shorter database, never
another one. Members and versions that the statements speak of get their rows back too, versions only when
all their bytes are found and true.

What no statement says comes from ``services.remembering``: visibility, tags of versions, revocations of
tokens. Not in the store, and so lost with the newer database: tokens (only their digest was ever known),
invitations, drafts with their branches and tags, unsigned figures of rounds, recipe and config of plans
(their issuer submits them again), uploads that became no version. Tokens, repositories of drafts and plans
are told by name.

Read ``restore_log``.
"""

import base64
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session, col, select

from hub.context import Hub
from hub.services import registry, remembering, signing, statements
from hub.services.keeping import ASSETS, BLOBS, hold, manifest_key, needed_assets
from hub.tables import (
    BlobRow,
    InstitutionRow,
    LogSequenceRow,
    ModelRow,
    PersonalTokenRow,
    RingRow,
    SharedDatasetRow,
    StatementRow,
    TagRow,
    VersionRow,
)
from storage.encoding import read_json, sha256_hex
from storage.errors import FedhubError, Rejected, Unchecked
from storage.evidence import Entry
from storage.manifests import FileEntry, read_manifest
from storage.signing import open_envelope
from storage.statements import read_statement
from storage.translog import read_entries, stored_head

HINT = "this database is another log's, or went on after it was copied: never start with it"
_log = logging.getLogger("fedhub.restore")


@dataclass
class Restored:
    """What was put back."""

    rows: int = 0  # statements that the database had
    statements: int = 0  # that it got back
    members: list[str] = field(default_factory=list)  # whose role nobody signed: the operator checks it
    versions: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # versions whose bytes are not in the store
    plans: list[str] = field(default_factory=list)  # to be submitted again by their issuers
    tags: list[str] = field(default_factory=list)  # NAME:TAG
    visibility: list[str] = field(default_factory=list)  # what they are set to again
    revoked: list[str] = field(default_factory=list)  # tokens that stay revoked
    lost_tokens: list[str] = field(default_factory=list)  # to be made anew
    lost_drafts: list[str] = field(default_factory=list)  # repositories whose commits are to be made again


def restore_log(hub: Hub) -> Restored:
    """Add the rows of every published statement that the database lacks, and move its head to the log's.

    Raises:
        Rejected: ``E_LOG_FORK``; the database holds other statements than the log. ``E_LOG_TILE``; the log's
            own files are damaged.
        Unchecked: ``E_NO_BLOB``; a statement or ring that the log names is not in the store.
    """
    restored = Restored()
    head = stored_head(hub.store, hub.keys.log.public)
    if head is not None:
        leaves = (leaf for some in read_entries(hub.store, head) for leaf in some)
        restored.rows = _compare(hub, leaves, head.size)
        for leaf in leaves:
            _add(hub, leaf, restored)
    recall(hub, restored)
    hub.ledger.check_start()
    return restored


def _compare(hub: Hub, leaves: Iterator[bytes], size: int) -> int:
    """Check that the rows that are there are the log's first entries; returns how many rows there are."""
    with hub.database.session_scope(write=False) as session:
        rows: int = session.exec(select(LogSequenceRow.next_index)).one()
        index = col(StatementRow.log_index)
        for number in range(min(rows, size)):
            found = session.exec(select(StatementRow.leaf).where(index == number)).first()
            if found != next(leaves):
                raise Rejected("E_LOG_FORK", f"entry {number} of the database is not that of the log", HINT)
    return rows


def _add(hub: Hub, leaf: bytes, restored: Restored) -> None:
    """One statement's row, and what it says about members and versions."""
    statement_id = _id_of(leaf)
    raw = hub.store.get(f"statements/{statement_id[:2]}/{statement_id}.sigstore.json")
    statement = read_statement(open_envelope(raw))
    with hub.database.session_scope() as session:
        if statement.kind == "keyring":
            _add_ring(hub, session, statement.issuer, statement.predicate["version"], statement.id, restored)
        entry = statements.readmit(hub, session, raw, leaf)
    restored.statements += 1
    if statement.kind == "plan":
        restored.plans.append(statement.id)
    if statement.kind == "asset":
        _add_version(hub, entry, restored)


def _id_of(leaf: bytes) -> str:
    """The statement that a log entry stands for."""
    entry = read_json(leaf)
    return base64.b64decode(entry["spec"]["hashedRekordV002"]["data"]["digest"]).hex()


def _add_ring(
    hub: Hub, session: Session, name: str, version: int, statement: str, restored: Restored
) -> None:
    root = hub.store.get(f"keyrings/{name}/{version}.root.json")
    member = session.get(InstitutionRow, name)
    if member is None:
        restored.members.append(name)
        pin = sha256_hex(hub.store.get(f"keyrings/{name}/1.root.json"))
        member = InstitutionRow(name=name, role="firm", state="approved", pin=pin, joined_at=hub.ledger.now())
    member.state = "approved"  # else its statement had not been logged
    session.add(member)
    session.flush()
    ring = session.get(RingRow, (name, version)) or RingRow(institution=name, version=version, root=root)
    ring.root, ring.statement = root, statement
    session.add(ring)
    session.flush()


# --- versions ---------------------------------------------------------------------------------------------


def _add_version(hub: Hub, entry: Entry, restored: Restored) -> None:
    says = entry.says
    name = f"{says['name']}@{says['version']}"
    shared = says["type"] == "dataset"
    if shared and hub.store.size(manifest_key(entry.subject)) is None:
        return  # it stays on-site: the hub never had its manifest
    try:
        manifest = read_manifest(hub.store.get(manifest_key(entry.subject)))
        for file in manifest.files:
            _find_blob(hub, file)
        with hub.database.session_scope() as session:
            hold(hub, session, manifest)
            restore = signing.restore if shared else registry.restore
            restore(hub, session, entry.institution, manifest, entry.statement)
    except FedhubError as error:
        _log.warning("version %s is in the log, but not restored: %s", name, error)
        restored.missing.append(name)
        return
    restored.versions.append(name)


def _find_blob(hub: Hub, file: FileEntry) -> None:
    """The blob of a file: the one that is known, or an object of the store that has these very bytes."""
    with hub.database.session_scope(write=False) as session:
        if session.get(BlobRow, file.sha256) is not None:
            return
    for key in hub.store.list(f"{BLOBS}sha256/{file.sha256[:2]}/{file.sha256}."):
        found = hashlib.sha256()
        for chunk in hub.store.stream(key):
            found.update(chunk)
        if found.hexdigest() == file.sha256:
            row = BlobRow(
                sha256=file.sha256,
                size=file.size,
                key=key,
                parts=None if file.parts is None else list(file.parts),
                checked_by="hub",
                created_at=hub.ledger.now(),
            )
            with hub.database.session_scope() as session:
                session.add(row)
            return
    raise Unchecked("E_BLOB_MISSING", f"no object of the store holds {file.name} ({file.sha256})")


# --- what no statement says -------------------------------------------------------------------------------


def recall(hub: Hub, restored: Restored) -> None:
    """Set visibility, tags and revocations as the store remembers them, and name what is lost."""
    lost: set[str] = set()
    for each in remembering.all_below(hub.store, remembering.VISIBILITIES):
        kind, name = each.steps[0], "/".join(each.steps[1:])
        if not _set_visibility(hub, kind, name, each.says.get("visibility"), restored):
            lost.add(name)
    for each in remembering.all_below(hub.store, remembering.TAGS):
        _add_tag(hub, "/".join(each.steps[:-1]), each.steps[-1], each.says.get("version"), restored)
    for each in remembering.all_below(hub.store, remembering.TOKENS):
        _recall_token(hub, each.steps[0], each.says, restored)
    restored.lost_drafts = sorted(lost | _drafts(hub))


def _set_visibility(hub: Hub, kind: str, name: str, visibility: object, restored: Restored) -> bool:
    """Whether the repository is there."""
    with hub.database.session_scope() as session:
        row = session.get(ModelRow, name) if kind == "model" else session.get(SharedDatasetRow, name)
        if row is not None and visibility in registry.VISIBILITIES and row.visibility != visibility:
            row.visibility = str(visibility)
            session.add(row)
            restored.visibility.append(f"{name} is {visibility}")
    return row is not None


def _add_tag(hub: Hub, name: str, tag: str, version: object, restored: Restored) -> None:
    with hub.database.session_scope() as session:
        known = session.get(TagRow, (name, tag)) is not None
        if not known and isinstance(version, int) and session.get(VersionRow, (name, version)) is not None:
            session.add(TagRow(name=name, tag=tag, version=version, created_at=hub.ledger.now()))
            restored.tags.append(f"{name}:{tag}")


def _recall_token(hub: Hub, token_id: str, says: dict[str, Any], restored: Restored) -> None:
    called = f"{says.get('institution')}: {says.get('name')}"
    with hub.database.session_scope() as session:
        row = session.get(PersonalTokenRow, token_id)
        if row is None and not says.get("revoked"):
            restored.lost_tokens.append(called)
        elif row is not None and says.get("revoked") and row.revoked_at is None:
            row.revoked_at = hub.ledger.now()
            session.add(row)
            restored.revoked.append(called)


def _drafts(hub: Hub) -> set[str]:
    """Names in manifests that the store has and no version or draft of this database leans on."""
    stored = [key.removeprefix(ASSETS).partition("/")[0] for key in hub.store.list(ASSETS)]
    with hub.database.session_scope(write=False) as session:
        known = needed_assets(session, stored)
    names = set()
    for asset_id in set(stored) - known:
        try:
            names.add(read_manifest(hub.store.get(manifest_key(asset_id))).name)
        except (Rejected, Unchecked):
            continue
    return names
