"""One round at the coordinator: orders out, answers in, updates fetched and checked as they land, then one
aggregate.

The rules of a round are ``federation.rounds``'s, pure; this is where time, network and files come in. Reading
order: ``RoundDesk.run``.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.aggregation import SiteUpdate, check_update, site_weight
from federation.closing import Closing, Stopped, Taken
from federation.delivery import Addressed, Delivery, find_lost, send_due
from federation.errors import UpdateRejected
from federation.messages import (
    InputReference,
    OrderMessage,
    OrderReply,
    ReceiptReference,
    UpdateReference,
    read_message,
)
from federation.plan import Config
from federation.rounds import Declined, Disproved, Event, Replied, Round, Ticked, advance, open_round
from federation.tensors import Layout, layout_of, unfinished
from federation.wire import OrdersRequest, WeightsLocation, Work, WorkSite
from storage.encoding import format_time
from storage.errors import FedhubError, Refused, Rejected
from storage.signing import open_envelope
from storage.statements import read_statement

if TYPE_CHECKING:
    from federation.coordination import Coordinator

POLL_S = 0.05
GATHER_S = 0.004  # for each site in flight: answers of many are taken, and asked about, several at once
GATHER_MOST_S = 0.2
LOOK_S = 1.0  # how often SuperLink is asked which nodes are connected, while a site does not answer
AGAIN_S = 5.0  # pause before a site that could not is asked again
GONE_S = 60.0  # how long a round that has its quorum waits for a site that is not connected
GONE_BEFORE_S = 2.0  # the same, for a site that was already gone in the round before
_log = logging.getLogger("fedhub.coordinator")


@dataclass
class SiteState(Addressed):
    """One site within one round."""

    reply: OrderReply | None = None
    replied_s: float = 0.0
    fetch: "Future[Path] | None" = None
    path: Path | None = None


class Weights:
    """The weights that a round begins with: fetched in the background, or made here by the round before."""

    def __init__(
        self, coordinator: "Coordinator", location: WeightsLocation, path: Path | None = None
    ) -> None:
        self.sha256 = location.sha256
        self.size = location.size
        self._layout: Layout | None = None
        self._path = path
        self._coming: Future[Path] | None = None
        if path is None:
            target = coordinator.space("weights") / f"{location.sha256}.safetensors"
            self._coming = coordinator.fetchers.submit(coordinator.fetch, location, target)

    @property
    def path(self) -> Path:
        """The file; waits until it is there."""
        if self._path is None:
            assert self._coming is not None
            self._path = self._coming.result()
        return self._path

    @property
    def layout(self) -> Layout:
        """Its tensors; every update must have the same."""
        if self._layout is None:
            self._layout = layout_of(self.path)
        return self._layout


class RoundDesk:
    """One round: from the orders to the hub's signed statement."""

    def __init__(
        self,
        coordinator: "Coordinator",
        work: Work,
        config: Config,
        closing: Closing,
        number: int,
        weights: Weights,
    ) -> None:
        self._run = coordinator
        self._work = work
        self._config = config
        self._closing = closing
        self._number = number
        self._weights = weights
        self._began = coordinator.clock()
        self._deadline = math.ceil(self._began) + config.round_deadline_s  # never less than the plan says
        self._looked_at = time.monotonic()
        self._names = _names(work.sites)
        self._sites: dict[str, SiteState] = {}
        self._accepted: list[tuple[SiteState, UpdateReference, ReceiptReference]] = []
        self.state = self._open()

    def run(self) -> Weights:
        """Wait for the sites, aggregate, upload, report; the weights that the next round begins with.

        Raises:
            Stopped: the quorum cannot be met, or a bad update stops the run.
        """
        while self.state.phase == "open":
            self._send()
            self._collect(self._patience())
            self._look()
            self._settle_fetches(wait=False)
            self._apply(Ticked(self._run.clock()))
        self._settle_fetches(wait=True)
        self._note_late()
        while True:
            self._check_phase()
            try:
                return self._close()
            except UpdateRejected as error:
                self._disprove(error.site, error)
            except Rejected as error:
                raise Stopped(error.code, f"round {self._number}: {error.message}") from error

    # --- orders -------------------------------------------------------------------------------------------

    def _open(self) -> Round:
        """Orders for all sites, and the round that waits for them.

        Raises:
            Stopped: fewer sites than the quorum consent to this round.
        """
        request = OrdersRequest(
            attempt=self._run.attempt,
            round=self._number,
            action="train",
            input=self._weights.sha256,
            deadline=format_time(self._deadline),
        )
        orders = self._run.client.orders(self._run.plan, request).orders
        sites = [site for site in self._work.sites if site.dataset in orders]
        if len(sites) < self._config.quorum:
            raise Stopped(
                "E_RUN_QUORUM",
                f"quorum not met: {len(sites)} sites may take part in round {self._number}, "
                f"the plan asks for {self._config.quorum}",
            )
        self._sites = {site.dataset: SiteState(site, orders[site.dataset]) for site in sites}
        return open_round(
            self._number,
            self._weights.sha256,
            tuple(self._sites),
            quorum=self._config.quorum,
            deadline=float(self._deadline),
            stop_on_bad=self._config.bad_update == "stop",
        )

    def _send(self) -> None:
        """Orders to every site that has none in flight and is to be asked now."""
        waiting = [self._sites[dataset] for dataset in self.state.waiting]
        send_due(self._run.exchange, waiting, self._text, self._gone)

    def _text(self, one: SiteState) -> str:
        message = OrderMessage(
            plan=self._run.plan,
            round=self._number,
            action="train",
            input=InputReference(sha256=self._weights.sha256, size=self._weights.size),
            deadline=format_time(self._deadline),
            order=one.order,
        )
        return message.model_dump_json()

    def _gone(self, one: SiteState) -> None:
        """The site's node is not connected: say so once, ask again, and do not wait for it for ever."""
        now = time.monotonic()
        one.message = None
        one.ask_at = now + LOOK_S
        if one.gone_since is None:
            one.gone_since = now
            self._tell("site.unreachable", one, {"code": "E_SITE_GONE"})
        known = one.site.dataset in self._run.gone
        if now - one.gone_since >= (GONE_BEFORE_S if known else GONE_S) and self._spared(one):
            self._run.gone.add(one.site.dataset)
            self._apply(Declined(one.site.dataset, self._run.clock(), "E_SITE_GONE"))

    def _spared(self, one: SiteState) -> bool:
        """Whether the quorum can be met without this site."""
        others = set(self.state.waiting) - {one.site.dataset}
        return len(self.state.replies) + len(others) >= self.state.quorum

    # --- answers ------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        """How long to wait for answers at once: short while something else is to be done."""
        busy = any(one.fetch is not None for one in self._sites.values())
        left = max(0.0, self.state.deadline - self._run.clock())
        return min(POLL_S if busy else LOOK_S, left)

    def _collect(self, wait_s: float) -> None:
        flying = {one.message: one for one in self._sites.values() if one.message is not None}
        wanted = [*flying, *self._run.late]
        if not wanted:
            time.sleep(min(wait_s, POLL_S))
            return
        time.sleep(min(GATHER_MOST_S, GATHER_S * len(flying)))
        for delivery in self._run.exchange.collect(wanted, wait_s=wait_s):
            if delivery.message in self._run.late:
                number, site = self._run.late.pop(delivery.message)
                self._run.telling.tell(
                    "site.late", {"institution": site.institution, "round": number, "code": "E_LATE"}
                )
            elif (one := flying.pop(delivery.message, None)) is not None:  # a message is answered once
                self._answered(one, delivery)
        self._locate()

    def _answered(self, one: SiteState, delivery: Delivery) -> None:
        one.message = None
        if delivery.text is None:
            _log.warning("%s: %s", self._names[one.site.dataset], delivery.problem)
            self._gone(one)
            return
        try:
            reply = read_message(delivery.text, OrderReply)
            if reply.refusal is not None:
                self._refused(one, reply)
                return
            self._accept(one, reply)
        except Rejected as error:
            self._leave_out(one, error)

    def _refused(self, one: SiteState, reply: OrderReply) -> None:
        note = reply.refusal
        assert note is not None
        if note.again and self._run.clock() + AGAIN_S < self.state.deadline:
            one.ask_at = time.monotonic() + AGAIN_S
            self._tell("site.unreachable", one, {"code": note.code, "message": note.message})
            return
        self._tell("site.left-out", one, {"code": note.code, "message": note.message})
        self._apply(Declined(one.site.dataset, self._run.clock(), note.code))

    def _accept(self, one: SiteState, reply: OrderReply) -> None:
        """Take a reply at its word, and begin to find out whether the update is what it says.

        Raises:
            Rejected: it says nothing that could be folded in.
        """
        dataset = one.site.dataset
        if reply.dataset != dataset:
            raise Rejected(
                "E_REPLY", f"reply of {one.site.institution}: it speaks for the dataset {reply.dataset}"
            )
        if reply.update is None or reply.receipt is None:
            raise Rejected("E_REPLY", f"reply of {one.site.institution}: an update or its receipt is missing")
        limit = 2 * self._weights.size + (1 << 20)
        if reply.update.size > limit:
            raise Rejected(
                "E_UPDATE_SIZE",
                f"update of {one.site.institution}: {reply.update.size} bytes, at most {limit} can be right",
            )
        site_weight(dataset, reply.examples, self._config.weighting, self._config.max_examples)
        self._check_receipt(one, reply, reply.receipt)
        self._apply(Replied(dataset, self._run.clock(), reply.update.sha256, self._weights.sha256))
        if dataset not in self.state.replies:
            return
        one.reply = reply
        one.replied_s = self._run.clock() - self._began
        self._accepted.append((one, reply.update, reply.receipt))

    def _locate(self) -> None:
        """Ask the hub once where all updates lie that were accepted meanwhile, and begin to fetch them."""
        if not self._accepted:
            return
        accepted, self._accepted = self._accepted, []
        found = self._run.client.updates(self._run.plan, [update.sha256 for _, update, _ in accepted])
        for one, update, receipt in accepted:
            location = found.get(update.sha256)
            one.fetch = self._run.fetchers.submit(self._fetch_update, one, update, receipt, location)

    def _check_receipt(self, one: SiteState, reply: OrderReply, reference: ReceiptReference) -> None:
        """The receipt says what the reply says, of this round; the hub tells later whether it is logged.

        Raises:
            Rejected: ``E_RECEIPT``: it is of another round, plan, input, update or site, as an old one is.
        """
        receipt = read_statement(open_envelope(reference.bundle.encode()))
        assert reply.update is not None
        says = receipt.predicate if receipt.kind == "receipt" else {}
        for name, expected, found in (
            ("kind", "receipt", receipt.kind),
            ("id", reference.id, receipt.id),
            ("plan", self._run.plan, says.get("plan")),
            ("round", self._number, says.get("round")),
            ("action", "train", says.get("action")),
            ("input", self._weights.sha256, says.get("input")),
            ("update", reply.update.sha256, receipt.subject),
            ("examples", reply.examples, says.get("examples")),
            ("issuer", one.site.institution, says.get("issuer")),
        ):
            if expected != found:
                raise Rejected(
                    "E_RECEIPT",
                    f"receipt of {one.site.institution}: its {name} should be {expected}, it is {found}",
                )

    def _fetch_update(
        self,
        one: SiteState,
        update: UpdateReference,
        receipt: ReceiptReference,
        location: WeightsLocation | None,
    ) -> Path:
        """The update, fetched and checked alone; runs in a thread beside the loop."""
        if location is None:
            raise Rejected("E_NOT_FOUND", f"update of {one.site.institution}: it is not in the store")
        if location.size != update.size:
            raise Rejected("E_REPLY", f"update of {one.site.institution}: its size is not that of the upload")
        if receipt.id not in location.receipts:
            raise Rejected(
                "E_RECEIPT", f"update of {one.site.institution}: the receipt that was sent is not in the log"
            )
        path = self._run.find(location) or self._bring(one, location)
        check_update(
            one.site.dataset,
            path,
            self._weights.layout,
            size=update.size,
            compression=self._config.compression,
        )
        return path

    def _bring(self, one: SiteState, location: WeightsLocation) -> Path:
        """A copy of the update; it is written over the one of an older round."""
        # A folder for each site: two may send the same bytes, which are fetched under a name of their digest.
        folder = self._run.space("updates", one.site.dataset)
        path = folder / f"{self._number}.safetensors"
        return self._run.fetch(location, path, next(folder.glob("*.safetensors"), None))

    def _settle_fetches(self, *, wait: bool) -> None:
        for one in self._sites.values():
            if one.fetch is None or not (wait or one.fetch.done()):
                continue
            coming, one.fetch = one.fetch, None
            try:
                one.path = coming.result()
            except (Rejected, Refused) as error:  # anything else is our own trouble
                self._disprove(one.site.dataset, error)
            else:
                assert one.reply is not None
                self._run.gone.discard(one.site.dataset)
                figures = {"seconds": round(one.replied_s, 3), "examples": one.reply.examples}
                self._tell("site.replied", one, {**figures, **one.reply.metrics})

    # --- rules --------------------------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        self.state = advance(self.state, event)

    def _leave_out(self, one: SiteState, error: FedhubError) -> None:
        """A reply that cannot be used: the site's answer stands as a no."""
        self._tell("site.left-out", one, {"code": error.code, "message": error.message})
        if self._config.bad_update == "stop":
            who = self._names[one.site.dataset]
            raise Stopped(error.code, f"round {self._number}: {who}: {error.message}")
        if one.site.dataset in self.state.waiting:
            self._apply(Declined(one.site.dataset, self._run.clock(), error.code))

    def _disprove(self, dataset: str, error: FedhubError) -> None:
        one = self._sites[dataset]
        self._tell("site.left-out", one, {"code": error.code, "message": error.message})
        if dataset in self.state.replies:
            self._apply(Disproved(dataset, self._run.clock(), error.code))

    def _check_phase(self) -> None:
        state = self.state
        if state.phase == "failed" or len(state.folded) < state.quorum:
            bad = {**state.declined, **state.disproved}
            reasons = [f"{self._names[dataset]} {code}" for dataset, code in bad.items()]
            silent = "did not answer" if self._overdue() else "was no longer waited for"
            reasons += [f"{self._names[dataset]} {silent}" for dataset in state.waiting]
            if state.stop_on_bad and state.disproved:
                code = next(iter(state.disproved.values()))
                why = f"round {self._number}: a bad update stops the run: {', '.join(reasons)}"
                raise Stopped(code, why)
            raise Stopped(
                "E_RUN_QUORUM",
                f"quorum not met in round {self._number}: {len(state.folded)} of {state.quorum} sites; "
                + ", ".join(reasons),
            )

    def _look(self) -> None:
        """From time to time: find sites whose agents have gone or come back."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S or self.state.phase != "open":
            return
        self._looked_at = now
        waiting = [self._sites[dataset] for dataset in self.state.waiting]
        find_lost(self._run.exchange, waiting, self._gone)

    def _note_late(self) -> None:
        """Sites that have not answered: said now, and again if their answers still come.

        A round that fails before its deadline makes nobody late.
        """
        if not self._overdue():
            return
        for dataset in self.state.waiting:
            one = self._sites[dataset]
            self._tell("site.late", one, {"code": "E_LATE"})
            if one.gone_since is not None:  # the next round is not to wait its whole deadline again
                self._run.gone.add(dataset)
            if one.message is not None:
                self._run.late[one.message] = (self._number, one.site)

    def _overdue(self) -> bool:
        return self._run.clock() >= self._deadline

    # --- closing ------------------------------------------------------------------------------------------

    def _close(self) -> Weights:
        """Fold in, upload, report."""
        out = self._made(self._number)
        result = self._closing.close(
            self._number,
            self._weights.path,
            self._weights.sha256,
            [self._taken(dataset) for dataset in self.state.folded],
            out,
            began=self._began,
        )
        self._weights.path.replace(unfinished(self._made(self._number + 1)))
        location = WeightsLocation(sha256=result.sha256, size=result.size, url="")
        return Weights(self._run, location, out)

    def _made(self, number: int) -> Path:
        """Where the aggregate of a round goes; the next one's is written over the weights before it."""
        return self._run.space("weights") / f"round-{number}.safetensors"

    def _taken(self, dataset: str) -> Taken:
        one = self._sites[dataset]
        assert one.reply is not None and one.reply.receipt is not None and one.path is not None
        weight = site_weight(dataset, one.reply.examples, self._config.weighting, self._config.max_examples)
        update = SiteUpdate(dataset, one.path, weight)
        return Taken(self._names[dataset], update, one.reply, one.reply.receipt.id)

    def _tell(self, kind: str, one: SiteState, data: Mapping[str, str | int | float | None]) -> None:
        about: dict[str, str | int | float | None] = {
            "institution": self._names[one.site.dataset],
            "round": self._number,
        }
        self._run.telling.tell(kind, {**about, **data})


def _names(sites: Sequence[WorkSite]) -> dict[str, str]:
    """How people call each site, by dataset: its institution, with the dataset when it brings several."""
    owners = [site.institution for site in sites]
    return {
        site.dataset: site.institution
        if owners.count(site.institution) == 1
        else f"{site.institution}/{site.dataset[:12]}"
        for site in sites
    }
