"""A lab's own code at the hub: named by a plan, held as long as the plan, read by who may read the plan."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from federation.app_terms import APP_FILE, AppTerms
from federation.deciding import read_checked_plan
from federation.plan import make_config, read_config
from federation.planning import Terms, check_draft, draft_plan, fetch_app, push_app, read_draft, submit_draft
from hub.services import garbage
from hub.tables import BlobRow
from storage.encoding import sha256_hex, unb64
from storage.errors import FedhubError
from tests.alliances import FIRM, LABS, OWNER, AllianceInProcess, open_alliance, weights
from tests.unit.test_federation_app_bundle import FILES, pack

DAY_S = 86_400


class Setting:
    """An alliance with a base version, data sets, and an app that nobody has uploaded yet."""

    def __init__(self, alliance: AllianceInProcess) -> None:
        self.alliance = alliance
        self.base = alliance.push({"model.safetensors": weights(1, 2)})
        self.datasets = {lab: alliance.describe(lab) for lab in LABS}

    def submit(self, app: bytes, *, terms: AppTerms | None = None, recipe: bytes = b"") -> Any:
        named = terms or AppTerms(sha256_hex(app), len(app), {"steps": 2})
        config = make_config("", {}, quorum=2, app=named)
        subjects = [
            (APP_FILE, named.sha256),
            ("manifest.json", self.base.asset_id),
            ("config.json", sha256_hex(config)),
        ]
        return self.alliance.submit(self.base, self.datasets, subjects=subjects, recipe=recipe, config=config)

    def push(self, app: bytes, name: str = OWNER) -> None:
        with self.alliance.as_(name) as client:
            push_app(client, app)

    def fetch(self, app: bytes, name: str) -> bytes:
        with self.alliance.as_(name) as client:
            return fetch_app(client, sha256_hex(app))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with open_alliance(tmp_path_factory.mktemp("apps"), "sqlite", superlink="external") as opened:
        yield Setting(opened)


def refused(code: str, call: Any, /, *arguments: Any, **options: Any) -> FedhubError:
    with pytest.raises(FedhubError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code, caught.value
    return caught.value


def app_of(text: str) -> bytes:
    return pack({**FILES, "a/client.py": text.encode()})


def test_a_plan_of_an_app_names_it_and_its_parties_can_read_the_code(setting: Setting) -> None:
    app = app_of("one")
    setting.push(app)
    plan = setting.submit(app)
    assert plan.recipe == ""
    named = read_config(unb64(plan.config)).app
    assert named == AppTerms(sha256_hex(app), len(app), {"steps": 2})
    for name in (OWNER, *LABS):
        assert setting.fetch(app, name) == app
    refused("E_NOT_FOUND", setting.fetch, app, FIRM)
    with setting.alliance.as_(LABS[0]) as lab:
        assert lab.plan(plan.id) == plan


def test_an_app_that_no_plan_names_is_read_by_who_uploaded_it_alone(setting: Setting) -> None:
    app = app_of("two")
    setting.push(app)
    assert setting.fetch(app, OWNER) == app
    refused("E_NOT_FOUND", setting.fetch, app, LABS[0])
    refused("E_NOT_FOUND", setting.fetch, app_of("nowhere"), OWNER)


def test_a_file_of_a_version_is_not_read_as_an_app(setting: Setting) -> None:
    with setting.alliance.as_(OWNER) as owner:
        refused("E_NOT_FOUND", owner.app, hashlib.sha256(weights(1, 2)).hexdigest())


def test_a_plan_of_an_app_that_its_issuer_did_not_upload_is_refused(setting: Setting) -> None:
    app = app_of("three")
    error = refused("E_APP_MISSING", setting.submit, app)
    assert "fedhub app push" in error.hint
    setting.push(app, LABS[0])
    refused("E_APP_MISSING", setting.submit, app)


def test_a_plan_of_bytes_that_are_no_bundle_or_of_strange_parameters_is_refused(
    setting: Setting, tmp_path: Path
) -> None:
    from federation import sending

    app = pack(more=b"not listed")
    (tmp_path / "app.fab").write_bytes(app)
    with setting.alliance.as_(OWNER) as owner:
        sending.send_file(owner, tmp_path / "app.fab")
    refused("E_APP", setting.submit, app)
    good = app_of("four")
    setting.push(good)
    refused("E_APP", setting.submit, good, terms=AppTerms(sha256_hex(good), len(good), {"speed": 1}))
    refused("E_APP_MISSING", setting.submit, good, terms=AppTerms(sha256_hex(good), len(good) + 1, {}))
    refused("E_PLAN", setting.submit, good, recipe=b"{}")


def test_the_sweep_keeps_an_app_that_a_plan_names_and_no_other(setting: Setting) -> None:
    named, spare = app_of("five"), app_of("six")
    for app in (named, spare):
        setting.push(app)
    setting.submit(named)
    hub = setting.alliance.hub
    garbage.sweep(hub, now=hub.ledger.now() + 400 * DAY_S)
    with hub.database.session_scope(write=False) as session:
        assert session.get(BlobRow, sha256_hex(named)) is not None
        assert session.get(BlobRow, sha256_hex(spare)) is None
    assert setting.fetch(named, LABS[1]) == named


def test_an_owner_drafts_and_submits_a_plan_of_an_app_and_a_lab_consents_to_its_digest(
    setting: Setting, tmp_path: Path
) -> None:
    app = app_of("seven")
    owner, lab = setting.alliance.homes[OWNER], setting.alliance.homes[LABS[0]]
    terms = Terms(
        participants=[setting.datasets[name] for name in LABS[:2]],
        rounds=2,
        parameters={"rate": "0.25", "loud": "true"},
        app=app,
    )
    with setting.alliance.as_(OWNER) as client:
        named = f"{setting.base.name}@{setting.base.version}"
        draft = draft_plan(client, tmp_path / "draft", named, terms)
        assert {path.name for path in (tmp_path / "draft").iterdir()} == {
            "plan.json",
            "app.fab",
            "config.json",
        }
        plan = submit_draft(owner, client, draft)
    named_app = read_config(unb64(plan.config)).app
    assert named_app is not None and dict(named_app.parameters) == {"rate": "0.25", "loud": True}
    lab.pin(OWNER, owner.ring.pin)
    with setting.alliance.as_(LABS[0]) as client:
        checked, _ = read_checked_plan(lab, client, plan.id)
        assert checked.code == sha256_hex(app)
    altered = tmp_path / "draft" / "app.fab"
    altered.write_bytes(app_of("eight"))
    refused("E_PLAN", check_draft, owner, read_draft(tmp_path / "draft"))
