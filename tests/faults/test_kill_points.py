"""Runs of a real alliance, disturbed by kill -9 at random points, end as an undisturbed one does.

``FEDHUB_FAULT_POINTS`` (default 50) kills are drawn from ``FEDHUB_FAULT_SEED`` (default 1; both are printed), over
every process there is. After each run: the final weights are byte for byte those of the undisturbed run, every
round is in the log once, with one receipt from each site, the sites' ledgers are charged once, and an auditor's pack
says TRAINED. The second alliance stands on PostgreSQL and an S3 server, which are killed too, where both are
installed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.faults.siege import ENGINES, PARTS, Siege, Terms, besieged, draw_blows

pytestmark = [pytest.mark.fault, pytest.mark.timeout(2400)]

POINTS = int(os.environ.get("FEDHUB_FAULT_POINTS", "50"))
SEED = int(os.environ.get("FEDHUB_FAULT_SEED", "1"))
ROUNDS = 16  # about two for each blow: a run takes seven or so
KINDS = (
    Terms("FedAvg", ROUNDS),
    Terms("FedAdam, updates as int8", ROUNDS, ("--strategy", "FedAdam", "--compression", "int8")),
)


def bombard(siege: Siege, points: int, seed: int, parts: tuple[str, ...]) -> None:
    """Undisturbed runs for reference, then disturbed ones until every blow has fallen."""
    blows = draw_blows(seed, points, parts)
    print(f"\nFEDHUB_FAULT_SEED={seed} FEDHUB_FAULT_POINTS={points}", flush=True)
    wanted: list[tuple[Terms, str, float]] = []
    for terms in KINDS:
        plan = siege.submit(terms)
        run = siege.run_under(plan, [], 0.0)
        seconds = sorted(each.seconds for each in run.rounds)
        siege.check(plan, run, run.rounds[-1].aggregate)
        wanted.append((terms, run.rounds[-1].aggregate, seconds[len(seconds) // 2]))
    number = 0
    while blows:
        terms, weights, usual_s = wanted[number % len(wanted)]
        number += 1
        plan = siege.submit(terms)
        print(f"run {number} ({terms.name}, {usual_s:.2f} s a round), {len(blows)} blows left", flush=True)
        siege.check(plan, siege.run_under(plan, blows, usual_s), weights)
    print(siege.report(), flush=True)


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with besieged(tmp_path_factory.mktemp("siege") / "alliance") as made:
        yield made


def test_whatever_is_killed_the_run_ends_as_if_nothing_had_happened(siege: Siege) -> None:
    bombard(siege, POINTS, SEED, PARTS)


def test_a_run_that_lost_its_quorum_stops_in_time_and_goes_on_by_hand_with_another_site_absent(
    siege: Siege,
) -> None:
    deadline_s, rounds = 25, 20
    terms = ("--min-participants", "2", "--quorum", "2", "--deadline", str(deadline_s))
    plan = siege.submit(Terms("two of three", rounds, terms))
    siege.start(plan)
    siege.wait_run(plan, lambda run: len(run.rounds) >= 2, "round 2", 120)
    for lab in ("lab-b", "lab-c"):
        siege.alliance.stop(lab)
    stopped = siege.wait_run(plan, lambda run: run.state == "stopped", "the stop", 3 * deadline_s + 30)
    closed = len(stopped.rounds)
    assert 2 <= closed < rounds
    assert stopped.reason is not None and "quorum not met" in stopped.reason, stopped.reason
    assert "fedhub run resume" in stopped.reason
    for lab in ("lab-b", "lab-c"):
        siege.alliance.restart(lab)
    siege.alliance.stop("lab-a")
    siege.alliance.run("owner", "run", "resume", plan)
    run = siege.wait_run(plan, lambda run: run.state in ("finished", "stopped"), "the end", 400)
    siege.alliance.restart("lab-a")
    assert run.state == "finished", f"{run.reason}\n{siege.history(plan)}"
    assert [each.round for each in run.rounds] == list(range(1, rounds + 1))
    assert run.rounds[:closed] == stopped.rounds, "what was closed before the stop stays as it was"
    assert all(set(each.sites) == {"lab-b.example", "lab-c.example"} for each in run.rounds[closed + 1 :])
    siege.check_pack(plan)


def test_database_and_object_store_are_killed_and_the_run_goes_on(tmp_path: Path) -> None:
    missing = [name for name in ("initdb", "versitygw") if servers.find_program(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    with besieged(tmp_path / "alliance", engines=True) as siege:
        bombard(siege, max(2, POINTS // 5), SEED, ENGINES)
