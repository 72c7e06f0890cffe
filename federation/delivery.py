"""How a coordinator's texts reach sites and their answers come back, whatever carries them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from federation.wire import WorkSite


@dataclass(frozen=True)
class Delivery:
    """What came back for one text that was sent: an answer, or why there is none."""

    message: str
    text: str | None
    problem: str = ""


class Exchange(Protocol):
    """Carries texts to nodes and their answers back."""

    def send(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Send texts to node ids (decimal) and give the message id for each node that could be sent to."""

    def collect(self, messages: Sequence[str], *, wait_s: float) -> list[Delivery]:
        """The answers to these messages that have come by now, waiting up to ``wait_s`` for the first."""

    def connected(self) -> dict[str, str]:
        """Node ids that are connected, each with the time it connected, as text to be compared only."""


@dataclass
class Addressed:
    """One site to which an order goes, and what became of it."""

    site: WorkSite
    order: str
    message: str | None = None  # in flight
    connected_at: str | None = None  # when its node had connected, as the message went out
    gone_since: float | None = None  # monotonic time
    ask_at: float = 0.0  # not before this monotonic time


A = TypeVar("A", bound=Addressed)


def send_due(
    exchange: Exchange, sites: Iterable[A], text: Callable[[A], str], gone: Callable[[A], None]
) -> None:
    """Send to each site with nothing in flight that is to be asked now; ``gone`` hears whose node is away."""
    now = time.monotonic()
    due = [one for one in sites if one.message is None and one.ask_at <= now]
    if not due:
        return
    connected = exchange.connected()
    texts = {one.site.node_id: text(one) for one in due if one.site.node_id in connected}
    sent = exchange.send(texts) if texts else {}
    for one in due:
        one.message = sent.get(one.site.node_id)
        one.connected_at = connected.get(one.site.node_id)
        if one.message is None:
            gone(one)
        else:
            one.gone_since = None


def find_lost(exchange: Exchange, sites: Iterable[A], gone: Callable[[A], None]) -> None:
    """Find sites whose nodes have gone, and those that came back: these are asked again.

    An agent that started again has lost the order that its last life had received.
    """
    connected = exchange.connected()
    for one in sites:
        if one.message is None or connected.get(one.site.node_id) == one.connected_at:
            continue
        if one.site.node_id in connected:
            one.message, one.ask_at = None, 0.0
        else:
            gone(one)
