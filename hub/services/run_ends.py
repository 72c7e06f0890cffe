"""What the supervisor asks of a run whose attempts end: is it done, and which refusals are not told yet?"""

from sqlmodel import Session

from hub.context import Hub
from hub.services import events, plans
from hub.services.events import Kind
from hub.services.rounds import last_round
from hub.tables import RunRow

REPORT_ATTEMPTS = 1  # attempts that may fail before a run ends without its report


def is_done(hub: Hub, session: Session, plan_id: str) -> bool:
    """Whether all rounds of the plan are closed, and the sites were asked for the report that it promises."""
    with hub.ledger.evidence(session) as evidence:
        plan = evidence.get(plan_id)
    last = last_round(session, plan_id)
    if plan is None or last is None or last.round < plan.says["rounds"]:
        return False
    if not plans.load(hub, session, plan_id)[2].config.report:
        return True
    # An attempt that died before the sites told what the run brought them is followed by one more, not many.
    run = session.get(RunRow, plan_id)
    told = events.newest(session, plan_id, Kind.EVALUATED) is not None
    return told or run is None or run.failures > REPORT_ATTEMPTS


def new_refusals(hub: Hub, session: Session, plan_id: str) -> list[dict[str, events.Value]]:
    """What the events do not tell yet of the signed refusals of a run's sites, in log order."""
    with hub.ledger.evidence(session) as evidence:
        logged = evidence.find("refusal", plan=plan_id)
    if not logged:
        return []
    told = {event.data.get("statement") for event in events.of_kind(session, plan_id, Kind.SITE_REFUSED)}
    return [
        {
            "institution": entry.institution,
            "round": entry.says["round"],
            "code": entry.says["code"],
            "statement": entry.id,
        }
        for entry in logged
        if entry.id not in told
    ]
