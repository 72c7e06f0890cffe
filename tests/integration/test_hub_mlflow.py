"""What MLflow clients ask, request by request: names, versions, tags, folders, files, refusals."""

import os
from collections.abc import Iterator

import httpx
import pytest

from federation import wire
from hub.tables import InstitutionRow
from storage.encoding import sha256_hex
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, open_alliance
from tests.stock_http import Stock

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
BIG = os.urandom(1 << 20) + b"and one more"
FILES = {"config.json": b'{"a": 1}', "big.bin": BIG, "sub/deep/text.txt": b"text", "empty.txt": b""}


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("mlflow"), request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def version(alliance: AllianceInProcess) -> wire.ModelVersion:
    alliance.push({"config.json": b"old"}, f"{OWNER}/flow")
    made = alliance.push(FILES, f"{OWNER}/flow", tags=["stable"], license_id="Apache-2.0")
    alliance.grant_pull(made.asset_id)
    return made


@pytest.fixture(scope="module")
def firm(alliance: AllianceInProcess) -> Stock:
    return Stock.of(alliance, FIRM, "read")


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
    return str(answer.json()["message"])


def receipts(alliance: AllianceInProcess, asset_id: str) -> int:
    with alliance.client(alliance.operator) as client:
        return len(list(client.all_statements(kind="receipt", subject=asset_id)))


# --- the registry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"{OWNER}.flow", f"{OWNER}--flow"])
def test_model_is_found_under_both_forms_of_its_name(
    firm: Stock, version: wire.ModelVersion, name: str
) -> None:
    model = firm.get(f"{API}/registered-models/get", params={"name": name}).json()["registered_model"]
    assert model["name"] == name
    assert model["aliases"] == [{"alias": "stable", "version": "2"}]
    assert [one["version"] for one in model["latest_versions"]] == ["2"]
    found = firm.get(f"{API}/registered-models/alias", params={"name": name, "alias": "stable"})
    told = found.json()["model_version"]
    assert (told["version"], told["source"]) == ("2", f"mlflow-artifacts:/{OWNER}/flow/2")
    assert {"key": "fedhub.asset", "value": version.asset_id} in told["tags"]
    assert {"key": "license", "value": "Apache-2.0"} in told["tags"]
    where = firm.get(f"{API}/model-versions/get-download-uri", params={"name": name, "version": "2"})
    assert where.json() == {"artifact_uri": f"mlflow-artifacts:/{OWNER}/flow/2"}
    newest = firm.http.post(f"{API}/registered-models/get-latest-versions", json={"name": name})
    assert newest.json()["model_versions"] == [told]


def test_searches_page_and_filter(firm: Stock, version: wire.ModelVersion) -> None:
    where = f"{API}/registered-models/search"
    no_prompts = "tag.`mlflow.prompt.is_prompt` != 'true'"  # added by every client
    for text in (f"name = '{OWNER}.flow'", f'name="{OWNER}.flow" AND {no_prompts}'):
        one = firm.get(where, params={"filter": text}).json()["registered_models"]
        assert [model["name"] for model in one] == [f"{OWNER}.flow"]
    every = firm.get(where, params={"filter": no_prompts}).json()["registered_models"]
    assert f"{OWNER}.flow" in [model["name"] for model in every]
    part = firm.get(where, params={"filter": "name LIKE '%flow%'", "max_results": 1}).json()
    assert [model["name"] for model in part["registered_models"]] == [f"{OWNER}.flow"]
    none = firm.get(where, params={"filter": f"name = '{OWNER}.nothing'"}).json()
    assert none == {"registered_models": []}
    versions = f"{API}/model-versions/search"
    first = firm.get(versions, params={"filter": f"name='{OWNER}.flow'", "max_results": 1}).json()
    assert [one["version"] for one in first["model_versions"]] == ["2"]
    second = firm.get(
        versions, params={"filter": f"name='{OWNER}.flow'", "page_token": first["next_page_token"]}
    )
    assert [one["version"] for one in second.json()["model_versions"]] == ["1"]


def test_dotted_name_that_fits_two_institutions_is_refused_and_the_clear_form_is_not(
    alliance: AllianceInProcess, firm: Stock, version: wire.ModelVersion
) -> None:
    alliance.push({"config.json": b"x"}, f"{OWNER}/eu.m")
    name = f"{OWNER}.eu.m"
    assert firm.get(f"{API}/registered-models/get", params={"name": name}).status_code == 200
    other = f"{OWNER}.eu"
    with alliance.hub.database.session_scope() as session:
        session.add(InstitutionRow(name=other, role="owner", state="approved", pin="0" * 64, joined_at=1))
    try:
        answer = firm.get(f"{API}/registered-models/get", params={"name": name})
        text = refused(answer, 400, "INVALID_PARAMETER_VALUE")
        assert f"{OWNER}--eu.m" in text and f"{other}--m" in text
        clear = firm.get(f"{API}/registered-models/get", params={"name": f"{OWNER}--eu.m"})
        assert clear.status_code == 200
        listed = firm.get(f"{API}/registered-models/search", params={"filter": "name LIKE '%eu.m%'"})
        assert [model["name"] for model in listed.json()["registered_models"]] == [f"{OWNER}--eu.m"]
    finally:
        with alliance.hub.database.session_scope() as session:
            session.delete(session.get_one(InstitutionRow, other))


# --- artifacts --------------------------------------------------------------------------------------------


def test_folders_are_listed_one_level_at_a_time(firm: Stock, version: wire.ModelVersion) -> None:
    def listed(path: str) -> list[dict[str, object]]:
        files: list[dict[str, object]] = firm.get(ARTIFACTS, params={"path": path}).json()["files"]
        return files

    top = {one["path"]: one for one in listed(f"{OWNER}/flow/2")}
    assert set(top) == {"big.bin", "config.json", "empty.txt", "fedhub", "model.sig", "sub"}
    assert top["big.bin"] == {"path": "big.bin", "is_dir": False, "file_size": len(BIG)}
    assert top["sub"] == {"path": "sub", "is_dir": True}
    assert listed(f"{OWNER}/flow/2/sub") == [{"path": "deep", "is_dir": True}]
    assert [one["path"] for one in listed(f"{OWNER}/flow/2/sub/deep")] == ["text.txt"]
    assert [one["path"] for one in listed(f"{OWNER}/flow/2/config.json")] == ["config.json"]


@pytest.mark.parametrize("path", list(FILES))
def test_file_comes_by_redirect_from_the_download_origin(
    firm: Stock, version: wire.ModelVersion, path: str
) -> None:
    answer = firm.get(f"{ARTIFACTS}/{OWNER}/flow/2/{path}")
    assert answer.status_code == 307 and not answer.content
    assert firm.follow(answer.headers["location"]).content == FILES[path]


def test_proofs_come_through_the_hub(firm: Stock, version: wire.ModelVersion) -> None:
    answer = firm.get(f"{ARTIFACTS}/{OWNER}/flow/2/fedhub/manifest.json")
    assert answer.status_code == 200 and sha256_hex(answer.content) == version.asset_id
    assert firm.get(f"{ARTIFACTS}/{OWNER}/flow/2/model.sig").status_code == 200


def test_pull_under_a_grant_leaves_one_receipt_and_a_revoked_grant_stops_the_next_range(
    alliance: AllianceInProcess, firm: Stock
) -> None:
    made = alliance.push({"config.json": b"mine"}, f"{OWNER}/revoked")
    grant = alliance.grant_pull(made.asset_id)
    firm.get(ARTIFACTS, params={"path": f"{OWNER}/revoked/1"})
    assert receipts(alliance, made.asset_id) == 0
    first = firm.get(f"{ARTIFACTS}/{OWNER}/revoked/1/config.json")
    firm.get(f"{ARTIFACTS}/{OWNER}/revoked/1/config.json")
    assert receipts(alliance, made.asset_id) == 1
    assert firm.follow(first.headers["location"], Range="bytes=0-1").content == b"mi"
    alliance.say(OWNER, "revocation", [("statement", grant)], {"target": "statement", "reason": "withdrawn"})
    assert firm.follow(first.headers["location"], Range="bytes=2-").status_code == 403
    again = firm.get(f"{ARTIFACTS}/{OWNER}/revoked/1/config.json")
    refused(again, 403, "PERMISSION_DENIED")


# --- who may not ------------------------------------------------------------------------------------------


def show(alliance: AllianceInProcess, name: str, visibility: str) -> None:
    """A model of one file that these may see."""
    alliance.push({"config.json": b"x"}, name)
    with alliance.as_(OWNER) as client:
        client.set_visibility(name, visibility)


def test_access_is_that_of_every_other_client(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    file, model = f"{ARTIFACTS}/{OWNER}/flow/2/config.json", f"{API}/registered-models/get"
    named = {"name": f"{OWNER}.flow"}
    nobody = Stock(alliance, None)
    for answer in (nobody.get(model, params=named), nobody.get(file)):
        refused(answer, 401, "UNAUTHENTICATED")
    lab = Stock.of(alliance, LABS[0], "read")
    assert lab.get(model, params=named).status_code == 200
    assert "grant" in refused(lab.get(file), 403, "PERMISSION_DENIED")
    wrong = Stock(alliance, "fhp_" + "w" * 43)
    refused(wrong.get(model, params=named), 401, "UNAUTHENTICATED")
    show(alliance, f"{OWNER}/hidden", "private")
    hidden = {"name": f"{OWNER}.hidden"}
    refused(lab.get(model, params=hidden), 404, "RESOURCE_DOES_NOT_EXIST")
    refused(lab.get(f"{ARTIFACTS}/{OWNER}/hidden/1/config.json"), 404, "RESOURCE_DOES_NOT_EXIST")
    assert Stock.of(alliance, OWNER).get(model, params=hidden).status_code == 200
    show(alliance, f"{OWNER}/open", "public")
    assert nobody.get(f"{ARTIFACTS}/{OWNER}/open/1/config.json").status_code == 307


def test_draft_is_no_version(alliance: AllianceInProcess) -> None:
    owner, repo = Stock.of(alliance, OWNER), f"{OWNER}/only-draft"
    owner.create(repo)
    assert owner.commit(repo, {"config.json": b"{}"}).status_code == 200
    model = owner.get(f"{API}/registered-models/get", params={"name": f"{OWNER}.only-draft"}).json()
    assert model["registered_model"]["latest_versions"] == []
    answer = owner.get(ARTIFACTS, params={"path": f"{repo}/1"})
    refused(answer, 404, "RESOURCE_DOES_NOT_EXIST")


@pytest.mark.parametrize(
    ("path", "params", "status", "code"),
    [
        ("registered-models/get", {}, 400, "INVALID_PARAMETER_VALUE"),
        ("registered-models/get", {"name": "nobody.example.m"}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ("registered-models/get", {"name": "--"}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ("registered-models/get", {"name": "." * 500}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ("registered-models/get", {"name": "x" * 600}, 400, "INVALID_PARAMETER_VALUE"),
        ("registered-models/alias", {"name": f"{OWNER}.flow", "alias": "no"}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ("model-versions/get", {"name": f"{OWNER}.flow", "version": "9"}, 404, "RESOURCE_DOES_NOT_EXIST"),
        ("model-versions/get", {"name": f"{OWNER}.flow", "version": "-1"}, 400, "INVALID_PARAMETER_VALUE"),
        ("model-versions/get", {"name": f"{OWNER}.flow", "version": "²"}, 400, "INVALID_PARAMETER_VALUE"),
        ("model-versions/search", {}, 400, "INVALID_PARAMETER_VALUE"),
        ("model-versions/search", {"filter": "run_id = 'x'"}, 400, "INVALID_PARAMETER_VALUE"),
        ("registered-models/search", {"filter": "name LIKE '%'"}, 400, "INVALID_PARAMETER_VALUE"),
        ("registered-models/search", {"max_results": str(10**30)}, 400, "INVALID_PARAMETER_VALUE"),
        ("registered-models/search", {"order_by": "name DESC"}, 400, "INVALID_PARAMETER_VALUE"),
        ("experiments/search", {}, 404, "ENDPOINT_NOT_FOUND"),
    ],
)
def test_bad_question_is_refused_in_mlflows_own_form(
    firm: Stock, version: wire.ModelVersion, path: str, params: dict[str, str], status: int, code: str
) -> None:
    refused(firm.get(f"{API}/{path}", params=params), status, code)


@pytest.mark.parametrize(
    ("tail", "status"),
    [
        ("", 404),
        ("/x", 400),
        (f"/{OWNER}/flow/2/%2e%2e/%2e%2e/etc/passwd", 400),
        (f"/{OWNER}/flow/2/..%2f..%2fetc%2fpasswd", 400),
        (f"/{OWNER}/flow/2//etc/passwd", 400),
        (f"/{OWNER}/flow/0/config.json", 400),
        (f"/{OWNER}/flow/9/config.json", 404),
        (f"/{OWNER}/flow/2", 404),
        (f"/{OWNER}/flow/2/sub", 404),
        (f"/{OWNER}/flow/2/fedhub/other.json", 404),
        (f"/{OWNER}/flow/2/%00", 400),
    ],
)
def test_artifact_path_that_names_no_file_is_refused(
    firm: Stock, version: wire.ModelVersion, tail: str, status: int
) -> None:
    answer = firm.get(f"{ARTIFACTS}{tail or '/'}")
    assert answer.status_code == (400 if not tail else status), answer.text
    assert set(answer.json()) == {"error_code", "message"}


def test_writing_is_not_here(firm: Stock) -> None:
    refused(firm.http.post(f"{API}/registered-models/create", json={"name": "x"}), 404, "ENDPOINT_NOT_FOUND")
    refused(firm.http.put(f"{ARTIFACTS}/x", content=b"x"), 404, "ENDPOINT_NOT_FOUND")
