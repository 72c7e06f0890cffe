"""Who is calling, and repositories: make, describe, list, settings, delete."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlmodel import Session

from hub.access import Actor
from hub.api.auth import CurrentActor, HubHere, ReadSession, WriteSession, actor_at_once, in_lists_lane
from hub.api.huggingface.asking import (
    Name,
    Namespace,
    RepoHere,
    moment,
    page_link,
    visible,
    warn,
    warn_about,
)
from hub.api.huggingface.refusals import StockRoute, said
from hub.context import Hub
from hub.glances import Glance, session_of
from hub.services import drafts, identity, lookup, revisions
from hub.services.commits import Commit
from hub.services.repo_files import POINTER_BYTES, RepoFile, files_of
from hub.services.revisions import MAIN, Kind, Page, Repo
from hub.tables import RevisionRow
from storage.errors import Refused

router = APIRouter(route_class=StockRoute, include_in_schema=False)
unknown_router = APIRouter(route_class=StockRoute, include_in_schema=False)  # after all others
PAGE = 100


class NewRepo(BaseModel):
    """What a client wants made; older clients say ``private``, newer ones ``visibility``."""

    name: str = Field(max_length=512)
    organization: str | None = None
    type: Literal["model", "dataset"] | None = None
    visibility: Literal["public", "private", "protected"] | None = None
    private: bool | None = None


class OldRepo(BaseModel):
    """What a client wants deleted."""

    name: str = Field(max_length=512)
    organization: str | None = None
    type: Literal["model", "dataset"] | None = None


class RepoSettings(BaseModel):
    """Who may see a repository; absent members stay as they are."""

    private: bool | None = None
    visibility: Literal["public", "private", "protected"] | None = None
    gated: Literal["auto", "manual"] | bool | None = None


# --- the caller -------------------------------------------------------------------------------------------


@router.get("/api/whoami-v2")
def whoami(actor: CurrentActor) -> dict[str, Any]:
    """The institution as a user and as its own organization."""
    me = identity.whoami(actor)
    role = "write" if "write" in me.scopes else "read"
    return {
        "type": "user",
        "id": me.institution,
        "name": me.institution,
        "fullname": me.institution,
        "isPro": False,
        "canPay": False,
        "orgs": [
            {"type": "org", "id": me.institution, "name": me.institution, "fullname": me.institution,
             "roleInOrg": role}
        ],
        "auth": {"type": "access_token", "accessToken": {"displayName": me.by, "role": role}},
    }  # fmt: skip


@router.get("/api/agent-harnesses")
def agent_harnesses() -> Response:
    """Asked once a day by the command line; an answer that is a list would crash it."""
    return said(404, None, "no such route")


@router.post("/api/validate-yaml")
def validate_yaml() -> dict[str, list[str]]:
    """Asked for every README; its text is nobody's word here."""
    return {"errors": [], "warnings": []}


# --- making and changing ----------------------------------------------------------------------------------


@router.post("/api/repos/create")
def create(hub: HubHere, session: WriteSession, actor: CurrentActor, request: NewRepo) -> Response:
    """A new empty repository; opening it wider than its default takes the targets key."""
    kind, name = _named(actor, request.type, request.organization, request.name)
    private = request.visibility == "private" or bool(request.private)
    try:
        repo = drafts.create(hub, session, actor, kind, name, "private" if private else "gated")
    except Refused as error:
        if error.code != "E_REPOSITORY_EXISTS":
            raise
        path = name if kind == "model" else f"datasets/{name}"
        answer = said(409, None, f"You already created this {kind} repo: {name}", error.code)
        return JSONResponse(
            {"error": error.message, "url": f"{hub.settings.public}/{path}"}, 409, headers=_kept(answer)
        )
    response = JSONResponse({"url": f"{hub.settings.public}/{repo.path}", "name": name, "id": name})
    if request.visibility == "public" or request.private is False:
        warn(response, "visibility", f"{name} is gated: `fedhub` opens it, with the institution's key")
    return response


def _kept(response: Response) -> dict[str, str]:
    return {name: response.headers[name] for name in ("X-Error-Message",) if name in response.headers}


def _named(actor: Actor, kind: str | None, organization: str | None, name: str) -> tuple[Kind, str]:
    full = name if "/" in name else f"{organization or actor.institution or ''}/{name}"
    return ("dataset" if kind == "dataset" else "model"), full


@router.delete("/api/repos/delete")
def delete(hub: HubHere, session: WriteSession, actor: CurrentActor, request: OldRepo) -> dict[str, str]:
    """Forget a repository that holds drafts only."""
    kind, name = _named(actor, request.type, request.organization, request.name)
    drafts.remove(hub, session, actor, kind, name)
    return {}


@router.put("/api/{kind:repokind}/{ns}/{name}/settings")
def settings(
    hub: HubHere,
    session: WriteSession,
    actor: CurrentActor,
    kind: Kind,
    ns: Namespace,
    name: Name,
    request: RepoSettings,
) -> dict[str, Any]:
    """Who may see a repository: private, gated (by grants) or public."""
    repo = revisions.find(hub, session, actor, kind, f"{ns}/{name}")
    private = request.visibility == "private" if request.visibility else request.private
    wanted = repo.visibility
    if private is not None:
        wanted = "private" if private else "gated" if repo.visibility == "private" else repo.visibility
    if request.gated is not None and wanted != "private":
        wanted = "gated" if request.gated else "public"
    if wanted != repo.visibility:
        drafts.set_visibility(hub, session, actor, repo, _visibility(wanted))
    return {"private": wanted == "private", "gated": _gated(wanted)}


def _visibility(text: str) -> drafts.Visibility:
    return "private" if text == "private" else "public" if text == "public" else "gated"


def _gated(visibility: str) -> str | bool:
    return "manual" if visibility == "gated" else False


# --- describing -------------------------------------------------------------------------------------------


@router.get("/api/{kind:repokind}")
async def listing(
    hub: HubHere,
    request: Request,
    kind: Kind,
    author: Annotated[str | None, Query(max_length=253)] = None,
    search: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
    cursor: Annotated[str | None, Query(max_length=600)] = None,
) -> Response:
    """Repositories that the caller may see, by name."""
    page = partial(
        revisions.page, kind=kind, author=author, text=search, cursor=cursor, limit=min(limit, PAGE)
    )
    return await in_lists_lane(request, partial(_page, hub, request, page))


def _page(hub: Hub, request: Request, page: Callable[..., Page]) -> Response:
    full, described = "full" in request.query_params, []
    with hub.database.glance() as glance:
        actor, session = actor_at_once(request, hub, glance), glance.session
        found, following = page(hub, session, actor, log_rows=lookup.log_rows(glance))
        for repo, head in found:
            row: Commit | None = head
            if row is None or (row.statement is None and not revisions.is_own(actor, repo)):
                row = _newest(session, actor, repo)  # others' drafts are not for the caller to see
            siblings = _siblings(lookup.file_names(glance, repo, row)) if full else None
            described.append(_info(repo, row, siblings))
    headers = {} if following is None else {"Link": page_link(hub, request, following)}
    return JSONResponse(described, headers=headers)


def _newest(session: Session, actor: Actor, repo: Repo) -> RevisionRow:
    """What main shows the caller: without any version the empty first commit, to all but the owner."""
    row = revisions.resolve(session, actor, repo, MAIN)
    if revisions.is_own(actor, repo) or row.statement is not None:
        return row
    return revisions.first_commit(session, repo)


def info_answer(hub: Hub, request: Request, brief: bool) -> Response | None:
    """The repository at main (``hub.api.quick``)."""
    if brief and "blobs" in request.query_params:
        return None  # git's names of files may have to be computed from their bytes
    kind: Kind = request.path_params["kind"]
    name = "{ns}/{name}".format_map(request.path_params)
    with hub.database.glance() as glance:
        actor = actor_at_once(request, hub, glance)
        found = lookup.look(hub, glance, actor, kind, name)
        if found is not None:
            return _describe(hub, glance, request, found.repo, found.commit)
        session = glance.session
        repo = revisions.find(hub, session, actor, kind, name)
        return _describe(hub, session, request, repo, _newest(session, actor, repo))


@router.get("/api/{kind:repokind}/{ns}/{name}/revision/{revision:path}")
def info_at(
    hub: HubHere, session: ReadSession, actor: CurrentActor, request: Request, repo: RepoHere, revision: str
) -> Response:
    """The repository at any revision."""
    row = _newest(session, actor, repo) if revision == MAIN else visible(session, actor, repo, revision)
    return _describe(hub, session, request, repo, row)


def _describe(hub: Hub, source: Session | Glance, request: Request, repo: Repo, row: Commit) -> Response:
    if "blobs" in request.query_params:
        siblings = [_sibling(file) for file in files_of(hub, session_of(source), repo, row)]
    else:
        siblings = _siblings(lookup.file_names(source, repo, row))
    response = JSONResponse(_info(repo, row, siblings))
    warn_about(hub, source, response, repo, row)
    return response


def _info(repo: Repo, row: Commit, siblings: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    said = {
        "_id": repo.name,
        "id": repo.name,
        "author": repo.owner,
        "sha": row.id,
        "lastModified": moment(row.created_at),
        "createdAt": moment(repo.created_at),
        "private": repo.visibility == "private",
        "gated": _gated(repo.visibility),
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [] if row.version is None else [f"version:{row.version}"],
    }
    if repo.kind == "model":
        said["modelId"] = repo.name
    if siblings is not None:
        said["siblings"] = siblings
    return said


def _siblings(names: list[str]) -> list[dict[str, Any]]:
    return [{"rfilename": name} for name in names]


def _sibling(file: RepoFile) -> dict[str, Any]:
    said: dict[str, Any] = {"rfilename": file.path, "size": file.size, "blobId": file.oid}
    if file.large:
        said["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": POINTER_BYTES}
    return said


@router.get("/api/{kind:repokind}/{ns}/{name}/auth-check")
def may_read(hub: HubHere, session: ReadSession, actor: CurrentActor, repo: RepoHere) -> dict[str, str]:
    """Whether the caller may read what main shows."""
    revisions.readable(hub, session, actor, repo, _newest(session, actor, repo))
    return {}


@unknown_router.api_route(
    "/api/{kind:repokind}/{rest:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE"]
)
def unknown(rest: str) -> Response:
    """A path that names no repository, such as a local folder given as a model's name."""
    return said(404, "RepoNotFound", f"{rest[:200]!r} is no repository")


@router.get("/api/{kind:repokind}/{ns}/{name}/auth-check/write")
def may_write(actor: CurrentActor, repo: RepoHere) -> dict[str, str]:
    """Whether the caller may commit."""
    revisions.check_writer(actor, repo)
    return {}
