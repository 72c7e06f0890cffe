"""The client against a hub that is only a function: logins, retries, errors, limits."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest

from federation import connection as module
from federation.client import HubClient
from storage.errors import Misuse, Refused, Rejected, Unchecked
from storage.signing import key_hint, new_private_key

Answer = Callable[[httpx.Request], httpx.Response]
KEY = new_private_key()
WHOAMI = {"institution": "lab-a.example", "role": "lab", "by": "access", "scopes": ["read", "write"]}


def problem(status: int, code: str, *, field: str | None = None) -> httpx.Response:
    body: dict[str, Any] = {
        "type": f"https://fedhub.dev/problems/{code}",
        "title": "x",
        "status": status,
        "detail": "what is wrong",
        "code": code,
        "hint": "what to do",
    }
    if field:
        body["field"] = field
    return httpx.Response(status, json=body)


def made(answer: Answer, **options: Any) -> HubClient:
    options.setdefault("patience_s", 0.3)
    if "token" not in options and "key" not in options:
        options["token"] = "fhp_" + "x" * 40
    return HubClient("http://hub.test", transport=httpx.MockTransport(answer), **options)


def with_key(answer: Answer, **options: Any) -> HubClient:
    return made(answer, key=KEY, origin="hub.example", institution="lab-a.example", **options)


class Logins:
    """A hub that grants tokens and remembers the assertions."""

    def __init__(self, expires_in: int = 300) -> None:
        self.assertions: list[str] = []
        self.expires_in = expires_in
        self.accepts = True

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v1/token":
            form = dict(pair.split("=", 1) for pair in request.content.decode().split("&"))
            assert form["grant_type"] == "client_credentials"
            self.assertions.append(form["client_assertion"])
            return httpx.Response(
                200,
                json={
                    "access_token": f"t{len(self.assertions)}",
                    "token_type": "Bearer",
                    "expires_in": self.expires_in,
                },
            )
        if not self.accepts:
            self.accepts = True
            return problem(401, "E_TOKEN")
        assert request.headers["authorization"] == f"Bearer t{len(self.assertions)}"
        return httpx.Response(200, json=WHOAMI)


def test_a_login_is_signed_for_the_caller_s_own_idea_of_the_hub() -> None:
    hub = Logins()
    with with_key(hub) as client:
        assert client.whoami().institution == "lab-a.example"
    claims = jwt.decode(hub.assertions[0], KEY.public_key(), algorithms=["ES256"], audience="hub.example")
    assert claims["iss"] == claims["sub"] == "lab-a.example"
    assert claims["exp"] - claims["iat"] <= 60
    assert jwt.get_unverified_header(hub.assertions[0])["kid"] == key_hint(KEY.public_key())


def test_one_login_serves_many_calls_and_a_short_one_is_renewed() -> None:
    long, short = Logins(), Logins(expires_in=1)
    with with_key(long) as client:
        client.whoami(), client.whoami()
    assert len(long.assertions) == 1
    with with_key(short) as client:
        client.whoami()
        client._renew_at = 0.0
        client.whoami()
    assert len(short.assertions) == 2
    ids = [jwt.decode(one, options={"verify_signature": False})["jti"] for one in short.assertions]
    assert len(set(ids)) == 2


def test_a_token_that_is_no_longer_accepted_is_renewed_once() -> None:
    hub = Logins()
    with with_key(hub) as client:
        client.whoami()
        hub.accepts = False
        client.whoami()
    assert len(hub.assertions) == 2


def test_a_personal_token_that_is_refused_is_not_tried_again() -> None:
    calls = []

    def refuse(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return problem(401, "E_TOKEN")

    with made(refuse) as client, pytest.raises(Refused) as caught:
        client.whoami()
    assert (caught.value.status, len(calls)) == (401, 1)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_hub_that_is_away_or_busy_is_asked_again(status: int) -> None:
    answers = [httpx.Response(status), httpx.Response(200, json=WHOAMI)]
    with made(lambda _request: answers.pop(0), patience_s=5) as client:
        assert client.whoami().role == "lab"


def test_a_repeated_creation_bears_the_same_key() -> None:
    keys = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ReadError("cut", request=request)
        return httpx.Response(200, json={"id": "1", "state": "open"})

    with made(answer, patience_s=5) as client:
        client.upload("a" * 64, 1)
    assert len(keys) == 2 and keys[0] == keys[1]


def test_patience_ends_with_the_hub_s_own_reason() -> None:
    with made(lambda _request: problem(503, "E_STORE")) as client, pytest.raises(Unchecked) as caught:
        client.whoami()
    assert (caught.value.code, caught.value.hint) == ("E_STORE", "what to do")


def test_an_unreachable_hub_is_unchecked_and_names_the_address() -> None:
    def cut(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with made(cut) as client, pytest.raises(Unchecked, match="http://hub\\.test") as caught:
        client.whoami()
    assert caught.value.code == "E_HUB_UNREACHABLE"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(422, "E_SIGNATURE"), Rejected),
        (problem(422, "E_FIELD", field="size"), Refused),
        (problem(403, "E_ACCESS"), Refused),
        (problem(409, "E_MEMBER"), Refused),
        (problem(404, "E_NOT_FOUND"), Unchecked),
        (problem(500, "E_INTERNAL"), Unchecked),
    ],
)
def test_a_problem_becomes_the_error_that_the_hub_raised(
    answer: httpx.Response, kind: type[Exception]
) -> None:
    with made(lambda _request: answer) as client, pytest.raises(kind) as caught:
        client.whoami()
    assert caught.value.code in answer.text  # type: ignore[attr-defined]


def test_a_field_s_refusal_names_the_field() -> None:
    with (
        made(lambda _request: problem(422, "E_FIELD", field="size")) as client,
        pytest.raises(Refused) as caught,
    ):
        client.whoami()
    assert caught.value.field == "size"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={**WHOAMI, "more": 1}),
        httpx.Response(200, json={**WHOAMI, "role": "king"}),
        httpx.Response(404, text="nginx"),
        httpx.Response(302, headers={"location": "http://elsewhere.test/"}),
    ],
)
def test_an_answer_of_another_form_is_unchecked_and_never_followed(answer: httpx.Response) -> None:
    with made(lambda _request: answer) as client, pytest.raises(Unchecked) as caught:
        client.whoami()
    assert caught.value.code == "E_HUB_ANSWER"


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_LIMIT", 1000)
    read = []

    def endless() -> Any:
        for _ in range(100):
            read.append(1)
            yield b" " * 500

    with (
        made(lambda _request: httpx.Response(200, content=endless())) as client,
        pytest.raises(Unchecked) as caught,
    ):
        client.models()
    assert caught.value.code == "E_LIMIT" and len(read) < 10


def test_lists_follow_the_next_link_by_its_cursor_and_stay_with_their_hub() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        model = {
            "name": f"a.example/m{len(asked)}",
            "owner": "a.example",
            "visibility": "public",
            "versions": 0,
        }
        if len(asked) == 1:
            link = '<http://elsewhere.test/api/v1/models?cursor=7>; rel="next"'
            return httpx.Response(200, json=[model], headers={"link": link})
        return httpx.Response(200, json=[model])

    with made(answer) as client:
        assert [model.name for model in client.models(search="m")] == ["a.example/m1", "a.example/m2"]
    assert asked[1].startswith("http://hub.test/") and "cursor=7" in asked[1] and "search=m" in asked[1]


def test_names_cannot_leave_their_path_segment() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path.decode())
        return problem(404, "E_NOT_FOUND")

    with made(answer) as client:
        for name in ("../hub", "a/b", "a?x=1", "a#b"):
            with pytest.raises(Unchecked):
                client.institution(name)
        with pytest.raises(Unchecked, match="not a name"):
            client.institution("..")
        with pytest.raises(Unchecked, match="institution/name"):
            client.model("no-slash")
    assert all(path.count("/") == 4 and "?" not in path for path in seen)


def test_a_key_needs_the_name_of_its_hub() -> None:
    with pytest.raises(Misuse):
        HubClient("http://hub.test", key=KEY, institution="lab-a.example")
    with pytest.raises(Misuse):
        HubClient("http://hub.test", key=KEY, origin="h", institution="lab-a.example", token="t")


@pytest.mark.parametrize("address", ["hub.example", "file:///etc", "http://"])
def test_what_is_no_web_address_is_refused_before_anything_is_sent(address: str) -> None:
    with pytest.raises(Unchecked) as caught:
        HubClient(address)
    assert caught.value.code == "E_USAGE"


def test_no_call_writes_its_token_into_an_error() -> None:
    token = "fhp_" + "s" * 40

    def cut(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with made(cut, token=token) as client, pytest.raises(Unchecked) as caught:
        client.create_token("n", ["read"])
    assert token not in str(caught.value) + caught.value.hint + repr(caught.value.__cause__)


def test_the_bundle_travels_as_text_and_attachments_as_base64() -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        record = {"id": "a" * 64, "index": 0, "kind": "asset", "issuer": "a.example", "bundle": "{}"}
        return httpx.Response(200, json=record)

    with made(answer) as client:
        client.post_statement(b"{}", {"croissant.json": b"\x00\x01"})
    sent = {"bundle": "{}", "attachments": {"croissant.json": "AAE="}, "announces": None}
    assert bodies == [sent]
