"""A run whose plan kept the updates can be summed again by whoever may read them; a false sum shows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.compression import Feedback, write_update
from federation.deciding import read_checked_plan
from federation.finishing import check_chain
from federation.messages import OrderMessage, OrderReply
from federation.recomputing import Recomputed, recompute
from federation.tensors import Layout, TensorSpec, write_tensors
from storage.errors import Refused, Rejected, Unchecked
from storage.manifests import Manifest, build_manifest
from tests.scripted_sites import ScriptedSite, Stage
from tests.updates import as_changed

ROUNDS = 3


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def stage(**config: Any) -> Stage:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Stage(folder, **{"rounds": ROUNDS, "minimum": 3, "keep_updates": True, **config}))
        for number, site in enumerate(made[-1].sites.values(), 1):
            site.delta, site.examples = number / 7, number * 10
        return made[-1]

    yield stage
    for one in made:
        one.hub.stop()


def manifest_of(one: Stage) -> Manifest:
    folder = one.folder / "model"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes((one.folder / "base.safetensors").read_bytes())
    return build_manifest(folder, "owner.example/model")


def repeat(one: Stage, number: int | None = None) -> list[Recomputed]:
    """What the plan's owner finds, by its own pins."""
    home, client = one.hub.owner, one.hub.client("owner")
    for lab in one.hub.labs.values():
        home.pin(lab.home.institution, lab.home.ring.pin)
    plan, _ = read_checked_plan(home, client, one.plan)  # type: ignore[arg-type]
    chain = check_chain(home, client, plan, manifest_of(one))  # type: ignore[arg-type]
    return recompute(home, client, plan, chain, number=number)  # type: ignore[arg-type]


STRATEGIES: list[dict[str, Any]] = [
    {},
    {"weighting": "equal"},
    {"max_examples": 15},
    {"strategy": "FedAvgM"},
    {"strategy": "FedAdam"},
    {"strategy": "FedYogi"},
    {"strategy": "FedAdagrad"},
    {"strategy": "FedMedian"},
    {"strategy": "FedTrimmedAvg", "strategy_parameters": {"beta": "0.4"}},
    {"strategy": "Krum", "strategy_parameters": {"malicious": 0}},
    {"strategy": "MultiKrum", "strategy_parameters": {"malicious": 0, "select": 2}},
    {"strategy": "Bulyan", "strategy_parameters": {"malicious": 0}},
]


@pytest.mark.parametrize("config", STRATEGIES, ids=lambda config: "-".join(map(str, config.values())))
def test_an_honest_run_is_recomputed_to_the_byte(make: Callable[..., Stage], config: dict[str, Any]) -> None:
    one = make(**config)
    assert one.run().state == "finished"
    rounds = repeat(one)
    assert [each.round for each in rounds] == [1, 2, 3]
    assert [each.found for each in rounds] == [report.aggregate for report in one.hub.rounds]
    assert all(each.same and each.update_bytes > 0 for each in rounds)
    assert rounds[0].sites == ("lab-a.example", "lab-b.example", "lab-c.example")
    (last,) = repeat(one, 3)
    assert (last.round, last.same) == (3, True)


@pytest.mark.parametrize("form", ["bf16", "fp16", "int8"])
def test_compressed_updates_are_recomputed_to_the_byte(make: Callable[..., Stage], form: str) -> None:
    one = make(compression=form)
    layout = Layout((TensorSpec("steps", "I64", (2,)), TensorSpec("w", "F32", (3,))))

    def answer(site: ScriptedSite, message: OrderMessage) -> OrderReply:
        path = one.folder / f"{site.name}-sent"
        moved = {"w": np.array([0.1, 1 / 3, 7], np.float32) * site.delta, "steps": np.array([7, 8], np.int64)}
        write_update(path, as_changed(moved), layout, Feedback(form))
        return site.send(message, path)

    for site in one.sites.values():
        site.answer = answer
    assert one.run().state == "finished"
    assert all(each.same for each in repeat(one))


def test_a_round_that_is_not_the_sum_of_its_updates_is_found(make: Callable[..., Stage]) -> None:
    """The coordinator writes what it likes in round 2; all papers are signed and in order."""
    one = make(rounds=2)
    real = one.hub.report_round

    def forged(report: Any) -> Any:
        if report.round == 2:
            path = one.folder / "forged"
            write_tensors(path, {"w": np.zeros(3, np.float32), "steps": np.array([7, 8], np.int64)})
            report = report.model_copy(update={"aggregate": one.hub.keep(path)})
        return real(report)

    one.hub.report_round = forged  # type: ignore[method-assign]
    one.run()
    first, second = repeat(one)
    assert first.same and not second.same
    assert second.stated == one.hub.rounds[1].aggregate != second.found


def test_an_update_that_was_exchanged_is_refused(make: Callable[..., Stage]) -> None:
    one = make()
    one.run()
    update = one.hub.receipts("lab-b.example")[0].subject
    raw = one.hub.store.get(one.hub.objects[update].key)
    one.hub.store.put(one.hub.objects[update].key, raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(Rejected, match="E_DIGEST"):
        repeat(one)


def test_an_update_that_is_gone_is_named_with_its_site_and_round(make: Callable[..., Stage]) -> None:
    one = make()
    one.run()
    del one.hub.objects[one.hub.receipts("lab-c.example")[0].subject]
    with pytest.raises(Unchecked, match=r"the update of lab-c\.example in round 1") as caught:
        repeat(one)
    assert caught.value.code == "E_UPDATE_MISSING"


def test_a_plan_that_keeps_no_updates_is_refused_and_says_what_to_do(make: Callable[..., Stage]) -> None:
    one = make(keep_updates=False)
    one.run()
    with pytest.raises(Refused, match="does not keep the sites' updates") as caught:
        repeat(one)
    assert caught.value.code == "E_UPDATES_NOT_KEPT" and "--keep-updates" in caught.value.hint


def test_a_round_that_is_not_closed_cannot_be_recomputed(make: Callable[..., Stage]) -> None:
    one = make()
    one.run()
    with pytest.raises(Unchecked, match="3 rounds are closed, asked for 4"):
        repeat(one, 4)


def test_a_chain_is_needed_before_a_sum_is_worth_anything(make: Callable[..., Stage]) -> None:
    one = make()
    one.run()
    one.hub.statements = [each for each in one.hub.statements if each.id != one.hub.rounds[0].receipts[0]]
    with pytest.raises(Rejected, match="is not logged"):
        repeat(one)
