"""The web pages, served in process: what each shows, to whom, and what cannot be smuggled into them."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from federation import wire
from hub.web import words
from hub.web.cards import render_card
from hub.web.croissants import read_view
from hub.web.rendering import CONTENT_POLICY, STATIC
from storage.statements import KINDS
from tests.alliances import (
    BASE,
    FIRM,
    LABS,
    MODEL,
    OWNER,
    AllianceInProcess,
    Journey,
    Setting,
    digest,
    open_alliance,
)

CARD = b"""---
license: apache-2.0
---
# Digits

Reads *digits* <script>alert("card")</script> <img src=x onerror=alert(1)>

[a page](https://example.org/a) [bad](javascript:alert(1)) [file](config.json)
![tracker](https://elsewhere.example/pixel.png)

| a | b |
|--:|---|
| 1 | 2 |
"""
SECRET = f"{OWNER}/secret"
EVIL = "<script>alert('metric')</script>"
CHANGING = f"{OWNER}/changing"


def tensors(**shapes: list[int]) -> bytes:
    """A safetensors file of zeros."""
    header, at = dict[str, object](), 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(at)


BEFORE = {"m.safetensors": tensors(kept=[2], wide=[2, 2], gone=[1]), "old&amp.txt": b"o", "same.txt": b"s"}
AFTER = {"m.safetensors": tensors(kept=[2], wide=[4, 2], fresh=[3]), "new.txt": b"new", "same.txt": b"s"}


class World:
    """An alliance in which a bit of everything has happened."""

    def __init__(self, alliance: AllianceInProcess) -> None:
        self.alliance = alliance
        self.setting = Setting(alliance)
        self.carded = alliance.push(
            {"model.safetensors": BASE, "README.md": CARD, "config.json": b"{}"},
            f"{OWNER}/carded",
            license_id="Apache-2.0",
            tags=["first"],
        )
        alliance.push({"model.safetensors": BASE, "README.md": b"# Secret plans"}, SECRET)
        with alliance.as_(OWNER) as owner:
            owner.set_visibility(SECRET, "private")
        self.grant = alliance.grant_pull(self.carded.asset_id)
        for contents, license_id in ((BEFORE, None), (AFTER, "MIT")):
            alliance.push(contents, CHANGING, license_id=license_id)
        self.journey = self._ran()
        alliance.hub.ledger.publish()

    def _ran(self) -> Journey:
        journey = self.setting.running(rounds=3)
        journey.orders(1, digest(BASE))
        sites = {lab: {"accuracy": 0.5, EVIL: 1, "examples": 10} for lab in LABS}
        journey.report(journey.reports(1, digest(BASE), sites=sites, metrics={"accuracy": 0.5, "loss": 2.0}))
        with self.alliance.coordinator() as coordinator:
            told = {
                "institution": LABS[0],
                "round": 2,
                "code": "E_NOT_FINITE",
                "message": "an update with NaN",
            }
            report = wire.EventReport(attempt=1, kind="site.left-out", data=told)
            coordinator.report_events(journey.id, report)
        return journey

    @contextmanager
    def browser(self, name: str | None = None) -> Iterator[httpx.Client]:
        """A browser without scripts: signed in as this member, or nobody."""
        with self.alliance.http() as client:
            self._sign_in(client, name)
            yield client

    def _sign_in(self, client: httpx.Client, name: str | None) -> None:
        client.headers["accept"] = "text/html"
        if name is not None:
            home = self.alliance.homes.get(name, self.alliance.operator)
            with self.alliance.client(home) as member:
                token = member.create_token("browser", ["read"], valid_days=1).token
            answer = client.post("/sign-in", data={"token": token, "to": "/models"})
            assert (answer.status_code, answer.headers["location"]) == (303, "/models")

    @property
    def pages(self) -> list[str]:
        """Every page for members."""
        return [
            "/",
            "/models",
            "/models?search=card&owner=owner.example&visibility=gated&license=apache",
            f"/models/{OWNER}/carded",
            f"/models/{MODEL}?version=1",
            f"/models/{CHANGING}/compare",
            f"/models/{CHANGING}/compare?old=2&new=1",
            "/datasets",
            f"/datasets/{self.setting.datasets[LABS[0]]}",
            "/runs",
            f"/runs/{self.journey.id}",
            f"/runs/{self.journey.id}/part",
            "/releases",
            "/grants",
            "/grants?show=given",
            "/institutions",
            f"/institutions/{LABS[0]}",
            "/log",
            f"/statements/{self.journey.id}",
            "/sign-in",
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_alliance(tmp_path_factory.mktemp("pages"), superlink="external") as alliance:
        yield World(alliance)


# --- who sees what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_page_is_whole_for_its_owner_with_policy_and_without_inline_script(
    world: World, language: str
) -> None:
    with world.browser(OWNER) as browser:
        for path in world.pages:
            answer = browser.get(path, headers={"accept-language": language})
            assert answer.status_code == 200, path
            assert answer.headers["content-security-policy"] == CONTENT_POLICY
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(
                r"<script(?![^>]* src=\"/static/)|<style| style=| on[a-z]+=\"", answer.text
            ), path
            assert "<script>alert" not in answer.text and "elsewhere.example" not in answer.text, path
            if not path.endswith("/part"):
                assert f'<html lang="{"zh-Hans" if language == "zh" else "en"}">' in answer.text
                assert answer.text.count("<h1") == 1 and 'href="#main"' in answer.text, path


def test_nobody_known_is_sent_to_sign_in_and_comes_back(world: World) -> None:
    with world.browser() as browser:
        for path in ("/models", f"/models/{OWNER}/carded", "/datasets", "/runs", "/releases", "/grants"):
            answer = browser.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, f"/sign-in?to={path}")
        overview = browser.get("/")
        assert overview.status_code == 200 and MODEL not in overview.text and "Root hash" in overview.text


def test_private_models_and_grants_of_others_are_not_shown(world: World) -> None:
    with world.browser(OWNER) as owner, world.browser(LABS[0]) as lab, world.browser(FIRM) as firm:
        assert SECRET in owner.get("/models").text and "Secret plans" in owner.get(f"/models/{SECRET}").text
        for other in (lab, firm):
            assert "secret" not in other.get("/models").text + other.get("/").text
            assert "secret" not in other.get(f"/institutions/{OWNER}").text
            gone = other.get(f"/models/{SECRET}")
            assert gone.status_code == 404 and "Secret plans" not in gone.text
        assert world.grant[:12] in firm.get("/grants").text and world.grant[:12] in owner.get("/grants").text
        assert world.grant[:12] not in lab.get("/grants").text
        assert world.grant[:12] not in lab.get(f"/models/{OWNER}/carded").text
        assert firm.get(f"/runs/{world.journey.id}").status_code == 404
        assert firm.get(f"/runs/{world.journey.id}/live").status_code == 404
        assert (
            "Digits" in lab.get(f"/models/{OWNER}/carded").text
        )  # the card of a gated model is for all members


def test_open_pages_show_what_an_auditor_sees(world: World) -> None:
    hub = world.alliance.hub
    object.__setattr__(hub, "settings", hub.settings.model_copy(update={"open_pages": True}))
    try:
        with world.browser() as browser:
            for path in world.pages:
                assert browser.get(path).status_code == 200, path
            assert "Sign in" in browser.get("/").text
    finally:
        object.__setattr__(hub, "settings", hub.settings.model_copy(update={"open_pages": False}))


def test_a_statement_shows_its_place_to_all_and_its_words_to_its_parties(world: World) -> None:
    with world.browser() as nobody, world.browser(LABS[0]) as lab, world.browser(FIRM) as firm:
        found = nobody.get("/log", params={"id": world.grant.upper()})
        assert found.headers["location"] == f"/statements/{world.grant}"
        for other in (nobody, lab):
            text = other.get(f"/statements/{world.grant}").text
            assert 'data-index="' in text and "grantee" not in text
        assert "grantee" in firm.get(f"/statements/{world.grant}").text
        missing = nobody.get("/log", params={"id": "ab" * 32})
        assert missing.status_code == 404 and "No statement with this id" in missing.text


# --- signing in ---------------------------------------------------------------------------------------------


def test_the_token_lies_in_a_strict_cookie_that_scripts_cannot_read(world: World) -> None:
    with world.alliance.as_(OWNER) as owner:
        token = owner.create_token("cookie", ["read"], valid_days=1).token
    with world.alliance.http() as browser:
        answer = browser.post("/sign-in", data={"token": token, "to": "https://elsewhere.example/"})
        cookie = answer.headers["set-cookie"]
        assert answer.headers["location"] == "/"
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
        assert "Sign out" in browser.get("/").text
        browser.post("/sign-out")
        assert "Sign out" not in browser.get("/").text


@pytest.mark.parametrize("token", ["", "fhp_" + "x" * 40, "<script>", "é"])
def test_a_wrong_token_is_told_and_not_kept(world: World, token: str) -> None:
    with world.alliance.http() as browser:
        answer = browser.post("/sign-in", data={"token": token, "to": "/"})
        assert answer.status_code == 401 and "set-cookie" not in answer.headers
        assert 'role="alert"' in answer.text and "<script>" not in answer.text.split("</head>")[1]


def test_forms_of_other_sites_are_refused(world: World) -> None:
    with world.browser(OWNER) as browser:
        for path in ("/sign-out", "/sign-in"):
            answer = browser.post(path, headers={"sec-fetch-site": "cross-site"})
            assert answer.status_code == 403 and "set-cookie" not in answer.headers


# --- errors -------------------------------------------------------------------------------------------------


def test_errors_are_pages_for_people_and_problems_for_programs(world: World) -> None:
    with world.browser(OWNER) as browser:
        for path, status in (
            (f"/models/{OWNER}/nothing", 404),
            (f"/models/{MODEL}?version=99", 404),
            (f"/models/{MODEL}?version=one", 422),
            (f"/models/{CHANGING}/compare?old=1&new=9", 404),
            (f"/models/{CHANGING}/compare?old=-1", 422),
            ("/runs/" + "0" * 64, 404),
            ("/institutions/nobody.example", 404),
            ("/static/none.js", 404),
            ("/nothing/here/at/all", 404),
            ("/datasets/%3Cscript%3Ealert(1)%3C%2Fscript%3E", 404),
        ):
            answer = browser.get(path)
            assert answer.status_code == status, path
            assert answer.headers["content-type"].startswith("text/html"), path
            assert 'role="alert"' in answer.text and "<script>" not in answer.text, path
        for path in (
            f"/api/v1/models/{OWNER}/nothing",
            "/api/v1/nothing",
            "/log/tile/0/999",
            "/keyrings/none",
        ):
            answer = browser.get(path)
            assert answer.headers["content-type"] == "application/problem+json", path
        assert browser.delete("/models").headers["allow"]


# --- what pages say -----------------------------------------------------------------------------------------


def test_a_models_page_has_card_clients_files_signatures_and_grants(world: World) -> None:
    with world.browser(OWNER) as browser:
        text = browser.get(f"/models/{OWNER}/carded").text
    assert "<h3>Digits</h3>" in text and "license: apache-2.0" not in text
    for shown in (
        f"fedhub model pull {OWNER}/carded@1",
        f"hf download {OWNER}/carded --revision v1",
        f"mlflow artifacts download -u models:/{OWNER}.carded/1",
        f"{OWNER}/carded:v1 --output ./carded",
        "snapshot_download(",
        "/api/v1/pulls",
        world.carded.asset_id,
        world.carded.statement[:12],
        "OMS model signature",
        FIRM,
        "config.json",
        "Apache-2.0",
    ):
        assert shown in text, shown


def _rows(text: str, section: str) -> set[tuple[str, ...]]:
    """The cells of a section's table, without their tags."""
    body = text.partition(f'<section id="{section}">')[2].partition("</section>")[0].partition("</thead>")[2]
    cells = (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in body.split("</tr>"))
    return {tuple(re.sub(r"<[^>]+>", "", cell).strip() for cell in row) for row in cells if row}


def test_two_versions_are_chosen_on_the_models_page_and_compared_without_javascript(world: World) -> None:
    with world.browser(OWNER) as browser:
        form = browser.get(f"/models/{CHANGING}").text.split(f'action="/models/{CHANGING}/compare"')[1]
        assert re.findall(r'value="(\d)" selected', form) == ["1", "2"]
        text = browser.get(f"/models/{CHANGING}/compare?old=1&new=2").text
        assert _rows(text, "files") == {
            ("m.safetensors", "changed", *[f"{len(each['m.safetensors'])} B" for each in (BEFORE, AFTER)]),
            ("new.txt", "added", "", "3 B"),
            ("old&amp;amp.txt", "removed", "1 B", ""),
        }
        assert _rows(text, "tensors") == {
            ("fresh", "added", "", "F32 [3]"),
            ("gone", "removed", "F32 [1]", ""),
            ("wide", "changed", "F32 [2, 2]", "F32 [4, 2]"),
        }
        assert ("Licence", "not stated", "MIT changed") in _rows(text, "about")
        assert "1 added, 1 removed, 1 changed, 1 the same" in text
        same = browser.get(f"/models/{CHANGING}/compare?old=2&new=2").text
        assert "byte for byte" in same and "changed</span>" not in same


def test_tensors_are_compared_for_who_may_pull_both_versions(world: World) -> None:
    with world.browser(FIRM) as firm:
        text = firm.get(f"/models/{CHANGING}/compare").text
        assert "new.txt" in text and "fresh" not in text and "may pull both versions" in text
        assert firm.get(f"/models/{SECRET}/compare").status_code == 404


def test_headers_too_long_for_a_page_are_named_and_not_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.services.differences.READ_BYTES", 16)
    with world.browser(OWNER) as browser:
        text = browser.get(f"/models/{CHANGING}/compare").text
    assert "Not read here" in text and "1: m.safetensors; 2: m.safetensors" in text and "fresh" not in text


def test_a_runs_page_has_every_figure_without_javascript(world: World) -> None:
    with world.browser(OWNER) as browser:
        text = browser.get(f"/runs/{world.journey.id}").text
    (round_,) = world.journey.run().rounds
    for shown in (
        "1 / 3",
        "accuracy 0.5",
        "loss 2",
        round_.statement[:12],
        *[one[:12] for one in round_.receipts],
    ):
        assert shown in text, shown
    assert text.count('<svg class="curve"') == 2 and "Lower the learning rate" in text
    assert "E_NOT_FINITE" in text and "an update with NaN" in text and "data-until" not in text
    assert "&lt;script&gt;alert(" in text


def test_the_live_stream_tells_of_each_event_and_ends_with_the_run(world: World) -> None:
    journey = world.setting.running(rounds=1)
    journey.orders(1, digest(BASE))
    journey.report(journey.reports(1, digest(BASE)))
    journey.end("finished")
    with world.browser(OWNER) as browser:
        text = browser.get(f"/runs/{journey.id}/live", headers={"last-event-id": "0"}).text
        assert "data: run.ended" in text and text.rstrip().endswith("data: over")
        last = re.findall(r"id: (\d+)", text)[-1]
        again = browser.get(f"/runs/{journey.id}/live", params={"after": last}).text
    assert "run.ended" not in again and "event: over" in again


def test_a_plan_without_a_run_is_shown_as_its_statement(world: World) -> None:
    plan = world.setting.plan(rounds=2).id
    with world.browser(OWNER) as browser:
        assert browser.get(f"/runs/{plan}").headers["location"] == f"/statements/{plan}"
        assert plan[:12] in browser.get("/runs").text


def test_filters_leave_out_what_does_not_fit(world: World) -> None:
    with world.browser(OWNER) as browser:
        for query, shown in (
            ("search=CARD", {f"{OWNER}/carded"}),
            ("visibility=private", {SECRET}),
            ("license=apache", {f"{OWNER}/carded"}),
            ("owner=lab-a.example", set()),
            ("released=1", set()),
            ("search=%25", set()),
        ):
            text = browser.get(f"/models?{query}").text
            assert set(re.findall(r'<h3><a href="/models/([^"]+)"', text)) == shown, query


# --- cards and descriptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("markdown", "forbidden"),
    [
        ("<script>alert(1)</script>", "<script"),
        ("[x](javascript:alert(1))", "href"),
        ("[x](JaVaScRiPt:alert(1))", "href"),
        ("[x](data:text/html,<script>)", "href"),
        ("[x](//elsewhere.example)", "href"),
        ("[x](/sign-out)", "href"),
        ('<https://example.org/" onmouseover=alert(1)>', 'onmouseover="'),
        ("![x](https://elsewhere.example/p.png)", "elsewhere"),
        ("[![x](https://elsewhere.example/p.png)](https://example.org)", "elsewhere"),
        ("![x][r]\n\n[r]: https://elsewhere.example/p.png", "elsewhere"),
        ("<img src=x onerror=alert(1)>", "<img"),
        ("<!-- --><svg onload=alert(1)>", "<svg"),
        ("# one", "<h1"),
        ("| a |\n|:-:|\n| 1 |", "style"),
        ('```"><script>\nx\n```', "<script"),
    ],
)
def test_a_card_cannot_hurt_its_reader(markdown: str, forbidden: str) -> None:
    assert forbidden not in render_card(markdown).lower()


def test_links_of_a_card_say_that_they_lead_away() -> None:
    assert 'rel="noopener noreferrer nofollow ugc"' in render_card("[a](https://example.org)")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"recordSet": 5, "usageInfo": [1]}', "[" * 5000])
def test_a_malformed_description_shows_nothing_and_breaks_nothing(text: str) -> None:
    assert read_view(text).tables == []


# --- files and words ----------------------------------------------------------------------------------------


def test_static_files_are_served_by_their_kind_and_kept_for_good(world: World) -> None:
    with world.browser() as browser:
        for name, kind in STATIC.items():
            answer = browser.get(f"/static/{name}")
            assert answer.headers["content-type"] == kind and "immutable" in answer.headers["cache-control"]
        assert browser.get("/static/..%2fpages.py").status_code == 404


def test_the_catalogue_has_every_text_of_the_templates() -> None:
    folder = Path(str(files("hub.web"))) / "templates"
    texts = {
        found for page in folder.glob("*.html") for found in re.findall(r'\bt\("([^"]+)"', page.read_text())
    }
    texts |= {kind.text for kind in KINDS.values()}
    known = words.catalogue("zh-Hans")
    assert sorted(texts - set(known)) == []
    for english, chinese in known.items():
        assert re.findall(r"\{\w+\}", english) == sorted(re.findall(r"\{\w+\}", chinese), key=english.index)


@pytest.mark.parametrize(
    ("asked", "kept", "accepted", "chosen"),
    [
        (None, None, "", "en"),
        (None, None, "zh-TW, en;q=0.5", "zh-Hans"),
        (None, None, "de, zh;q=0.2, en;q=0.9", "en"),
        (None, "zh-Hans", "en", "zh-Hans"),
        ("en", "zh-Hans", "zh", "en"),
        ("xx", None, "zh;q=nan;;,,", "en"),
    ],
)
def test_the_language_is_asked_for_kept_or_accepted(
    asked: str | None, kept: str | None, accepted: str, chosen: str
) -> None:
    assert words.choose_language(asked, kept, accepted) == chosen


def test_a_language_asked_for_is_kept(world: World) -> None:
    with world.browser() as browser:
        assert "透明日志" in browser.get("/log?lang=zh-Hans").text
        assert "透明日志" in browser.get("/log").text
