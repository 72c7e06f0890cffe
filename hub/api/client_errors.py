"""Routes that answer errors in the form that one family of stock clients reads."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from storage.errors import FedhubError


class ClientRoute(APIRoute):
    """A route whose errors its own ``refuse`` and ``misread`` put into words."""

    def refuse(self, request: Request, error: FedhubError) -> Response:
        """The answer to a request that a service refuses."""
        raise error

    def misread(self, text: str) -> Response:
        """The answer to a request that cannot be read; ``text`` names the field and the rule."""
        raise NotImplementedError

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of every request."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await inner(request)
            except FedhubError as error:
                return self.refuse(request, error)
            except RequestValidationError as error:
                first = error.errors()[0]
                field = ".".join(str(step) for step in first["loc"] if step not in ("body", "query", "path"))
                return self.misread(f"{field or 'body'}: {first['msg']}")

        return handle
