"""Repositories as stock clients see them: commits, branches, tags, and who may see which.

One model is one repository. A commit is a *draft* until its institution signs it; signing adds a commit with
the same files, the *version*. Commit ids are 40 hex digits, since stock clients ask for just that, and stand
for parent, files and signature together: a revert is another commit, and signing never changes what an id
shows.

Branches move, tags and versions do not. Who is not of the owner's institution sees each branch at its newest
version: drafts are for their own institution alone. ``v3`` names version 3 unless a tag has that name.

Read ``find``, ``resolve``, ``readable``, ``record_version``.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from sqlalchemy import Select, and_
from sqlalchemy import select as columns
from sqlmodel import Session, SQLModel, col, select

from hub.access import Actor, Thing, decide, may, sees_all
from hub.context import Hub
from hub.glances import Glance, session_of
from hub.services.commits import Commit, FoundCommit
from hub.services.pulls import Use, decide_use
from hub.services.visible import named_like, visible
from hub.tables import BranchRow, DraftTagRow, ModelRow, RevisionRow, SharedDatasetRow, TagRow
from storage.encoding import canonical, sha256_hex
from storage.errors import Refused, Unchecked, shown

Kind = Literal["model", "dataset"]
_TABLES = SQLModel.metadata.tables
MAIN = "main"
SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
HEX = re.compile(r"[0-9a-f]{7,40}")
VERSION = re.compile(r"v([1-9][0-9]{0,8})")
COMMIT_ID = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repo:
    """A model, or a data set whose files lie in the hub."""

    kind: Kind
    name: str  # institution/path
    owner: str
    visibility: str
    created_at: int

    @property
    def path(self) -> str:
        """Its place below the hub's address."""
        return self.name if self.kind == "model" else f"datasets/{self.name}"


Page = tuple[list[tuple[Repo, FoundCommit | None]], str | None]


# --- repositories ---------------------------------------------------------------------------------------


def repo_not_found(name: str) -> Unchecked:
    """No such repository, or none that the caller may know of."""
    return Unchecked("E_REPOSITORY", f"repository {shown(name)}: not found", "Is the name right?")


def no_revision(repo: Repo, text: str) -> Unchecked:
    """The repository has no such branch, tag, version or commit."""
    return Unchecked(
        "E_REVISION", f"{repo.name} has no revision {shown(text)}", "Its refs tell which it has."
    )


def load(session: Session, kind: Kind, name: str) -> Repo | None:
    """The repository of this kind and name."""
    row = session.get(ModelRow, name) if kind == "model" else session.get(SharedDatasetRow, name)
    return None if row is None else _repo(kind, row)


def _repo(kind: Kind, row: ModelRow | SharedDatasetRow) -> Repo:
    return Repo(kind, row.name, row.owner, row.visibility, row.created_at)


def find(hub: Hub, session: Session, actor: Actor, kind: Kind, name: str) -> Repo:
    """A repository that the actor may know of.

    Raises:
        Unchecked: ``E_REPOSITORY``; not here, or private to others.
        Refused: ``E_SCOPE``; the token may not read.
    """
    repo = load(session, kind, name)
    if repo is not None:
        admit(hub, session, actor, repo)
        return repo
    raise repo_not_found(name)


def admit(hub: Hub, source: Session | Glance, actor: Actor, repo: Repo) -> None:
    """Return only when the actor may know of this repository; raises as ``find`` does."""
    try:
        decide(actor, "read repository", _thing(hub, source, actor, repo))
    except Unchecked:
        raise repo_not_found(repo.name) from None
    except Refused as error:
        if error.code != "E_LOGIN":
            raise
        raise repo_not_found(repo.name) from error


def check_writer(actor: Actor, repo: Repo) -> None:
    """Only the owner's institution writes, by a credential that may.

    Raises:
        Refused: ``E_LOGIN``, ``E_ACCESS``, ``E_SCOPE``.
    """
    decide(actor, "write repository", Thing(f"{repo.kind} {repo.name}", repo.owner))


def page(
    hub: Hub,
    session: Session,
    actor: Actor,
    kind: Kind,
    *,
    author: str | None,
    text: str | None,
    cursor: str | None,
    limit: int,
    log_rows: int | None = None,
) -> Page:
    """Repositories that the actor may see, by name, with the cursor of the next page.

    Each with the commit at the end of main, a draft too; None: it has no main.

    Args:
        log_rows: as ``Ledger.evidence`` takes it.
    """
    table = _TABLES["model" if kind == "model" else "shared_dataset"].c
    query = columns(table.name, table.owner, table.visibility, table.created_at).order_by(table.name)
    query = query.where(visible(hub, session, actor, kind, log_rows=log_rows)).limit(limit + 1)
    if author:
        query = query.where(table.owner == author)
    if text:
        query = query.where(named_like(hub, table.name, text))
    found = list[tuple[Repo, FoundCommit | None]]()
    while True:
        asked = query if cursor is None else query.where(table.name > cursor)
        rows = session.connection().execute(_with_heads(kind, asked)).all()
        for row in rows:
            if len(found) == limit:
                return found, found[-1][0].name
            repo = Repo(kind, *row[:4])
            if may(actor, "read repository", _thing(hub, session, actor, repo)):
                found.append((repo, None if row.id is None else FoundCommit(*row[4:])))
        if len(rows) <= limit:
            return found, None
        cursor = rows[-1].name


def _with_heads(kind: Kind, repos: Select[Any]) -> Select[Any]:
    """A page of repositories, each with the commit at the end of main."""
    few, branch, made = repos.subquery("few"), _TABLES["branch"], _TABLES["revision"]
    main = and_(branch.c.kind == kind, branch.c.name == few.c.name, branch.c.branch == MAIN)
    head = and_(made.c.kind == kind, made.c.name == few.c.name, made.c.id == branch.c.revision)
    commit = (made.c[field.name] for field in fields(FoundCommit))
    joined = few.outerjoin(branch, main).outerjoin(made, head)
    return columns(*few.c, *commit).select_from(joined).order_by(few.c.name)


def _thing(hub: Hub, source: Session | Glance, actor: Actor, repo: Repo) -> Thing:
    parties = frozenset[str]()
    if repo.visibility == "private" and actor.institution not in (None, repo.owner) and not sees_all(actor):
        session = session_of(source)
        if any(_may_use(hub, session, actor, repo, row) for row in versions(session, repo)):
            parties = frozenset({str(actor.institution)})
    members, public = repo.visibility == "gated", repo.visibility == "public"
    return Thing(f"{repo.kind} {repo.name}", repo.owner, parties, members=members, public=public)


def _may_use(hub: Hub, session: Session, actor: Actor, repo: Repo, row: RevisionRow) -> bool:
    try:
        readable(hub, session, actor, repo, row)
    except Refused:
        return False
    return True


# --- commits ----------------------------------------------------------------------------------------------


def commit_id(repo_kind: Kind, name: str, parent: str | None, manifest: str | None, asset: str | None) -> str:
    """The id of a commit: 40 hex digits over repository, parent, manifest and asset statement.

    >>> commit_id("model", "owner.example/m", None, None, None)
    '5e79f68aa47eff056c1cc9488ee0055e0f9fec2d'
    """
    said = {"repo": f"{repo_kind}s/{name}", "parent": parent, "manifest": manifest, "asset": asset}
    return sha256_hex(canonical({key: value for key, value in said.items() if value is not None}))[:40]


def add_first(session: Session, repo: Repo) -> None:
    """Give a new repository its empty first commit and its branch main."""
    first = RevisionRow(
        kind=repo.kind,
        name=repo.name,
        id=commit_id(repo.kind, repo.name, None, None, None),
        title="initial commit",
        author=repo.owner,
        created_at=repo.created_at,
    )
    session.add(first)
    session.add(BranchRow(kind=repo.kind, name=repo.name, branch=MAIN, revision=first.id))
    session.flush()


def add_commit(session: Session, repo: Repo, branch: BranchRow, made: RevisionRow) -> RevisionRow:
    """Put a commit on a locked branch; one that is there already (same parent, same files) is that one."""
    known = session.get(RevisionRow, (repo.kind, repo.name, made.id))
    if known is None:
        session.add(made)
    branch.revision = made.id
    session.add(branch)
    session.flush()
    return known or made


def record_version(
    session: Session, repo: Repo, asset_id: str, statement: str, version: int, now: int
) -> None:
    """Commit a signed version: after each draft with these files that ends a branch, else at main's end."""
    if session.get(BranchRow, (repo.kind, repo.name, MAIN)) is None:
        add_first(session, repo)
    branches = session.exec(
        select(BranchRow)
        .where(BranchRow.kind == repo.kind, BranchRow.name == repo.name)
        .order_by(col(BranchRow.branch))
        .with_for_update()
    ).all()
    heads = {branch.branch: head(session, repo, branch) for branch in branches}
    drafts = [
        b for b in branches if heads[b.branch].asset_id == asset_id and heads[b.branch].statement is None
    ]
    for branch in drafts or [b for b in branches if b.branch == MAIN]:
        parent = heads[branch.branch].id
        made = RevisionRow(
            kind=repo.kind,
            name=repo.name,
            id=commit_id(repo.kind, repo.name, parent, asset_id, statement),
            parent=parent,
            asset_id=asset_id,
            statement=statement,
            version=version,
            title=f"Version {version}",
            author=repo.owner,
            created_at=now,
        )
        add_commit(session, repo, branch, made)


def first_commit(session: Session, repo: Repo) -> RevisionRow:
    """The empty commit that every repository begins with."""
    return session.get_one(
        RevisionRow, (repo.kind, repo.name, commit_id(repo.kind, repo.name, None, None, None))
    )


def has_versions(session: Session, repo: Repo) -> bool:
    """Whether anything here was ever signed."""
    query = select(RevisionRow.id).where(
        RevisionRow.kind == repo.kind, RevisionRow.name == repo.name, col(RevisionRow.version).is_not(None)
    )
    return session.exec(query.limit(1)).first() is not None


def head(session: Session, repo: Repo, branch: BranchRow) -> RevisionRow:
    """The commit that a branch names."""
    return session.get_one(RevisionRow, (repo.kind, repo.name, branch.revision))


def branch_row(session: Session, repo: Repo, text: str, *, lock: bool = False) -> BranchRow:
    """A branch by its name."""
    name = text.removeprefix("refs/heads/")
    row = session.get(BranchRow, (repo.kind, repo.name, name), with_for_update=lock or None)
    if row is None:
        raise no_revision(repo, text)
    return row


def history(session: Session, repo: Repo, start: RevisionRow) -> Iterator[RevisionRow]:
    """A commit and those before it, newest first."""
    row: RevisionRow | None = start
    while row is not None:
        yield row
        row = None if row.parent is None else session.get(RevisionRow, (repo.kind, repo.name, row.parent))


def versions(session: Session, repo: Repo) -> Sequence[RevisionRow]:
    """Commits of versions."""
    query = select(RevisionRow).where(
        RevisionRow.kind == repo.kind, RevisionRow.name == repo.name, col(RevisionRow.version).is_not(None)
    )
    return session.exec(query.order_by(col(RevisionRow.version))).all()


# --- resolving ----------------------------------------------------------------------------------------------


def is_own(actor: Actor, repo: Repo) -> bool:
    """Whether drafts of this repository are the actor's to see."""
    return actor.institution == repo.owner


def resolve(session: Session, actor: Actor, repo: Repo, text: str) -> RevisionRow:
    """The commit that a branch, tag, version number or commit id names for this actor.

    Raises:
        Unchecked: ``E_REVISION``.
    """
    if text.startswith("refs/heads/"):
        row = _by_branch(session, actor, repo, text.removeprefix("refs/heads/"))
    elif text.startswith("refs/tags/"):
        name = text.removeprefix("refs/tags/")
        row = by_tag(session, repo, name) or by_number(session, repo, name)
    else:
        row = _by_branch(session, actor, repo, text) or by_tag(session, repo, text)
        row = row or by_number(session, repo, text) or _by_id(session, repo, text)
    if row is None:
        raise no_revision(repo, text)
    return row


def _by_branch(session: Session, actor: Actor, repo: Repo, name: str) -> RevisionRow | None:
    branch = session.get(BranchRow, (repo.kind, repo.name, name))
    if branch is None:
        return None
    newest = head(session, repo, branch)
    if is_own(actor, repo) or newest.statement is not None or not has_versions(session, repo):
        return newest
    for row in history(session, repo, newest):
        if row.statement is not None:
            return row
    return newest


def by_tag(session: Session, repo: Repo, name: str) -> RevisionRow | None:
    draft = session.get(DraftTagRow, (repo.kind, repo.name, name))
    if draft is not None:
        return session.get(RevisionRow, (repo.kind, repo.name, draft.revision))
    if repo.kind == "model":
        tag = session.get(TagRow, (repo.name, name))
        return None if tag is None else by_version(session, repo, tag.version)
    return None


def by_number(session: Session, repo: Repo, name: str) -> RevisionRow | None:
    match = VERSION.fullmatch(name)
    return by_version(session, repo, int(match[1])) if match else None


def by_version(session: Session, repo: Repo, version: int) -> RevisionRow | None:
    """The first commit of a version."""
    of = (RevisionRow.kind == repo.kind, RevisionRow.name == repo.name, RevisionRow.version == version)
    order = (col(RevisionRow.created_at), col(RevisionRow.id))
    return session.exec(select(RevisionRow).where(*of).order_by(*order)).first()


def _by_id(session: Session, repo: Repo, text: str) -> RevisionRow | None:
    if COMMIT_ID.fullmatch(text):
        return session.get(RevisionRow, (repo.kind, repo.name, text))
    if not HEX.fullmatch(text):
        return None
    query = select(RevisionRow).where(
        RevisionRow.kind == repo.kind, RevisionRow.name == repo.name, col(RevisionRow.id).startswith(text)
    )
    rows = session.exec(query.limit(2)).all()
    return rows[0] if len(rows) == 1 else None


def readable(
    hub: Hub,
    source: Session | Glance,
    actor: Actor,
    repo: Repo,
    row: Commit,
    *,
    log_rows: int | None = None,
) -> str | None:
    """Say yes to the files of a commit by returning the grant used (None: none is needed), no by raising.

    Args:
        log_rows: as ``Ledger.evidence`` takes it.
    Raises:
        Refused: ``E_GATED``; a draft of others, or no grant allows it, with the reason.
    """
    check_visible(actor, repo, row)
    if is_own(actor, repo) or row.asset_id is None or row.version is None:
        return None
    use = Use(repo.owner, repo.visibility, repo.name, row.version, row.asset_id)
    try:
        return decide_use(hub, source, use, actor.institution, log_rows=log_rows)
    except Refused as error:
        raise Refused("E_GATED", f"{error.message} ({error.code})", error.hint) from error


def check_visible(actor: Actor, repo: Repo, row: Commit) -> None:
    """Drafts are for their own institution; names of a version's files are for all who see the repository.

    Raises:
        Refused: ``E_GATED``.
    """
    if row.asset_id is not None and row.statement is None and not is_own(actor, repo):
        raise Refused(
            "E_GATED",
            f"{repo.name} at {row.id[:12]} is a draft: only {repo.owner} may read it before it is signed",
            f"Ask {repo.owner} for a version.",
        )
