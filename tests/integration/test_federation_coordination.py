"""The coordinator's rounds, with scripted sites in place of nodes: what is folded in, left out, and said
about it.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation import round_desk, telling
from federation.compression import Feedback, write_update
from federation.coordination import Coordinator
from federation.delivery import Delivery
from federation.messages import (
    OrderMessage,
    OrderReply,
    ReceiptReference,
    UpdateReference,
)
from federation.tensors import Layout, TensorSpec
from storage.encoding import sha256_hex
from storage.errors import Refused, Unchecked
from tests.round_hub import LocalClient
from tests.scripted_sites import Behaviour, ScriptedSite, Stage
from tests.updates import as_changed


@pytest.fixture(params=[False, True], ids=["by-address", "beside-the-store"])
def stage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Stage]]:
    for name, value in (("LOOK_S", 0.05), ("AGAIN_S", 0.05), ("GONE_S", 0.3), ("GONE_BEFORE_S", 0.05)):
        monkeypatch.setattr(round_desk, name, value)
    made: list[Stage] = []

    def make(**config: Any) -> Stage:
        made.append(Stage(tmp_path / str(len(made)), beside=request.param, **config))
        return made[-1]

    (tmp_path / "0").mkdir()
    yield make
    for one in made:
        one.hub.stop()


def silent(_: ScriptedSite, __: OrderMessage) -> None:
    return None


def with_tensors(**tensors: Any) -> Behaviour:
    """Train honestly, but for these tensors."""
    honest = {"w": np.ones(3, np.float32), "steps": np.array([7, 8], np.int64)}
    return lambda site, message: site.train(message, {**honest, **tensors})


# --- the honest run -----------------------------------------------------------------------------------------


def test_a_run_moves_the_weights_by_the_weighted_mean_of_the_updates(stage: Callable[..., Stage]) -> None:
    one = stage()
    for site, delta, examples in zip(one.sites.values(), (1.0, 2.0, 4.0), (10, 10, 20), strict=True):
        site.delta, site.examples = delta, examples
    ended = one.run()
    assert (ended.state, ended.reason) == ("finished", None)
    assert len(one.hub.rounds) == 2
    mean = (1 * 10 + 2 * 10 + 4 * 20) / 40
    assert one.result() == pytest.approx([10 + 2 * mean, 20 + 2 * mean, 30 + 2 * mean])
    assert one.result("steps") == [7, 8]


def test_receipts_stand_in_the_plans_order_whoever_answers_first(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.exchange.sites = dict(reversed(one.exchange.sites.items()))
    one.run()
    pairs = sorted((lab.home.institution, lab.dataset) for lab in one.hub.labs.values())
    assert one.folded() == [institution for institution, _ in pairs]


def test_a_round_starts_from_the_aggregate_of_the_one_before(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.run()
    first, second = one.hub.rounds
    assert (first.input, second.input) == (one.hub.input, first.aggregate)
    assert [message.input.sha256 for message in one.sites["lab-a"].asked] == [first.input, second.input]


def test_a_report_says_what_each_site_and_all_together_measured(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.sites["lab-a"].delta, one.sites["lab-a"].examples = 4.0, 20
    one.run()
    report = one.hub.rounds[0]
    assert report.sites["lab-a.example"] == {"loss": 4.0, "examples": 20}
    assert report.metrics == {"loss": pytest.approx((4 * 20 + 1 * 10 + 1 * 10) / 40)}
    assert {event["institution"] for event in one.hub.told("site.replied")} == set(one.folded())


def test_nothing_of_a_finished_run_stays_on_the_coordinators_disk(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.run()
    assert list(one.work.iterdir()) == []


def test_what_lies_in_the_store_stays_as_it_is_while_later_rounds_are_made(
    stage: Callable[..., Stage],
) -> None:
    one = stage(rounds=4)
    for number, site in enumerate(one.sites.values()):
        site.delta = 1.5 + number
    one.run()
    assert len(one.hub.rounds) == 4 and len(one.hub.objects) == 8
    for sha256, stored in one.hub.objects.items():
        assert sha256_hex(one.hub.store.get(stored.key)) == sha256


def test_files_go_by_address_where_the_store_turns_out_to_be_on_another_machine(tmp_path: Path) -> None:
    one = Stage(tmp_path / "0", beside=True)
    real = LocalClient.upload

    class Elsewhere(LocalClient):
        def upload(self, *args: Any, **options: Any) -> Any:
            return real(self, *args, **options).model_copy(update={"file": "/nowhere/of/this/machine"})

        def updates(self, *args: Any) -> Any:
            found = super().updates(*args)
            return {one: at.model_copy(update={"file": "/nowhere/else"}) for one, at in found.items()}

    try:
        Coordinator(Elsewhere(one.hub, None), one.exchange, one.plan, 1, one.work).run()  # type: ignore[arg-type]
        assert one.hub.ended is not None and one.hub.ended.state == "finished"
        assert one.result() == [12.0, 22.0, 32.0]
    finally:
        one.hub.stop()


STATEFUL: list[tuple[str, dict[str, str]]] = [
    ("FedAvgM", {"serverLearningRate": "1", "serverMomentum": "0.5"}),
    ("FedAdam", {}),
    ("FedYogi", {}),
    ("FedAdagrad", {}),
]


def dying_after(one: Stage, number: int) -> None:
    """The coordinator dies the moment the hub has closed this round."""
    real = one.hub.report_round

    def dies(report: Any) -> Any:
        record = real(report)
        if report.round == number:
            one.hub.report_round = real  # type: ignore[method-assign]
            raise KeyboardInterrupt
        return record

    one.hub.report_round = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        one.run()
    one.hub.attempt = 2


@pytest.mark.parametrize(("strategy", "parameters"), STATEFUL)
def test_a_server_optimisers_state_survives_the_loss_of_the_coordinators_machine(
    stage: Callable[..., Stage], tmp_path: Path, strategy: str, parameters: dict[str, str]
) -> None:
    terms = {"strategy": strategy, "strategy_parameters": parameters, "rounds": 4}
    whole = stage(**terms)
    whole.run()
    (tmp_path / "1").mkdir()
    broken = stage(**terms)
    dying_after(broken, 2)
    shutil.rmtree(broken.work)
    broken.work.mkdir()
    assert broken.run(attempt=2).state == "finished"
    assert [report.aggregate for report in broken.hub.rounds] == [
        report.aggregate for report in whole.hub.rounds
    ]
    assert [bool(report.state) for report in whole.hub.rounds] == [True, True, True, False]


def test_a_server_optimiser_does_not_go_on_without_its_state(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=3, strategy="FedAvgM")
    dying_after(one, 1)
    one.hub.rounds[0] = one.hub.rounds[0].model_copy(update={"state": {}})
    ended = one.run(attempt=2)
    assert ended.state == "stopped"
    assert "FedAvgM cannot go on after round 1: its state (momentum) is not in the store" in ended.reason


def test_a_false_state_in_the_store_is_not_folded_in(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=3, strategy="FedAvgM")
    dying_after(one, 1)
    key = one.hub.objects[one.hub.rounds[0].state["momentum"].sha256].key
    one.hub.store.put(key, bytes(len(one.hub.store.get(key))))
    shutil.rmtree(one.folder / "work" / one.plan)
    ended = one.run(attempt=2)
    assert ended.state == "stopped" and "E_DIGEST" in ended.reason
    assert len(one.hub.rounds) == 1


def test_compressed_updates_are_folded_in_as_what_they_stand_for(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=1, compression="int8")
    for site in one.sites.values():
        site.answer = compressed("int8")
    assert one.run().state == "finished"
    assert one.result() == pytest.approx([11.0, 21.0, 31.0])
    assert one.result("steps") == [7.0, 8.0]


def compressed(form: str) -> Behaviour:
    """Train honestly and send the update in this form."""

    def answer(site: ScriptedSite, message: OrderMessage) -> OrderReply:
        path = site.folder / "compressed"
        moved: dict[str, Any] = {"w": np.full(3, site.delta, np.float32), "steps": np.array([7, 8], np.int64)}
        layout = Layout((TensorSpec("steps", "I64", (2,)), TensorSpec("w", "F32", (3,))))
        write_update(path, as_changed(moved), layout, Feedback(form))
        return site.send(message, path)

    return answer


def test_the_next_attempt_goes_on_after_the_last_closed_round(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=3)

    def dies_in_round_2(site: ScriptedSite, message: OrderMessage) -> OrderReply:
        if message.round == 2 and one.hub.attempt == 1:
            raise KeyboardInterrupt
        return site.train(message)

    one.sites["lab-c"].answer = dies_in_round_2
    with pytest.raises(KeyboardInterrupt):
        one.run()
    one.hub.attempt = 2
    assert one.run(attempt=2).state == "finished"
    assert [report.round for report in one.hub.rounds] == [1, 2, 3]
    assert one.result() == pytest.approx([13.0, 23.0, 33.0])


def test_a_coordinator_that_was_given_up_does_nothing(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.hub.attempt = 2
    with pytest.raises(Refused, match="E_ATTEMPT"):
        one.run(attempt=1)
    assert one.exchange.sent == 0
    assert one.hub.ended is None


# --- bad updates --------------------------------------------------------------------------------------------


def _never_uploaded(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    return OrderReply(
        dataset=site.dataset,
        update=UpdateReference(sha256="e" * 64, size=200, upload="none"),
        examples=site.examples,
        receipt=site.receipt(message, "e" * 64),
    )


def _receipt_with(**changes: Any) -> Behaviour:
    """A logged receipt that says something else than the reply."""

    def answer(site: ScriptedSite, message: OrderMessage) -> OrderReply:
        site.receipt_says = changes
        return site.train(message)

    return answer


def _receipt_not_logged(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    reply = site.train(message)
    site.hub.statements.pop()
    return reply


def _receipt_of_another_site(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    theirs = site.hub.receipts("lab-a.example")[-1]
    record = next(one for one in site.hub.statements if one.id == theirs.id)
    reference = ReceiptReference(id=record.id, bundle=record.bundle)
    return site.train(message).model_copy(update={"receipt": reference})


def _receipt_that_is_none(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    return site.train(message).model_copy(update={"receipt": ReceiptReference(id="a" * 64, bundle="{}")})


def _other_digest(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    reply = site.train(message)
    assert reply.update is not None
    return reply.model_copy(update={"update": reply.update.model_copy(update={"sha256": "e" * 64})})


def _other_bytes(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    reply = site.train(message)
    assert reply.update is not None
    site.hub.beside = False  # on the way: what lies in a store was hashed as it came there
    key = site.hub.objects[reply.update.sha256].key
    raw = site.hub.store.get(key)
    site.hub.store.put(key, raw[:-1] + bytes([raw[-1] ^ 1]))
    return reply


def _absurd_size(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    reply = site.train(message)
    assert reply.update is not None
    return reply.model_copy(update={"update": reply.update.model_copy(update={"size": 1 << 40})})


def _absurd_count(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    return site.train(message).model_copy(update={"examples": 1 << 53})


def _no_rows(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    return site.train(message).model_copy(update={"examples": 0})


def _of_another_site(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    return site.train(message).model_copy(update={"dataset": "d" * 64})


def _without_receipt(site: ScriptedSite, message: OrderMessage) -> OrderReply:
    return site.train(message).model_copy(update={"receipt": None})


def _refused(site: ScriptedSite, _: OrderMessage) -> OrderReply:
    return site.refuse("E_CONSENT")


BAD: list[tuple[Behaviour, str]] = [
    (with_tensors(w=np.array([1, np.nan, 1], np.float32)), "E_NOT_FINITE"),
    (with_tensors(w=np.array([1, np.inf, 1], np.float32)), "E_NOT_FINITE"),
    (with_tensors(w=np.ones(4, np.float32)), "E_LAYOUT"),
    (with_tensors(w=np.ones(3, np.float64)), "E_LAYOUT"),
    (with_tensors(extra=np.ones(3, np.float32)), "E_LAYOUT"),
    (_other_digest, "E_RECEIPT"),
    (_never_uploaded, "E_NOT_FOUND"),
    (_receipt_with(round=2), "E_RECEIPT"),
    (_receipt_with(plan="b" * 64), "E_RECEIPT"),
    (_receipt_with(input="b" * 64), "E_RECEIPT"),
    (_receipt_with(examples=9), "E_RECEIPT"),
    (_receipt_not_logged, "E_RECEIPT"),
    (_receipt_of_another_site, "E_RECEIPT"),
    (_receipt_that_is_none, "E_BUNDLE"),
    (compressed("bf16"), "E_LAYOUT"),
    (compressed("int8"), "E_LAYOUT"),
    (_other_bytes, "E_DIGEST"),
    (_absurd_size, "E_UPDATE_SIZE"),
    (_absurd_count, "E_EXAMPLES"),
    (_no_rows, "E_EXAMPLES"),
    (_of_another_site, "E_REPLY"),
    (_without_receipt, "E_REPLY"),
    (lambda site, message: "nonsense", "E_MESSAGE"),
    (lambda site, message: '{"dataset": null, "metrics": {"loss": NaN}}', "E_MESSAGE"),
    (_refused, "E_CONSENT"),
]


@pytest.mark.parametrize(("answer", "code"), BAD)
def test_a_bad_update_is_left_out_and_said(stage: Callable[..., Stage], answer: Behaviour, code: str) -> None:
    one = stage(rounds=1)
    one.sites["lab-b"].answer = answer
    one.sites["lab-a"].delta = one.sites["lab-c"].delta = 2.0
    ended = one.run()
    assert ended.state == "finished", ended.reason
    assert "lab-b.example" not in one.folded()
    assert one.result() == [12.0, 22.0, 32.0]
    (event,) = one.hub.told("site.left-out")
    assert (event["institution"], event["round"], event["code"]) == ("lab-b.example", 1, code)


STOPS = [
    ("E_NOT_FINITE", with_tensors(w=np.array([1, np.nan, 1], np.float32))),
    ("E_NOT_FINITE", with_tensors(w=np.array([1, np.inf, 1], np.float32))),
    ("E_LAYOUT", with_tensors(w=np.ones(4, np.float32))),
    ("E_NOT_FOUND", _never_uploaded),
    ("E_DIGEST", _other_bytes),
    ("E_UPDATE_SIZE", _absurd_size),
    ("E_EXAMPLES", _absurd_count),
    ("E_RECEIPT", _receipt_with(round=2)),
    ("E_RECEIPT", _receipt_not_logged),
]


@pytest.mark.parametrize(("code", "answer"), STOPS)
def test_a_bad_update_stops_the_run_where_the_plan_says_so(
    stage: Callable[..., Stage], code: str, answer: Behaviour
) -> None:
    one = stage(bad_update="stop")
    one.sites["lab-b"].answer = answer
    ended = one.run()
    assert ended.state == "stopped"
    assert ended.reason.startswith(f"{code}: ") and "lab-b.example" in ended.reason
    assert one.hub.rounds == []
    assert one.hub.told("site.late") == [], "the round ended before its deadline, so nobody is late"


@pytest.mark.parametrize("again", ["the same", "another", "nonsense"])
def test_a_message_that_is_answered_twice_counts_once_and_the_second_answer_changes_nothing(
    stage: Callable[..., Stage], again: str
) -> None:
    one = stage(rounds=1)
    collect = one.exchange.collect

    def twice(messages: Sequence[str], *, wait_s: float) -> list[Delivery]:
        found = collect(messages, wait_s=wait_s)
        second = {"the same": None, "another": found[0].text if found else None, "nonsense": "nonsense"}[
            again
        ]
        return [each for one in found for each in (one, Delivery(one.message, second or one.text))]

    one.exchange.collect = twice  # type: ignore[method-assign]
    one.sites["lab-b"].delta, one.sites["lab-b"].examples = 4.0, 20
    assert one.run().state == "finished"
    assert one.result() == pytest.approx([12.5, 22.5, 32.5])  # (1*10 + 4*20 + 1*10) / 40
    assert sorted(one.folded()) == [f"lab-{name}.example" for name in "abc"]
    assert one.hub.told("site.left-out") == []


def test_a_count_beyond_the_cap_weighs_no_more_than_the_cap(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=1, max_examples=10)
    one.sites["lab-a"].examples, one.sites["lab-a"].delta = 1_000_000, 4.0
    one.run()
    assert one.result() == pytest.approx([12.0, 22.0, 32.0])


def test_too_many_bad_updates_stop_the_run_with_every_reason(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.sites["lab-a"].answer = BAD[0][0]
    one.sites["lab-b"].answer = _refused
    ended = one.run()
    assert ended.state == "stopped"
    assert "quorum not met in round 1: 1 of 2 sites" in ended.reason
    for reason in ("lab-a.example E_NOT_FINITE", "lab-b.example E_CONSENT"):
        assert reason in ended.reason
    assert not list(one.work.rglob("updates")), "what sites sent does not stay when a run stops"


def test_weights_that_overflow_are_no_sites_fault_and_stop_the_run(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=3)
    for site in one.sites.values():
        site.answer = with_tensors(w=np.full(3, 3e38, np.float32))
    ended = one.run()
    assert ended.state == "stopped"
    assert ended.reason.startswith("E_NOT_FINITE: round 2")
    assert len(one.hub.rounds) == 1


# --- sites that are away ------------------------------------------------------------------------------------


def test_a_silent_site_is_left_out_at_the_deadline_and_named_late(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=1, round_deadline_s=1)
    one.sites["lab-b"].answer = silent
    assert one.run().state == "finished"
    assert "lab-b.example" not in one.folded()
    assert [event["institution"] for event in one.hub.told("site.late")] == ["lab-b.example"]


def test_a_reply_after_its_round_is_logged_and_left_out(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=2, round_deadline_s=1)
    late: list[str] = []

    def slow(site: ScriptedSite, message: OrderMessage) -> OrderReply | None:
        if message.round == 1:
            late.append(f"message-{one.exchange.sent}")
            return None
        one.exchange.answers[late[0]] = Delivery(late[0], site.train(message).model_dump_json())
        return None

    one.sites["lab-b"].answer = slow
    one.run()
    told = [(event["institution"], event["round"]) for event in one.hub.told("site.late")]
    assert told.count(("lab-b.example", 1)) == 2
    assert all("lab-b.example" not in one.folded(number) for number in (1, 2))


def test_a_missing_site_is_waited_for_a_while_and_then_left_out(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=2)
    one.sites["lab-b"].connected = None
    began = time.monotonic()
    assert one.run().state == "finished"
    assert time.monotonic() - began > 0.3
    assert one.sites["lab-b"].asked == []
    assert {event["institution"] for event in one.hub.told("site.unreachable")} == {"lab-b.example"}


def test_a_site_that_is_gone_for_a_whole_short_round_holds_up_no_other(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_desk, "GONE_S", 60.0)  # longer than a round stays open
    one = stage(rounds=3, round_deadline_s=1)
    one.sites["lab-b"].connected = None
    assert one.run().state == "finished"
    told = [(event["institution"], event["round"]) for event in one.hub.told("site.late")]
    assert told == [("lab-b.example", 1)], "only the first round waited until its deadline"


def test_a_site_that_the_quorum_needs_is_waited_for_until_it_comes(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=1, minimum=3)
    one.sites["lab-b"].connected = None
    timer = threading.Timer(0.8, lambda: setattr(one.sites["lab-b"], "connected", "2026-01-02"))
    timer.start()
    assert one.run().state == "finished"
    assert len(one.folded()) == 3


def test_an_agent_that_starts_again_gets_its_order_again(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=1, minimum=3)

    def dies_once(site: ScriptedSite, message: OrderMessage) -> OrderReply | None:
        if len(site.asked) > 1:
            return site.train(message)
        site.connected = "2026-01-02"
        return None

    one.sites["lab-b"].answer = dies_once
    assert one.run().state == "finished"
    first, second = one.sites["lab-b"].asked
    assert first == second


def test_a_message_that_flower_could_not_deliver_is_sent_again(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=1, minimum=3)

    def lost_once(site: ScriptedSite, message: OrderMessage) -> OrderReply | str:
        return site.train(message) if len(site.asked) > 1 else "problem: node unavailable"

    one.sites["lab-b"].answer = lost_once
    assert one.run().state == "finished"
    assert len(one.sites["lab-b"].asked) == 2


def test_a_site_that_could_not_is_asked_again_within_the_round(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=1, minimum=3)

    def away_once(site: ScriptedSite, message: OrderMessage) -> OrderReply:
        return site.train(message) if len(site.asked) > 1 else site.refuse("E_HUB_UNREACHABLE", again=True)

    one.sites["lab-b"].answer = away_once
    assert one.run().state == "finished"
    assert len(one.folded()) == 3


def test_too_few_sites_with_orders_stop_the_run_at_once(stage: Callable[..., Stage]) -> None:
    one = stage()
    one.hub.allow = lambda dataset: dataset == one.sites["lab-a"].dataset
    ended = one.run()
    assert ended.state == "stopped"
    assert "quorum not met: 1 sites may take part in round 1, the plan asks for 2" in ended.reason
    assert one.exchange.sent == 0


def test_a_site_without_an_order_is_not_asked(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=1)
    one.hub.allow = lambda dataset: dataset != one.sites["lab-a"].dataset
    assert one.run().state == "finished"
    assert one.sites["lab-a"].asked == []


def test_a_hub_that_is_away_ends_the_attempt_and_not_the_run(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stage()

    def away(*_: object) -> None:
        raise Unchecked("E_HUB_UNREACHABLE", "the hub is away")

    monkeypatch.setattr(LocalClient, "report_round", away)
    with pytest.raises(Unchecked, match="E_HUB_UNREACHABLE"):
        one.run()
    assert one.hub.ended is None


def test_the_hub_hears_that_a_waiting_coordinator_lives(
    stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "ALIVE_S", 0.2)
    one = stage(rounds=1, round_deadline_s=1)
    one.sites["lab-b"].answer = silent
    one.run()
    assert one.hub.told("coordinator.alive")


def test_a_receipt_of_an_earlier_round_cannot_be_sent_again(stage: Callable[..., Stage]) -> None:
    one = stage(rounds=2)
    sent: list[OrderReply] = []

    def replays(site: ScriptedSite, message: OrderMessage) -> OrderReply:
        sent.append(sent[0] if sent else site.train(message))
        return sent[-1]

    one.sites["lab-b"].answer = replays
    assert one.run().state == "finished"
    assert "lab-b.example" in one.folded(1) and "lab-b.example" not in one.folded(2)
    (event,) = one.hub.told("site.left-out")
    assert (event["institution"], event["round"], event["code"]) == ("lab-b.example", 2, "E_RECEIPT")
    assert "its round should be 2, it is 1" in event["message"]


def test_krum_folds_in_whom_it_picks_and_reports_all_that_it_picked_from(
    stage: Callable[..., Stage],
) -> None:
    one = stage(rounds=1, minimum=3, strategy="Krum", strategy_parameters={"malicious": 0}, weighting="equal")
    one.sites["lab-b"].delta = 1000.0
    assert one.run().state == "finished"
    assert one.result() == [11.0, 21.0, 31.0]
    assert one.folded() == ["lab-a.example", "lab-b.example", "lab-c.example"]
    picked = {name: figures["picked"] for name, figures in one.hub.rounds[0].sites.items()}
    assert picked == {"lab-a.example": 1, "lab-b.example": 0, "lab-c.example": 0}
