"""Whatever happens in whatever order, a round keeps its promises."""

from hypothesis import given, settings
from hypothesis import strategies as st

from federation.rounds import Declined, Disproved, Event, Replied, Ticked, advance, open_round
from storage.errors import Misuse, Rejected

SITES = ("a", "b", "c", "d")
times = st.floats(0, 200)
sites = st.sampled_from(SITES)
events = st.one_of(
    st.builds(
        Replied, sites, times, st.sampled_from(("u", "v")), st.sampled_from(("in", "in", "in", "other"))
    ),
    st.builds(Declined, sites, times, st.just("E_X")),
    st.builds(Disproved, sites, times, st.just("E_Y")),
    st.builds(Ticked, times),
)


@settings(max_examples=400)
@given(st.integers(1, 4), st.booleans(), st.lists(events, max_size=14))
def test_a_round_keeps_its_promises_whatever_happens(quorum: int, stop: bool, happened: list[Event]) -> None:
    state = open_round(1, "in", SITES, quorum=quorum, deadline=100.0, stop_on_bad=stop)
    for event in happened:
        before = state
        try:
            state = advance(state, event)
        except (Rejected, Misuse):
            assert state == before
            continue
        answers = [set(state.replies), set(state.declined), set(state.disproved)]
        assert sum(map(len, answers)) == len(set().union(*answers))  # nobody counts twice
        assert len(state.folded) >= quorum or state.phase != "closed"
        assert not (before.phase == "failed" and state.phase != "failed")
        assert not (before.phase == "closed" and state.phase == "open")
        assert state.folded == tuple(site for site in SITES if site in state.replies)
        if before.phase == "closed":
            assert set(state.folded) <= set(before.folded)
        if event.at >= 100.0:
            assert state.phase != "open"
        if stop and state.disproved:
            assert state.phase == "failed"
