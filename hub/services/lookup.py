"""What is asked most, each in one statement over indexes: a file of a revision, and the names of its files.

``revisions.resolve`` and ``repo_files.file_at`` answer the same step by step and stay the word on every
rule; here the common cases are answered at once: a branch, a tag, a version's number or a whole commit id, a
file of the version itself. Whatever is not one of these is left to them. Access is decided as everywhere, by
``revisions.admit`` and ``revisions.readable``.

Read ``look``, ``found_file``.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Table, and_, bindparam, func, select
from sqlmodel import Session, SQLModel

from federation.stock_names import is_large, is_reserved
from hub.access import Actor
from hub.context import Hub
from hub.glances import Glance, ask
from hub.services.commits import Commit, FoundCommit
from hub.services.repo_files import RepoFile, pointer_oid, proof_paths
from hub.services.revisions import (
    COMMIT_ID,
    MAIN,
    VERSION,
    Kind,
    Repo,
    admit,
    is_own,
    repo_not_found,
)

_TABLES = SQLModel.metadata.tables
LOG_ROWS = (
    select(_TABLES["log_sequence"].c.next_index).where(_TABLES["log_sequence"].c.id == 1).scalar_subquery()
)

LOG_SIZE = select(LOG_ROWS.label("log_rows"))


@dataclass(frozen=True)
class Found:
    """A repository that the actor may know of, the commit that a revision names, and one of its files.

    Attributes:
        sha256: of the file; None when no file was asked for, or the commit's manifest has none of this name.
        oid: git's name of its bytes, where it is known.
        log_rows: how many statements the log had at this moment.
    """

    repo: Repo
    commit: Commit
    sha256: str | None
    size: int
    oid: str | None
    log_rows: int


def look(
    hub: Hub,
    source: Session | Glance,
    actor: Actor,
    kind: Kind,
    name: str,
    revision: str = MAIN,
    path: str = "",
) -> Found | None:
    """Repository, commit and file in one statement; None: the revision is not one of the common cases.

    Raises:
        Unchecked: ``E_REPOSITORY``; not here, or private to others.
        Refused: ``E_SCOPE``.
    """
    number = VERSION.fullmatch(revision)
    asked = {
        "name": name,
        "revision": revision,
        "number": int(number[1]) if number else None,
        "commit": revision if COMMIT_ID.fullmatch(revision) else None,
        "path": path,
    }
    rows = ask(source, _statement(kind), asked)
    if not rows:
        raise repo_not_found(name)
    row = rows[0]
    repo = Repo(kind, name, row.owner, row.visibility, row.repo_created_at)
    admit(hub, source, actor, repo)
    drafts_hidden = row.branch is not None and row.statement is None and not is_own(actor, repo)
    return None if row.id is None or drafts_hidden else _found(repo, row)


def log_rows(source: Session | Glance) -> int:
    """How many statements the log has at this moment, as ``Ledger.evidence`` takes it."""
    return int(ask(source, LOG_SIZE, {})[0].log_rows)


def _found(repo: Repo, row: Any) -> Found:
    commit = FoundCommit(row.id, row.asset_id, row.statement, row.version, row.created_at)
    return Found(repo, commit, row.sha256, row.size or 0, row.oid, row.log_rows)


def found_file(found: Found, path: str) -> RepoFile | None:
    """The file that was found; None: it is not in the commit's manifest, or git's name of it is not known."""
    if found.sha256 is None:
        return None
    large = is_large(path, found.size)
    oid = pointer_oid(found.sha256, found.size) if large else found.oid
    return None if oid is None else RepoFile(path, found.sha256, found.size, oid, large)


def certainly_absent(found: Found, path: str) -> bool:
    """Whether the commit has no such file, neither in its manifest nor made by the hub."""
    return found.sha256 is None and not is_reserved(path)


def file_names(source: Session | Glance, repo: Repo, commit: Commit) -> list[str]:
    """Names of all files of a commit, those that the hub makes too, in order."""
    if commit.asset_id is None:
        return []
    own = {row.name for row in ask(source, _NAMES, {"asset_id": commit.asset_id})}
    return sorted(own | set(proof_paths(repo, commit)))


_NAMES = select(_TABLES["version_file"].c.name).where(
    _TABLES["version_file"].c.asset_id == bindparam("asset_id")
)


@cache
def _statement(kind: Kind) -> Any:
    """One row for one repository: what the revision names, by the order of ``revisions.resolve``.

    Every table is reached by its primary key or an index of it.
    """
    repo = _TABLES["model" if kind == "model" else "shared_dataset"]
    branch, draft, made = _TABLES["branch"], _TABLES["draft_tag"], _TABLES["revision"]
    file, git = _TABLES["version_file"], _TABLES["git_blob"]
    wanted: BindParameter[str] = bindparam("revision")
    of_draft = [_of(draft, kind, repo), draft.c.tag == wanted, branch.c.branch.is_(None)]
    joined = repo.outerjoin(branch, and_(_of(branch, kind, repo), branch.c.branch == wanted)).outerjoin(
        draft, and_(*of_draft)
    )
    chosen: list[ColumnElement[Any]] = [branch.c.revision, draft.c.revision]
    if kind == "model":
        tag = _TABLES["tag"]
        joined = joined.outerjoin(tag, and_(tag.c.name == repo.c.name, tag.c.tag == wanted))
        chosen.append(_numbered(kind, repo, tag.c.version))
    chosen += [_numbered(kind, repo, bindparam("number")), bindparam("commit")]
    joined = (
        joined.outerjoin(made, and_(_of(made, kind, repo), made.c.id == func.coalesce(*chosen)))
        .outerjoin(file, and_(file.c.asset_id == made.c.asset_id, file.c.name == bindparam("path")))
        .outerjoin(git, git.c.sha256 == file.c.sha256)
    )
    shown = (repo.c.owner, repo.c.visibility, repo.c.created_at.label("repo_created_at"), branch.c.branch)
    commit = (made.c.id, made.c.asset_id, made.c.statement, made.c.version, made.c.created_at)
    of_file = (file.c.sha256, file.c.size, git.c.oid, LOG_ROWS.label("log_rows"))
    return select(*shown, *commit, *of_file).select_from(joined).where(repo.c.name == bindparam("name"))


def _of(table: Table, kind: Kind, repo: Table) -> ColumnElement[bool]:
    return and_(table.c.kind == kind, table.c.name == repo.c.name)


def _numbered(kind: Kind, repo: Table, number: ColumnElement[Any]) -> ColumnElement[Any]:
    """Id of the first commit of a version."""
    made = _TABLES["revision"].alias()
    query = select(made.c.id).where(made.c.kind == kind, made.c.name == repo.c.name, made.c.version == number)
    return query.order_by(made.c.created_at, made.c.id).limit(1).scalar_subquery()
