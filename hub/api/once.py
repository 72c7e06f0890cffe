"""Creating requests that may be sent again: the same ``Idempotency-Key`` gets the first answer.

Only for routes whose repetition would create a second thing. Where a request names what it makes (a
statement, a plan, a run), repeating it answers with the first anyway, and nothing needs to be kept. The
answer is kept in the transaction that makes the thing, so there is never one without the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, delete

from hub.api.auth import CurrentActor
from hub.context import Hub
from hub.errors import bad_field, conflict
from hub.tables import AnswerRow
from storage.errors import Refused

HEADER = "Idempotency-Key"
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Once:
    """One request's key; ``key`` is None when it bears none, and then nothing is kept."""

    caller: str
    key: str | None  # digest of the header's text
    asked: str  # digest of path and body

    def answer(
        self, hub: Hub, session: Session, form: type[M], make: Callable[[], M], *, secret: bool = False
    ) -> M:
        """What ``make`` gives, or gave when the same caller sent this request before.

        Args:
            form: type of the answer.
            make: does the work in ``session``.
            secret: the answer holds a secret and is not kept; a repetition is told so.
        Raises:
            Refused: ``E_FIELD`` (the key was used for another request), ``E_TOLD_ONCE``, ``E_UNDER_WAY``.
        """
        if self.key is None:
            return make()
        now = hub.ledger.now()
        old = now - hub.settings.idempotency_hours * 3600
        session.exec(delete(AnswerRow).where(col(AnswerRow.created_at) < old))
        kept = session.get(AnswerRow, (self.caller, self.key))
        if kept is None:
            row = AnswerRow(caller=self.caller, key=self.key, request=self.asked, created_at=now)
            self._reserve(session, row)
            made = make()
            row.body = None if secret else made.model_dump_json().encode()
            session.add(row)
            return made
        return self._again(kept, form)

    def _reserve(self, session: Session, row: AnswerRow) -> None:
        try:
            with session.begin_nested():
                session.add(row)
                session.flush()
        except IntegrityError as error:
            raise Refused(
                "E_UNDER_WAY", "the same request is being answered", "Try again in a moment.", status=503
            ) from error

    def _again(self, kept: AnswerRow, form: type[M]) -> M:
        if kept.request != self.asked:
            raise bad_field(HEADER, "was used for another request", "Use a new key for a new request.")
        if kept.body is None:
            raise conflict(
                "E_TOLD_ONCE",
                "this request was answered, and its answer held a secret that is told only once",
                "Revoke what it made and ask again with a new key.",
            )
        return form.model_validate_json(kept.body)


async def once_of(
    request: Request,
    actor: CurrentActor,
    key: Annotated[
        str | None,
        Header(alias=HEADER, min_length=8, max_length=128, description="Repeats get the first answer"),
    ] = None,
) -> Once:
    """The key that this request bears."""
    asked = sha256(f"{request.url.path}\n".encode() + await request.body()).hexdigest()
    return Once(actor.name, None if key is None else sha256(key.encode()).hexdigest(), asked)


OnceHere = Annotated[Once, Depends(once_of)]
