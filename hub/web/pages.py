"""Pages for people: what the alliance shares, what runs, what was released, and the log.

Served by the same services as the API, never from tables. Every page is whole without JavaScript; scripts
copy text, keep a run's page in step, and check inclusion proofs. Read ``rendering`` for who sees what, then
this file for the pages that are not about models (``registry_pages``) or runs (``run_pages``).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from hub.access import ANONYMOUS
from hub.api.auth import HubHere, ReadSession
from hub.errors import not_found
from hub.services import alliance, catalogue, datasets, dossiers, runs
from hub.web import comparison_pages, dataset_pages, registry_pages, run_pages, sign_in
from hub.web.rendering import STATIC, Visitor, page, sign_in_first, static_file
from hub.web.rendering import visitor as visitor_of
from storage.causes import find_cause
from storage.encoding import format_time, is_digest
from storage.errors import Refused, Unchecked
from storage.keyring import read_ring

NEWEST = 6

router = APIRouter(include_in_schema=False)
router.include_router(sign_in.router)
router.include_router(registry_pages.router)
router.include_router(comparison_pages.router)
router.include_router(dataset_pages.router)
router.include_router(run_pages.router)


@router.get("/static/{name}")
def static(name: str) -> Response:
    """The sheet, the scripts and the mark; their addresses change with what they are."""
    if name not in STATIC:
        raise not_found("file", name[:100])
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(static_file(name), media_type=STATIC[name], headers=headers)


@router.get("/", response_class=HTMLResponse)
def overview(request: Request, hub: HubHere, session: ReadSession, actor: Visitor) -> HTMLResponse:
    """The hub's state at a glance."""
    head = hub.ledger.head(session)
    if not actor.known:
        return page(request, hub, actor, "overview.html", log=head)
    models, more_models = catalogue.find(hub, session, actor, catalogue.Wanted())
    on_site, more_on_site = datasets.on_site(hub, session, actor)
    shared, more_shared = datasets.shared(hub, session, actor)
    found, more_runs = runs.page(hub, session, actor, newest=1)
    released = catalogue.released_versions(hub, session, actor)
    counts = {
        "models": _count(models, more_models),
        "datasets": _count([*on_site, *shared], more_on_site or more_shared),
        "runs": _count(found, more_runs),
        "releases": str(len(released)),
        "institutions": str(len(alliance.names(session, actor))),
    }
    return page(
        request,
        hub,
        actor,
        "overview.html",
        log=head,
        counts=counts,
        models=models[:NEWEST],
        runs=found[:NEWEST],
        releases=released[:NEWEST],
    )


def _count(found: Sequence[object], more: str | None) -> str:
    """How many there are on the first page of a list, and whether there are more."""
    return f"{len(found)}{'+' if more else ''}"


@router.get("/releases", response_class=HTMLResponse)
def release_list(request: Request, hub: HubHere, session: ReadSession, actor: Visitor) -> Response:
    """Versions that were approved and released."""
    if not actor.known:
        return sign_in_first(request)
    found = catalogue.released_versions(hub, session, actor)
    return page(request, hub, actor, "releases.html", releases=found)


# --- institutions and grants --------------------------------------------------------------------------------


@router.get("/institutions", response_class=HTMLResponse)
def institution_list(request: Request, hub: HubHere, session: ReadSession, actor: Visitor) -> Response:
    """Members of the alliance and their pins."""
    if not actor.known:
        return sign_in_first(request)
    return page(
        request,
        hub,
        actor,
        "institutions.html",
        institutions=alliance.institutions(session, actor),
        sites=alliance.sites(session, actor),
        now=format_time(hub.ledger.now()),
    )


@dataclass(frozen=True)
class RingView:
    """One version of a key ring: its keys by role, as hints."""

    version: int
    digest: str
    expires: str
    keys: list[tuple[str, list[str]]]
    in_force: bool


@router.get("/institutions/{name}", response_class=HTMLResponse)
def institution(request: Request, hub: HubHere, session: ReadSession, actor: Visitor, name: str) -> Response:
    """One member: pin, key ring, status list, what it shares and where its agents run."""
    if not actor.known:
        return sign_in_first(request)
    member = alliance.institution(session, actor, name)
    roots = alliance.keyring(session, name)
    ring = (
        sorted(read_ring(name, roots, member.pin).versions.values(), key=lambda one: -one.version)
        if roots
        else []
    )
    models, _ = catalogue.find(hub, session, actor, catalogue.Wanted(owner=name))
    own = datasets.Wanted(owner=name)
    return page(
        request,
        hub,
        actor,
        "institution.html",
        member=member,
        stale=member.status_until is not None and member.status_until < format_time(hub.ledger.now()),
        ring=[
            RingView(
                one.version,
                one.digest,
                format_time(one.expires),
                [(role, sorted(keys)) for role, keys in one.roles.items()],
                one.version == member.ring_version,
            )
            for one in ring
        ],
        sites=[site for site in alliance.sites(session, actor) if site.institution == name],
        models=models,
        on_site=datasets.on_site(hub, session, actor, own)[0],
        shared=datasets.shared(hub, session, actor, own)[0],
    )


@router.get("/grants", response_class=HTMLResponse)
def grant_list(
    request: Request,
    hub: HubHere,
    session: ReadSession,
    actor: Visitor,
    show: str = "",
    cursor: str | None = None,
) -> Response:
    """Grants that concern the visitor's institution; all of them for auditors and the operator."""
    if not actor.known:
        return sign_in_first(request)
    found, following = dossiers.grants(hub, session, actor, cursor=cursor)
    if show == "given":
        found = [grant for grant in found if grant.issuer == actor.institution]
    elif show == "held":
        found = [grant for grant in found if grant.grantee == actor.institution]
    more = request.url.include_query_params(cursor=following).query if following else ""
    return page(
        request, hub, actor, "grants.html", grants=found, show=show, more_at=f"/grants?{more}" if more else ""
    )


# --- the log ------------------------------------------------------------------------------------------------


@router.get("/log", response_class=HTMLResponse)
def log_page(
    request: Request,
    hub: HubHere,
    session: ReadSession,
    actor: Visitor,
    id: str = "",  # noqa: A002
) -> Response:
    """The head of the log, how to watch it, and a way to a statement's place in it."""
    wanted = id.strip().lower()[:100]
    if wanted and dossiers.place_in_log(session, wanted) is not None:
        return RedirectResponse(f"/statements/{wanted}", 303)
    return page(
        request,
        hub,
        actor,
        "log.html",
        404 if wanted else 200,
        log=hub.ledger.head(session),
        log_key=hub.keys.log.vkey,
        id=wanted,
    )


@router.get("/statements/{statement_id}", response_class=HTMLResponse)
def statement(
    request: Request, hub: HubHere, session: ReadSession, actor: Visitor, statement_id: str
) -> Response:
    """A statement's place in the log, for anybody; what it says, for those whom it concerns."""
    index = dossiers.place_in_log(session, statement_id) if is_digest(statement_id) else None
    if index is None:
        raise not_found("statement", statement_id[:100])
    try:
        found = dossiers.paper(hub, session, actor, statement_id) if actor.known else None
    except (Refused, Unchecked):
        found = None  # not for this visitor to read
    return page(
        request,
        hub,
        actor,
        "statement.html",
        id=statement_id,
        index=index,
        found=found,
        payload="" if found is None else json.dumps(found.says, indent=2, ensure_ascii=False),
        log_key=hub.keys.log.vkey,
    )


# --- errors -------------------------------------------------------------------------------------------------

# First steps of paths that belong to programs: their errors are problem documents.
FOR_PROGRAMS = ("api", "keyrings", "healthz", "readyz", "metrics", "d", "xet", "v2")
FOR_PEOPLE = (
    "models",
    "datasets",
    "runs",
    "releases",
    "grants",
    "institutions",
    "statements",
    "sign-in",
    "sign-out",
)


def is_page(request: Request) -> bool:
    """Whether an error on this path is shown to a person, as a page."""
    first, _, rest = request.url.path.lstrip("/").partition("/")
    if first in FOR_PROGRAMS or request.url.path.startswith("/log/"):
        return False
    if first in ("", "log") or (first in FOR_PEOPLE and "resolve" not in rest.split("/")):
        return True
    return "text/html" in request.headers.get("accept", "")


def error_page(request: Request, status: int, code: str, message: str, hint: str = "") -> HTMLResponse | None:
    """What a browser is shown instead of a problem document; None on paths of programs."""
    if not is_page(request):
        return None
    hub = request.app.state.hub
    actor = ANONYMOUS if status >= 500 else visitor_of(request, hub)
    values = {"code": code, "message": message, "hint": hint, "found": find_cause(code)}
    return page(request, hub, actor, "error.html", status, **values)
