"""What stock clients write: repositories, and commits that make drafts.

A commit takes the files of the branch's head, applies the client's operations and writes the manifest of the
result. No token can sign, so what it makes is a draft: its own institution may read it, tag it and sign it
(``services.registry.publish``). A digest may be named only by who uploaded its bytes or may read a repository
that holds them, and files that run code when they are loaded are refused by content.

Read ``create``, ``preupload``, ``commit``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlmodel import Session, col, delete, select

from federation.stock_names import check_portable, is_large, is_reserved
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import conflict
from hub.services import registry
from hub.services.keeping import hold, manifest_key
from hub.services.plain_uploads import keep
from hub.services.remembering import forget_repository, keep_visibility
from hub.services.repo_files import file_oids
from hub.services.revisions import (
    SEGMENT,
    Kind,
    Repo,
    add_commit,
    add_first,
    branch_row,
    check_writer,
    commit_id,
    head,
    load,
    repo_not_found,
    versions,
)
from hub.services.uploads import may_use, uploader_of
from hub.tables import (
    BlobRow,
    BranchRow,
    DraftTagRow,
    ModelRow,
    RevisionRow,
    SharedDatasetRow,
    UploadRow,
    VersionFileRow,
)
from storage.errors import Refused, Unchecked, shown
from storage.manifests import FileEntry, Manifest, check_names, compose_manifest

PREUPLOAD_MOST = 1000
TRIES = 5  # of a commit whose client did not say on which parent it stands
Visibility = registry.Visibility


# --- repositories -----------------------------------------------------------------------------------------


def create(hub: Hub, session: Session, actor: Actor, kind: Kind, name: str, visibility: Visibility) -> Repo:
    """An empty repository in the actor's own namespace.

    Raises:
        Refused: ``E_NAME``; ``E_ACCESS``, another's namespace; ``E_REPOSITORY_EXISTS`` (409).
    """
    owner, _, segment = name.partition("/")
    if not SEGMENT.fullmatch(segment) or ".." in segment or "--" in segment or segment.endswith(".git"):
        rule = "letters, digits and single ._- inside, at most 96 characters, not ending in .git"
        raise Refused("E_NAME", f"{shown(name)}: expected <institution>/<name> with {rule}", status=422)
    decide(actor, "write repository", Thing(f"{kind} {name}", owner))
    if load(session, kind, name) is not None:
        raise conflict("E_REPOSITORY_EXISTS", f"{kind} {name} exists already")
    repo = Repo(kind, name, owner, visibility, hub.ledger.now())
    table = ModelRow if kind == "model" else SharedDatasetRow
    session.add(table(name=name, owner=owner, visibility=visibility, created_at=repo.created_at))
    session.flush()
    add_first(session, repo)
    keep_visibility(hub, kind, name, visibility)
    return repo


def remove(hub: Hub, session: Session, actor: Actor, kind: Kind, name: str) -> None:
    """Forget a repository that holds drafts only: what was signed stays for ever.

    Raises:
        Refused: ``E_VERSIONS`` (403); it has versions.
        Unchecked: ``E_REPOSITORY``.
    """
    repo = load(session, kind, name)
    if repo is None:
        raise repo_not_found(name)
    check_writer(actor, repo)
    if versions(session, repo):
        raise Refused(
            "E_VERSIONS",
            f"{kind} {name} has signed versions, which others may lean on",
            "Set its visibility to private, or withdraw versions by a signed revocation.",
        )
    for table in (DraftTagRow, BranchRow, RevisionRow):
        session.exec(delete(table).where(col(table.kind) == kind, col(table.name) == name))
    row = session.get(ModelRow, name) if kind == "model" else session.get(SharedDatasetRow, name)
    session.delete(row)
    session.flush()
    forget_repository(hub, kind, name)


def set_visibility(hub: Hub, session: Session, actor: Actor, repo: Repo, visibility: Visibility) -> None:
    """Say who may see a repository; only a login with the targets key opens it wider."""
    if repo.kind == "model":
        registry.set_visibility(hub, session, actor, repo.name, visibility)
        return
    wider = registry.VISIBILITIES.index(visibility) < registry.VISIBILITIES.index(repo.visibility)
    decide(actor, "open model" if wider else "tighten model", Thing(f"dataset {repo.name}", repo.owner))
    row = session.get_one(SharedDatasetRow, repo.name, with_for_update=True)
    row.visibility = visibility
    session.add(row)
    session.flush()
    keep_visibility(hub, repo.kind, repo.name, visibility)


# --- before a commit --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Announced:
    """A file that a client is about to send."""

    path: str
    size: int


@dataclass(frozen=True)
class Advice:
    """How to send it; ``oid`` names the bytes that stand at its path now."""

    path: str
    large: bool
    ignore: bool
    oid: str | None


def preupload(
    hub: Hub, session: Session, actor: Actor, repo: Repo, branch: str, files: Sequence[Announced]
) -> list[Advice]:
    """Say of each file whether it goes to the store or into the commit, and what is there now."""
    check_writer(actor, repo)
    if len(files) > PREUPLOAD_MOST:
        raise Refused("E_LIMIT", f"at most {PREUPLOAD_MOST} files at once, found {len(files)}", status=413)
    at = head(session, repo, branch_row(session, repo, branch))
    there = {}
    if at.asset_id is not None:
        paths = [file.path for file in files]
        query = select(VersionFileRow).where(VersionFileRow.asset_id == at.asset_id)
        there = {row.name: row for row in session.exec(query.where(col(VersionFileRow.name).in_(paths)))}
    oids = file_oids(hub, session, there.values())
    return [
        Advice(file.path, is_large(file.path, file.size), is_dropped(file.path), oids.get(file.path))
        for file in files
    ]


def is_dropped(path: str) -> bool:
    """Whether a client's file is left out: git's own settings, and what the hub makes itself."""
    return path == ".gitattributes" or path.endswith("/.gitattributes") or is_reserved(path)


# --- committing -------------------------------------------------------------------------------------------


@dataclass
class Changes:
    """The operations of one commit, in order: files put (path -> digest, size), paths and folders removed."""

    title: str = ""
    message: str = ""
    parent: str | None = None  # its id or the beginning of it, if the client said so
    operations: list[tuple[str, str, str, int]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def put(self, path: str, sha256: str, size: int) -> None:
        """A file's new bytes, which are in the store."""
        if is_dropped(path):
            self.dropped.append(path)
        else:
            self.operations.append(("put", path, sha256, size))

    def remove(self, path: str) -> None:
        """A file goes."""
        self.operations.append(("remove", path, "", 0))

    def remove_folder(self, path: str) -> None:
        """A folder goes with all that is in it."""
        self.operations.append(("remove folder", path.rstrip("/") + "/", "", 0))

    @property
    def digests(self) -> dict[str, int]:
        """What is put: digest -> size."""
        return {sha256: size for kind, _, sha256, size in self.operations if kind == "put"}


def check_parent(session: Session, repo: Repo, branch: str, parent: str | None) -> RevisionRow:
    """The head of a branch, if the client's parent is that.

    Raises:
        Refused: ``E_STALE`` (412); somebody else has committed meanwhile.
    """
    at = head(session, repo, branch_row(session, repo, branch))
    if parent is not None and not (len(parent) >= 5 and at.id.startswith(parent)):
        raise Refused(
            "E_STALE",
            f"{repo.name}: {branch} is at {at.id}, not at {shown(parent)}: a commit has happened since",
            "Fetch the branch again and repeat your change.",
            status=412,
        )
    return at


def commit(hub: Hub, actor: Actor, repo: Repo, branch: str, changes: Changes) -> RevisionRow:
    """Make the client's changes the new head of a branch; without any change the head stays.

    Raises:
        Refused: ``E_STALE``; ``E_BLOB_MISSING``, bytes that the actor neither uploaded nor may read;
            ``E_UNSAFE_FORMAT``; ``E_LIMIT``.
        Rejected: ``E_PATH``.
        Unchecked: ``E_REVISION``, no such branch; ``E_ENTRY``, a removed file is not there.
    """
    check_writer(actor, repo)
    check_portable(path for kind, path, _, _ in changes.operations if kind == "put")
    blobs = _blobs(hub, actor, changes)
    for _ in range(TRIES):
        with hub.database.session_scope(write=False) as session:
            at = check_parent(session, repo, branch, changes.parent)
            before = _entries(session, at)
        after = _apply(repo, at, before, changes, blobs)
        if after == before:
            return at
        manifest, looked_at = _manifest(hub, repo, after), dict[str, str]()
        if manifest is not None:
            put = [entry for entry in manifest.files if entry.sha256 in blobs]
            looked_at = registry.check_formats(hub, put, blobs)
            hub.store.put(manifest_key(manifest.asset_id), manifest.raw)
        made = _advance(hub, actor, repo, branch, at, manifest, changes, looked_at)
        if made is not None:
            return made
    raise Refused("E_STALE", f"{repo.name}: {branch} moves faster than this commit", status=412)


def _blobs(hub: Hub, actor: Actor, changes: Changes) -> dict[str, BlobRow]:
    """The blobs that are put, each the actor's to use; reading counts as having them from now on."""
    wanted = changes.digests
    with hub.database.session_scope() as session:
        usable = may_use(hub, session, actor, wanted)
        rows = (
            (sha256, session.get(BlobRow, sha256)) for sha256 in usable
        )  # one may be swept at this moment
        found = {sha256: row for sha256, row in rows if row is not None and row.size == wanted[sha256]}
        missing = wanted.keys() - found.keys()
        if missing:
            paths = [path for kind, path, sha256, _ in changes.operations if sha256 in missing][:5]
            raise Refused(
                "E_BLOB_MISSING",
                f"files {', '.join(map(shown, paths))}: no checked upload of yours has these bytes",
                "Upload them first.",
                status=400,
            )
        mine = select(UploadRow.sha256).where(
            UploadRow.uploader == uploader_of(actor),
            UploadRow.state == "stored",
            col(UploadRow.sha256).in_(list(wanted)),
        )
        owned = set(session.exec(mine))
    for sha256, blob in found.items():
        if sha256 not in owned:
            keep(hub, uploader_of(actor), sha256, blob.size, blob.parts, blob.key)
    return found


def _entries(session: Session, at: RevisionRow) -> dict[str, FileEntry]:
    if at.asset_id is None:
        return {}
    rows = session.exec(select(VersionFileRow).where(VersionFileRow.asset_id == at.asset_id))
    return {
        row.name: FileEntry(row.name, row.sha256, row.size, None if row.parts is None else tuple(row.parts))
        for row in rows
    }


def _apply(
    repo: Repo,
    at: RevisionRow,
    before: Mapping[str, FileEntry],
    changes: Changes,
    blobs: Mapping[str, BlobRow],
) -> dict[str, FileEntry]:
    after = dict(before)
    for kind, path, sha256, size in changes.operations:
        if kind == "put":
            parts = blobs[sha256].parts
            after[path] = FileEntry(path, sha256, size, None if parts is None else tuple(parts))
        elif kind == "remove":
            if is_dropped(path):
                continue
            if path not in after:
                raise Unchecked("E_ENTRY", f"{repo.name} at {at.id[:12]} has no file {shown(path)}")
            del after[path]
        else:
            after = {name: entry for name, entry in after.items() if not name.startswith(path)}
    return after


def _manifest(hub: Hub, repo: Repo, files: Mapping[str, FileEntry]) -> Manifest | None:
    """The manifest of these files; None for none, which no version can have."""
    most = hub.settings.version_files
    if len(files) > most:
        raise Refused("E_LIMIT", f"a commit has at most {most} files, found {len(files)}", status=413)
    check_names(files)
    return compose_manifest(repo.name, files.values()) if files else None


def _advance(
    hub: Hub,
    actor: Actor,
    repo: Repo,
    branch: str,
    at: RevisionRow,
    manifest: Manifest | None,
    changes: Changes,
    looked_at: Mapping[str, str],
) -> RevisionRow | None:
    """Move the branch if it is still where the changes were made; None: it has moved."""
    asset_id = None if manifest is None else manifest.asset_id
    with hub.database.session_scope() as session:
        if manifest is not None:
            hold(hub, session, manifest)
        for sha256, content in looked_at.items():  # each file is looked at once
            session.get_one(BlobRow, sha256).content = content
        row = branch_row(session, repo, branch, lock=True)
        if row.revision != at.id:
            return None
        if manifest is not None:
            registry.add_files(session, manifest)
        made = RevisionRow(
            kind=repo.kind,
            name=repo.name,
            id=commit_id(repo.kind, repo.name, at.id, asset_id, None),
            parent=at.id,
            asset_id=asset_id,
            title=changes.title[:1000] or "Commit",
            message=changes.message[:10_000],
            author=actor.institution or "",
            created_at=hub.ledger.now(),
        )
        return add_commit(session, repo, row, made)
