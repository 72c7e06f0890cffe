"""Reading files of a revision: small ones through the hub, large ones at an address of the download origin.

A client's HEAD tells commit, name of the bytes and size; its cache needs all three. Every answer is
decided by ``services.revisions.readable``, and a pull under a grant leaves its receipt in the log.
"""

import re
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import RedirectResponse

from hub.api.auth import HubHere, ReadSession, actor_at_once
from hub.api.huggingface.asking import revision_and_path, warn_about
from hub.api.huggingface.refusals import refusal
from hub.context import Hub
from hub.glances import Glance
from hub.services import downloads, lookup, revisions
from hub.services.commits import Commit
from hub.services.downloads import Bearer
from hub.services.pulls import ensure_receipt
from hub.services.repo_files import RepoFile, content_of, file_at, no_entry
from hub.services.revisions import Kind
from storage.errors import Unchecked

download_router = APIRouter(tags=["downloads"])
_RANGE = re.compile(r"bytes=(?:([0-9]{1,15})-([0-9]{0,15})|-([0-9]{1,15}))")


def dataset_file_answer(hub: Hub, request: Request, brief: bool) -> Response | None:
    """One file of a data set (``hub.api.quick``)."""
    return _resolve(hub, request, "dataset", 4, brief)


def model_file_answer(hub: Hub, request: Request, brief: bool) -> Response | None:
    """One file of a model (``hub.api.quick``)."""
    return _resolve(hub, request, "model", 3, brief)


def _resolve(hub: Hub, request: Request, kind: Kind, skip: int, brief: bool) -> Response | None:
    if brief and request.method != "HEAD":
        return None
    with hub.database.glance() as glance:
        return _file(hub, glance, request, kind, skip, brief)


def _file(hub: Hub, glance: Glance, request: Request, kind: Kind, skip: int, brief: bool) -> Response | None:
    name = "{ns}/{name}".format_map(request.path_params)
    actor = actor_at_once(request, hub, glance)
    revision, path = revision_and_path(request, skip)
    found = lookup.look(hub, glance, actor, kind, name, revision, path)
    if found is None:
        repo = revisions.find(hub, glance.session, actor, kind, name)
        row: Commit = revisions.resolve(glance.session, actor, repo, revision)
        grant = revisions.readable(hub, glance, actor, repo, row)
        file = None
    else:
        repo, row = found.repo, found.commit
        grant = revisions.readable(hub, glance, actor, repo, row, log_rows=found.log_rows)
        file = lookup.found_file(found, path)
    if brief and (found is None or (file is None and not lookup.certainly_absent(found, path))):
        return None
    try:
        if found is not None and lookup.certainly_absent(found, path):
            raise no_entry(repo, row, path)
        file = file or file_at(hub, glance.session, repo, row, path)
    except Unchecked as error:
        if error.code != "E_ENTRY":
            raise
        return refusal(request, error, X_Repo_Commit=row.id)  # so that clients remember the absence
    if grant is not None and (file.large or request.method == "GET"):
        if brief:
            return None
        glance.let_go()  # one connection at a time
        ensure_receipt(hub, str(actor.institution), str(row.asset_id), grant)
    if file.large:
        bearer = Bearer.of(actor, request.headers.get("authorization"))
        response = Response(status_code=302, headers=_large(hub, bearer, repo, row, file))
    else:
        response = _small(hub, glance, request, row, file)
    response.headers["X-Repo-Commit"] = row.id
    response.headers["Cache-Control"] = "private, no-cache"
    if row.asset_id is not None:
        response.headers["X-Manifest-Sha256"] = row.asset_id
    warn_about(hub, glance, response, repo, row, grant)
    return response


def _large(hub: Hub, bearer: Bearer, repo: revisions.Repo, row: Commit, file: RepoFile) -> dict[str, str]:
    return {
        "Location": downloads.address(hub, bearer, repo, row, file),
        "ETag": f'"{file.etag}"',
        "X-Linked-Etag": f'"{file.etag}"',
        "X-Linked-Size": str(file.size),
    }


def _small(hub: Hub, glance: Glance, request: Request, row: Commit, file: RepoFile) -> Response:
    headers = {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    kind = "application/octet-stream"
    if request.method == "HEAD":
        headers["Content-Length"] = str(file.size)
        return Response(status_code=200, headers=headers, media_type=kind)
    window = _window(request.headers.get("range", ""), file.size)
    if window is None:
        return Response(content_of(hub, glance.session, row, file), 200, headers, kind)
    start, end = window
    if start >= end:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{file.size}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    return Response(content_of(hub, glance.session, row, file)[start:end], 206, headers, kind)


def _window(text: str, size: int) -> tuple[int, int] | None:
    """First byte and end of a single range; None for the whole file, also for other forms of ranges."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    if match[3]:
        return max(0, size - int(match[3])), size
    if match[2] and int(match[2]) < int(match[1]):
        return None  # RFC 9110, section 14.1.1: no range, to be ignored
    end = min(size, int(match[2]) + 1) if match[2] else size
    return int(match[1]), end


@download_router.api_route(
    "/f/{capability}", methods=["GET", "HEAD"], response_class=RedirectResponse, status_code=307
)
def follow(
    hub: HubHere, session: ReadSession, capability: Annotated[str, Path(max_length=4096)]
) -> RedirectResponse:
    """Decide anew, then send the caller on to an address of the store that lives seconds."""
    address = downloads.locate(hub, session, capability)
    return RedirectResponse(address, 307, headers={"Cache-Control": "no-store"})
