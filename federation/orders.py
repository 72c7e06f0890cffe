"""The hub's signed order to a site, and what a site checks of it before it looks at anything else.

An order is believed when the operator's ring, under the pin in the site's own ``trust.json``, signs it; when
it says what the message that brought it says; and while its time lasts. Whether the site may do what it says
is ``consents``; doing it is ``agent``.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.home import Home
from federation.messages import OrderMessage
from storage.encoding import format_time, parse_time
from storage.errors import FedhubError, Rejected, Unchecked
from storage.keyring import KeyRing
from storage.signing import Envelope, check_signature, open_envelope
from storage.statements import Statement, read_statement

if TYPE_CHECKING:
    from federation.client import HubClient

CLOCK_S = 300  # how far the hub's clock may be ahead of ours
REFRESH_S = 600  # how long a ring is used before the hub is asked whether it has grown


@dataclass(frozen=True)
class Order:
    """An order that reads as one; ``OrderDesk.check`` says whether it is to be believed.

    Attributes:
        id: digest of its PAE. ``dataset``: asset id of the site's dataset.
        deadline: seconds since 1970.
    """

    id: str
    plan: str
    dataset: str
    action: str
    round: int
    input: str
    deadline: int
    statement: Statement
    envelope: Envelope


def read_order(bundle: str) -> Order:
    """An order by its form alone, signed by whomever.

    Raises:
        Rejected: ``E_BUNDLE``, ``E_STATEMENT``, ``E_KIND``: it is none.
    """
    envelope = open_envelope(bundle.encode())
    statement = read_statement(envelope)
    if statement.kind != "order":
        raise Rejected("E_KIND", f"statement {statement.id}: expected an order, found a {statement.kind}")
    says = statement.predicate
    return Order(
        id=statement.id,
        plan=says["plan"],
        dataset=says["site"],
        action=says["action"],
        round=says["round"],
        input=says["input"],
        deadline=parse_time(says["deadline"], "E_ORDER"),
        statement=statement,
        envelope=envelope,
    )


class OrderDesk:
    """Checks orders for one home."""

    def __init__(self, home: Home, client: "HubClient", *, clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._client = client
        self._clock = clock
        self._refreshed_at = float("-inf")

    def check(self, order: Order, message: OrderMessage) -> None:
        """Return only when this is the operator's order for what the message says, and in time.

        Raises:
            Rejected: ``E_ISSUER``, ``E_HUB``, ``E_KEY_UNKNOWN``, ``E_SIGNATURE``, ``E_ORDER``,
                ``E_ORDER_LATE``, ``E_TIME``; the ring does not lead back to the pin (``E_KEYRING``).
            Refused: the home does not pin the operator. Unchecked: no ring of the operator can be had.
        """
        operator = self._home.trust.operator
        if order.statement.issuer != operator:
            raise Rejected(
                "E_ISSUER",
                f"order {order.id}: issued by {order.statement.issuer}, the operator here is {operator}",
            )
        if order.statement.predicate["hub"] != self._home.hub:
            hub = order.statement.predicate["hub"]
            raise Rejected(
                "E_HUB", f"order {order.id}: for the hub {hub}, this site belongs to {self._home.hub}"
            )
        self._check_signature(order, operator)
        self._check_message(order, message)
        self._check_time(order)

    def _check_signature(self, order: Order, operator: str) -> None:
        ring = self._ring(operator)
        key = ring.newest.roles["snapshot"].get(order.envelope.hint)
        if key is None:
            key = self._ring(operator, fresh=True).newest.roles["snapshot"].get(order.envelope.hint)
        if key is None:
            raise Rejected(
                "E_KEY_UNKNOWN",
                f"order {order.id}: key {order.envelope.hint[:12]} is no snapshot key of {operator}'s "
                "newest ring",
                "ask the operator whether the hub's key was rotated",
            )
        check_signature(key, order.envelope)

    def _ring(self, operator: str, *, fresh: bool = False) -> KeyRing:
        """The operator's ring as kept here, asked for again from time to time: a removed key then ends."""
        if fresh or self._clock() - self._refreshed_at > REFRESH_S:
            try:
                ring = self._home.ring_of(operator, self._client)
            except Unchecked:  # the hub is away: what is kept here was checked against the pin as well
                return self._home.ring_of(operator)
            self._refreshed_at = self._clock()
            return ring
        return self._home.ring_of(operator)

    def _check_message(self, order: Order, message: OrderMessage) -> None:
        pairs = {
            "plan": (order.plan, message.plan),
            "round": (order.round, message.round),
            "action": (order.action, message.action),
            "input": (order.input, message.input.sha256),
            "deadline": (format_time(order.deadline), message.deadline),
        }
        for name, (signed, said) in pairs.items():
            if signed != said:
                raise Rejected("E_ORDER", f"order {order.id}: {name} is {signed}, the message says {said}")

    def _check_time(self, order: Order) -> None:
        now = self._clock()
        if now >= order.deadline:
            late = format_time(order.deadline)
            raise Rejected("E_ORDER_LATE", f"order {order.id}: its deadline was {late}", "compare the clocks")
        if order.statement.issued_at > now + CLOCK_S:
            ahead = format_time(order.statement.issued_at)
            raise Rejected(
                "E_TIME", f"order {order.id}: issued at {ahead}, which is yet to come", "compare the clocks"
            )


def told(error: FedhubError) -> str:
    """One cause, and who can mend it, in one text: the same at site, hub and command line."""
    return f"{error.message}; {error.hint}" if error.hint else error.message
