"""Routes of pulls, and the one route of the download origin."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import RedirectResponse

from federation import wire
from hub.api.auth import CurrentActor, HubHere, ReadSession, WriteSession
from hub.api.problems import responses
from hub.services import pulls

router = APIRouter(tags=["pulls"])
download_router = APIRouter(tags=["downloads"])


@router.post("/pulls", status_code=201, responses=responses(404))
def pull(hub: HubHere, session: WriteSession, actor: CurrentActor, request: wire.PullRequest) -> wire.Pull:
    """Addresses of a version's files, by grant; the hub logs a signed receipt when a grant is used."""
    return pulls.pull(hub, session, actor, request)


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
