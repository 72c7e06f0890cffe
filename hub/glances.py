"""Reads outside any transaction, for what is asked with almost every request.

SQLAlchemy writes a statement's SQL once; from then on text and values go to the driver, and plain tuples with
names come back: an indexed row costs what the driver asks for it, a tenth of what a session would.
"""

import time
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Select
from sqlmodel import Session

from storage.errors import Misuse

KEPT = 6  # glances that keep their connections between two requests
PING_AFTER_S = 1.0  # a connection that rested longer is asked whether it still lives before it is used


@dataclass(frozen=True)
class Question:
    """A statement as the driver takes it."""

    text: str
    fixed: Mapping[str, Any]  # values that stand in the statement itself
    order: Sequence[str] | None  # names of the values by place; None: they go by name
    row: Callable[..., Any]

    @classmethod
    def of(cls, statement: Select[Any], engine: Engine) -> "Question":
        """Have it written for this engine.

        Raises:
            Misuse: a column's value would have to be made from what the driver gives (JSON, for example).
        """
        made = statement.compile(dialect=engine.dialect)
        for column in statement.selected_columns:
            if column.type.result_processor(engine.dialect, None) is not None:
                raise Misuse(
                    "E_QUESTION", f"{column}: only values that the driver gives as they are can be glanced at"
                )
        named: Any = namedtuple("Row", list(statement.selected_columns.keys()))  # type: ignore[misc]
        return cls(str(made), dict(made.params), made.positiontup, named)

    def values(self, asked: Mapping[str, Any]) -> Any:
        """All values, as the driver takes them."""
        given = {**self.fixed, **asked}
        return given if self.order is None else tuple([given[name] for name in self.order])


class Glance:
    """A few reads by one thread, each of what is committed at its moment.

    Args:
        engine: begins no transaction by itself (on PostgreSQL: AUTOCOMMIT).
        questions: of this engine, by statement; filled here.
    """

    def __init__(self, engine: Engine, questions: dict[Select[Any], Question]) -> None:
        self._engine, self._questions = engine, questions
        self._connection: Any = None
        self._cursor: Any = None
        self._session: Session | None = None
        self._rests_since = 0.0
        self.failed = False  # the driver refused something: other connections may be as bad

    def rows(self, statement: Select[Any], asked: Mapping[str, Any]) -> list[Any]:
        """All rows of a statement whose columns are texts and whole numbers; each with its columns' names.

        Args:
            statement: kept for good, so one that lives as long as the program.
        """
        question = self._questions.get(statement)
        if question is None:
            question = self._questions[statement] = Question.of(statement, self._engine)
        values = question.values(asked)
        if self._cursor is None:
            self._connect()
        dialect: Any = self._engine.dialect
        try:
            found = self._cursor.execute(question.text, values).fetchall()
        except dialect.dbapi.Error:
            # Asked again in SQLAlchemy's way, which knows what each driver's errors mean for the others.
            self.failed = True
            found = self._connection.exec_driver_sql(question.text, values).all()
        return [question.row(*each) for each in found]

    @property
    def session(self) -> Session:
        """A fresh session over the same connection, for what is not common enough to be a ``Question``."""
        if self._session is None:
            if self._connection is None:
                self._connect()
            self._session = Session(self._connection, expire_on_commit=False)
        return self._session

    def _connect(self) -> None:
        self._connection = self._engine.connect()
        self._cursor = self._connection.connection.driver_connection.cursor()

    def rest(self) -> bool:
        """End the session, keep the connection; False: there is none that could be kept."""
        if self._session is not None:
            self._session.close()
            self._session = None
        self._rests_since = time.monotonic()
        connection = self._connection
        self.failed = self.failed or (connection is not None and connection.invalidated)
        return connection is not None and not self.failed

    @property
    def is_fresh(self) -> bool:
        """Whether it rested so shortly that its connection can be trusted to live."""
        return time.monotonic() - self._rests_since < PING_AFTER_S

    def let_go(self) -> None:
        """Give the connection back, before another one is taken or the thread waits; it can be used on."""
        if self._session is not None:
            self._session.close()
        if self._connection is not None:
            self._connection.close()
        self._connection = self._cursor = self._session = None


def ask(source: Session | Glance, statement: Select[Any], asked: Mapping[str, Any]) -> Sequence[Any]:
    """Rows of a statement, as a transaction sees them or at a glance."""
    if isinstance(source, Glance):
        return source.rows(statement, asked)
    return source.connection().execute(statement, asked).all()


def session_of(source: Session | Glance) -> Session:
    """The session that reads what the source does."""
    return source.session if isinstance(source, Glance) else source
