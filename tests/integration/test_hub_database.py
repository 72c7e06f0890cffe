"""The database on real files and servers: sessions, turns, migrations up and down with rows in them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, select

from hub.database import Database
from hub.tables import InstitutionRow, LogSequenceRow, PersonalTokenRow, RingRow
from storage.errors import Unchecked
from tests.databases import DATABASES, database_url


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database_url(request.param, tmp_path) as address:
        yield address


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url, busy_s=10, pool=8)
    made.upgrade()
    yield made
    made.close()


def lab(name: str = "lab-a.example") -> InstitutionRow:
    return InstitutionRow(name=name, role="lab", state="approved", pin="a" * 64, joined_at=5_000_000_000)


def test_the_migrations_make_exactly_the_tables_that_the_code_names(database: Database) -> None:
    with database.engine.connect() as connection:
        look = inspect(connection)
        made = {name for name in look.get_table_names() if name != "alembic_version"}
        assert made == set(SQLModel.metadata.tables)
        for name, table in SQLModel.metadata.tables.items():
            columns = {column["name"]: column["nullable"] for column in look.get_columns(name)}
            assert columns == {column.name: column.nullable for column in table.columns}, name
            indexes = {index["name"] for index in look.get_indexes(name)} - {None}
            wanted = {index.name for index in table.indexes}
            assert wanted <= indexes, name


def test_a_database_with_rows_goes_down_and_up_again(database: Database) -> None:
    with database.session_scope() as session:
        session.add(lab())
        session.flush()
        session.add(RingRow(institution="lab-a.example", version=1, root=b"{}"))
    database.downgrade("base")
    with database.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    database.upgrade()
    with database.session_scope() as session:
        assert session.exec(select(InstitutionRow)).all() == []
        assert session.exec(select(LogSequenceRow)).one().next_index == 0


def test_upgrading_again_changes_nothing_and_loses_nothing(database: Database) -> None:
    with database.session_scope() as session:
        session.add(lab())
    database.upgrade()
    with database.session_scope(write=False) as session:
        found = session.get_one(InstitutionRow, "lab-a.example")
        assert found.joined_at == 5_000_000_000  # past 2^31: times are wide


def test_processes_that_start_together_migrate_once(url: str) -> None:
    several = [Database(url, busy_s=20, pool=3) for _ in range(4)]
    failures: list[BaseException] = []

    def start(one: Database) -> None:
        try:
            one.upgrade()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(one,)) for one in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with several[0].session_scope() as session:
        assert session.exec(select(LogSequenceRow)).one().next_index == 0
    for one in several:
        one.close()


def test_a_block_that_raises_leaves_no_trace(database: Database) -> None:
    with pytest.raises(RuntimeError), database.session_scope() as session:
        session.add(lab())
        session.flush()
        raise RuntimeError
    with database.session_scope(write=False) as session:
        assert session.get(InstitutionRow, "lab-a.example") is None


def test_foreign_keys_hold(database: Database) -> None:
    token = PersonalTokenRow(
        id="1",
        institution="nobody.example",
        name="t",
        digest="b" * 64,
        scopes="read",
        created_at=1,
        expires_at=2,
    )
    with pytest.raises(IntegrityError), database.session_scope() as session:
        session.add(token)


def test_writers_that_read_first_never_fail_half_way(database: Database) -> None:
    def add_one() -> None:
        for _ in range(10):
            with database.session_scope() as session:
                row = session.exec(select(LogSequenceRow).with_for_update()).one()
                row.next_index += 1
                session.add(row)

    threads = [threading.Thread(target=add_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.session_scope(write=False) as session:
        assert session.exec(select(LogSequenceRow)).one().next_index == 60


def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    with database.session_scope() as writer:
        writer.add(lab())
        writer.flush()
        with database.session_scope(write=False) as reader:
            assert reader.exec(select(InstitutionRow)).all() == []


def test_only_one_holds_a_name_at_a_time(database: Database) -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def hold() -> None:
        nonlocal inside, most
        with database.only_one("turn"):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_sqlite_survives_kill_and_power_loss_by_its_own_settings(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/fedhub.db")
    with database.engine.connect() as connection:
        told = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert told == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    database.close()


@pytest.mark.parametrize(
    "address",
    ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "not an address", "postgresql+asyncpg://x/y"],
)
def test_an_address_that_cannot_be_used_is_told_by_its_setting(address: str) -> None:
    with pytest.raises(Unchecked, match="FEDHUB_DATABASE_URL") as caught:
        Database(address)
    assert caught.value.code == "E_SETTING"


def test_tables_of_a_newer_program_are_left_alone_and_told(database: Database) -> None:
    with database.session_scope() as session:
        session.connection().execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Unchecked, match="revision 9999") as caught:
        database.upgrade()
    assert caught.value.code == "E_DATABASE" and "newer" in caught.value.hint
    assert database.revisions()[0] == "9999"


def test_database_that_cannot_be_used_is_told_with_what_its_server_says(url: str, tmp_path: Path) -> None:
    if url.startswith("sqlite"):
        (tmp_path / "other.db").write_bytes(b"no database" * 1000)
        other, said = f"sqlite:///{tmp_path}/other.db", "not a database"
    else:
        other, said = url.rpartition("/")[0] + "/nowhere", 'database "nowhere" does not exist'
    database = Database(other, busy_s=1, pool=1)
    with pytest.raises(Unchecked, match=said) as caught:
        database.upgrade()
    database.close()
    assert caught.value.code == "E_DATABASE" and "FEDHUB_DATABASE_URL" in caught.value.hint
    assert (make_url(url).password or "no password") not in str(caught.value)
