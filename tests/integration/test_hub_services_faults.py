"""Every stop says why: the same cause, owner and next step in API, command line, run page and the site's own log."""

import ctypes
import html
import itertools
import mmap
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError

from federation import agent as agent_module
from federation import round_desk, sending, training
from federation.wire import SiteTrouble, WeightsLocation
from hub.services import runs
from hub.supervisor import Expiry
from hub.tables import AttemptRow, PlanRow, RunRow
from storage.causes import cause_of
from storage.errors import Unchecked
from tests.alliances import OWNER, Journey
from tests.fault_stage import TROUBLED, Stage, open_stage
from tests.round_hub import PARAMETERS
from tests.small_disks import fill, small_disk

Inject = Callable[[Stage, pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    patch = pytest.MonkeyPatch()
    with open_stage(tmp_path_factory.mktemp("faults"), patch.setattr) as opened:
        yield opened
    patch.undo()


# --- what can go wrong at a site ----------------------------------------------------------------------------


def _rows(stage: Stage) -> Path:
    return stage.troubled.data / "train.csv"


def changed_file(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    _rows(stage).write_text(_rows(stage).read_text() + "0," + ",".join(["1"] * 16) + "\n")


def missing_file(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    _rows(stage).unlink()


def no_permission(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    """The system says no: the file is nobody's to read, and root reads it no more than others do."""
    stage.undo.callback(_rows(stage).chmod, 0o644)
    _rows(stage).chmod(0)
    stage.undo.enter_context(as_anybody())


@contextmanager
def as_anybody() -> Iterator[None]:
    """This thread without root's right to pass over permissions (capset(2), of one thread alone)."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before, now = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    for each in (before, now):
        assert libc.capget(head, each) == 0
    now[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(head, now) == 0
    try:
        yield
    finally:
        assert libc.capset(head, before) == 0


def full(stage: Stage, name: str) -> Path:
    """A folder of the troubled site on a disk of its own, which has no byte left."""
    folder = stage.troubled.home.site / name
    stage.undo.enter_context(small_disk(folder, 64))
    fill(folder)
    return folder


def only_there(
    stage: Stage, patch: pytest.MonkeyPatch, owner: Any, name: str, does: Callable[..., Any]
) -> None:
    """Replace a function, for the troubled site's folder only."""
    before = getattr(owner, name)

    def chosen(*given: Any, **options: Any) -> Any:
        there = any(str(each).startswith(str(stage.troubled.data)) for each in given)
        return (does if there else before)(*given, **options)

    patch.setattr(owner, name, chosen)


def out_of_memory(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    def greedy(*given: Any, **options: Any) -> Any:
        return np.ones((1 << 50,), np.float32)

    only_there(stage, patch, training, "train", greedy)


def out_of_memory_in_torch(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    def greedy(*given: Any, **options: Any) -> Any:
        import torch

        return torch.ones(1 << 50)

    only_there(stage, patch, training, "train", greedy)


def out_of_memory_for_a_map(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    only_there(stage, patch, training, "train", lambda *given, **options: mmap.mmap(-1, 1 << 50))


def failing_recipe(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **options: Any) -> Any:
        import torch

        return torch.ones(2) @ torch.ones(3)

    only_there(stage, patch, training, "train", broken)


def missing_module(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    def importing(*given: Any, **options: Any) -> Any:
        import no_such_module_of_a_recipe  # type: ignore[import-not-found]

        return no_such_module_of_a_recipe

    only_there(stage, patch, training, "train", importing)


def diverging(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    before, train = training._check_finite, training.train

    def nan(*given: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(
                training, "_check_finite", lambda spec, values: before(spec, np.full_like(values, np.nan))
            )
            return train(*given, **options)

    only_there(stage, patch, training, "train", nan)


def other_recipe(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    started = dict.fromkeys(stage.troubled.agent._started_with, "0" * 64)
    patch.setattr(stage.troubled.agent, "_started_with", started)


def full_disk(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    full(stage, "inputs")


def full_disk_for_updates(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    full(stage, "updates")


def store_away(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    folder = stage.troubled.home.site / "inputs"
    shutil.rmtree(folder)
    folder.mkdir()
    size, patch_client = len(stage.weights), stage.troubled.agent._client

    def nowhere(plan: str, sha256: str) -> WeightsLocation:
        return WeightsLocation(sha256=sha256, size=size, url="http://127.0.0.1:1/gone")

    patch.setattr(patch_client, "weights", nowhere)
    patch.setattr(sending, "ATTEMPTS", 1)


def other_bytes(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    """The store answers with other bytes than were signed."""
    folder = stage.troubled.home.site / "inputs"
    shutil.rmtree(folder)
    folder.mkdir()
    wrong = stage.weights[:-1] + bytes([stage.weights[-1] ^ 1])
    found = [path for path in (stage.folder / "hub" / "store").rglob("*") if path.is_file()]
    for path in found:
        if path.stat().st_size == len(wrong) and path.read_bytes() == stage.weights:
            path.write_bytes(wrong)


def changed_update(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    """The update's bytes rot on the site's disk after it was written and before it is sent."""
    before = sending.send_file

    def rotten(client: Any, path: Path, **options: Any) -> Any:
        if path.is_relative_to(stage.troubled.home.path):
            raw = path.read_bytes()
            path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        return before(client, path, **options)

    patch.setattr(sending, "send_file", rotten)


def clock_ahead(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    before = stage.troubled.agent._clock
    patch.setattr(stage.troubled.agent._desk, "_clock", lambda: before() + 3600)


def clock_behind(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    before = stage.troubled.agent._clock
    patch.setattr(stage.troubled.agent._desk, "_clock", lambda: before() - 3600)


def lost_key(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    (stage.troubled.home.path / "keys" / "snapshot.pem").rename(stage.folder / "snapshot.pem")


def open_key(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    (stage.troubled.home.path / "keys" / "snapshot.pem").chmod(0o644)


def other_pin(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stage.troubled.agent._desk, "_ring", _strange_ring)


def _strange_ring(operator: str, *, fresh: bool = False) -> Any:
    return SimpleNamespace(newest=SimpleNamespace(roles={"snapshot": {}}))


def died_at_work(stage: Stage, patch: pytest.MonkeyPatch) -> None:
    """As if this order had ended the process three times, as a lack of memory does."""
    before = agent_module.at_work

    def again(site: Path, order: str) -> Any:
        if site == stage.troubled.home.site:
            (site / "at-work.json").write_text(f'{{"order": "{order}", "lives": 3}}')
        return before(site, order)

    patch.setattr(agent_module, "at_work", again)


# The first are looked at in every run of the tests, the others in the slow ones.
QUICK = 8
FAULTS: list[tuple[str, Inject, dict[str, Any]]] = [
    ("E_DATASET_CHANGED", changed_file, {}),
    ("E_DATA_MISSING", missing_file, {}),
    ("E_PERMISSION", no_permission, {}),
    ("E_DATA", lambda stage, patch: None, {"parameters": {**PARAMETERS, "classes": 2}}),
    ("E_CONSENT", lambda stage, patch: None, {"kept": False}),
    ("E_BUDGET", lambda stage, patch: None, {"epsilon": "1", "delta": "0.00001"}),
    ("E_OUT_OF_MEMORY", out_of_memory, {}),
    ("E_OUT_OF_MEMORY", out_of_memory_in_torch, {}),
    ("E_OUT_OF_MEMORY", out_of_memory_for_a_map, {}),
    ("E_RECIPE_FAILED", failing_recipe, {}),
    ("E_EXTRA", missing_module, {}),
    ("E_NOT_FINITE", diverging, {}),
    ("E_RECIPE", other_recipe, {}),
    ("E_SITE_DISK", full_disk, {}),
    ("E_TENSORS_WRITE", full_disk_for_updates, {}),
    ("E_FILE_CHANGED", changed_update, {}),
    ("E_STORE_UNREACHABLE", store_away, {}),
    ("E_DIGEST", other_bytes, {}),
    ("E_ORDER_LATE", clock_ahead, {}),
    ("E_TIME", clock_behind, {}),
    ("E_KEY_UNKNOWN", other_pin, {}),
    ("E_KEY_MISSING", lost_key, {}),
    ("E_KEY_FILE", open_key, {}),
    ("E_AGENT_DIED", died_at_work, {}),
]


@pytest.fixture
def mended(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """The stage, put right again after a fault."""
    rows, key = _rows(stage).read_bytes(), stage.troubled.home.path / "keys" / "snapshot.pem"
    pem = key.read_bytes()
    monkeypatch.setattr(round_desk, "AGAIN_S", 1000.0)  # what may pass is not waited for
    yield stage
    monkeypatch.undo()
    stage.undo.close()
    _rows(stage).write_bytes(rows)
    key.write_bytes(pem)
    key.chmod(0o600)
    for path in (stage.folder / "hub" / "store").rglob("*"):
        like = path.is_file() and path.stat().st_size == len(stage.weights)
        if like and path.read_bytes()[:-1] == stage.weights[:-1]:
            path.write_bytes(stage.weights)


@pytest.mark.parametrize(
    ("code", "inject", "plan"),
    [
        pytest.param(*each, id=f"{each[0]}-{number}", marks=[] if number < QUICK else pytest.mark.slow)
        for number, each in enumerate(FAULTS)
    ],
)
def test_a_fault_of_a_site_is_told_alike_everywhere(
    mended: Stage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    inject: Inject,
    plan: dict[str, Any],
) -> None:
    journey = mended.plan(**plan)
    inject(mended, monkeypatch)
    mended.run(journey)
    mended.everywhere(journey, code)
    mended.everywhere(journey, "E_RUN_QUORUM", whole_run=True)
    mended.at_the_site(code, capsys.readouterr().err)


# --- what can go wrong with a run ---------------------------------------------------------------------------


def late(stage: Stage, journey: Journey) -> None:
    stage.troubled.silent = True
    stage.run(journey)


def superlink_away(stage: Stage, journey: Journey) -> None:
    stage.alliance.control.away = True
    journey.supervise().release()


def sites_away(stage: Stage, journey: Journey) -> None:
    for node in stage.alliance.control.nodes.values():
        node.online = False
    stage.alliance.control.crash()
    journey.supervise().release()
    supervisor = journey.supervise()
    with stage.alliance.hub.database.session_scope() as session:
        run = session.get_one(RunRow, journey.id)
        run.next_attempt_at = 0
        session.add(run)
    supervisor.look()
    supervisor.release()


def attempt_ended(stage: Stage, journey: Journey) -> None:
    stage.alliance.control.crash()
    journey.supervise().release()


def attempts_over(stage: Stage, journey: Journey) -> None:
    with stage.alliance.hub.database.session_scope() as session:
        run = session.get_one(RunRow, journey.id)
        run.failures = stage.alliance.settings.run_attempts
        session.add(run)
    stage.alliance.control.crash()
    supervisor = journey.supervise()
    supervisor.look()
    supervisor.release()


def plan_expired(stage: Stage, journey: Journey) -> None:
    with stage.alliance.hub.database.session_scope() as session:
        plan = session.get_one(PlanRow, journey.id)
        plan.expires_at = 1
        session.add(plan)
    journey.supervise().release()


def cancelled(stage: Stage, journey: Journey) -> None:
    with stage.alliance.as_(OWNER) as owner:
        owner.cancel_run(journey.id)


@pytest.mark.parametrize(
    ("code", "inject", "plan"),
    [
        ("E_RUN_QUORUM", late, {"deadline_s": 1}),
        ("E_SUPERLINK_AWAY", superlink_away, {}),
        ("E_SITES_AWAY", sites_away, {}),
        ("E_ATTEMPT_ENDED", attempt_ended, {}),
        ("E_ATTEMPTS", attempts_over, {}),
        ("E_PLAN_EXPIRED", plan_expired, {}),
        ("E_CANCELLED", cancelled, {}),
    ],
)
def test_what_stops_or_holds_up_a_run_is_told_alike_everywhere(
    mended: Stage, code: str, inject: Callable[[Stage, Journey], None], plan: dict[str, Any]
) -> None:
    journey = mended.plan(**plan)
    try:
        inject(mended, journey)
        mended.everywhere(journey, code, whole_run=True)
        if inject is late:
            mended.everywhere(journey, "E_LATE")
    finally:
        mended.troubled.silent = False
        mended.alliance.control.away = False
        for node in mended.alliance.control.nodes.values():
            node.online = True
        if journey.run().ended_at is None:
            cancelled(mended, journey)


def test_a_database_that_is_away_is_told_alike_by_api_command_line_and_page(
    mended: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*given: Any, **options: Any) -> Any:
        raise OperationalError("SELECT", {}, Exception("away"))

    journey = mended.plan()
    monkeypatch.setattr(runs, "show", away)
    found = cause_of("E_DATABASE")
    text = mended.command(OWNER, "run", "show", journey.id)[1]
    problem = mended.command(OWNER, "run", "show", journey.id, as_json=True)[2]
    assert (problem["cause"], problem["owner"], problem["step"]) == (found.cause, found.owner, found.step)
    assert found.cause in text and f"next step ({found.owner}): {found.step}" in text
    with mended.alliance.http() as browser:
        page = html.unescape(browser.get(f"/runs/{journey.id}", headers={"Accept": "text/html"}).text)
    assert found.cause in page and found.step in page and found.owner in page


# --- what a site tells of itself ----------------------------------------------------------------------------


def test_a_trouble_that_lasts_is_noted_once_and_again_after_the_site_has_worked(mended: Stage) -> None:
    journey = mended.plan()
    with mended.alliance.as_(TROUBLED, "snapshot") as client:
        for _ in range(3):
            client.tell_trouble(SiteTrouble(name="main", code="E_DNS", message="fleet.example"))
        assert journey.kinds().count("site.unreachable") == 1
        client.tell_trouble(SiteTrouble(name="main", code="E_TLS_CA", message="fleet.example"))
        client.tell_trouble(SiteTrouble(name="main", code="E_DNS", message="fleet.example"))
    assert journey.kinds().count("site.unreachable") == 3
    mended.everywhere(journey, "E_DNS")
    cancelled(mended, journey)


def test_nobody_tells_troubles_of_another_institution(mended: Stage) -> None:
    journey = mended.plan()
    with mended.alliance.as_(OWNER, "snapshot") as client:
        client.tell_trouble(SiteTrouble(name="main", code="E_DNS", message="fleet.example"))
    assert "site.unreachable" not in journey.kinds()
    with mended.alliance.http() as http:
        told = {"name": "main", "code": "E_DNS", "message": "x"}
        assert http.post("/api/v1/sites/trouble", json=told).status_code == 401
    cancelled(mended, journey)


# --- no run waits past its deadline -------------------------------------------------------------------------


STATES = ("starting", "running")
ATTEMPTS = ("starting", "running", "leaving", "ended", "none")
SUPERLINK = ("answers", "away", "says nothing of the run", "forgot the run")


def test_no_state_of_a_run_outlives_its_deadline(mended: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every waiting state, whatever SuperLink does: past the plan's end the run is over, by a name of the table."""
    journey, control = mended.plan(), mended.alliance.control
    flower = dict(control.runs)
    supervisor = journey.supervise()
    for state, superlink, attempt in itertools.product(STATES, SUPERLINK, ATTEMPTS):
        _wait_in(mended, journey, state, attempt)
        control.away = superlink == "away"
        control.runs = {} if superlink == "forgot the run" else dict(flower)
        with monkeypatch.context() as patch:
            if superlink == "says nothing of the run":
                patch.setattr(control, "status", _no_word)
            supervisor.look()
        control.away = False
        ended = journey.run()
        assert ended.state == "stopped" and ended.error is not None, (state, attempt, superlink)
        assert (ended.error.code, ended.error.owner) == ("E_PLAN_EXPIRED", "plan owner")
    supervisor.release()


def _wait_in(stage: Stage, journey: Journey, state: str, attempt: str) -> None:
    """Put a run, whose plan is over, into a state that waits."""
    with stage.alliance.hub.database.session_scope() as session:
        run = session.get_one(RunRow, journey.id)
        run.state, run.reason, run.ended_at, run.attempt = state, None, None, 1
        row = session.get(AttemptRow, (journey.id, 1))
        if attempt == "none":
            run.attempt = 0
            session.delete(row)
        else:
            assert row is not None or attempt == ATTEMPTS[0]
            row = row or AttemptRow(plan=journey.id, number=1, state=attempt, first_round=1, started_at=1)
            row.state, row.ended_at = attempt, None
            session.add(row)
        session.add(run)
        plan = session.get_one(PlanRow, journey.id)
        plan.expires_at = 1
        session.add(plan)


def _no_word(run_id: str) -> Any:
    raise Unchecked("E_SUPERLINK_AWAY", "SuperLink does not say")


@pytest.mark.parametrize(
    ("heard", "beats", "why"),
    [
        (None, False, "asked for no work"),
        (0, True, "was silent"),
        (0, False, "opened no round"),
    ],
)
@pytest.mark.parametrize("word", [True, False])
def test_no_attempt_outlives_its_own_deadline_whether_superlink_speaks_of_it_or_not(
    mended: Stage, monkeypatch: pytest.MonkeyPatch, heard: int | None, beats: bool, why: str, word: bool
) -> None:
    journey = mended.plan()
    supervisor = journey.supervise()
    hub = mended.alliance.hub
    with hub.database.session_scope() as session:
        row = session.get_one(AttemptRow, (journey.id, 1))
        row.started_at, row.heard_at, row.beats = 1, heard, beats
        row.state = "starting" if heard is None else "running"
        session.add(row)
    supervisor._began = 0
    if not word:
        monkeypatch.setattr(mended.alliance.control, "status", _no_word)
    supervisor.look()
    supervisor.release()
    assert why in _reasons(mended, journey)[-1]
    cancelled(mended, journey)


def _reasons(stage: Stage, journey: Journey) -> list[str]:
    with stage.alliance.as_(OWNER) as owner:
        return [str(each.data["reason"]) for each in owner.events(journey.id) if each.kind == "attempt.ended"]


def test_a_hub_without_superlink_ends_the_runs_that_it_once_began(mended: Stage) -> None:
    journey = mended.plan()
    hub = mended.alliance.hub
    with hub.database.session_scope() as session:
        plan = session.get_one(PlanRow, journey.id)
        plan.expires_at = 1
        session.add(plan)
    worker = Expiry(hub)
    worker.look()
    worker.release()
    error = journey.run().error
    assert error is not None and error.code == "E_PLAN_EXPIRED"
