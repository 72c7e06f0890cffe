"""The names of commits: branches, which move, and tags, which do not.

A tag stands for a version of a model or, for its own institution, for a draft; ``v3`` is version 3 of itself.
No name is taken that could be mistaken for another kind of revision. What a name leads to is found in
``revisions``.
"""

import re
from dataclasses import dataclass
from typing import cast

from sqlmodel import Session, col, select

from hub.access import Actor
from hub.context import Hub
from hub.errors import bad_field, conflict
from hub.services.remembering import keep_tag
from hub.services.revisions import (
    HEX,
    MAIN,
    VERSION,
    Repo,
    branch_row,
    by_number,
    by_tag,
    check_writer,
    is_own,
    resolve,
)
from hub.tables import BranchRow, DraftTagRow, RevisionRow, TagRow
from storage.errors import Refused

_REF = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Ref:
    """A branch or tag and the commit that it names."""

    name: str
    revision: str


def branches(session: Session, actor: Actor, repo: Repo) -> list[Ref]:
    """All branches, main first, each at the commit that it names for this actor."""
    rows = session.exec(
        select(BranchRow).where(BranchRow.kind == repo.kind, BranchRow.name == repo.name)
    ).all()
    ordered = sorted(rows, key=lambda row: (row.branch != MAIN, row.branch))
    return [Ref(row.branch, resolve(session, actor, repo, f"refs/heads/{row.branch}").id) for row in ordered]


def tags(session: Session, actor: Actor, repo: Repo) -> list[Ref]:
    """Tags of versions, the versions' own numbers, and for the owner tags of drafts."""
    rows = session.exec(
        select(RevisionRow).where(
            RevisionRow.kind == repo.kind,
            RevisionRow.name == repo.name,
            col(RevisionRow.version).is_not(None),
        )
    )
    commits: dict[int, str] = {}
    for row in sorted(rows, key=lambda each: (each.created_at, each.id)):
        commits.setdefault(cast(int, row.version), row.id)
    found = {f"v{version}": commit for version, commit in commits.items()}
    if repo.kind == "model":
        for tag in session.exec(select(TagRow).where(TagRow.name == repo.name)):
            if tag.version in commits:
                found[tag.tag] = commits[tag.version]
    drafts = select(DraftTagRow).where(DraftTagRow.kind == repo.kind, DraftTagRow.name == repo.name)
    signed = set(commits.values())
    for draft in session.exec(drafts):
        if is_own(actor, repo) or draft.revision in signed:
            found[draft.tag] = draft.revision
    return [Ref(name, commit) for name, commit in sorted(found.items())]


def check_new_ref(session: Session, repo: Repo, text: str) -> None:
    """Refuse a name that is taken, or that could be mistaken for another kind of revision.

    Raises:
        Refused: ``E_FIELD``, or ``E_REF`` (409) for a name that is there.
    """
    pure = HEX.fullmatch(text) is not None or text.isdigit() or len(text) == 64
    if not _REF.fullmatch(text) or "//" in text or ".." in text or text.startswith("refs/") or pure:
        raise bad_field("name", "letters, digits and ._-/ inside; not a number and not like a commit's id")
    version = by_number(session, repo, text)
    taken = session.get(BranchRow, (repo.kind, repo.name, text)) or by_tag(session, repo, text) or version
    if taken is not None:
        raise conflict("E_REF", f"{repo.name} has {text!r} already; tags do not move", "Choose another name.")


def add_branch(session: Session, actor: Actor, repo: Repo, name: str, start: str) -> None:
    """A new branch at a commit."""
    check_writer(actor, repo)
    check_new_ref(session, repo, name)
    at = resolve(session, actor, repo, start)
    session.add(BranchRow(kind=repo.kind, name=repo.name, branch=name, revision=at.id))


def remove_branch(session: Session, actor: Actor, repo: Repo, name: str) -> None:
    """Forget a branch; its commits stay. Main stays."""
    check_writer(actor, repo)
    row = branch_row(session, repo, name, lock=True)
    if row.branch == MAIN:
        raise Refused("E_REF", f"{repo.name}: the branch main cannot be deleted")
    session.delete(row)


def add_tag(hub: Hub, session: Session, actor: Actor, repo: Repo, name: str, at: RevisionRow) -> None:
    """A new tag: of a model's version like ``fedhub model tag``, else of this very commit."""
    check_writer(actor, repo)
    check_new_ref(session, repo, name)
    now = hub.ledger.now()
    if repo.kind == "model" and at.version is not None and "/" not in name:
        session.add(TagRow(name=repo.name, tag=name, version=at.version, created_at=now))
        session.flush()
        keep_tag(hub, repo.name, name, at.version)
    else:
        session.add(DraftTagRow(kind=repo.kind, name=repo.name, tag=name, revision=at.id, created_at=now))
    session.flush()


def check_tag_free(session: Session, name: str, tag: str, version: int) -> None:
    """A model's version may bear this tag: no branch or draft has it, and it is no other version's number.

    Raises:
        Refused: ``E_TAG`` (409).
    """
    key = ("model", name, tag)
    taken = session.get(BranchRow, key) is not None or session.get(DraftTagRow, key) is not None
    number = VERSION.fullmatch(tag)
    if number is not None and int(number[1]) != version:
        query = select(RevisionRow.id).where(
            RevisionRow.kind == "model", RevisionRow.name == name, RevisionRow.version == int(number[1])
        )
        taken = taken or session.exec(query).first() is not None
    if taken:
        raise conflict("E_TAG", f"{tag!r} of {name} names another revision already", "Choose another tag.")
