"""Consents: grants by which an owner of data says yes to one plan, and to nothing else.

A consent is a grant with a ``plan`` condition and no parent, issued by the owner of a participating dataset
to the plan's issuer, and logged after the plan. The rules here ask whether a consent fits its plan; whether
it is valid at a moment is asked in ``grants``.
"""

from storage.errors import Rejected
from storage.evidence import Entry, Evidence
from storage.statements import Statement


def plan_terms(plan: Statement) -> set[tuple[str, str]]:
    """The (institution, dataset) pairs that take part in a plan."""
    return {(entry["institution"], entry["dataset"]) for entry in plan.predicate["participants"]}


def participants(plan: Statement) -> set[str]:
    """The institutions that take part in a plan."""
    return {institution for institution, _ in plan_terms(plan)}


def check_fits_plan(consent: Statement, consent_issuer: str, plan: Statement, plan_issuer: str) -> None:
    """Refuse a grant that is no consent of its issuer to exactly this plan.

    Raises:
        Rejected: ``E_CONSENT`` (no consent to this plan), ``E_PLAN`` (the plan is not what was consented to).
    """
    what, conditions = f"consent {consent.id[:12]} of {consent_issuer}", consent.predicate["conditions"]
    if conditions.get("plan") != plan.id or "parent" in consent.predicate:
        raise Rejected("E_CONSENT", f"{what}: no consent to plan {plan.id[:12]}")
    if consent.predicate["grantee"] != plan_issuer:
        raise Rejected(
            "E_CONSENT", f"{what}: given to {consent.predicate['grantee']}, the plan is {plan_issuer}'s"
        )
    if (consent_issuer, consent.subject) not in plan_terms(plan):
        raise Rejected(
            "E_PLAN", f"{what}: plan {plan.id[:12]} does not list its dataset {consent.subject[:12]}"
        )
    if conditions.get("code", plan.subject) != plan.subject:
        raise Rejected("E_PLAN", f"{what}: allows code {conditions['code']}, the plan runs {plan.subject}")
    least, promised = conditions.get("minParticipants", 1), plan.predicate["minParticipants"]
    if not least <= promised <= len(plan.predicate["participants"]):
        raise Rejected("E_PLAN", f"{what}: asks for {least} participants, the plan promises {promised}")


def plan_of_consent(evidence: Evidence, consent: Entry) -> Entry:
    """The plan that a logged consent fits.

    Raises:
        Rejected: ``E_PLAN`` (the plan is not here before the consent), and those of ``check_fits_plan``.
    """
    plan_id = consent.says["conditions"].get("plan")
    if plan_id is None:
        raise Rejected("E_CONSENT", f"{consent}: names no plan, so it is no consent")
    plan = evidence.standing(plan_id, "plan")
    if plan is None or plan.index >= consent.index:
        raise Rejected("E_PLAN", f"{consent}: plan {plan_id[:12]} is not logged before it, or not here")
    check_fits_plan(consent.statement, consent.institution, plan.statement, plan.institution)
    return plan
