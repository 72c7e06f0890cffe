"""Routes that answer errors in the form that one family of stock clients reads.

The words are put to an error where every other route's are (``hub.api.problems``): it has left the route by
then, and with it the transaction, of which nothing stays.
"""

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

    def malformed(self, error: RequestValidationError) -> Response:
        """``misread`` with the first field that breaks a rule."""
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"] if step not in ("body", "query", "path"))
        return self.misread(f"{field or 'body'}: {first['msg']}")
