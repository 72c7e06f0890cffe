"""Files on their way out: the grant decides the pull, and again every single download."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from federation import wire
from federation.fetching import fetch
from hub.services import pulls
from hub.tables import CapabilityRow, InstitutionRow
from storage.encoding import format_time, read_json
from storage.errors import FedhubError, Refused
from storage.signing import open_envelope
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, digest, open_alliance, weights
from tests.hubs import OPERATOR
from tests.stock_http import Stock

FILES = {"model.safetensors": weights(1, 2), "docs/README.md": b"# how to"}


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("pulls"), request.param, superlink="external") as opened:
        yield opened


@pytest.fixture
def version(alliance: AllianceInProcess, request: pytest.FixtureRequest) -> wire.ModelVersion:
    name = f"{OWNER}/m-{digest(request.node.name.encode())[:8]}"
    return alliance.push({**FILES, "name.txt": name.encode()}, name)


def refused(code: str, call: Any, /, *arguments: Any, **options: Any) -> FedhubError:
    with pytest.raises(FedhubError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code, caught.value
    return caught.value


def download(alliance: AllianceInProcess, file: wire.PullFile) -> httpx.Response:
    path = file.url.removeprefix(alliance.settings.downloads)
    with alliance.http(downloads=True) as http:
        return http.get(path)


def receipts(alliance: AllianceInProcess, asset_id: str) -> list[dict[str, Any]]:
    with alliance.client(alliance.operator) as operator:
        found = operator.all_statements(kind="receipt", subject=asset_id)
        return [read_json(open_envelope(one.bundle.encode()).payload) for one in found]


def test_owner_pulls_without_grant_or_receipt(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    with alliance.as_(OWNER) as owner:
        pulled = owner.pull(version.asset_id)
    assert (pulled.grant, pulled.name, pulled.version) == (None, version.name, 1)
    assert receipts(alliance, version.asset_id) == []


def test_granted_firm_pulls_and_the_operator_signs_a_receipt(
    alliance: AllianceInProcess, version: wire.ModelVersion, tmp_path: Path
) -> None:
    grant = alliance.grant_pull(version.asset_id)
    with alliance.as_(FIRM) as firm:
        pulled = firm.pull(version.asset_id)
    assert pulled.grant == grant and 0 < pulled.expires_in <= 300
    (receipt,) = receipts(alliance, version.asset_id)
    said = receipt["predicate"]
    assert (said["action"], said["grant"], said["issuer"]) == ("pull", grant, OPERATOR)
    for file in pulled.files:
        answer = download(alliance, file)
        assert answer.status_code == 307 and answer.headers["cache-control"] == "no-store"
        target = tmp_path / digest(file.name.encode())
        fetch(answer.headers["location"], target, file.sha256, file.size)
        assert target.read_bytes() == FILES.get(file.name, version.name.encode())


def test_pulling_again_while_it_goes_on_is_one_pull_and_later_another(
    alliance: AllianceInProcess, version: wire.ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    alliance.grant_pull(version.asset_id)
    with alliance.as_(FIRM) as firm:
        first, again = firm.pull(version.asset_id), firm.pull(version.asset_id)
    assert first.files[0].url != again.files[0].url
    assert len(receipts(alliance, version.asset_id)) == 1
    stock = Stock.of(alliance, FIRM, "read")
    over = alliance.hub.ledger.now() + alliance.settings.capability_s + 1
    with monkeypatch.context() as later:
        later.setattr(type(alliance.hub.ledger), "now", lambda _ledger: over)
        for path in ("name.txt", "docs/README.md"):  # a client that asks for each file by itself
            assert stock.resolve(version.name, "v1", path).status_code == 200
    assert len(receipts(alliance, version.asset_id)) == 2


def test_pull_without_a_grant_is_refused_and_says_whom_to_ask(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    with alliance.as_(FIRM) as firm:
        error = refused("E_GRANT_MISSING", firm.pull, version.asset_id)
    assert isinstance(error, Refused) and error.status == 403 and OWNER in error.hint
    assert receipts(alliance, version.asset_id) == []


def test_grant_of_another_institution_version_or_action_is_no_grant(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    alliance.grant_pull(version.asset_id, LABS[0])
    alliance.grant_pull(version.asset_id, FIRM, actions=["evaluate"])
    other = alliance.push({"a": version.name.encode()}, version.name + "-other")
    alliance.grant_pull(other.asset_id, FIRM)
    with alliance.as_(FIRM) as firm:
        refused("E_GRANT_MISSING", firm.pull, version.asset_id)


def test_grant_that_has_not_begun_is_refused(alliance: AllianceInProcess, version: wire.ModelVersion) -> None:
    now = int(time.time())
    alliance.grant_pull(version.asset_id, notBefore=format_time(now + 600))
    with alliance.as_(FIRM) as firm:
        refused("E_GRANT_NOT_YET", firm.pull, version.asset_id)


def test_terms_of_the_grant_must_be_accepted(alliance: AllianceInProcess, version: wire.ModelVersion) -> None:
    alliance.grant_pull(version.asset_id, conditions={"duo": ["DUO:0000042"]})
    with alliance.as_(FIRM) as firm:
        error = refused("E_GRANT_CONDITION", firm.pull, version.asset_id)
        assert "DUO:0000042" in error.message
        pulled = firm.pull(version.asset_id, ["DUO:0000042"])
    assert pulled.grant is not None
    assert download(alliance, pulled.files[0]).status_code == 307  # accepted once for the whole pull


def test_public_version_needs_neither_grant_nor_receipt(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    with alliance.as_(OWNER) as owner, alliance.as_(FIRM) as firm:
        owner.set_visibility(version.name, "public")
        pulled = firm.pull(version.asset_id)
        assert pulled.grant is None and download(alliance, pulled.files[0]).status_code == 307
        owner.set_visibility(version.name, "gated")
    assert download(alliance, pulled.files[0]).json()["code"] == "E_GRANT_MISSING"
    assert receipts(alliance, version.asset_id) == []


def test_revoked_grant_ends_a_download_that_is_going_on(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    grant = alliance.grant_pull(version.asset_id)
    with alliance.as_(FIRM) as firm:
        pulled = firm.pull(version.asset_id)
    group = f"{pulled.small}/0".removeprefix(alliance.settings.downloads)
    with alliance.http(downloads=True) as http:
        assert (download(alliance, pulled.files[0]).status_code, http.get(group).status_code) == (307, 200)
        said = {"target": "statement", "reason": "withdrawn"}
        alliance.say(OWNER, "revocation", [("grant.sigstore.json", grant)], said)
        for answer in (download(alliance, pulled.files[0]), http.get(group)):
            assert (answer.status_code, answer.json()["code"]) == (403, "E_REVOKED")
    with alliance.as_(FIRM) as firm:
        refused("E_REVOKED", firm.pull, version.asset_id)


def test_who_holds_several_grants_leans_on_the_one_it_names_to_the_end(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    older, newer = (alliance.grant_pull(version.asset_id) for _ in range(2))
    with alliance.as_(FIRM) as firm:
        assert firm.pull(version.asset_id).grant == newer
        pulled = firm.pull(version.asset_id, grant=older[:12])
        assert pulled.grant == older
        refused("E_GRANT_MISSING", firm.pull, version.asset_id, grant="0" * 8)
    assert [each["predicate"]["grant"] for each in receipts(alliance, version.asset_id)] == [newer, older]
    assert download(alliance, pulled.files[0]).status_code == 307
    said = {"target": "statement", "reason": "withdrawn"}
    alliance.say(OWNER, "revocation", [("grant.sigstore.json", older)], said)
    assert (
        download(alliance, pulled.files[0]).json()["code"] == "E_REVOKED"
    )  # the other has no receipt for this
    with alliance.as_(FIRM) as firm:
        refused("E_REVOKED", firm.pull, version.asset_id, grant=older)
        assert firm.pull(version.asset_id).grant == newer


def test_withdrawn_version_is_not_pulled_even_when_it_is_public(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    with alliance.as_(OWNER) as owner:
        owner.set_visibility(version.name, "public")
    subject = [("asset.sigstore.json", version.statement)]
    alliance.say(OWNER, "revocation", subject, {"target": "statement", "reason": "error"})
    with alliance.as_(FIRM) as firm:
        refused("E_REVOKED", firm.pull, version.asset_id)


def test_capability_that_is_over_or_made_up_is_refused(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    with alliance.as_(OWNER) as owner:
        file = owner.pull(version.asset_id).files[0]
    made_up = file.model_copy(update={"url": f"{alliance.settings.downloads}/d/{'x' * 43}/{file.sha256}"})
    assert download(alliance, made_up).json()["code"] == "E_CAPABILITY"
    assert download(alliance, file).status_code == 307
    with alliance.hub.database.session_scope() as session:
        for row in session.exec(select(CapabilityRow).where(CapabilityRow.asset_id == version.asset_id)):
            row.expires_at = alliance.hub.ledger.now()
            session.add(row)
    answer = download(alliance, file)
    assert (answer.status_code, answer.json()["code"]) == (403, "E_CAPABILITY")
    with alliance.hub.database.session_scope() as session:
        pulls.forget_capabilities(alliance.hub, session)
        assert (
            session.exec(select(CapabilityRow).where(CapabilityRow.asset_id == version.asset_id)).all() == []
        )


def test_capability_opens_its_own_version_only(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    other = alliance.push({"b": b"of " + version.name.encode()}, version.name + "-b")
    with alliance.as_(OWNER) as owner:
        file = owner.pull(version.asset_id).files[0]
    foreign = file.model_copy(update={"url": file.url.replace(file.sha256, other.files[0].sha256)})
    assert download(alliance, foreign).status_code == 404
    odd = file.model_copy(update={"url": file.url.replace(file.sha256, "../../etc")})
    assert download(alliance, odd).status_code in (404, 422)


def test_suspended_member_downloads_nothing_further(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    alliance.grant_pull(version.asset_id, LABS[2])
    with alliance.as_(LABS[2]) as lab:
        file = lab.pull(version.asset_id).files[0]
    for state, status in (("suspended", 403), ("approved", 307)):
        with alliance.hub.database.session_scope() as session:
            row = session.get_one(InstitutionRow, LABS[2])
            row.state = state
            session.add(row)
        assert download(alliance, file).status_code == status


def test_coordinator_and_visitors_pull_nothing(
    alliance: AllianceInProcess, version: wire.ModelVersion
) -> None:
    with alliance.coordinator() as coordinator:
        refused("E_ACCESS", coordinator.pull, version.asset_id)
    with alliance.http() as visitor:
        assert visitor.post("/api/v1/pulls", json={"asset_id": version.asset_id}).status_code == 401
    with alliance.as_(FIRM) as firm:
        refused("E_NOT_FOUND", firm.pull, "0" * 64)


def test_download_origin_serves_nothing_else(alliance: AllianceInProcess) -> None:
    with alliance.http(downloads=True) as http:
        assert http.get("/api/v1/hub").status_code == 404
        assert http.get("/").status_code == 404
