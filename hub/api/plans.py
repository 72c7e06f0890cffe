"""Routes of training plans."""

from fastapi import APIRouter, Request, Response

from federation import wire
from hub.api.auth import CurrentActor, HubHere, ReadSession, WriteSession
from hub.api.paging import Cursor, link_next
from hub.api.problems import responses
from hub.services import plans

router = APIRouter(tags=["plans"])


@router.post("/plans", status_code=201, responses=responses(409, 413))
def submit(hub: HubHere, session: WriteSession, actor: CurrentActor, request: wire.PlanPost) -> wire.Plan:
    """Log a signed plan with the recipe and config that it names."""
    return plans.submit(hub, session, actor, request)


@router.get("/plans", responses=responses())
def page(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    request: Request,
    response: Response,
    cursor: Cursor = None,
) -> list[wire.Plan]:
    """The plans that the caller owns or takes part in, in log order."""
    found, following = plans.page(hub, session, actor, cursor=cursor)
    link_next(request, response, following)
    return found


@router.get("/plans/{plan}", responses=responses(404))
def read(hub: HubHere, session: ReadSession, actor: CurrentActor, plan: str) -> wire.Plan:
    """One plan with each participant's consent or refusal."""
    return plans.read(hub, session, actor, plan)


@router.post("/plans/{plan}/decline", responses=responses(404))
def decline(
    hub: HubHere, session: WriteSession, actor: CurrentActor, plan: str, request: wire.Decline
) -> wire.Plan:
    """Say no to a plan, with a reason that its owner sees; a later consent takes it back."""
    return plans.decline(hub, session, actor, plan, request)
