"""Routes for those who sign drafts: one revision with its manifest; versions of shared data sets, and
who may see them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path

from federation import wire
from hub.api.auth import CurrentActor, HubHere, ReadSession, WriteSession
from hub.api.problems import responses
from hub.services import drafts, revisions, signing

router = APIRouter(tags=["registry"])


@router.get("/repositories/{kind}/{institution}/{name}/revisions/{revision:path}", responses=responses(404))
def revision(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    kind: Literal["model", "dataset"],
    institution: str,
    name: str,
    revision: Annotated[str, Path(max_length=200)],
) -> wire.Revision:
    """A draft or version by branch, tag, number or commit id, with its manifest."""
    return signing.show(hub, session, actor, kind, f"{institution}/{name}", revision)


@router.post("/shared-datasets/{institution}/{name}/versions", status_code=201, responses=responses(404, 409))
def share(
    hub: HubHere, actor: CurrentActor, institution: str, name: str, request: wire.SharePost
) -> wire.Revision:
    """Make a draft of a shared data set a signed version (targets key)."""
    return signing.share(hub, actor, f"{institution}/{name}", request)


@router.put("/shared-datasets/{institution}/{name}/visibility", responses=responses(404))
def visibility(
    hub: HubHere,
    session: WriteSession,
    actor: CurrentActor,
    institution: str,
    name: str,
    request: wire.VisibilityChange,
) -> wire.VisibilityChange:
    """Say who may see the caller's shared data set; to open it wider needs a login with the targets key."""
    repo = revisions.find(hub, session, actor, "dataset", f"{institution}/{name}")
    drafts.set_visibility(hub, session, actor, repo, request.visibility)
    return request
