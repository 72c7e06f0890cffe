"""What stops or hinders a run, said once for the API, the command line and the pages.

The words come from the table of causes; what is said here is which code holds now. ``error`` is what ended
the run, or holds it up; ``of_sites`` what its sites told or were found to do, signed refusals first.
"""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from federation import wire
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.services import events
from hub.services.events import Kind
from hub.tables import ACTIVE_RUNS, PlanRow, RunRow, SiteRow
from storage.causes import cause_of, split_code

MOST = 60
_OF_SITES = (Kind.SITE_LEFT_OUT, Kind.SITE_LATE, Kind.SITE_UNREACHABLE)
# What a run does when it is not held up: whatever happened before is over.
_GOES_ON = (Kind.RUN_STARTED, Kind.ROUND_OPENED, Kind.ROUND_CLOSED, Kind.HARMONISED, Kind.EVALUATED)
_ENDED = {"cancelled": "E_CANCELLED", "stopped": "E_ATTEMPT_ENDED"}
_HELD_UP = {"sites": "E_SITES_AWAY", "SuperLink": "E_SUPERLINK_AWAY"}


def fault(
    code: str,
    message: str = "",
    *,
    site: str | None = None,
    round_number: int | None = None,
    statement: str | None = None,
) -> wire.Fault:
    """A code with its words."""
    found = cause_of(code)
    return wire.Fault(
        code=code,
        cause=found.cause,
        owner=found.owner,
        step=found.step,
        message=message,
        site=site,
        round=round_number,
        statement=statement,
    )


def error(session: Session, run: RunRow) -> wire.Fault | None:
    """What ended a run, or holds it up now; None when nothing does."""
    if run.state == "finished":
        return None
    if not run.active:
        code, rest = split_code(run.reason or "")
        return fault(code or _ENDED.get(run.state, "E_RUN"), rest.partition("\n")[0])
    found = events.newest_of(session, run.plan, (*_GOES_ON, Kind.WAITING, Kind.ATTEMPT_ENDED), 1)
    if not found or found[0].kind in _GOES_ON:
        return None
    last = found[0]
    told = last.data
    code, message = split_code(str(told.get("reason") or ""))
    if last.kind == Kind.ATTEMPT_ENDED:
        return fault(code or "E_ATTEMPT_ENDED", message)
    held = str(told.get("for"))
    if held == "sites":
        message = f"{told.get('online')} of the {told.get('needed')} sites that the plan needs are connected"
    return fault(code or _HELD_UP.get(held, "E_ATTEMPT_ENDED"), message)


def of_sites(session: Session, plan: str, refusals: Sequence[wire.SiteRefusal]) -> list[wire.Fault]:
    """Troubles of a run's sites, newest first; where a signed refusal says the same, it alone."""
    rows = events.newest_of(session, plan, _OF_SITES, MOST)
    told = {(each.round, each.institution, each.code): each.statement for each in refusals}
    found: dict[tuple[int | None, str, str], wire.Fault] = {}
    for row in rows:
        number, site = _number(row.data.get("round")), str(row.data.get("institution") or "")
        gone = row.kind == Kind.SITE_UNREACHABLE
        code = str(row.data.get("code") or ("E_SITE_GONE" if gone else "E_LATE"))
        message = str(row.data.get("message") or row.data.get("reason") or "")
        statement = told.pop((number or 0, site, code), None)
        key = (number, site, code)
        if key not in found:
            found[key] = fault(code, message, site=site, round_number=number, statement=statement)
        elif statement is not None:
            found[key] = found[key].model_copy(update={"statement": statement})
    signed = [
        fault(code, site=site, round_number=number, statement=statement)
        for (number, site, code), statement in told.items()
    ]
    return sorted([*found.values(), *signed], key=lambda one: -(one.round or 1 << 30))[:MOST]


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


# --- what a site tells of itself ----------------------------------------------------------------------------


def tell(hub: Hub, session: Session, actor: Actor, told: wire.SiteTrouble) -> None:
    """Note on every run that goes on with this site what keeps its agent from its work; a repeat changes
    nothing.

    Raises:
        Refused: ``E_ACCESS``.
    """
    decide(actor, "register site", Thing(told.name, actor.institution))
    institution = actor.institution or ""
    site = session.exec(
        select(SiteRow).where(SiteRow.institution == institution, SiteRow.name == told.name)
    ).first()
    others = select(SiteRow).where(SiteRow.institution == institution, SiteRow.online)
    if site is None and session.exec(others).first() is not None:
        return  # another machine of the institution does its work
    query = select(RunRow, PlanRow).join(PlanRow).where(col(RunRow.state).in_(ACTIVE_RUNS))
    for run, plan in session.exec(query).all():
        if institution in plan.participants and not _said_last(session, run.plan, institution, told):
            session.get(RunRow, run.plan, with_for_update=True)
            data: dict[str, events.Value] = {
                "institution": institution,
                "code": told.code,
                "message": told.message,
                "by": "site",
            }
            events.append(session, run.plan, Kind.SITE_UNREACHABLE, data, at=hub.ledger.now())


def _said_last(session: Session, plan: str, institution: str, told: wire.SiteTrouble) -> bool:
    """Whether the newest trouble of this site on the run is this one, from the site itself."""
    for row in events.newest_of(session, plan, (*_OF_SITES, Kind.SITE_REPLIED), MOST):
        if row.data.get("institution") == institution and (
            row.kind == Kind.SITE_REPLIED or row.data.get("by") == "site"
        ):
            return row.data.get("code") == told.code and row.data.get("message") == told.message
    return False
