"""What is in a repository: files and folders, branches and tags, commits; and making names for them."""

import hashlib
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from hub.api.auth import CurrentActor, HubHere, ReadSession, WriteSession
from hub.api.huggingface.asking import (
    Name,
    Namespace,
    RepoHere,
    flag,
    moment,
    page_link,
    revision_and_path,
    visible,
    warn_about,
)
from hub.api.huggingface.refusals import StockRoute
from hub.errors import bad_field
from hub.services import refs, revisions
from hub.services.repo_files import POINTER_BYTES, RepoFile, files_of, no_entry
from hub.services.revisions import MAIN, Kind
from storage.encoding import read_json
from storage.errors import Refused, Rejected

router = APIRouter(route_class=StockRoute, include_in_schema=False)
TREE_SEGMENTS = 5  # /api/models/ns/name/tree
PAGE = 1000
PATHS_MOST = 10_000


class NewTag(BaseModel):
    """A tag to make."""

    tag: str = Field(max_length=128)
    message: str | None = None


class NewBranch(BaseModel):
    """Where a branch begins."""

    startingPoint: str | None = None


# --- files ------------------------------------------------------------------------------------------------


@router.get("/api/{kind:repokind}/{ns}/{name}/tree/{rest:path}")
def tree(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    request: Request,
    repo: RepoHere,
    recursive: str = "",
    cursor: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
) -> Response:
    """Files and folders below a folder of a revision, or all of them."""
    revision, folder = revision_and_path(request, TREE_SEGMENTS)
    row = visible(session, actor, repo, revision)
    listed = _below(files_of(hub, session, repo, row), folder, deep=flag(recursive))
    if folder and not listed:
        raise no_entry(repo, row, folder)
    headers = {"X-Repo-Commit": row.id}
    if cursor + limit < len(listed):
        headers["Link"] = page_link(hub, request, str(cursor + limit))
    response = JSONResponse(listed[cursor : cursor + limit], headers=headers)
    warn_about(hub, session, response, repo, row)
    return response


def _below(files: Iterable[RepoFile], folder: str, *, deep: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for file in files:
        if not file.path.startswith(prefix):
            continue
        parts = file.path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if deep else min(2, len(parts))):
            path = prefix + "/".join(parts[:depth])
            entries.setdefault(path, _folder(path))
        if deep or len(parts) == 1:
            entries[file.path] = _file(file)
    return [entries[path] for path in sorted(entries)]


def _folder(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def _file(file: RepoFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": file.path}
    if file.large:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": POINTER_BYTES}
    return entry


async def asked_paths(request: Request) -> list[str]:
    """The paths in a form or in JSON."""
    body = await request.body()
    if "json" in request.headers.get("content-type", ""):
        value = read_json(body, code="E_JSON")
        found = value.get("paths") if isinstance(value, dict) else None
        paths = [found] if isinstance(found, str) else found
    else:
        try:
            paths = parse_qs(body.decode("ascii"), max_num_fields=PATHS_MOST + 10).get("paths", [])
        except ValueError as error:
            raise bad_field("body", "not a form") from error
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise bad_field("paths", "must be a list of texts")
    return paths


@router.post("/api/{kind:repokind}/{ns}/{name}/paths-info/{revision:path}")
def paths_info(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    repo: RepoHere,
    revision: str,
    paths: Annotated[list[str], Depends(asked_paths)],
) -> list[dict[str, Any]]:
    """The files and folders at these paths; those that are not there are left out."""
    row = visible(session, actor, repo, revision)
    entries = {entry["path"]: entry for entry in _below(files_of(hub, session, repo, row), "", deep=True)}
    wanted = dict.fromkeys(path.strip("/") for path in paths)
    return [entries[path] for path in wanted if path in entries]


# --- names and commits ------------------------------------------------------------------------------------


@router.get("/api/{kind:repokind}/{ns}/{name}/refs")
def list_refs(session: ReadSession, actor: CurrentActor, request: Request, repo: RepoHere) -> dict[str, Any]:
    """Branches and tags."""
    answer: dict[str, Any] = {
        "branches": [
            {"name": ref.name, "ref": f"refs/heads/{ref.name}", "targetCommit": ref.revision}
            for ref in refs.branches(session, actor, repo)
        ],
        "tags": [
            {"name": ref.name, "ref": f"refs/tags/{ref.name}", "targetCommit": ref.revision}
            for ref in refs.tags(session, actor, repo)
        ],
        "converts": [],
    }
    if "include_prs" in request.query_params:
        answer["pullRequests"] = []
    return answer


@router.get("/api/{kind:repokind}/{ns}/{name}/commits/{revision:path}")
def commits(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    request: Request,
    repo: RepoHere,
    revision: str,
    cursor: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """A revision and what came before it; of others' repositories, versions only."""
    row = visible(session, actor, repo, revision)
    own = revisions.is_own(actor, repo)
    line = (one for one in revisions.history(session, repo, row) if own or one.statement or not one.parent)
    found = list(islice(line, cursor, cursor + PAGE + 1))
    said = [
        {
            "id": one.id,
            "title": one.title,
            "message": one.message,
            "date": moment(one.created_at),
            "authors": [{"user": one.author, "avatar": ""}],
        }
        for one in found[:PAGE]
    ]
    headers = {"Link": page_link(hub, request, str(cursor + PAGE))} if len(found) > PAGE else {}
    return JSONResponse(said, headers=headers)


@router.post("/api/{kind:repokind}/{ns}/{name}/tag/{revision:path}")
def add_tag(
    hub: HubHere,
    session: WriteSession,
    actor: CurrentActor,
    kind: Kind,
    ns: Namespace,
    name: Name,
    revision: str,
    request: NewTag,
) -> dict[str, str]:
    """A new tag; it never moves."""
    repo = revisions.find(hub, session, actor, kind, f"{ns}/{name}")
    revisions.check_writer(actor, repo)
    at = revisions.resolve(session, actor, repo, revision)
    refs.add_tag(hub, session, actor, repo, request.tag, at)
    return {}


@router.delete("/api/{kind:repokind}/{ns}/{name}/tag/{revision:path}")
def remove_tag(actor: CurrentActor, repo: RepoHere, revision: str) -> None:
    """Never: others may lean on it."""
    revisions.check_writer(actor, repo)
    raise Refused("E_TAG", f"tag {revision!r} of {repo.name} stays: tags are made once", "Make another tag.")


@router.post("/api/{kind:repokind}/{ns}/{name}/branch/{branch:path}")
async def add_branch(
    hub: HubHere, actor: CurrentActor, request: Request, kind: Kind, ns: Namespace, name: Name, branch: str
) -> dict[str, str]:
    """A new branch at a revision, by default at main."""
    body = await request.body()
    try:
        asked = NewBranch.model_validate(read_json(body, code="E_JSON") if body else {})
    except ValueError as error:
        raise Rejected("E_JSON", "body: expected an object with startingPoint") from error
    with hub.database.session_scope() as session:
        repo = revisions.find(hub, session, actor, kind, f"{ns}/{name}")
        refs.add_branch(session, actor, repo, branch, asked.startingPoint or MAIN)
    return {}


@router.delete("/api/{kind:repokind}/{ns}/{name}/branch/{branch:path}")
def remove_branch(
    hub: HubHere,
    session: WriteSession,
    actor: CurrentActor,
    kind: Kind,
    ns: Namespace,
    name: Name,
    branch: str,
) -> dict[str, str]:
    """Forget a branch; its commits stay."""
    repo = revisions.find(hub, session, actor, kind, f"{ns}/{name}")
    refs.remove_branch(session, actor, repo, branch)
    return {}


@router.post("/api/{kind:repokind}/{ns}/{name}/super-squash/{branch:path}")
def squash(actor: CurrentActor, repo: RepoHere, branch: str) -> None:
    """Never: a commit's parents are part of its id."""
    revisions.check_writer(actor, repo)
    raise Refused("E_HISTORY", f"{repo.name}: the history of {branch!r} stays as it is")
