"""The routes that are asked most, ahead of all others and without the framework's questions about them.

A client that looks at a model asks these a hundred times: what a model is, where one of its files lies. Each
is one function in one worker thread. What they say, and to whom, is decided where it is for every route; that
they stand first spares comparing the path with a hundred patterns, Starlette's plain routes spare the rest.

They have a narrow lane of their own: on SQLite one thread, since Python runs one at a time anyway and threads
that wait for each other cost more than their work; on PostgreSQL a few, which wait for the server. What would
hold the lane up (bytes from the store, a receipt to be written) is done in the threads of all other routes.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from hub.api import registry
from hub.api.huggingface import files, repos
from hub.api.huggingface.refusals import refusal
from hub.context import Hub
from storage.errors import FedhubError

LANE_SQLITE, LANE_POSTGRESQL = 1, 6  # threads
# What a request gets; with ``brief``, None where the answer would take more than a few reads.
Answer = Callable[[Hub, Request, bool], Response | None]


class QuickRoute(Route):
    """A route that says of itself which it is, as FastAPI's do."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the request is for this route."""
        match, found = super().matches(scope)
        if match is Match.FULL:
            found["route"] = self
        return match, found


def quick_routes(hub: Hub) -> Sequence[Route]:
    """In the order in which they are tried."""
    lane = CapacityLimiter(LANE_SQLITE if hub.database.is_sqlite else LANE_POSTGRESQL)
    paths: dict[str, Answer] = {
        "/api/{kind:repokind}/{ns}/{name}": _stock(repos.info_answer),
        "/datasets/{ns}/{name}/resolve/{rest:path}": _stock(files.dataset_file_answer),
        "/{ns}/{name}/resolve/{rest:path}": _stock(files.model_file_answer),
    }
    ours = QuickRoute("/api/v1/models/{institution}/{name}", _endpoint(registry.model_answer, lane))
    return [ours, *(QuickRoute(path, _endpoint(answer, lane)) for path, answer in paths.items())]


def _endpoint(answer: Answer, lane: CapacityLimiter) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        hub = cast(Hub, request.app.state.hub)
        brief = await to_thread.run_sync(answer, hub, request, True, limiter=lane)
        if brief is not None:
            return brief
        return cast(Response, await to_thread.run_sync(answer, hub, request, False))

    return endpoint


def _stock(answer: Answer) -> Answer:
    """The same with errors as stock clients know them."""

    def work(hub: Hub, request: Request, brief: bool) -> Response | None:
        try:
            return answer(hub, request, brief)
        except FedhubError as error:
            return refusal(request, error)

    return work
