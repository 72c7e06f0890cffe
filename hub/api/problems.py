"""Every error as problem+json (RFC 9457): stable code, what is wrong, what to do next, and no more.

On the paths of pages people see the same as a page, with the same status."""

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from federation.wire import Problem
from hub.api.client_errors import ClientRoute
from hub.errors import no_room, status_of
from storage.causes import find_cause
from storage.errors import FedhubError, Refused, Unchecked

TITLES = {
    400: "Malformed request",
    401: "Login needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Contradicts what is here",
    410: "Over",
    412: "Changed meanwhile",
    413: "Too large",
    415: "Wrong media type",
    416: "Range not satisfiable",
    422: "Checked and refused",
    429: "Too many requests",
    500: "The hub failed",
    502: "The hub failed",
    503: "Try again later",
    507: "No space left",
}
_log = logging.getLogger("fedhub.problems")


def problem(
    status: int, code: str, detail: str, hint: str = "", field: str | None = None, **headers: str
) -> JSONResponse:
    """An answer of ``application/problem+json``."""
    found = find_cause(code)
    body = Problem(
        type=f"https://fedhub.dev/problems/{code}",
        title=TITLES.get(status, "Refused"),
        status=status,
        detail=detail,
        code=code,
        hint=hint,
        field=field,
        cause=None if found is None else found.cause,
        owner=None if found is None else found.owner,
        step=None if found is None else found.step,
    )
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if status == 401:
        sent.setdefault("WWW-Authenticate", 'Bearer realm="fedhub"')
    if status in (429, 503):
        sent.setdefault("Retry-After", "1")
    return JSONResponse(
        body.model_dump(exclude_none=True), status, headers=sent, media_type="application/problem+json"
    )


def answer_error(error: FedhubError) -> JSONResponse:
    """The problem that says what this error says."""
    field = error.field if isinstance(error, Refused) else None
    status = status_of(error)
    if status >= 500:
        _log.error("%s", error)
    return problem(status, error.code, error.message, error.hint, field)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route declares for OpenAPI: these statuses answer with a problem.

    Every route may also answer 401, 403, 422, 429, 503 and 507.
    """
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found = sorted({401, 403, 422, 429, 503, 507, *statuses})
    return {status: {"description": TITLES[status], "content": content} for status in found}


def add_problems(app: FastAPI) -> None:
    """Answer every exception that leaves a route."""

    @app.exception_handler(FedhubError)
    def known(request: Request, error: FedhubError) -> Response:
        return _told(request, error)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        route = request.scope.get("route")
        if isinstance(route, ClientRoute):
            return route.malformed(error)
        return _for_reader(request, _validation(error))

    @app.exception_handler(HTTPException)
    def plain(request: Request, error: HTTPException) -> Response:
        code = {404: "E_NOT_FOUND", 405: "E_METHOD", 400: "E_JSON"}.get(error.status_code, "E_HTTP")
        headers = {name.replace("-", "_"): value for name, value in (error.headers or {}).items()}
        return _for_reader(request, problem(error.status_code, code, str(error.detail), "", None, **headers))

    @app.exception_handler(OperationalError)
    @app.exception_handler(PoolTimeout)
    def database_away(request: Request, error: DBAPIError | PoolTimeout) -> Response:
        full = no_room(error)
        if full is not None:
            return _told(request, full)
        _log.error("database: %s", type(error).__name__, exc_info=error)
        away = Unchecked("E_DATABASE", "the hub's database does not answer", "Try again in a moment.")
        return _told(request, away)

    @app.exception_handler(OSError)
    def disk_full(request: Request, error: OSError) -> Response:
        full = no_room(error)
        if full is None:
            raise error  # ``unknown`` tells it
        return _told(request, full)

    @app.exception_handler(DataError)
    def unfit(request: Request, error: DataError) -> Response:
        # PostgreSQL holds no text with a NUL, which any address or JSON text can spell; SQLite does.
        _log.warning("database: a value that it cannot hold in %s", request.method)
        rule = "a text with a NUL, or a number out of range: the database cannot hold it"
        return _for_reader(request, problem(422, "E_FIELD", rule, "Leave it out."))

    @app.exception_handler(Exception)
    def unknown(request: Request, error: Exception) -> Response:
        _log.error("unexpected %s", type(error).__name__, exc_info=error)
        answer = problem(
            500, "E_INTERNAL", "the hub failed; nothing was changed", "Tell the operator the X-Request-Id."
        )
        return _for_reader(request, answer)


def _told(request: Request, error: FedhubError) -> Response:
    """The answer in the form that the route's clients read."""
    route = request.scope.get("route")
    if isinstance(route, ClientRoute):
        return route.refuse(request, error)
    return _for_reader(request, answer_error(error))


def _for_reader(request: Request, answer: JSONResponse) -> Response:
    """The same as a page, where the app has pages (``state.error_page``) and a person asked for this path."""
    show = getattr(request.app.state, "error_page", None)
    if show is None:
        return answer
    said = json.loads(bytes(answer.body))
    page: Response | None = show(request, answer.status_code, said["code"], said["detail"], said["hint"])
    if page is None:
        return answer
    for name in ("allow", "retry-after"):
        if name in answer.headers:
            page.headers[name] = answer.headers[name]
    return page


def _validation(error: RequestValidationError) -> JSONResponse:
    """The first field that breaks a rule; what was sent is never repeated."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return problem(400, "E_JSON", "the body is not JSON", "Send one JSON object.")
    where = [str(step) for step in first["loc"] if step not in ("body", "query", "path", "header")]
    field = ".".join(where) or "body"
    if first["type"] == "extra_forbidden":
        return problem(
            422, "E_FIELD_UNKNOWN", f"{field}: this field is not known here", "Leave it out.", field
        )
    return problem(422, "E_FIELD", f"{field}: {first['msg']}", "", field)
