"""Step V14: receipts and round statements. Was every round that counts covered by consents, in order?

What counts: the receipts that a round statement lists, and those of pulls, evaluations and statistics. Other
receipts are reported as not counted, so that posting one cannot spoil a pack. A receipt is held to the rules
of its own moment and log index: a consent that is withdrawn later leaves earlier rounds valid.

Read ``check_record`` for the order of the checks, then ``check_receipt`` and ``check_round``, which the hub
asks about one statement that is to come next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from storage.consents import plan_of_consent
from storage.encoding import parse_decimal, parse_time
from storage.errors import Rejected
from storage.evidence import Entry, Evidence
from storage.grants import check_grant
from storage.keys_in_force import check_not_revoked
from storage.kinds import STATISTICS

# the action of a grant that each action of a receipt needs
NEEDED_ACTION = {"evaluate": "evaluate", "pull": "pull", "statistics": "train", "train": "train"}

ChainKey = tuple[str | None, str, str]


@dataclass(frozen=True)
class Record:
    """What V14 found to hold.

    Attributes:
        counted: receipts that were checked, in log order.
        not_counted: receipts that no round statement lists.
        rounds: plan id -> its round statements, in order.
    """

    counted: tuple[Entry, ...] = ()
    not_counted: tuple[Entry, ...] = ()
    rounds: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)


def check_record(evidence: Evidence) -> Record:
    """Step V14 for all that is here.

    Raises:
        Rejected: ``E_RECEIPT_GRANT``, ``E_RECEIPT_ISSUER``, ``E_REVOKED``, ``E_CONSENT``, ``E_PLAN``,
            ``E_BUDGET``, ``E_RECEIPT_CHAIN``, ``E_PARTICIPANTS``, ``E_ROUND_CHAIN``; ``E_ISSUER`` for a round
            statement that is not the operator's; those of V13 for the grants that receipts name.
    """
    rounds = evidence.find("round")
    for entry in rounds:
        check_round_issuer(evidence, entry)
    listed = {receipt for entry in rounds for receipt in entry.says["receipts"]}
    counted: list[Entry] = []
    others: list[Entry] = []
    for receipt in evidence.find("receipt"):
        counts = receipt.id in listed or receipt.says["action"] in ("pull", "evaluate", "statistics")
        (counted if counts else others).append(receipt)
    last: dict[ChainKey, Entry] = {}
    for receipt in counted:
        check_receipt(evidence, receipt)
        if receipt.says["action"] != "pull":
            key = chain_key(evidence, receipt)
            check_receipt_chain(evidence, receipt, last.get(key))
            last[key] = receipt
    by_plan: dict[str, list[Entry]] = {}
    for entry in rounds:
        before = by_plan.setdefault(entry.says["plan"], [])
        check_round(evidence, entry, before[-1] if before else None)
        before.append(entry)
    return Record(tuple(counted), tuple(others), {plan: tuple(found) for plan, found in by_plan.items()})


# --- receipts -----------------------------------------------------------------------------------------------


def check_receipt(evidence: Evidence, receipt: Entry) -> None:
    """One receipt against its grant, plan and ceilings, at its own moment and index; not yet its chain.

    Raises:
        Rejected: ``E_RECEIPT_GRANT``, ``E_RECEIPT_ISSUER``, ``E_CONSENT``, ``E_REVOKED``, ``E_PLAN``,
            ``E_BUDGET``, and those of V13.
    """
    action = receipt.says["action"]
    grant = evidence.standing(receipt.says["grant"], "grant")
    if grant is None or grant.index >= receipt.index:
        raise Rejected(
            "E_RECEIPT_GRANT",
            f"{receipt}: grant {receipt.says['grant'][:12]} is not logged before it, or not here",
        )
    if NEEDED_ACTION[action] not in grant.says["actions"]:
        raise Rejected("E_RECEIPT_GRANT", f"{receipt}: {grant} does not allow {NEEDED_ACTION[action]}")
    if action != "train" and receipt.subject != grant.subject:
        raise Rejected(
            "E_RECEIPT_GRANT",
            f"{receipt}: about {receipt.subject[:12]}, {grant} is about {grant.subject[:12]}",
        )
    if action == "pull" and receipt.institution != evidence.operator:
        raise Rejected("E_RECEIPT_ISSUER", f"{receipt}: receipts of pulls are {evidence.operator}'s to sign")
    if action != "pull" and receipt.institution != grant.institution:
        raise Rejected(
            "E_CONSENT", f"{receipt}: leans on {grant}, which is no consent of {receipt.institution}"
        )
    check_grant(evidence, grant, at=receipt.statement.issued_at, index=receipt.index)
    if action != "pull":
        _check_under_consent(evidence, receipt, grant)


def _check_under_consent(evidence: Evidence, receipt: Entry, consent: Entry) -> None:
    says, conditions = receipt.says, consent.says["conditions"]
    if conditions.get("plan") is None or "parent" in consent.says:
        raise Rejected("E_CONSENT", f"{receipt}: {consent} is no consent to a plan")
    plan = evidence.standing(says["plan"], "plan")
    if plan is None or plan.index >= consent.index:
        raise Rejected("E_PLAN", f"{receipt}: plan {says['plan'][:12]} is not logged before its consent")
    if conditions["plan"] != plan.id:
        raise Rejected("E_CONSENT", f"{receipt}: {consent} is to plan {conditions['plan'][:12]}")
    plan_of_consent(evidence, consent)
    if receipt.statement.issued_at >= parse_time(plan.says["expires"]):
        raise Rejected("E_PLAN", f"{receipt}: issued after the plan expired at {plan.says['expires']}")
    check_not_revoked(evidence, plan, index=receipt.index)
    most = min(plan.says["rounds"], conditions.get("maxRounds", plan.says["rounds"]))
    if says["round"] > most:
        raise Rejected("E_BUDGET", f"{receipt}: round {says['round']}, plan and consent allow {most}")
    for limit, holder in ((conditions, consent), (plan.says, plan)):
        _check_ceiling(receipt, limit, str(holder))


def _check_ceiling(receipt: Entry, limit: Mapping[str, str], holder: str) -> None:
    if "epsilon" not in limit:
        return
    for name in ("epsilon", "delta"):
        spent = receipt.says.get(name)
        if spent is None:
            raise Rejected("E_BUDGET", f"{receipt}: states no {name}, {holder} has the ceiling {limit[name]}")
        if parse_decimal(spent) > parse_decimal(limit[name]):
            raise Rejected("E_BUDGET", f"{receipt}: {name} {spent}, {holder} allows {limit[name]}")


def chain_key(evidence: Evidence, receipt: Entry) -> ChainKey:
    """Receipts under a consent form one chain for each plan, dataset and action."""
    consent = evidence.standing(receipt.says["grant"], "grant")
    return receipt.says.get("plan"), consent.subject if consent else "", receipt.says["action"]


def chain_before(evidence: Evidence, receipt: Entry) -> list[Entry]:
    """The logged receipts that a further one continues, in log order.

    They are all of its issuer, since ``check_receipt`` lets nobody answer under another one's consent.
    """
    key = chain_key(evidence, receipt)
    found = evidence.find("receipt", plan=key[0], issuer=receipt.institution)
    return [one for one in found if chain_key(evidence, one) == key]


def check_receipt_chain(evidence: Evidence, receipt: Entry, last: Entry | None) -> None:
    """Following ``previous`` from a receipt leads to ``last``, the one that counted before it in its chain.

    Receipts between the two, that no round lists, are links as good as any: what they spent is in the sum.

    Raises:
        Rejected: ``E_RECEIPT_CHAIN``, ``E_BUDGET`` (the cumulative epsilon fell).
    """
    key, link = chain_key(evidence, receipt), receipt
    while "previous" in link.says:
        before = evidence.standing(link.says["previous"], "receipt")
        if before is None or before.index >= link.index or before.institution != receipt.institution:
            raise Rejected(
                "E_RECEIPT_CHAIN", f"{link}: the receipt before it, {link.says['previous'][:12]}, is not here"
            )
        if chain_key(evidence, before) != key:
            raise Rejected("E_RECEIPT_CHAIN", f"{link}: {before} is of another plan, dataset or action")
        if before.says["round"] >= link.says["round"]:
            raise Rejected(
                "E_RECEIPT_CHAIN",
                f"{link}: round {link.says['round']} follows round {before.says['round']}",
            )
        _check_grows(before, link)
        if last is not None and before.id == last.id:
            return
        link = before
    if last is not None:
        raise Rejected("E_RECEIPT_CHAIN", f"{receipt}: does not continue {last} of the same plan and dataset")


def _check_grows(before: Entry, link: Entry) -> None:
    for name in ("epsilon", "delta"):
        spent = before.says.get(name)
        if spent is not None and (
            name not in link.says or parse_decimal(link.says[name]) < parse_decimal(spent)
        ):
            raise Rejected(
                "E_BUDGET", f"{link}: cumulative {name} {link.says.get(name)} is below {spent} of {before}"
            )


# --- rounds -------------------------------------------------------------------------------------------------


def check_round_issuer(evidence: Evidence, entry: Entry) -> None:
    """Round statements are the operator's word.

    Raises:
        Rejected: ``E_ISSUER``.
    """
    if entry.institution != evidence.operator:
        raise Rejected("E_ISSUER", f"{entry}: round statements are {evidence.operator}'s to sign", step="V14")


def check_round(evidence: Evidence, entry: Entry, before: Entry | None) -> None:
    """One round statement against its plan, its receipts (checked before) and the round before.

    Args:
        before: the plan's round statement before this one in the log.
    Raises:
        Rejected: ``E_PLAN``, ``E_REVOKED``, ``E_ROUND_CHAIN``, ``E_PARTICIPANTS``.
    """
    check_round_issuer(evidence, entry)
    says = entry.says
    plan = evidence.standing(says["plan"], "plan")
    if plan is None or plan.index >= entry.index:
        raise Rejected("E_PLAN", f"{entry}: plan {says['plan'][:12]} is not logged before it, or not here")
    check_not_revoked(evidence, plan, index=entry.index)
    number = before.says["round"] + 1 if before else 1
    if says["round"] != number or says.get("previous") != (before.id if before else None):
        raise Rejected(
            "E_ROUND_CHAIN",
            f"{entry}: round {says['round']} of plan {plan.id[:12]}, expected round {number} after "
            f"{before.id[:12] if before else 'none'}",
        )
    if says["round"] > plan.says["rounds"]:
        raise Rejected("E_ROUND_CHAIN", f"{entry}: round {says['round']}, the plan has {plan.says['rounds']}")
    _check_input(evidence, entry, plan, before)
    sites = {_check_listed(evidence, entry, receipt) for receipt in says["receipts"]}
    if len(sites) != len(says["receipts"]):
        raise Rejected("E_PARTICIPANTS", f"{entry}: a site is counted twice")
    if len(sites) < plan.says["minParticipants"]:
        raise Rejected(
            "E_PARTICIPANTS",
            f"{entry}: {len(sites)} participants, the plan promises {plan.says['minParticipants']}",
        )
    if before is not None and statistics_of(before) != statistics_of(entry):
        raise Rejected("E_ROUND_CHAIN", f"{entry}: rows are scaled by other statistics than in {before}")


def statistics_of(entry: Entry) -> str | None:
    """Digest of the joint statistics that a round or a train receipt names; None when it names none."""
    subjects = entry.statement.subjects
    return subjects[1].digest if len(subjects) > 1 and subjects[1].name == STATISTICS else None


def _check_input(evidence: Evidence, entry: Entry, plan: Entry, before: Entry | None) -> None:
    if before is not None:
        if entry.says["input"] != before.subject:
            raise Rejected(
                "E_ROUND_CHAIN",
                f"{entry}: starts from {entry.says['input'][:12]}, {before} ended with {before.subject[:12]}",
            )
        return
    base = evidence.manifests.get(plan.statement.subjects[1].digest)
    if base is not None and entry.says["input"] not in {file.sha256 for file in base.files}:
        raise Rejected(
            "E_ROUND_CHAIN", f"{entry}: started from {entry.says['input'][:12]}, no file of {base.name}"
        )


def _check_listed(evidence: Evidence, entry: Entry, receipt_id: str) -> str:
    """The dataset of a receipt that a round statement may list."""
    receipt = evidence.standing(receipt_id, "receipt")
    if receipt is None or receipt.index >= entry.index:
        raise Rejected(
            "E_PARTICIPANTS", f"{entry}: receipt {receipt_id[:12]} is not logged before it, or not here"
        )
    says = receipt.says
    found = (says["action"], says.get("plan"), says.get("round"), says.get("input"))
    if found != ("train", entry.says["plan"], entry.says["round"], entry.says["input"]):
        raise Rejected(
            "E_PARTICIPANTS", f"{entry}: lists {receipt}, which is of another plan, round, input or action"
        )
    if statistics_of(receipt) != statistics_of(entry):
        raise Rejected(
            "E_PARTICIPANTS", f"{entry}: lists {receipt}, which scaled its rows by other statistics"
        )
    return chain_key(evidence, receipt)[1]


# --- what the hub asks before a run -------------------------------------------------------------------------


def valid_consent(
    evidence: Evidence, plan: Entry, institution: str, dataset: str, *, now: int, action: str = "train"
) -> Entry | None:
    """The newest consent of a participant to a plan that allows ``action`` now (seconds since 1970)."""
    for consent in reversed(evidence.find("grant", plan=plan.id, subject=dataset, issuer=institution)):
        if action not in consent.says["actions"]:
            continue
        try:
            plan_of_consent(evidence, consent)
            check_grant(evidence, consent, at=now, index=None)
        except Rejected:
            continue
        return consent
    return None


def consents_to(
    evidence: Evidence, plan: Entry, *, now: int, action: str = "train"
) -> dict[tuple[str, str], Entry | None]:
    """(institution, dataset) of each participant -> its consent that is valid now, or None."""
    pairs: Sequence[tuple[str, str]] = [
        (entry["institution"], entry["dataset"]) for entry in plan.says["participants"]
    ]
    return {pair: valid_consent(evidence, plan, *pair, now=now, action=action) for pair in pairs}


def check_startable(evidence: Evidence, plan_id: str, *, now: int) -> dict[tuple[str, str], Entry | None]:
    """The consents to a plan that may be run now: it stands, it has not expired, enough participants agree.

    Raises:
        Rejected: ``E_PLAN``, ``E_REVOKED``, ``E_CONSENT``.
    """
    plan = evidence.standing(plan_id, "plan")
    if plan is None:
        raise Rejected("E_PLAN", f"plan {plan_id[:12]}: no such plan is logged")
    if now >= parse_time(plan.says["expires"]):
        raise Rejected("E_PLAN", f"{plan}: expired {plan.says['expires']}", "submit a new plan")
    check_not_revoked(evidence, plan)
    consents = consents_to(evidence, plan, now=now)
    agreed = [pair for pair, consent in consents.items() if consent]
    if len(agreed) < plan.says["minParticipants"]:
        waiting = ", ".join(institution for (institution, _), consent in consents.items() if not consent)
        raise Rejected(
            "E_CONSENT",
            f"{plan}: {len(agreed)} participants consent, it needs {plan.says['minParticipants']}",
            f"waiting for {waiting}",
        )
    return consents
