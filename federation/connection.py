"""The only door to a hub's API: login, requests, patience, and errors as the hub raised them.

An institution proves itself by a JWT signed with one of its ring keys (``private_key_jwt``, RFC 7523) and
renews its access token unseen; a person or program may bring a personal token instead. Connection errors and
429/502/503/504 are tried again for a bounded time; every creating request bears an ``Idempotency-Key``, so
trying again never creates twice. What the hub answers is checked for form and size only: whether it is *true*
is for ``storage.verify``. The endpoints themselves are in ``federation.client``.
"""

import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from urllib.parse import urlsplit

import httpx
import jwt
import tenacity
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from pydantic import BaseModel, TypeAdapter, ValidationError

from federation import wire
from federation.reaching import check_skew, explain
from storage.errors import FedhubError, Misuse, Refused, Rejected, Unchecked
from storage.signing import key_hint

ANSWER_LIMIT = 32 << 20  # bytes of one JSON answer
ASSERTION_S = 50  # the hub accepts at most 60
RENEW_BEFORE_S = 30
LOOPBACK = ("127.0.0.1", "::1", "localhost")
TRY_AGAIN = (502, 503, 504)
# A hub that cannot be reached for one of these is not away: somebody has to mend something.
NOT_AWAY = ("E_DNS", "E_TLS_CA", "E_TLS_EXPIRED", "E_TLS_NAME")


@cache
def _certificates(trust_env: bool) -> ssl.SSLContext:
    """The authorities that a hub's certificate is checked against, read once: it takes 35 ms."""
    return httpx.create_ssl_context(trust_env=trust_env)


M = TypeVar("M", bound=BaseModel)
Json = Mapping[str, Any] | BaseModel | None


class HubConnection:
    """One hub, called as one institution.

    Args:
        endpoint: address of the hub, ``http(s)://host[:port]``.
        origin: name of the hub in signed statements; a login is signed for this name alone, so it must come
            from the caller's own trust and never from the hub.
        institution: who is calling; needed with ``key``.
        key: a ring key; its role (targets or snapshot) decides what the hub lets it do.
        token: a personal token, or the coordinator's; instead of ``key``.
        transport: for tests: an in-process hub.
        timeout_s: of one request.
        patience_s: how long to try again while the hub cannot be reached; 0 tries once.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        origin: str | None = None,
        institution: str | None = None,
        key: EllipticCurvePrivateKey | None = None,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 20.0,
    ) -> None:
        if key is not None and (origin is None or institution is None):
            raise Misuse("E_MISUSE", "HubClient: a key needs origin and institution")
        if key is not None and token is not None:
            raise Misuse("E_MISUSE", "HubClient: give a key or a token, not both")
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Unchecked("E_USAGE", f"{endpoint!r}: not the http(s) address of a hub")
        self.endpoint = endpoint.rstrip("/")
        self.origin = origin
        self.member = institution
        self._key = key
        self._fixed = token
        self._access = ""
        self._renew_at = 0.0
        self._lock = threading.Lock()
        self._patience_s = patience_s
        # A proxy of the environment is never asked for an address of this machine.
        loopback = parts.hostname in LOOPBACK
        self._http = httpx.Client(
            base_url=self.endpoint,
            transport=transport,
            timeout=timeout_s,
            trust_env=not loopback,
            verify=_certificates(not loopback),
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- requests -------------------------------------------------------------------------------------------

    def _get(
        self, path: str, model: type[M], asked: Mapping[str, Any] | None = None, *, login: bool = True
    ) -> M:
        return read_answer(self._call("GET", path, asked=asked, login=login), model, path)

    def _post(self, path: str, body: Json, model: type[M], *, login: bool = True) -> M:
        return read_answer(self._call("POST", path, body, login=login), model, path)

    def _list(self, path: str, model: type[M], asked: Mapping[str, Any] | None = None) -> list[M]:
        """All pages: each answer is a list, and its ``Link`` header names the next page's cursor."""
        items: list[M] = []
        cursor: str | None = None
        while True:
            response = self._respond(
                "GET", path, None, {**(asked or {}), "cursor": cursor}, True, ANSWER_LIMIT
            )
            items += read_answer(response.content, list[model], path)  # type: ignore[valid-type]
            following = response.links.get("next", {}).get("url")
            if following is None:
                return items
            cursor = httpx.URL(following).params.get("cursor")
            if cursor is None:
                raise Unchecked("E_HUB_ANSWER", f"{path}: the hub's next page has no cursor")

    def _call(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        asked: Mapping[str, Any] | None = None,
        login: bool = True,
        limit: int = ANSWER_LIMIT,
    ) -> bytes:
        return self._respond(method, path, body, asked, login, limit).content

    def _respond(
        self, method: str, path: str, body: Json, asked: Mapping[str, Any] | None, login: bool, limit: int
    ) -> httpx.Response:
        headers = {"Accept-Encoding": "identity"}
        if method == "POST":
            headers["Idempotency-Key"] = secrets.token_hex(16)
        sent: Any = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
        params = {name: value for name, value in (asked or {}).items() if value is not None}

        def once() -> httpx.Response:
            if login:
                headers["Authorization"] = f"Bearer {self._token()}"
            request = self._http.build_request(
                method,
                f"/api/v1/{path}",
                params=params,
                headers=headers,
                json=sent if body is not None else None,
            )
            return self._send(request, limit)

        response = self._patiently(once)
        if response.status_code == 401 and login and self._key is not None:
            self._renew_at = (
                0.0  # revoked or expired early, or the hub has a new token secret: log in once more
            )
            response = self._patiently(once)
        if response.is_success:
            return response
        raise error_of(response)

    def _send(self, request: httpx.Request, limit: int) -> httpx.Response:
        """One exchange; an answer over ``limit`` bytes is not read to its end."""
        response = self._http.send(request, stream=True)
        try:
            chunks, total = [], 0
            for chunk in response.iter_bytes():
                total += len(chunk)
                if total > limit:
                    raise Unchecked("E_LIMIT", f"{request.url.path}: the hub's answer is over {limit} bytes")
                chunks.append(chunk)
        finally:
            response.close()
        return httpx.Response(
            response.status_code, headers=response.headers, content=b"".join(chunks), request=request
        )

    def _patiently(self, once: Any) -> httpx.Response:
        """Try again while the hub is away, for ``patience_s`` at most; then its last answer or error."""
        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass)
            | tenacity.retry_if_result(lambda response: response.status_code in (*TRY_AGAIN, 429)),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2.0) + tenacity.wait_random(0, 0.1),
            stop=tenacity.stop_after_delay(self._patience_s),
            retry_error_callback=_last_outcome,
        )
        try:
            response: httpx.Response = trying(once)
        except httpx.TransportError as error:
            known = explain(error, self.endpoint)
            if known is not None and known.code in NOT_AWAY:
                raise known from error
            raise Unchecked(
                "E_HUB_UNREACHABLE",
                f"{self.endpoint}: {type(error).__name__}: {error}",
                "Is the hub running, and is this its address?",
            ) from error
        return response

    # --- login ----------------------------------------------------------------------------------------------

    def _token(self) -> str:
        if self._fixed is not None:
            return self._fixed
        if self._key is None:
            raise Unchecked("E_LOGIN", "this call needs a login", "Give a key or a personal token.")
        with self._lock:
            if time.monotonic() >= self._renew_at:
                granted = self._login(self._key)
                self._access = granted.access_token
                self._renew_at = time.monotonic() + max(granted.expires_in - RENEW_BEFORE_S, 1)
            return self._access

    def _login(self, key: EllipticCurvePrivateKey) -> wire.AccessToken:
        """RFC 7523 section 2.2, ES256; a fresh assertion for each try, since each is good only once."""
        now = int(time.time())
        claims = {
            "iss": self.member,
            "sub": self.member,
            "aud": self.origin,
            "iat": now,
            "exp": now + ASSERTION_S,
            "jti": secrets.token_hex(16),
        }
        assertion = jwt.encode(claims, key, algorithm="ES256", headers={"kid": key_hint(key.public_key())})
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": assertion,
        }
        response = self._send(self._http.build_request("POST", "/api/v1/token", data=form), ANSWER_LIMIT)
        if response.status_code in TRY_AGAIN:
            raise httpx.ReadError(
                f"the hub answered {response.status_code} to the login", request=response.request
            )
        if not response.is_success:
            check_skew(response.headers.get("date"), self.endpoint)
            raise error_of(response)
        return read_answer(response.content, wire.AccessToken, "token")


def error_of(response: httpx.Response) -> FedhubError:
    """The error that a problem+json answer tells, as the class that the hub raised.

    422 without a field is a check that failed (``Rejected``); 404 and 5xx say that it could not be done
    (``Unchecked``); every other refusal is ``Refused`` with its status and field.
    """
    try:
        problem = wire.Problem.model_validate_json(response.content)
    except ValidationError:
        where = f"{response.request.method} {response.request.url.path}"
        return Unchecked(
            "E_HUB_ANSWER",
            f"{where}: status {response.status_code} without an explanation",
            "Is this a fedhub hub?",
        )
    status = response.status_code
    if status == 404 or status >= 500:
        return Unchecked(problem.code, problem.detail, problem.hint)
    if status == 422 and problem.field is None:
        return Rejected(problem.code, problem.detail, problem.hint)
    return Refused(problem.code, problem.detail, problem.hint, status=status, field=problem.field)


def ask_hub(endpoint: str, patience_s: float) -> tuple[wire.HubInfo, str | None]:
    """What a hub says of itself to anybody, and the time of its answer; asked once.

    Raises:
        Unchecked: ``E_HUB_ANSWER``, and those of a hub that cannot be reached.
    """
    local = urlsplit(endpoint).hostname in LOOPBACK
    try:
        with httpx.Client(base_url=endpoint, timeout=patience_s, trust_env=not local) as client:
            answer = client.get("/api/v1/hub")
        return wire.HubInfo.model_validate_json(answer.content), answer.headers.get("date")
    except ValidationError as error:
        raise Unchecked("E_HUB_ANSWER", f"{endpoint} answers {answer.status_code} and is no hub") from error
    except httpx.HTTPError as error:
        away = Unchecked("E_HUB_UNREACHABLE", f"{endpoint}: {type(error).__name__}")
        raise (explain(error, endpoint) or away) from error


def _may_pass(error: BaseException) -> bool:
    """Whether to try again: a certificate or a name that is wrong stays so."""
    if not isinstance(error, httpx.TransportError):
        return False
    known = explain(error, "")
    return known is None or known.code not in NOT_AWAY


def _last_outcome(state: tenacity.RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.result()  # the last answer, or the last error raised again


T = TypeVar("T")


@cache
def _reader(form: Any) -> TypeAdapter[Any]:
    """What reads answers of a form; to make one takes longer than to read with it."""
    return TypeAdapter(form)


def read_answer(raw: bytes, form: type[T], path: str) -> T:
    try:
        return cast(T, _reader(cast(Any, form)).validate_json(raw))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "answer"
        raise Unchecked(
            "E_HUB_ANSWER",
            f"{path}: the hub's answer is not of the agreed form: {where}: {first['msg']}",
            "Hub and client may be of different versions.",
        ) from error
