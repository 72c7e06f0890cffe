"""Creating requests that may be sent again: the same ``Idempotency-Key`` gets the first answer.

Only for routes whose repetition would create a second thing. Where a request names what it makes (a
statement, a plan, a run), repeating it answers with the first anyway, and nothing needs to be kept.
"""

from collections.abc import Callable, Coroutine
from hashlib import sha256
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from starlette.concurrency import run_in_threadpool

from hub.api.auth import current_actor, hub_of
from hub.api.limits import address_of
from hub.context import Hub
from hub.errors import bad_field, conflict
from hub.tables import AnswerRow
from storage.errors import Refused

HEADER = "Idempotency-Key"
TOLD_ONCE = "x-told-once"  # of a route's OpenAPI: its answer holds a secret and is not kept
ABANDONED_S = 60  # a request whose process died may be tried again after this


class OnceRoute(APIRoute):
    """A route whose POSTs honour ``Idempotency-Key``, per caller and for as long as the settings say."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, behind the table of answers."""
        answer = super().get_route_handler()
        told_once = bool((self.openapi_extra or {}).get(TOLD_ONCE))

        async def once(request: Request) -> Response:
            given = request.headers.get(HEADER)
            if request.method != "POST" or given is None:
                return await answer(request)
            if not 8 <= len(given) <= 128 or not given.isascii():
                raise bad_field(HEADER, "must be 8 to 128 ASCII characters")
            hub = hub_of(request)
            actor = await run_in_threadpool(current_actor, request, hub)
            caller = actor.name if actor.known else f"address {address_of(request.scope)}"
            body = await request.body()
            asked = sha256(f"{request.method} {request.url.path}\n".encode() + body).hexdigest()
            name = (caller, sha256(given.encode()).hexdigest())
            kept = await run_in_threadpool(_begin, hub, name, asked)
            if kept is not None:
                return Response(kept.body, kept.status, media_type="application/json")
            try:
                made = await answer(request)
            except BaseException:
                await run_in_threadpool(_forget, hub, name)
                raise
            if made.status_code >= 300:
                await run_in_threadpool(_forget, hub, name)
            else:
                kept_body = None if told_once else bytes(made.body)
                await run_in_threadpool(_keep, hub, name, made.status_code, kept_body)
            return made

        return once


def _begin(hub: Hub, name: tuple[str, str], asked: str) -> AnswerRow | None:
    """The kept answer, or None when this request is the first with its key."""
    now = hub.ledger.now()
    old = now - hub.settings.idempotency_hours * 3600
    try:
        with hub.database.session_scope() as session:
            session.exec(delete(AnswerRow).where(col(AnswerRow.created_at) < old))
            row = session.get(AnswerRow, name)
            if row is not None and row.status == 0 and row.created_at + ABANDONED_S < now:
                session.delete(row)
                session.flush()
                row = None
            if row is None:
                session.add(AnswerRow(caller=name[0], key=name[1], request=asked, status=0, created_at=now))
                return None
    except IntegrityError as error:
        raise _under_way() from error
    if row.request != asked:
        raise Refused(
            "E_IDEMPOTENCY", f"this {HEADER} was used for another request", status=422, field=HEADER
        )
    if row.status == 0:
        raise _under_way()
    if row.body is None:
        raise conflict(
            "E_TOLD_ONCE",
            "this request was answered, and its answer held a secret that is told only once",
            "Revoke what it made and ask again with a new key.",
        )
    return row


def _under_way() -> Refused:
    # 503 and not 409: the caller shall try again, and then gets the answer.
    return Refused("E_UNDER_WAY", "the same request is being answered", "Try again in a moment.", status=503)


def _keep(hub: Hub, name: tuple[str, str], status: int, body: bytes | None) -> None:
    with hub.database.session_scope() as session:
        row = session.get(AnswerRow, name)
        if row is not None:
            row.status, row.body = status, body
            session.add(row)


def _forget(hub: Hub, name: tuple[str, str]) -> None:
    with hub.database.session_scope() as session:
        row = session.get(AnswerRow, name)
        if row is not None and row.status == 0:
            session.delete(row)
