"""What every request passes before any route sees it: size, form and rate limits, and what every answer
bears.

``Doorkeeper`` is plain ASGI. It gives the request its id, refuses bodies over the limit while they arrive,
reads a JSON body strictly (duplicate members, NaN and deep nesting are refused, which Python's reader would
let pass), counts requests per caller, adds the security headers, and writes one structured line per request:
route template, status, duration, request id and institution; never a query, header or body.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, MutableMapping
from hashlib import sha256
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub.api.problems import problem
from hub.logs import note
from hub.settings import Settings
from storage.encoding import read_json
from storage.errors import Rejected

# Requests that carry signed documents or small files, by the end of their path.
_STATEMENTS = re.compile(
    r"/api/v1/(statements|small-files|plans|institutions(/[^/]+/keyring)?|(models|shared-datasets)/.+/versions)"
)
# Requests whose routes read their bodies in pieces, each with a limit of its own.
_STREAMED = re.compile(r"/api/(models|datasets)/[^/]+/[^/]+/commit/|/xet/")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_COUNTED = ("/api/", "/v2/")
WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_HTTPS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}
Observe = Callable[[str, str, int, float], None]
_log = logging.getLogger("fedhub.requests")


class Rate:
    """At most ``per_minute`` events of one name, refilled evenly (a token bucket per name); 0: no limit."""

    NAMES = 10_000

    def __init__(self, per_minute: int) -> None:
        self._per_second = per_minute / 60
        self._burst = float(per_minute)
        self._levels: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, name: str, *, now: float | None = None) -> float:
        """Seconds to wait before this event would be allowed; 0: it is, and is counted."""
        if not self._per_second:
            return 0.0
        at = time.monotonic() if now is None else now
        with self._lock:
            level = self._level(name, at)
            if level < 1:
                return (1 - level) / self._per_second
            self._levels[name] = (level - 1, at)
            if len(self._levels) > self.NAMES:
                self._forget(at)
        return 0.0

    def _level(self, name: str, at: float) -> float:
        level, since = self._levels.get(name, (self._burst, at))
        return min(self._burst, level + (at - since) * self._per_second)

    def _forget(self, at: float) -> None:
        full = [name for name in self._levels if self._level(name, at) >= self._burst]
        for name in full or list(self._levels)[: self.NAMES // 2]:
            del self._levels[name]


class Doorkeeper:
    """ASGI middleware around one of the hub's apps."""

    def __init__(self, app: ASGIApp, settings: Settings, observe: Observe) -> None:
        self._app = app
        self._observe = observe
        self._settings = settings
        self._rate = Rate(settings.requests_per_minute)
        added = _HEADERS | (_HTTPS_HEADERS if settings.public.startswith("https:") else {})
        self._headers = [(name.lower().encode(), value.encode()) for name, value in added.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 500

        async def outward(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._dress(message, request_id, scope["path"])
            await send(message)

        try:
            refusal, body = await self._admit(scope, headers, receive)
            if refusal is not None:
                await refusal(scope, receive, outward)
            else:
                await self._app(scope, body, outward)
        finally:
            seconds = time.perf_counter() - began
            route = _route(scope)
            _record(scope, route, status, seconds, request_id)
            self._observe(scope["method"], route, status, seconds)

    async def _admit(
        self, scope: Scope, headers: Headers, receive: Receive
    ) -> tuple[JSONResponse | None, Receive]:
        wait_s = self._rate.take(_caller(scope, headers)) if scope["path"].startswith(_COUNTED) else 0.0
        if wait_s:
            refusal = problem(
                429,
                "E_RATE",
                "too many requests",
                "Wait as Retry-After says.",
                None,
                Retry_After=_whole(wait_s),
            )
            return refusal, receive
        if scope["method"] not in WITH_BODY or _STREAMED.match(scope["path"]):
            return None, receive
        if not scope["path"].startswith("/api/v1/"):
            body = await _read_body(headers, receive, self._settings.json_limit)
            if body is not None:
                return None, _replay(body, receive)
            rule = f"the body is over {self._settings.json_limit} bytes"
            return problem(413, "E_LIMIT", rule, "FEDHUB_JSON_LIMIT of this hub sets it."), receive
        statements = _STATEMENTS.fullmatch(scope["path"]) is not None
        limit = self._settings.statement_limit if statements else self._settings.json_limit
        body = await _read_body(headers, receive, limit)
        if body is None:
            hint = f"FEDHUB_{'STATEMENT' if statements else 'JSON'}_LIMIT of this hub sets it."
            return problem(413, "E_LIMIT", f"the body is over {limit} bytes", hint), receive
        return self._refuse_json(headers, body, limit), _replay(body, receive)

    def _refuse_json(self, headers: Headers, body: bytes, limit: int) -> JSONResponse | None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if not body or kind == "application/x-www-form-urlencoded":
            return None
        if kind != "application/json":
            return problem(415, "E_MEDIA_TYPE", "the body must be application/json", "Set Content-Type.")
        try:
            value = read_json(body, code="E_JSON", limit=limit)
        except Rejected as error:
            return problem(400, error.code, f"the body: {error.message}", "Send one strict JSON object.")
        if _depth(value, self._settings.json_depth) > self._settings.json_depth:
            rule = f"the body is nested deeper than {self._settings.json_depth} levels"
            return problem(400, "E_JSON", rule, "Flatten it.")
        return None

    def _dress(self, message: Message, request_id: str, path: str) -> None:
        headers: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
        there = {name for name, _value in headers}
        headers.append((b"x-request-id", request_id.encode("ascii")))
        headers.extend(pair for pair in self._headers if pair[0] not in there)
        if path.startswith("/api/") and b"cache-control" not in there:
            headers.append((b"cache-control", b"no-store"))
        message["headers"] = headers


async def _read_body(headers: Headers, receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None as soon as it is known to be over ``limit``."""
    announced = headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced) > limit:
        return None
    chunks: list[bytes] = []
    total = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(chunks)  # the caller is gone; the route will not be answered to anybody
        chunks.append(message.get("body", b""))
        total += len(chunks[-1])
        if total > limit:
            return None
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _depth(value: Any, limit: int) -> int:
    """Levels of nesting, counted no further than ``limit`` + 1."""
    level, here = 0, [value]
    while here and level <= limit:
        below = [item for item in here if isinstance(item, dict | list)]
        if not below:
            return level
        level += 1
        here = [child for item in below for child in (item.values() if isinstance(item, dict) else item)]
    return level


def _caller(scope: Scope, headers: Headers) -> str:
    """Who is counted: a token by its digest (the table holds no secrets), else the address."""
    token = headers.get("authorization")
    if token:
        return sha256(token.encode()).hexdigest()
    return address_of(scope)


def address_of(scope: MutableMapping[str, Any]) -> str:
    """The peer's address; a proxy in front is uvicorn's to resolve (``--forwarded-allow-ips``)."""
    client = scope.get("client")
    return client[0] if client else "local"


def _whole(seconds: float) -> str:
    return str(max(1, int(seconds + 0.999)))


def _route(scope: Scope) -> str:
    """The template of the route that answered; never the path, which anybody can make up."""
    template = str(getattr(scope.get("route"), "path", "-"))
    prefix = "/api/v1" if scope["path"].startswith("/api/v1/") else ""
    return prefix + template if template.startswith("/") and not template.startswith("/api/") else template


def _record(scope: Scope, route: str, status: int, seconds: float, request_id: str) -> None:
    # The route's template, not the path: a download's path is itself a secret.
    method, actor = scope["method"], scope["state"].get("actor")
    said = {
        "method": method,
        "route": route,
        "status": status,
        "ms": round(seconds * 1000, 1),
        "request_id": request_id,
        "caller": getattr(actor, "name", "-"),
    }
    note(_log, f"{method} {route} {status}", said)
