"""The files of a commit as stock clients see them: large or small, and by which names of their bytes.

A file is *large* by its name and size alone, so that every answer about it agrees: large ones are named by
their SHA-256 and lie in the store, small ones by git's blob SHA-1 and come through the hub. Beside a model
version's own files stand those that prove it: ``model.sig`` and the folder ``fedhub/``. They are made by the
hub, are in no manifest, and stay out of data sets, whose loader would take them for rows.

Read ``files_of``, ``file_at``, ``content_of``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from federation.stock_names import PROOF_FOLDER, SIGNATURE_FILE, git_oid, is_large, is_reserved
from hub.context import Hub
from hub.services.commits import Commit
from hub.services.revisions import Repo
from hub.tables import BlobRow, GitBlobRow, StatementRow, VersionFileRow
from storage.encoding import sha256_hex
from storage.errors import Unchecked, shown
from storage.signing import open_envelope
from storage.statements import read_statement

POINTER_BYTES = 134  # of a Git LFS pointer with a size of 10 digits or fewer; clients only show it
MANIFEST_FILE = f"{PROOF_FOLDER}/manifest.json"
ASSET_FILE = f"{PROOF_FOLDER}/asset.sigstore.json"
PROOFS = (SIGNATURE_FILE, ASSET_FILE, MANIFEST_FILE)
PROOFS_KNOWN = 4096  # versions whose made files are remembered: they never change, and manifests may be long

_known_proofs: dict[str, "tuple[RepoFile, ...]"] = {}  # by asset statement


@dataclass(frozen=True)
class RepoFile:
    """One file of a commit."""

    path: str
    sha256: str
    size: int
    oid: str  # git's blob SHA-1: of its bytes, or of its pointer when it is large
    large: bool
    made: bool = False  # by the hub, as proof of a version

    @property
    def etag(self) -> str:
        """The name under which a client's cache keeps its bytes."""
        return self.sha256 if self.large else self.oid


def pointer_oid(sha256: str, size: int) -> str:
    """What git calls the pointer that stands for a large file."""
    return git_oid(f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode())


# --- listing ----------------------------------------------------------------------------------------------


def files_of(hub: Hub, session: Session, repo: Repo, row: Commit) -> list[RepoFile]:
    """All files of a commit, by path."""
    own = _own_rows(session, row)
    made = [file for file in _proofs(hub, session, repo, row) if file.path not in {one.name for one in own}]
    return sorted([*_described(hub, session, own), *made], key=lambda file: file.path)


def file_at(hub: Hub, session: Session, repo: Repo, row: Commit, path: str) -> RepoFile:
    """One file of a commit.

    Raises:
        Unchecked: ``E_ENTRY``.
    """
    own = None if row.asset_id is None else session.get(VersionFileRow, (row.asset_id, path))
    if own is not None:
        return _described(hub, session, [own])[0]
    if is_reserved(path):
        for file in _proofs(hub, session, repo, row):
            if file.path == path:
                return file
    raise no_entry(repo, row, path)


def no_entry(repo: Repo, row: Commit, path: str) -> Unchecked:
    """The commit has no such file or folder."""
    return Unchecked("E_ENTRY", f"{repo.name} at {row.id[:12]} has no file {shown(path)}")


def _own_rows(session: Session, row: Commit) -> Sequence[VersionFileRow]:
    if row.asset_id is None:
        return []
    return session.exec(select(VersionFileRow).where(VersionFileRow.asset_id == row.asset_id)).all()


def _described(hub: Hub, session: Session, rows: Sequence[VersionFileRow]) -> list[RepoFile]:
    small = {row.sha256 for row in rows if not is_large(row.name, row.size)}
    oids = oids_of(hub, session, small)
    described = []
    for row in rows:
        large = is_large(row.name, row.size)
        oid = pointer_oid(row.sha256, row.size) if large else oids[row.sha256]
        described.append(RepoFile(row.name, row.sha256, row.size, oid, large))
    return described


def file_oids(hub: Hub, session: Session, rows: Iterable[VersionFileRow]) -> dict[str, str]:
    """By which name a client compares its copy: path -> SHA-256, or git's name of a small file."""
    return {file.path: file.etag for file in _described(hub, session, list(rows))}


def oids_of(hub: Hub, session: Session, digests: Iterable[str]) -> dict[str, str]:
    """git's names of small files; those that nobody computed yet are read once and remembered."""
    wanted = sorted(set(digests))
    found: dict[str, str] = {}
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        for known in session.exec(select(GitBlobRow).where(col(GitBlobRow.sha256).in_(some))):
            found[known.sha256] = known.oid
    fresh = {}
    for digest in wanted:
        if digest not in found:
            fresh[digest] = git_oid(hub.store.get(session.get_one(BlobRow, digest).key))
    if fresh:
        remember_oids(hub, fresh)
    return found | fresh


def remember_oids(hub: Hub, oids: dict[str, str]) -> None:
    """Keep git's names of these digests; they never change."""
    with hub.database.session_scope() as session:
        for digest, oid in sorted(oids.items()):
            if session.get(GitBlobRow, digest) is not None:
                continue
            try:
                with session.begin_nested():
                    session.add(GitBlobRow(sha256=digest, oid=oid))
            except IntegrityError:  # somebody else has just read the same file
                continue


# --- what proves a version --------------------------------------------------------------------------------


def proof_paths(repo: Repo, row: Commit) -> tuple[str, ...]:
    """Names of the files that the hub makes for a commit."""
    signed = repo.kind == "model" and row.statement is not None and row.asset_id is not None
    return PROOFS if signed else ()


def _proofs(hub: Hub, session: Session, repo: Repo, row: Commit) -> list[RepoFile]:
    if repo.kind != "model" or row.statement is None or row.asset_id is None:
        return []
    known = _known_proofs.get(row.statement)
    if known is None:
        known = tuple(
            RepoFile(path, sha256_hex(data), len(data), git_oid(data), large=False, made=True)
            for path in PROOFS
            for data in [proof(hub, session, path, row.statement, row.asset_id)]
        )
        while len(_known_proofs) >= PROOFS_KNOWN:
            _known_proofs.pop(next(iter(_known_proofs)), None)
        _known_proofs[row.statement] = known
    return list(known)


def stored_manifest(hub: Hub, asset_id: str) -> bytes:
    """``manifest.json`` of a version or draft."""
    return hub.store.get(f"assets/{asset_id}/manifest.json")


def proof(hub: Hub, session: Session, path: str, statement: str, asset_id: str) -> bytes:
    """The bytes of one made file."""
    if path == MANIFEST_FILE:
        return stored_manifest(hub, asset_id)
    asset = session.get_one(StatementRow, statement)
    if path == ASSET_FILE:
        return asset.bundle
    oms = read_statement(open_envelope(asset.bundle)).predicate["oms"]
    return session.get_one(StatementRow, oms).bundle


def content_of(hub: Hub, session: Session, row: Commit, file: RepoFile) -> bytes:
    """All bytes of a small file."""
    if file.made:
        assert row.statement is not None and row.asset_id is not None
        return proof(hub, session, file.path, row.statement, row.asset_id)
    return hub.store.get(session.get_one(BlobRow, file.sha256).key)
