"""Routes of the coordinator of a run, which proves itself by its own token."""

from fastapi import APIRouter, Response

from federation import wire
from hub.api.auth import Coordinator, HubHere, WriteSession
from hub.api.problems import responses
from hub.services import figures, rounds, runs

router = APIRouter(tags=["coordinator"])


@router.get("/runs/{plan}/work", responses=responses(404, 409))
def work(hub: HubHere, session: WriteSession, actor: Coordinator, plan: str) -> wire.Work:
    """All that the newest attempt needs to start, or to go on after the last closed round."""
    return rounds.work(hub, session, actor, plan)


@router.post("/runs/{plan}/orders", responses=responses(404, 409))
def orders(
    hub: HubHere, session: WriteSession, actor: Coordinator, plan: str, request: wire.OrdersRequest
) -> wire.Orders:
    """The hub's signed order to each consenting site, for one round."""
    return rounds.orders(hub, session, actor, plan, request)


@router.post("/runs/{plan}/updates", responses=responses())
def updates(hub: HubHere, actor: Coordinator, plan: str, request: wire.UpdatesRequest) -> wire.Updates:
    """Where updates of sites can be read now, each with its logged receipts; those not there are left out."""
    return runs.updates(hub, actor, plan, request.digests)


@router.post("/runs/{plan}/rounds", responses=responses(404, 409))
def report(hub: HubHere, actor: Coordinator, plan: str, request: wire.RoundReport) -> wire.StatementRecord:
    """Close a round: the hub checks its receipts, then signs and logs the round statement."""
    return rounds.report(hub, actor, plan, request)


@router.post("/runs/{plan}/statistics", responses=responses(404, 409))
def join_statistics(
    hub: HubHere, session: WriteSession, actor: Coordinator, plan: str, request: wire.StatisticsReport
) -> wire.JointStatistics:
    """Join what the sites told of their columns, by their receipts; once per run."""
    return figures.join_statistics(hub, session, actor, plan, request)


@router.post("/runs/{plan}/events", status_code=204, responses=responses(404, 409))
def tell(
    hub: HubHere, session: WriteSession, actor: Coordinator, plan: str, request: wire.EventReports
) -> Response:
    """Tell those who watch what happened; `coordinator.alive` only shows that the attempt lives."""
    rounds.tell(hub, session, actor, plan, request.reports)
    return Response(status_code=204)


@router.post("/runs/{plan}/end", responses=responses(404, 409))
def end(hub: HubHere, session: WriteSession, actor: Coordinator, plan: str, request: wire.RunEnd) -> wire.Run:
    """The run is over: all its rounds are closed, or it stops and says why."""
    return rounds.end(hub, session, actor, plan, request)
