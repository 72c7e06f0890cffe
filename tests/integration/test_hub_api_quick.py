"""What stands before the application answers as the application would: errors, headers, log lines, figures."""

import logging
from collections.abc import Iterator

import pytest

from hub.services import lookup, registry
from tests.bench.registry_rows import TOKEN, fill, name_of
from tests.hubs import HubInProcess, running_hub

PUBLIC, PRIVATE = 7, 21  # by registry_rows' rule of visibility
OURS, STOCK = "/api/v1/models/{institution}/{name}", "/api/{kind:repokind}/{ns}/{name}"
FILE = "/{ns}/{name}/resolve/{rest:path}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubInProcess]:
    with running_hub(tmp_path_factory.mktemp("quick")) as made:
        fill(made.hub, 24, 48)
        yield made


@pytest.mark.parametrize(
    ("path", "route", "status", "code"),
    [
        (f"/api/v1/models/{name_of(PUBLIC)}", OURS, 200, None),
        (f"/api/v1/models/{name_of(PRIVATE)}", OURS, 401, "E_LOGIN"),
        ("/api/v1/models/lab.example/none", OURS, 404, "E_NOT_FOUND"),
        (f"/api/models/{name_of(PUBLIC)}", STOCK, 200, None),
        (f"/api/models/{name_of(PRIVATE)}", STOCK, 401, "RepoNotFound"),
        (f"/{name_of(PUBLIC)}/resolve/main/none", FILE, 404, "EntryNotFound"),
        (f"/{name_of(PUBLIC)}/resolve/none/config.json", FILE, 404, "RevisionNotFound"),
    ],
)
def test_answers_bear_what_all_answers_bear(
    hub: HubInProcess,
    path: str,
    route: str,
    status: int,
    code: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with hub.http() as client, caplog.at_level(logging.INFO, "fedhub.requests"):
        answer = (
            client.head(path) if route == FILE else client.get(path, headers={"X-Request-Id": "asked-1234"})
        )
    assert answer.status_code == status
    if route == OURS and code is not None:
        assert answer.headers["content-type"] == "application/problem+json" and answer.json()["code"] == code
    else:
        assert answer.headers.get("x-error-code") == code
    assert answer.headers["x-content-type-options"] == "nosniff"
    (record,) = [each for each in caplog.records if each.name == "fedhub.requests"]
    assert record.__dict__["route"] == route and record.__dict__["status"] == status
    assert record.__dict__["request_id"] == answer.headers["x-request-id"]
    with hub.http() as client:
        assert f'route="{route}",status="{status}"' in client.get("/metrics").text


def test_a_failure_that_nobody_foresaw_is_told_as_everywhere(
    hub: HubInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(registry, "show_text", fail)
    monkeypatch.setattr(lookup, "look", fail)
    with hub.http() as client:
        for path in (f"/api/v1/models/{name_of(PUBLIC)}", f"/api/models/{name_of(PUBLIC)}"):
            answer = client.get(path)
            assert answer.status_code == 500 and answer.json()["code"] == "E_INTERNAL"
            assert "inside" not in answer.text
    monkeypatch.undo()
    with hub.http() as client:
        assert client.get(path).status_code == 200


STATEMENTS, WEIGHTS = "/api/v1/statements", "/api/v1/runs/{plan}/weights/{sha256}"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [({"bundle": "{}"}, 422, "E_BUNDLE"), ({"bundle": 1}, 422, "E_FIELD"), ({}, 422, "E_FIELD")],
)
def test_a_statement_that_cannot_be_logged_is_told_by_the_application(
    hub: HubInProcess, body: dict[str, object], status: int, code: str
) -> None:
    with hub.http(token=TOKEN) as client:
        answer = client.post(STATEMENTS, json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert client.get(f"/api/v1/runs/{'0' * 64}/weights/{'0' * 64}").status_code == 404
    with hub.http(token="fhp_" + "x" * 40) as client:
        assert client.post(STATEMENTS, json=body).json()["code"] in ("E_TOKEN", "E_FIELD")
        assert f'route="{STATEMENTS}",status="{status}"' in client.get("/metrics").text
        assert f'route="{WEIGHTS}",status="404"' in client.get("/metrics").text


def test_other_methods_are_left_to_the_application(hub: HubInProcess) -> None:
    with hub.http(token=TOKEN) as client:
        assert client.post(f"/api/models/{name_of(PUBLIC)}").status_code in (404, 405)
        assert client.put(f"/api/v1/models/{name_of(PUBLIC)}", json={}).status_code == 405
