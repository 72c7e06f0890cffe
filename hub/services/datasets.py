"""Data sets, of two kinds that are kept apart.

*On-site* ones are descriptions: the hub holds a signed statement and a Croissant file, and no row. *Shared*
ones lie in the hub like a model's files, because their owner put them here on purpose; who may see them is
their owner's setting. Both are an ``asset`` statement with a Croissant file, and told in the same form.

Read ``on_site``, ``shared``, ``dataset``. Shared files go out through ``services.pulls``, and as repositories
to stock clients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, select

from federation import wire
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import not_found
from hub.services import revisions, statements
from hub.services.revisions import Repo
from hub.tables import AttachmentRow, RevisionRow, StatementRow, VersionFileRow
from storage.encoding import format_time
from storage.errors import Unchecked
from storage.evidence import Entry


@dataclass(frozen=True)
class Wanted:
    """What to look for; an empty text asks for nothing.

    Attributes:
        text: part of the name, in any case.
        owner: an institution.
        license: SPDX expression, or part of one, in any case.
    """

    text: str = ""
    owner: str = ""
    license: str = ""

    def fits(self, entry: Entry) -> bool:
        """Whether a data set's statement is one of those looked for."""
        says = entry.says
        return (
            self.text.lower() in says["name"].lower()
            and self.owner in ("", entry.institution)
            and self.license.lower() in says.get("license", "").lower()
        )


def on_site(
    hub: Hub, session: Session, actor: Actor, wanted: Wanted = Wanted(), *, cursor: str | None = None
) -> tuple[list[wire.Dataset], str | None]:
    """Data sets that stay where they are, in log order, with the next page's cursor."""
    decide(actor, "list assets", Thing("data sets"))
    after = -1 if cursor is None else statements.read_cursor(cursor)
    elsewhere = set(session.exec(select(RevisionRow.statement).where(RevisionRow.kind == "dataset")))
    with hub.ledger.evidence(session) as evidence:
        found = [
            entry
            for entry in evidence.find("asset")
            if entry.index > after
            and entry.says["type"] == "dataset"
            and entry.id not in elsewhere
            and wanted.fits(entry)
        ]
    size = hub.settings.page_size
    following = str(found[size - 1].index) if len(found) > size else None
    return [_told(session, entry, None) for entry in found[:size]], following


def shared(
    hub: Hub, session: Session, actor: Actor, wanted: Wanted = Wanted(), *, cursor: str | None = None
) -> tuple[list[wire.Dataset], str | None]:
    """Newest versions of shared data sets that the actor may see, by name, with the next page's cursor."""
    decide(actor, "list assets", Thing("data sets"))
    size = hub.settings.page_size
    found: list[wire.Dataset] = []
    while True:
        repos, cursor = revisions.page(
            hub,
            session,
            actor,
            "dataset",
            author=wanted.owner or None,
            text=wanted.text or None,
            cursor=cursor,
            limit=size,
        )
        for repo, _head in repos:
            if len(found) == size:
                return found, found[-1].name
            entry = _newest(hub, session, repo)
            if entry is not None and wanted.fits(entry):
                found.append(_told(session, entry, repo))
        if cursor is None:
            return found, None


def _newest(hub: Hub, session: Session, repo: Repo) -> Entry | None:
    """The statement of the newest version; None: nothing was signed yet."""
    signed = revisions.versions(session, repo)
    if not signed:
        return None
    with hub.ledger.evidence(session) as evidence:
        return evidence.get(str(signed[-1].statement))


def dataset(hub: Hub, session: Session, actor: Actor, asset_id: str) -> wire.Dataset:
    """One data set; a shared one only for who may see its repository.

    Raises:
        Unchecked: ``E_NOT_FOUND``.
    """
    decide(actor, "read dataset", Thing(f"dataset {asset_id}"))
    with hub.ledger.evidence(session) as evidence:
        found = [e for e in evidence.find("asset", subject=asset_id) if e.says["type"] == "dataset"]
    for entry in found:
        repo = revisions.load(session, "dataset", entry.says["name"])
        if repo is None or entry.id not in {row.statement for row in revisions.versions(session, repo)}:
            return _told(session, entry, None)
        try:
            revisions.admit(hub, session, actor, repo)
        except Unchecked:
            continue
        return _told(session, entry, repo)
    raise not_found("dataset", asset_id)


def newest(hub: Hub, session: Session, actor: Actor, name: str) -> wire.Dataset:
    """The newest version of a data set of either kind, by name.

    Raises:
        Unchecked: ``E_NOT_FOUND``.
    """
    decide(actor, "read dataset", Thing(f"dataset {name}"))
    with hub.ledger.evidence(session) as evidence:
        named = [
            entry
            for entry in evidence.find("asset", issuer=name.partition("/")[0])
            if entry.says["type"] == "dataset" and entry.says["name"] == name
        ]
    if not named:
        raise not_found("dataset", name)
    return dataset(hub, session, actor, max(named, key=lambda entry: entry.says["version"]).subject)


def files(session: Session, found: wire.Dataset) -> Sequence[VersionFileRow]:
    """The files of a shared data set, by name; none of one that stays on-site."""
    if found.kept == "site":
        return []
    query = select(VersionFileRow).where(VersionFileRow.asset_id == found.asset_id)
    return session.exec(query.order_by(VersionFileRow.name)).all()


def _told(session: Session, entry: Entry, repo: Repo | None) -> wire.Dataset:
    """A data set as every answer tells it; ``repo`` None: it stays on-site."""
    croissant = session.get(AttachmentRow, entry.statement.subjects[1].digest)
    return wire.Dataset(
        name=entry.says["name"],
        owner=entry.institution,
        version=entry.says["version"],
        asset_id=entry.subject,
        croissant="" if croissant is None else croissant.data.decode("utf-8", errors="replace"),
        created_at=format_time(session.get_one(StatementRow, entry.id).logged_at),
        license=entry.says.get("license"),
        kept="site" if repo is None else "hub",
        visibility=None if repo is None else repo.visibility,
    )
