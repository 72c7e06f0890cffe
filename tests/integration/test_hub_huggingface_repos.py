"""Who is calling and what repositories there are, as stock clients ask."""

from collections.abc import Iterator

import pytest
from sqlalchemy.exc import OperationalError

from hub.services import drafts
from storage.errors import FedhubError, Unchecked
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, open_alliance, weights
from tests.stock_http import Stock


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("repos"), request.param) as opened:
        opened.push({"model.safetensors": weights(1), "config.json": b"{}"}, tags=["stable"])
        yield opened


@pytest.fixture(scope="module")
def owner(alliance: AllianceInProcess) -> Stock:
    return Stock.of(alliance, OWNER)


@pytest.fixture(scope="module")
def lab(alliance: AllianceInProcess) -> Stock:
    return Stock.of(alliance, LABS[0])


MODEL = f"{OWNER}/digits"


def test_caller_is_told_as_a_user_with_its_role(owner: Stock, alliance: AllianceInProcess) -> None:
    me = owner.get("/api/whoami-v2").json()
    assert (me["type"], me["name"], me["orgs"][0]["name"]) == ("user", OWNER, OWNER)
    assert me["auth"]["accessToken"]["role"] == "write"
    reader = Stock.of(alliance, OWNER, "read").get("/api/whoami-v2").json()
    assert reader["auth"]["accessToken"]["role"] == "read"


@pytest.mark.parametrize(
    "path", ["/api/whoami-v2", f"/api/models/{MODEL}", f"/{MODEL}/resolve/main/config.json"]
)
def test_wrong_token_is_told_in_the_words_that_clients_look_for(
    alliance: AllianceInProcess, path: str
) -> None:
    answer = Stock(alliance, "fhp_" + "x" * 43).get(path)
    assert answer.status_code == 401
    assert answer.headers["x-error-message"] == "Invalid credentials in Authorization header"
    assert "x-error-code" not in answer.headers


def test_no_token_is_asked_for_one(alliance: AllianceInProcess) -> None:
    nobody = Stock(alliance, None)
    assert nobody.get("/api/whoami-v2").status_code == 401
    # Over http only the code makes this a missing repository, so it is always sent.
    answer = nobody.api(MODEL)
    assert (answer.status_code, answer.headers["x-error-code"]) == (401, "RepoNotFound")
    assert nobody.get(f"/{MODEL}/resolve/main/config.json").headers["x-error-code"] == "RepoNotFound"


@pytest.mark.parametrize(
    "path",
    [
        "/api/agent-harnesses",
        "/api/spaces",
        "/api/models//tmp/a/model",
        "/nowhere",
        "/a/b",
        "/x.git",
    ],
)
def test_unknown_paths_are_404_as_json(owner: Stock, path: str) -> None:
    answer = owner.get(path)
    assert answer.status_code == 404
    assert isinstance(answer.json(), dict)


@pytest.mark.parametrize("path", ["/tmp/a/model", "./model", "a/b/c/d"])
def test_local_folder_that_is_taken_for_a_models_name_is_told_as_a_missing_repository(
    owner: Stock, path: str
) -> None:
    answer = owner.get(f"/api/models/{path}")
    assert (answer.status_code, answer.headers.get("x-error-code")) == (404, "RepoNotFound")


def test_pages_are_not_shadowed(owner: Stock) -> None:
    for path in ("/models", f"/models/{MODEL}", "/datasets"):
        assert owner.get(path).status_code in (200, 303)
        assert "x-error-code" not in owner.get(path).headers


def test_front_matter_is_never_complained_about(owner: Stock) -> None:
    answer = owner.http.post("/api/validate-yaml", json={"repoType": "model", "content": "---\na: 1\n---"})
    assert answer.json() == {"errors": [], "warnings": []}


# --- making -----------------------------------------------------------------------------------------------


def test_new_repository_is_gated_empty_and_told_by_its_address(owner: Stock) -> None:
    answer = owner.create(f"{OWNER}/fresh")
    assert answer.json()["url"] == f"http://hub.test/{OWNER}/fresh"
    info = owner.api(f"{OWNER}/fresh").json()
    assert (info["gated"], info["private"], info["siblings"]) == ("manual", False, [])
    assert len(info["sha"]) == 40
    assert (
        owner.create(f"{OWNER}/fresh-data", "dataset").json()["url"].endswith(f"/datasets/{OWNER}/fresh-data")
    )


def test_repository_that_cannot_be_made_to_the_end_is_not_there(
    owner: Stock, alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(key: str, data: bytes, **options: bool) -> None:
        raise Unchecked("E_STORE", "the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(alliance.hub.store, "put", away)
        answer = owner.create(f"{OWNER}/half")
    assert (answer.status_code, answer.json()["code"]) == (503, "E_STORE")
    assert owner.api(f"{OWNER}/half").status_code == 404
    assert owner.create(f"{OWNER}/half").status_code == 200


def test_database_that_is_away_is_told_as_stock_clients_read_it(
    owner: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_args: object, **_options: object) -> None:
        raise OperationalError("INSERT hunter2", {}, Exception("away"))

    monkeypatch.setattr(drafts, "create", away)
    answer = owner.create(f"{OWNER}/never")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "does not answer" in answer.headers["x-error-message"] and "hunter2" not in answer.text


def test_repository_that_exists_is_a_conflict_with_its_address(owner: Stock) -> None:
    answer = owner.create(MODEL)
    assert answer.status_code == 409
    assert answer.json()["url"] == f"http://hub.test/{MODEL}"


def test_name_without_namespace_is_the_callers_own(owner: Stock) -> None:
    assert owner.http.post("/api/repos/create", json={"name": "bare"}).json()["id"] == f"{OWNER}/bare"


def test_repository_in_anothers_namespace_is_refused(owner: Stock, alliance: AllianceInProcess) -> None:
    assert owner.create(f"{LABS[0]}/mine").status_code == 403
    assert Stock.of(alliance, OWNER, "read").create(f"{OWNER}/x").status_code == 403
    assert Stock(alliance, None).create(f"{OWNER}/x").status_code == 401


@pytest.mark.parametrize("name", ["a--b", "a..b", ".a", "a/b", "a b", "x" * 97, "m.git", "ä"])
def test_name_that_clients_or_file_systems_trip_over_is_refused(owner: Stock, name: str) -> None:
    answer = owner.http.post("/api/repos/create", json={"name": name, "organization": OWNER})
    assert answer.status_code in (403, 422)


def test_private_repository_is_unknown_to_others(owner: Stock, lab: Stock) -> None:
    assert owner.create(f"{OWNER}/secret", visibility="private").status_code == 200
    assert owner.api(f"{OWNER}/secret").json()["private"] is True
    answer = lab.api(f"{OWNER}/secret")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")
    assert answer.json() == lab.api(f"{OWNER}/nothing").json() | {
        "error": answer.json()["error"]
    }  # the same form as for what is not there
    assert f"{OWNER}/secret" not in [one["id"] for one in lab.get("/api/models").json()]
    assert owner.create(f"{OWNER}/secret-2", private=True).status_code == 200
    assert lab.api(f"{OWNER}/secret-2").status_code == 404


def test_public_repository_is_asked_for_in_vain_by_a_token(owner: Stock, alliance: AllianceInProcess) -> None:
    answer = owner.create(f"{OWNER}/open", visibility="public")
    assert "gated" in answer.headers["x-hf-warning"]
    assert owner.api(f"{OWNER}/open").json()["gated"] == "manual"
    settings = f"/api/models/{OWNER}/open/settings"
    assert owner.http.put(settings, json={"gated": False}).status_code == 403
    with alliance.as_(OWNER) as client:
        assert client.set_visibility(f"{OWNER}/open", "public").visibility == "public"
    assert owner.api(f"{OWNER}/open").json()["gated"] is False
    # A token may tighten it again.
    assert owner.http.put(settings, json={"gated": "manual"}).json()["gated"] == "manual"
    assert owner.http.put(settings, json={"visibility": "private"}).json()["private"] is True
    assert owner.http.put(settings, json={"private": False}).status_code == 403


def test_shared_data_set_is_tightened_and_loosened_by_the_same_rule(owner: Stock, lab: Stock) -> None:
    owner.create(f"{OWNER}/shared", "dataset")
    settings = f"/api/datasets/{OWNER}/shared/settings"
    assert lab.http.put(settings, json={"visibility": "private"}).status_code == 403
    assert owner.http.put(settings, json={"visibility": "private"}).status_code == 200
    assert lab.api(f"{OWNER}/shared", kind="dataset").status_code == 404
    assert owner.http.put(settings, json={"visibility": "public"}).status_code == 403


def test_drafts_can_be_deleted_and_versions_cannot(owner: Stock, lab: Stock) -> None:
    owner.create(f"{OWNER}/gone")
    owner.commit(f"{OWNER}/gone", {"a.txt": b"a"})
    body = {"name": "gone", "organization": OWNER}
    assert lab.http.request("DELETE", "/api/repos/delete", json=body).status_code == 403
    assert owner.http.request("DELETE", "/api/repos/delete", json=body).status_code == 200
    assert owner.api(f"{OWNER}/gone").status_code == 404
    assert owner.create(f"{OWNER}/gone").status_code == 200
    kept = owner.http.request("DELETE", "/api/repos/delete", json={"name": "digits", "organization": OWNER})
    assert kept.status_code == 403 and "signed" in kept.headers["x-error-message"]


# --- describing -------------------------------------------------------------------------------------------


def test_pushed_model_is_a_repository_with_main_tags_and_numbers(owner: Stock, lab: Stock) -> None:
    for caller in (owner, lab):
        info = caller.api(MODEL, params={"blobs": "true"}).json()
        assert info["author"] == OWNER and info["tags"] == ["version:1"]
        files = {one["rfilename"]: one for one in info["siblings"]}
        assert sorted(files) == [
            "config.json",
            "fedhub/asset.sigstore.json",
            "fedhub/manifest.json",
            "model.safetensors",
            "model.sig",
        ]
        assert files["model.safetensors"]["lfs"]["size"] == files["model.safetensors"]["size"]
        assert "lfs" not in files["config.json"] and len(files["config.json"]["blobId"]) == 40
        for revision in (
            "main",
            "stable",
            "v1",
            "refs%2Fheads%2Fmain",
            "refs%2Ftags%2Fstable",
            info["sha"],
            info["sha"][:8],
        ):
            assert caller.api(MODEL, f"/revision/{revision}").json()["sha"] == info["sha"], revision


@pytest.mark.parametrize("revision", ["nothing", "v2", "refs%2Fpr%2F1", "0" * 40, "abcdefa", "%2F"])
def test_unknown_revision_is_named(owner: Stock, revision: str) -> None:
    answer = owner.api(MODEL, f"/revision/{revision}")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")


def test_list_is_paged_by_absolute_links_and_filtered(alliance: AllianceInProcess, lab: Stock) -> None:
    firm = Stock.of(alliance, LABS[1])
    for number in range(5):
        firm.create(f"{LABS[1]}/m{number}")
    seen, url = [], f"/api/models?author={LABS[1]}&limit=2"
    while url:
        answer = lab.get(url)
        seen += [one["id"] for one in answer.json()]
        following = answer.links.get("next", {}).get("url", "")
        assert not following or following.startswith("http://hub.test/api/models?author=")
        url = following.removeprefix("http://hub.test")
    assert seen == [f"{LABS[1]}/m{number}" for number in range(5)]
    assert [one["id"] for one in lab.get("/api/models?search=M3").json()] == [f"{LABS[1]}/m3"]
    assert Stock(alliance, None).get("/api/models").json() == []


def test_data_sets_on_site_are_no_repositories(alliance: AllianceInProcess, lab: Stock) -> None:
    alliance.describe(LABS[0])
    assert f"{LABS[0]}/digits" not in [one["id"] for one in lab.get("/api/datasets").json()]
    assert lab.api(f"{LABS[0]}/digits", kind="dataset").status_code == 404


def test_right_to_write_is_the_owners(owner: Stock, lab: Stock, alliance: AllianceInProcess) -> None:
    assert owner.api(MODEL, "/auth-check/write").status_code == 200
    assert lab.api(MODEL, "/auth-check/write").status_code == 403
    assert Stock.of(alliance, OWNER, "read").api(MODEL, "/auth-check/write").status_code == 403
    denied = lab.api(MODEL, "/auth-check")
    assert (denied.status_code, denied.headers["x-error-code"]) == (403, "GatedRepo")
    assert owner.api(MODEL, "/auth-check").status_code == 200


def test_tag_of_one_surface_is_taken_on_the_other(owner: Stock, alliance: AllianceInProcess) -> None:
    with alliance.as_(OWNER) as client:
        for tag in ("v7", "kept"):
            assert owner.http.post(f"/api/models/{MODEL}/tag/main", json={"tag": tag}).status_code == 200
        assert client.tag(MODEL, "kept", 1).version == 1  # the same version: a repeat
        owner.create(f"{OWNER}/tagged")
        owner.commit(f"{OWNER}/tagged", {"a.txt": b"a"})
        owner.http.post(f"/api/models/{OWNER}/tagged/tag/main", json={"tag": "first"})
        alliance.push({"b.txt": b"b"}, f"{OWNER}/tagged")
        with pytest.raises(FedhubError) as refused:
            client.tag(f"{OWNER}/tagged", "first", 1)
        assert refused.value.code == "E_TAG"
        alliance.push({"b.txt": b"c"}, f"{OWNER}/tagged")
        with pytest.raises(FedhubError) as refused:
            client.tag(f"{OWNER}/tagged", "v2", 1)
        assert refused.value.code == "E_TAG"


def test_firm_sees_what_members_see(alliance: AllianceInProcess) -> None:
    assert Stock.of(alliance, FIRM, "read").api(MODEL).status_code == 200
