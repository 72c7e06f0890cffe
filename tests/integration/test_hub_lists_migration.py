"""Versions that were here before lists were made for size are found by them."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select

from hub.database import Database
from hub.tables import FileListRow, ModelRow, VersionRow
from tests.databases import DATABASES, database_url

ASSETS = {1: "1" * 64, 2: "2" * 64}


@pytest.mark.parametrize("kind", DATABASES)
def test_older_versions_get_their_list_of_files_and_their_release_is_noted(kind: str, tmp_path: Path) -> None:
    with database_url(kind, tmp_path) as address:
        database = Database(address, busy_s=10, pool=4)
        try:
            database.upgrade("0003")
            _put_rows(database)
            database.upgrade()
            _check(database)
            database.downgrade("0003")
            with database.engine.connect() as connection:
                assert connection.execute(text("SELECT count(*) FROM version")).scalar_one() == 2
            database.upgrade()
            _check(database)
        finally:
            database.close()


def _put_rows(database: Database) -> None:
    with database.engine.begin() as connection:
        for name in ("owner.example/old", "owner.example/plain"):
            connection.execute(
                text(
                    "INSERT INTO model (name, owner, visibility, created_at) VALUES (:n, 'owner.example', 'gated', 1)"
                ),
                {"n": name},
            )
        for number, name in ((1, "owner.example/old"), (2, "owner.example/plain")):
            connection.execute(
                text(
                    "INSERT INTO version (name, version, asset_id, statement, created_at) VALUES (:n, 1, :a, :s, 1)"
                ),
                {"n": name, "a": ASSETS[number], "s": "f" * 64},
            )
            for file, parts in (("z.bin", None), ("a/b.bin", json.dumps(["3" * 64])), ("a.txt", None)):
                connection.execute(
                    text(
                        "INSERT INTO version_file (asset_id, name, sha256, size, parts) VALUES (:a, :n, :d, 5, :p)"
                    ),
                    {"a": ASSETS[number], "n": file, "d": "d" * 64, "p": parts},
                )
        connection.execute(
            text(
                "INSERT INTO statement (id, log_index, kind, issuer, hint, audience, logged_at, bundle, leaf)"
                " VALUES (:i, 0, 'release', 'owner.example', :i, 'members', 1, :b, :b)"
            ),
            {"i": "e" * 64, "b": b"{}"},
        )
        connection.execute(
            text("INSERT INTO statement_subject (statement, digest) VALUES (:i, :a)"),
            {"i": "e" * 64, "a": ASSETS[1]},
        )


def _check(database: Database) -> None:
    with database.session_scope(write=False) as session:
        rows = {row.asset_id: json.loads(row.files) for row in session.exec(select(FileListRow))}
        assert set(rows) == set(ASSETS.values())
        assert [file["name"] for file in rows[ASSETS[1]]] == ["a/b.bin", "a.txt", "z.bin"]
        assert rows[ASSETS[1]][0] == {"name": "a/b.bin", "sha256": "d" * 64, "size": 5, "parts": ["3" * 64]}
        sizes = session.exec(select(VersionRow.size).where(VersionRow.asset_id == ASSETS[1])).all()
        assert sizes == [15]
        assert session.get_one(ModelRow, "owner.example/old").released
        assert not session.get_one(ModelRow, "owner.example/plain").released
