"""What Xet clients ask when they upload: a token, then their chunks and what those make.

Anything else of that protocol is answered 404, upon which clients go on without it.
"""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from hub.api.auth import CurrentActor, HubHere
from hub.api.huggingface.asking import RepoHere
from hub.api.huggingface.refusals import StockRoute
from hub.services import xet_ingest
from hub.services.downloads import Bearer
from hub.services.xet_format import SHARD_BYTES, XORB_BYTES
from storage.errors import Refused

router = APIRouter(route_class=StockRoute, include_in_schema=False)
BODIES_AT_ONCE = 6  # each is held in memory


def bodies(request: Request) -> asyncio.Semaphore:
    """How many bodies this app holds at once; made on first use, in the app's own event loop."""
    state = request.app.state
    if not hasattr(state, "xet_bodies"):
        state.xet_bodies = asyncio.Semaphore(BODIES_AT_ONCE)
    found: asyncio.Semaphore = state.xet_bodies
    return found


@router.get("/api/{kind:repokind}/{ns}/{name}/xet-write-token/{revision:path}")
def write_token(
    hub: HubHere, actor: CurrentActor, request: Request, repo: RepoHere, revision: str
) -> Response:
    """Where chunks go, and a token for them."""
    del revision
    token = xet_ingest.write_token(hub, Bearer.of(actor, request.headers.get("authorization")), repo)
    address = f"{hub.settings.public}/xet"
    return JSONResponse(
        {"accessToken": token.text, "exp": token.expires, "casUrl": address},
        headers={
            "X-Xet-Access-Token": token.text,
            "X-Xet-Token-Expiration": str(token.expires),
            "X-Xet-Cas-Url": address,
        },
    )


@router.post("/xet/v1/xorbs/{prefix}/{name}")
async def xorb(hub: HubHere, request: Request, prefix: str, name: str) -> dict[str, bool]:
    """Take chunks."""
    del prefix
    actor = await run_in_threadpool(xet_ingest.holder, hub, request.headers.get("authorization"))
    async with bodies(request):
        body = await _body(request, XORB_BYTES)
        return {"was_inserted": await run_in_threadpool(xet_ingest.take_xorb, hub, actor, name, body)}


@router.post("/xet/v1/shards")
@router.post("/xet/shards")
async def shard(hub: HubHere, request: Request) -> dict[str, int]:
    """Take the description of files, and make them."""
    actor = await run_in_threadpool(xet_ingest.holder, hub, request.headers.get("authorization"))
    async with bodies(request):
        body = await _body(request, SHARD_BYTES)
    await run_in_threadpool(xet_ingest.take_shard, hub, actor, body)
    return {"result": 1}


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise Refused("E_LIMIT", f"the body is over {limit} bytes", status=413)
    return bytes(body)
