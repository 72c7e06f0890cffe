"""A round closes when all have answered, or with a quorum at the deadline, and nobody counts twice."""

import pytest

from federation.rounds import Declined, Disproved, Event, Replied, Round, Ticked, advance, open_round
from storage.errors import Misuse, Rejected

A, B, C = "aa", "bb", "cc"
INPUT = "11" * 32


def opened(quorum: int = 2, *, stop_on_bad: bool = False) -> Round:
    return open_round(1, INPUT, (A, B, C), quorum=quorum, deadline=100.0, stop_on_bad=stop_on_bad)


def replied(site: str, at: float = 10.0, update: str = "") -> Replied:
    return Replied(site, at, update or f"update-{site}", INPUT)


def after(state: Round, *events: Event) -> Round:
    for event in events:
        state = advance(state, event)
    return state


def test_a_round_waits_for_all_sites_and_closes_when_all_have_replied() -> None:
    state = after(opened(), replied(C), replied(A))
    assert (state.phase, state.waiting) == ("open", (B,))
    assert after(state, replied(B)).phase == "closed"


def test_updates_are_folded_in_the_plans_order_not_in_the_order_they_came() -> None:
    assert after(opened(), replied(C), replied(B), replied(A)).folded == (A, B, C)


def test_at_the_deadline_a_quorum_closes_the_round() -> None:
    state = after(opened(), replied(C), replied(A))
    assert advance(state, Ticked(99.9)).phase == "open"
    closed = advance(state, Ticked(100.0))
    assert (closed.phase, closed.folded) == ("closed", (A, C))


def test_at_the_deadline_fewer_than_the_quorum_fail_the_round() -> None:
    assert after(opened(), replied(C), Ticked(100.0)).phase == "failed"


def test_a_round_whose_quorum_is_out_of_reach_fails_without_waiting() -> None:
    state = after(opened(), Declined(A, 5.0, "E_CONSENT"))
    assert (state.phase, dict(state.declined)) == ("open", {A: "E_CONSENT"})
    assert after(state, Declined(B, 6.0, "E_NODE")).phase == "failed"


def test_all_answers_with_a_quorum_close_the_round_though_one_site_declined() -> None:
    assert after(opened(), replied(A), Declined(B, 6.0, "E_CONSENT"), replied(C)).folded == (A, C)


def test_a_late_reply_is_noted_once_and_left_out() -> None:
    closed = after(opened(), replied(A), replied(B), Ticked(100.0))
    late = after(closed, replied(C, 101.0), replied(C, 102.0))
    assert (late.phase, late.folded, late.late) == ("closed", (A, B), (C,))


def test_a_reply_at_the_deadline_is_late_even_if_no_clock_ticked_before() -> None:
    state = after(opened(), replied(A), replied(B), replied(C, 100.0))
    assert (state.phase, state.folded, state.late) == ("closed", (A, B), (C,))


def test_the_same_reply_again_changes_nothing() -> None:
    state = after(opened(), replied(A))
    assert advance(state, replied(A, 50.0)) == state
    closed = after(state, replied(B), replied(C))
    assert advance(closed, replied(A, 150.0)) == closed


def test_another_update_of_a_site_that_has_replied_is_refused() -> None:
    state = after(opened(), replied(A))
    with pytest.raises(Rejected) as caught:
        advance(state, replied(A, update="other"))
    assert caught.value.code == "E_ROUND_REPLY"


def test_a_reply_from_other_weights_or_another_site_is_refused() -> None:
    with pytest.raises(Rejected) as caught:
        advance(opened(), Replied(A, 1.0, "update", "22" * 32))
    assert caught.value.code == "E_ROUND_INPUT"
    with pytest.raises(Rejected) as caught:
        advance(opened(), replied("dd"))
    assert caught.value.code == "E_ROUND_SITE"


def test_a_site_that_was_given_up_may_come_back_while_the_round_is_open() -> None:
    state = after(opened(), Declined(A, 5.0, "E_NODE"), replied(A))
    assert (dict(state.declined), state.folded) == ({}, (A,))


def test_a_site_that_has_replied_cannot_decline() -> None:
    with pytest.raises(Rejected):
        after(opened(), replied(A), Declined(A, 11.0, "E_NODE"))


def test_a_lying_update_is_left_out_when_the_quorum_stands_without_it() -> None:
    closed = after(opened(), replied(A), replied(B), replied(C))
    state = advance(closed, Disproved(B, 20.0, "E_NOT_FINITE"))
    assert (state.phase, state.folded, dict(state.disproved)) == ("closed", (A, C), {B: "E_NOT_FINITE"})


def test_a_lying_update_fails_the_round_when_the_quorum_falls_without_it() -> None:
    closed = after(opened(), replied(A), replied(B), Ticked(100.0))
    assert advance(closed, Disproved(B, 101.0, "E_LAYOUT")).phase == "failed"


def test_a_lying_update_fails_the_round_where_the_plan_says_stop() -> None:
    state = after(opened(1, stop_on_bad=True), replied(A), replied(B))
    assert after(state, Disproved(A, 20.0, "E_LAYOUT"), replied(C)).phase == "failed"


def test_a_site_whose_update_was_disproved_cannot_reply_again() -> None:
    state = after(opened(1), replied(A), Disproved(A, 20.0, "E_LAYOUT"))
    with pytest.raises(Rejected):
        advance(state, replied(A, update="better"))


def test_a_failed_round_never_closes() -> None:
    failed = after(opened(3), Declined(A, 5.0, "E_CONSENT"))
    assert after(failed, replied(B), replied(C), Ticked(200.0)).phase == "failed"


def test_an_update_that_nobody_sent_cannot_be_disproved() -> None:
    with pytest.raises(Misuse):
        advance(opened(), Disproved(A, 1.0, "E_LAYOUT"))


@pytest.mark.parametrize(
    ("number", "sites", "quorum"), [(0, (A,), 1), (1, (), 1), (1, (A, A), 1), (1, (A,), 2), (1, (A,), 0)]
)
def test_a_round_that_cannot_be_is_not_opened(number: int, sites: tuple[str, ...], quorum: int) -> None:
    with pytest.raises(Misuse):
        open_round(number, INPUT, sites, quorum=quorum, deadline=1.0)
