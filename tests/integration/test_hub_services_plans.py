"""Training plans: what the hub takes in, and what it counts as a consent."""

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest

from federation import wire
from federation.client import HubClient
from federation.plan import build_recipe, make_config
from storage.encoding import format_time, sha256_hex
from storage.errors import FedhubError, Refused
from tests.alliances import (
    ENGINES,
    FIRM,
    LABS,
    OWNER,
    PARAMETERS,
    RECIPE,
    AllianceInProcess,
    open_alliance,
    weights,
)


class Setting:
    """An alliance with a base version and a data set for each lab."""

    def __init__(self, alliance: AllianceInProcess) -> None:
        self.alliance = alliance
        self.base = alliance.push({"model.safetensors": weights(1, 2)})
        self.datasets = {lab: alliance.describe(lab) for lab in LABS}

    def submit(self, **changes: Any) -> wire.Plan:
        return self.alliance.submit(self.base, self.datasets, **changes)


@pytest.fixture(scope="module", params=ENGINES)
def setting(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Setting]:
    with open_alliance(
        tmp_path_factory.mktemp("plans"), request.param, superlink="external", page_size=2
    ) as opened:
        yield Setting(opened)


def refused(code: str, call: Any, /, *arguments: Any, **options: Any) -> FedhubError:
    with pytest.raises(FedhubError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code, caught.value
    return caught.value


def said(plan: wire.Plan) -> dict[str, tuple[str | None, str | None]]:
    return {one.institution: (one.consent, one.declined) for one in plan.participants}


def read(setting: Setting, plan: wire.Plan, name: str = OWNER) -> wire.Plan:
    with setting.alliance.as_(name) as client:
        return client.plan(plan.id)


def test_submitted_plan_shows_its_terms_and_no_consent(setting: Setting) -> None:
    plan = setting.submit(rounds=3, least=2)
    assert (plan.issuer, plan.rounds, plan.min_participants, plan.approvals) == (OWNER, 3, 2, 1)
    assert plan.base_asset == setting.base.asset_id and plan.run is None
    assert said(plan) == dict.fromkeys(LABS, (None, None))
    assert read(setting, plan, LABS[0]) == plan


def test_submitting_again_answers_with_the_plan(setting: Setting) -> None:
    plan = setting.submit()
    with setting.alliance.as_(OWNER) as owner:
        assert owner.submit_plan(plan.bundle, _raw(plan.recipe), _raw(plan.config)) == plan


def _raw(text: str) -> bytes:
    return base64.b64decode(text)


def test_recipe_or_config_that_the_plan_does_not_name_is_refused(setting: Setting) -> None:
    other = make_config(RECIPE, PARAMETERS, quorum=3, seed=99)
    refused("E_PLAN", setting.submit, config=other)
    refused("E_PLAN", setting.submit, recipe=build_recipe("tabular-classification"))
    error = refused("E_PLAN", setting.submit, members={"strategy": "FedProx"})
    assert "strategy" in error.message


def test_base_version_must_be_here_and_the_issuers_to_use(setting: Setting) -> None:
    recipe, config = build_recipe(RECIPE), make_config(RECIPE, PARAMETERS, quorum=2)

    def subjects(base: str, config: bytes = config) -> list[tuple[str, str]]:
        return [
            ("recipe.json", sha256_hex(recipe)),
            ("manifest.json", base),
            ("config.json", sha256_hex(config)),
        ]

    refused("E_BASE", setting.submit, subjects=subjects("0" * 64), recipe=recipe, config=config)
    renamed = make_config(RECIPE, PARAMETERS, quorum=2, weights="adapter.safetensors")
    error = refused(
        "E_BASE",
        setting.submit,
        subjects=subjects(setting.base.asset_id, renamed),
        recipe=recipe,
        config=renamed,
    )
    assert "adapter.safetensors" in error.message
    foreign = setting.alliance.push({"model.safetensors": weights(5)}, f"{FIRM}/own")
    refused(
        "E_GRANT_MISSING", setting.submit, subjects=subjects(foreign.asset_id), recipe=recipe, config=config
    )


def test_data_set_must_be_the_named_participants(setting: Setting) -> None:
    def with_site(institution: str, dataset: str) -> dict[str, Any]:
        known = {"institution": LABS[0], "dataset": setting.datasets[LABS[0]]}
        sites = sorted(
            [known, {"institution": institution, "dataset": dataset}], key=lambda one: one["institution"]
        )
        return {"participants": sites}

    for institution, dataset in (
        (LABS[1], "0" * 64),
        (LABS[1], setting.datasets[LABS[2]]),
        (LABS[1], setting.base.asset_id),
        ("stranger.example", setting.datasets[LABS[2]]),
    ):
        error = refused("E_DATASET", setting.submit, members=with_site(institution, dataset))
        assert isinstance(error, Refused) and institution in error.message


def test_plan_of_another_institution_is_refused(setting: Setting) -> None:
    plan = setting.submit()
    with setting.alliance.as_(FIRM) as firm:
        refused("E_ACCESS", firm.submit_plan, plan.bundle, _raw(plan.recipe), _raw(plan.config))


def test_plan_that_is_over_already_is_refused(setting: Setting) -> None:
    past = {"expires": format_time(int(time.time()) + 1)}

    def late() -> None:
        home = setting.alliance.homes[OWNER]
        recipe, config = build_recipe(RECIPE), make_config(RECIPE, PARAMETERS, quorum=2)
        names = [{"institution": lab, "dataset": setting.datasets[lab]} for lab in LABS]
        terms = {"rounds": 1, "minParticipants": 2, "approvals": 1, "strategy": "FedAvg", **past}
        subjects = [
            ("recipe.json", sha256_hex(recipe)),
            ("manifest.json", setting.base.asset_id),
            ("config.json", sha256_hex(config)),
        ]
        bundle = home.sign("plan", subjects, {**terms, "participants": names})
        time.sleep(1.1)
        with setting.alliance.as_(OWNER) as owner:
            owner.submit_plan(bundle, recipe, config)

    refused("E_PLAN", late)


def test_consent_is_shown_until_it_is_taken_back(setting: Setting) -> None:
    plan = setting.submit()
    grant = setting.alliance.consent(LABS[0], plan)
    assert said(read(setting, plan))[LABS[0]] == (grant, None)
    subject = [("grant.sigstore.json", grant)]
    setting.alliance.say(LABS[0], "revocation", subject, {"target": "statement", "reason": "withdrawn"})
    assert said(read(setting, plan))[LABS[0]] == (None, None)


def test_consent_to_another_code_or_to_more_participants_is_refused_at_once(setting: Setting) -> None:
    plan = setting.submit()
    refused("E_PLAN", setting.alliance.consent, LABS[0], plan, code="0" * 64)
    refused("E_PLAN", setting.alliance.consent, LABS[0], plan, minParticipants=3)


def test_grant_to_train_without_the_plan_is_no_consent(setting: Setting) -> None:
    plan = setting.submit()
    now = int(time.time())
    members = {
        "grantee": OWNER,
        "actions": ["train"],
        "conditions": {"code": sha256_hex(_raw(plan.recipe)), "maxRounds": 5, "minParticipants": 1},
        "notBefore": format_time(now - 60),
        "expires": format_time(now + 1000),
        "depth": 0,
    }
    setting.alliance.say(LABS[0], "grant", [("manifest.json", setting.datasets[LABS[0]])], members)
    assert said(read(setting, plan))[LABS[0]] == (None, None)


def test_run_stops_where_the_base_version_is_no_longer_granted(setting: Setting) -> None:
    alliance = setting.alliance
    base = alliance.push({"model.safetensors": weights(9, 9)}, f"{FIRM}/base")
    now = int(time.time())
    terms = {
        "grantee": OWNER,
        "actions": ["pull"],
        "conditions": {},
        "notBefore": format_time(now - 60),
        "expires": format_time(now + 1000),
        "depth": 0,
    }
    grant = alliance.say(FIRM, "grant", [("manifest.json", base.asset_id)], terms)
    plan = alliance.submit(base, setting.datasets)
    for lab in LABS[:2]:
        alliance.register_site(lab)
        alliance.consent(lab, plan)
    subject = [("grant.sigstore.json", grant)]
    alliance.say(FIRM, "revocation", subject, {"target": "statement", "reason": "withdrawn"})
    with alliance.as_(OWNER) as owner:
        refused("E_REVOKED", owner.start_run, plan.id)
        alliance.say(FIRM, "grant", [("manifest.json", base.asset_id)], terms)
        assert owner.start_run(plan.id).state == "starting"


def test_declined_plan_shows_the_reason_until_a_consent(setting: Setting) -> None:
    plan = setting.submit()
    with setting.alliance.as_(LABS[1]) as lab:
        declined = lab.decline(plan.id, "ethics board meets in May")
    assert said(declined)[LABS[1]] == (None, "ethics board meets in May")
    assert said(read(setting, plan))[LABS[1]] == (None, "ethics board meets in May")
    grant = setting.alliance.consent(LABS[1], plan)
    assert said(read(setting, plan))[LABS[1]] == (grant, None)


def test_only_a_participant_declines(setting: Setting) -> None:
    plan = setting.submit()
    with setting.alliance.as_(OWNER) as owner, setting.alliance.as_(FIRM) as firm:
        refused("E_ACCESS", owner.decline, plan.id, "no")
        refused("E_NOT_FOUND", firm.decline, plan.id, "no")


def test_plan_is_unknown_to_those_it_does_not_concern(setting: Setting) -> None:
    plan, *_more_than_a_page = [setting.submit() for _ in range(3)]

    def ids(client: HubClient) -> list[str]:
        return [one.id for one in client.plans()]

    with setting.alliance.as_(FIRM) as firm, setting.alliance.as_(LABS[0]) as lab:
        refused("E_NOT_FOUND", firm.plan, plan.id)
        assert ids(firm) == []
        assert plan.id in ids(lab) and len(ids(lab)) > 2
        refused("E_NOT_FOUND", lab.plan, "0" * 64)
        refused("E_NOT_FOUND", lab.plan, "not-a-digest")
    with setting.alliance.client(setting.alliance.operator) as operator:
        assert plan.id in ids(operator)
