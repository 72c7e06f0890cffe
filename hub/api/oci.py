"""OCI registries' read protocol (distribution-spec 1.1) at ``/v2/``, for ``oras``, ``crane`` and the like.

A model's version is an artifact (``services.oci``). Who may read it is decided as everywhere; a file's bytes
come from the download origin, to which blobs redirect. A personal token works as a Basic password under any
user name, as a Bearer token, and through the token endpoint that registries' clients ask first. That endpoint
gives back the very token it was shown, so a revoked one ends at once; without one it gives a name for nobody.
"""

import base64
import binascii
import logging
import re
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from hub.access import ANONYMOUS
from hub.api.auth import HubHere, ReadSession, actor_in_lane
from hub.api.client_errors import ClientRoute
from hub.context import Hub
from hub.errors import status_of
from hub.services import downloads, oci
from hub.services.downloads import Bearer
from hub.services.revisions import SEGMENT, Repo
from storage.errors import FedhubError, Refused

NOBODY = "anonymous"  # the token of who has none: clients insist on one
TOKEN_S = 300
TAGS_MOST = 1000
_INSTITUTION = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_COUNT = re.compile(r"[0-9]{1,18}")
_CODES = {
    "E_TOKEN": "UNAUTHORIZED",
    "E_LOGIN": "UNAUTHORIZED",
    "E_REPOSITORY": "NAME_UNKNOWN",
    "E_REVISION": "MANIFEST_UNKNOWN",
    "E_ENTRY": "BLOB_UNKNOWN",
    "E_NOT_FOUND": "BLOB_UNKNOWN",
    "E_LIMIT": "SIZE_INVALID",
}
_HIDING = ("E_REPOSITORY", "E_GATED")  # who sent no token is asked for one
_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
_log = logging.getLogger("fedhub.oci")


class Bad(Refused):
    """A request that breaks the protocol's own rules, with the protocol's code."""


def bad(code: str, message: str, hint: str = "", *, status: int = 400) -> Bad:
    """A refusal with one of the codes of distribution-spec, section *Error Codes*."""
    return Bad(code, message, hint, status=status)


class OciRoute(ClientRoute):
    """A route whose errors registries' clients understand."""

    def refuse(self, request: Request, error: FedhubError) -> Response:
        return refusal(request, error)

    def misread(self, text: str) -> Response:
        return said(400, "UNSUPPORTED", text)


router = APIRouter(route_class=OciRoute, include_in_schema=False)


def refusal(request: Request, error: FedhubError) -> JSONResponse:
    """The answer that tells a registry's client about an error."""
    status = status_of(error)
    actor = getattr(request.state, "actor", ANONYMOUS)
    code = error.code if isinstance(error, Bad) else _CODES.get(error.code, "DENIED")
    if error.code in _HIDING and not actor.known:
        status, code = 401, "UNAUTHORIZED"
    if status >= 500:
        _log.error("%s", error)
        code = "UNAVAILABLE"
    text = f"{error.message}. {error.hint}" if error.hint else error.message
    answer = said(status, code, text, error.code)
    if status == 401:
        answer.headers["WWW-Authenticate"] = _challenge(request)
    if status == 503:
        answer.headers["Retry-After"] = "1"
    return answer


def said(status: int, code: str, text: str, own: str | None = None) -> JSONResponse:
    """An error in the protocol's form."""
    told: dict[str, Any] = {"code": code, "message": text}
    if own is not None:
        told["detail"] = {"code": own}
    return JSONResponse({"errors": [told]}, status, headers=_VERSION)


def _challenge(request: Request) -> str:
    """Where to get a token, and for what (distribution token specification)."""
    hub = cast(Hub, request.app.state.hub)
    parts = [f'realm="{hub.settings.public}/v2/token"', f'service="{hub.settings.origin}"']
    asked = request.path_params
    names = str(asked.get("ns", "")), str(asked.get("name", ""))
    if _INSTITUTION.fullmatch(names[0]) and SEGMENT.fullmatch(names[1]):
        parts.append(f'scope="repository:{names[0]}/{names[1]}:pull"')
    return "Bearer " + ",".join(parts)


# --- who is calling ---------------------------------------------------------------------------------------


def bearer_header(authorization: str | None) -> str | None:
    """What the header says as a Bearer header: Basic's password is a token; None: nobody.

    Raises:
        Bad: ``UNAUTHORIZED``; Basic credentials that are none.
    """
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None if authorization is None or value.strip() == NOBODY else authorization
    try:
        text = base64.b64decode(value.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise bad("UNAUTHORIZED", "the Basic credentials are not base64 of user:token", status=401) from error
    password = text.partition(":")[2]
    if not password:
        raise bad("UNAUTHORIZED", "Basic credentials need a personal token as password", status=401)
    return f"Bearer {password}"


async def caller(request: Request, hub: HubHere) -> Bearer:
    """Who is calling, and by which token."""
    header = bearer_header(request.headers.get("authorization"))
    actor = await actor_in_lane(request, hub, header)
    request.state.actor = actor
    return Bearer.of(actor, header)


CallerHere = Annotated[Bearer, Depends(caller)]


@router.api_route("/v2/", methods=["GET", "HEAD"])
@router.api_route("/v2", methods=["GET", "HEAD"])
def ping(request: Request, asking: CallerHere) -> Response:
    """Whether this is a registry; who sent nothing is told where to get a token, as nobody too."""
    if not asking.actor.known and "authorization" not in request.headers:
        raise bad("UNAUTHORIZED", "ask for a token first; public models need none of yours", status=401)
    return JSONResponse({}, headers=_VERSION)


@router.get("/v2/token")
def token(request: Request, asking: CallerHere) -> Response:
    """The token that was shown as a password, once it was checked; nobody's where none was."""
    given = bearer_header(request.headers.get("authorization"))
    text = NOBODY if given is None or not asking.actor.known else given.partition(" ")[2]
    body = {"token": text, "access_token": text, "expires_in": TOKEN_S}
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


# --- reading ----------------------------------------------------------------------------------------------


def repo_here(
    hub: HubHere,
    session: ReadSession,
    asking: CallerHere,
    ns: Annotated[str, Path(max_length=253)],
    name: Annotated[str, Path(max_length=96)],
) -> Repo:
    """The model that a repository's name means, if the caller may know of it."""
    if not _INSTITUTION.fullmatch(ns) or not SEGMENT.fullmatch(name):
        raise bad("NAME_INVALID", f"{ns[:80]}/{name}: a repository is institution/name")
    return oci.repository(hub, session, asking.actor, ns, name)


RepoHere = Annotated[Repo, Depends(repo_here)]


@router.get("/v2/{ns}/{name}/tags/list")
def tag_list(
    session: ReadSession,
    asking: CallerHere,
    repo: RepoHere,
    n: Annotated[str | None, Query(max_length=32)] = None,
    last: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """Tags and version numbers, in lexical order; ``n`` at most 1,000 a page."""
    if n is not None and not _COUNT.fullmatch(n):
        raise bad("PAGINATION_NUMBER_INVALID", f"n must be a whole number, found {n!r}")
    size = TAGS_MOST if n is None else min(int(n), TAGS_MOST)
    names = [one for one in oci.tag_names(session, asking.actor, repo) if one > last]
    shown, headers = names[:size], dict(_VERSION)
    if shown and len(names) > size:
        headers["Link"] = f'</v2/{repo.name}/tags/list?n={size}&last={shown[-1]}>; rel="next"'
    return JSONResponse({"name": repo.name, "tags": shown}, headers=headers)


@router.api_route("/v2/{ns}/{name}/manifests/{reference}", methods=["GET", "HEAD"])
def manifest(
    hub: HubHere,
    session: ReadSession,
    asking: CallerHere,
    repo: RepoHere,
    request: Request,
    reference: Annotated[str, Path(max_length=512)],
) -> Response:
    """A manifest by tag, version number (``v3``) or digest."""
    if ":" in reference:
        _check_digest(reference)
        found = oci.by_digest(hub, session, asking.actor, repo, reference, manifests=True)
    elif _TAG.fullmatch(reference):
        found = oci.named(hub, session, asking.actor, repo, reference)
    else:
        raise bad("MANIFEST_INVALID", f"{reference[:80]!r} is neither a tag nor a digest")
    return _document(request, found)


@router.api_route("/v2/{ns}/{name}/blobs/{digest}", methods=["GET", "HEAD"])
def blob(
    hub: HubHere,
    session: ReadSession,
    asking: CallerHere,
    repo: RepoHere,
    request: Request,
    digest: Annotated[str, Path(max_length=512)],
) -> Response:
    """A layer, at an address that decides anew on each request; small documents at once."""
    _check_digest(digest)
    file = oci.file_by_digest(hub, session, asking.actor, repo, digest)
    if file is None:
        try:
            return _document(
                request, oci.by_digest(hub, session, asking.actor, repo, digest, manifests=False)
            )
        except FedhubError as error:
            if error.code != "E_REVISION":
                raise
            raise bad("BLOB_UNKNOWN", f"{repo.name} has no blob {digest}", status=404) from error
    headers = _VERSION | {"Docker-Content-Digest": digest, "Accept-Ranges": "bytes"}
    headers |= {"ETag": f'"{digest}"', "Cache-Control": "private, no-cache"}
    if request.method == "HEAD":
        headers["Content-Length"] = str(file.size)
        return Response(status_code=200, headers=headers, media_type="application/octet-stream")
    headers["Location"] = downloads.hand_over(hub, session, asking, repo, file.row, file, file.grant)
    return Response(status_code=307, headers=headers)


@router.get("/v2/{ns}/{name}/referrers/{digest}")
def referrers(
    hub: HubHere,
    session: ReadSession,
    asking: CallerHere,
    repo: RepoHere,
    digest: Annotated[str, Path(max_length=512)],
    artifact_type: Annotated[str | None, Query(alias="artifactType", max_length=255)] = None,
) -> Response:
    """The bundles that prove a version."""
    _check_digest(digest)
    found = oci.referrers(hub, session, asking.actor, repo, digest)
    headers = dict(_VERSION)
    if artifact_type is not None:
        found = [one for one in found if one["artifactType"] == artifact_type]
        headers["OCI-Filters-Applied"] = "artifactType"
    index = {"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": found}
    return JSONResponse(index, headers=headers, media_type=oci.INDEX_TYPE)


@router.api_route("/v2/{rest:path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def unknown(request: Request, rest: str) -> Response:
    """What is not here: writing, and names that are not institution/name."""
    if request.method not in ("GET", "HEAD"):
        text = "this registry is read-only: versions are pushed and signed with fedhub model push"
        return said(405, "UNSUPPORTED", text)
    return said(404, "NAME_UNKNOWN", f"{rest[:200]!r} is no path of this registry")


def _check_digest(text: str) -> None:
    if not _DIGEST.fullmatch(text):
        raise bad("DIGEST_INVALID", f"{text[:100]!r}: a digest is sha256: and 64 hex digits")


def _document(request: Request, found: oci.Document) -> Response:
    headers = _VERSION | {"Docker-Content-Digest": found.digest, "ETag": f'"{found.digest}"'}
    headers["Cache-Control"] = "private, no-cache"
    if request.method == "HEAD":
        headers["Content-Length"] = str(len(found.data))
        return Response(status_code=200, headers=headers, media_type=found.media_type)
    return Response(found.data, 200, headers, found.media_type)
