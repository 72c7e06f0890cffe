"""Whatever dies, the run goes on from its last round, or stops and says why."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from federation.wire import EventReport
from hub import background
from hub.background import Background, Housekeeper, Lease, new_holder
from hub.context import Bell, NodeRegistry
from hub.supervisor import FlowerControl, Supervisor, start_supervisor
from hub.tables import AttemptRow, LeaseRow, PlanRow, RunRow, SiteRow
from storage.errors import Refused, Unchecked
from tests.alliances import (
    BASE,
    ENGINES,
    LABS,
    OWNER,
    FakeControl,
    Journey,
    Setting,
    digest,
    open_alliance,
)


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module", params=ENGINES)
def opened(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Setting]:
    limits: dict[str, Any] = {"run_attempts": 3, "attempt_start_s": 20, "superlink_patience_s": 100}
    folder = tmp_path_factory.mktemp("supervisor")
    with open_alliance(
        folder, request.param, superlink="external", sites_patience_s=60, **limits
    ) as alliance:
        yield Setting(alliance)


@pytest.fixture
def setting(opened: Setting) -> Iterator[Setting]:
    """The alliance, with SuperLink as new and no lease held; runs of the test before are over."""
    control = opened.alliance.control
    control.away, control.refuses_start = False, None
    yield opened
    control.away, control.refuses_start = False, None
    with opened.alliance.hub.database.session_scope() as session:
        for run in session.exec(select(RunRow)):
            run.state = "cancelled"
            session.add(run)
        for attempt in session.exec(select(AttemptRow)):
            attempt.state = "ended"
            session.add(attempt)
        for lease in session.exec(select(LeaseRow)):
            session.delete(lease)
    for node in control.nodes.values():
        node.online = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def supervisor(setting: Setting, clock: Clock) -> Supervisor:
    """A supervisor that has been at work for long."""
    supervisor = Supervisor(setting.alliance.hub, setting.alliance.control, clock=clock)
    supervisor._began = 0
    return supervisor


def started(setting: Setting, **changes: Any) -> Journey:
    journey = setting.plan(**changes)
    with setting.alliance.as_(OWNER) as owner:
        owner.start_run(journey.id)
    return journey


def attempts(journey: Journey) -> list[AttemptRow]:
    with journey.alliance.hub.database.session_scope(write=False) as session:
        query = select(AttemptRow).where(AttemptRow.plan == journey.id).order_by(AttemptRow.number)  # type: ignore[arg-type]
        return list(session.exec(query))


def age(journey: Journey, **seconds: int) -> None:
    """Move what the newest attempt remembers into the past, and the pause before the next one away."""
    with journey.alliance.hub.database.session_scope() as session:
        run = session.get_one(RunRow, journey.id)
        run.next_attempt_at = 0
        session.add(run)
        attempt = session.get(AttemptRow, (journey.id, run.attempt))
        if attempt is not None:
            for name, by in seconds.items():
                setattr(attempt, name, (getattr(attempt, name) or 0) - by)
            session.add(attempt)


def test_started_run_gets_one_flower_run_with_references_only(
    setting: Setting, supervisor: Supervisor
) -> None:
    journey = started(setting)
    control = setting.alliance.control
    before = control.starts
    for _ in range(3):
        supervisor.look()
    assert control.starts == before + 1
    config = control.newest.config
    assert set(config) == {"hub", "plan", "attempt", "token-file"}
    assert (config["plan"], config["attempt"]) == (journey.id, 1)
    token = setting.alliance.hub.keys.coordinator_token
    assert token not in str(config) and Path(str(config["token-file"])).read_text().strip() == token


def test_crashed_coordinator_is_followed_by_the_next_attempt_from_the_last_round(
    setting: Setting, supervisor: Supervisor
) -> None:
    journey = started(setting)
    supervisor.look()
    journey.work()
    told = journey.reports(1, digest(BASE))
    journey.report(told)
    setting.alliance.control.crash("killed by signal 9")
    supervisor.look()
    first = attempts(journey)[0]
    assert first.state == "ended" and "killed by signal 9" in (first.detail or "")
    age(journey)
    supervisor.look()
    assert setting.alliance.control.newest.config["attempt"] == 2
    assert [one.first_round for one in attempts(journey)] == [1, 2]
    work = journey.work()
    assert (work.attempt, work.next_round, work.input.sha256) == (2, 2, told.aggregate)
    assert journey.run().state == "running"


def test_next_attempt_waits_a_little_and_longer_each_time(setting: Setting, supervisor: Supervisor) -> None:
    journey = started(setting)
    pauses = []
    for _ in range(3):
        supervisor.look()
        setting.alliance.control.crash()
        supervisor.look()
        with setting.alliance.hub.database.session_scope(write=False) as session:
            pauses.append(
                session.get_one(RunRow, journey.id).next_attempt_at - setting.alliance.hub.ledger.now()
            )
        count = setting.alliance.control.starts
        supervisor.look()
        assert setting.alliance.control.starts == count
        age(journey)
    assert pauses == sorted(pauses) and pauses[2] in (3, 4)


def test_run_whose_attempts_close_no_round_stops_and_says_why(
    setting: Setting, supervisor: Supervisor
) -> None:
    journey = started(setting)
    for _ in range(4):
        supervisor.look()
        if setting.alliance.control.newest.config["plan"] == journey.id:
            setting.alliance.control.crash("ImportError: no module named numpy")
        supervisor.look()
        age(journey)
    run = journey.run()
    assert (run.state, run.attempt) == ("stopped", 3)
    assert run.reason is not None and run.reason.startswith("E_ATTEMPTS")
    assert "no module named numpy" in run.reason and "fedhub run resume" in run.reason


def test_progress_makes_the_count_of_failures_begin_anew(setting: Setting, supervisor: Supervisor) -> None:
    journey = started(setting)
    for number in (1, 2):
        supervisor.look()
        setting.alliance.control.crash()
        supervisor.look()
        age(journey)
        assert number == len(attempts(journey))
    supervisor.look()
    journey.attempt = 3
    journey.work()
    journey.report(journey.reports(1, digest(BASE)))
    setting.alliance.control.crash()
    supervisor.look()
    age(journey)
    supervisor.look()
    assert (journey.run().state, journey.run().attempt) == ("running", 4)


def test_restarted_superlink_gets_every_key_again_and_the_run_goes_on(
    setting: Setting, supervisor: Supervisor
) -> None:
    journey = started(setting)
    supervisor.look()
    control = setting.alliance.control
    before = {node.public_key: node.id for node in control.nodes.values()}
    control.restart()
    supervisor.look()
    after = {node.public_key: node.id for node in control.nodes.values()}
    assert set(after) == set(before) and not set(after.values()) & set(before.values())
    with setting.alliance.hub.database.session_scope(write=False) as session:
        assert {site.node_id for site in session.exec(select(SiteRow))} == set(after.values())
    assert "SuperLink has restarted" in (attempts(journey)[0].detail or "")
    age(journey)
    supervisor.look()
    supervisor.look()
    assert control.newest.config["attempt"] == 2
    nodes = {site.node_id for site in journey.work().sites}
    assert nodes == set(after.values())


def test_superlink_that_is_away_is_waited_for_and_then_the_runs_stop(
    setting: Setting, supervisor: Supervisor, clock: Clock
) -> None:
    journey = started(setting)
    control = setting.alliance.control
    control.away = True
    for _ in range(3):
        supervisor.look()
    assert (journey.run().state, journey.run().attempt) == ("starting", 0)
    assert journey.kinds() == ["run.started", "run.waiting"]
    clock.now += 99
    supervisor.look()
    assert journey.run().state == "starting"
    clock.now += 2
    supervisor.look()
    run = journey.run()
    assert run.state == "stopped" and run.reason is not None and "E_SUPERLINK_AWAY" in run.reason
    control.away = False
    with setting.alliance.as_(OWNER) as owner:
        owner.resume_run(journey.id)
    supervisor.look()
    assert control.newest.config["plan"] == journey.id


def test_attempt_waits_for_enough_agents_but_not_for_ever(
    setting: Setting, supervisor: Supervisor, clock: Clock
) -> None:
    control = setting.alliance.control
    for node in list(control.nodes.values())[:2]:
        node.online = False
    journey = started(setting)
    before = control.starts
    supervisor.look()
    supervisor.look()
    assert control.starts == before and journey.kinds() == ["run.started", "run.waiting"]
    clock.now += 61
    supervisor.look()
    assert control.starts == before + 1
    with setting.alliance.as_(OWNER) as owner:
        online = {site.institution: site.online for site in owner.sites()}
    assert sorted(online.values()) == [False, False, True]


def test_agents_that_come_back_are_not_waited_for_any_longer(
    setting: Setting, supervisor: Supervisor
) -> None:
    control = setting.alliance.control
    for node in control.nodes.values():
        node.online = False
    started(setting)
    before = control.starts
    supervisor.look()
    for node in control.nodes.values():
        node.online = True
    supervisor.look()
    assert control.starts == before + 1


def test_coordinator_that_never_asks_for_work_is_given_up(setting: Setting, supervisor: Supervisor) -> None:
    journey = started(setting)
    supervisor.look()
    flower = setting.alliance.control.newest
    age(journey, started_at=21)
    supervisor.look()
    assert flower.outcome == "stopped"
    assert "asked for no work" in (attempts(journey)[0].detail or "")


def test_coordinator_that_falls_silent_is_given_up(setting: Setting, supervisor: Supervisor) -> None:
    journey = started(setting)
    supervisor.look()
    journey.work()
    silence_s = setting.alliance.hub.settings.coordinator_silence_s
    age(journey, heard_at=silence_s + 1)
    supervisor.look()
    assert attempts(journey)[0].state == "running"  # it never said that it reports itself alive
    with setting.alliance.coordinator() as coordinator:
        coordinator.report_events(journey.id, EventReport(attempt=1, kind="coordinator.alive", data={}))
    supervisor.look()
    assert attempts(journey)[0].state == "running"
    age(journey, heard_at=silence_s + 1)
    supervisor.release()
    just_started = Supervisor(setting.alliance.hub, setting.alliance.control)
    just_started.look()
    assert attempts(journey)[0].state == "running"  # nobody could hear it while the hub was down
    just_started.release()
    supervisor.look()
    assert "silent" in (attempts(journey)[0].detail or "")


def test_round_long_past_its_deadline_is_given_up(
    setting: Setting, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    journey = started(setting)
    supervisor.look()
    journey.work()
    journey.orders(1, digest(BASE))
    supervisor.look()
    assert attempts(journey)[0].state == "running"
    late_s = setting.alliance.hub.settings.round_grace_s + 120
    monkeypatch.setattr(setting.alliance.hub.ledger, "_clock", lambda: time.time() + late_s)
    supervisor.look()
    monkeypatch.undo()
    assert "past its deadline" in (attempts(journey)[0].detail or "")


def test_hub_that_died_while_starting_an_attempt_starts_the_next(
    setting: Setting, supervisor: Supervisor
) -> None:
    journey = started(setting)
    supervisor.look()
    with setting.alliance.hub.database.session_scope() as session:
        attempt = session.get_one(AttemptRow, (journey.id, 1))
        attempt.flower_run = None
        session.add(attempt)
    supervisor.release()
    after_restart = Supervisor(setting.alliance.hub, setting.alliance.control)
    after_restart.look()
    age(journey)
    after_restart.look()
    assert [one.number for one in attempts(journey)] == [1, 2]
    assert journey.run().attempt == 2


def test_restarted_hub_goes_on_watching_what_runs(setting: Setting, supervisor: Supervisor) -> None:
    journey = started(setting)
    supervisor.look()
    starts = setting.alliance.control.starts
    supervisor.release()
    Supervisor(setting.alliance.hub, setting.alliance.control).look()
    assert setting.alliance.control.starts == starts and journey.run().attempt == 1


def test_start_that_flower_refuses_counts_as_a_failed_attempt(
    setting: Setting, supervisor: Supervisor
) -> None:
    journey = started(setting)
    setting.alliance.control.refuses_start = Refused("E_FLOWER_REFUSED", "SuperLink refused: bundle")
    supervisor.look()
    assert "E_FLOWER_REFUSED" in (attempts(journey)[0].detail or "")
    setting.alliance.control.refuses_start = None
    age(journey)
    supervisor.look()
    assert journey.run().attempt == 2 and attempts(journey)[1].flower_run is not None


def test_run_that_loses_its_consents_stops_before_the_next_attempt(
    setting: Setting, supervisor: Supervisor
) -> None:
    journey = started(setting, labs=LABS[:2], least=2)
    supervisor.look()
    subject = [("grant.sigstore.json", journey.consents[LABS[0]])]
    setting.alliance.say(LABS[0], "revocation", subject, {"target": "statement", "reason": "withdrawn"})
    setting.alliance.control.crash()
    supervisor.look()
    age(journey)
    supervisor.look()
    run = journey.run()
    assert run.state == "stopped" and run.reason is not None and run.reason.startswith("E_CONSENT")
    assert LABS[0] in run.reason


def test_run_of_a_plan_that_expired_stops(setting: Setting, supervisor: Supervisor) -> None:
    journey = started(setting)
    supervisor.look()
    flower = setting.alliance.control.newest
    with setting.alliance.hub.database.session_scope() as session:
        plan = session.get_one(PlanRow, journey.id)
        plan.expires_at = setting.alliance.hub.ledger.now()
        session.add(plan)
    supervisor.look()
    run = journey.run()
    assert run.state == "stopped" and run.reason is not None and run.reason.startswith("E_PLAN")
    with setting.alliance.hub.database.session_scope() as session:
        row = session.get_one(RunRow, journey.id)
        row.ended_at = (row.ended_at or 0) - 60
        session.add(row)
    supervisor.look()
    assert flower.outcome == "stopped"


def test_cancelled_run_has_its_flower_run_stopped_at_once(setting: Setting, supervisor: Supervisor) -> None:
    journey = started(setting)
    supervisor.look()
    flower = setting.alliance.control.newest
    with setting.alliance.as_(OWNER) as owner:
        owner.cancel_run(journey.id)
    supervisor.look()
    assert flower.outcome == "stopped" and attempts(journey)[0].state == "ended"


def test_coordinator_that_ended_its_run_leaves_by_itself(setting: Setting, supervisor: Supervisor) -> None:
    journey = started(setting, rounds=1, keep_updates=False)
    supervisor.look()
    journey.work()
    flower = setting.alliance.control.newest
    journey.report(journey.reports(1, digest(BASE)))
    journey.end("finished")
    supervisor.look()
    assert flower.state == "running" and attempts(journey)[0].state == "leaving"
    flower.state, flower.outcome = "finished", "completed"
    supervisor.look()
    assert attempts(journey)[0].state == "ended" and journey.run().state == "finished"


def test_coordinator_that_dies_between_last_round_and_end_has_finished(
    setting: Setting, supervisor: Supervisor
) -> None:
    journey = started(setting, rounds=1)
    supervisor.look()
    journey.work()
    journey.report(journey.reports(1, digest(BASE)))
    starts = setting.alliance.control.starts
    setting.alliance.control.crash()
    supervisor.look()
    supervisor.look()
    assert journey.run().state == "finished" and setting.alliance.control.starts == starts


def test_leftover_updates_go_with_the_run(setting: Setting, supervisor: Supervisor) -> None:
    journey = started(setting, keep_updates=False)
    supervisor.look()
    journey.work()
    update, _ = setting.alliance.train(LABS[0], journey.plan, journey.consents[LABS[0]], 1, digest(BASE))
    with setting.alliance.as_(OWNER) as owner:
        owner.cancel_run(journey.id)
    assert list(setting.alliance.store.list(f"blobs/sha256/{update[:2]}/{update}"))
    supervisor.look()
    assert not list(setting.alliance.store.list(f"blobs/sha256/{update[:2]}/{update}"))


# --- leases ---------------------------------------------------------------------------------------------


def test_two_hubs_never_start_the_same_attempt_twice(setting: Setting, clock: Clock) -> None:
    journey = started(setting)
    hub, control = setting.alliance.hub, setting.alliance.control
    before = control.starts
    first, second = Supervisor(hub, control, clock=clock), Supervisor(hub, control, clock=clock)
    for _ in range(3):
        first.look()
        second.look()
    assert control.starts == before + 1
    first.release()
    second.look()
    assert control.starts == before + 1
    assert [one.number for one in attempts(journey)] == [1]


def test_attempt_that_another_process_began_is_not_begun_again(
    setting: Setting, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when both believe that they hold the lease."""
    journey = started(setting)
    hub, control = setting.alliance.hub, setting.alliance.control
    other = Supervisor(hub, control)
    monkeypatch.setattr(Lease, "hold", lambda _self: True)
    before = control.starts
    with hub.database.session_scope(write=False) as session:
        seen_by_both = session.get_one(RunRow, journey.id)
    supervisor._start(seen_by_both)
    other._start(seen_by_both)
    assert control.starts == before + 1


def test_lease_passes_on_when_its_holder_falls_silent_or_is_dead(setting: Setting) -> None:
    hub = setting.alliance.hub
    first, second = Lease(hub, "test", new_holder()), Lease(hub, "test", new_holder())
    assert first.hold() and first.hold() and not second.hold()
    first.release()
    assert second.hold() and not first.hold()

    def left_by(holder: str, until_ms: int = 1 << 60) -> None:
        with hub.database.session_scope() as session:
            row = session.get_one(LeaseRow, "test")
            row.holder, row.until_ms = holder, until_ms
            session.add(row)

    host, number, process, _ = new_holder().split(":")
    left_by(f"elsewhere:{number}:00000000:11111111")
    assert not first.hold()
    left_by(f"elsewhere:{number}:00000000:11111111", until_ms=1)
    assert first.hold()
    for dead in (f"{host}:{number}:00000000:11111111", f"{host}:{2**22 + 1}:00000000:11111111"):
        left_by(dead)
        first = Lease(hub, "test", new_holder())
        assert first.hold()
    left_by(f"{host}:1:00000000:11111111")  # another process that lives
    assert not Lease(hub, "test", new_holder()).hold()
    assert process == background.PROCESS


# --- threads --------------------------------------------------------------------------------------------


def test_background_starts_runs_by_itself_and_stops(setting: Setting) -> None:
    journey = started(setting)
    threads = start_supervisor(setting.alliance.hub)
    try:
        for _ in range(200):
            if journey.run().attempt == 1:
                break
            time.sleep(0.05)
    finally:
        threads.stop()
    assert journey.run().attempt == 1
    assert Supervisor(setting.alliance.hub, setting.alliance.control)._lease.hold()


def test_worker_that_fails_is_tried_again(setting: Setting) -> None:
    looks: list[int] = []
    done = threading.Event()

    class Failing:
        def look(self) -> None:
            looks.append(1)
            if len(looks) < 3:
                raise Unchecked("E_STORE", "the store does not answer")
            done.set()

        def release(self) -> None:
            pass

    threads = Background({"failing": Failing()}, 0.01, Bell())
    threads.start()
    assert done.wait(10)
    threads.stop()


def test_background_looks_as_soon_as_a_run_is_started(setting: Setting) -> None:
    looked = threading.Event()

    class Looking:
        def look(self) -> None:
            looked.set()

        def release(self) -> None:
            pass

    threads = Background({"looking": Looking()}, 600, setting.alliance.hub.bell)
    threads.start()
    started(setting)
    assert looked.wait(30)
    threads.stop()


def test_hub_without_superlink_still_keeps_house(setting: Setting) -> None:
    class Nodes:
        def register_node(self, public_key_pem: str, name: str) -> str:
            return "1"

        def list_nodes(self) -> list[Any]:
            return []

    nodes: NodeRegistry = Nodes()
    assert not isinstance(nodes, FlowerControl) and isinstance(FakeControl(), FlowerControl)
    house = Housekeeper(setting.alliance.hub)
    house.look()
    house.release()


def test_fault_of_one_run_leaves_the_others_alone(
    setting: Setting, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = started(setting), started(setting)
    begin = supervisor._start

    def failing(run: RunRow) -> None:
        if run.plan == first.id:
            raise Unchecked("E_STORE", "the store does not answer")
        begin(run)

    monkeypatch.setattr(supervisor, "_start", failing)
    supervisor.look()
    assert (first.run().attempt, second.run().attempt) == (0, 1)
