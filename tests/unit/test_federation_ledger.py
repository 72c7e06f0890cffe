"""The site's own record: durable, private, one answer a round, and readable beside the agent."""

import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from federation.ledger import Answer, KeptOrder, KeptRefusal, SiteLedger
from storage.errors import Misuse, Unchecked

PLAN, DATA = "a" * 64, "d" * 64


def order(number: int = 1, *, plan: str = PLAN) -> KeptOrder:
    return KeptOrder(
        f"{number:064x}", plan, DATA, "train", number, "e" * 64, 2_000, 1_000 + number, b"bundle"
    )


def answer(number: int = 1, **changes: object) -> Answer:
    made = Answer(
        plan=PLAN,
        dataset=DATA,
        action="train",
        round=number,
        input="e" * 64,
        order_id=f"{number:064x}",
        grant_id="c" * 64,
        done_at=1_000 + number,
        update_sha256="f" * 64,
        update_size=7,
        examples=30,
        metrics={"loss": 0.5, "n": 3},
        epsilon=None,
        delta=None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def ledger(tmp_path: Path) -> SiteLedger:
    return SiteLedger(tmp_path / "site" / "ledger.db")


def test_what_was_written_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    program = f"""
import os, signal
from pathlib import Path
from federation.ledger import KeptOrder, SiteLedger
ledger = SiteLedger(Path({str(path)!r}))
ledger.keep_order(KeptOrder("1" * 64, "a" * 64, "d" * 64, "train", 1, "e" * 64, 2, 3, b"bundle"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    with SiteLedger(path) as again:
        assert [one.id for one in again.orders()] == ["1" * 64]


def test_only_the_owner_can_read_the_file(ledger: SiteLedger) -> None:
    ledger.keep_order(order())
    for path in ledger.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_an_order_that_comes_twice_is_kept_once(ledger: SiteLedger) -> None:
    ledger.keep_order(order())
    ledger.keep_order(replace(order(), received_at=9_999))
    assert ledger.orders() == [order()]


def test_a_round_has_one_answer(ledger: SiteLedger) -> None:
    ledger.keep_order(order())
    ledger.save_answer(answer())
    with pytest.raises(Misuse, match="answered already"):
        ledger.save_answer(answer(input="9" * 64))
    assert ledger.answer(PLAN, DATA, "train", 1) == answer()
    assert ledger.answer(PLAN, DATA, "evaluate", 1) is None


def test_a_logged_receipt_never_changes(ledger: SiteLedger) -> None:
    ledger.keep_order(order())
    ledger.save_answer(answer())
    ledger.save_receipt(answer(), "1" * 64, b"first", logged=False)
    ledger.save_receipt(answer(), "2" * 64, b"second", logged=True)
    ledger.save_receipt(answer(), "3" * 64, b"third", logged=True)
    found = ledger.answer(PLAN, DATA, "train", 1)
    assert found is not None
    assert (found.receipt_id, found.receipt, found.logged) == ("2" * 64, b"second", True)


def test_the_last_logged_answer_is_the_one_that_the_log_has(ledger: SiteLedger) -> None:
    for number in (1, 2, 3):
        ledger.keep_order(order(number))
        ledger.save_answer(answer(number))
    ledger.save_receipt(answer(2), "2" * 64, b"second", logged=True)
    last = ledger.last_answer(PLAN, DATA, "train")
    logged = ledger.last_answer(PLAN, DATA, "train", logged=True)
    assert last is not None and logged is not None
    assert (last.round, logged.round) == (3, 2)
    assert ledger.last_answer("b" * 64, DATA, "train") is None


def test_what_was_spent_counts_rounds_and_not_evaluations(ledger: SiteLedger) -> None:
    for number in (1, 2):
        ledger.keep_order(order(number))
        ledger.save_answer(answer(number, epsilon=f"{number * 5}", delta="0.1"))
    ledger.save_answer(answer(2, action="evaluate", update_sha256=None, update_size=None))
    (spent,) = ledger.spent()
    assert (spent.rounds, spent.evaluations, spent.examples, spent.epsilon) == (2, 1, 60, "10")


def test_refusals_are_kept_once_for_each_order_and_code(ledger: SiteLedger) -> None:
    refusal = KeptRefusal("1" * 64, "E_CONSENT", PLAN, DATA, 1, "no", 5, "9" * 64, b"bundle", False)
    ledger.save_refusal(refusal)
    ledger.save_refusal(replace(refusal, id="8" * 64))
    ledger.save_refusal(replace(refusal, code="E_REVOKED", id="7" * 64))
    assert [one.id for one in ledger.refusals()] == ["9" * 64, "7" * 64]
    ledger.refusal_logged("9" * 64)
    assert [one.id for one in ledger.refusals(logged=False)] == ["7" * 64]
    assert ledger.refusals(plan="b" * 64) == []


def test_orders_of_one_plan_are_listed_in_the_order_they_came(ledger: SiteLedger) -> None:
    for number, plan in ((3, PLAN), (1, PLAN), (2, "b" * 64)):
        ledger.keep_order(order(number, plan=plan))
    assert [one.round for one in ledger.orders(plan=PLAN)] == [1, 3]
    assert len(ledger.orders()) == 3


def test_a_checked_file_is_read_again_once_it_changes(ledger: SiteLedger, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("a")
    ledger.save_checked_file(path, path.stat(), "1" * 64)
    assert ledger.checked_file(path, path.stat()) == "1" * 64
    path.write_text("bb")
    assert ledger.checked_file(path, path.stat()) is None


def test_a_second_reader_sees_the_agents_writes(ledger: SiteLedger) -> None:
    with SiteLedger(ledger.path) as reader:
        ledger.keep_order(order())
        assert len(reader.orders()) == 1


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(Unchecked, match="E_LEDGER"):
        SiteLedger(path)


def test_a_ledger_of_a_newer_fedhub_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SiteLedger(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(Unchecked, match="form 99"):
        SiteLedger(path)
