"""Pages of runs: whole without JavaScript, kept in step by server-sent events with it.

A run's page is asked for again at each event, so it shows the newest rounds; those before are a link away.
"""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from markupsafe import Markup

from federation import wire
from federation.harmonising import Statistics, read_statistics
from federation.plan import read_config
from hub.access import Actor
from hub.api.auth import HubHere, ReadSession
from hub.context import Hub
from hub.services import dossiers, events, plans, runs, watching
from hub.services import figures as site_figures
from hub.services.events import Kind
from hub.web.charts import Curve, bar, draw, span
from hub.web.rendering import Visitor, page, sign_in_first

POLL_S = 0.4
QUIET_S = 15.0
STREAM_S = 300.0  # then the browser asks again, and who it is is looked at anew
LAST_EVENTS = 60
SHOWN = 20  # rounds of one page
ALL = "all sites"
# Of the metrics that sites send with their updates, those that are drawn. The round's input is the aggregate
# of the round before, so that its figures say how the shared model does on each site's own rows.
METRICS = (
    ("accuracy", "Accuracy"),
    ("input_accuracy", "Accuracy of the round's input"),
    ("loss", "Loss"),
    ("input_loss", "Loss of the round's input"),
)

router = APIRouter(include_in_schema=False)
Number = Annotated[int | None, Query(ge=1, lt=1 << 31)]


@router.get("/runs", response_class=HTMLResponse)
def run_list(
    request: Request, hub: HubHere, session: ReadSession, actor: Visitor, cursor: str | None = None
) -> Response:
    """Runs that the visitor may see, and plans that wait for one."""
    if not actor.known:
        return sign_in_first(request)
    found, following = runs.page(hub, session, actor, cursor=cursor, newest=1)
    waiting = [plan for plan in plans.page(hub, session, actor)[0] if plan.run is None]
    more = f"/runs?cursor={following}" if following else ""
    return page(request, hub, actor, "runs.html", runs=found, plans=waiting, more_at=more)


@router.get("/runs/{plan}", response_class=HTMLResponse)
def run_page(request: Request, hub: HubHere, session: ReadSession, actor: Visitor, plan: str) -> Response:
    """One run: curves, rounds, receipts, refusals, what happened, and its plan."""
    if not actor.known:
        return sign_in_first(request)
    described = plans.read(hub, session, actor, plan)
    if described.run is None:
        return RedirectResponse(f"/statements/{plan}", 303)
    values = _part(hub, session, actor, plan)
    return page(
        request,
        hub,
        actor,
        "run.html",
        plan=described,
        base=_base(hub, session, actor, described),
        setting=_setting(described),
        **values,
    )


@router.get("/runs/{plan}/part", response_class=HTMLResponse)
def run_part(request: Request, hub: HubHere, session: ReadSession, actor: Visitor, plan: str) -> Response:
    """The part of a run's page that changes while it runs."""
    return page(request, hub, actor, "run_part.html", **_part(hub, session, actor, plan))


@router.get("/runs/{plan}/rounds", response_class=HTMLResponse)
def earlier_rounds(
    request: Request, hub: HubHere, session: ReadSession, actor: Visitor, plan: str, before: Number = None
) -> Response:
    """Rounds of a run before this one, newest first, with all that their sites measured."""
    if not actor.known:
        return sign_in_first(request)
    run = runs.show(hub, session, actor, plan, newest=SHOWN, before=before)
    over = watching.sums(session, plan)
    return page(
        request, hub, actor, "rounds.html", run=run, whole=True, tall=False, **_rounds(session, run, over)
    )


# --- what a page shows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What the plan's config.json says that a watcher wants to know; ``app``: digest of a lab's own code."""

    code: str
    app: str | None
    strategy: str
    quorum: int
    deadline: int
    compression: str


def _setting(plan: wire.Plan) -> Setting:
    config = read_config(base64.b64decode(plan.config))
    return Setting(
        code=config.recipe if config.app is None else f"app, {config.app.size:,} B",
        app=None if config.app is None else config.app.sha256,
        strategy=config.strategy,
        quorum=config.quorum,
        deadline=config.round_deadline_s,
        compression=config.compression,
    )


def _base(hub: Hub, session: ReadSession, actor: Actor, plan: wire.Plan) -> dossiers.Relative:
    return dossiers.version_of(hub, session, actor, plan.base_asset)


@dataclass(frozen=True)
class FlightSite:
    """How far one site is in the round that is open."""

    name: str
    state: str
    told: str


@dataclass(frozen=True)
class Joint:
    """By what all sites scale their rows, and its digest."""

    sha256: str
    document: Statistics


@dataclass(frozen=True)
class Benefit:
    """The benefit report: rows with what each has told, and pictures of own, shared and commonest."""

    smallest_cohort: int
    rows: list[tuple[wire.SiteBenefit, list[Markup | None]]]


@dataclass(frozen=True)
class Flight:
    """The round that is open now."""

    round: int
    sites: list[FlightSite]


def _part(hub: Hub, session: ReadSession, actor: Actor, plan: str) -> dict[str, Any]:
    run = runs.show(hub, session, actor, plan, newest=SHOWN)
    over = watching.sums(session, plan)
    described = plans.read(hub, session, actor, plan)
    told = events.last(session, plan, LAST_EVENTS)
    happened = watching.in_flight(session, plan, over.rounds + 1)
    return {
        "run": run,
        "over": over,
        "after": told[-1].id if told else 0,
        "events": told,
        "curves": _curves(run, _figures(session, described, over, happened)),
        "whole": len(described.participants) <= watching.DRAWN_SITES,
        "tall": True,
        "detail": _detail(run),
        "flight": _flight(run, described, over.rounds + 1, happened),
        "joint": _joint(session, actor, plan),
        "benefit": _benefit(hub, session, actor, plan),
        **_rounds(session, run, over),
    }


def _rounds(session: ReadSession, run: wire.Run, over: watching.Sums) -> dict[str, Any]:
    """The rounds of one page as a table, and the way to those before them."""
    received = watching.update_bytes(session, run)
    first = run.rounds[0].round if run.rounds else 1
    return {
        "timeline": [(each, _bar(each, over.longest_s), received.get(each.round, 0)) for each in run.rounds],
        "received": sum(received.values()),
        "earlier_at": f"/runs/{run.plan}/rounds?before={first}" if first > 1 else "",
    }


def _joint(session: ReadSession, actor: Actor, plan: str) -> Joint | None:
    """The joint statistics of a run, once they are made."""
    statistics = runs.readable(session, actor, plan).statistics
    if statistics is None:
        return None
    found = site_figures.joint(session, statistics)
    return Joint(found.sha256, read_statistics(found.document.encode()))


def _benefit(hub: Hub, session: ReadSession, actor: Actor, plan: str) -> Benefit | None:
    """The report of a run, each row with the pictures of its three shares."""
    found = site_figures.read(hub, session, runs.readable(session, actor, plan))
    if found is None:
        return None
    rows = [
        (each, [_share(one) for one in (each.local, each.federated, each.majority)]) for each in found.sites
    ]
    return Benefit(found.smallest_cohort, rows)


def _share(found: wire.Measured | None) -> Markup | None:
    if found is None:
        return None
    told = f"{found.share:.3f}: {found.low:.3f} – {found.high:.3f}"
    return span(found.share, found.low, found.high, found.share, told)


def _bar(each: wire.Round, longest: float) -> Markup:
    return bar(each.seconds, longest, f"{each.seconds:.2f} s")


def _detail(run: wire.Run) -> str:
    """What else the reason of a stop says: what is kept, and how to go on."""
    return (run.reason or "").partition("\n")[2]


# --- the round in flight ------------------------------------------------------------------------------------

_STATES = {
    Kind.SITE_REPLIED: "replied",
    Kind.SITE_LATE: "late",
    Kind.SITE_LEFT_OUT: "left out",
    Kind.SITE_REFUSED: "refused",
    Kind.SITE_UNREACHABLE: "offline",
}


def _flight(run: wire.Run, plan: wire.Plan, number: int, happened: list[wire.Event]) -> Flight | None:
    if run.deadline is None or run.ended_at is not None:
        return None
    sites = {
        one.institution: FlightSite(one.institution, "at work", "")
        for one in plan.participants
        if one.consent
    }
    for event in happened:
        name, told = str(event.data.get("institution") or ""), event.data
        if event.kind in _STATES and told.get("round") == number and name:
            said = f"{told['seconds']} s" if "seconds" in told else str(told.get("code") or "")
            sites[name] = FlightSite(name, _STATES[Kind(event.kind)], said)
    return Flight(number, list(sites.values()))


# --- curves -------------------------------------------------------------------------------------------------


def _figures(
    session: ReadSession, plan: wire.Plan, over: watching.Sums, happened: list[wire.Event]
) -> list[watching.Point]:
    """Who measured what in which round: closed rounds that are drawn, and replies in the one that is open."""
    found = watching.points(session, plan.id, over, len(plan.participants))
    replies = {
        str(event.data.get("institution")): event.data
        for event in happened
        if event.kind == Kind.SITE_REPLIED and event.data.get("round") == over.rounds + 1
    }
    shown = len(plan.participants) <= watching.DRAWN_SITES
    return found + [(over.rounds + 1, name, told) for name, told in sorted(replies.items()) if shown]


def _curves(run: wire.Run, figures: list[watching.Point]) -> list[Curve]:
    """A line for each site and a heavier one for all of them together, for each metric that was told."""
    curves = []
    for metric, title in METRICS:
        series: dict[str, list[tuple[int, float]]] = {ALL: []}
        for number, name, told in figures:
            value = told.get(metric)
            if isinstance(value, int | float):
                series.setdefault(name or ALL, []).append((number, float(value)))
        label = f"{title} per round; the same numbers stand in the table"
        if any(series.values()):
            curves.append(draw(series, rounds=run.rounds_planned, title=title, main=ALL, label=label))
    return curves


# --- live ---------------------------------------------------------------------------------------------------


@router.get("/runs/{plan}/live")
def run_live(
    request: Request, hub: HubHere, session: ReadSession, actor: Visitor, plan: str, after: int = 0
) -> Response:
    """Server-sent events: one for each thing that happens in the run after ``after``, until it ends.

    Only that something happened is told; what, the part of the page says.
    """
    runs.readable(session, actor, plan)
    last = request.headers.get("last-event-id", "")
    start = int(last) if last.isascii() and last.isdigit() and len(last) <= 15 else after
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(hub, plan, start), media_type="text/event-stream", headers=headers)


async def _stream(hub: Hub, plan: str, after: int) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    spoke_at = began_at = anyio.current_time()
    while anyio.current_time() - began_at < STREAM_S:
        found, over = await anyio.to_thread.run_sync(_look, hub, plan, after)
        if found:
            after, spoke_at = found[-1].id, anyio.current_time()
            yield f"id: {after}\ndata: {found[-1].kind}\n\n"
        elif over:
            yield f"id: {after}\nevent: over\ndata: over\n\n"
            return
        elif anyio.current_time() - spoke_at > QUIET_S:
            spoke_at = anyio.current_time()
            yield ": still here\n\n"
        await anyio.sleep(POLL_S)


def _look(hub: Hub, plan: str, after: int) -> tuple[list[wire.Event], bool]:
    with hub.database.session_scope(write=False) as session:
        return events.read(session, plan, after=after), dossiers.run_is_over(session, plan)
