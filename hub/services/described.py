"""Models with their versions as every answer tells them: read in a few statements, written as JSON at once.

A model of ten versions with a few files each is asked for far more often than anything else, and lists hold a
page of them. So no row becomes an object here: a version's files lie ready as text (``file_list``), and the
rest is put around it. ``wire.Model`` is the form; whoever needs objects reads them from the same text.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pydantic import TypeAdapter
from sqlalchemy import bindparam, select
from sqlmodel import Session, SQLModel

from federation import wire
from hub.context import Hub
from hub.glances import Glance, ask
from hub.services import releases
from hub.services.lookup import LOG_ROWS
from storage.encoding import format_time

_TABLES = SQLModel.metadata.tables
_models, _versions, _lists, _tags = (_TABLES[name] for name in ("model", "version", "file_list", "tag"))
_LISTED = _versions.outerjoin(_lists, _lists.c.asset_id == _versions.c.asset_id)
ONE = (
    select(_models.c.owner, _models.c.visibility, LOG_ROWS.label("log_rows"), *_versions.c, _lists.c.files)
    .select_from(
        _models.outerjoin(_versions, _versions.c.name == _models.c.name).outerjoin(
            _lists, _lists.c.asset_id == _versions.c.asset_id
        )
    )
    .where(_models.c.name == bindparam("name"))
    .order_by(_versions.c.version)
)
TAGS_OF_ONE = select(_tags).where(_tags.c.name == bindparam("name"))
MANY = (
    select(*_versions.c, _lists.c.files)
    .select_from(_LISTED)
    .where(_versions.c.name.in_(bindparam("names", expanding=True)))
    .order_by(_versions.c.name, _versions.c.version)
)
TAGS_OF_MANY = select(_tags).where(_tags.c.name.in_(bindparam("names", expanding=True)))
_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_MODEL, _VERSIONS = TypeAdapter(wire.Model), TypeAdapter(list[wire.ModelVersion])


class Named(Protocol):
    """A model as far as it stands in its own row."""

    @property
    def name(self) -> str:
        """``institution/path``."""

    @property
    def owner(self) -> str:
        """The institution."""

    @property
    def visibility(self) -> str:
        """``public``, ``gated`` or ``private``."""


def one(source: Session | Glance, name: str) -> Sequence[Any]:
    """Rows of one model: at least one with ``owner``, ``visibility``, ``log_rows`` if it is here, else none.

    Each holds one version; of a model without any, ``version`` is None.
    """
    return ask(source, ONE, {"name": name})


def model_text(hub: Hub, source: Session | Glance, name: str, rows: Sequence[Any]) -> str:
    """One model as JSON, from the rows of ``one``."""
    versions = [row for row in rows if row.version is not None]
    tags = ask(source, TAGS_OF_ONE, {"name": name})
    texts = _version_texts(hub, source, versions, tags, log_rows=rows[0].log_rows)
    return _model_text(name, rows[0].owner, rows[0].visibility, texts.get(name, []))


def models_text(hub: Hub, session: Session, models: Sequence[Named]) -> list[str]:
    """Models as JSON, in the order given: three statements for all of them."""
    if not models:
        return []
    connection, names = session.connection(), {"names": [model.name for model in models]}
    versions, tags = connection.execute(MANY, names).all(), connection.execute(TAGS_OF_MANY, names).all()
    texts = _version_texts(hub, session, versions, tags)
    return [_model_text(each.name, each.owner, each.visibility, texts.get(each.name, [])) for each in models]


def models(hub: Hub, session: Session, found: Sequence[Named]) -> list[wire.Model]:
    """The same as objects."""
    return [_MODEL.validate_json(text) for text in models_text(hub, session, found)]


def file_text(files: Iterable[tuple[str, str, int, Sequence[str] | None]]) -> str:
    """The text of ``file_list``: name, digest, size and parts of each file, in the manifest's order."""
    return _text(
        [
            {"name": name, "sha256": sha256, "size": size, "parts": None if parts is None else list(parts)}
            for name, sha256, size, parts in files
        ]
    )


def _model_text(name: str, owner: str, visibility: str, versions: Sequence[str]) -> str:
    said = _text({"name": name, "owner": owner, "visibility": visibility})
    return f'{said[:-1]},"versions":[{",".join(versions)}]}}'


def _version_texts(
    hub: Hub,
    source: Session | Glance,
    rows: Sequence[Any],
    tags: Sequence[Any],
    *,
    log_rows: int | None = None,
) -> dict[str, list[str]]:
    """The versions of each model as JSON, in the order of the rows."""
    tagged: dict[tuple[str, int], list[str]] = defaultdict(list)
    for each in tags:
        tagged[each.name, each.version].append(each.tag)
    released = releases.released(hub, source, rows, log_rows=log_rows)
    texts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        key = row.name, row.version
        said = {
            "name": row.name,
            "version": row.version,
            "asset_id": row.asset_id,
            "statement": row.statement,
            "license": row.license,
            "plan": row.plan,
            "released": key in released,
            "tags": sorted(tagged[key]) if key in tagged else [],
            "created_at": format_time(row.created_at),
        }
        texts[row.name].append(f'{_text(said)[:-1]},"files":{row.files or "[]"}}}')
    return texts


def versions(hub: Hub, session: Session, name: str, number: int) -> list[wire.ModelVersion]:
    """One version as the only one of a list; an empty list where it is not here."""
    query = MANY.where(_versions.c.version == number)
    rows = session.connection().execute(query, {"names": [name]}).all()
    tags = session.connection().execute(TAGS_OF_ONE, {"name": name}).all()
    texts = _version_texts(hub, session, rows, tags)
    return _VERSIONS.validate_json(f"[{','.join(texts[name])}]")
