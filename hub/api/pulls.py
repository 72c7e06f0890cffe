"""Routes of pulls, and the one route of the download origin."""

from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from fastapi import APIRouter, Path, Response
from fastapi.responses import RedirectResponse

from federation import wire
from hub.api.auth import CurrentActor, HubHere, ReadSession, WriteSession
from hub.api.problems import responses
from hub.services import pulls

router = APIRouter(tags=["pulls"])
READERS = 8  # of the store at once, for one answer of small files
OCTETS = {"content": {"application/octet-stream": {}}, "description": "Bytes of several files"}
download_router = APIRouter(tags=["downloads"])


@router.post("/pulls", status_code=201, responses=responses(404))
def pull(hub: HubHere, session: WriteSession, actor: CurrentActor, request: wire.PullRequest) -> wire.Pull:
    """Addresses of a version's files, by grant; the hub logs a signed receipt when a grant is used."""
    return pulls.pull(hub, session, actor, request)


@download_router.get(
    "/d/{capability}/small/{number}", response_class=Response, responses={200: OCTETS, **responses(404)}
)
def small_files(
    hub: HubHere,
    capability: Annotated[str, Path(max_length=100)],
    number: Annotated[int, Path(ge=0, lt=10_000)],
) -> Response:
    """Decide the pull anew, then give one group of the version's small files, one after the other."""
    with hub.database.session_scope(write=False) as session:
        keys = pulls.small_files(hub, session, capability, number)
    with ThreadPoolExecutor(READERS, thread_name_prefix="small") as pool:
        data = b"".join(pool.map(hub.store.get, keys))
    return Response(data, media_type="application/octet-stream", headers={"Cache-Control": "no-store"})


@download_router.get(
    "/d/{capability}/{sha256}",
    status_code=307,
    response_class=RedirectResponse,
    responses={307: {"description": "A signed address of the store"}, **responses(404)},
)
def download(
    hub: HubHere,
    session: ReadSession,
    capability: Annotated[str, Path(max_length=100)],
    sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")],
) -> RedirectResponse:
    """Decide the pull anew, then send the caller on to an address of the store that lives seconds."""
    address = pulls.locate(hub, session, capability, sha256)
    return RedirectResponse(address, 307, headers={"Cache-Control": "no-store"})
