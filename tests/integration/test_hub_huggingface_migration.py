"""Versions that were here before repositories had commits get theirs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select

from hub.database import Database
from hub.services.revisions import commit_id
from hub.tables import BranchRow, RevisionRow
from tests.databases import DATABASES, database_url

NAME = "owner.example/m"


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with database_url(request.param, tmp_path) as address:
        made = Database(address, busy_s=10, pool=4)
        made.upgrade("0001")
        yield made
        made.close()


def test_older_versions_become_commits_on_main_with_the_ids_that_the_code_computes(
    database: Database,
) -> None:
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO model (name, owner, visibility, created_at) VALUES (:n, 'owner.example', 'gated', 1)"
            ),
            [{"n": NAME}, {"n": "owner.example/none"}],
        )
        for number in (2, 1):
            connection.execute(
                text(
                    "INSERT INTO version (name, version, asset_id, statement, created_at) VALUES (:n, :v, :a, :s, :t)"
                ),
                {"n": NAME, "v": number, "a": str(number) * 64, "s": "f" * 64, "t": number},
            )
    database.upgrade()
    first = commit_id("model", NAME, None, None, None)
    one = commit_id("model", NAME, first, "1" * 64, "f" * 64)
    two = commit_id("model", NAME, one, "2" * 64, "f" * 64)
    with database.session_scope(write=False) as session:
        rows = session.exec(select(RevisionRow).where(RevisionRow.name == NAME)).all()
        assert {row.id: (row.parent, row.version) for row in rows} == {
            first: (None, None),
            one: (first, 1),
            two: (one, 2),
        }
        assert session.get_one(BranchRow, ("model", NAME, "main")).revision == two
        assert session.get(BranchRow, ("model", "owner.example/none", "main")) is not None
    database.downgrade("0001")
    database.upgrade()
    with database.session_scope(write=False) as session:
        assert session.get_one(BranchRow, ("model", NAME, "main")).revision == two
