"""Rows of a large registry, straight into the tables: institutions, models, versions, files, commits, tags.

Nothing goes through the API: 100,000 real pushes would take hours. The rows are those that pushes leave, in the same
tables, with made-up digests, and no bytes behind them. Real signed statements stand behind the newest version of
``SIGNED`` models, each with a release; the statement ids of all other versions name nothing.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert
from sqlmodel import SQLModel

from hub.context import Hub
from hub.database import Database
from hub.services.described import file_text
from hub.services.revisions import commit_id
from hub.tables import (
    BlobRow,
    BranchRow,
    FileListRow,
    GitBlobRow,
    InstitutionRow,
    LogSequenceRow,
    ModelRow,
    PersonalTokenRow,
    RevisionRow,
    StatementRow,
    StatementSubjectRow,
    TagRow,
    VersionFileRow,
    VersionRow,
)
from storage.manifests import FileEntry, compose_manifest
from storage.signing import log_leaf, new_private_key, open_envelope, sign
from storage.standard import release_purl
from storage.statements import compose, compose_standard

OWNERS = 100
SIGNED = 500
TOKEN = "fhp_" + "bench" * 8
LICENSES = ("Apache-2.0", "MIT", "CC-BY-4.0", "BSD-3-Clause", None)
WORDS = ("tumour", "retina", "sepsis", "digits", "speech", "grid", "wind", "battery", "protein", "traffic")
KINDS = ("classifier", "segmenter", "forecast", "encoder", "ranker")
BATCH = 5000
NOW = 1_760_000_000


@dataclass(frozen=True)
class Filled:
    """What is in the database now."""

    models: int
    versions: int
    files: int
    seconds: float


def name_of(number: int) -> str:
    """The name of one model."""
    kind = KINDS[number // len(WORDS) % len(KINDS)]
    return f"{owner_of(number)}/{WORDS[number % len(WORDS)]}-{kind}-{number:05d}"


def owner_of(number: int) -> str:
    """Who owns it."""
    return f"lab{number % OWNERS:03d}.example"


def digest(*words: object) -> str:
    """A made-up digest."""
    return hashlib.sha256(repr(words).encode()).hexdigest()


def fill(hub: Hub, models: int, versions: int) -> Filled:
    """Put ``models`` models with ``versions`` versions in all into an empty hub's tables."""
    began, each = time.perf_counter(), versions // models
    with hub.database.engine.begin() as connection:
        _members(connection)
        papers = _papers(hub, connection, min(SIGNED, models), each)
        _insert(hub.database, connection, _rows(models, each, papers))
        if not hub.database.is_sqlite:
            connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    with hub.database.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.commit()
    return Filled(models, models * each, models * each * 3, time.perf_counter() - began)


def _members(connection: Connection) -> None:
    connection.execute(
        insert(InstitutionRow),
        [
            {"name": owner_of(n), "role": "lab", "state": "approved", "pin": digest("pin", n), "contact": "", "joined_at": NOW}
            for n in range(OWNERS)
        ],
    )  # fmt: skip
    token = {"institution": owner_of(0), "name": "bench", "scopes": "read write", "created_at": NOW}
    token |= {"expires_at": 4_000_000_000, "last_used_at": int(time.time())}
    secrets = {"bench": TOKEN} | {f"other-{number}": f"other {number}" for number in range(OWNERS * 5)}
    connection.execute(
        insert(PersonalTokenRow),
        [
            token | {"id": name, "digest": hashlib.sha256(text.encode()).hexdigest()}
            for name, text in secrets.items()
        ],
    )


def _files(number: int, version: int) -> list[FileEntry]:
    weights = digest("weights", number, version)
    return [
        FileEntry("README.md", digest("readme", number), 2000),
        FileEntry("config.json", digest("config", number), 700),
        FileEntry("model.safetensors", weights, 20_000_000 + number),
    ]


def _papers(hub: Hub, connection: Connection, count: int, version: int) -> dict[int, tuple[str, str]]:
    """Log an asset statement with its OMS signature and a release for each signed model: asset id, statement id."""
    key, papers = new_private_key(), dict[int, tuple[str, str]]()
    index = connection.execute(LogSequenceRow.__table__.select()).one().next_index  # type: ignore[attr-defined]
    rows, subjects = [], []
    for number in range(count):
        name, owner = name_of(number), owner_of(number)
        manifest = compose_manifest(name, _files(number, version))
        hub.store.put(f"assets/{manifest.asset_id}/manifest.json", manifest.raw)
        from storage.manifests import oms_payload

        oms = sign(key, oms_payload(manifest, name))
        says: dict[str, Any] = {
            "type": "model",
            "name": name,
            "version": version,
            "oms": open_envelope(oms).id,
        }
        says |= {"previous": digest("statement", number, version - 1)} if version > 1 else {}
        asset = sign(
            key,
            compose(
                "asset",
                [("manifest.json", manifest.asset_id)],
                says,
                issuer=owner,
                hub=hub.settings.origin,
                now=NOW,
            ),
        )
        purl = release_purl(name, version, hub.settings.origin)
        release = sign(
            key,
            compose_standard(
                "release", [("manifest.json", manifest.asset_id)], {"purl": purl, "packageId": name}
            ),
        )
        papers[number] = (manifest.asset_id, open_envelope(asset).id)
        for kind, raw in (("oms", oms), ("asset", asset), ("release", release)):
            envelope = open_envelope(raw)
            rows.append(
                {
                    "id": envelope.id, "log_index": index, "kind": kind, "issuer": owner, "hint": envelope.hint,
                    "audience": "parties", "logged_at": NOW, "bundle": raw, "leaf": log_leaf(key.public_key(), envelope),
                }
            )  # fmt: skip
            index += 1
            if kind != "oms":
                subjects.append({"statement": envelope.id, "digest": manifest.asset_id})
    connection.execute(insert(StatementRow), rows)
    connection.execute(insert(StatementSubjectRow), subjects)
    connection.execute(LogSequenceRow.__table__.update().values(next_index=index))  # type: ignore[attr-defined]
    return papers


def _rows(
    models: int, each: int, papers: dict[int, tuple[str, str]]
) -> Iterator[tuple[type[SQLModel], dict[str, Any]]]:
    for number in range(models):
        yield from _model(number, each, papers.get(number))


def _model(
    number: int, each: int, paper: tuple[str, str] | None
) -> Iterator[tuple[type[SQLModel], dict[str, Any]]]:
    name, owner = name_of(number), owner_of(number)
    visibility = ("gated", "public", "gated", "private")[number // 7 % 4]
    row = {"name": name, "owner": owner, "visibility": visibility, "created_at": NOW}
    yield ModelRow, row | {"released": paper is not None}
    first = commit_id("model", name, None, None, None)
    commit = {"kind": "model", "name": name, "message": "", "author": owner, "created_at": NOW}
    empty = {"parent": None, "asset_id": None, "statement": None, "version": None}
    yield RevisionRow, {**commit, **empty, "id": first, "title": "initial commit"}
    for entry in _files(number, 1)[:2]:
        yield GitBlobRow, {"sha256": entry.sha256, "oid": digest("oid", entry.sha256)[:40]}
    parent = first
    for version in range(1, each + 1):
        asset_id, statement = digest("asset", number, version), digest("statement", number, version)
        if paper is not None and version == each:
            asset_id, statement = paper
        row = {
            "name": name,
            "version": version,
            "asset_id": asset_id,
            "statement": statement,
            "created_at": NOW,
        }
        files = _files(number, version)
        row |= {"license": LICENSES[number % len(LICENSES)], "size": sum(each.size for each in files)}
        yield VersionRow, row | {"plan": None}
        for entry in files:
            file = {"asset_id": asset_id, "name": entry.name, "sha256": entry.sha256, "size": entry.size}
            yield VersionFileRow, file | {"parts": None}
        text = file_text((each.name, each.sha256, each.size, each.parts) for each in files)
        yield FileListRow, {"asset_id": asset_id, "files": text}
        made = commit_id("model", name, parent, asset_id, statement)
        of = {"parent": parent, "asset_id": asset_id, "statement": statement, "version": version}
        yield RevisionRow, {**commit, **of, "id": made, "title": f"Version {version}"}
        weights = digest("weights", number, version)
        blob = {
            "sha256": weights,
            "size": 20_000_000 + number,
            "key": f"blobs/{weights}",
            "checked_by": "hub",
        }
        yield BlobRow, blob | {"parts": None, "content": "safetensors", "created_at": NOW}
        parent = made
    yield BranchRow, {"kind": "model", "name": name, "branch": "main", "revision": parent}
    yield TagRow, {"name": name, "tag": "stable", "version": each, "created_at": NOW}


def _insert(
    database: Database, connection: Connection, rows: Iterable[tuple[type[SQLModel], dict[str, Any]]]
) -> None:
    waiting: dict[type[SQLModel], list[dict[str, Any]]] = {}
    for table, row in rows:
        batch = waiting.setdefault(table, [])
        batch.append(row)
        if len(batch) >= BATCH:
            _flush(database, connection, waiting)
    _flush(database, connection, waiting)


# A table after those that it refers to.
ORDER = (
    ModelRow,
    VersionRow,
    VersionFileRow,
    FileListRow,
    TagRow,
    RevisionRow,
    BranchRow,
    GitBlobRow,
    BlobRow,
)


def _flush(
    database: Database, connection: Connection, waiting: dict[type[SQLModel], list[dict[str, Any]]]
) -> None:
    for table in ORDER:
        batch = waiting.pop(table, [])
        if not batch:
            continue
        names = list(batch[0])
        target = f'"{table.__tablename__}" ({", ".join(names)})'
        raw = connection.connection.driver_connection
        assert raw is not None
        values = ([row[name] for name in names] for row in batch)
        if database.is_sqlite:
            raw.executemany(f"INSERT INTO {target} VALUES ({', '.join('?' * len(names))})", values)
        else:
            with raw.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN") as copy:
                for value in values:
                    copy.write_row(value)
