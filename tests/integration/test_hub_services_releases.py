"""Releases: counted from the log, shown to those who may know of the model."""

import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import httpx
import pytest

from federation import wire
from federation.home import Home
from hub.cli import dispatch
from hub.terminal import Terminal
from storage.encoding import format_time
from storage.errors import Exit
from storage.manifests import Manifest
from storage.standard import BUILD_TYPE, BUILDER, release_purl
from tests.alliances import (
    BASE,
    ENGINES,
    FIRM,
    LABS,
    OWNER,
    AllianceInProcess,
    Journey,
    Setting,
    digest,
    open_alliance,
)
from tests.hubs import ORIGIN
from tests.stock_http import Stock

NAME = f"{OWNER}/released"


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("releases"), request.param, superlink="external") as opened:
        yield opened


def finish(setting: Setting) -> tuple[Journey, bytes]:
    """A run of one round that has ended, and the weights it ended with."""
    journey = setting.running(rounds=1)
    told = journey.reports(1, digest(BASE))
    journey.report(told)
    assert journey.end("finished").state == "finished"
    with setting.alliance.as_(OWNER) as owner:
        url = owner.weights(journey.id, told.aggregate).url
    return journey, httpx.get(url, trust_env=False).content


def provenance(setting: Setting, journey: Journey, made: Manifest) -> bytes:
    (round_,) = journey.run().rounds
    listed = [round_.statement, *round_.receipts, journey.plan.base_asset]
    code, _base, _config = (subject for subject in subjects_of(journey.plan))
    dependencies = [{"name": "x", "digest": {"sha256": each}} for each in [*listed, code]]
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"plan": journey.id},
            "resolvedDependencies": dependencies,
        },
        "runDetails": {"builder": {"id": BUILDER}},
    }
    return setting.alliance.homes[OWNER].sign("provenance", [("manifest.json", made.asset_id)], predicate)


def subjects_of(plan: wire.Plan) -> list[str]:
    from storage.signing import open_envelope
    from storage.statements import read_statement

    return [subject.digest for subject in read_statement(open_envelope(plan.bundle.encode())).subjects]


def approve(alliance: AllianceInProcess, lab: str, version: wire.ModelVersion) -> str:
    members: dict[str, Any] = {
        "verifier": {"id": lab},
        "timeVerified": format_time(alliance.hub.ledger.now()),
        "resourceUri": version.name,
        "policy": {"uri": "https://fedhub.dev/plan/v1", "digest": {"sha256": version.plan}},
        "inputAttestations": [{"digest": {"sha256": version.statement}}],
        "verificationResult": "PASSED",
        "verifiedLevels": ["FEDHUB_RELEASE"],
    }
    return alliance.say(lab, "verdict", [("manifest.json", version.asset_id)], members)


def release(alliance: AllianceInProcess, version: wire.ModelVersion) -> str:
    members = {"purl": release_purl(version.name, version.version, ORIGIN), "packageId": version.name}
    return alliance.say(OWNER, "release", [("manifest.json", version.asset_id)], members)


def referrers(owner: Stock) -> tuple[str, set[str]]:
    """The digest of version 1 as an OCI artifact, and the kinds of the bundles that prove it."""
    manifest = str(owner.get(f"/v2/{NAME}/manifests/v1").headers["docker-content-digest"])
    found = owner.get(f"/v2/{NAME}/referrers/{manifest}").json()["manifests"]
    for one in found:
        assert owner.get(f"/v2/{NAME}/manifests/{one['digest']}").json()["subject"]["digest"] == manifest
    return manifest, {one["annotations"]["dev.fedhub.statement.kind"] for one in found}


def listed_by_command(alliance: AllianceInProcess, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What ``fedhub release list`` says to a member, and what it asked the hub for."""
    asked: list[str] = []
    client = alliance.as_(name)
    client._http.event_hooks["request"].append(lambda request: asked.append(request.url.path))
    terminal = Terminal(alliance.homes[name].path, json=True, out=io.StringIO(), err=io.StringIO())
    with mock.patch.object(Home, "client", lambda _home: client):
        assert dispatch(["release", "list"], terminal) is Exit.DONE, terminal.problem
    return terminal.answer["releases"], [path for path in asked if path != "/api/v1/token"]


def test_release_shows_who_approved_it_until_it_is_withdrawn(alliance: AllianceInProcess) -> None:
    setting = Setting(alliance)
    journey, data = finish(setting)
    version = alliance.push(
        {"model.safetensors": data},
        NAME,
        plan=journey.id,
        provenance=lambda made: provenance(setting, journey, made),
    )
    with alliance.as_(FIRM) as firm:
        approvals = firm.approvals(NAME, 1)
        assert (approvals.plan, approvals.needed, approvals.approved_by) == (journey.id, 1, [])
        assert (approvals.participants, approvals.release) == (sorted(LABS), None)
        assert not version.released and firm.releases() == []
        stock = Stock.of(alliance, OWNER, "read")
        artifact, proofs = referrers(stock)
        assert proofs == {"oms", "asset", "provenance"}

        approve(alliance, LABS[1], version)
        assert firm.approvals(NAME, 1).approved_by == [LABS[1]]
        assert not firm.version(NAME, 1).released

        statement = release(alliance, version)
        assert firm.version(NAME, 1).released and firm.approvals(NAME, 1).release == statement
        assert referrers(stock) == (artifact, {*proofs, "release"})
        (listed,) = firm.releases()
        assert (listed.name, listed.version, listed.statement) == (NAME, 1, statement)
        assert (listed.approved_by, listed.plan) == ([LABS[1]], journey.id)
        assert listed_by_command(alliance, FIRM) == ([listed.model_dump()], ["/api/v1/releases"])

        with alliance.as_(OWNER) as owner:
            owner.set_visibility(NAME, "private")
            assert [one.name for one in owner.releases()] == [NAME] and firm.releases() == []
            grant = alliance.grant_pull(version.asset_id)
            assert [one.name for one in firm.releases()] == [NAME]  # whoever may pull it may know of it
            withdrawn = {"target": "statement", "reason": "withdrawn"}
            alliance.say(OWNER, "revocation", [("grant.sigstore.json", grant)], withdrawn)
            assert firm.releases() == []
            owner.set_visibility(NAME, "gated")

        subject = [("release.sigstore.json", statement)]
        alliance.say(OWNER, "revocation", subject, {"target": "statement", "reason": "withdrawn"})
        assert firm.releases() == [] and not firm.version(NAME, 1).released
        assert referrers(stock) == (artifact, proofs)


def test_provenance_of_other_weights_is_refused_with_the_version(alliance: AllianceInProcess) -> None:
    setting = Setting(alliance, f"{OWNER}/second-base")
    journey, _data = finish(setting)
    from storage.errors import Rejected

    with pytest.raises(Rejected) as caught:
        alliance.push(
            {"model.safetensors": BASE},
            f"{OWNER}/forged",
            plan=journey.id,
            provenance=lambda made: provenance(setting, journey, made),
        )
    assert caught.value.code == "E_LINK"
    with alliance.as_(OWNER) as owner:
        assert f"{OWNER}/forged" not in {model.name for model in owner.models()}
