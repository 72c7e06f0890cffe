"""Two agents scale real rows alike and tell what the run brought them: processes, keys and receipts are real,
the hub is one in memory behind a port.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from federation import training
from federation.benefit import site_benefit
from federation.figures import read_columns
from federation.harmonising import STATISTICS_FILE, join, read_statistics
from federation.ledger import SiteLedger
from federation.plan import read_config
from storage.encoding import sha256_hex, unb64
from storage.signing import open_envelope
from storage.statements import Statement, read_statement
from tests.clinics import COLUMNS, PARAMETERS, write_clinics
from tests.e2e import test_federation_rounds as rounds

RECIPE = "tabular-classification"
LABS = ("lab-a", "lab-b")


class Clinics(rounds.Play):
    """Two clinics with real cases, and a plan that asks for a joint scaling and a report."""

    def __init__(self, folder: Path, *, number: int = 2, **config: Any) -> None:
        asked = {"harmonise": True, "report": True, "smallest_cohort": 20, **config}
        super().__init__(folder, rounds=number, parameters=PARAMETERS, recipe=RECIPE, **asked)

    def _rows(self, folder: Path, seed: int) -> Path:
        return write_clinics(folder.parent, LABS)[folder.name]

    def _weights(self, parameters: dict[str, Any]) -> Path:
        from federation.recipes.loop import repeatable
        from federation.recipes.tabular_classification import build

        with repeatable(5):
            training.save_weights(build(parameters), self.folder / "base.safetensors")
        return self.folder / "base.safetensors"

    def receipts_of(self, action: str) -> dict[str, Statement]:
        """Institution -> its receipt of this action; one each."""
        found = [one for one in self.hub.receipts() if one.predicate["action"] == action]
        assert len({one.issuer for one in found}) == len(found)
        return {one.issuer: one for one in found}

    def shared_accuracy(self, name: str) -> float:
        """The last aggregate on a clinic's held-out rows, which come as they are."""
        assert self.hub.plan is not None and self.hub.statistics is not None
        config = read_config(unb64(self.hub.plan.config))
        parameters = read_statistics(self.hub.statistics).scaled(config.parameters)
        weights = self.hub.file(self.hub.rounds[-1].aggregate, self.folder / "last.safetensors")
        return float(training.evaluate(RECIPE, parameters, weights, self.folder / name)["accuracy"])


@pytest.fixture
def clinics(tmp_path: Path) -> Iterator[Callable[..., Clinics]]:
    made: list[Clinics] = []

    def start(**options: Any) -> Clinics:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Clinics(folder, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


def check_statistics(one: Clinics) -> None:
    """Orders, receipts and rounds name the sum of what the sites signed."""
    assert one.hub.plan is not None and one.hub.statistics is not None
    config = read_config(unb64(one.hub.plan.config))
    assert config.harmonise is not None
    told = one.receipts_of("statistics")
    parts = []
    for participant in one.hub.plan.participants:
        receipt = told[participant.institution]
        parts.append((receipt.id, read_columns(one.hub.files[receipt.subjects[1].digest])))
    assert join(one.plan, config.harmonise, 20, parts).raw == one.hub.statistics
    named = sha256_hex(one.hub.statistics)
    papers = [read_statement(open_envelope(each.bundle.encode())) for each in one.hub.statements]
    trained = [each for each in papers if each.kind == "receipt" and each.predicate["action"] == "train"]
    closed = [each for each in papers if each.kind == "round"]
    assert len(trained) == len(LABS) * one.hub.rounds_planned and len(closed) == one.hub.rounds_planned
    for each in [*trained, *closed]:
        assert tuple(each.subjects[1]) == (STATISTICS_FILE, named)


def check_report(one: Clinics) -> None:
    """Each site told one honest row, which the shared model's own accuracy agrees with."""
    for institution, receipt in one.receipts_of("evaluate").items():
        raw = one.hub.files[receipt.subjects[1].digest]
        row = site_benefit(institution, receipt.subject, receipt.id, raw)
        assert row.federated is not None and row.local is not None and row.rows > 50
        name = institution.partition(".")[0]
        assert row.federated.share == pytest.approx(one.shared_accuracy(name), abs=1e-4)
    assert len(one.receipts_of("evaluate")) == len(LABS), one.hub.told("site.left-out")
    assert one.hub.told("round.evaluated") == [{"round": one.hub.rounds_planned, "sites": len(LABS)}]


def test_two_agents_scale_alike_and_tell_what_the_run_brought_them(clinics: Callable[..., Clinics]) -> None:
    one = clinics()
    one.up()
    assert one.wait_ended().state == "finished"
    check_statistics(one)
    check_report(one)
    assert one.hub.statistics is not None
    joint = read_statistics(one.hub.statistics)
    assert [column.name for column in joint.columns] == list(COLUMNS)
    assert all(column.kept is None and column.sites == len(LABS) for column in joint.columns)


class Gate:
    """Holds the first call that passes it until the test says go on."""

    def __init__(self, act: Callable[[Any], Any], holds: Callable[[Any], bool] = lambda told: True) -> None:
        self._act, self._holds = act, holds
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, told: Any) -> Any:
        if self._holds(told) and not self.reached.is_set():
            self.reached.set()
            self.open.wait(60)
        return self._act(told)


@pytest.mark.fault
def test_a_coordinator_killed_over_the_statistics_and_over_the_report_is_followed_by_the_same_bytes(
    clinics: Callable[..., Clinics],
) -> None:
    one = clinics()
    hub = one.hub
    statistics = Gate(hub.join_statistics)
    report = Gate(hub.orders, lambda told: told.action == "evaluate")
    hub.join_statistics, hub.orders = statistics, report  # type: ignore[method-assign]
    one.up()
    kill_at(one, statistics)
    told = one.receipts_of("statistics")
    assert len(told) == len(LABS) and hub.statistics is None
    kill_at(one, report)
    assert one.wait_ended().state == "finished" and hub.attempt == 3
    assert one.receipts_of("statistics") == told, "answered from the ledgers, not measured again"
    check_statistics(one)
    check_report(one)
    for lab in hub.labs.values():
        with SiteLedger(lab.home.site / "ledger.db") as ledger:
            done = [(answer.action, answer.round) for answer in ledger.answers()]
        assert done == [("statistics", 1), ("train", 1), ("train", 2), ("evaluate", 2)]


def kill_at(one: Clinics, gate: Gate) -> None:
    """Kill the coordinator while it stands at the gate, and start the next attempt."""
    assert gate.reached.wait(60)
    (coordinator,) = one.children("federation.flower.executor")
    os.kill(coordinator, signal.SIGKILL)
    rounds.wait_for(lambda: one.flower_ended(one.run), "the Flower run's end", 20)
    one.hub.attempt += 1
    gate.open.set()
    one.start()
