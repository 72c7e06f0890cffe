"""Errors as stock clients know them: a code and a text in headers, the text again as JSON.

Clients choose the exception that a person sees by ``X-Error-Code``; without one a 401 would be told as a
missing repository over https and as a bare HTTP error over http.
"""

import logging

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from hub.api.client_errors import ClientRoute
from hub.errors import status_of
from storage.errors import FedhubError, Refused

CODES = {
    "E_REPOSITORY": "RepoNotFound",
    "E_REVISION": "RevisionNotFound",
    "E_ENTRY": "EntryNotFound",
    "E_GATED": "GatedRepo",
}
HIDING = ("RepoNotFound", "GatedRepo")  # who sent no token is asked for one
BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - the text that clients look for
_log = logging.getLogger("fedhub.huggingface")


class StockRoute(ClientRoute):
    """A route whose errors stock clients understand."""

    def refuse(self, request: Request, error: FedhubError) -> Response:
        return refusal(request, error)

    def misread(self, text: str) -> Response:
        return said(400, None, text, "E_FIELD")


def refusal(request: Request, error: FedhubError, **headers: str) -> JSONResponse:
    """The answer that tells a stock client about an error."""
    status, code = status_of(error), CODES.get(error.code)
    if code in HIDING and "authorization" not in request.headers:
        status = 401
    if status >= 500:
        _log.error("%s", error)
    if isinstance(error, Refused) and error.code == "E_TOKEN":
        return said(401, None, BAD_TOKEN, error.code, detail=error.message, **headers)
    text = f"{error.message}. {error.hint}" if error.hint else error.message
    return said(status, code, text, error.code, **headers)


def said(
    status: int, code: str | None, text: str, own: str | None = None, detail: str = "", **headers: str
) -> JSONResponse:
    """An error with this status, code for clients and text."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    sent["X-Error-Message"] = header_text(text)
    if code is not None:
        sent["X-Error-Code"] = code
    if status == 401:
        sent["WWW-Authenticate"] = 'Bearer realm="fedhub"'
    if status in (429, 503):
        sent["Retry-After"] = "1"
    body = {"error": text, **({"code": own} if own else {}), **({"detail": detail} if detail else {})}
    return JSONResponse(body, status, headers=sent)


def header_text(text: str) -> str:
    """A text as a header can bear it: one line of ASCII."""
    return " ".join(text.split()).encode("ascii", "replace").decode()[:1000]
