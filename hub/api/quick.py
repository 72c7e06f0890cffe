"""The routes that are asked most, ahead of all others and without the framework's questions about them.

A client that looks at a model asks these a hundred times: what a model is, where one of its files lies. Each
is one function in one worker thread. What they say, and to whom, is decided where it is for every route.

``QuickPaths`` stands before the application. Where an answer takes a few reads it is given at once; whatever
is more (bytes from the store, a receipt to be written, an error of ours) it leaves to the application, which
has the same routes, ahead of a hundred patterns, and answers in the threads of all others. What each site of
a round asks is here too: where weights lie, and to have its receipt logged.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import cast

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub.api import registry, runs, statements
from hub.api.huggingface import files, repos
from hub.api.huggingface.refusals import refusal
from hub.api.lane import Lanes
from hub.context import Hub
from hub.errors import no_room
from storage.errors import FedhubError

# What a request gets; with ``brief``, None where the answer would take more than a few reads.
Answer = Callable[[Hub, Request, bool], Response | None]


class QuickRoute(Route):
    """A route that says of itself which it is, as FastAPI's do."""

    def __init__(self, path: str, answer: Answer) -> None:
        super().__init__(path, _endpoint(answer))
        self.answer = answer

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the request is for this route."""
        match, found = super().matches(scope)
        if match is Match.FULL:
            found["route"] = self
        return match, found


# What a posted body gets, once it is written.
Written = Callable[[Hub, Request, bytes], Response]
QUICK_POSTS: dict[str, Written] = {"/api/v1/statements": statements.post_answer}


class QuickPaths:
    """ASGI middleware around the application that has ``quick_routes``."""

    def __init__(self, app: ASGIApp, hub: Hub, lanes: Lanes) -> None:
        self._app, self._hub, self._lanes, self._routes = app, hub, lanes, quick_routes()
        self._posts = {path: (Route(path, work), work) for path, work in QUICK_POSTS.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        response = None
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._posts:
            first = await receive()
            response, receive = await self._write(scope, first), _again(first, receive)
        elif scope["type"] == "http":
            response = await self._brief(scope)
        await (response or self._app)(scope, receive, send)

    async def _write(self, scope: Scope, message: Message) -> Response | None:
        if message["type"] != "http.request" or message.get("more_body"):
            return None
        route, work = self._posts[scope["path"]]
        given = partial(work, self._hub, Request(scope), message.get("body", b""))
        try:
            done = await self._lanes.writes.do(given)
        except (FedhubError, SQLAlchemyError, OSError, ValidationError):
            return None  # nothing is written: the application's to tell
        scope["route"] = route
        return done

    async def _brief(self, scope: Scope) -> Response | None:
        for route in self._routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                try:
                    return await self._lanes.reads.do(partial(route.answer, self._hub, Request(scope), True))
                except (FedhubError, SQLAlchemyError):
                    return None  # the application's to tell
        return None


def quick_routes() -> Sequence[QuickRoute]:
    """In the order in which they are tried."""
    return (
        QuickRoute("/api/v1/models/{institution}/{name}", registry.model_answer),
        QuickRoute("/api/v1/runs/{plan}/weights/{sha256}", runs.weights_answer),
        QuickRoute("/api/{kind:repokind}/{ns}/{name}", _stock(repos.info_answer)),
        QuickRoute("/datasets/{ns}/{name}/resolve/{rest:path}", _stock(files.dataset_file_answer)),
        QuickRoute("/{ns}/{name}/resolve/{rest:path}", _stock(files.model_file_answer)),
    )


def _again(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _endpoint(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        hub = cast(Hub, request.app.state.hub)
        return cast(Response, await run_in_threadpool(answer, hub, request, False))

    return endpoint


def _stock(answer: Answer) -> Answer:
    """The same with errors as stock clients know them."""

    def work(hub: Hub, request: Request, brief: bool) -> Response | None:
        try:
            return answer(hub, request, brief)
        except FedhubError as error:
            return refusal(request, error)
        except (OSError, OperationalError) as error:
            full = no_room(error)
            if full is None:
                raise
            return refusal(request, full)

    return work
