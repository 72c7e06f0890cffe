"""Finding models: by name, owner, licence, tag, release, and who may read the files; all in the database.

A list says of each model what one chooses it by. Its versions and their files come with the model itself
(``described``): a page of them would be a hundred times as large. One statement reads a page, a second one
which of its models are released, whatever the number of versions and files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Select, and_, bindparam, func, select
from sqlmodel import Session, SQLModel

from federation import wire
from hub.access import Actor, Thing, decide, may
from hub.context import Hub
from hub.glances import Glance, ask, session_of
from hub.services import lookup, registry, releases
from hub.services.visible import named_like, visible
from storage.encoding import format_time

PAGE = 50
Told = dict[str, Any]  # a ``wire.ListedModel`` as JSON has it
_TABLES = SQLModel.metadata.tables
_model, _version, _tag = (_TABLES[name] for name in ("model", "version", "tag"))
_statement, _subject = _TABLES["statement"], _TABLES["statement_subject"]
_of_model = _version.c.name == _model.c.name
MODELS = select(
    _model.c.name,
    _model.c.owner,
    _model.c.visibility,
    _model.c.released,
    select(func.count()).select_from(_version).where(_of_model).scalar_subquery().label("versions"),
    select(func.max(_version.c.version)).where(_of_model).scalar_subquery().label("version"),
).order_by(_model.c.name)
# Versions that a release was ever logged about; whether it stands is the log's to say.
RELEASED = (
    select(_version.c.name, _version.c.version, _version.c.statement)
    .join(_subject, _subject.c.digest == _version.c.asset_id)
    .join(_statement, and_(_statement.c.id == _subject.c.statement, _statement.c.kind == "release"))
    .where(_version.c.name.in_(bindparam("names", expanding=True)))
)
# The same of all models, each with the release.
RELEASES = (
    select(
        *(_version.c[name] for name in ("name", "version", "asset_id", "statement", "plan")),
        _model.c.owner,
        _model.c.visibility,
        _statement.c.id.label("release"),
        _statement.c.logged_at,
    )
    .join(_model, _of_model)
    .join(_subject, _subject.c.digest == _version.c.asset_id)
    .join(_statement, and_(_statement.c.id == _subject.c.statement, _statement.c.kind == "release"))
)


class Row(NamedTuple):
    """One model of a page, as ``_with_newest`` selects it.

    Without any version all from ``version`` on is None.
    """

    name: str
    owner: str
    visibility: str
    released: bool  # ever
    versions: int
    version: Any
    asset_id: Any
    statement: Any
    license: Any
    plan: Any
    size: Any
    created_at: Any
    tags: Any


@dataclass(frozen=True)
class Wanted:
    """What to look for; an empty text asks for nothing.

    Attributes:
        text: part of the name, in any case.
        owner: an institution.
        license: SPDX expression, or part of one, in any case.
        visibility: ``public``, ``gated`` or ``private``.
        tag: of one of its versions.
        asset_id: of one of its versions.
        released: only models with a released version.
    """

    text: str = ""
    owner: str = ""
    license: str = ""
    visibility: str = ""
    released: bool = False
    tag: str = ""
    asset_id: str = ""


def find(
    hub: Hub, session: Session, actor: Actor, wanted: Wanted, *, cursor: str | None = None
) -> tuple[list[Told], str | None]:
    """``page`` for members only."""
    decide(actor, "list assets", Thing("models"))
    return page(hub, session, actor, wanted, cursor=cursor, limit=PAGE)


def page(
    hub: Hub, source: Session | Glance, actor: Actor, wanted: Wanted, *, cursor: str | None, limit: int
) -> tuple[list[Told], str | None]:
    """Models that the actor may see and that fit, by name, with the cursor of the next page.

    Who is not known sees public models.
    """
    log_rows = lookup.log_rows(source)
    session = session_of(source)
    fits = [*_conditions(hub, session, wanted), visible(hub, session, actor, "model", log_rows=log_rows)]
    query, found = MODELS.where(*fits).limit(limit + 1), list[Told]()
    while True:
        asked = query if cursor is None else query.where(_model.c.name > cursor)
        rows = [Row(*each) for each in session.connection().execute(_with_newest(asked))]
        seen = [row for row in rows if _may_see(hub, session, actor, row)]
        released = _released(hub, session, seen, log_rows)
        for row in seen:
            if wanted.released and row.name not in released:
                continue  # it was withdrawn
            if len(found) == limit:
                return found, found[-1]["name"]
            found.append(_told(row, released.get(row.name)))
        if len(rows) <= limit:
            return found, None
        cursor = rows[-1].name


def _with_newest(models: Select[Any]) -> Select[Any]:
    """A page of models, each with its newest version and that version's tags."""
    few = models.subquery("few")
    newest = and_(_version.c.name == few.c.name, _version.c.version == few.c.version)
    tags = select(func.aggregate_strings(_tag.c.tag, " ")).where(
        _tag.c.name == few.c.name, _tag.c.version == few.c.version
    )
    of_newest = [_version.c[name] for name in Row._fields[6:-1]]
    return (
        select(*few.c, *of_newest, tags.scalar_subquery().label("tags"))
        .select_from(few.outerjoin(_version, newest))
        .order_by(few.c.name)
    )


def _conditions(hub: Hub, session: Session, wanted: Wanted) -> list[Any]:
    conditions: list[Any] = []
    if wanted.owner:
        conditions.append(_model.c.owner == wanted.owner)
    if wanted.visibility:
        conditions.append(_model.c.visibility == wanted.visibility)
    if wanted.text:
        conditions.append(named_like(hub, _model.c.name, wanted.text))
    if wanted.released:
        conditions.append(_model.c.released)
    if wanted.tag:
        tagged = select(_tag.c.name).where(_tag.c.tag == wanted.tag, _tag.c.name == _model.c.name)
        conditions.append(tagged.exists())
    if wanted.asset_id:
        conditions.append(
            select(_version.c.name).where(_of_model, _version.c.asset_id == wanted.asset_id).exists()
        )
    if wanted.license:
        part = wanted.license.lower()
        licences = [text for text in _licences(session) if part in text.lower()]
        conditions.append(select(_version.c.name).where(_of_model, _version.c.license.in_(licences)).exists())
    return conditions


def _licences(session: Session) -> list[str]:
    """Every licence that a version has, by jumping from one to the next in the index: there are few."""
    found: list[str] = []
    while True:
        query = select(func.min(_version.c.license))
        if found:
            query = query.where(_version.c.license > found[-1])
        following = session.connection().execute(query).scalar_one()
        if following is None:
            return found
        found.append(following)


def _may_see(hub: Hub, session: Session, actor: Actor, row: Any) -> bool:
    thing = registry.thing_of(hub, session, actor, row.name, row.owner, row.visibility)
    return may(actor, "read model", thing)


def _released(hub: Hub, session: Session, rows: Sequence[Row], log_rows: int) -> dict[str, int]:
    """The newest version whose release stands, of those models that have one."""
    ever = [row for row in rows if row.released]
    found = dict(releases.released(hub, session, ever, log_rows=log_rows).keys())
    older = [row.name for row in ever if row.name not in found]
    if older:
        versions = ask(session, RELEASED, {"names": older})
        found |= dict(sorted(releases.released(hub, session, versions, log_rows=log_rows)))
    return found


def _told(row: Row, released: int | None) -> Told:
    newest = None
    if row.version is not None:
        newest = {
            "version": row.version,
            "asset_id": row.asset_id,
            "license": row.license,
            "plan": row.plan,
            "released": row.version == released,
            "tags": sorted(row.tags.split(" ")) if row.tags else [],
            "size": row.size,
            "created_at": format_time(row.created_at),
        }
    return {
        "name": row.name,
        "owner": row.owner,
        "visibility": row.visibility,
        "versions": row.versions,
        "released": released,
        "newest": newest,
    }


# --- releases -------------------------------------------------------------------------------------------


def released_versions(hub: Hub, session: Session, actor: Actor) -> list[wire.Release]:
    """Every released version that the actor may see, newest first, in one statement whatever their number."""
    decide(actor, "list assets", Thing("releases"))
    log_rows = lookup.log_rows(session)
    seen = visible(hub, session, actor, "model", log_rows=log_rows)
    rows = session.connection().execute(RELEASES.where(seen)).all()
    rows = [row for row in rows if _may_see(hub, session, actor, row)]
    stand = releases.released(hub, session, rows, log_rows=log_rows)
    with hub.ledger.evidence(session, rows=log_rows) as evidence:
        found = [
            wire.Release(
                name=row.name,
                version=row.version,
                asset_id=row.asset_id,
                statement=row.release,
                plan=row.plan,
                approved_by=releases.approvals_in(evidence, row).approved_by,
                released_at=format_time(row.logged_at),
            )
            for row in rows
            if (row.name, row.version) in stand and stand[row.name, row.version].id == row.release
        ]
    return sorted(found, key=lambda each: (each.released_at, each.name, each.version), reverse=True)
