"""Route of app bundles: where a lab's own code can be read before anybody runs it."""

from fastapi import APIRouter

from federation import wire
from hub.api.auth import CurrentActor, HubHere, ReadSession
from hub.api.problems import responses
from hub.services import apps

router = APIRouter(tags=["plans"])


@router.get("/apps/{sha256}", responses=responses(404))
def find(hub: HubHere, session: ReadSession, actor: CurrentActor, sha256: str) -> wire.WeightsLocation:
    """Where an app bundle can be read now: for readers of a plan that names it, and for who uploaded it."""
    return apps.find(hub, session, actor, sha256)
