"""The application's edge: bodies, limits, headers, problems, OpenAPI, health; never a traceback, never a secret."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from federation.home import Home
from federation.wire import Problem
from hub.logs import JsonLines
from hub.settings import Settings
from storage.errors import Unchecked
from tests.hubs import HubInProcess, running_hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubInProcess]:
    with running_hub(tmp_path_factory.mktemp("hub"), json_limit=1 << 16, statement_limit=1 << 17) as made:
        yield made


@pytest.fixture(scope="module")
def lab(hub: HubInProcess) -> Home:
    return hub.enrol("lab-a.example")


@pytest.fixture(scope="module")
def token(hub: HubInProcess, lab: Home) -> str:
    with hub.client(lab) as client:
        made = client.create_token("app", ["read", "write"]).token
    assert made is not None
    return made


@pytest.fixture
def http(hub: HubInProcess, token: str) -> Iterator[httpx.Client]:
    with hub.http(token=token) as made:
        yield made


def problem(answer: httpx.Response) -> Problem:
    assert answer.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(answer.content)
    assert found.status == answer.status_code and found.type.endswith(found.code)
    assert "Traceback" not in answer.text and ".py" not in answer.text
    return found


# --- bodies -------------------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b'{"name":"a","name":"b","scopes":["read"]}',
        b'{"name":NaN}',
        b'{"name":Infinity}',
        b'{"name":1e999}',
        b'{"name":"\\ud800","scopes":["read"]}',
        b"[" * 20 + b"]" * 20,
        b"[" * 30_000 + b"]" * 30_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"9" * 6000,
    ],
)
def test_a_body_that_is_no_strict_json_is_refused(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/api/v1/tokens", content=body, headers=JSON)
    assert answer.status_code == 400 and problem(answer).code == "E_JSON"


def test_a_body_over_the_limit_is_refused_before_it_is_read(http: httpx.Client) -> None:
    answer = http.post("/api/v1/tokens", content=b" " * ((1 << 16) + 1), headers=JSON)
    assert answer.status_code == 413
    assert problem(answer).code == "E_LIMIT" and "FEDHUB_JSON_LIMIT" in problem(answer).hint
    told = http.post("/api/v1/tokens", content=b"{}", headers={**JSON, "Content-Length": str(1 << 40)})
    assert told.status_code == 413


def test_signed_documents_may_be_larger_than_other_bodies(http: httpx.Client) -> None:
    body = json.dumps({"bundle": "x" * (1 << 16)}).encode()
    assert http.post("/api/v1/statements", content=body, headers=JSON).status_code == 422
    large = json.dumps({"bundle": "x" * (1 << 17)}).encode()
    answer = http.post("/api/v1/statements", content=large, headers=JSON)
    assert answer.status_code == 413 and "FEDHUB_STATEMENT_LIMIT" in problem(answer).hint


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"name": "a", "scopes": ["read"], "more": 1}, "more", "E_FIELD_UNKNOWN"),
        ({"name": "a", "scopes": ["root"]}, "scopes.0", "E_FIELD"),
        ({"scopes": ["read"]}, "name", "E_FIELD"),
        ({"name": "", "scopes": ["read"]}, "name", "E_FIELD"),
        ({"name": "a", "scopes": []}, "scopes", "E_FIELD"),
        ({"name": "a", "scopes": ["read"], "valid_days": 0}, "valid_days", "E_FIELD"),
        ({"name": ["hunter2"], "scopes": ["read"]}, "name", "E_FIELD"),
        ([], "body", "E_FIELD"),
    ],
)
def test_a_wrong_field_is_named_and_its_value_not_repeated(
    http: httpx.Client, body: Any, field: str, code: str
) -> None:
    answer = http.post("/api/v1/tokens", json=body)
    found = problem(answer)
    assert (answer.status_code, found.field, found.code) == (422, field, code)
    assert "hunter2" not in answer.text


def test_another_media_type_is_refused(http: httpx.Client) -> None:
    answer = http.post("/api/v1/tokens", content=b"<x/>", headers={"Content-Type": "text/xml"})
    assert answer.status_code == 415 and problem(answer).code == "E_MEDIA_TYPE"


def test_a_missing_body_is_told_as_a_missing_field(http: httpx.Client) -> None:
    answer = http.post("/api/v1/tokens", headers=JSON)
    assert answer.status_code == 422 and problem(answer).field == "body"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/api/v1/nothing", 404), ("PUT", "/api/v1/whoami", 405)]
)
def test_an_unknown_path_or_method_is_a_problem_too(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status and problem(answer).code in ("E_NOT_FOUND", "E_METHOD")


def test_an_idempotency_key_has_a_length(http: httpx.Client) -> None:
    body = {"name": "a", "scopes": ["read"]}
    answer = http.post("/api/v1/tokens", json=body, headers={"Idempotency-Key": "x"})
    assert answer.status_code == 422 and problem(answer).field == "Idempotency-Key"


# --- what every answer bears --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/v1/hub", "/api/v1/nothing", "/healthz", "/log/checkpoint"])
def test_every_answer_has_an_id_and_security_headers(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert len(answer.headers["x-request-id"]) >= 8
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    if path.startswith("/api/"):
        assert answer.headers["cache-control"] == "no-store"


def test_a_caller_s_request_id_is_kept_when_it_is_one(http: httpx.Client) -> None:
    assert (
        http.get("/healthz", headers={"X-Request-Id": "trace-12345678"}).headers["x-request-id"]
        == "trace-12345678"
    )
    for odd in ("x", "a b c d e f g h", "<script>alert(1)</script>"):
        assert http.get("/healthz", headers={"X-Request-Id": odd}).headers["x-request-id"] != odd


def test_refusals_of_logins_say_how_to_log_in(hub: HubInProcess) -> None:
    with hub.http() as http:
        answer = http.get("/api/v1/whoami")
    assert answer.headers["www-authenticate"].startswith("Bearer")


# --- when something breaks ----------------------------------------------------------------------------------


def test_a_failure_of_ours_is_told_without_its_insides(
    hub: HubInProcess, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr("hub.services.alliance.hub_info", fail)
    answer = http.get("/api/v1/hub")
    assert answer.status_code == 500 and problem(answer).code == "E_INTERNAL"
    assert "hunter2" not in answer.text


def test_a_database_that_is_away_is_a_reason_to_try_again(
    hub: HubInProcess, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_args: object) -> None:
        raise OperationalError("SELECT hunter2", {}, Exception("locked"))

    monkeypatch.setattr("hub.services.alliance.hub_info", away)
    answer = http.get("/api/v1/hub")
    assert answer.status_code == 503 and problem(answer).code == "E_DATABASE"
    assert answer.headers["retry-after"] and "hunter2" not in answer.text


def test_a_store_that_is_away_is_a_reason_to_try_again(
    hub: HubInProcess, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_key: str) -> None:
        raise Unchecked("E_STORE", "the store does not answer")

    monkeypatch.setattr(hub.hub.store, "size", away)
    assert problem(http.get("/log/checkpoint")).code == "E_STORE"
    ready = http.get("/readyz")
    assert ready.status_code == 503 and "does not answer" in ready.json()["checks"]["store"]


# --- rates --------------------------------------------------------------------------------------------------


def test_a_caller_who_asks_too_often_waits_and_others_do_not(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_hub(tmp_path_factory.mktemp("rate"), requests_per_minute=30) as hub:
        with hub.http(token="x" * 40) as noisy:
            statuses = [noisy.get("/api/v1/hub").status_code for _ in range(35)]
            answer = noisy.get("/api/v1/hub")
        assert statuses[:25] == [401] * 25 or statuses[:25] == [200] * 25
        assert answer.status_code == 429 and problem(answer).code == "E_RATE"
        assert int(answer.headers["retry-after"]) >= 1
        with hub.http() as quiet:
            assert quiet.get("/api/v1/hub").status_code == 200
        with hub.http(token="x" * 40) as noisy:
            assert noisy.get("/healthz").status_code == 200


# --- OpenAPI ------------------------------------------------------------------------------------------------


def test_every_route_of_the_api_is_described_with_its_answers_and_problems(http: httpx.Client) -> None:
    document = http.get("/api/v1/openapi.json").json()
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert "Problem" in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        if not path.startswith("/api/v1/"):
            continue
        for method, operation in methods.items():
            what = f"{method} {path}"
            assert operation.get("description"), what
            good = [status for status in operation["responses"] if status.startswith(("2", "3"))]
            assert good, what
            assert operation["responses"]["422"]["content"].keys() >= {"application/problem+json"}, what
            for status in good:
                answer = operation["responses"][status]
                if status not in ("204", "307"):
                    assert answer.get("content"), what


def test_the_document_can_be_rendered_twice(hub: HubInProcess) -> None:
    assert hub.app.openapi() == hub.app.openapi()


# --- health -------------------------------------------------------------------------------------------------


def test_health_readiness_and_figures_answer_without_a_login(hub: HubInProcess, lab: Home) -> None:
    hub.hub.ledger.publish()
    with hub.http() as http:
        assert http.get("/healthz").json()["status"] == "ok"
        ready = http.get("/readyz")
        assert ready.json() == {"status": "ok", "checks": {"database": "ok", "store": "ok", "log": "ok"}}
        text = http.get("/metrics").text
    assert "fedhub_log_entries 2" in text and "fedhub_log_published 2" in text
    assert 'fedhub_institutions{state="approved"} 2' in text
    assert 'route="/healthz"' in text
    for line in text.splitlines():
        assert line.startswith("#") or len(line.rsplit(" ", 1)) == 2


def test_a_path_that_somebody_made_up_is_no_label(hub: HubInProcess) -> None:
    with hub.http() as http:
        http.get("/api/v1/statements/" + "secret" * 5)
        http.get("/made/up/secret")
        text = http.get("/metrics").text
    assert "secret" not in text and 'route="/api/v1/statements/{statement_id}"' in text


# --- log lines ----------------------------------------------------------------------------------------------


def test_log_lines_are_json_and_hold_no_token_query_or_body(
    hub: HubInProcess, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), hub.http(token=token) as http:
        http.get("/api/v1/statements?cursor=hunter2")
        http.post("/api/v1/tokens", json={"name": "hunter2", "scopes": ["read"], "x": 1})
        made = http.post("/api/v1/tokens", json={"name": "n", "scopes": ["read"]}).json()["token"]
    lines = [JsonLines().format(record) for record in caplog.records if record.name.startswith("fedhub")]
    assert len(lines) >= 3
    for line in lines:
        told = json.loads(line)
        assert told["level"] and told["message"]
        assert token not in line and made not in line and "hunter2" not in line
    assert any(json.loads(line).get("caller") == "lab-a.example" for line in lines)


def test_a_failure_s_trace_is_in_the_log_and_not_in_the_answer(
    hub: HubInProcess, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr("hub.services.alliance.hub_info", fail)
    with caplog.at_level(logging.ERROR):
        http.get("/api/v1/hub")
    record = next(record for record in caplog.records if record.name == "fedhub.problems")
    assert "inside" in json.loads(JsonLines().format(record))["trace"]


def test_settings_have_no_way_to_switch_verification_off() -> None:
    assert not any("verify" in name or "insecure" in name for name in Settings.model_fields)
