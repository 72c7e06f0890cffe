"""Runs of a real alliance, disturbed by kill -9 at random points, end as an undisturbed one does.

``FEDHUB_FAULT_POINTS`` (default 20) kills are drawn from ``FEDHUB_FAULT_SEED`` (default 1; both are printed), over
every process there is. After each run: the final weights are byte for byte those of the undisturbed run, every
round is in the log once, with one receipt from each site, the sites' ledgers are charged once, and an auditor's pack
says TRAINED. The second alliance stands on PostgreSQL and an S3 server, which are killed too, where both are
installed.
"""

import os
from pathlib import Path

import pytest

from tests import servers
from tests.faults.siege import ENGINES, PARTS, Siege, Terms, besieged, draw_blows

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1500)]

POINTS = int(os.environ.get("FEDHUB_FAULT_POINTS", "20"))
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


def test_whatever_is_killed_the_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    with besieged(tmp_path / "alliance") as siege:
        bombard(siege, POINTS, SEED, PARTS)


def test_database_and_object_store_are_killed_and_the_run_goes_on(tmp_path: Path) -> None:
    missing = [name for name in ("initdb", "versitygw") if servers.find_program(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    with besieged(tmp_path / "alliance", engines=True) as siege:
        bombard(siege, max(2, POINTS // 5), SEED, ENGINES)
