"""What a site says under its name: a receipt for what it has done, a refusal for what it will not do.

Each is signed once, written into the site's ledger before anybody hears of it, and brought into the hub's
log; after a crash the same paper is sent again. ``federation.agent`` decides which of the two it is.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from federation.consents import Consent
from federation.figures import FIGURES_FILE
from federation.harmonising import STATISTICS_FILE
from federation.home import Home
from federation.ledger import Answer, KeptRefusal, SiteLedger
from federation.measuring import statistics_of_order
from federation.messages import OrderReply, RefusalNote
from federation.orders import Order, told
from federation.reaching import ON_THE_WAY
from federation.site_log import SiteLog, outward
from federation.wire import Upload, UploadRequest
from storage.encoding import sha256_hex
from storage.errors import FedhubError, Rejected, Unchecked
from storage.signing import open_envelope
from storage.statements import read_statement

if TYPE_CHECKING:
    from federation.client import HubClient

# Codes of what may pass by itself: the hub or its store is away, the disk is full.
PASSING = frozenset(
    {
        *ON_THE_WAY,
        "E_HUB_UNREACHABLE",
        "E_HUB_ANSWER",
        "E_HUB_FULL",
        "E_STORE_UNREACHABLE",
        "E_UPLOAD_CHECKING",
        "E_BUSY",
        "E_DISK_FULL",
        "E_SITE_IO",
        "E_SITE_DISK",
        "E_TENSORS_WRITE",
    }
)
RECEIPT_FRESH_S = 480  # the hub admits a receipt within 10 minutes of its signing


class SiteWord:
    """Receipts and refusals of one home.

    Args:
        client: logged in with the site's snapshot key.
    """

    def __init__(
        self,
        home: Home,
        client: "HubClient",
        ledger: SiteLedger,
        log: SiteLog,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._home = home
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._log = log

    def receipt(
        self, order: Order, consent: Consent, answer: Answer, *, announces: UploadRequest | None = None
    ) -> tuple[str, bytes, Upload | None]:
        """The receipt of an answer, in the log: as it is there, as it was signed, or signed afresh.

        ``previous`` names the last receipt that the hub admitted; one that was not admitted in time is void,
        and the fresh one follows the same.

        Args:
            announces: the update that it speaks of, where it is to be sent.
        Returns:
            Its id and bundle, and the upload of an update that was announced with it now.
        """
        if answer.logged and answer.receipt_id is not None and answer.receipt is not None:
            return answer.receipt_id, answer.receipt, None
        bundle = answer.receipt if self._still_fresh(answer.receipt) else None
        if bundle is None:
            bundle = self._sign_receipt(order, consent, answer)
            self._ledger.save_receipt(answer, open_envelope(bundle).id, bundle, logged=False)
        files = {} if answer.figures is None else {FIGURES_FILE: answer.figures}
        record = self._client.post_statement(bundle, files, announces=announces)
        logged = record.bundle.encode()
        self._check_own_receipt(answer, logged, record.id)
        self._ledger.save_receipt(answer, record.id, logged, logged=True)
        return record.id, logged, record.upload

    def _sign_receipt(self, order: Order, consent: Consent, answer: Answer) -> bytes:
        last = self._ledger.last_answer(answer.plan, answer.dataset, answer.action, logged=True)
        members: dict[str, Any] = {
            "action": answer.action,
            "grant": consent.id,
            "plan": answer.plan,
            "round": answer.round,
            "input": answer.input,
            "examples": answer.examples,
        }
        if last is not None and last.receipt_id is not None:
            members["previous"] = last.receipt_id
        subjects = [("manifest.json", answer.dataset)]
        if answer.update_sha256 is not None:
            scaled_by = statistics_of_order(order.statement)
            subjects = [("update.safetensors", answer.update_sha256)]
            subjects += [] if scaled_by is None else [(STATISTICS_FILE, scaled_by)]
        if answer.figures is not None:
            subjects.append((FIGURES_FILE, sha256_hex(answer.figures)))
        return self._home.sign("receipt", subjects, members, now=int(self._clock()))

    def _still_fresh(self, bundle: bytes | None) -> bool:
        if bundle is None:
            return False
        return self._clock() - read_statement(open_envelope(bundle)).issued_at < RECEIPT_FRESH_S

    def _check_own_receipt(self, answer: Answer, bundle: bytes, receipt_id: str) -> None:
        """The receipt that the hub says is in the log says what this site did.

        Raises:
            Rejected: ``E_RECEIPT``: the hub answers with another paper.
        """
        envelope = open_envelope(bundle)
        statement = read_statement(envelope)
        says = statement.predicate
        found = (
            says.get("plan"),
            says.get("round"),
            says.get("action"),
            says.get("input"),
            statement.subject,
        )
        wanted = (
            answer.plan,
            answer.round,
            answer.action,
            answer.input,
            answer.update_sha256 or answer.dataset,
        )
        if envelope.id != receipt_id or found != wanted:
            raise Rejected("E_RECEIPT", f"round {answer.round}: the hub logged another receipt, {receipt_id}")

    def refusal(self, order: Order, error: FedhubError) -> OrderReply:
        """A signed no, in the ledger and, when the hub is there, in the log; unsigned without a key."""
        self._log.line(error, order.id)
        kept = self._ledger.refusal(order.id, error.code)
        if kept is None:
            members = {"order": order.id, "plan": order.plan, "round": order.round, "code": error.code}
            subjects = [("input.safetensors", order.input)]
            try:
                bundle = self._home.sign("refusal", subjects, members, now=int(self._clock()))
            except Unchecked as lost:
                self._log.tell(lost)
                said = outward(self._home, told(lost))[:2000]
                note = RefusalNote(code=lost.code, message=said, statement=None)
                return OrderReply(dataset=order.dataset, refusal=note)
            kept = KeptRefusal(
                order_id=order.id,
                code=error.code,
                plan=order.plan,
                dataset=order.dataset,
                round=order.round,
                message=told(error),
                refused_at=int(self._clock()),
                id=open_envelope(bundle).id,
                bundle=bundle,
                logged=False,
            )
            self._ledger.save_refusal(kept)
        if not kept.logged:
            with suppress(FedhubError):  # it stays in the ledger; the coordinator gets it with the reply
                self._client.post_statement(kept.bundle)
                self._ledger.refusal_logged(kept.id)
        note = RefusalNote(
            code=error.code,
            message=outward(self._home, told(error))[:2000],
            statement=kept.bundle.decode(),
            again=error.code in PASSING,
        )
        return OrderReply(dataset=order.dataset, refusal=note)
