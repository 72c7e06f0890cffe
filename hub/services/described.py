"""Models with their versions as every answer tells them: read in a few statements, written as JSON at once.

A model of ten versions with a few files each is asked for far more often than anything else, and lists hold a
page of them. So no row becomes an object here: a version's files lie ready as text (``file_list``), and the
rest is put around it. ``wire.Model`` is the form; whoever needs objects reads them from the same text.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

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
VERSION = (
    select(*_versions.c, _lists.c.files)
    .select_from(_versions.outerjoin(_lists, _lists.c.asset_id == _versions.c.asset_id))
    .where(_versions.c.name == bindparam("name"), _versions.c.version == bindparam("number"))
)
_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_MODEL, _VERSION = TypeAdapter(wire.Model), TypeAdapter(wire.ModelVersion)


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
    said = _text({"name": name, "owner": rows[0].owner, "visibility": rows[0].visibility})
    return f'{said[:-1]},"versions":[{",".join(texts)}]}}'


def model(hub: Hub, session: Session, name: str) -> wire.Model:
    """The same as an object, of a model that is here."""
    return _MODEL.validate_json(model_text(hub, session, name, one(session, name)))


def file_text(files: Iterable[tuple[str, str, int, Sequence[str] | None]]) -> str:
    """The text of ``file_list``: name, digest, size and parts of each file, in the manifest's order."""
    return _text(
        [
            {"name": name, "sha256": sha256, "size": size, "parts": None if parts is None else list(parts)}
            for name, sha256, size, parts in files
        ]
    )


def _version_texts(
    hub: Hub,
    source: Session | Glance,
    rows: Sequence[Any],
    tags: Sequence[Any],
    *,
    log_rows: int | None = None,
) -> list[str]:
    """Versions of one model as JSON, in the order of the rows."""
    tagged: dict[int, list[str]] = defaultdict(list)
    for each in tags:
        tagged[each.version].append(each.tag)
    released = releases.released(hub, source, rows, log_rows=log_rows)
    texts = []
    for row in rows:
        said = {
            "name": row.name,
            "version": row.version,
            "asset_id": row.asset_id,
            "statement": row.statement,
            "license": row.license,
            "plan": row.plan,
            "released": (row.name, row.version) in released,
            "tags": sorted(tagged[row.version]) if row.version in tagged else [],
            "created_at": format_time(row.created_at),
        }
        texts.append(f'{_text(said)[:-1]},"files":{row.files or "[]"}}}')
    return texts


def version(hub: Hub, session: Session, name: str, number: int) -> wire.ModelVersion:
    """One version that is here, also one of this transaction."""
    rows = ask(session, VERSION, {"name": name, "number": number})
    tags = ask(session, TAGS_OF_ONE, {"name": name})
    return _VERSION.validate_json(_version_texts(hub, session, rows, tags)[0])
