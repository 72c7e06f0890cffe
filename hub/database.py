"""One database, SQLite or PostgreSQL, behind sessions that either read or write.

A writing session takes SQLite's single write lock when it begins, so that it can never fail half way because
another writer came first; a reading one never waits (WAL). On PostgreSQL both are ordinary transactions and
rows are locked with ``with_for_update()``.
"""

import fcntl
import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Select, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError, NoSuchModuleError
from sqlmodel import Session

from hub.glances import KEPT, PING_AFTER_S, Glance, Question
from storage.errors import Unchecked

MEND = "start the database, or mend FEDHUB_DATABASE_URL"
NEWER = "a newer hub has used it: run that version"
READS, GLANCES = "fedhub_reads", "fedhub_glances"


class Database:
    """Connections, sessions and migrations of one database address.

    Args:
        url: SQLAlchemy address; ``postgresql://`` is taken to mean the psycopg driver.
        busy_s: how long a writer waits for another, seconds.
        pool: most connections of this process.
    """

    def __init__(self, url: str, *, busy_s: float = 30.0, pool: int = 40) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise Unchecked("E_SETTING", "FEDHUB_DATABASE_URL: not a database address") from error
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
            raise Unchecked(
                "E_SETTING",
                f"FEDHUB_DATABASE_URL: {parsed.drivername} is not supported",
                "Use sqlite:///path or postgresql+psycopg://user@host/name.",
            )
        self.is_sqlite = parsed.drivername.startswith("sqlite")
        self.path = Path(parsed.database) if self.is_sqlite and parsed.database else None
        if self.is_sqlite and (self.path is None or parsed.database == ":memory:"):
            raise Unchecked("E_SETTING", "FEDHUB_DATABASE_URL: SQLite needs a file")
        self._url = parsed
        self._busy_s = busy_s
        try:
            self.engine = self._make_engine(pool)
        except NoSuchModuleError as error:
            raise Unchecked("E_SETTING", f"FEDHUB_DATABASE_URL: {error}") from error
        self._reader = self.engine.execution_options(**{READS: True})
        self._glancer = self.engine.execution_options(**{GLANCES: True})
        if not self.is_sqlite:
            self._glancer = self._glancer.execution_options(isolation_level="AUTOCOMMIT")
        self._questions: dict[Select[Any], Question] = {}
        self._resting: deque[Glance] = deque()
        self._kept = min(KEPT, pool // 4)

    def _make_engine(self, pool: int) -> Engine:
        if not self.is_sqlite:
            engine = create_engine(self._url, pool_size=pool, max_overflow=0)
            _ping_rested(engine)
            return engine
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            self._url,
            pool_size=pool,
            max_overflow=0,
            connect_args={"check_same_thread": False, "timeout": self._busy_s},
        )
        event.listen(engine, "connect", self._prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _prepare_sqlite(self, connection: Any, _record: Any) -> None:
        # The driver's own transaction control would begin late and deferred; ours is in _begin_sqlite.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout={int(self._busy_s * 1000)}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @contextmanager
    def session_scope(self, *, write: bool = True) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back when the block raises."""
        session = self.open_session(write=write)
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()

    @contextmanager
    def glance(self) -> Iterator[Glance]:
        """A few reads, each of what is committed at its moment; no transaction is begun.

        On PostgreSQL reads of one transaction are of different moments too (read committed): what is spared
        is two more questions to the server. A few glances keep their connections between two requests.
        """
        try:
            found = self._resting.pop()  # the one that rested shortest: its caches are warm
        except IndexError:
            found = Glance(self._glancer, self._questions)
        if not (found.is_fresh or self.is_sqlite):
            found.let_go()  # the pool asks whether a connection still lives
        try:
            yield found
        finally:
            if found.rest() and len(self._resting) < self._kept:
                self._resting.append(found)
            else:
                found.let_go()
            if found.failed:
                self._end_resting()

    def _end_resting(self) -> None:
        with suppress(IndexError):  # the last one; other threads take them too
            while True:
                self._resting.pop().let_go()

    def open_session(self, *, write: bool = True) -> Session:
        """A session that the caller commits and closes."""
        return Session(self.engine if write else self._reader, expire_on_commit=False)

    @contextmanager
    def only_one(self, name: str) -> Iterator[None]:
        """At most one holder of ``name`` among the users of this database; a dead holder lets go."""
        if self.is_sqlite:
            assert self.path is not None
            lock = os.open(f"{self.path}.{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
            return
        number = _number(name)
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SELECT pg_advisory_lock(:n)"), {"n": number})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:n)"), {"n": number})

    def lock(self, session: Session, name: str) -> None:
        """Hold ``name`` until the writing transaction of ``session`` ends; whoever wants it waits.

        On SQLite the transaction itself keeps every other writer out.
        """
        if not self.is_sqlite:
            session.connection().execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _number(name)})

    def upgrade(self, revision: str = "head") -> None:
        """Bring the tables to ``revision``; processes that start together take turns.

        Raises:
            Unchecked: ``E_DATABASE``; it does not answer, or a newer program has used it.
        """
        self._check()
        self._migrate(command.upgrade, revision)

    def _check(self) -> None:
        try:
            found, newest = self.revisions()
        except DBAPIError as error:
            raise Unchecked("E_DATABASE", f"the database does not answer: {reason(error)}", MEND) from error
        if found is not None and not self.knows(found):
            said = f"the database has tables of revision {found}, this program knows {newest} at most"
            raise Unchecked("E_DATABASE", said, NEWER)

    def downgrade(self, revision: str) -> None:
        """Take the tables back to ``revision`` (``base``: none)."""
        self._migrate(command.downgrade, revision)

    def revisions(self) -> tuple[str | None, str | None]:
        """The revision that the tables have (None: no tables) and the newest that this program knows."""
        with self.engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        return found, ScriptDirectory.from_config(self._config()).get_current_head()

    def knows(self, revision: str) -> bool:
        """Whether this program has the steps that lead to a revision."""
        return revision in {
            each.revision for each in ScriptDirectory.from_config(self._config()).walk_revisions()
        }

    def _config(self) -> Config:
        config = Config()
        config.set_main_option(
            "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
        )
        return config

    def _migrate(self, step: Any, revision: str) -> None:
        config = self._config()
        with self.only_one("migrate"), self.engine.connect() as connection:
            config.attributes["connection"] = connection
            step(config, revision)

    def close(self) -> None:
        """Give every connection back."""
        self._end_resting()
        self.engine.dispose()


def reason(error: DBAPIError) -> str:
    """What the driver says, on one line; it names host, user and database, never a password."""
    return " ".join(str(error.orig).split())


def _number(name: str) -> int:
    """What PostgreSQL's advisory locks know a name by."""
    return int.from_bytes(hashlib.sha256(f"fedhub {name}".encode()).digest()[:8], "big", signed=True)


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get(GLANCES, False):
        connection.exec_driver_sql("BEGIN" if options.get(READS, False) else "BEGIN IMMEDIATE")


def _ping_rested(engine: Engine) -> None:
    """Like SQLAlchemy's ``pool_pre_ping``, but only for connections that were not in use a moment ago."""

    def note(_connection: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    def ping(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("rests_since", math.inf) < PING_AFTER_S:
            return
        dialect: Any = engine.dialect
        try:
            dialect.do_ping(connection)
        except dialect.dbapi.Error as error:
            raise InvalidatePoolError from error  # the others are as old: a fresh one is made

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", ping)
