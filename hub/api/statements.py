"""Routes of signed statements and of packs."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from federation import wire
from hub.api.auth import CurrentActor, HubHere, ReadSession, actor_at_once
from hub.api.problems import responses
from hub.context import Hub
from hub.services import packs, posting, statements

router = APIRouter(tags=["statements"])
Filter = Annotated[str | None, Query(max_length=300)]
ZIP = {"content": {"application/zip": {}}, "description": "The pack as a zip archive"}


@router.post("/statements", responses=responses(409, 413))
def post(hub: HubHere, actor: CurrentActor, request: wire.StatementPost) -> wire.StatementRecord:
    """Log the caller's own signed statement; a repeat answers with the first's index.

    What it `announces` gets orders in the same answer.
    """
    return posting.post(hub, actor, request)


def post_answer(hub: Hub, request: Request, body: bytes) -> Response:
    """The same in one go (``hub.api.quick``).

    Raises:
        FedhubError, ValidationError: nothing was logged.
    """
    posted = wire.StatementPost.model_validate_json(body)
    with hub.database.glance() as glance:
        actor = actor_at_once(request, hub, glance)
    made = posting.post(hub, actor, posted)
    return Response(made.model_dump_json(), media_type="application/json")


@router.get("/statements", responses=responses())
def page(
    hub: HubHere,
    session: ReadSession,
    actor: CurrentActor,
    kind: Filter = None,
    subject: Filter = None,
    issuer: Filter = None,
    plan: Filter = None,
    cursor: Filter = None,
) -> wire.StatementPage:
    """Statements in log order, of those that the caller may read."""
    return statements.page(
        hub, session, actor, kind=kind, subject=subject, issuer=issuer, plan=plan, cursor=cursor
    )


@router.get("/statements/{statement_id}", responses=responses(404))
def get(session: ReadSession, actor: CurrentActor, statement_id: str) -> wire.StatementRecord:
    """One statement."""
    return statements.get(session, actor, statement_id)


@router.get("/packs/{asset_id}", response_class=Response, responses={200: ZIP, **responses(404)})
def pack(
    hub: HubHere, actor: CurrentActor, asset_id: str, from_size: Annotated[int, Query(ge=0, lt=1 << 53)] = 0
) -> Response:
    """All that an auditor needs for one asset: statements, rings, proofs, and the checkpoint above them."""
    raw = packs.pack_of(hub, actor, asset_id, from_size=from_size)
    name = f"pack-{asset_id[:12]}.zip"
    return Response(
        raw, media_type="application/zip", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )
