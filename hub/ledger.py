"""The log's memory: gives statements their index, publishes checkpoints, and keeps the evidence that rules
need.

Append order (trust.md section 7): *sequence* gives a statement the next index in the same SQL transaction as
its row, under one row lock; *publish* makes entry bundles, tiles and a signed checkpoint from the rows, under
another; *start* refuses to run when the stored checkpoint is not one that these rows lead to. Rows alone are
the truth: the evidence in memory is brought up to date from them before each decision, because other
processes add rows too.

Who may post or read a statement is not decided here (``access``, ``services.statements``).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from sqlalchemy import bindparam, event
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select, update

from hub.database import Database
from hub.errors import not_found
from hub.glances import Glance, session_of
from hub.tables import InstitutionRow, LogHeadRow, LogSequenceRow, RingRow, StatementRow
from storage.admission import check_admission
from storage.blobs import BlobStore
from storage.checkpoint import Checkpoint, LogKey, parse_checkpoint
from storage.errors import FedhubError, Rejected
from storage.evidence import NEVER, Entry, Evidence
from storage.keyring import KeyRing, read_ring
from storage.manifests import Manifest, read_manifest
from storage.signing import check_signature, log_leaf, open_envelope
from storage.statements import KINDS, read_statement
from storage.translog import check_start, publish

BATCH = 1000  # rows read at a time
OWN = "fedhub_own_entries"  # of a session: entries that it has sequenced and not committed
PartiesOf = Callable[[Entry, Evidence], set[str]]
_log = logging.getLogger("fedhub.ledger")

# Asked with every statement: written once.
FOLLOWING = select(LogSequenceRow).with_for_update()
LATER = (
    select(StatementRow)
    .where(col(StatementRow.log_index) >= bindparam("seen"), col(StatementRow.log_index) < bindparam("stop"))
    .order_by(col(StatementRow.log_index))
    .limit(BATCH)
)


@dataclass(frozen=True)
class RingKey:
    """A key of a ring version in force that nobody has revoked."""

    institution: str
    role: str
    key: EllipticCurvePublicKey


@dataclass(frozen=True)
class Admitted:
    """A statement in the log; ``fresh`` when this call put it there."""

    row: StatementRow
    entry: Entry
    fresh: bool
    parties: frozenset[str] = frozenset()  # of a fresh one: what the caller's ``parties_of`` said


class StoredManifests(dict[str, Manifest]):
    """Manifests of model versions, read from the store when a rule asks for one."""

    def __init__(self, store: BlobStore) -> None:
        super().__init__()
        self._store = store

    def get(self, asset_id: str, default: Any = None) -> Any:
        """The manifest of this asset, or ``default`` for one whose files the hub does not hold."""
        key = f"assets/{asset_id}/manifest.json"
        return default if self._store.size(key) is None else read_manifest(self._store.get(key))


class Ledger:
    """Admits, sequences and publishes for one process.

    Args:
        database: where the rows lie.
        store: where the log's files go.
        key: signs checkpoints; its name is the log's origin.
        operator: institution whose word orders and rounds are.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        store: BlobStore,
        key: LogKey,
        operator: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.origin = key.name
        self._database = database
        self._store = store
        self._key = key
        self._operator = operator
        self._clock = clock
        self._lock = threading.RLock()
        self._evidence = Evidence(self.origin, operator, {}, whole=True)
        self._evidence.manifests = StoredManifests(store)
        self._seen = 0
        self._woken = threading.Event()

    def now(self) -> int:
        """Whole seconds since 1970 by this ledger's clock."""
        return int(self._clock())

    # --- evidence -------------------------------------------------------------------------------------------

    @contextmanager
    def evidence(self, source: Session | Glance, *, rows: int | None = None) -> Iterator[Evidence]:
        """All that the log says, as this transaction sees it; other threads wait meanwhile.

        Args:
            rows: how many statements the caller has just read that the log has, where it adds none itself;
                then nothing is asked of the database when they are known here.
        """
        if rows is not None and rows <= self._seen:
            with self._lock:
                yield self._evidence
            return
        session = session_of(source)
        own: list[Entry] = session.info.get(OWN, [])
        session.connection()  # the database's lock first: who holds it may be waiting for ours
        with self._lock:
            self._catch_up(session, own[0].index if own else None)
            if not own:
                yield self._evidence
                return
            # What this transaction added may yet be rolled back: it goes into a copy, never into what is
            # shared.
            view = self._fork(self._evidence)
            for entry in own:
                if entry.statement.kind == "keyring":
                    view.rings[entry.institution] = self._ring(session, entry.institution)
                view.add(entry)
            yield view

    def _fork(self, evidence: Evidence) -> Evidence:
        view = evidence.fork()
        view.manifests = evidence.manifests
        return view

    def _catch_up(self, session: Session, stop: int | None) -> None:
        while True:
            asked = {"seen": self._seen, "stop": NEVER if stop is None else stop}
            rows = session.exec(LATER, params=asked).all()
            for row in rows:
                if row.kind == "keyring":
                    self._evidence.rings[row.issuer] = self._ring(session, row.issuer)
                self._evidence.add(entry_of(row))
                self._seen = row.log_index + 1
            if len(rows) < BATCH:
                return

    def _ring(self, session: Session, institution: str) -> KeyRing:
        """The institution's ring with all versions that the hub holds, logged or about to be."""
        member = session.get(InstitutionRow, institution)
        if member is None:
            raise not_found("institution", institution)
        query = select(RingRow).where(RingRow.institution == institution).order_by(col(RingRow.version))
        return read_ring(institution, [row.root for row in session.exec(query)], member.pin)

    def key_in_force(self, session: Session, hint: str) -> RingKey | None:
        """Whose key this is and in which role, as of the end of the log; None: nobody's, not now."""
        with self.evidence(session) as evidence:
            holder = evidence.find_key(hint)
            if holder is None or evidence.void_from(hint) <= evidence.size:
                return None
            institution, key = holder
            logged = [entry for entry in evidence.by_kind("keyring") if entry.institution == institution]
            if not logged:
                return None
            version = evidence.rings[institution].versions[logged[-1].says["version"]]
            role = next((role for role, keys in version.roles.items() if hint in keys), None)
            return None if role is None else RingKey(institution, role, key)

    # --- sequencing -----------------------------------------------------------------------------------------

    def sequence(self, session: Session, raw: bytes, parties_of: PartiesOf) -> Admitted:
        """Check a statement against the live log and give it the next index in ``session``'s transaction.

        A statement that is logged already, or a second one for the same site, plan, action and round, is
        answered with the first.

        Args:
            raw: text of the bundle.
            parties_of: whom a new statement concerns, asked while the evidence is at hand.
        Raises:
            Rejected: a rule of the log does not hold (``storage.admission``).
        """
        envelope = open_envelope(raw)
        following = session.exec(FOLLOWING).one()
        known = session.get(StatementRow, envelope.id)
        if known is not None and known.hint == envelope.hint:
            return Admitted(known, entry_of(known), fresh=False)
        entry, key, parties = self._check(session, raw, parties_of, rows=following.next_index)
        if entry.index < following.next_index:
            return Admitted(session.get_one(StatementRow, entry.id), entry, fresh=False)
        row = self._row(entry, key)
        session.add(row)
        following.next_index += 1
        session.add(following)
        self._remember(session, entry)
        return Admitted(row, entry, fresh=True, parties=parties)

    def rehearse(self, session: Session, raw: bytes) -> Entry:
        """Check a statement as if it were logged now, and log nothing."""
        return self._check(session, raw, lambda _entry, _evidence: set())[0]

    def replay(self, session: Session, raw: bytes, leaf: bytes, parties_of: PartiesOf) -> Admitted:
        """Give a published statement that the rows lack its index again; one at a time, in log order.

        It was admitted once, which the signed log says: what is checked is that it is the very statement.

        Args:
            raw: text of the bundle.
            leaf: the log's entry for it.
        Raises:
            Rejected: ``E_LOG_FORK``; the bundle is not what the entry names, or nobody's.
        """
        envelope = open_envelope(raw)
        statement = read_statement(envelope)
        following = session.exec(FOLLOWING).one()
        with self.evidence(session) as evidence:
            view = evidence
            if statement.kind == "keyring":
                view = self._fork(evidence)
                view.rings[statement.issuer] = self._ring(session, statement.issuer)
            holder = view.find_key(envelope.hint)
            if holder is None or log_leaf(holder[1], envelope) != leaf:
                raise Rejected(
                    "E_LOG_FORK",
                    f"statement {envelope.id} is not the one that entry {following.next_index} names",
                )
            check_signature(holder[1], envelope)
            entry = Entry(statement, holder[0], envelope.hint, following.next_index, envelope)
            parties = frozenset(parties_of(entry, view))
        row = self._row(entry, holder[1])
        session.add(row)
        following.next_index += 1
        session.add(following)
        session.flush()
        return Admitted(row, entry, fresh=True, parties=parties)

    def _check(
        self, session: Session, raw: bytes, parties_of: PartiesOf, *, rows: int | None = None
    ) -> tuple[Entry, EllipticCurvePublicKey, frozenset[str]]:
        statement = read_statement(open_envelope(raw))
        with self.evidence(session, rows=rows) as evidence:
            view = evidence
            if statement.kind == "keyring":
                # A ring's version takes force by this statement, so it is checked with that version at hand.
                view = self._fork(evidence)
                view.rings[statement.issuer] = self._ring(session, statement.issuer)
            entry = check_admission(view, raw, now=self.now())
            holder = view.find_key(entry.hint)
            parties = frozenset(parties_of(entry, view))
        assert holder is not None  # else the check had refused
        return entry, holder[1], parties

    def _row(self, entry: Entry, key: EllipticCurvePublicKey) -> StatementRow:
        statement = entry.statement
        own = KINDS[statement.kind].own
        return StatementRow(
            id=statement.id,
            log_index=entry.index,
            kind=statement.kind,
            issuer=entry.institution,
            hint=entry.hint,
            plan=plan_of(entry),
            audience="parties",
            issued_at=statement.issued_at if own else None,
            logged_at=self.now(),
            bundle=entry.envelope.raw,
            leaf=log_leaf(key, entry.envelope),
        )

    def _remember(self, session: Session, entry: Entry) -> None:
        own = session.info.get(OWN)
        if own is not None:
            own.append(entry)
            return
        session.info[OWN] = [entry]
        event.listen(session, "after_commit", self._committed)
        event.listen(session, "after_soft_rollback", self._undone)

    def _committed(self, session: Session) -> None:
        """What this process has put into the log is known here without being read back."""
        if session.in_nested_transaction():
            return
        own: list[Entry] = session.info.pop(OWN, [])
        with self._lock:
            for entry in own:
                # A ring comes with its statement, and others may have added what comes before: read those.
                if entry.index != self._seen or entry.kind == "keyring":
                    break
                self._evidence.add(entry)
                self._seen = entry.index + 1
        if own:
            self._woken.set()

    def _undone(self, session: Session, _previous: object) -> None:
        session.info.pop(OWN, None)

    # --- publishing -----------------------------------------------------------------------------------------

    def head(self, session: Session) -> Checkpoint | None:
        """The published checkpoint, or None while the log is empty."""
        return _checkpoint(session.exec(select(LogHeadRow)).one())

    def waiting_s(self, session: Session) -> int:
        """How long the oldest statement that is not under the published head has waited, seconds."""
        index = col(StatementRow.log_index)
        size = session.exec(select(LogHeadRow.size)).one()
        query = select(StatementRow.logged_at).where(index >= size).order_by(index).limit(1)
        oldest = session.exec(query).first()
        return 0 if oldest is None else max(0, self.now() - oldest)

    def publish(self) -> Checkpoint | None:
        """Bring the log's files to the sequenced rows and sign their head; a crash anywhere repeats
        harmlessly.

        Raises:
            FedhubError: the store is away; nothing is lost, and the next call does the rest.
        """
        # On SQLite the row lock is the whole database: a lock file keeps publishers apart instead, so that
        # nobody waits for the store. On PostgreSQL both hold until the head is moved.
        with self._database.only_one("publish"), self._database.open_session(write=False) as session:
            row = session.exec(select(LogHeadRow).with_for_update()).one()
            old, size = _checkpoint(row), session.exec(select(LogSequenceRow.next_index)).one()
            if size == row.size:
                return old
            self._put_documents(session, row.size, size)
            made = publish(
                self._store, self._key, self.origin, lambda a, b: self._leaves(session, a, b), old, size
            )
            if self._database.is_sqlite:
                session.rollback()
                with self._database.session_scope() as writer:
                    self._move_head(writer, row.size, made)
            else:
                self._move_head(session, row.size, made)
                session.commit()
            return made

    def _move_head(self, session: Session, old_size: int, made: Checkpoint) -> None:
        moved = update(LogHeadRow).where(col(LogHeadRow.size) == old_size)
        session.exec(moved.values(size=made.size, note=made.note.decode(), published_at=self.now()))

    def _leaves(self, session: Session, start: int, stop: int) -> list[bytes]:
        index = col(StatementRow.log_index)
        query = select(StatementRow.leaf).where(index >= start, index < stop).order_by(index)
        return list(session.exec(query))

    def _put_documents(self, session: Session, start: int, stop: int) -> None:
        """Bundles, rings and newest status lists beside the log; overwriting writes the same bytes."""
        index = col(StatementRow.log_index)
        for row in session.exec(select(StatementRow).where(index >= start, index < stop).order_by(index)):
            self._store.put(f"statements/{row.id[:2]}/{row.id}.sigstore.json", row.bundle)
            if row.kind == "keyring":
                rings = session.exec(select(RingRow).where(RingRow.statement == row.id))
                for ring in rings:
                    self._store.put(f"keyrings/{ring.institution}/{ring.version}.root.json", ring.root)
            if row.kind == "status":
                self._store.put(f"status/{row.issuer}.sigstore.json", row.bundle)

    def check_start(self) -> None:
        """Rule 3: advance a head whose last update was lost, refuse rows that the published log left behind.

        Raises:
            FedhubError: ``E_LOG_FORK``; the database is older than the log, or another log's.
        """
        with self._database.only_one("publish"), self._database.session_scope() as session:
            row = session.exec(select(LogHeadRow).with_for_update()).one()
            size = session.exec(select(LogSequenceRow.next_index)).one()
            found = check_start(
                self._store,
                self._key.public,
                lambda a, b: self._leaves(session, a, b),
                _checkpoint(row),
                size,
            )
            if found is not None and found.size != row.size:
                self._move_head(session, row.size, found)

    def wait_for_rows(self, timeout_s: float) -> bool:
        """Wait until this process has committed a statement; false after ``timeout_s``."""
        woken = self._woken.wait(timeout_s)
        self._woken.clear()
        return woken


def has_entries(database: Database) -> bool:
    """Whether the hub of this database has logged anything: then it has a store, too."""
    with database.session_scope(write=False) as session:
        return session.exec(select(LogSequenceRow.next_index)).one() > 0


class Publisher:
    """The thread that publishes a moment after each new row, and looks for rows of other processes."""

    def __init__(self, ledger: Ledger, *, batch_s: float, poll_s: float) -> None:
        self._ledger = ledger
        self._batch_s = batch_s
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fedhub-publisher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Publish what is there and end; call once."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            if self._ledger.wait_for_rows(self._poll_s):
                self._stop.wait(self._batch_s)
            failures = 0 if self._publish() else failures + 1
            if failures:
                self._stop.wait(min(0.2 * 2**failures, 10.0))
        self._publish()

    def _publish(self) -> bool:
        try:
            self._ledger.publish()
        except (FedhubError, SQLAlchemyError, OSError) as error:
            # Not lost: the rows are there, and publishing them again writes the same bytes.
            _log.error("publishing failed: %s: %s", type(error).__name__, error)
            return False
        return True


def entry_of(row: StatementRow) -> Entry:
    """The evidence that a row is."""
    envelope = open_envelope(row.bundle)
    return Entry(read_statement(envelope), row.issuer, row.hint, row.log_index, envelope)


def plan_of(entry: Entry) -> str | None:
    """The plan that a statement is about: its own id for a plan."""
    statement = entry.statement
    if statement.kind == "plan":
        return statement.id
    predicate = statement.predicate
    if statement.kind == "grant":
        found = predicate["conditions"].get("plan")
    elif statement.kind == "provenance":
        found = predicate["buildDefinition"]["externalParameters"]["plan"]
    else:
        found = predicate.get("plan") if KINDS[statement.kind].own else None
    return found if isinstance(found, str) else None


def _checkpoint(row: LogHeadRow) -> Checkpoint | None:
    return parse_checkpoint(row.note.encode()) if row.size else None
