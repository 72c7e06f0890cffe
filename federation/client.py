"""The only door to a hub's API: one method per endpoint, answers as ``federation.wire`` types.

An institution proves itself by a JWT signed with one of its ring keys (``private_key_jwt``, RFC 7523) and
renews its access token unseen; a person or program may bring a personal token instead. Connection errors and
502/503/504 are tried again for a bounded time; every creating request bears an ``Idempotency-Key``, so trying
again never creates twice. What the hub answers is checked for form and size only: whether it is *true* is for
``storage.verify``.
"""

import base64
import secrets
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import jwt
import tenacity
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from pydantic import BaseModel, TypeAdapter, ValidationError

from federation import wire
from storage.errors import FedhubError, Misuse, Refused, Rejected, Unchecked
from storage.signing import key_hint

ANSWER_LIMIT = 32 << 20  # bytes of one JSON answer
PACK_LIMIT = 1 << 30  # bytes of one pack
ASSERTION_S = 50  # the hub accepts at most 60
RENEW_BEFORE_S = 30
TRY_AGAIN = (502, 503, 504)


@cache
def _certificates(trust_env: bool) -> ssl.SSLContext:
    """The authorities that a hub's certificate is checked against, read once: it takes 35 ms."""
    return httpx.create_ssl_context(trust_env=trust_env)


M = TypeVar("M", bound=BaseModel)
Json = Mapping[str, Any] | BaseModel | None


class HubClient:
    """Calls one hub as one institution.

    Args:
        endpoint: address of the hub, ``http(s)://host[:port]``.
        origin: name of the hub in signed statements; a login is signed for this name alone, so it must come
            from
            the caller's own trust and never from the hub.
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
        loopback = parts.hostname in ("127.0.0.1", "::1", "localhost")
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

    # --- the hub and who is in it ---------------------------------------------------------------------------

    def hub(self) -> wire.HubInfo:
        """What the hub says of itself; believe nothing of it that the invitation did not say."""
        return self._get("hub", wire.HubInfo, login=False)

    def whoami(self) -> wire.WhoAmI:
        """As whom the hub sees this client."""
        return self._get("whoami", wire.WhoAmI)

    def create_token(self, name: str, scopes: Sequence[str], *, valid_days: int = 90) -> wire.PersonalToken:
        """A new personal token; its text is in this answer only."""
        body = {"name": name, "scopes": list(scopes), "valid_days": valid_days}
        return self._post("tokens", body, wire.PersonalToken)

    def list_tokens(self) -> list[wire.PersonalToken]:
        """The institution's personal tokens, without their texts."""
        return self._list("tokens", wire.PersonalToken)

    def revoke_token(self, token_id: str) -> None:
        """End a personal token at once."""
        self._call("DELETE", f"tokens/{_part(token_id)}")

    def invite(self, institution: str, role: str, *, valid_hours: int = 72) -> wire.Invitation:
        """A single-use invitation (operator)."""
        body = {"institution": institution, "role": role, "valid_hours": valid_hours}
        return self._post("invitations", body, wire.Invitation)

    def enrol(self, request: wire.EnrolRequest) -> wire.Institution:
        """Ask to join with an invitation's secret and a key ring; the operator approves later."""
        return self._post("institutions", request, wire.Institution, login=False)

    def institutions(self) -> list[wire.Institution]:
        """All members."""
        return self._list("institutions", wire.Institution)

    def institution(self, name: str) -> wire.Institution:
        """One member."""
        return self._get(f"institutions/{_part(name)}", wire.Institution)

    def approve(self, name: str) -> wire.Institution:
        """Let a pending institution in: its ring's statement is logged (operator, targets key)."""
        return self._post(f"institutions/{_part(name)}/approve", None, wire.Institution)

    def keyring(self, name: str) -> list[str]:
        """The roots of an institution's ring, oldest first, base64; check them against your own pin."""
        raw = self._call("GET", f"institutions/{_part(name)}/keyring", login=False)
        return _answer(raw, TypeAdapter(dict[str, list[str]]), "keyring").get("roots", [])

    def update_keyring(self, name: str, root: bytes, statement: bytes) -> wire.Institution:
        """Add the next ring version with its ``keyring`` statement (own institution, targets key)."""
        body = wire.KeyRingUpdate(root=_b64(root), statement=statement.decode())
        return self._post(f"institutions/{_part(name)}/keyring", body, wire.Institution)

    def register_site(self, name: str, public_key: str) -> wire.Site:
        """Register a site's Flower node key, PEM (snapshot key); a repeat changes nothing."""
        return self._post("sites", {"name": name, "public_key": public_key}, wire.Site)

    def sites(self) -> list[wire.Site]:
        """All sites and whether they are connected."""
        return self._list("sites", wire.Site)

    # --- statements -----------------------------------------------------------------------------------------

    def post_statement(
        self, bundle: bytes | str, attachments: Mapping[str, bytes] | None = None
    ) -> wire.StatementRecord:
        """Have a signed statement logged; a repeat answers with the first's index.

        Args:
            bundle: text of the statement's bundle.
            attachments: file name -> content of small files it names as subjects (``croissant.json``).
        """
        files = {name: _b64(data) for name, data in (attachments or {}).items()}
        return self._post("statements", {"bundle": _text(bundle), "attachments": files}, wire.StatementRecord)

    def statements(
        self,
        *,
        kind: str | None = None,
        subject: str | None = None,
        issuer: str | None = None,
        plan: str | None = None,
        cursor: str | None = None,
    ) -> wire.StatementPage:
        """One page of logged statements in log order, of those this caller may read."""
        asked = {"kind": kind, "subject": subject, "issuer": issuer, "plan": plan, "cursor": cursor}
        return self._get("statements", wire.StatementPage, asked)

    def all_statements(
        self,
        *,
        kind: str | None = None,
        subject: str | None = None,
        issuer: str | None = None,
        plan: str | None = None,
    ) -> Iterator[wire.StatementRecord]:
        """Every page of ``statements``, one record after the other."""
        cursor: str | None = None
        while True:
            page = self.statements(kind=kind, subject=subject, issuer=issuer, plan=plan, cursor=cursor)
            yield from page.items
            if page.next is None:
                return
            cursor = page.next

    def statement(self, statement_id: str) -> wire.StatementRecord:
        """One logged statement by its id."""
        return self._get(f"statements/{_part(statement_id)}", wire.StatementRecord)

    def pack(self, asset_id: str, *, from_size: int = 0) -> bytes:
        """A zip of the pack that an auditor needs for one asset.

        Args:
            from_size: size of the checkpoint that the auditor saved; the pack then proves consistency with
                it.
        """
        return self._call("GET", f"packs/{_part(asset_id)}", asked={"from_size": from_size}, limit=PACK_LIMIT)

    # --- bytes ----------------------------------------------------------------------------------------------

    def upload(
        self, sha256: str, size: int, *, parts: Sequence[str] | None = None, plan: str | None = None
    ) -> wire.Upload:
        """Announce a file by digest and size; the orders fit those bytes only."""
        body = wire.UploadRequest(
            sha256=sha256, size=size, parts=None if parts is None else list(parts), plan=plan
        )
        return self._post("uploads", body, wire.Upload)

    def upload_orders(self, upload_id: str, etags: Mapping[int, str] | None = None) -> wire.Upload:
        """Fresh orders for the parts not done, telling which are."""
        body = wire.UploadParts(etags=dict(etags or {}))
        return self._post(f"uploads/{_part(upload_id)}/orders", body, wire.Upload)

    def upload_complete(self, upload_id: str, etags: Mapping[int, str] | None = None) -> wire.Upload:
        """Say that all bytes are in the store."""
        body = wire.UploadParts(etags=dict(etags or {}))
        return self._post(f"uploads/{_part(upload_id)}/complete", body, wire.Upload)

    # --- models and datasets --------------------------------------------------------------------------------

    def models(self, search: str | None = None) -> list[wire.Model]:
        """The models this caller may see."""
        return self._list("models", wire.Model, {"search": search})

    def model(self, name: str) -> wire.Model:
        """A model by ``institution/name`` with its versions."""
        return self._get(f"models/{_name(name)}", wire.Model)

    def version(self, name: str, version: int) -> wire.ModelVersion:
        """One version of a model."""
        return self._get(f"models/{_name(name)}/versions/{version}", wire.ModelVersion)

    def push_version(self, name: str, post: wire.VersionPost) -> wire.ModelVersion:
        """Make uploaded files a signed version; all of it or nothing."""
        return self._post(f"models/{_name(name)}/versions", post, wire.ModelVersion)

    def tag(self, name: str, tag: str, version: int) -> wire.ModelVersion:
        """Give a version a new tag."""
        raw = self._call("PUT", f"models/{_name(name)}/tags/{_part(tag)}", {"version": version})
        return _answer(raw, TypeAdapter(wire.ModelVersion), "tag")

    def set_visibility(self, name: str, visibility: str) -> wire.Model:
        """Say who may see a model: ``public``, ``gated`` or ``private``; to open it takes the targets key."""
        raw = self._call("PUT", f"models/{_name(name)}/visibility", {"visibility": visibility})
        return _answer(raw, TypeAdapter(wire.Model), "visibility")

    def approvals(self, name: str, version: int) -> wire.Approvals:
        """How far a version is from its release, as the hub counts it."""
        return self._get(f"models/{_name(name)}/versions/{version}/approvals", wire.Approvals)

    def releases(self) -> list[wire.Release]:
        """Released versions, newest first."""
        return self._list("releases", wire.Release)

    def manifest(self, name: str, version: int) -> bytes:
        """``manifest.json`` of a version; its digest must be the asset id you expect."""
        return self._call("GET", f"models/{_name(name)}/versions/{version}/manifest")

    def datasets(self) -> list[wire.Dataset]:
        """The data sets that members described."""
        return self._list("datasets", wire.Dataset)

    def dataset(self, asset_id: str) -> wire.Dataset:
        """One data set by its asset id."""
        return self._get(f"datasets/{_part(asset_id)}", wire.Dataset)

    def pull(self, asset_id: str, duo: Sequence[str] = ()) -> wire.Pull:
        """Addresses of a version's files, decided by grant; the hub logs a receipt when one is used.

        Args:
            duo: terms (``DUO:nnnnnnn``) that the puller accepts for this use.
        """
        return self._post("pulls", wire.PullRequest(asset_id=asset_id, duo=sorted(duo)), wire.Pull)

    # --- plans and runs -------------------------------------------------------------------------------------

    def submit_plan(self, bundle: bytes | str, recipe: bytes, config: bytes) -> wire.Plan:
        """Log a signed plan with the two files it names."""
        body = wire.PlanPost(bundle=_text(bundle), recipe=_b64(recipe), config=_b64(config))
        return self._post("plans", body, wire.Plan)

    def plans(self) -> list[wire.Plan]:
        """The plans this caller takes part in."""
        return self._list("plans", wire.Plan)

    def plan(self, plan_id: str) -> wire.Plan:
        """One plan with its consents."""
        return self._get(f"plans/{_part(plan_id)}", wire.Plan)

    def decline(self, plan_id: str, reason: str) -> wire.Plan:
        """Say no to a plan, with a reason that its owner sees."""
        return self._post(f"plans/{_part(plan_id)}/decline", {"reason": reason}, wire.Plan)

    def start_run(self, plan_id: str) -> wire.Run:
        """Start the one run of a plan."""
        return self._post("runs", {"plan": plan_id}, wire.Run)

    def runs(self) -> list[wire.Run]:
        """The runs this caller takes part in."""
        return self._list("runs", wire.Run)

    def run(self, plan_id: str) -> wire.Run:
        """The run of a plan."""
        return self._get(f"runs/{_part(plan_id)}", wire.Run)

    def cancel_run(self, plan_id: str) -> wire.Run:
        """End a run; its last aggregate is kept."""
        return self._post(f"runs/{_part(plan_id)}/cancel", None, wire.Run)

    def resume_run(self, plan_id: str) -> wire.Run:
        """Go on with a stopped run from its last aggregate."""
        return self._post(f"runs/{_part(plan_id)}/resume", None, wire.Run)

    def events(self, plan_id: str, *, after: int = 0) -> list[wire.Event]:
        """What happened in a run after event ``after``."""
        return self._list(f"runs/{_part(plan_id)}/events", wire.Event, {"after": after})

    def weights(self, plan_id: str, sha256: str) -> wire.WeightsLocation:
        """Where weights of a run can be read now; they must have this digest."""
        return self._get(f"runs/{_part(plan_id)}/weights/{_part(sha256)}", wire.WeightsLocation)

    # --- the coordinator ------------------------------------------------------------------------------------

    def work(self, plan_id: str) -> wire.Work:
        """What a coordinator needs to start or go on."""
        return self._get(f"runs/{_part(plan_id)}/work", wire.Work)

    def orders(self, plan_id: str, request: wire.OrdersRequest) -> wire.Orders:
        """The hub's signed orders for one round, by dataset."""
        return self._post(f"runs/{_part(plan_id)}/orders", request, wire.Orders)

    def report_round(self, plan_id: str, report: wire.RoundReport) -> wire.StatementRecord:
        """Close a round; the answer is the hub's signed round statement."""
        return self._post(f"runs/{_part(plan_id)}/rounds", report, wire.StatementRecord)

    def report_event(self, plan_id: str, report: wire.EventReport) -> None:
        """Tell those who watch what happened."""
        self._call("POST", f"runs/{_part(plan_id)}/events", report)

    def end_run(self, plan_id: str, end: wire.RunEnd) -> wire.Run:
        """The attempt is over."""
        return self._post(f"runs/{_part(plan_id)}/end", end, wire.Run)

    # --- requests -------------------------------------------------------------------------------------------

    def _get(
        self, path: str, model: type[M], asked: Mapping[str, Any] | None = None, *, login: bool = True
    ) -> M:
        return _answer(self._call("GET", path, asked=asked, login=login), TypeAdapter(model), path)

    def _post(self, path: str, body: Json, model: type[M], *, login: bool = True) -> M:
        return _answer(self._call("POST", path, body, login=login), TypeAdapter(model), path)

    def _list(self, path: str, model: type[M], asked: Mapping[str, Any] | None = None) -> list[M]:
        """All pages: each answer is a list, and its ``Link`` header names the next page's cursor."""
        items: list[M] = []
        cursor: str | None = None
        while True:
            response = self._respond(
                "GET", path, None, {**(asked or {}), "cursor": cursor}, True, ANSWER_LIMIT
            )
            items += _answer(response.content, TypeAdapter(list[model]), path)  # type: ignore[valid-type]
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
            retry=tenacity.retry_if_exception_type(httpx.TransportError)
            | tenacity.retry_if_result(lambda response: response.status_code in (*TRY_AGAIN, 429)),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2.0) + tenacity.wait_random(0, 0.1),
            stop=tenacity.stop_after_delay(self._patience_s),
            retry_error_callback=_last_outcome,
        )
        try:
            response: httpx.Response = trying(once)
        except httpx.TransportError as error:
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
            raise error_of(response)
        return _answer(response.content, TypeAdapter(wire.AccessToken), "token")


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


def _last_outcome(state: tenacity.RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.result()  # the last answer, or the last error raised again


T = TypeVar("T")


def _answer(raw: bytes, form: TypeAdapter[T], path: str) -> T:
    try:
        return form.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "answer"
        raise Unchecked(
            "E_HUB_ANSWER",
            f"{path}: the hub's answer is not of the agreed form: {where}: {first['msg']}",
            "Hub and client may be of different versions.",
        ) from error


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(bundle: bytes | str) -> str:
    return bundle if isinstance(bundle, str) else bundle.decode()


def _part(text: str) -> str:
    """One path segment; the hub sees exactly this text."""
    if text in ("", ".", ".."):
        raise Unchecked("E_USAGE", f"{text!r}: not a name")
    return quote(text, safe="")


def _name(name: str) -> str:
    """``institution/name`` as two path segments; a model's own name may hold more slashes, escaped."""
    institution, slash, rest = name.partition("/")
    if not slash or not rest:
        raise Unchecked("E_USAGE", f"{name!r}: a model is named institution/name")
    return f"{_part(institution)}/{_part(rest)}"
