"""Routes of runs, for owners, participants and those who watch; events as a list or as a stream (SSE)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from federation import wire
from hub.api.auth import CurrentActor, HubHere, ReadSession, WriteSession, actor_at_once
from hub.api.paging import Cursor, link_next
from hub.api.problems import responses
from hub.context import Hub
from hub.services import events, figures, runs
from hub.tables import RunRow

router = APIRouter(tags=["runs"])
LOOK_S = 0.5
QUIET_S = 15.0  # a comment at least this often, so that proxies keep the connection
STREAM_S = 280.0  # less than a token's life: who goes on watching logs in again
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events after the given one; a stream of them for `Accept: text/event-stream`",
        "content": {"text/event-stream": {}},
    }
}


@router.post("/runs", status_code=201, responses=responses(404, 409))
def start(hub: HubHere, session: WriteSession, actor: CurrentActor, request: wire.RunStart) -> wire.Run:
    """Start the one run of the caller's plan; a repeat answers with the run that is there."""
    return runs.start(hub, session, actor, request)


@router.get("/runs", responses=responses())
def page(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    request: Request,
    response: Response,
    cursor: Cursor = None,
) -> list[wire.Run]:
    """The runs that the caller owns or takes part in, newest first; each with its newest round alone."""
    found, following = runs.page(hub, session, actor, cursor=cursor, newest=1)
    link_next(request, response, following)
    return found


@router.get("/runs/{plan}", responses=responses(404))
def show(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    plan: str,
    newest: Annotated[int | None, Query(ge=0, le=1000, description="At most so many rounds")] = None,
    before: Annotated[int | None, Query(ge=1, lt=1 << 31, description="Rounds before this one")] = None,
) -> wire.Run:
    """A plan's run: state, its newest rounds with what each site measured, refusals, and why it stopped.

    At most as many rounds as a page of a list has items; `before` reaches the earlier ones.
    """
    return runs.show(hub, session, actor, plan, newest=newest, before=before)


@router.post("/runs/{plan}/cancel", responses=responses(404, 409))
def cancel(hub: HubHere, session: WriteSession, actor: CurrentActor, plan: str) -> wire.Run:
    """End the caller's run for good; its last aggregate is kept."""
    return runs.cancel(hub, session, actor, plan)


@router.post("/runs/{plan}/resume", responses=responses(404, 409))
def resume(hub: HubHere, session: WriteSession, actor: CurrentActor, plan: str) -> wire.Run:
    """Go on with a stopped run from its last aggregate."""
    return runs.resume(hub, session, actor, plan)


@router.get("/runs/{plan}/weights/{sha256}", response_model=wire.WeightsLocation, responses=responses(404))
def weights(hub: HubHere, request: Request, plan: str, sha256: str) -> Response:
    """Where weights of a run can be read now: for its owner, consenting participants and the coordinator."""
    del plan, sha256  # read from the request: ``hub.api.quick`` calls the same
    return weights_answer(hub, request)


def weights_answer(hub: Hub, request: Request, brief: bool = True) -> Response:
    """The answer to a request for weights; it is always brief (``hub.api.quick``)."""
    del brief
    plan, sha256 = request.path_params["plan"], request.path_params["sha256"]
    with hub.database.glance() as glance:
        actor = actor_at_once(request, hub, glance)
        found = runs.weights(hub, glance, actor, plan, sha256)
    return Response(found.model_dump_json(), media_type="application/json")


@router.get("/runs/{plan}/statistics", responses=responses(404))
def joint_statistics(
    hub: HubHere, session: ReadSession, actor: CurrentActor, plan: str
) -> wire.JointStatistics:
    """By what all sites scale their rows; for the plan's owner and auditors with what each site told."""
    return figures.statistics(hub, session, actor, plan)


@router.get("/runs/{plan}/report", responses=responses(404))
def report(hub: HubHere, session: ReadSession, actor: CurrentActor, plan: str) -> wire.BenefitReport:
    """What the run brought each site: its own model beside the shared one, from signed receipts."""
    return figures.report(hub, session, actor, plan)


@router.get("/runs/{plan}/events", response_model=list[wire.Event], responses={**STREAM, **responses(404)})
def run_events(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    request: Request,
    plan: str,
    after: Annotated[int, Query(ge=0, lt=1 << 53)] = 0,
) -> object:
    """What happened in a run after event `after`: a list, or a stream that ends when the run has ended."""
    runs.readable(session, actor, plan)
    if "text/event-stream" not in request.headers.get("accept", ""):
        return events.read(session, plan, after=after)
    last = request.headers.get("last-event-id", "")
    start = int(last) if last.isascii() and last.isdigit() and len(last) <= 15 else after
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(hub, plan, start), media_type="text/event-stream", headers=headers)


async def _stream(hub: Hub, plan: str, after: int) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + STREAM_S
    spoke_at = loop.time()
    while loop.time() < ends_at:
        found, active = await run_in_threadpool(_look, hub, plan, after)
        for event in found:
            yield f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
            after, spoke_at = event.id, loop.time()
        if not found and not active:
            yield "event: end\ndata: {}\n\n"
            return
        if loop.time() - spoke_at > QUIET_S:
            yield ": still here\n\n"
            spoke_at = loop.time()
        await asyncio.sleep(LOOK_S)


def _look(hub: Hub, plan: str, after: int) -> tuple[list[wire.Event], bool]:
    with hub.database.session_scope(write=False) as session:
        run = session.get(RunRow, plan)
        return events.read(session, plan, after=after), run is not None and run.active
