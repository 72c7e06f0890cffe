"""What MLflow clients ask to find a model and fetch its files: the registry's and the artifacts' read routes.

``models:/owner.example.digits/3`` is version 3, ``models:/owner.example.digits@stable`` the one with that
tag (``services.mlflow_names`` tells how names become ours). Drafts are not here. What is told about a model
follows who may see it; its files' bytes are decided by ``services.revisions.readable`` and come from the
download origin, to which an artifact redirects. Source: MLflow's REST API 2.0, ``mlflow-skinny`` 3.17.
"""

import logging
import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlmodel import Session, select

from federation.stock_names import is_reserved
from hub.access import Actor
from hub.api.auth import CurrentActor, HubHere, ReadSession
from hub.api.client_errors import ClientRoute
from hub.context import Hub
from hub.errors import bad_field, status_of
from hub.services import downloads, lookup, revisions
from hub.services.downloads import Bearer
from hub.services.mlflow_names import mlflow_names, model_name
from hub.services.pulls import ensure_receipt
from hub.services.repo_files import content_of, file_at, no_entry, proof_paths
from hub.services.revisions import Repo
from hub.tables import RevisionRow, TagRow, VersionFileRow, VersionRow
from storage.errors import FedhubError, Unchecked, shown

ROOT = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
PAGE = 100
VERSIONS_PAGE = 1000
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_FILTER = re.compile(r"""\s*name\s*(=|(?i:i?like))\s*(?:'([^'"]*)'|"([^'"]*)")\s*""")
# Clients add it to every search of models, since MLflow keeps prompts as models too; here are none.
_NO_PROMPTS = re.compile(r"(?:\s+(?i:and)\s+|\s*)tag\.`mlflow\.prompt\.is_prompt`\s*!=\s*'true'\s*$")
_CODES = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    413: "INVALID_PARAMETER_VALUE",
    422: "INVALID_PARAMETER_VALUE",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
}
_HIDING = ("E_REPOSITORY", "E_GATED")  # who sent no token is asked for one
_log = logging.getLogger("fedhub.mlflow")


class MlflowRoute(ClientRoute):
    """A route whose errors MLflow understands."""

    def refuse(self, request: Request, error: FedhubError) -> Response:
        return refusal(request, error)

    def misread(self, text: str) -> Response:
        return said(400, text)


router = APIRouter(route_class=MlflowRoute, include_in_schema=False)


def refusal(request: Request, error: FedhubError) -> JSONResponse:
    """The answer that tells MLflow about an error."""
    status = status_of(error)
    if error.code in _HIDING and "authorization" not in request.headers:
        status = 401
    if status >= 500:
        _log.error("%s", error)
    text = f"{error.message}. {error.hint}" if error.hint else error.message
    return said(400 if status == 422 else status, text)


def said(status: int, text: str, code: str | None = None) -> JSONResponse:
    """An error in MLflow's own form."""
    headers = {"WWW-Authenticate": 'Bearer realm="fedhub"'} if status == 401 else {}
    if status == 503:
        headers["Retry-After"] = "1"
    body = {"error_code": code or _CODES.get(status, "INTERNAL_ERROR"), "message": text}
    return JSONResponse(body, status, headers=headers)


# --- the registry -----------------------------------------------------------------------------------------

Named = Annotated[str, Query(max_length=512)]


@router.get(f"{ROOT}/registered-models/get")
def registered_model(hub: HubHere, session: ReadSession, actor: CurrentActor, name: Named) -> dict[str, Any]:
    """A model with its newest version and its tags."""
    repo = _repo(hub, session, actor, name)
    return {"registered_model": _model(session, repo, name)}


@router.get(f"{ROOT}/registered-models/search")
def search_models(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    filter_: Annotated[str, Query(alias="filter", max_length=600)] = "",
    max_results: Annotated[int, Query(ge=1, le=1000)] = PAGE,
    page_token: Annotated[str | None, Query(max_length=600)] = None,
    order_by: Annotated[list[str] | None, Query(max_length=4)] = None,
) -> dict[str, Any]:
    """Models that the caller may see, by name; ``filter``: ``name = 'a'`` or ``name LIKE '%a%'``."""
    _check_order(order_by)
    wanted = _wanted(filter_)
    if wanted is not None and wanted[0] == "=":
        try:
            repos, following = [_repo(hub, session, actor, wanted[1])], None
        except Unchecked:
            repos, following = [], None
    else:
        text = None if wanted is None else wanted[1]
        size = min(max_results, PAGE)
        listed, following = revisions.page(
            hub, session, actor, "model", author=None, text=text, cursor=page_token, limit=size
        )
        repos = [repo for repo, _head in listed]
    names = mlflow_names(session, [repo.name for repo in repos])
    found: dict[str, Any] = {"registered_models": [_model(session, repo, names[repo.name]) for repo in repos]}
    return found if following is None else {**found, "next_page_token": following}


@router.get(f"{ROOT}/registered-models/alias")
def by_alias(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    name: Named,
    alias: Annotated[str, Query(max_length=128)],
) -> dict[str, Any]:
    """The version with a tag."""
    repo = _repo(hub, session, actor, name)
    tag = session.get(TagRow, (repo.name, alias))
    if tag is None:
        raise revisions.no_revision(repo, alias)
    return {"model_version": _versions(session, repo, name, [_row(session, repo, tag.version)])[0]}


@router.get(f"{ROOT}/registered-models/get-latest-versions")
def latest(hub: HubHere, session: ReadSession, actor: CurrentActor, name: Named) -> dict[str, Any]:
    """The newest version, for ``models:/NAME/latest``."""
    repo = _repo(hub, session, actor, name)
    return {"model_versions": _versions(session, repo, name, _numbered(session, repo)[:1])}


@router.post(f"{ROOT}/registered-models/get-latest-versions")
def latest_asked(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    name: Annotated[str, Body(embed=True, max_length=512)],
) -> dict[str, Any]:
    """The same, as newer clients ask."""
    return latest(hub, session, actor, name)


@router.get(f"{ROOT}/model-versions/get")
def model_version(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    name: Named,
    version: Annotated[str, Query(max_length=32)],
) -> dict[str, Any]:
    """One version."""
    repo = _repo(hub, session, actor, name)
    row = _row(session, repo, _number(version))
    return {"model_version": _versions(session, repo, name, [row])[0]}


@router.get(f"{ROOT}/model-versions/search")
def search_versions(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    filter_: Annotated[str, Query(alias="filter", max_length=600)] = "",
    max_results: Annotated[int, Query(ge=1)] = VERSIONS_PAGE,
    page_token: Annotated[str | None, Query(max_length=32)] = None,
    order_by: Annotated[list[str] | None, Query(max_length=4)] = None,
) -> dict[str, Any]:
    """Versions of one model, newest first; ``filter`` must be ``name = 'a'``."""
    _check_order(order_by)
    wanted = _wanted(filter_)
    if wanted is None or wanted[0] != "=":
        raise bad_field("filter", "versions are searched for one model: name = 'institution.model'")
    repo = _repo(hub, session, actor, wanted[1])
    rows = _numbered(session, repo)
    if page_token is not None:
        before = _number(page_token)
        rows = [row for row in rows if row.version < before]
    size = min(max_results, VERSIONS_PAGE)
    found: dict[str, Any] = {"model_versions": _versions(session, repo, wanted[1], rows[:size])}
    return {**found, "next_page_token": str(rows[size - 1].version)} if len(rows) > size else found


@router.get(f"{ROOT}/model-versions/get-download-uri")
def download_uri(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    name: Named,
    version: Annotated[str, Query(max_length=32)],
) -> dict[str, str]:
    """Where a version's files lie."""
    repo = _repo(hub, session, actor, name)
    return {"artifact_uri": _uri(_row(session, repo, _number(version)))}


def _repo(hub: Hub, session: Session, actor: Actor, name: str) -> Repo:
    return revisions.find(hub, session, actor, "model", model_name(session, name))


def _row(session: Session, repo: Repo, number: int) -> VersionRow:
    row = session.get(VersionRow, (repo.name, number))
    if row is None:
        raise revisions.no_revision(repo, str(number))
    return row


def _numbered(session: Session, repo: Repo) -> list[VersionRow]:
    rows = session.exec(select(VersionRow).where(VersionRow.name == repo.name)).all()
    return sorted(rows, key=lambda row: -row.version)


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise bad_field("version", f"a version is a number from 1, found {shown(text)}")
    return int(text)


def _wanted(text: str) -> tuple[str, str] | None:
    """Operator and operand of a filter; None: no filter."""
    text = _NO_PROMPTS.sub("", text)
    if not text.strip():
        return None
    match = _FILTER.fullmatch(text)
    if match is None:
        raise bad_field("filter", "this hub knows name = 'a' and name LIKE '%a%'")
    operator, operand = match[1].upper(), match[2] if match[2] is not None else match[3]
    if operator == "=":
        return "=", operand
    part = operand.removeprefix("%").removesuffix("%")
    if not part or "%" in part or operand == part:
        raise bad_field("filter", "LIKE takes '%part%' of institution/model here")
    return "LIKE", part


def _check_order(order_by: Sequence[str] | None) -> None:
    if order_by:
        raise bad_field("order_by", "models are listed by name and versions newest first, in no other order")


def _model(session: Session, repo: Repo, name: str) -> dict[str, Any]:
    rows = _numbered(session, repo)
    newest = _versions(session, repo, name, rows[:1])
    tags = session.exec(select(TagRow).where(TagRow.name == repo.name)).all()
    return {
        "name": name,
        "creation_timestamp": repo.created_at * 1000,
        "last_updated_timestamp": (rows[0].created_at if rows else repo.created_at) * 1000,
        "user_id": repo.owner,
        "latest_versions": newest,
        "aliases": [
            {"alias": tag.tag, "version": str(tag.version)} for tag in sorted(tags, key=lambda t: t.tag)
        ],
        "tags": [{"key": "fedhub.model", "value": repo.name}],
    }


def _versions(session: Session, repo: Repo, name: str, rows: Sequence[VersionRow]) -> list[dict[str, Any]]:
    tags = session.exec(select(TagRow).where(TagRow.name == repo.name)).all()
    return [
        {
            "name": name,
            "version": str(row.version),
            "creation_timestamp": row.created_at * 1000,
            "last_updated_timestamp": row.created_at * 1000,
            "user_id": repo.owner,
            "current_stage": "None",
            "source": _uri(row),
            "status": "READY",
            "aliases": sorted(tag.tag for tag in tags if tag.version == row.version),
            "tags": [
                {"key": "fedhub.model", "value": repo.name},
                {"key": "fedhub.asset", "value": row.asset_id},
                {"key": "fedhub.statement", "value": row.statement},
                *([{"key": "license", "value": row.license}] if row.license else []),
            ],
        }
        for row in rows
    ]


def _uri(row: VersionRow) -> str:
    return f"mlflow-artifacts:/{row.name}/{row.version}"


# --- artifacts --------------------------------------------------------------------------------------------


@router.get(ARTIFACTS)
def artifact_list(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    path: Annotated[str, Query(max_length=2048)] = "",
) -> dict[str, Any]:
    """Files and folders directly below ``institution/model/version[/folder]``; of a file the file itself."""
    repo, row, inside = _place(hub, session, actor, path)
    revisions.check_visible(actor, repo, row)
    sizes = dict(
        session.exec(
            select(VersionFileRow.name, VersionFileRow.size).where(VersionFileRow.asset_id == row.asset_id)
        ).all()
    )
    below: dict[str, dict[str, Any]] = {}
    prefix = f"{inside}/" if inside else ""
    for name in lookup.file_names(session, repo, row):
        if name == inside:
            leaf = name.rpartition("/")[2]
            return {"files": [_entry(leaf, sizes.get(name))]}
        if name.startswith(prefix):
            head, deeper, _ = name[len(prefix) :].partition("/")
            below[head] = {"path": head, "is_dir": True} if deeper else _entry(head, sizes.get(name))
    if inside and not below:
        raise no_entry(repo, row, inside)
    return {"files": [below[name] for name in sorted(below)]}


def _entry(name: str, size: int | None) -> dict[str, Any]:
    """A file; those that the hub makes have no size here, which clients take well."""
    return {"path": name, "is_dir": False, **({} if size is None else {"file_size": size})}


@router.api_route(ARTIFACTS + "/{path:path}", methods=["GET", "HEAD"])
def artifact(
    hub: HubHere, session: ReadSession, actor: CurrentActor, request: Request, path: str
) -> Response:
    """One file: an address that decides anew on each request; what the hub makes itself at once."""
    repo, row, inside = _place(hub, session, actor, path)
    grant = revisions.readable(hub, session, actor, repo, row)
    if is_reserved(inside) and inside in proof_paths(repo, row):
        made = file_at(hub, session, repo, row, inside)
        data = content_of(hub, session, row, made)
        if grant is not None:
            session.commit()  # gives the connection back before another one is taken
            ensure_receipt(hub, str(actor.institution), str(row.asset_id), grant)
        return Response(data, media_type="application/octet-stream", headers={"Cache-Control": "no-store"})
    found = session.get(VersionFileRow, (row.asset_id, inside))
    if found is None:
        raise no_entry(repo, row, inside)
    bearer = Bearer.of(actor, request.headers.get("authorization"))
    file = downloads.StoredFile(found.name, found.sha256, found.size)
    location = downloads.hand_over(hub, session, bearer, repo, row, file, grant)
    return Response(status_code=307, headers={"Location": location, "Cache-Control": "no-store"})


def _place(hub: Hub, session: Session, actor: Actor, path: str) -> tuple[Repo, RevisionRow, str]:
    """Model, first commit of the version, and the path inside of it."""
    parts = path.strip("/").split("/")
    if len(parts) < 3 or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise bad_field("path", f"expected institution/model/version[/file], found {shown(path)}")
    repo = revisions.find(hub, session, actor, "model", "/".join(parts[:2]))
    row = revisions.by_version(session, repo, _number(parts[2]))
    if row is None:
        raise revisions.no_revision(repo, parts[2])
    return repo, row, "/".join(parts[3:])


# --- the rest ---------------------------------------------------------------------------------------------


@router.api_route("/api/2.0/mlflow/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
@router.api_route("/api/2.0/mlflow-artifacts/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def unknown(rest: str) -> Response:
    """What is not here: writing, runs, experiments."""
    text = f"{rest[:200]!r}: this hub answers what reads registered models, and nothing else of MLflow"
    return said(404, f"{text}. Push and sign with fedhub model push", "ENDPOINT_NOT_FOUND")
