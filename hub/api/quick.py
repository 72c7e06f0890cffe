"""The routes that are asked most, ahead of all others and without the framework's questions about them.

A client that looks at a model asks these a hundred times: what a model is, where one of its files lies. Each
is one function in one worker thread. What they say, and to whom, is decided where it is for every route; that
they stand first spares comparing the path with a hundred patterns, Starlette's plain routes spare the rest.
"""

from collections.abc import Callable, Sequence
from typing import cast

from fastapi import Request, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from hub.api import registry
from hub.api.huggingface import files, repos
from hub.api.huggingface.refusals import refusal
from hub.context import Hub
from storage.errors import FedhubError

Answer = Callable[[Hub, Request], Response]


class QuickRoute(Route):
    """A route that says of itself which it is, as FastAPI's do."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the request is for this route."""
        match, found = super().matches(scope)
        if match is Match.FULL:
            found["route"] = self
        return match, found


def quick_routes() -> Sequence[Route]:
    """In the order in which they are tried."""
    return [
        _route("/api/v1/models/{institution}/{name}", registry.model_answer, stock=False),
        _route("/api/{kind:repokind}/{ns}/{name}", repos.info_answer),
        _route("/datasets/{ns}/{name}/resolve/{rest:path}", files.dataset_file_answer),
        _route("/{ns}/{name}/resolve/{rest:path}", files.model_file_answer),
    ]


def _route(path: str, answer: Answer, *, stock: bool = True) -> Route:
    def endpoint(request: Request) -> Response:
        hub = cast(Hub, request.app.state.hub)
        if not stock:
            return answer(hub, request)
        try:
            return answer(hub, request)
        except FedhubError as error:
            return refusal(request, error)

    return QuickRoute(path, endpoint, methods=["GET"], include_in_schema=False)
