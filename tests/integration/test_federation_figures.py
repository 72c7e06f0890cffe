"""Statistics and report at a site's agent and at the coordinator: what is refused, who is left out, what is told once.

Homes, keys, ledgers and receipts are real; the hub is one in memory that may lie.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from federation import training
from federation.agent import Agent
from federation.figures import Column, ColumnFigures, read_columns, read_report, write_columns
from federation.harmonising import read_statistics
from federation.ledger import SiteLedger
from federation.messages import InputReference, OrderMessage, OrderReply, ReceiptReference
from federation.site_policy import SitePolicy, write_policy
from federation.wire import OrdersRequest, StatisticsReport
from storage.encoding import format_time, sha256_hex
from storage.signing import open_envelope
from storage.statements import Statement, read_statement
from tests.clinics import COLUMNS, PARAMETERS, write_clinics
from tests.round_hub import LocalClient, RoundHub
from tests.scripted_sites import ScriptedSite, Stage

RECIPE = "tabular-classification"


# --- at a site ----------------------------------------------------------------------------------------------


class Clinic:
    """Two clinics with real cases; their agents stand in this process."""

    def __init__(self, folder: Path, **config: Any) -> None:
        from federation.recipes.loop import repeatable
        from federation.recipes.tabular_classification import build

        self.hub = RoundHub.start(folder / "hub")
        data = write_clinics(folder, ("lab-a", "lab-b"))
        for name in ("lab-a", "lab-b"):
            self.hub.add_lab(name, data[name])
        with repeatable(5):
            training.save_weights(build(PARAMETERS), folder / "base.safetensors")
        asked = {"harmonise": True, "report": True, "smallest_cohort": 20, **config}
        self.plan = self.hub.submit(
            folder / "base.safetensors", rounds=1, minimum=2, recipe=RECIPE, parameters=PARAMETERS, **asked
        )
        self.agents = {}
        for name, lab in self.hub.labs.items():
            self.hub.consent(name)
            client = LocalClient(self.hub, lab.home.institution)
            ledger = SiteLedger(lab.home.site / "ledger.db")
            self.agents[name] = Agent(lab.home, client, ledger)  # type: ignore[arg-type]

    def do(self, name: str, action: Any, *, order: bytes | None = None) -> OrderReply:
        """An order of the hub, or this one, at one clinic."""
        deadline = format_time(int(time.time()) + 60)
        request = OrdersRequest(attempt=1, round=1, action=action, input=self.hub.input, deadline=deadline)
        raw = order or self.hub.order(self.hub.labs[name].dataset, request)
        says = read_statement(open_envelope(raw)).predicate
        message = OrderMessage(
            plan=self.plan,
            round=1,
            action=action,
            input=InputReference(sha256=self.hub.input, size=self.hub.objects[self.hub.input].size),
            deadline=says["deadline"],
            order=raw.decode(),
        )
        return self.agents[name].perform(message)

    def receipt(self, reply: OrderReply) -> Statement:
        assert reply.receipt is not None, reply.refusal
        return read_statement(open_envelope(reply.receipt.bundle.encode()))

    def harmonise(self) -> None:
        receipts = [self.receipt(self.do(name, "statistics")).id for name in self.agents]
        self.hub.join_statistics(StatisticsReport(attempt=1, receipts=receipts))


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Callable[..., Clinic]]:
    made: list[Clinic] = []

    def start(**config: Any) -> Clinic:
        made.append(Clinic(tmp_path, **config))
        return made[-1]

    yield start
    for one in made:
        one.hub.stop()


def refusal(reply: OrderReply) -> str:
    assert reply.refusal is not None and reply.refusal.statement is not None
    return reply.refusal.code


def test_statistics_are_told_once_under_consent_with_a_receipt_that_names_them(
    clinic: Callable[..., Clinic], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = clinic()
    first = one.do("lab-a", "statistics")
    receipt = one.receipt(first)
    figures = read_columns(one.hub.files[receipt.subjects[1].digest])
    assert (receipt.predicate["action"], receipt.predicate["examples"]) == ("statistics", first.examples)
    assert figures.plan == one.plan and tuple(figures.columns) == COLUMNS and figures.cohort == 20
    assert first.update is None and first.metrics == {}
    monkeypatch.setattr("federation.agent.measure_columns", None)
    assert one.do("lab-a", "statistics") == first, "answered from the ledger"


def test_the_larger_of_plans_and_sites_smallest_cohort_holds(clinic: Callable[..., Clinic]) -> None:
    one = clinic()
    write_policy(one.hub.labs["lab-a"].home, SitePolicy(1000))
    reply = one.do("lab-a", "statistics")
    figures = read_columns(one.hub.files[one.receipt(reply).subjects[1].digest])
    assert figures.cohort == 1000 and set(figures.columns.values()) == {None} and reply.examples == 0
    (one.hub.labs["lab-b"].home.site / "policy.json").write_text("broken")
    assert refusal(one.do("lab-b", "statistics")) == "E_POLICY"


def test_a_site_trains_only_by_the_statistics_that_the_order_names_and_says_so(
    clinic: Callable[..., Clinic],
) -> None:
    one = clinic()
    assert refusal(one.do("lab-a", "train")) == "E_STATISTICS", "the order names none, the plan asks for them"
    one.harmonise()
    raw = one.hub.statistics
    assert raw is not None
    one.hub.statistics = raw.replace(b'"missing":0', b'"missing":1', 1)
    lying = one.hub._scaled_by()
    one.hub.statistics = raw
    members = {
        "plan": one.plan,
        "site": one.hub.labs["lab-b"].dataset,
        "action": "train",
        "round": 1,
        "input": one.hub.input,
        "deadline": format_time(int(time.time()) + 60),
    }
    other = one.hub.operator.sign("order", [("model.safetensors", one.hub.input), *lying], members)
    assert refusal(one.do("lab-b", "train", order=other)) == "E_STATISTICS", "the hub has others"
    reply = one.do("lab-b", "train")
    assert tuple(one.receipt(reply).subjects[1]) == ("statistics.json", sha256_hex(raw))
    assert reply.metrics["input_loss"] < 2, "raw columns, with an area of 650, would start far higher"


def test_a_plan_without_joint_statistics_takes_no_order_that_names_them(
    clinic: Callable[..., Clinic],
) -> None:
    one = clinic(harmonise=False)
    assert refusal(one.do("lab-a", "statistics")) == "E_ACTION"
    one.hub.statistics = b"{}"
    assert refusal(one.do("lab-a", "train")) == "E_STATISTICS"


def test_a_report_needs_round_one_and_tells_three_shares(clinic: Callable[..., Clinic]) -> None:
    one = clinic(harmonise=False)
    assert refusal(one.do("lab-a", "evaluate")) == "E_ROUND_CHAIN"
    receipts = [one.receipt(one.do(name, "train")).id for name in one.agents]
    members = {"plan": one.plan, "round": 1, "input": one.hub.input, "receipts": receipts}
    one.hub.post(one.hub.operator.sign("round", [("model.safetensors", "d" * 64)], members).decode())
    reply = one.do("lab-b", "evaluate")
    figures = read_report(one.hub.files[one.receipt(reply).subjects[1].digest])
    assert reply.metrics == {name: float(text) for name, text in figures.measured.items()}
    assert figures.rows == reply.examples and set(figures.measured) == {"federated", "local", "majority"}


# --- at the coordinator -------------------------------------------------------------------------------------


def answers(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    """A site that trains, tells statistics and reports."""
    if message.action == "train":
        site.receipt_says = {}
        reply = site.train(message)
        return reply
    raw = b"{}"
    if message.action == "statistics":
        columns = {name: Column(name, 10, 0, 10.0, 5.0) for name in COLUMNS}
        raw = write_columns(ColumnFigures(message.plan, site.dataset, 5, columns, None))
    return OrderReply(dataset=site.dataset, examples=10, receipt=say(site, message, raw))


def say(site: ScriptedSite, message: OrderMessage, raw: bytes, **changes: Any) -> ReceiptReference:
    members = {
        "action": message.action,
        "grant": sha256_hex(site.name.encode()),
        "plan": message.plan,
        "round": message.round,
        "input": message.input.sha256,
        "examples": 10,
        **changes,
    }
    home = site.hub.labs[site.name].home
    subjects = [("manifest.json", site.dataset), ("figures.json", sha256_hex(raw))]
    client = LocalClient(site.hub, home.institution)
    record = client.post_statement(home.sign("receipt", subjects, members), {"figures.json": raw})
    return ReceiptReference(id=record.id, bundle=record.bundle)


def stage(folder: Path, **config: Any) -> Stage:
    asked = {"harmonise": True, "report": True, "smallest_cohort": 5, "rounds": 1, **config}
    one = Stage(folder, recipe=RECIPE, parameters=PARAMETERS, **asked)
    for site in one.sites.values():
        site.answer = answers
    return one


def asked(one: Stage) -> dict[str, list[str]]:
    return {name: [message.action for message in site.asked] for name, site in one.sites.items()}


def test_all_sites_are_asked_for_statistics_first_and_for_the_report_last(tmp_path: Path) -> None:
    one = stage(tmp_path)
    assert one.run().state == "finished"
    assert asked(one) == {key: ["statistics", "train", "evaluate"] for key in one.sites}
    assert one.hub.statistics is not None
    assert [column.rows for column in read_statistics(one.hub.statistics).columns] == [30] * len(COLUMNS)
    assert one.hub.told("round.evaluated") == [{"round": 1, "sites": 3}]


def test_without_options_nobody_is_asked_for_more_than_rounds(tmp_path: Path) -> None:
    one = stage(tmp_path, harmonise=False, report=False)
    assert one.run().state == "finished"
    assert asked(one) == {key: ["train"] for key in one.sites}


def test_a_site_that_refuses_statistics_or_report_is_left_out_by_name(tmp_path: Path) -> None:
    one = stage(tmp_path)

    def refuses(site: ScriptedSite, message: OrderMessage) -> OrderReply:
        return answers(site, message) if message.action == "train" else site.refuse("E_DATA_MISSING")

    one.sites["lab-c"].answer = refuses
    assert one.run().state == "finished"
    assert one.hub.statistics is not None
    assert len(read_statistics(one.hub.statistics).receipts) == 2
    left_out = [(each["institution"], each["action"]) for each in one.hub.told("site.left-out")]
    assert left_out == [("lab-c.example", "statistics"), ("lab-c.example", "evaluate")]
    assert one.hub.told("round.evaluated") == [{"round": 1, "sites": 2}]


@pytest.mark.parametrize(
    "lie",
    [
        lambda site, message: OrderReply(dataset=site.dataset, examples=10),
        lambda site, message: OrderReply(dataset="9" * 64, examples=10, receipt=say(site, message, b"{}")),
        lambda site, message: OrderReply(
            dataset=site.dataset, examples=10, receipt=say(site, message, b"{}", round=2)
        ),
        lambda site, message: OrderReply(
            dataset=site.dataset, examples=10, receipt=say(site, message, b"{}", action="evaluate")
        ),
        lambda site, message: "not a reply",
    ],
    ids=["no receipt", "another dataset", "another round", "another action", "no reply"],
)
def test_a_site_that_answers_something_else_is_left_out(
    tmp_path: Path, lie: Callable[[ScriptedSite, OrderMessage], OrderReply | str]
) -> None:
    one = stage(tmp_path, report=False)
    one.sites["lab-b"].answer = lambda site, message: (
        lie(site, message) if message.action == "statistics" else answers(site, message)
    )
    assert one.run().state == "finished"
    assert one.hub.statistics is not None
    assert len(read_statistics(one.hub.statistics).receipts) == 2
    assert [each["institution"] for each in one.hub.told("site.left-out")] == ["lab-b.example"]


def test_too_few_statistics_stop_the_run_and_a_site_that_is_gone_holds_up_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federation.asking.GONE_S", 0.3)
    one = stage(tmp_path)
    for name in ("lab-a", "lab-b"):
        one.sites[name].connected = None
    ended = one.run()
    assert ended.state == "stopped" and "1 sites told the statistics" in ended.reason
    for name in ("lab-a", "lab-b"):
        one.sites[name].connected = "2026-01-02"

    def goes(site: ScriptedSite, message: OrderMessage) -> OrderReply:
        if message.action == "train":
            site.connected = None
        return answers(site, message)

    one.sites["lab-b"].answer = goes
    assert one.run().state == "finished"
    assert one.hub.told("round.evaluated") == [{"round": 1, "sites": 2}]


def test_an_attempt_that_goes_on_asks_for_no_statistics_again_but_for_the_report(tmp_path: Path) -> None:
    one = stage(tmp_path)
    one.run()
    first = one.hub.statistics
    one.hub.attempt, one.hub.ended = 2, None
    assert one.run(attempt=2).state == "finished"
    assert one.hub.statistics == first
    actions = ["statistics", "train", "evaluate", "evaluate"]
    assert asked(one) == dict.fromkeys(one.sites, actions)
