"""How stock clients send files: what goes where, uploads past the hub, and the commit that names them.

A commit arrives as lines of JSON, one operation each, and is read as it arrives: small files are stored
one by one, so that no request is held in memory.
"""

import base64
import binascii
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from federation.stock_names import git_oid
from hub.access import Actor
from hub.api.auth import CurrentActor, HubHere, ReadSession
from hub.api.huggingface.asking import Name, Namespace, RepoHere, warn
from hub.api.huggingface.refusals import StockRoute
from hub.context import Hub
from hub.services import drafts, plain_uploads, revisions
from hub.services.drafts import Announced, Changes
from hub.services.plain_uploads import Place, Wanted
from hub.services.repo_files import remember_oids
from hub.services.revisions import Kind, Repo
from storage.encoding import is_digest, read_json
from storage.errors import Refused, Rejected, shown

router = APIRouter(route_class=StockRoute, include_in_schema=False)
LFS_TYPE = "application/vnd.git-lfs+json"
LINE_BYTES = 16 << 20  # of one operation, its file in base64 included
OPERATIONS_MOST = 50_000


class AnnouncedFile(BaseModel):
    """A file that is about to be sent; the sample of its bytes is not needed."""

    path: str = Field(max_length=4096)
    size: int = Field(ge=0)


class Preupload(BaseModel):
    """Files that are about to be sent."""

    files: list[AnnouncedFile]


class LfsObject(BaseModel):
    """One file by its digest."""

    oid: str = Field(max_length=128)
    size: int = Field(ge=0)


class LfsBatch(BaseModel):
    """Files by their digests, and how the client can send them."""

    operation: str
    transfers: list[str] = Field(default_factory=lambda: ["basic"])
    objects: list[LfsObject]


# --- what goes where --------------------------------------------------------------------------------------


@router.post("/api/{kind:repokind}/{ns}/{name}/preupload/{branch:path}")
def preupload(
    hub: HubHere, session: ReadSession, actor: CurrentActor, repo: RepoHere, branch: str, request: Preupload
) -> dict[str, Any]:
    """Which files go to the store, which into the commit, and which stay at home."""
    announced = [Announced(file.path, file.size) for file in request.files]
    advice = drafts.preupload(hub, session, actor, repo, branch, announced)
    return {
        "files": [
            {
                "path": one.path,
                "uploadMode": "lfs" if one.large else "regular",
                "shouldIgnore": one.ignore,
                **({"oid": one.oid} if one.oid else {}),
            }
            for one in advice
        ]
    }


# --- large files ------------------------------------------------------------------------------------------


@router.post("/datasets/{ns}/{name}.git/info/lfs/objects/batch")
def dataset_batch(
    hub: HubHere, actor: CurrentActor, ns: Namespace, name: Name, request: LfsBatch
) -> Response:
    """Where the large files of a data set go."""
    return _batch(hub, actor, "dataset", f"{ns}/{name}", request)


@router.post("/{ns}/{name}.git/info/lfs/objects/batch")
def model_batch(hub: HubHere, actor: CurrentActor, ns: Namespace, name: Name, request: LfsBatch) -> Response:
    """Where the large files of a model go."""
    return _batch(hub, actor, "model", f"{ns}/{name}", request)


def _batch(hub: Hub, actor: Actor, kind: Kind, name: str, request: LfsBatch) -> Response:
    with hub.database.session_scope(write=False) as session:
        revisions.check_writer(actor, revisions.find(hub, session, actor, kind, name))
    if request.operation != "upload":
        raise Refused("E_LFS", "this is for uploads; files are read by their paths", status=422)
    wanted = [Wanted(one.oid, one.size) for one in request.objects]
    in_parts = "multipart" in request.transfers
    places = plain_uploads.batch(hub, actor, wanted, in_parts=in_parts)
    body = {
        "transfer": "multipart" if any(len(place.parts) > 1 for place in places) else "basic",
        "objects": [_object(hub, place) for place in places],
    }
    return JSONResponse(body, media_type=LFS_TYPE)


def _object(hub: Hub, place: Place) -> dict[str, Any]:
    said: dict[str, Any] = {"oid": place.sha256, "size": place.size}
    if place.refused:
        return {**said, "error": {"code": 422, "message": place.refused}}
    if not place.parts:
        return said
    done = f"{hub.settings.public}/api/lfs/{place.id}"
    upload: dict[str, Any] = {"href": place.parts[0], "header": {}}
    if len(place.parts) > 1:
        numbered = {str(number): url for number, url in enumerate(place.parts, start=1)}
        upload = {"href": done, "header": {"chunk_size": str(place.part_bytes), **numbered}}
    return {**said, "actions": {"upload": upload, "verify": {"href": done, "header": {}}}}


@router.post("/api/lfs/{upload_id}")
def complete(hub: HubHere, upload_id: str) -> dict[str, bool]:
    """All bytes are there: they are read and hashed once. No token: the address is the secret."""
    plain_uploads.complete(hub, upload_id)
    return {"success": True}


# --- committing -------------------------------------------------------------------------------------------


@router.post("/api/{kind:repokind}/{ns}/{name}/commit/{branch:path}")
async def commit(
    hub: HubHere, actor: CurrentActor, request: Request, kind: Kind, ns: Namespace, name: Name, branch: str
) -> Response:
    """Operations, line by line, become the branch's next draft."""
    if request.query_params.get("create_pr") in ("1", "true", "True"):
        raise Refused("E_PULL_REQUEST", "this hub has no pull requests: commit to a branch of your own")
    repo = await run_in_threadpool(_writable, hub, actor, kind, f"{ns}/{name}")
    reading = _Reading(hub, actor, repo, branch)
    async for line in _lines(request, hub.settings.commit_limit):
        await run_in_threadpool(reading.take, line)
    made = await run_in_threadpool(reading.commit)
    response = JSONResponse(
        {
            "success": True,
            "commitOid": made,
            "commitUrl": f"{hub.settings.public}/{repo.path}/commit/{made}",
            "hookOutput": "",
        }
    )
    if reading.changes.dropped:
        names = ", ".join(shown(path) for path in reading.changes.dropped[:5])
        warn(
            response,
            "left out",
            f"left out of the commit: {names} (the hub makes these files, or ignores them)",
        )
    return response


def _writable(hub: Hub, actor: Actor, kind: Kind, name: str) -> Repo:
    with hub.database.session_scope(write=False) as session:
        repo = revisions.find(hub, session, actor, kind, name)
    revisions.check_writer(actor, repo)
    return repo


async def _lines(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body's lines as they arrive.

    Raises:
        Refused: ``E_LIMIT``; the body, or one of its lines, is too long.
    """
    waiting, total = bytearray(), 0
    async for piece in request.stream():
        total += len(piece)
        waiting += piece
        if total > limit or len(waiting) > LINE_BYTES + len(piece):
            raise Refused(
                "E_LIMIT",
                f"a commit has at most {limit} bytes, and {LINE_BYTES} in one operation",
                "Commit in several steps, or larger files through the store (LFS).",
                status=413,
            )
        while (end := waiting.find(b"\n")) >= 0:
            line = bytes(waiting[:end])
            del waiting[: end + 1]
            if line.strip():
                yield line
    if waiting.strip():
        yield bytes(waiting)


class _Reading:
    """One commit while its operations arrive."""

    def __init__(self, hub: Hub, actor: Actor, repo: Repo, branch: str) -> None:
        self._hub, self._actor, self._repo, self._branch = hub, actor, repo, branch
        self.changes = Changes()
        self._oids: dict[str, str] = {}
        self._count = 0

    def take(self, line: bytes) -> None:
        """The next operation."""
        self._count += 1
        if self._count > OPERATIONS_MOST:
            raise Refused("E_LIMIT", f"a commit has at most {OPERATIONS_MOST} operations", status=413)
        value = read_json(line, code="E_JSON", limit=LINE_BYTES + 1)
        key, said = (value.get("key"), value.get("value")) if isinstance(value, dict) else (None, None)
        if not isinstance(said, dict):
            raise _bad_line("expected an object with key and value")
        if key == "header":
            self._header(said)
        elif key == "file":
            self._file(said)
        elif key == "lfsFile":
            self._large_file(said)
        elif key == "deletedFile":
            self.changes.remove(_text(said, "path"))
        elif key == "deletedFolder":
            self.changes.remove_folder(_text(said, "path"))
        else:
            raise _bad_line(f"operation {shown(key)} is not known")

    def _header(self, said: dict[str, Any]) -> None:
        self.changes.title = _text(said, "summary")
        self.changes.message = _text(said, "description") if said.get("description") else ""
        self.changes.parent = _text(said, "parentCommit") if said.get("parentCommit") else None
        with self._hub.database.session_scope(write=False) as session:
            drafts.check_parent(session, self._repo, self._branch, self.changes.parent)

    def _file(self, said: dict[str, Any]) -> None:
        path, content = _text(said, "path"), said.get("content", "")
        if said.get("encoding", "base64") != "base64" or not isinstance(content, str):
            raise _bad_line(f"file {shown(path)}: expected its content in base64")
        if drafts.is_dropped(path):
            self.changes.dropped.append(path)
            return
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _bad_line(f"file {shown(path)}: its content is not base64") from error
        sha256, size = plain_uploads.keep_small(self._hub, self._actor, data)
        self._oids[sha256] = git_oid(data)
        self.changes.put(path, sha256, size)

    def _large_file(self, said: dict[str, Any]) -> None:
        path, sha256 = _text(said, "path"), _text(said, "oid")
        if said.get("algo", "sha256") != "sha256" or not is_digest(sha256):
            raise _bad_line(f"file {shown(path)}: expected its SHA-256")
        size = said.get("size")
        if size is None:  # a copy inside the hub: clients do not say how long it is
            with self._hub.database.session_scope(write=False) as session:
                size = plain_uploads.usable_blobs(self._hub, session, self._actor, [sha256]).get(sha256, 0)
        if type(size) is not int or size < 0:
            raise _bad_line(f"file {shown(path)}: its size is no number")
        self.changes.put(path, sha256, size)

    def commit(self) -> str:
        """Make the commit; its id."""
        remember_oids(self._hub, self._oids)
        return drafts.commit(self._hub, self._actor, self._repo, self._branch, self.changes).id


def _text(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str) or "\0" in value:
        raise _bad_line(f"{name} must be a text without NUL")
    return value


def _bad_line(rule: str) -> Rejected:
    return Rejected("E_JSON", f"commit: {rule}")
