"""What routes ask for: the hub, a session that reads or writes, and who is calling.

A session is one transaction. It is committed when the route function has returned and before the answer is
sent, so an answer is never ahead of what it says.
"""

from collections.abc import Iterator
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlmodel import Session

from hub.access import Actor
from hub.context import Hub
from hub.services.identity import actor_of
from storage.errors import Refused


def hub_of(request: Request) -> Hub:
    """The hub that this app serves."""
    return cast(Hub, request.app.state.hub)


HubHere = Annotated[Hub, Depends(hub_of)]


def reading(hub: HubHere) -> Iterator[Session]:
    """A transaction that only reads."""
    with hub.database.session_scope(write=False) as session:
        yield session


def writing(hub: HubHere) -> Iterator[Session]:
    """A transaction that may write; on SQLite it waits its turn when it begins."""
    with hub.database.session_scope() as session:
        yield session


ReadSession = Annotated[Session, Depends(reading, scope="function")]
WriteSession = Annotated[Session, Depends(writing, scope="function")]


def current_actor(request: Request, hub: HubHere) -> Actor:
    """Who is calling; nobody known without an ``Authorization`` header, refused with a bad one."""
    known: Actor | None = getattr(request.state, "actor", None)
    if known is None:
        known = actor_of(hub, request.headers.get("authorization"))
        request.state.actor = known
    return known


CurrentActor = Annotated[Actor, Depends(current_actor)]


def coordinator_actor(actor: CurrentActor) -> Actor:
    """The coordinator and nobody else."""
    if actor.by != "coordinator":
        raise Refused(
            "E_ACCESS" if actor.known else "E_LOGIN",
            "this is for the coordinator alone",
            status=403 if actor.known else 401,
        )
    return actor


Coordinator = Annotated[Actor, Depends(coordinator_actor)]
