"""Pages for people: what the alliance shares, what runs, what was released, and the head of the log.

Served by the same services as the API, never from tables. A visitor signs in with a personal token, kept in a
cookie that scripts cannot read; with ``FEDHUB_OPEN_PAGES`` anybody who reaches
the hub sees them as an auditor would. Every page is whole without JavaScript.
"""

from collections.abc import AsyncIterator, Mapping
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import parse_qsl

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from federation import wire
from hub import __version__
from hub.access import ANONYMOUS, Actor
from hub.api.auth import HubHere, ReadSession
from hub.context import Hub
from hub.errors import not_found
from hub.services import alliance, events, plans, registry, releases, runs
from hub.services.identity import actor_of
from hub.web.charts import Curve, draw
from storage.errors import FedhubError, Refused

COOKIE = "fedhub_token"
CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:;"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
STATIC = {"fedhub.css": "text/css; charset=utf-8", "live.js": "text/javascript; charset=utf-8"}
STREAM_POLL_S = 0.5
STREAM_LIMIT_S = 3600
RECENT = 8

router = APIRouter(include_in_schema=False)
_templates = Environment(
    loader=PackageLoader("hub.web", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


# --- who is looking -----------------------------------------------------------------------------------------


def visitor(request: Request, hub: HubHere) -> Actor:
    """Whoever signed in; else, on open pages, somebody who may read what auditors read; else nobody known."""
    token = request.cookies.get(COOKIE)
    if token:
        try:
            return actor_of(hub, f"Bearer {token}")
        except Refused:
            return ANONYMOUS
    if hub.settings.open_pages:
        return Actor(hub.operator.institution, "auditor", "personal", frozenset({"read"}))
    return ANONYMOUS


Visitor = Annotated[Actor, Depends(visitor)]


def _page(
    request: Request, hub: Hub, actor: Actor, name: str, status: int = 200, **values: Any
) -> HTMLResponse:
    text = _templates.get_template(name).render(
        request=request,
        origin=hub.settings.origin,
        endpoint=hub.settings.public,
        version=__version__,
        actor=actor,
        signed_in=COOKIE in request.cookies and actor.known,
        **values,
    )
    headers = {"Content-Security-Policy": CONTENT_POLICY, "Cache-Control": "no-store"}
    return HTMLResponse(text, status, headers)


def _sign_in_first(request: Request) -> RedirectResponse:
    return RedirectResponse(f"/sign-in?to={request.url.path}", 303)


async def _form(request: Request) -> dict[str, str]:
    body = (await request.body()).decode("ascii", errors="replace")
    return dict(parse_qsl(body, max_num_fields=8))


Form = Annotated[dict[str, str], Depends(_form)]


def _inside(path: str) -> str:
    """A path of this hub, so that signing in never leads elsewhere."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"


@router.get("/sign-in", response_class=HTMLResponse)
def sign_in_form(request: Request, hub: HubHere, actor: Visitor, to: str = "/") -> HTMLResponse:
    """Where a personal token is given."""
    return _page(request, hub, actor, "sign_in.html", to=_inside(to), problem="")


@router.post("/sign-in", response_class=HTMLResponse)
def sign_in(request: Request, hub: HubHere, form: Form) -> Response:
    """Check the token and keep it in the visitor's browser."""
    token, to = form.get("token", "").strip(), _inside(form.get("to", "/"))
    try:
        actor = actor_of(hub, f"Bearer {token}")
        if actor.by != "personal":
            raise Refused("E_TOKEN", "only a personal token signs in here", status=401)
    except Refused as error:
        return _page(request, hub, ANONYMOUS, "sign_in.html", 401, to=to, problem=error.message)
    answer = RedirectResponse(to, 303)
    answer.set_cookie(
        COOKIE,
        token,
        httponly=True,
        samesite="strict",
        secure=hub.settings.public.startswith("https:"),
        max_age=12 * 3600,
    )
    return answer


@router.post("/sign-out")
def sign_out() -> Response:
    """Forget the token."""
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/static/{name}")
def static(name: str) -> Response:
    """The sheet and the script."""
    if name not in STATIC:
        raise not_found("file", name)
    data = files("hub.web").joinpath("static", name).read_bytes()
    return Response(data, media_type=STATIC[name], headers={"Cache-Control": "public, max-age=300"})


# --- what there is ------------------------------------------------------------------------------------------


@router.get("/", response_class=HTMLResponse)
def overview(request: Request, hub: HubHere, session: ReadSession, actor: Visitor) -> HTMLResponse:
    """The hub's state at a glance."""
    seen: dict[str, Any] = {"log": hub.ledger.head(session)}
    if actor.known:
        found, _ = registry.search(hub, session, actor)
        seen |= {
            "models": found,
            "runs": runs.page(hub, session, actor)[0][:RECENT],
            "releases": releases.releases(hub, session, actor)[:RECENT],
            "institutions": alliance.institutions(session, actor),
        }
    return _page(request, hub, actor, "overview.html", **seen)


@router.get("/models", response_class=HTMLResponse)
def model_list(
    request: Request,
    hub: HubHere,
    session: ReadSession,
    actor: Visitor,
    search: str = "",
    cursor: str | None = None,
) -> Response:
    """Models that the visitor may see."""
    if not actor.known:
        return _sign_in_first(request)
    found, more = registry.search(hub, session, actor, text=search[:200] or None, cursor=cursor)
    return _page(request, hub, actor, "models.html", models=found, search=search[:200], more=more)


@router.get("/models/{institution}/{name}", response_class=HTMLResponse)
def model(
    request: Request, hub: HubHere, session: ReadSession, actor: Visitor, institution: str, name: str
) -> Response:
    """One model: versions, files, approvals, how to pull."""
    if not actor.known:
        return _sign_in_first(request)
    found = registry.show(hub, session, actor, f"{institution}/{name}")
    return _page(request, hub, actor, "model.html", model=found, newest=_newest(found))


def _newest(model: wire.Model) -> wire.ModelVersion | None:
    """The newest released version, else the newest one."""
    ordered = sorted(model.versions, key=lambda version: (version.released, version.version))
    return ordered[-1] if ordered else None


@router.get("/datasets", response_class=HTMLResponse)
def dataset_list(request: Request, hub: HubHere, session: ReadSession, actor: Visitor) -> Response:
    """Descriptions of data that stay where they are."""
    if not actor.known:
        return _sign_in_first(request)
    found, _ = registry.datasets(hub, session, actor)
    return _page(request, hub, actor, "datasets.html", datasets=found)


@router.get("/releases", response_class=HTMLResponse)
def release_list(request: Request, hub: HubHere, session: ReadSession, actor: Visitor) -> Response:
    """Versions that were approved and released."""
    if not actor.known:
        return _sign_in_first(request)
    found = releases.releases(hub, session, actor)
    return _page(request, hub, actor, "releases.html", releases=found)


@router.get("/institutions", response_class=HTMLResponse)
def institution_list(request: Request, hub: HubHere, session: ReadSession, actor: Visitor) -> Response:
    """Members of the alliance and their pins."""
    if not actor.known:
        return _sign_in_first(request)
    found = alliance.institutions(session, actor)
    return _page(request, hub, actor, "institutions.html", institutions=found)


@router.get("/log", response_class=HTMLResponse)
def log_page(request: Request, hub: HubHere, session: ReadSession, actor: Visitor) -> HTMLResponse:
    """The head of the log and how to watch it."""
    head = hub.ledger.head(session)
    return _page(request, hub, actor, "log.html", log=head, log_key=hub.keys.log.vkey)


# --- runs ---------------------------------------------------------------------------------------------------


@router.get("/runs", response_class=HTMLResponse)
def run_list(request: Request, hub: HubHere, session: ReadSession, actor: Visitor) -> Response:
    """Runs that the visitor may see."""
    if not actor.known:
        return _sign_in_first(request)
    found, _ = runs.page(hub, session, actor)
    waiting = [plan for plan in plans.page(hub, session, actor)[0] if plan.run is None]
    return _page(request, hub, actor, "runs.html", runs=found, plans=waiting)


@router.get("/runs/{plan}", response_class=HTMLResponse)
def run_page(request: Request, hub: HubHere, session: ReadSession, actor: Visitor, plan: str) -> Response:
    """One run: curves, rounds, receipts, refusals, what happened."""
    if not actor.known:
        return _sign_in_first(request)
    return _page(request, hub, actor, "run.html", **_run_values(hub, session, actor, plan))


@router.get("/runs/{plan}/part", response_class=HTMLResponse)
def run_part(request: Request, hub: HubHere, session: ReadSession, actor: Visitor, plan: str) -> Response:
    """The part of a run's page that changes while it runs."""
    return _page(request, hub, actor, "run_part.html", **_run_values(hub, session, actor, plan))


def _run_values(hub: Hub, session: ReadSession, actor: Actor, plan: str) -> dict[str, Any]:
    run = runs.show(hub, session, actor, plan)
    happened = events.read(session, plan)
    return {
        "run": run,
        "events": happened[-40:],
        "curves": [
            (title, draw_metric(run, name))
            for name, title in (("accuracy", "Accuracy"), ("loss", "Loss"))
            if _has(run, name)
        ],
    }


def _figures(each: wire.Round) -> list[tuple[str, Mapping[str, float | int | str]]]:
    """Who reported what in one round: all sites together first, then each by name."""
    return [("all sites", dict(each.metrics)), *sorted(each.sites.items())]


def _has(run: wire.Run, metric: str) -> bool:
    return any(metric in figures for each in run.rounds for _, figures in _figures(each))


def draw_metric(run: wire.Run, metric: str) -> Curve:
    """The curve of one metric: a line for each site and one for all of them together."""
    series: dict[str, list[tuple[int, float]]] = {}
    for each in run.rounds:
        for name, figures in _figures(each):
            value = figures.get(metric)
            if isinstance(value, int | float):
                series.setdefault(name, []).append((each.round, float(value)))
    return draw(series, rounds=run.rounds_planned, title=f"{metric} per round, for each site and all sites")


@router.get("/runs/{plan}/live")
def run_live(request: Request, hub: HubHere, session: ReadSession, actor: Visitor, plan: str) -> Response:
    """Server-sent events: one for each thing that happens in the run, until it ends."""
    run = runs.show(hub, session, actor, plan)
    past = events.read(session, plan)
    after = past[-1].id if past else 0
    over = run.ended_at is not None
    return StreamingResponse(
        _stream(request, hub, plan, after, over),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


async def _stream(request: Request, hub: Hub, plan: str, after: int, over: bool) -> AsyncIterator[str]:
    if over:
        yield "event: run.ended\ndata: {}\n\n"
        return
    with anyio.move_on_after(STREAM_LIMIT_S):
        while not await request.is_disconnected():
            found = await anyio.to_thread.run_sync(_events_after, hub, plan, after)
            for event in found:
                after = event.id
                name = "event: run.ended\n" if event.kind == events.Kind.RUN_ENDED else ""
                yield f"{name}id: {event.id}\ndata: {event.model_dump_json()}\n\n"
                if name:
                    return
            await anyio.sleep(STREAM_POLL_S)


def _events_after(hub: Hub, plan: str, after: int) -> list[wire.Event]:
    with hub.database.session_scope(write=False) as session:
        return events.read(session, plan, after=after)


def error_page(request: Request, hub: Hub, error: FedhubError, status: int) -> HTMLResponse:
    """What a browser is shown instead of a problem document."""
    return _page(request, hub, ANONYMOUS, "error.html", status, error=error)
