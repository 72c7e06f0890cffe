"""Finding models: by name, owner, licence, tag, release, and who may read the files; all in the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, func, select

from federation import wire
from hub.access import Actor, Thing, decide, may
from hub.context import Hub
from hub.services import described, registry
from hub.services.visible import visible
from hub.tables import ModelRow, TagRow, VersionRow

PAGE = 50


@dataclass(frozen=True)
class Wanted:
    """What to look for; an empty text asks for nothing.

    Attributes:
        text: part of the name, in any case.
        owner: an institution.
        license: SPDX expression, or part of one, in any case.
        visibility: ``public``, ``gated`` or ``private``.
        tag: of one of its versions.
        released: only models with a released version.
    """

    text: str = ""
    owner: str = ""
    license: str = ""
    visibility: str = ""
    released: bool = False
    tag: str = ""


def find(
    hub: Hub, session: Session, actor: Actor, wanted: Wanted, *, cursor: str | None = None
) -> tuple[list[wire.Model], str | None]:
    """Models that the actor may see and that fit, by name, with the cursor of the next page; for members."""
    decide(actor, "list assets", Thing("models"))
    found, following = rows(hub, session, actor, wanted, cursor=cursor, limit=PAGE)
    return described.models(hub, session, found), following


def texts(
    hub: Hub, session: Session, actor: Actor, wanted: Wanted, *, cursor: str | None = None
) -> tuple[list[str], str | None]:
    """The same as JSON, for anybody: who is not known sees public models."""
    found, following = rows(hub, session, actor, wanted, cursor=cursor, limit=hub.settings.page_size)
    return described.models_text(hub, session, found), following


def rows(
    hub: Hub, session: Session, actor: Actor, wanted: Wanted, *, cursor: str | None, limit: int
) -> tuple[list[ModelRow], str | None]:
    """Rows of one page, and the cursor of the next."""
    query = select(ModelRow).where(*_conditions(session, wanted), visible(hub, session, actor, "model"))
    query, found = query.order_by(col(ModelRow.name)).limit(limit + 1), list[ModelRow]()
    while True:
        page = session.exec(query if cursor is None else query.where(col(ModelRow.name) > cursor)).all()
        fitting = _fitting(hub, session, actor, wanted, page)
        for row in page:
            if len(found) == limit:
                return found, found[-1].name
            if row.name in fitting:
                found.append(row)
        if len(page) <= limit:
            return found, None
        cursor = page[-1].name


def _conditions(session: Session, wanted: Wanted) -> list[Any]:
    conditions: list[Any] = []
    if wanted.owner:
        conditions.append(ModelRow.owner == wanted.owner)
    if wanted.visibility:
        conditions.append(ModelRow.visibility == wanted.visibility)
    if wanted.text:
        conditions.append(func.lower(ModelRow.name).contains(wanted.text.lower(), autoescape=True))
    if wanted.released:
        conditions.append(col(ModelRow.released))
    if wanted.tag:
        tagged = select(TagRow.name).where(TagRow.tag == wanted.tag, TagRow.name == ModelRow.name)
        conditions.append(tagged.exists())
    if wanted.license:
        part = wanted.license.lower()
        licences = [text for text in _licences(session) if part in text.lower()]
        of = (VersionRow.name == ModelRow.name, col(VersionRow.license).in_(licences))
        conditions.append(select(VersionRow.name).where(*of).exists())
    return conditions


def _licences(session: Session) -> list[str]:
    """Every licence that a version has, by jumping from one to the next in the index: there are few."""
    found: list[str] = []
    while True:
        query = select(func.min(VersionRow.license))
        if found:
            query = query.where(col(VersionRow.license) > found[-1])
        following = session.exec(query).one()
        if following is None:
            return found
        found.append(following)


def _fitting(hub: Hub, session: Session, actor: Actor, wanted: Wanted, page: Sequence[ModelRow]) -> set[str]:
    """Names of those that pass the rules themselves: access, and releases that may have been withdrawn."""
    names = {row.name for row in page if _may_see(hub, session, actor, row)}
    return registry.released_names(hub, session, names) if wanted.released else names


def _may_see(hub: Hub, session: Session, actor: Actor, row: ModelRow) -> bool:
    thing = registry.thing_of(hub, session, actor, row.name, row.owner, row.visibility)
    return may(actor, "read model", thing)
