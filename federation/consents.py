"""Which consent in the home's own folder lets a plan use a dataset, and what it still allows.

Consents and revocations are read from the home alone: a hub that withholds or invents one changes nothing.
    The checks follow trust.md, 'Conditions'; an unknown condition cannot occur, since no grant with one can
    be read.
"""

from dataclasses import dataclass
from decimal import Decimal

from federation.home import Home
from federation.plan import TrainingPlan
from storage.encoding import format_time, parse_decimal, parse_time
from storage.errors import Refused, Rejected
from storage.signing import check_signature, open_envelope
from storage.statements import Statement

# What each action needs of a consent.
NEEDS = {"train": "train", "statistics": "train", "evaluate": "evaluate"}


@dataclass(frozen=True)
class Consent:
    """A grant of the dataset's owner that names one plan.

    Attributes:
        id: statement id. ``dataset``: asset id it is about. ``grantee``: who may propose the rounds.
        not_before, expires: seconds since 1970.
    """

    id: str
    plan: str
    dataset: str
    grantee: str
    actions: tuple[str, ...]
    not_before: int
    expires: int
    code: str | None
    max_rounds: int | None
    min_participants: int | None
    epsilon: Decimal | None
    delta: Decimal | None


def find_consent(home: Home, plan: str, dataset: str, action: str, *, now: float) -> Consent:
    """The newest own consent that allows ``action`` on ``dataset`` under ``plan`` at this moment.

    Raises:
        Refused: ``E_CONSENT``: there is none, or none for this action or time; ``E_REVOKED``: it was taken
            back.
    """
    own = _own(home)
    revoked = {
        statement.subject
        for statement in own
        if statement.kind == "revocation" and statement.predicate["target"] == "statement"
    }
    reasons: list[tuple[str, str]] = []
    found: list[tuple[int, Consent]] = []
    for statement in own:
        if statement.kind != "grant":
            continue
        consent = _consent(statement)
        if consent is None or (consent.plan, consent.dataset) != (plan, dataset):
            continue
        reason = _unusable(consent, action, now, revoked)
        if reason is None:
            found.append((statement.issued_at, consent))
        else:
            reasons.append(reason)
    if found:
        return max(found, key=lambda pair: pair[0])[1]
    if reasons:
        code, text = reasons[-1]
        raise Refused(code, text, f"the data steward decides: fedhub site approve {plan[:12]}")
    raise Refused(
        "E_CONSENT",
        f"{home.institution} has not consented to plan {plan} for dataset {dataset}",
        f"the data steward decides: fedhub plan show {plan[:12]}, then fedhub site approve {plan[:12]}",
    )


def check_plan_allowed(
    home: Home, consent: Consent, plan: TrainingPlan, round_number: int, *, now: float
) -> None:
    """Return only when plan and round are within the consent, and the plan within itself.

    Raises:
        Refused: ``E_CONSENT``, ``E_PLAN``, ``E_PLAN_EXPIRED``, ``E_BUDGET``.
    """
    site = plan.site(consent.dataset)
    if site is None or site.institution != home.institution:
        raise Refused(
            "E_PLAN", f"plan {plan.id} does not name {home.institution} with dataset {consent.dataset}"
        )
    if now >= plan.expires:
        raise Refused(
            "E_PLAN_EXPIRED",
            f"plan {plan.id} expired at {format_time(plan.expires)}",
            "its owner makes a new plan",
        )
    if round_number > plan.rounds:
        raise Refused("E_PLAN", f"round {round_number}: plan {plan.id} has {plan.rounds} rounds")
    if consent.grantee != plan.issuer:
        raise Refused(
            "E_CONSENT", f"consent {consent.id} is for {consent.grantee}, the plan is {plan.issuer}'s"
        )
    if consent.code is not None and consent.code != plan.code:
        raise Refused(
            "E_CONSENT", f"consent {consent.id} is for code {consent.code}, the plan names {plan.code}"
        )
    if consent.max_rounds is not None and round_number > consent.max_rounds:
        raise Refused(
            "E_CONSENT", f"round {round_number}: consent {consent.id} ends after round {consent.max_rounds}"
        )
    if consent.min_participants is not None and plan.min_participants < consent.min_participants:
        raise Refused(
            "E_CONSENT",
            f"plan {plan.id} promises {plan.min_participants} participants in each round, "
            f"consent {consent.id} asks for {consent.min_participants}",
        )
    if consent.epsilon is not None or plan.epsilon is not None:
        # Without a mechanism nothing bounds the loss, so no ceiling can be kept: refuse before data is read.
        raise Refused(
            "E_BUDGET",
            f"plan {plan.id} is bounded by epsilon, and recipe {plan.config.recipe} has no privacy mechanism",
            "use a recipe that accounts for its epsilon, or a plan and a consent without one",
        )


def _own(home: Home) -> list[Statement]:
    """Own grants and revocations whose signatures hold; a file slipped in is no decision of ours."""
    ring = home.ring
    found = []
    for statement, raw in home.statements():
        if (
            statement.kind not in ("grant", "revocation")
            or statement.issuer != home.institution
            or statement.predicate["hub"] != home.hub
        ):
            continue
        envelope = open_envelope(raw)
        keys = [version.roles["targets"].get(envelope.hint) for version in ring.versions.values()]
        key = next((key for key in keys if key is not None), None)
        if key is None:
            continue
        try:
            check_signature(key, envelope)
        except Rejected:
            continue
        found.append(statement)
    return found


def _consent(statement: Statement) -> Consent | None:
    says = statement.predicate
    conditions = says["conditions"]
    if "plan" not in conditions or "parent" in says:
        return None
    epsilon, delta = conditions.get("epsilon"), conditions.get("delta")
    return Consent(
        id=statement.id,
        plan=conditions["plan"],
        dataset=statement.subject,
        grantee=says["grantee"],
        actions=tuple(says["actions"]),
        not_before=parse_time(says["notBefore"]),
        expires=parse_time(says["expires"]),
        code=conditions.get("code"),
        max_rounds=conditions.get("maxRounds"),
        min_participants=conditions.get("minParticipants"),
        epsilon=None if epsilon is None else parse_decimal(epsilon),
        delta=None if delta is None else parse_decimal(delta),
    )


def _unusable(consent: Consent, action: str, now: float, revoked: set[str]) -> tuple[str, str] | None:
    """Code and reason why a consent does not allow an action now, or None."""
    if consent.id in revoked:
        return "E_REVOKED", f"consent {consent.id} was revoked by this institution"
    if NEEDS[action] not in consent.actions:
        return "E_CONSENT", f"consent {consent.id} allows {', '.join(consent.actions)}, not to {action}"
    if now < consent.not_before:
        return "E_CONSENT", f"consent {consent.id} begins at {format_time(consent.not_before)}"
    if now >= consent.expires:
        return "E_CONSENT", f"consent {consent.id} ended at {format_time(consent.expires)}"
    return None
