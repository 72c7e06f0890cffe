"""Data sets that stay on-site and data sets shared on purpose: told apart by API, commands and pages."""

import io
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from federation.home import Home
from federation.publishing import describe_dataset
from federation.signing_drafts import share_draft
from hub.cli import dispatch
from hub.terminal import Terminal
from storage.encoding import sha256_hex
from storage.errors import Exit, FedhubError, Refused
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, open_alliance
from tests.stock_http import Stock

LAB = LABS[0]
ROWS = {"train.csv": b"age,label\n61,1\n70,0\n"}
SHARED, HIDDEN, STAYS = f"{OWNER}/shared-rows", f"{OWNER}/hidden-rows", f"{LAB}/rows-at-home"


class World:
    """A data set that stays at a lab, a shared one and a private shared one of the owner."""

    def __init__(self, alliance: AllianceInProcess) -> None:
        self.alliance = alliance
        folder = self.folder()
        with alliance.as_(LAB) as lab:
            self.stays = describe_dataset(
                alliance.homes[LAB], lab, folder, STAYS, description="Stays.", license_id="CC-BY-4.0"
            )
        self.owner = Stock.of(alliance, OWNER)
        self.shared, self.hidden = (self.share(name, license_id="CC0-1.0") for name in (SHARED, HIDDEN))
        with alliance.as_(OWNER) as owner:
            owner.set_dataset_visibility(HIDDEN, "private")

    def folder(self) -> Any:
        folder = self.alliance.folder / secrets.token_hex(4)
        folder.mkdir()
        for name, data in ROWS.items():
            (folder / name).write_bytes(data)
        return folder

    def share(self, name: str, license_id: str) -> str:
        """Upload as stock clients do, then sign; the asset id."""
        self.owner.create(name, "dataset")
        self.owner.commit(name, ROWS, kind="dataset")
        with self.alliance.as_(OWNER) as client:
            made = share_draft(
                self.alliance.homes[OWNER],
                client,
                name,
                "main",
                files=self.folder(),
                description="Shared on purpose.",
                license_id=license_id,
            )
        return str(made.asset_id)

    def browser(self, name: str) -> httpx.Client:
        """A browser in which this member has signed in."""
        client = self.alliance.http()
        with self.alliance.as_(name) as member:
            token = member.create_token("browser", ["read"], valid_days=1).token
        client.post("/sign-in", data={"token": token, "to": "/"})
        client.headers["accept"] = "text/html"
        return client

    def fedhub(self, name: str, *words: str) -> Terminal:
        terminal = Terminal(self.alliance.homes[name].path, json=True, out=io.StringIO(), err=io.StringIO())
        code = dispatch(list(words), terminal)
        assert (code is Exit.DONE) == (not terminal.problem)
        return terminal


@pytest.fixture(scope="module", params=ENGINES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("datasets")
    with open_alliance(folder, request.param, superlink="external") as alliance:
        yield World(alliance)


@pytest.fixture(autouse=True)
def commands(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Home, "client", lambda self, role="targets": world.alliance.client(self, role))


def _listed(client: httpx.Client, **asked: str) -> set[str]:
    answer = client.get("/api/v1/datasets", params=asked)
    assert answer.status_code == 200, answer.text
    return {each["name"] for each in answer.json()}


def test_each_kind_has_a_list_of_its_own_and_filters_fit_both(world: World) -> None:
    owner, firm = world.owner.http, Stock.of(world.alliance, FIRM).http
    assert _listed(owner) == _listed(owner, kept="site") == {STAYS}
    assert _listed(owner, kept="hub") == {SHARED, HIDDEN}
    assert _listed(firm, kept="hub") == {SHARED}  # a private one is unknown to others
    for asked, found in (
        ({"search": "SHARED"}, {SHARED}),
        ({"license": "cc0"}, {SHARED}),
        ({"license": "by"}, set()),
        ({"owner": LAB}, set()),
        ({"search": "%"}, set()),
    ):
        assert _listed(firm, kept="hub", **asked) == found, asked
    assert _listed(firm, license="cc-by") == _listed(firm, owner=LAB) == {STAYS}
    assert _listed(firm, search="none") == set()
    assert firm.get("/api/v1/datasets?kept=elsewhere").status_code == 422


def test_shared_data_sets_are_listed_page_by_page(world: World) -> None:
    hub = world.alliance.hub
    object.__setattr__(hub, "settings", hub.settings.model_copy(update={"page_size": 1}))
    try:
        with world.alliance.as_(OWNER) as owner:
            assert [each.name for each in owner.datasets("hub")] == [HIDDEN, SHARED]
    finally:
        object.__setattr__(hub, "settings", hub.settings.model_copy(update={"page_size": 100}))


def test_one_data_set_says_where_its_rows_lie_and_a_private_one_is_not_told(world: World) -> None:
    with world.alliance.as_(FIRM) as firm:
        stays, shared = firm.dataset(world.stays.asset_id), firm.dataset(world.shared)
        assert (stays.kept, stays.visibility, stays.license) == ("site", None, "CC-BY-4.0")
        assert (shared.kept, shared.visibility, shared.license) == ("hub", "gated", "CC0-1.0")
        with pytest.raises(FedhubError, match="E_NOT_FOUND"):
            firm.dataset(world.hidden)


def test_shared_files_are_pulled_under_a_grant_and_on_site_ones_never(world: World) -> None:
    with world.alliance.as_(FIRM) as firm, world.alliance.as_(OWNER) as owner:
        for asset_id, code in ((world.shared, "E_GRANT"), (world.hidden, "E_NOT_FOUND")):
            with pytest.raises(FedhubError, match=code):
                firm.pull(asset_id)
        for member in (firm, owner):
            with pytest.raises(FedhubError, match="E_NOT_FOUND"):
                member.pull(world.stays.asset_id)
        grant = world.alliance.grant_pull(world.shared)
        pull = firm.pull(world.shared)
        assert (pull.grant, pull.name, [file.name for file in pull.files]) == (grant, SHARED, list(ROWS))
        answer = world.owner.follow(pull.files[0].url)
        assert answer.content == ROWS["train.csv"]
        world.alliance.say(
            OWNER, "revocation", [("statement", grant)], {"target": "statement", "reason": "withdrawn"}
        )
        assert world.owner.follow(pull.files[0].url).status_code == 403  # decided anew on each request


def test_commands_tell_both_kinds_apart(world: World) -> None:
    listed = world.fedhub(OWNER, "data", "list").answer["datasets"]
    assert {each["name"]: each["kept"] for each in listed} == {STAYS: "site", SHARED: "hub", HIDDEN: "hub"}
    for words, found in (
        (("--kept", "site"), {STAYS}),
        (("--kept", "hub"), {SHARED, HIDDEN}),
        (("hidden",), {HIDDEN}),
    ):
        answer = world.fedhub(OWNER, "data", "list", *words).answer["datasets"]
        assert {each["name"] for each in answer} == found
    assert world.fedhub(FIRM, "data", "show", SHARED).answer["kept"] == "hub"
    assert world.fedhub(FIRM, "data", "show", STAYS).answer["kept"] == "site"
    assert world.fedhub(FIRM, "data", "show", HIDDEN).problem["code"] == "E_NOT_FOUND"
    assert world.fedhub(FIRM, "data", "pull", STAYS, "./x").problem["code"] in ("E_NOT_FOUND", "E_REPOSITORY")


def test_pages_show_both_kinds_and_only_shared_ones_how_to_pull(world: World) -> None:
    firm, owner = world.browser(FIRM), world.browser(OWNER)
    text = firm.get("/datasets").text
    site, _, hub = text.partition('<section id="hub">')
    assert STAYS in site and SHARED not in site and SHARED in hub and HIDDEN not in text
    only = firm.get("/datasets?kept=hub&search=rows&license=cc0").text
    assert re.findall(r"<h3><a [^>]+>([^<]+)<", only) == [SHARED]
    assert "None fits." in firm.get("/datasets?kept=site&owner=firm.example").text
    named = firm.get(f"/datasets/{SHARED}")
    assert (named.status_code, named.headers["location"]) == (303, f"/datasets/{world.shared}")
    shared = firm.get(f"/datasets/{world.shared}").text
    for shown in (
        f"fedhub data pull {SHARED}@1",
        f"load_dataset(&#34;{SHARED}&#34;",
        "train.csv",
        "gated",
    ):
        assert shown in shared, shown
    assert shared.count("text/csv") == shared.split("The whole Croissant file")[1].count("text/csv") + 1
    assert "stays on-site" not in shared and "files in this hub" in shared
    stays = firm.get(f"/datasets/{world.stays.asset_id}").text
    assert "stays on-site" in stays and "How to pull" not in stays and "train.csv" not in stays
    for path in (f"/datasets/{HIDDEN}", f"/datasets/{world.hidden}"):
        assert firm.get(path).status_code == 404
        assert owner.get(path, follow_redirects=True).status_code == 200
    assert SHARED in firm.get(f"/institutions/{OWNER}").text
    assert HIDDEN not in firm.get(f"/institutions/{OWNER}").text


# --- licences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["other", "Apache 2", "GPL-99.0", "MIT OR"])
def test_licence_that_spdx_does_not_know_is_refused_by_every_way_in(world: World, text: str) -> None:
    alliance, folder = world.alliance, world.folder()
    for words in (
        ("model", "push", str(folder), f"{OWNER}/odd", "--license", text),
        ("data", "describe", str(folder), f"{OWNER}/odd-rows", "--license", text),
        ("data", "share", f"{SHARED}@main", "--files", str(folder), "--description", "d", "--license", text),
    ):
        problem = world.fedhub(OWNER, *words).problem
        assert problem["code"] == "E_LICENSE" and "Apache-2.0" in problem["hint"], words
    for refused in (_post_version, _post_share, _post_description):
        with pytest.raises(Refused) as caught:
            refused(alliance, text)
        assert caught.value.code == "E_LICENSE" and repr(text) in caught.value.message, refused
    assert world.owner.http.get(f"/api/v1/models/{OWNER}/odd").status_code == 404


def _post_version(alliance: AllianceInProcess, text: str) -> None:
    """A client that leaves out its own check of the licence: the hub refuses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("federation.publishing.check_license", lambda given: given)
        alliance.push({"config.json": secrets.token_bytes(8)}, f"{OWNER}/odd", license_id=text)


def _post_share(alliance: AllianceInProcess, text: str) -> None:
    owner = Stock.of(alliance, OWNER)
    name, data = f"{OWNER}/odd-{secrets.token_hex(4)}", {"a.csv": b"a\n1\n"}
    owner.create(name, "dataset")
    owner.commit(name, data, kind="dataset")
    folder = alliance.folder / secrets.token_hex(4)
    folder.mkdir()
    (folder / "a.csv").write_bytes(data["a.csv"])
    home = alliance.homes[OWNER]
    with alliance.as_(OWNER) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr("federation.signing_drafts.check_license", lambda given: given)
        patch.setattr("federation.signing_drafts.make_croissant", lambda *_, **__: b"{}")
        share_draft(home, client, name, "main", files=folder, description="d", license_id=text)


def _post_description(alliance: AllianceInProcess, text: str) -> None:
    croissant = json.dumps({"name": "odd"}).encode()
    subjects = [("manifest.json", secrets.token_hex(32)), ("croissant.json", sha256_hex(croissant))]
    members = {"type": "dataset", "name": f"{LAB}/odd", "version": 1, "license": text}
    bundle = alliance.homes[LAB].sign("asset", subjects, members)
    with alliance.as_(LAB) as client:
        client.post_statement(bundle, {"croissant.json": croissant})


def test_models_are_found_by_part_of_their_licence(world: World) -> None:
    alliance, firm, browser = world.alliance, Stock.of(world.alliance, FIRM).http, world.browser(FIRM)
    for name, license_id in (("one", "apache-2.0"), ("two", "MIT OR Apache-2.0"), ("three", None)):
        alliance.push({"config.json": name.encode()}, f"{OWNER}/{name}", license_id=license_id)
    for text, found in (("apache", {"one", "two"}), ("MIT", {"two"}), ("gpl", set()), ("%", set())):
        answer = firm.get("/api/v1/models", params={"license": text}).json()
        assert {each["name"].partition("/")[2] for each in answer} == found, text
        page = browser.get("/models", params={"license": text}).text
        assert set(re.findall(rf'<h3><a href="/models/{OWNER}/([^"]+)"', page)) == found, text
