"""The pages in a real browser: a run's page moves while the run goes on, proofs are checked, nothing goes elsewhere.

``FEDHUB_TEST_SCREENSHOTS`` names a folder for pictures of every page, light, dark and on a phone.
"""

import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import BrowserContext, Page, Route, expect, sync_playwright

from federation import wire
from federation.signing_drafts import share_draft
from storage.encoding import b64
from tests.alliances import (
    BASE,
    LABS,
    OWNER,
    AllianceInProcess,
    Journey,
    Setting,
    digest,
    open_alliance,
    weights,
)
from tests.integration.test_hub_services_figures import told
from tests.integration.test_hub_services_releases import approve, finish, provenance, release
from tests.stock_http import Stock

pytestmark = [pytest.mark.slow]
expect.set_options(timeout=60_000)  # as long as a busy machine may take; nothing waits for its end

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CARD = """# Digits

Reads handwritten digits.

| split | rows |
|---|--:|
| train | 1,321 |

- trained over *three* labs, see [the paper](https://example.org/paper)
- <script>document.title = "taken over"</script>

```python
load("model.safetensors")
```
"""
SIZES = {
    "light": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 320, "height": 640}, "color_scheme": "light"},
    "phone-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
MODEL = f"{OWNER}/shown"
# What sticks out of the window, and what is wider than the box it can be scrolled in; text set by hand in lines may.
STICKS_OUT = """() => [...document.querySelectorAll("body *")]
  .filter((each) => !each.closest(".command pre, .prose pre, .prose table, .skip, .visually-hidden"))
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 1
    || (each.scrollWidth > each.clientWidth && /auto|scroll/.test(getComputedStyle(each).overflowX)))
  .map((each) => `${each.tagName}.${each.className} ${each.getAttribute("aria-label") || ""}`)"""
OPEN_ALL = "() => document.querySelectorAll('details').forEach((each) => { each.open = true; })"
# Cells that would stand on a phone without their names.
NAMELESS = "() => document.querySelectorAll('.stacked:not(.events) td:not([data-label])').length"


class Served:
    """An alliance in this process whose pages are served on a port of this machine."""

    def __init__(self, alliance: AllianceInProcess, url: str) -> None:
        self.alliance = alliance
        self.url = url
        self.setting = Setting(alliance)
        self.version = alliance.push(
            {"model.safetensors": BASE, "README.md": CARD.encode()}, MODEL, license_id="MIT", tags=["one"]
        )
        self.grant = alliance.grant_pull(self.version.asset_id)
        alliance.push(
            {
                "model.safetensors": weights(1, 2, 3),
                "notes/what-is-new.md": b"three",
                "README.md": CARD.encode(),
            },
            MODEL,
            license_id="Apache-2.0",
        )
        with alliance.as_(OWNER) as owner:
            owner.set_visibility(MODEL, "public")
        self.shared = self._share(f"{OWNER}/shared-rows")
        self.released = self._release(f"{OWNER}/released")

    def _release(self, name: str) -> str:
        """A version that a run made, with the evaluation and the approval of a lab; its name."""
        journey, data = finish(self.setting)
        version = self.alliance.push(
            {"model.safetensors": data},
            name,
            plan=journey.id,
            provenance=lambda made: provenance(self.setting, journey, made),
        )
        lab = LABS[0]
        named = {
            "config": digest(b"evaluation"),
            "dataset": self.setting.datasets[lab],
            "consent": journey.consents[lab],
        }
        result = {
            "result": "PASSED",
            "configuration": [{"name": each, "digest": {"sha256": named[each]}} for each in named],
            "passedTests": ["accuracy>=0.90 (0.913) n=120"],
        }
        self.alliance.say(lab, "test-result", [("manifest.json", version.asset_id)], result)
        approve(self.alliance, lab, version)
        release(self.alliance, version)
        return name

    def _share(self, name: str) -> str:
        """A data set whose files lie in the hub; its asset id."""
        stock, folder = Stock.of(self.alliance, OWNER), self.alliance.folder / "shared"
        stock.create(name, "dataset")
        stock.commit(name, {"train.csv": b"age,label\n61,1\n"}, kind="dataset")
        folder.mkdir()
        (folder / "train.csv").write_bytes(b"age,label\n61,1\n")
        with self.alliance.as_(OWNER) as owner:
            made = share_draft(
                self.alliance.homes[OWNER],
                owner,
                name,
                "main",
                files=folder,
                description="Rows shared on purpose, with a description of some length for small windows.",
                license_id="CC-BY-4.0",
            )
        return str(made.asset_id)


@contextmanager
def _serving(alliance: AllianceInProcess) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(alliance.app, ws="none", log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    folder = tmp_path_factory.mktemp("chromium")
    with (
        open_alliance(folder, superlink="external", open_pages=True) as alliance,
        _serving(alliance) as url,
    ):
        yield Served(alliance, url)


class Watched:
    """A browser of its own whose every request and complaint is noted."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        context.on("request", lambda request: self._note(request.url))
        context.on("console", lambda said: self._complain(said.type, said.text))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))

    def _note(self, address: str) -> None:
        if not address.startswith(self.url):
            self.elsewhere.append(address)

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def open(self, path: str) -> Page:
        page = self.context.pages[0]
        page.goto(self.url + path)
        return page


@contextmanager
def browsing(served: Served, folder: Path, **options: object) -> Iterator[Watched]:
    """Chromium with a fresh profile; at its end nothing was complained of and nobody else was asked."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "profile", executable_path=CHROMIUM, headless=True, args=FLAGS, **options
        )
        watched = Watched(context, served.url)
        try:
            yield watched
        finally:
            context.close()
    assert watched.complaints == [] and watched.elsewhere == []


def _reply(served: Served, journey: Journey, number: int, lab: str, accuracy: float) -> None:
    data = {"institution": lab, "round": number, "accuracy": accuracy, "examples": 10, "seconds": 0.4}
    with served.alliance.coordinator() as coordinator:
        coordinator.report_events(journey.id, wire.EventReport(attempt=1, kind="site.replied", data=data))


def _close(journey: Journey, number: int, source: str) -> str:
    share = 0.4 + 0.15 * number
    sites = {
        lab: {"accuracy": share + 0.05 * place, "loss": 2.2 / number + 0.2 * place, "examples": 10}
        for place, lab in enumerate(LABS)
    }
    metrics = {"accuracy": share + 0.05, "loss": 2.2 / number + 0.2}
    told = journey.reports(number, source, sites=sites, metrics=metrics)
    journey.report(told)
    return told.aggregate


def test_a_runs_page_moves_with_the_run_and_is_not_loaded_again(served: Served, tmp_path: Path) -> None:
    journey = served.setting.running(rounds=3)
    journey.orders(1, digest(BASE))
    with browsing(served, tmp_path) as browser:
        page = browser.open(f"/runs/{journey.id}")
        page.evaluate("window.stillHere = true")
        expect(page.locator("#connection")).to_have_text("live")
        expect(page.locator("[data-until]")).to_have_text(re.compile(r"^\+?\d+:\d\d$"))
        expect(page.locator(".flight .pill.at-work")).to_have_count(3)
        _reply(served, journey, 1, LABS[0], 0.55)
        expect(page.locator(".flight .pill.replied")).to_have_count(1)
        expect(page.locator("svg.curve circle")).to_have_count(1)
        weights = _close(journey, 1, digest(BASE))
        expect(page.locator(".tiles")).to_contain_text("1 / 3")
        expect(page.locator("svg.curve")).to_have_count(2)
        page.locator("#round-1 > summary").click()
        page.locator("#round-1 > summary").focus()
        journey.orders(2, weights)
        weights = _close(journey, 2, weights)
        expect(page.locator(".tiles")).to_contain_text("2 / 3")
        expect(page.locator("#round-1")).to_have_attribute("open", "")  # what was opened stays open
        assert page.evaluate("document.activeElement.closest('details').id") == "round-1"
        expect(page.locator("#spoken")).to_have_text("round 2, running")
        _picture(page, "run-live-light")
        journey.orders(3, weights)
        _close(journey, 3, weights)
        journey.end("stopped", "E_DISK_FULL: the disk is full")
        expect(page.locator("#reason")).to_contain_text("the disk is full")
        expect(page.locator("#reason")).to_contain_text("Next step")
        expect(page.locator("#connection")).to_be_hidden()
        assert page.evaluate("window.stillHere")


def test_a_runs_page_is_whole_without_javascript(served: Served, tmp_path: Path) -> None:
    journey = served.setting.running(rounds=2)
    journey.orders(1, digest(BASE))
    _close(journey, 1, digest(BASE))
    with browsing(served, tmp_path, java_script_enabled=False) as browser:
        page = browser.open(f"/runs/{journey.id}")
        expect(page.locator(".tiles")).to_contain_text("1 / 2")
        expect(page.get_by_role("region", name="Rounds").locator("tbody tr")).to_have_count(1)
        expect(page.locator("button[data-copy]").first).to_be_hidden()


def test_two_versions_are_compared_from_the_models_page_without_javascript(
    served: Served, tmp_path: Path
) -> None:
    with browsing(served, tmp_path, java_script_enabled=False) as browser:
        page = browser.open(f"/models/{MODEL}")
        page.locator("select[name=old]").select_option("2")
        page.locator("select[name=new]").select_option("1")
        page.get_by_role("button", name="Compare").click()
        page.wait_for_url("**/compare?old=2&new=1")
        expect(page.locator("#files")).to_contain_text("notes/what-is-new.md")
        expect(page.locator("#tensors tbody tr")).to_have_text(
            re.compile(r"w\s*changed\s*F32 \[3\]\s*F32 \[2\]")
        )
        expect(page.locator("#about tr.differs").first).to_contain_text("Apache-2.0")


def test_a_proof_is_checked_in_the_browser_and_a_false_one_is_not_believed(
    served: Served, tmp_path: Path
) -> None:
    served.alliance.hub.ledger.publish()
    with browsing(served, tmp_path) as browser:
        page = browser.open("/log")
        page.get_by_label("Statement id (64 hex digits)").fill(served.grant)
        page.get_by_role("button", name="Look up").click()
        expect(page.locator(".verdict")).to_have_text(
            "Checked in your browser: this statement is in the log."
        )
        expect(page.locator(".steps .good")).to_have_count(3)
        for pattern, place, why in (
            ("**/log/checkpoint", "root", "signature does not hold"),
            ("**/log/tile/0/**", "hash", "lead to another root"),
            ("**/log/tile/entries/**", "entry", "another statement's"),
        ):
            page.route(pattern, _bender(place, served.grant))
            page.reload()
            expect(page.locator(".verdict.bad")).to_contain_text("The proof does not hold.")
            expect(page.locator(".verdict.bad")).to_contain_text(why)
            page.unroute(pattern)


def _bender(place: str, statement: str) -> Callable[[Route], None]:
    """A hub that changes one byte of the log on its way to the browser."""

    def bend(route: Route) -> None:
        answer = route.fetch()
        body = bytearray(answer.body())
        if place == "root":
            _other_digit(body, body.index(b"\n", body.index(b"\n") + 1) + 3)
        elif place == "hash":
            body[3] ^= 1
        else:
            digest_of = b64(bytes.fromhex(statement)).encode()
            _other_digit(body, body.index(digest_of))
        route.fulfill(response=answer, body=bytes(body))

    return bend


def _other_digit(body: bytearray, at: int) -> None:
    """Put another digit of base64 there: what cannot be decoded would be told as that."""
    body[at] = ord("B") if body[at] == ord("A") else ord("A")


def test_a_member_signs_in_and_out_by_keyboard(served: Served, tmp_path: Path) -> None:
    with served.alliance.as_(OWNER) as owner:
        token = owner.create_token("browser", ["read"], valid_days=1).token
    assert token is not None
    with browsing(served, tmp_path) as browser:
        page = browser.open("/sign-in?to=/grants")
        expect(page.get_by_label("Token")).to_be_focused()
        page.keyboard.type(token)
        page.keyboard.press("Enter")
        page.wait_for_url("**/grants")
        expect(page.get_by_role("link", name=OWNER).first).to_be_visible()
        assert page.evaluate("document.cookie") == ""
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url(served.url + "/")
        expect(page.get_by_role("link", name="Sign in")).to_be_visible()


def test_a_copy_button_copies_and_says_so(served: Served, tmp_path: Path) -> None:
    with browsing(served, tmp_path, permissions=["clipboard-read", "clipboard-write"]) as browser:
        browser.context.clock.install()  # time stands until the test moves it
        page = browser.open(f"/models/{MODEL}")
        assert page.title() == f"{MODEL} · hub.example"
        button = page.locator("#pull button[data-copy]").first
        button.click()
        expect(button).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == f"fedhub model pull {MODEL}@2 ./shown"
        page.clock.run_for(2000)
        expect(button).to_have_text("Copy")


@pytest.mark.parametrize("size", SIZES)
def test_every_page_fits_its_window_and_asks_nobody_else(served: Served, tmp_path: Path, size: str) -> None:
    journey = served.setting.running(rounds=4)
    source = digest(BASE)
    for number in (1, 2, 3):
        journey.orders(number, source)
        source = _close(journey, number, source)
    data = {
        "institution": LABS[2],
        "round": 2,
        "code": "E_NOT_FINITE",
        "message": "the update has NaN in 'w'",
    }
    with served.alliance.coordinator() as coordinator:
        coordinator.report_events(journey.id, wire.EventReport(attempt=1, kind="site.left-out", data=data))
    served.alliance.hub.ledger.publish()
    paths = {
        "overview": "/",
        "models": "/models",
        "model": f"/models/{MODEL}",
        "model-zh": f"/models/{MODEL}?lang=zh-Hans",
        "released": f"/models/{served.released}?lang=en",
        "datasets-found": "/datasets?lang=en&search=rows&kept=hub",
        "shared": f"/datasets/{served.shared}?lang=en",
        "shared-zh": f"/datasets/{served.shared}?lang=zh-Hans",
        "compare": f"/models/{MODEL}/compare?lang=en",
        "compare-zh": f"/models/{MODEL}/compare?lang=zh-Hans",
        "datasets": "/datasets?lang=en",
        "dataset": f"/datasets/{served.setting.datasets[LABS[0]]}",
        "runs": "/runs",
        "run": f"/runs/{journey.id}",
        "rounds": f"/runs/{journey.id}/rounds",
        "releases": "/releases",
        "grants": "/grants",
        "institutions": "/institutions",
        "institution": f"/institutions/{OWNER}",
        "log": "/log",
        "statement": f"/statements/{served.grant}",
        "sign-in": "/sign-in",
    }
    with browsing(served, tmp_path, **SIZES[size]) as browser:
        for name, path in paths.items():
            page = browser.open(path)
            _picture(page, f"{name}-{size}")
            page.evaluate(OPEN_ALL)
            assert page.evaluate(STICKS_OUT) == [], path
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
            assert page.evaluate(NAMELESS) == 0, path


def test_a_grant_says_on_a_phone_whose_it_is_its_end_and_its_state_side_by_side_with_their_names(
    served: Served, tmp_path: Path
) -> None:
    """Eight columns are wider than a phone: nothing of a grant is out of sight, and nothing stands unnamed."""
    with browsing(served, tmp_path, **SIZES["phone"]) as browser:
        for path in ("/grants", f"/models/{MODEL}?version=1"):
            page = browser.open(path)
            row = page.locator("table.stacked tbody tr").filter(has_text="firm.example").first
            cells = row.get_by_role("cell")
            expect(cells).to_have_count(8)
            for cell in cells.all():
                box = cell.bounding_box()
                assert box and box["x"] >= 0 and box["x"] + box["width"] <= 320, path
            expect(row.locator(".pill")).to_have_text("valid")
            named = cells.evaluate_all("all => all.map(one => getComputedStyle(one, '::before').content)")
            assert named[4:6] == ['"Until"', '"State"']


def _picture(page: Page, name: str) -> None:
    folder = os.environ.get("FEDHUB_TEST_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize(
    ("language", "heading", "verdicts"),
    [
        ("en", "What it brought each site", ["gain", "no clear difference", "too few rows"]),
        ("zh", "给各站点带来了什么", ["增益", "无明显差异", "行数太少"]),
    ],
)
def test_the_benefit_report_fits_its_window_and_is_whole_without_javascript(
    served: Served, tmp_path: Path, language: str, heading: str, verdicts: list[str]
) -> None:
    one = told(served.alliance, f"benefit-{language}")
    one.harmonised()
    last = one.close_round(1, digest(BASE))
    one.measured(LABS[0], last, 400, federated="0.9500", local="0.8000", majority="0.5000")
    one.measured(LABS[1], last, 40, federated="0.9500", local="0.9000", majority="0.5000")
    one.measured(LABS[2], last, 0)
    with browsing(served, tmp_path, java_script_enabled=False, **SIZES["phone"]) as browser:
        page = browser.open(f"/runs/{one.journey.id}?lang={language}")
        expect(page.locator("#benefit h2")).to_have_text(heading)
        expect(page.locator("#benefit .pill")).to_have_text(verdicts)
        expect(page.locator("#benefit svg.span")).to_have_count(6)
        page.locator("#joint > summary").click()
        expect(page.locator("#joint tbody tr")).to_have_count(2)
    for size in ("phone", "light"):
        with browsing(served, tmp_path / size, **SIZES[size]) as browser:
            page = browser.open(f"/runs/{one.journey.id}?lang={language}")
            page.evaluate(OPEN_ALL)
            assert (page.evaluate(STICKS_OUT), page.evaluate(NAMELESS)) == ([], 0)
            _picture(page, f"run-benefit-{size}-{language}")
