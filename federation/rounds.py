"""How one round moves: a state, an event, and the next state or an error. Pure: no clock, no network, no
files.

A round is open until every site has answered or the deadline has passed; then it is closed when the quorum
was reached, else failed. It fails early when the quorum is out of reach. The caller brings the events, logs
them, and acts on the phase. A reply is what the site says; whether its update is what it says is found out
later, by fetching it: ``Disproved`` takes it back.

Times are seconds since 1970. Sites are named by the asset id of the dataset they train on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from storage.errors import Misuse, Rejected

Phase = Literal["open", "closed", "failed"]


@dataclass(frozen=True)
class Replied:
    """A site says that its update is ready.

    Attributes:
        update: SHA-256 of the update; ``input``: of the weights that the site trained from.
    """

    site: str
    at: float
    update: str
    input: str


@dataclass(frozen=True)
class Declined:
    """A site has refused the order, or its node is gone: ``code`` says why.

    Not its last word: while the round is open it may come back and reply.
    """

    site: str
    at: float
    code: str


@dataclass(frozen=True)
class Disproved:
    """A site's update is not what its reply said, or breaks a rule of the aggregation: ``code`` says so."""

    site: str
    at: float
    code: str


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""

    at: float


Event = Replied | Declined | Disproved | Ticked


@dataclass(frozen=True)
class Round:
    """One round as far as it has come.

    Attributes:
        number: from 1. ``input``: SHA-256 of the weights it began with.
        sites: in the plan's order, which is the order updates are folded in.
        stop_on_bad: whether one disproved update fails the round ("stop"), rather than being left out.
        replies: update digest by site. ``declined``, ``disproved``: error code by site.
        late: sites that replied after the round had ended; their updates are not used.
    """

    number: int
    input: str
    sites: tuple[str, ...]
    quorum: int
    deadline: float
    stop_on_bad: bool = False
    phase: Phase = "open"
    replies: Mapping[str, str] = field(default_factory=dict)
    declined: Mapping[str, str] = field(default_factory=dict)
    disproved: Mapping[str, str] = field(default_factory=dict)
    late: tuple[str, ...] = ()

    @property
    def waiting(self) -> tuple[str, ...]:
        """Sites that have not answered yet, in the plan's order."""
        answered = {*self.replies, *self.declined, *self.disproved}
        return tuple(site for site in self.sites if site not in answered)

    @property
    def folded(self) -> tuple[str, ...]:
        """Sites whose updates go into the aggregate, in the order they are folded in."""
        return tuple(site for site in self.sites if site in self.replies)


def open_round(
    number: int,
    input_digest: str,
    sites: tuple[str, ...],
    *,
    quorum: int,
    deadline: float,
    stop_on_bad: bool = False,
) -> Round:
    """A round that waits for all its sites.

    Raises:
        Misuse: no sites, a site twice, or a quorum that they cannot reach.
    """
    if number < 1 or len(set(sites)) < len(sites) or not 1 <= quorum <= len(sites):
        raise Misuse("E_ROUND", f"round {number}: quorum {quorum} of {len(sites)} sites makes no round")
    return Round(number, input_digest, sites, quorum, deadline, stop_on_bad)


def advance(state: Round, event: Event) -> Round:
    """The round after one event.

    A reply that repeats itself changes nothing; one after the end is noted as late and left out.

    Raises:
        Rejected: ``E_ROUND_SITE``: not a site of this round; ``E_ROUND_INPUT``: the site trained from other
            weights; ``E_ROUND_REPLY``: the site has answered before and said something else. The state is as
            it was.
    """
    if isinstance(event, Ticked):
        return _settle(state, event.at)
    if event.site not in state.sites:
        raise Rejected("E_ROUND_SITE", f"round {state.number}: {event.site} is not one of its sites")
    if isinstance(event, Disproved):
        return _settle(_without(state, event), event.at)
    if isinstance(event, Declined):
        return _settle(_decline(state, event), event.at)
    # Time comes first: a reply that arrives after the deadline does not extend the round.
    return _settle(_reply(_settle(state, event.at), event), event.at)


def _reply(state: Round, event: Replied) -> Round:
    if event.input != state.input:
        raise Rejected(
            "E_ROUND_INPUT",
            f"round {state.number}: {event.site} trained from {event.input}, the input is {state.input}",
        )
    known = state.replies.get(event.site)
    if known == event.update:
        return state
    if known is not None or event.site in state.disproved:
        raise Rejected("E_ROUND_REPLY", f"round {state.number}: {event.site} has already replied otherwise")
    if state.phase != "open":
        return state if event.site in state.late else replace(state, late=(*state.late, event.site))
    declined = {site: code for site, code in state.declined.items() if site != event.site}
    return replace(state, replies={**state.replies, event.site: event.update}, declined=declined)


def _decline(state: Round, event: Declined) -> Round:
    if event.site in state.replies or event.site in state.disproved:
        raise Rejected("E_ROUND_REPLY", f"round {state.number}: {event.site} has already replied")
    if event.site in state.declined or state.phase != "open":
        return state
    return replace(state, declined={**state.declined, event.site: event.code})


def _without(state: Round, event: Disproved) -> Round:
    """The round without an update that was found bad, even once closed: its aggregate is not made yet."""
    if event.site not in state.replies:
        raise Misuse("E_ROUND", f"round {state.number}: {event.site} has no update to disprove")
    replies = {site: update for site, update in state.replies.items() if site != event.site}
    state = replace(state, replies=replies, disproved={**state.disproved, event.site: event.code})
    return replace(state, phase="failed") if state.stop_on_bad else state


def _settle(state: Round, now: float) -> Round:
    """Close or fail the round when its time or its answers say so."""
    if state.phase == "failed":
        return state
    replied, waiting = len(state.replies), len(state.waiting)
    over = state.phase == "closed" or not waiting or now >= state.deadline
    if replied + (0 if over else waiting) < state.quorum:
        return replace(state, phase="failed")
    return replace(state, phase="closed") if over else state
