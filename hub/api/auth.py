"""What routes ask for: the hub, a session that reads or writes, and who is calling.

A session is one transaction. It is committed when the route function has returned and before the answer is
sent, so an answer is never ahead of what it says. The few routes that are asked most take ``HubHere`` alone
and read by themselves (``Database.glance``): each sync dependency would be one more change of threads.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, cast

from fastapi import Depends, Request, Response
from sqlmodel import Session

from hub.access import ANONYMOUS, Actor
from hub.api.lane import Lanes
from hub.context import Hub
from hub.glances import Glance
from hub.services.identity import actor_of
from storage.errors import Refused


async def hub_of(request: Request) -> Hub:
    """The hub that this app serves; async, so that no thread is asked for it."""
    return cast(Hub, request.app.state.hub)


HubHere = Annotated[Hub, Depends(hub_of)]


async def reading(request: Request, hub: HubHere) -> AsyncIterator[Session]:
    """A transaction that only reads."""
    async with _transaction(request, hub.database.open_session(write=False)) as session:
        yield session


async def writing(request: Request, hub: HubHere) -> AsyncIterator[Session]:
    """A transaction that may write; on SQLite it waits its turn when it begins."""
    async with _transaction(request, hub.database.open_session()) as session:
        yield session


@asynccontextmanager
async def _transaction(request: Request, session: Session) -> AsyncIterator[Session]:
    """``Database.session_scope`` for the event loop: no thread is asked before the database is."""
    lanes: Lanes = request.app.state.lanes
    try:
        yield session
    except BaseException:
        if session.in_transaction():
            await lanes.endings.do(session.close)  # rolls back
        raise
    if session.in_transaction():
        await lanes.endings.do(partial(_commit, session))


def _commit(session: Session) -> None:
    with session:
        session.commit()


ReadSession = Annotated[Session, Depends(reading, scope="function")]
WriteSession = Annotated[Session, Depends(writing, scope="function")]


async def current_actor(request: Request, hub: HubHere) -> Actor:
    """Who is calling; nobody known without an ``Authorization`` header, refused with a bad one."""
    known: Actor | None = getattr(request.state, "actor", None)
    if known is None:
        known = await actor_in_lane(request, hub, request.headers.get("authorization"))
        request.state.actor = known
    return known


async def actor_in_lane(request: Request, hub: Hub, authorization: str | None) -> Actor:
    """``actor_of`` for the event loop."""
    if authorization is None:
        return ANONYMOUS
    lanes: Lanes = request.app.state.lanes
    return await lanes.reads.do(partial(actor_of, hub, authorization))


async def in_lists_lane(request: Request, work: Callable[[], Response]) -> Response:
    """The answer of a list, made in one of the few threads for lists."""
    lanes: Lanes = request.app.state.lanes
    return await lanes.lists.do(work)


def actor_at_once(request: Request, hub: Hub, glance: Glance) -> Actor:
    """As ``current_actor``, for routes that do all they do in one thread, at a glance."""
    known = actor_of(hub, request.headers.get("authorization"), glance)
    request.state.actor = known
    return known


CurrentActor = Annotated[Actor, Depends(current_actor)]


async def coordinator_actor(actor: CurrentActor) -> Actor:
    """The coordinator and nobody else."""
    if actor.by != "coordinator":
        raise Refused(
            "E_ACCESS" if actor.known else "E_LOGIN",
            "this is for the coordinator alone",
            status=403 if actor.known else 401,
        )
    return actor


Coordinator = Annotated[Actor, Depends(coordinator_actor)]
