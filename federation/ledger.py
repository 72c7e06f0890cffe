"""What a site was told, what it did, and what it refused: its own record, which nobody else can change.

An SQLite file in the site's home (mode 0600, WAL). Every order is kept, done or not; a round that is done is
answered from here and never trained twice, across crashes of agent, coordinator and hub. Nothing here holds a
row of data. The agent is the one writer; ``fedhub site ledger`` reads beside it.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from storage.errors import Misuse, Unchecked

BUSY_S = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY, plan TEXT NOT NULL, dataset TEXT NOT NULL, action TEXT NOT NULL, round INTEGER NOT
    NULL, input TEXT NOT NULL, deadline INTEGER NOT NULL, received_at INTEGER NOT NULL, bundle BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    plan TEXT NOT NULL, dataset TEXT NOT NULL, action TEXT NOT NULL, round INTEGER NOT NULL, input TEXT NOT
    NULL, order_id TEXT NOT NULL REFERENCES orders(id), grant_id TEXT NOT NULL, done_at INTEGER NOT NULL,
    update_sha256 TEXT, update_size INTEGER, examples INTEGER NOT NULL, metrics TEXT NOT
    NULL, epsilon TEXT, delta TEXT, receipt_id TEXT, receipt BLOB, logged INTEGER NOT NULL DEFAULT 0,
    figures BLOB, PRIMARY KEY (plan, dataset, action, round)
) STRICT;
CREATE TABLE IF NOT EXISTS refusals (
    order_id TEXT NOT NULL, code TEXT NOT NULL, plan TEXT NOT NULL, dataset TEXT NOT NULL, round INTEGER NOT
    NULL, message TEXT NOT NULL, refused_at INTEGER NOT NULL, id TEXT NOT NULL, bundle BLOB NOT NULL, logged
    INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (order_id, code)
) STRICT;
CREATE TABLE IF NOT EXISTS checked_files (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
    sha256 TEXT NOT NULL
) STRICT;
PRAGMA user_version = 3;
"""
_VERSION = 3
_FROM_2 = "ALTER TABLE answers ADD COLUMN figures BLOB; PRAGMA user_version = 3; COMMIT;"
_STEPS = {
    0: f"BEGIN; {_SCHEMA} COMMIT;",
    1: f"BEGIN; ALTER TABLE answers DROP COLUMN update_parts; {_FROM_2}",
    2: f"BEGIN; {_FROM_2}",
}


@dataclass(frozen=True)
class KeptOrder:
    """An order as received; ``bundle`` is its signed text."""

    id: str
    plan: str
    dataset: str
    action: str
    round: int
    input: str
    deadline: int  # seconds since 1970
    received_at: int
    bundle: bytes


@dataclass(frozen=True)
class Answer:
    """What was done for one order.

    Attributes:
        grant_id: the consent it was done under.
        update_sha256, update_size: of the update; None for an evaluation.
        receipt: bundle, once signed; ``logged``: whether the hub has admitted it to the log.
        epsilon, delta: cumulative for this plan and dataset, where a privacy mechanism accounts for them.
        figures: ``figures.json``, which the receipt names; None where the action has none.
    """

    plan: str
    dataset: str
    action: str
    round: int
    input: str
    order_id: str
    grant_id: str
    done_at: int
    update_sha256: str | None
    update_size: int | None
    examples: int
    metrics: dict[str, float | int]
    epsilon: str | None
    delta: str | None
    receipt_id: str | None = None
    receipt: bytes | None = None
    logged: bool = False
    figures: bytes | None = None


@dataclass(frozen=True)
class KeptRefusal:
    """A signed no; ``logged``: whether the hub has it."""

    order_id: str
    code: str
    plan: str
    dataset: str
    round: int
    message: str
    refused_at: int
    id: str
    bundle: bytes
    logged: bool


@dataclass(frozen=True)
class Spent:
    """What one plan has taken from one dataset so far."""

    plan: str
    dataset: str
    rounds: int
    evaluations: int
    examples: int  # rows used, summed over rounds
    epsilon: str | None
    delta: str | None


class SiteLedger:
    """The ledger in one file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, SiteLedger(Path(folder, "ledger.db")) as ledger:
    ...     ledger.orders()
    []
    """

    def __init__(self, path: Path) -> None:
        """Open the ledger, making it when it is not there.

        Raises:
            Unchecked: ``E_LEDGER``: it cannot be opened, is no ledger, or a newer fedhub wrote it.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            with _explained(path):
                self._open()
        except OSError as error:
            raise Unchecked("E_LEDGER", f"site ledger {path}: {error.strerror}") from error

    def _open(self) -> None:
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # what was answered survives a power cut
        self._db.execute("PRAGMA foreign_keys = ON")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise Unchecked(
                "E_LEDGER",
                f"site ledger {self.path} has form {version}, this fedhub knows {_VERSION}",
                "update fedhub",
            )
        if version < _VERSION:
            self._db.executescript(_STEPS[version])

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- writing ------------------------------------------------------------------------------------------

    def keep_order(self, order: KeptOrder) -> None:
        """Keep an order; one that came before stays as it was."""
        self._write(
            "INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            order.id,
            order.plan,
            order.dataset,
            order.action,
            order.round,
            order.input,
            order.deadline,
            order.received_at,
            order.bundle,
        )

    def save_answer(self, answer: Answer) -> None:
        """Write down what was done, before anybody else hears of it.

        Raises:
            Misuse: that round is answered already.
        """
        try:
            self._write(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, 0, ?)",
                answer.plan,
                answer.dataset,
                answer.action,
                answer.round,
                answer.input,
                answer.order_id,
                answer.grant_id,
                answer.done_at,
                answer.update_sha256,
                answer.update_size,
                answer.examples,
                json.dumps(answer.metrics, allow_nan=False),
                answer.epsilon,
                answer.delta,
                answer.figures,
            )
        except sqlite3.IntegrityError as error:
            raise Misuse(
                "E_LEDGER", f"round {answer.round} of plan {answer.plan} is answered already"
            ) from error

    def save_receipt(self, answer: Answer, receipt_id: str, bundle: bytes, *, logged: bool) -> None:
        """Note the receipt of an answer: signed, or admitted to the log. A logged one never changes."""
        self._write(
            "UPDATE answers SET receipt_id = ?, receipt = ?, logged = ?"
            " WHERE plan = ? AND dataset = ? AND action = ? AND round = ? AND logged = 0",
            receipt_id,
            bundle,
            int(logged),
            answer.plan,
            answer.dataset,
            answer.action,
            answer.round,
        )

    def save_refusal(self, refusal: KeptRefusal) -> None:
        """Keep a signed no; a second one with the same code for the same order changes nothing."""
        self._write(
            "INSERT OR IGNORE INTO refusals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            refusal.order_id,
            refusal.code,
            refusal.plan,
            refusal.dataset,
            refusal.round,
            refusal.message,
            refusal.refused_at,
            refusal.id,
            refusal.bundle,
            int(refusal.logged),
        )

    def refusal_logged(self, refusal_id: str) -> None:
        """Note that the hub has admitted a refusal."""
        self._write("UPDATE refusals SET logged = 1 WHERE id = ?", refusal_id)

    def save_checked_file(self, path: Path, status: os.stat_result, sha256: str) -> None:
        """Remember the digest of a file that was read whole while it had this size, time and inode."""
        self._write(
            "INSERT OR REPLACE INTO checked_files VALUES (?, ?, ?, ?, ?)",
            str(path),
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
            sha256,
        )

    # --- reading ------------------------------------------------------------------------------------------

    def checked_file(self, path: Path, status: os.stat_result) -> str | None:
        """The digest of a file that has not changed since it was read, by its size, time and inode."""
        found = self._rows("SELECT * FROM checked_files WHERE path = ?", str(path))
        same = found and (found[0]["size"], found[0]["mtime_ns"], found[0]["inode"]) == (
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
        )
        return str(found[0]["sha256"]) if same else None

    def answer(self, plan: str, dataset: str, action: str, round_number: int) -> Answer | None:
        """What was done for this round, or None."""
        found = self._rows(
            "SELECT * FROM answers WHERE plan = ? AND dataset = ? AND action = ? AND round = ?",
            plan,
            dataset,
            action,
            round_number,
        )
        return _answer(found[0]) if found else None

    def last_answer(self, plan: str, dataset: str, action: str, *, logged: bool = False) -> Answer | None:
        """The answer of the highest round; with ``logged`` only among those whose receipt is in the log."""
        found = self._rows(
            "SELECT * FROM answers WHERE plan = ? AND dataset = ? AND action = ? AND logged >= ?"
            " ORDER BY round DESC LIMIT 1",
            plan,
            dataset,
            action,
            int(logged),
        )
        return _answer(found[0]) if found else None

    def refusal(self, order_id: str, code: str) -> KeptRefusal | None:
        """The refusal of an order with this code, or None."""
        found = self._rows("SELECT * FROM refusals WHERE order_id = ? AND code = ?", order_id, code)
        return _refusal(found[0]) if found else None

    def orders(self, *, plan: str | None = None) -> list[KeptOrder]:
        """All orders in the order they came, of one plan or of all."""
        rows = self._rows(
            "SELECT * FROM orders WHERE plan = ?1 OR ?1 IS NULL ORDER BY received_at, rowid", plan
        )
        return [KeptOrder(**dict(row)) for row in rows]

    def answers(self, *, plan: str | None = None) -> list[Answer]:
        """All that was done, in the order it was done."""
        rows = self._rows("SELECT * FROM answers WHERE plan = ?1 OR ?1 IS NULL ORDER BY done_at, rowid", plan)
        return [_answer(row) for row in rows]

    def refusals(self, *, plan: str | None = None, logged: bool | None = None) -> list[KeptRefusal]:
        """All that was refused, in that order; with ``logged`` those the hub has, or has not."""
        rows = self._rows(
            "SELECT * FROM refusals WHERE (plan = ?1 OR ?1 IS NULL) AND (logged = ?2 OR ?2 IS NULL)"
            " ORDER BY refused_at, rowid",
            plan,
            None if logged is None else int(logged),
        )
        return [_refusal(row) for row in rows]

    def spent(self) -> list[Spent]:
        """What each plan has taken from each dataset."""
        uses: dict[tuple[str, str], list[Answer]] = {}
        for answer in self.answers():
            uses.setdefault((answer.plan, answer.dataset), []).append(answer)
        totals = []
        for (plan, dataset), answers in sorted(uses.items()):
            rounds = [answer for answer in answers if answer.action == "train"]
            last = max(
                rounds, key=lambda answer: answer.round, default=None
            )  # epsilon and delta are cumulative
            totals.append(
                Spent(
                    plan,
                    dataset,
                    rounds=len(rounds),
                    evaluations=sum(answer.action == "evaluate" for answer in answers),
                    examples=sum(answer.examples for answer in rounds),
                    epsilon=last.epsilon if last else None,
                    delta=last.delta if last else None,
                )
            )
        return totals

    def _write(self, statement: str, *values: Any) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise Unchecked(
                "E_LEDGER", f"site ledger {self.path}: {error}", "nothing was done: free its disk"
            ) from error

    def _rows(self, statement: str, *values: Any) -> Sequence[sqlite3.Row]:
        with _explained(self.path), closing(self._db.execute(statement, values)) as cursor:
            return cursor.fetchall()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise Unchecked("E_LEDGER", f"site ledger {path}: {error}", "restore it from your backup") from error


def _answer(row: sqlite3.Row) -> Answer:
    found = dict(row)
    found["metrics"] = json.loads(found["metrics"])
    found["logged"] = bool(found["logged"])
    return Answer(**found)


def _refusal(row: sqlite3.Row) -> KeptRefusal:
    return KeptRefusal(**{**dict(row), "logged": bool(row["logged"])})
