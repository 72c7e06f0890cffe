"""Routes of uploads: announce bytes, get orders for the store, say that they are there."""

from fastapi import APIRouter

from federation import wire
from hub.api.auth import CurrentActor, HubHere
from hub.api.problems import responses
from hub.services import plain_uploads, unhashed_uploads, uploads

router = APIRouter(tags=["uploads"])


@router.post("/uploads", status_code=201, responses=responses(409, 413))
def announce(hub: HubHere, actor: CurrentActor, request: wire.UploadRequest) -> wire.Upload:
    """Announce a file by digest and size; the orders fit those bytes only. A repeat goes on."""
    return uploads.announce(hub, actor, request)


@router.post("/small-files", status_code=204, responses=responses(413))
def small_files(hub: HubHere, actor: CurrentActor, request: wire.SmallFiles) -> None:
    """Give small files, bytes and all: each must have the digest named, and is the caller's to use."""
    plain_uploads.keep_group(hub, actor, request)


@router.post("/uploads/{upload_id}/orders", responses=responses(404))
def orders(hub: HubHere, actor: CurrentActor, upload_id: str, request: wire.UploadParts) -> wire.Upload:
    """Fresh orders for the parts that the store does not hold; it says itself which it holds."""
    del request
    return uploads.fresh_orders(hub, actor, upload_id)


@router.post("/uploads/{upload_id}/complete", responses=responses(404, 409))
def complete(hub: HubHere, actor: CurrentActor, upload_id: str, request: wire.UploadParts) -> wire.Upload:
    """Say that all bytes are in the store; while `checking` the hub reads the whole once: ask again."""
    del request
    return uploads.complete(hub, actor, upload_id)


@router.post("/unhashed-uploads", status_code=201, responses=responses())
def announce_unhashed(
    hub: HubHere, actor: CurrentActor, request: wire.UnhashedRequest
) -> wire.UnhashedAnswer:
    """Announce a large file by its size alone, to send it while it is hashed; no upload: hash it first."""
    return wire.UnhashedAnswer(upload=unhashed_uploads.announce(hub, actor, request.size))


@router.post("/unhashed-uploads/{upload_id}/complete", responses=responses(404, 409))
def complete_unhashed(
    hub: HubHere, actor: CurrentActor, upload_id: str, request: wire.UnhashedEnd
) -> wire.Upload:
    """Say that all bytes are in the store, and their digest: it must be the one that the store has found."""
    return unhashed_uploads.complete(hub, actor, upload_id, request.sha256)
