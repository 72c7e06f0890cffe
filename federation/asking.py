"""Questions to the sites that are no round of training: their column statistics, and what the run brought.

Orders go out, answers come in, each with a logged receipt; there is no update and nothing is folded in. A
site that is gone, late or refuses is left out by name, as in a round (``federation.round_desk``), and has
less time to come back: nobody's weights depend on it.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.closing import Stopped
from federation.delivery import Addressed, Delivery, find_lost, send_due
from federation.messages import Action, InputReference, OrderMessage, OrderReply, read_message
from federation.plan import Config
from federation.wire import OrdersRequest, StatisticsReport, Work
from storage.encoding import format_time
from storage.errors import Rejected
from storage.signing import open_envelope
from storage.statements import read_statement

if TYPE_CHECKING:
    from federation.coordination import Coordinator

POLL_S = 0.2
LOOK_S = 1.0
AGAIN_S = 5.0
GONE_S = 10.0  # how long a site that is not connected is waited for
EVALUATED = "round.evaluated"


@dataclass
class _Asked(Addressed):
    """One site and where its answer is."""

    receipt: str | None = None
    over: bool = False  # answered, or not to be waited for


class Question:
    """One action, asked of every site that may be asked.

    Args:
        number: the round that the orders name. weights: the digest and size of what they start from.
    """

    def __init__(
        self,
        run: "Coordinator",
        work: Work,
        config: Config,
        action: Action,
        number: int,
        weights: InputReference,
    ) -> None:
        self._run = run
        self._action: Action = action
        self._number = number
        self._weights = weights
        self._deadline = math.ceil(run.clock()) + config.round_deadline_s
        request = OrdersRequest(
            attempt=run.attempt,
            round=number,
            action=action,
            input=weights.sha256,
            deadline=format_time(self._deadline),
        )
        orders = run.client.orders(run.plan, request).orders
        self._sites = [_Asked(site, orders[site.dataset]) for site in work.sites if site.dataset in orders]

    def ask(self) -> list[str]:
        """Wait for the sites; the receipts of those that answered, in the plan's order."""
        looked_at = time.monotonic()
        while self._waiting() and self._run.clock() < self._deadline:
            send_due(self._run.exchange, self._waiting(), self._text, self._gone)
            self._collect()
            if time.monotonic() - looked_at >= LOOK_S:
                looked_at = time.monotonic()
                find_lost(self._run.exchange, self._waiting(), self._gone)
        for one in self._waiting():
            self._tell("site.late", one, {"code": "E_LATE"})
            if one.message is not None:
                self._run.late[one.message] = (self._number, one.site)
        return [one.receipt for one in self._sites if one.receipt is not None]

    def _waiting(self) -> list[_Asked]:
        return [one for one in self._sites if not one.over]

    def _text(self, one: _Asked) -> str:
        message = OrderMessage(
            plan=self._run.plan,
            round=self._number,
            action=self._action,
            input=self._weights,
            deadline=format_time(self._deadline),
            order=one.order,
        )
        return message.model_dump_json()

    def _gone(self, one: _Asked) -> None:
        now = time.monotonic()
        one.message, one.ask_at = None, now + LOOK_S
        if one.gone_since is None:
            one.gone_since = now
            self._tell("site.unreachable", one, {"code": "E_SITE_GONE"})
        one.over = now - one.gone_since >= (0 if one.site.dataset in self._run.gone else GONE_S)

    def _collect(self) -> None:
        flying = {one.message: one for one in self._waiting() if one.message is not None}
        if not flying:
            time.sleep(POLL_S)
            return
        for delivery in self._run.exchange.collect([*flying], wait_s=POLL_S):
            if delivery.message in flying:
                self._answered(flying[delivery.message], delivery)

    def _answered(self, one: _Asked, delivery: Delivery) -> None:
        one.message = None
        if delivery.text is None:
            self._gone(one)
            return
        try:
            reply = read_message(delivery.text, OrderReply)
            if reply.refusal is not None:
                again = reply.refusal.again and self._run.clock() + AGAIN_S < self._deadline
                kind = "site.unreachable" if again else "site.left-out"
                self._tell(kind, one, {"code": reply.refusal.code, "message": reply.refusal.message})
                one.ask_at, one.over = time.monotonic() + AGAIN_S, not again
                return
            one.receipt = self._receipt(one, reply)
        except Rejected as error:
            self._tell("site.left-out", one, {"code": error.code, "message": error.message})
        one.over = True

    def _receipt(self, one: _Asked, reply: OrderReply) -> str:
        """The id of the receipt, which says what was asked.

        Raises:
            Rejected: ``E_REPLY``, ``E_RECEIPT``.
        """
        who = one.site.institution
        if reply.dataset != one.site.dataset or reply.receipt is None or reply.update is not None:
            raise Rejected("E_REPLY", f"reply of {who}: expected a receipt of its dataset and no update")
        receipt = read_statement(open_envelope(reply.receipt.bundle.encode()))
        says = receipt.predicate if receipt.kind == "receipt" else {}
        found = tuple(says.get(name) for name in ("issuer", "plan", "round", "action", "input"))
        asked = (who, self._run.plan, self._number, self._action, self._weights.sha256)
        if found != asked or receipt.id != reply.receipt.id or receipt.subject != one.site.dataset:
            raise Rejected("E_RECEIPT", f"receipt of {who}: it is not about what was asked")
        return receipt.id

    def _tell(self, kind: str, one: _Asked, data: Mapping[str, str]) -> None:
        about: dict[str, str | int | float | None] = {
            "institution": one.site.institution,
            "round": self._number,
            "action": self._action,
        }
        self._run.telling.tell(kind, {**about, **data})


def harmonise(run: "Coordinator", work: Work, config: Config) -> None:
    """Have the sites' column statistics joined, before round 1, where the plan asks for them.

    Raises:
        Stopped: fewer sites told than the plan's quorum.
    """
    if config.harmonise is None or work.statistics is not None or work.next_round > 1:
        return
    weights = InputReference(sha256=work.input.sha256, size=work.input.size)
    receipts = Question(run, work, config, "statistics", 1, weights).ask()
    if len(receipts) < config.quorum:
        raise Stopped(
            "E_RUN_QUORUM",
            f"quorum not met: {len(receipts)} sites told the statistics for the joint scaling, "
            f"the plan asks for {config.quorum}",
        )
    try:
        run.client.join_statistics(run.plan, StatisticsReport(attempt=run.attempt, receipts=receipts))
    except Rejected as error:
        raise Stopped(error.code, f"the joint scaling: {error.message}") from error


def report(run: "Coordinator", work: Work, config: Config, weights: InputReference) -> None:
    """Ask every site what the run brought it, after the last round; the run ends whatever they answer."""
    if not config.report:
        return
    receipts: Sequence[str] = Question(run, work, config, "evaluate", work.rounds, weights).ask()
    data: dict[str, str | int | float | None] = {"round": work.rounds, "sites": len(receipts)}
    run.telling.tell(EVALUATED, data)
