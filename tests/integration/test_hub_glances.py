"""What is read at a glance is what is committed at that moment, and a connection that failed is not used again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import bindparam, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, ProgrammingError

from hub.database import Database
from hub.tables import BlobRow, InstitutionRow, LogSequenceRow
from storage.errors import Misuse
from tests.bench.registry_rows import TOKEN, fill, name_of
from tests.databases import DATABASES, SERVER, database_url
from tests.hubs import running_hub

_members = InstitutionRow.metadata.tables["institution"]
STATE = select(_members.c.state, _members.c.role).where(_members.c.name == bindparam("name"))
COUNT = select(LogSequenceRow.metadata.tables["log_sequence"].c.next_index)
LAB = {"name": "lab.example"}


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with database_url(request.param, tmp_path) as url:
        made = Database(url)
        made.upgrade()
        yield made
        made.close()


def add_lab(database: Database, state: str) -> None:
    row = InstitutionRow(name="lab.example", role="lab", state=state, pin="0" * 64, contact="", joined_at=1)
    with database.session_scope() as session:
        session.merge(row)


def test_each_statement_of_a_glance_sees_what_was_committed_before_it(database: Database) -> None:
    with database.glance() as glance:
        assert glance.rows(STATE, LAB) == []
        add_lab(database, "applied")
        (row,) = glance.rows(STATE, LAB)
        assert (row.state, row.role) == ("applied", "lab")
        assert glance.session.get_one(InstitutionRow, "lab.example").state == "applied"
    add_lab(database, "approved")
    with database.glance() as glance:  # the same connection, and nothing that it remembers
        assert glance.rows(STATE, LAB)[0].state == "approved"
        assert glance.session.get_one(InstitutionRow, "lab.example").state == "approved"


def test_a_glance_that_let_go_of_its_connection_reads_on_with_another(database: Database) -> None:
    add_lab(database, "approved")
    with database.glance() as glance:
        row = glance.session.get_one(InstitutionRow, "lab.example")
        glance.let_go()
        with database.session_scope() as writer:
            writer.get_one(InstitutionRow, "lab.example").state = "suspended"
        assert row.state == "approved" and glance.rows(STATE, LAB)[0].state == "suspended"


def test_glances_that_rest_keep_no_more_connections_than_they_may(database: Database) -> None:
    opened = [database.glance() for _ in range(12)]
    for each in opened:
        each.__enter__().rows(STATE, LAB)
    for each in opened:
        each.__exit__(None, None, None)
    pool = database.engine.pool
    assert pool.checkedout() == 6  # type: ignore[attr-defined]
    database.close()
    assert pool.checkedout() == 0  # type: ignore[attr-defined]


def test_what_the_driver_refuses_is_told_as_in_a_session_and_ends_the_connection(database: Database) -> None:
    add_lab(database, "approved")
    with database.glance() as glance:
        assert glance.rows(STATE, LAB)
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE institution RENAME TO elsewhere"))
    with (
        pytest.raises((OperationalError, ProgrammingError), match="institution"),
        database.glance() as glance,
    ):
        glance.rows(STATE, LAB)
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO institution"))
    with database.glance() as glance:
        assert glance.rows(STATE, LAB)[0].state == "approved"


def test_a_column_that_the_driver_does_not_give_as_it_is_cannot_be_glanced_at(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/fedhub.db")  # its JSON is text, which SQLAlchemy would read
    with database.glance() as glance, pytest.raises(Misuse, match="parts"):
        glance.rows(select(BlobRow.metadata.tables["blob"].c.parts), {})
    database.close()


@pytest.mark.engines
@pytest.mark.skipif(not SERVER.startswith("postgres"), reason="needs PostgreSQL")
def test_requests_are_answered_when_the_server_has_cut_all_connections(tmp_path: Path) -> None:
    with database_url("postgresql", tmp_path) as url:
        named = make_url(url).update_query_dict({"application_name": f"cut {tmp_path.name}"})
        address = named.render_as_string(hide_password=False)
        with running_hub(tmp_path, database_url=address) as hub:
            fill(hub.hub, 8, 8)
            path, killer = f"/api/models/{name_of(7)}", Database(url)
            with hub.http(token=TOKEN) as client:
                for _ in range(3):
                    assert client.get(path).status_code == 200
                with killer.engine.begin() as connection:
                    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name"
                    assert connection.execute(text(cut), {"name": f"cut {tmp_path.name}"}).all()
                assert client.get(path).status_code == 200
            killer.close()
