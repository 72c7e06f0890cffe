"""What OCI clients ask, request by request: tokens, manifests, layers, tags, referrers, refusals."""

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlmodel import select

from federation import wire
from hub.services import oci
from hub.tables import PersonalTokenRow
from storage.encoding import sha256_hex
from storage.signing import open_envelope
from storage.statements import read_statement
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, open_alliance, weights
from tests.stock_http import Stock

BIG = os.urandom(1 << 20) + b"and one more"
FILES = {
    "README.md": b"# A model",
    "config.json": b'{"a": 1}',
    "copy.json": b'{"a": 1}',
    "model.safetensors": weights(1, 2, 3),
    "sub/big.bin": BIG,
    "sub/empty.txt": b"",
}
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
LAYER = "application/vnd.cncf.model.{}.v1.raw"
NONE = "sha256:" + "0" * 64


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("oci"), request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def version(alliance: AllianceInProcess) -> wire.ModelVersion:
    alliance.push({"config.json": b"old"}, f"{OWNER}/art")
    made = alliance.push(FILES, f"{OWNER}/art", tags=["stable"], license_id="Apache-2.0")
    alliance.grant_pull(made.asset_id)
    return made


@pytest.fixture(scope="module")
def firm(alliance: AllianceInProcess) -> Stock:
    return Stock.of(alliance, FIRM, "read")


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    (error,) = answer.json()["errors"]
    assert error["code"] == code, error
    return str(error["message"])


def manifest_of(stock: Stock, reference: str, repo: str = f"{OWNER}/art") -> tuple[str, dict[str, Any]]:
    answer = stock.get(f"/v2/{repo}/manifests/{reference}")
    assert answer.status_code == 200, answer.text
    digest = f"sha256:{sha256_hex(answer.content)}"
    assert answer.headers["docker-content-digest"] == digest
    return digest, answer.json()


def receipts(alliance: AllianceInProcess, asset_id: str) -> int:
    with alliance.client(alliance.operator) as client:
        return len(list(client.all_statements(kind="receipt", subject=asset_id)))


# --- manifests and layers ---------------------------------------------------------------------------------


def test_every_file_is_a_raw_layer_whose_digest_is_the_files_own(
    firm: Stock, version: wire.ModelVersion
) -> None:
    digest, told = manifest_of(firm, "stable")
    assert manifest_of(firm, "v2") == manifest_of(firm, digest) == (digest, told)
    assert told["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in told["layers"]}
    assert {path: layer["digest"] for path, layer in layers.items()} == {
        path: f"sha256:{sha256_hex(data)}" for path, data in FILES.items()
    }
    assert {path: layer["size"] for path, layer in layers.items()} == {p: len(d) for p, d in FILES.items()}
    kinds = {path: layer["mediaType"] for path, layer in layers.items()}
    assert kinds["README.md"] == LAYER.format("doc")
    assert kinds["model.safetensors"] == LAYER.format("weight")
    assert kinds["config.json"] == LAYER.format("weight.config")
    config = firm.get(f"/v2/{OWNER}/art/blobs/{told['config']['digest']}")
    assert f"sha256:{sha256_hex(config.content)}" == told["config"]["digest"]
    assert len(config.content) == told["config"]["size"]
    assert config.headers["content-type"] == "application/vnd.cncf.model.config.v1+json"
    assert config.json()["modelfs"] == {
        "type": "layers",
        "diffIds": [layer["digest"] for layer in told["layers"]],
    }
    assert config.json()["descriptor"]["licenses"] == ["Apache-2.0"]


def test_head_tells_size_and_digest_and_is_no_pull(
    alliance: AllianceInProcess, firm: Stock, version: wire.ModelVersion
) -> None:
    before = receipts(alliance, version.asset_id)
    body = firm.get(f"/v2/{OWNER}/art/manifests/stable")
    head = firm.http.head(f"/v2/{OWNER}/art/manifests/stable")
    assert head.content == b"" and head.headers["content-length"] == str(len(body.content))
    assert head.headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
    layer = f"sha256:{sha256_hex(BIG)}"
    blob = firm.http.head(f"/v2/{OWNER}/art/blobs/{layer}")
    assert (blob.status_code, blob.headers["content-length"]) == (200, str(len(BIG)))
    assert blob.headers["docker-content-digest"] == layer
    assert receipts(alliance, version.asset_id) == before


@pytest.mark.parametrize("path", list(FILES))
def test_layer_comes_by_redirect_whole_or_in_ranges(
    firm: Stock, version: wire.ModelVersion, path: str
) -> None:
    answer = firm.get(f"/v2/{OWNER}/art/blobs/sha256:{sha256_hex(FILES[path])}")
    assert answer.status_code == 307 and not answer.content
    assert firm.follow(answer.headers["location"]).content == FILES[path]
    if len(FILES[path]) > 4:
        part = firm.follow(answer.headers["location"], Range="bytes=2-3")
        assert (part.status_code, part.content) == (206, FILES[path][2:4])


def test_same_version_has_the_same_digest_after_the_hub_forgot_it(
    firm: Stock, version: wire.ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, told = manifest_of(firm, "stable")
    monkeypatch.setattr(oci, "_known_digests", {})
    assert manifest_of(firm, digest) == (digest, told)
    monkeypatch.setattr(oci, "KNOWN", 1)
    assert manifest_of(firm, digest) == (digest, told)


def test_version_with_too_many_files_for_a_manifest_says_so(
    firm: Stock, version: wire.ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci, "MANIFEST_BYTES", 100)
    monkeypatch.setattr(oci, "_known_digests", {})
    text = refused(firm.get(f"/v2/{OWNER}/art/manifests/stable"), 413, "SIZE_INVALID")
    assert "OCI clients take 100" in text
    refused(firm.get(f"/v2/{OWNER}/art/manifests/{NONE}"), 404, "MANIFEST_UNKNOWN")


def test_model_with_capitals_is_found_by_its_name_in_lower_case(
    alliance: AllianceInProcess, firm: Stock
) -> None:
    made = alliance.push({"config.json": b"big"}, f"{OWNER}/Big-Model")
    alliance.grant_pull(made.asset_id)
    assert manifest_of(firm, "v1", f"{OWNER}/big-model") == manifest_of(firm, "v1", f"{OWNER}/Big-Model")
    alliance.push({"config.json": b"big"}, f"{OWNER}/BIG-model")
    refused(firm.get(f"/v2/{OWNER}/big-model/manifests/v1"), 404, "NAME_UNKNOWN")


# --- referrers --------------------------------------------------------------------------------------------


def test_referrers_are_the_bundles_that_sign_the_version(
    alliance: AllianceInProcess, firm: Stock, version: wire.ModelVersion
) -> None:
    digest, told = manifest_of(firm, "stable")
    answer = firm.get(f"/v2/{OWNER}/art/referrers/{digest}", params={"artifactType": BUNDLE})
    assert answer.headers["content-type"] == "application/vnd.oci.image.index.v1+json"
    assert answer.headers["oci-filters-applied"] == "artifactType"
    found = {one["annotations"]["dev.fedhub.statement.kind"]: one for one in answer.json()["manifests"]}
    assert set(found) == {"oms", "asset"}
    for one in found.values():
        own_digest, referrer = manifest_of(firm, one["digest"])
        assert own_digest == one["digest"]
        assert (referrer["artifactType"], referrer["subject"]["digest"]) == (BUNDLE, digest)
        (layer,) = referrer["layers"]
        bundle = firm.get(f"/v2/{OWNER}/art/blobs/{layer['digest']}")
        assert bundle.headers["content-type"] == layer["mediaType"] == BUNDLE
        statement = read_statement(open_envelope(bundle.content))
        assert statement.id == one["annotations"]["dev.fedhub.statement"]
    assert told["annotations"]["dev.fedhub.asset"] == version.asset_id
    empty = firm.get(f"/v2/{OWNER}/art/blobs/{oci.EMPTY.digest}")
    assert empty.content == b"{}"
    other = firm.get(f"/v2/{OWNER}/art/referrers/{digest}", params={"artifactType": "text/plain"})
    assert other.json()["manifests"] == []
    unknown = firm.get(f"/v2/{OWNER}/art/referrers/{NONE}")
    assert (unknown.status_code, unknown.json()["manifests"]) == (200, [])


# --- tags -------------------------------------------------------------------------------------------------


def test_tags_are_listed_in_order_and_in_pages(firm: Stock, version: wire.ModelVersion) -> None:
    where = f"/v2/{OWNER}/art/tags/list"
    assert firm.get(where).json() == {"name": f"{OWNER}/art", "tags": ["stable", "v1", "v2"]}
    first = firm.get(where, params={"n": "2"})
    assert first.json()["tags"] == ["stable", "v1"]
    link = first.headers["link"]
    assert link == f'<{where}?n=2&last=v1>; rel="next"'
    second = firm.get(link[1 : link.index(">")])
    assert second.json()["tags"] == ["v2"] and "link" not in second.headers
    none = firm.get(where, params={"n": "0"})
    assert none.json()["tags"] == [] and "link" not in none.headers
    assert len(firm.get(where, params={"n": "9" * 18}).json()["tags"]) == 3
    for bad in ("-1", "x", "9" * 19, "1.5"):
        refused(firm.get(where, params={"n": bad}), 400, "PAGINATION_NUMBER_INVALID")


def test_draft_is_no_artifact(alliance: AllianceInProcess) -> None:
    owner, repo = Stock.of(alliance, OWNER), f"{OWNER}/only-draft"
    owner.create(repo)
    owner.commit(repo, {"config.json": b"secret draft"})
    tagged = owner.http.post(f"/api/models/{repo}/tag/main", json={"tag": "wip"})
    assert tagged.status_code == 200
    assert owner.get(f"/v2/{repo}/tags/list").json()["tags"] == []
    for reference in ("wip", "main"):
        refused(owner.get(f"/v2/{repo}/manifests/{reference}"), 404, "MANIFEST_UNKNOWN")
    blob = f"sha256:{sha256_hex(b'secret draft')}"
    refused(owner.get(f"/v2/{repo}/blobs/{blob}"), 404, "BLOB_UNKNOWN")


# --- tokens and access ------------------------------------------------------------------------------------


def basic(token: str, user: str = "x") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()}


def test_token_works_as_bearer_as_password_and_through_the_endpoint(
    alliance: AllianceInProcess, firm: Stock, version: wire.ModelVersion
) -> None:
    nobody, where = alliance.http(), f"/v2/{OWNER}/art/manifests/stable"
    asked = nobody.get("/v2/")
    refused(asked, 401, "UNAUTHORIZED")
    assert asked.headers["www-authenticate"].startswith('Bearer realm="http')
    assert asked.headers["docker-distribution-api-version"] == "registry/2.0"
    token = firm.http.headers["authorization"].removeprefix("Bearer ")
    assert firm.get("/v2/").status_code == 200
    assert nobody.get(where, headers=basic(token)).status_code == 200
    given = nobody.get("/v2/token?service=x&scope=repository:a/b:pull", headers=basic(token))
    assert given.json()["token"] == given.json()["access_token"] == token
    assert given.headers["cache-control"] == "no-store"
    wrong = basic("fhp_" + "w" * 43)
    for path in ("/v2/", "/v2/token", where):
        refused(nobody.get(path, headers=wrong), 401, "UNAUTHORIZED")
    for bad in ("Basic !!!", "Basic " + base64.b64encode(b"user").decode(), "Digest x", "Bearer"):
        refused(nobody.get(where, headers={"Authorization": bad}), 401, "UNAUTHORIZED")


def test_nobody_gets_nobodys_token_and_reads_what_is_public(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    nobody = alliance.http()
    token = nobody.get("/v2/token").json()["token"]
    unknown = Stock(alliance, token)
    assert unknown.get("/v2/").status_code == 200
    gated = unknown.get(f"/v2/{OWNER}/art/manifests/stable")
    refused(gated, 401, "UNAUTHORIZED")
    assert f'scope="repository:{OWNER}/art:pull"' in gated.headers["www-authenticate"]
    alliance.push({"config.json": b"for all"}, f"{OWNER}/open")
    with alliance.as_(OWNER) as client:
        client.set_visibility(f"{OWNER}/open", "public")
    assert unknown.get(f"/v2/{OWNER}/open/manifests/v1").status_code == 200
    layer = unknown.get(f"/v2/{OWNER}/open/blobs/sha256:{sha256_hex(b'for all')}")
    assert unknown.follow(layer.headers["location"]).content == b"for all"


def test_private_is_unknown_gated_is_denied_and_a_digest_opens_nothing(
    alliance: AllianceInProcess, firm: Stock, version: wire.ModelVersion
) -> None:
    lab = Stock.of(alliance, LABS[0], "read")
    digest, told = manifest_of(firm, "stable")
    layers = [layer["digest"] for layer in told["layers"]]
    for tail in ("manifests/stable", f"manifests/{digest}", f"referrers/{digest}", f"blobs/{layers[0]}"):
        refused(lab.get(f"/v2/{OWNER}/art/{tail}"), 403, "DENIED")
    refused(lab.get(f"/v2/{OWNER}/art/blobs/{told['config']['digest']}"), 403, "DENIED")
    alliance.push({"config.json": b"hidden"}, f"{OWNER}/hidden")
    with alliance.as_(OWNER) as client:
        client.set_visibility(f"{OWNER}/hidden", "private")
    for tail in ("manifests/v1", "tags/list", f"blobs/sha256:{sha256_hex(b'hidden')}"):
        refused(lab.get(f"/v2/{OWNER}/hidden/{tail}"), 404, "NAME_UNKNOWN")
    # A digest that the caller may read elsewhere is not in this repository.
    alliance.push({"config.json": b"other"}, f"{OWNER}/elsewhere")
    refused(firm.get(f"/v2/{OWNER}/elsewhere/blobs/{layers[0]}"), 404, "BLOB_UNKNOWN")


def test_revoked_grant_and_ended_token_stop_the_next_request(alliance: AllianceInProcess) -> None:
    made = alliance.push({"config.json": b"until"}, f"{OWNER}/until")
    grant = alliance.grant_pull(made.asset_id)
    firm = Stock.of(alliance, FIRM, "read")
    layer = f"/v2/{OWNER}/until/blobs/sha256:{sha256_hex(b'until')}"
    location = firm.get(layer).headers["location"]
    assert receipts(alliance, made.asset_id) == 1
    assert firm.follow(location).content == b"until"
    alliance.say(OWNER, "revocation", [("statement", grant)], {"target": "statement", "reason": "withdrawn"})
    assert firm.follow(location, Range="bytes=2-").status_code == 403
    refused(firm.get(layer), 403, "DENIED")
    refused(firm.get(f"/v2/{OWNER}/until/manifests/v1"), 403, "DENIED")
    token = firm.http.headers["authorization"].removeprefix("Bearer ")
    with alliance.hub.database.session_scope() as session:
        query = select(PersonalTokenRow).where(PersonalTokenRow.digest == sha256_hex(token.encode()))
        session.exec(query).one().revoked_at = 1
    refused(firm.get(f"/v2/{OWNER}/until/tags/list"), 401, "UNAUTHORIZED")


# --- bad questions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "status", "code"),
    [
        (f"{OWNER}/art/manifests/nothing", 404, "MANIFEST_UNKNOWN"),
        (f"{OWNER}/art/manifests/latest", 404, "MANIFEST_UNKNOWN"),
        (f"{OWNER}/art/manifests/{NONE}", 404, "MANIFEST_UNKNOWN"),
        (f"{OWNER}/art/manifests/sha256:zz", 400, "DIGEST_INVALID"),
        (f"{OWNER}/art/manifests/sha512:{'0' * 128}", 400, "DIGEST_INVALID"),
        (f"{OWNER}/art/manifests/{'x' * 200}", 400, "MANIFEST_INVALID"),
        (f"{OWNER}/art/manifests/-x", 400, "MANIFEST_INVALID"),
        (f"{OWNER}/art/blobs/{NONE}", 404, "BLOB_UNKNOWN"),
        (f"{OWNER}/art/blobs/SHA256:{'0' * 64}", 400, "DIGEST_INVALID"),
        (f"{OWNER}/art/blobs/..%2f..%2fetc", 404, "NAME_UNKNOWN"),
        (f"{OWNER}/art/referrers/x", 400, "DIGEST_INVALID"),
        (f"{OWNER}/nothing/tags/list", 404, "NAME_UNKNOWN"),
        (f"{OWNER}/_x/tags/list", 400, "NAME_INVALID"),
        ("UPPER/art/tags/list", 400, "NAME_INVALID"),
        ("a/b/c/manifests/v1", 404, "NAME_UNKNOWN"),
        ("art/manifests/v1", 404, "NAME_UNKNOWN"),
        ("_catalog", 404, "NAME_UNKNOWN"),
    ],
)
def test_bad_question_is_refused_in_the_protocols_form(
    firm: Stock, version: wire.ModelVersion, tail: str, status: int, code: str
) -> None:
    refused(firm.get(f"/v2/{tail}"), status, code)


def test_registry_is_read_only(firm: Stock, version: wire.ModelVersion) -> None:
    for method, tail in (
        ("POST", "blobs/uploads/"),
        ("PUT", "manifests/v9"),
        ("DELETE", "manifests/v1"),
        ("PATCH", "blobs/uploads/1"),
    ):
        answer = firm.http.request(method, f"/v2/{OWNER}/art/{tail}", content=json.dumps({}))
        refused(answer, 405, "UNSUPPORTED")
