"""The ledger: indexes without gaps, publishing that survives a crash anywhere, evidence that follows the rows."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from federation.home import Home
from hub.api.app import open_hub
from hub.database import Database
from hub.ledger import Ledger, Publisher
from hub.services.statements import admit
from hub.tables import LogHeadRow, LogSequenceRow, StatementPartyRow, StatementRow
from storage.checkpoint import check_checkpoint, parse_policy
from storage.encoding import sha256_hex
from storage.errors import FedhubError, Rejected, Unchecked
from storage.merkle import check_inclusion, leaf_hash
from storage.translog import inclusion_proof, stored_head
from tests.databases import DATABASES, database_url
from tests.hubs import ORIGIN, HubInProcess


@pytest.fixture(params=DATABASES)
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HubInProcess]:
    with database_url(request.param, tmp_path) as url:
        made = HubInProcess(tmp_path, database_url=url)
        yield made
        made.close()


@pytest.fixture
def lab(hub: HubInProcess) -> Home:
    return hub.enrol("lab-a.example")


def dataset(home: Home, name: str, **changes: Any) -> bytes:
    """A signed dataset statement of this home, about made-up files."""
    subjects = [("manifest.json", digest(home.institution + name)), ("croissant.json", digest(name))]
    members = {"type": "dataset", "name": f"{home.institution}/{name}", "version": 1, **changes}
    return home.sign("asset", subjects, members)


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def add(ledger: Ledger, database: Database, raw: bytes) -> int:
    with database.session_scope() as session:
        return admit(session, ledger, raw).log_index


def indexes(database: Database) -> list[int]:
    with database.session_scope(write=False) as session:
        return sorted(session.exec(select(StatementRow.log_index)).all())


def together(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(0..count-1)`` in threads; the first failure is raised."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# --- sequencing ---------------------------------------------------------------------------------------------


def test_concurrent_writers_leave_no_gap_and_no_twin(hub: HubInProcess, lab: Home) -> None:
    before = len(indexes(hub.hub.database))
    papers = [[dataset(lab, f"d{writer}-{number}") for number in range(5)] for writer in range(6)]
    replica = Ledger(hub.hub.database, hub.hub.store, hub.hub.keys.log, hub.operator.institution)

    def write(writer: int) -> None:
        for raw in papers[writer]:
            add(hub.hub.ledger if writer % 2 else replica, hub.hub.database, raw)

    together(6, write)
    assert indexes(hub.hub.database) == list(range(before + 30))
    with hub.hub.database.session_scope(write=False) as session:
        assert session.exec(select(LogSequenceRow)).one().next_index == before + 30


def test_the_same_statement_sent_by_many_at_once_is_one_entry(hub: HubInProcess, lab: Home) -> None:
    raw, got = dataset(lab, "once"), []

    def write(_number: int) -> None:
        got.append(add(hub.hub.ledger, hub.hub.database, raw))

    together(6, write)
    assert len(set(got)) == 1
    assert indexes(hub.hub.database) == list(range(len(indexes(hub.hub.database))))


def test_what_is_rolled_back_was_never_there(hub: HubInProcess, lab: Home) -> None:
    lost, kept = dataset(lab, "lost"), dataset(lab, "kept")
    with pytest.raises(RuntimeError), hub.hub.database.session_scope() as session:
        index = admit(session, hub.hub.ledger, lost).log_index
        with hub.hub.ledger.evidence(session) as evidence:
            assert evidence.size == index + 1
        raise RuntimeError
    with hub.hub.database.session_scope(write=False) as session, hub.hub.ledger.evidence(session) as evidence:
        assert evidence.size == index
    assert add(hub.hub.ledger, hub.hub.database, kept) == index
    assert add(hub.hub.ledger, hub.hub.database, lost) == index + 1


def test_an_error_that_is_caught_leaves_the_next_admission_of_the_transaction_sound(
    hub: HubInProcess, lab: Home
) -> None:
    with hub.hub.database.session_scope() as session:
        first = admit(session, hub.hub.ledger, dataset(lab, "a"))
        with pytest.raises(Rejected):
            admit(session, hub.hub.ledger, dataset(lab, "b", version=2, previous="0" * 64))
        second = admit(session, hub.hub.ledger, dataset(lab, "c"))
    assert second.log_index == first.log_index + 1


def test_what_a_savepoint_held_is_no_evidence_before_the_transaction_stands(
    hub: HubInProcess, lab: Home
) -> None:
    database, ledger = hub.hub.database, hub.hub.ledger
    with pytest.raises(RuntimeError), database.session_scope() as session:
        index = admit(session, ledger, dataset(lab, "lost")).log_index
        with session.begin_nested():
            session.flush()
        raise RuntimeError
    with database.session_scope(write=False) as other, ledger.evidence(other) as evidence:
        assert evidence.size == index
    with database.session_scope() as session:
        row = admit(session, ledger, dataset(lab, "kept"))
        with session.begin_nested():
            session.flush()
    with database.glance() as glance, ledger.evidence(glance, rows=row.log_index + 1) as evidence:
        entry = evidence.get(row.id)
    assert entry is not None and (entry.index, entry.envelope.raw) == (index, row.bundle)


def test_a_transaction_sees_what_it_has_added_and_others_do_not(hub: HubInProcess, lab: Home) -> None:
    first = dataset(lab, "v")
    with hub.hub.database.session_scope() as session:
        row = admit(session, hub.hub.ledger, first)
        subjects = [("manifest.json", digest("v2")), ("croissant.json", digest("c2"))]
        members = {"type": "dataset", "name": f"{lab.institution}/v", "version": 2, "previous": row.id}
        admit(session, hub.hub.ledger, lab.sign("asset", subjects, members))
        with hub.hub.database.session_scope(write=False) as other, hub.hub.ledger.evidence(other) as evidence:
            assert evidence.get(row.id) is None
    with hub.hub.database.session_scope(write=False) as other, hub.hub.ledger.evidence(other) as evidence:
        assert evidence.get(row.id) is not None


def test_replicas_follow_each_other(hub: HubInProcess, lab: Home) -> None:
    replica = Ledger(hub.hub.database, hub.hub.store, hub.hub.keys.log, hub.operator.institution)
    add(hub.hub.ledger, hub.hub.database, dataset(lab, "here"))
    subjects = [("manifest.json", digest("other")), ("croissant.json", digest("c"))]
    rival = lab.sign("asset", subjects, {"type": "dataset", "name": f"{lab.institution}/here", "version": 1})
    with pytest.raises(Rejected) as caught:
        add(replica, hub.hub.database, rival)
    assert caught.value.code == "E_VERSION_CHAIN"
    add(replica, hub.hub.database, dataset(lab, "there"))
    with hub.hub.database.session_scope(write=False) as session, hub.hub.ledger.evidence(session) as evidence:
        assert evidence.size == len(indexes(hub.hub.database))


def test_a_glance_asks_the_database_for_statements_only_when_there_are_some_it_does_not_know(
    hub: HubInProcess, lab: Home
) -> None:
    """What another replica has logged is seen by whoever has read how much there is, and by nobody else."""
    database = hub.hub.database
    replica = Ledger(database, hub.hub.store, hub.hub.keys.log, hub.operator.institution)
    with database.session_scope(write=False) as session, replica.evidence(session) as evidence:
        known = evidence.size
    add(hub.hub.ledger, database, dataset(lab, "rows"))
    with database.glance() as glance:
        with replica.evidence(glance, rows=known) as evidence:
            assert evidence.size == known
        with replica.evidence(glance, rows=known + 1) as evidence:
            assert evidence.size == known + 1


def test_a_refused_statement_uses_no_index(hub: HubInProcess, lab: Home) -> None:
    before = indexes(hub.hub.database)
    stranger = hub.new_home("stranger.example", "lab")
    for raw in (dataset(stranger, "x"), dataset(lab, "x")[:-20], b"{}", b""):
        with pytest.raises(FedhubError):
            add(hub.hub.ledger, hub.hub.database, raw)
    assert indexes(hub.hub.database) == before


def test_an_old_statement_is_refused(hub: HubInProcess, lab: Home) -> None:
    subjects = [("manifest.json", digest("o")), ("croissant.json", digest("o"))]
    members = {"type": "dataset", "name": f"{lab.institution}/o", "version": 1}
    for now in (time.time() - 700, time.time() + 700):
        with pytest.raises(Rejected) as caught:
            add(hub.hub.ledger, hub.hub.database, lab.sign("asset", subjects, members, now=int(now)))
        assert caught.value.code == "E_TIME"


def test_parties_of_a_grant_are_kept_with_it(hub: HubInProcess, lab: Home) -> None:
    from storage.encoding import format_time

    firm = hub.enrol("firm.example", "firm")
    add(hub.hub.ledger, hub.hub.database, dataset(lab, "g"))
    now = int(time.time())
    terms = {
        "grantee": firm.institution,
        "actions": ["evaluate"],
        "conditions": {},
        "notBefore": format_time(now),
        "expires": format_time(now + 1000),
        "depth": 0,
    }
    raw = lab.sign("grant", [("manifest.json", digest(lab.institution + "g"))], terms)
    with hub.hub.database.session_scope() as session:
        row = admit(session, hub.hub.ledger, raw)
        query = select(StatementPartyRow.institution).where(StatementPartyRow.statement == row.id)
        assert set(session.exec(query)) == {"lab-a.example", "firm.example"}
        assert row.audience == "parties"


# --- publishing ---------------------------------------------------------------------------------------------


def test_a_published_log_proves_every_row(hub: HubInProcess, lab: Home) -> None:
    for number in range(5):
        add(hub.hub.ledger, hub.hub.database, dataset(lab, f"p{number}"))
    made = hub.hub.ledger.publish()
    assert made is not None and made.size == 7
    policy = parse_policy(f"log {hub.hub.keys.log.vkey}\nquorum none\n")
    raw = hub.hub.store.get("log/checkpoint")
    assert check_checkpoint(raw, policy, ORIGIN, int(time.time()), 86_400)
    with hub.hub.database.session_scope(write=False) as session:
        rows = session.exec(select(StatementRow)).all()
    for row in rows:
        proof = inclusion_proof(hub.hub.store, made, row.log_index)
        check_inclusion(leaf_hash(row.leaf), row.log_index, made.size, list(proof.path), made.root)
        assert hub.hub.store.get(f"statements/{row.id[:2]}/{row.id}.sigstore.json") == row.bundle
    root = hub.hub.store.get(f"keyrings/{lab.institution}/1.root.json")
    assert sha256_hex(root) == lab.ring.pin


def test_publishing_without_news_writes_nothing(hub: HubInProcess, lab: Home) -> None:
    first = hub.hub.ledger.publish()
    assert hub.hub.ledger.publish() == first


def test_many_publishers_make_one_log(hub: HubInProcess, lab: Home) -> None:
    replica = Ledger(hub.hub.database, hub.hub.store, hub.hub.keys.log, hub.operator.institution)

    def work(number: int) -> None:
        for step in range(3):
            add(hub.hub.ledger, hub.hub.database, dataset(lab, f"m{number}-{step}"))
            (hub.hub.ledger if number % 2 else replica).publish()

    together(4, work)
    made = hub.hub.ledger.publish()
    assert made is not None and made.size == 14
    head = stored_head(hub.hub.store, hub.hub.keys.log.public)
    assert head is not None and (head.size, head.root) == (made.size, made.root)


class Failing:
    """A store that dies before its n-th write."""

    def __init__(self, store: Any, after: int) -> None:
        self._store = store
        self.left = after

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        if self.left == 0:
            raise Unchecked("E_STORE", "the store does not answer")
        self.left -= 1
        self._store.put(key, data, create_only=create_only)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_crash_before_any_write_is_repaired_by_publishing_again(hub: HubInProcess, lab: Home) -> None:
    store, after, died = hub.hub.store, 0, 0
    while True:
        add(hub.hub.ledger, hub.hub.database, dataset(lab, f"crash{after}"))
        hub.hub.ledger._store = Failing(store, after)  # type: ignore[assignment]
        try:
            hub.hub.ledger.publish()
        except Unchecked:
            died += 1
        else:
            break
        finally:
            hub.hub.ledger._store = store
        restarted = Ledger(hub.hub.database, store, hub.hub.keys.log, hub.operator.institution)
        restarted.check_start()
        made = restarted.publish()
        assert made is not None and made.size == len(indexes(hub.hub.database))
        after += 1
    assert died >= 4
    made = hub.hub.ledger.publish()
    assert made is not None
    for index in range(made.size):
        inclusion_proof(store, made, index)


def test_a_lost_last_update_is_found_at_the_next_start(
    hub: HubInProcess, lab: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(hub.hub.ledger, hub.hub.database, dataset(lab, "lost-update"))

    def die(*_args: object) -> None:
        raise Unchecked("E_DATABASE", "killed")

    monkeypatch.setattr(hub.hub.ledger, "_move_head", die)
    with pytest.raises(Unchecked):
        hub.hub.ledger.publish()
    monkeypatch.undo()
    with hub.hub.database.session_scope(write=False) as session:
        assert session.exec(select(LogHeadRow)).one().size == 0
    hub.hub.ledger.check_start()
    with hub.hub.database.session_scope(write=False) as session:
        assert session.exec(select(LogHeadRow)).one().size == 3
    add(hub.hub.ledger, hub.hub.database, dataset(lab, "next"))
    made = hub.hub.ledger.publish()
    assert made is not None and made.size == 4


def test_a_database_from_a_backup_stops_the_hub(tmp_path: Path) -> None:
    hub = HubInProcess(tmp_path)
    lab = hub.enrol("lab-a.example")
    hub.hub.ledger.publish()
    hub.hub.database.close()
    shutil.copytree(tmp_path / "hub", tmp_path / "backup", ignore=shutil.ignore_patterns("store"))
    add(hub.hub.ledger, hub.hub.database, dataset(lab, "after-backup"))
    hub.hub.ledger.publish()
    hub.close()
    for path in (tmp_path / "hub").glob("fedhub.db*"):
        path.unlink()
    shutil.copy(tmp_path / "backup" / "fedhub.db", tmp_path / "hub" / "fedhub.db")
    with pytest.raises(FedhubError) as caught:
        open_hub(hub.settings)
    assert caught.value.code == "E_LOG_FORK"


def test_a_row_that_was_changed_after_publishing_stops_the_next_checkpoint(
    hub: HubInProcess, lab: Home
) -> None:
    hub.hub.ledger.publish()
    with hub.hub.database.session_scope() as session:
        row = session.exec(select(StatementRow).where(StatementRow.issuer == lab.institution)).one()
        row.leaf = row.leaf.replace(b"0", b"1", 1)
        session.add(row)
    add(hub.hub.ledger, hub.hub.database, dataset(lab, "later"))
    with pytest.raises(FedhubError):
        hub.hub.ledger.publish()
    head = stored_head(hub.hub.store, hub.hub.keys.log.public)
    assert head is not None and head.size == 2


def test_writers_do_not_wait_for_a_slow_store(hub: HubInProcess, lab: Home) -> None:
    add(hub.hub.ledger, hub.hub.database, dataset(lab, "slow"))
    store, entered, go = hub.hub.store, threading.Event(), threading.Event()

    class Slow(Failing):
        def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
            entered.set()
            assert go.wait(20)
            super().put(key, data, create_only=create_only)

    hub.hub.ledger._store = Slow(store, 10_000)  # type: ignore[assignment]
    thread = threading.Thread(target=hub.hub.ledger.publish)
    thread.start()
    assert entered.wait(10)
    add(hub.hub.ledger, hub.hub.database, dataset(lab, "meanwhile"))
    assert thread.is_alive()  # the store has not answered yet
    go.set()
    thread.join()
    hub.hub.ledger._store = store
    made = hub.hub.ledger.publish()
    assert made is not None and made.size == len(indexes(hub.hub.database))


def test_the_publisher_publishes_a_moment_after_a_statement_and_survives_a_store_that_is_away(
    hub: HubInProcess, lab: Home
) -> None:
    ledger, store = hub.hub.ledger, hub.hub.store
    publisher = Publisher(ledger, batch_s=0.02, poll_s=0.1)
    publisher.start()
    try:
        assert wait(lambda: published(hub) == 2)
        ledger._store = Failing(store, 0)  # type: ignore[assignment]
        add(ledger, hub.hub.database, dataset(lab, "during"))
        time.sleep(0.3)
        assert published(hub) == 2
        ledger._store = store
        assert wait(lambda: published(hub) == 3)
    finally:
        publisher.stop()


def test_stopping_publishes_what_is_there(hub: HubInProcess, lab: Home) -> None:
    publisher = Publisher(hub.hub.ledger, batch_s=5, poll_s=60)
    publisher.start()
    add(hub.hub.ledger, hub.hub.database, dataset(lab, "last"))
    publisher.stop()
    assert published(hub) == 3


def published(hub: HubInProcess) -> int:
    with hub.hub.database.session_scope(write=False) as session:
        return session.exec(select(LogHeadRow.size)).one()


def wait(reached: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if reached():
            return True
        time.sleep(0.02)
    return False
