"""What owners and stewards sign, over a hub that answers truly and over one that lies."""

import base64
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from federation import fetching, small_files, wire
from federation.client import HubClient
from federation.deciding import (
    approvals_of,
    consent,
    issue_grant,
    publish_release,
    read_checked_plan,
    read_signed,
    resolve_plan,
    revoke,
)
from federation.finishing import finish_run
from federation.home import Home
from federation.joining import post_status
from federation.planning import Terms, check_draft, draft_plan, read_draft, submit_draft
from federation.publishing import describe_dataset
from storage.encoding import sha256_hex
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.manifests import read_manifest
from storage.signing import open_envelope
from storage.statements import read_statement
from tests.alliances import FIRM, LABS, OWNER, AllianceInProcess, Journey, Setting, open_alliance, weights
from tests.hubs import OPERATOR


class _Lying:
    def __init__(self, truth: HubClient, answers: Mapping[str, Any]) -> None:
        self._truth = truth
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        return self._answers.get(name) or getattr(self._truth, name)


def lying(truth: HubClient, **answers: Any) -> HubClient:
    """A client of a hub that answers some questions falsely; the rest is the truth."""
    return cast(HubClient, _Lying(truth, answers))


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("decisions"), superlink="external") as made:
        homes = [made.operator, *made.homes.values()]
        for home in homes:
            for other in homes:
                home.pin(other.institution, other.ring.pin)
        yield made


@pytest.fixture(scope="module")
def setting(alliance: AllianceInProcess) -> Setting:
    return Setting(alliance)


@pytest.fixture(scope="module")
def finished(setting: Setting) -> Journey:
    """A run of two rounds that is over."""
    journey = setting.running(rounds=2)
    source = setting.base.files[0].sha256
    for number in (1, 2):
        told = journey.reports(number, source)
        journey.report(told)
        source = told.aggregate
    journey.end("finished")
    return journey


@pytest.fixture(autouse=True)
def downloads(alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow the download origin, which has no socket here, to the blob server, which has one."""
    plain = fetching.fetch

    def fetch(url: str, path: Path, *args: Any, **named: Any) -> None:
        if "/d/" in urlsplit(url).path:
            with alliance.http(downloads=True) as http:
                url = http.get(urlsplit(url).path, follow_redirects=False).headers["location"]
        plain(url, path, *args, **named)

    def fetch_bytes(url: str, size: int) -> bytes:
        with alliance.http(downloads=True) as http:
            data = http.get(urlsplit(url).path).content
        assert len(data) == size
        return data

    monkeypatch.setattr(fetching, "fetch", fetch)
    monkeypatch.setattr(small_files, "fetch_bytes", fetch_bytes)


def owner_of(alliance: AllianceInProcess) -> tuple[Home, HubClient]:
    return alliance.homes[OWNER], alliance.as_(OWNER)


# --- finishing a run ------------------------------------------------------------------------------------------------


def newest(client: HubClient) -> int:
    return max(version.version for version in client.model("owner.example/digits").versions)


def refuses_to_finish(alliance: AllianceInProcess, client: Any, plan: str) -> FedhubError:
    home, truth = owner_of(alliance)
    before = newest(truth)
    with pytest.raises(FedhubError) as caught:
        finish_run(home, client, plan)
    assert newest(truth) == before, "nothing was signed"
    assert not list(home.path.glob(".finish.*")), "nothing was left behind"
    return caught.value


def test_a_round_that_is_withheld_stops_the_owner(alliance: AllianceInProcess, finished: Journey) -> None:
    _home, truth = owner_of(alliance)

    def without_first_round(**asked: Any) -> Iterator[wire.StatementRecord]:
        records = list(truth.all_statements(**asked))
        return iter(records[1:] if asked.get("kind") == "round" else records)

    error = refuses_to_finish(alliance, lying(truth, all_statements=without_first_round), finished.id)
    assert error.code == "E_ROUND_CHAIN"


def test_no_rounds_at_all_make_no_version(alliance: AllianceInProcess, finished: Journey) -> None:
    _home, truth = owner_of(alliance)

    def nothing(**asked: Any) -> Iterator[wire.StatementRecord]:
        return iter([]) if asked.get("kind") == "round" else truth.all_statements(**asked)

    assert (
        refuses_to_finish(alliance, lying(truth, all_statements=nothing), finished.id).code == "E_ROUND_CHAIN"
    )


def test_a_receipt_that_is_withheld_stops_the_owner(alliance: AllianceInProcess, finished: Journey) -> None:
    _home, truth = owner_of(alliance)

    def without_a_receipt(**asked: Any) -> Iterator[wire.StatementRecord]:
        records = list(truth.all_statements(**asked))
        return iter(records[:-1] if asked.get("kind") == "receipt" else records)

    error = refuses_to_finish(alliance, lying(truth, all_statements=without_a_receipt), finished.id)
    assert error.code == "E_ROUND_CHAIN"


def test_a_round_that_somebody_else_signed_stops_the_owner(
    alliance: AllianceInProcess, finished: Journey
) -> None:
    _home, truth = owner_of(alliance)
    firm = alliance.homes[FIRM]

    def signed_by_the_firm(**asked: Any) -> Iterator[wire.StatementRecord]:
        for record in truth.all_statements(**asked):
            if asked.get("kind") != "round":
                yield record
                continue
            statement = read_statement(open_envelope(record.bundle.encode()))
            members = {
                name: value
                for name, value in statement.predicate.items()
                if name not in ("issuer", "hub", "issuedAt", "nonce")
            }
            forged = firm.sign("round", [("model.safetensors", statement.subject)], members)
            yield record.model_copy(update={"bundle": forged.decode()})

    error = refuses_to_finish(alliance, lying(truth, all_statements=signed_by_the_firm), finished.id)
    assert error.code == "E_ISSUER"


def test_weights_that_are_not_the_last_aggregate_stop_the_owner(
    alliance: AllianceInProcess, finished: Journey
) -> None:
    _home, truth = owner_of(alliance)

    def others(plan: str, _sha256: str) -> wire.WeightsLocation:
        first = truth.run(plan).rounds[0]
        return truth.weights(plan, first.aggregate)

    error = refuses_to_finish(alliance, lying(truth, weights=others), finished.id)
    assert error.exit.value == 1


def test_only_the_plans_owner_finishes_its_run(alliance: AllianceInProcess, finished: Journey) -> None:
    lab = alliance.homes[LABS[0]]
    with alliance.as_(LABS[0]) as client, pytest.raises(Refused) as caught:
        finish_run(lab, client, finished.id)
    assert caught.value.code == "E_PLAN"


def test_a_run_that_goes_on_is_not_finished(alliance: AllianceInProcess, setting: Setting) -> None:
    journey = setting.running(rounds=1)
    assert refuses_to_finish(alliance, owner_of(alliance)[1], journey.id).code == "E_RUN_STATE"


def test_finish_makes_the_last_aggregate_a_version_with_its_provenance(
    alliance: AllianceInProcess, finished: Journey, tmp_path: Path
) -> None:
    home, client = owner_of(alliance)
    run = client.run(finished.id)
    version, chain = finish_run(home, client, finished.id[:12], tags=["done"], keep=tmp_path / "files")
    assert [each.predicate["round"] for each in chain.rounds] == [1, 2]
    assert len(chain.receipts) == 2 * len(LABS)
    assert (version.plan, version.tags) == (finished.id, ["done"])
    held = sha256_hex((tmp_path / "files" / "model.safetensors").read_bytes())
    assert held == run.rounds[-1].aggregate == chain.aggregate
    (provenance,) = client.all_statements(kind="provenance", subject=version.asset_id)
    said = read_statement(open_envelope(provenance.bundle.encode())).predicate
    named = [each["digest"]["sha256"] for each in said["buildDefinition"]["resolvedDependencies"]]
    assert set(named) >= {*chain.receipts, *(each.id for each in chain.rounds)}
    again, _chain = finish_run(home, client, finished.id)
    assert again == version, "finishing twice signs nothing new"


# --- reading what others signed -------------------------------------------------------------------------------------


def test_a_statement_counts_only_as_what_it_is_and_by_whom(
    alliance: AllianceInProcess, finished: Journey
) -> None:
    home, client = owner_of(alliance)
    plan = client.plan(finished.id).bundle
    assert read_signed(home, client, plan, kind="plan", issuer=OWNER).id == finished.id
    for changes, code in (({"kind": "grant"}, "E_KIND"), ({"issuer": FIRM}, "E_ISSUER")):
        with pytest.raises(Rejected) as caught:
            read_signed(home, client, plan, **{"kind": "plan", "issuer": OWNER, **changes})
        assert caught.value.code == code


def test_a_key_outside_the_pinned_ring_signs_nothing(alliance: AllianceInProcess, tmp_path: Path) -> None:
    home, client = owner_of(alliance)
    impostor = alliance.new_home("impostor.example", "lab")
    members = {"target": "statement", "reason": "error"}
    forged = Home(impostor.path, LABS[0], "lab", home.hub, "", "").sign(
        "revocation", [("x", "a" * 64)], members
    )
    with pytest.raises(Rejected) as caught:
        read_signed(home, client, forged.decode(), kind="revocation", issuer=LABS[0])
    assert caught.value.code == "E_KEY_UNKNOWN"


def test_an_institution_that_this_home_does_not_pin_is_not_heard(alliance: AllianceInProcess) -> None:
    stranger = alliance.enrol("stranger.example", "lab")
    home, client = owner_of(alliance)
    bundle = stranger.sign("revocation", [("x", "a" * 64)], {"target": "statement", "reason": "error"})
    with pytest.raises(Refused) as caught:
        read_signed(home, client, bundle.decode(), kind="revocation", issuer="stranger.example")
    assert caught.value.code == "E_KEYRING_PIN"
    assert "institution trust stranger.example" in caught.value.hint


def test_a_hub_that_shows_another_plan_is_found_out(
    alliance: AllianceInProcess, finished: Journey, setting: Setting
) -> None:
    home, truth = owner_of(alliance)
    other = setting.plan(labs=()).plan

    def swapped(plan: str) -> wire.Plan:
        return truth.plan(other.id).model_copy(update={"id": plan})

    with pytest.raises(Rejected) as caught:
        read_checked_plan(home, lying(truth, plan=swapped), finished.id)
    assert caught.value.code == "E_PLAN"


@pytest.mark.parametrize("member", ["recipe", "config"])
def test_a_plans_files_must_be_those_that_it_names(
    alliance: AllianceInProcess, finished: Journey, member: str
) -> None:
    home, truth = owner_of(alliance)

    def altered(plan: str) -> wire.Plan:
        shown = truth.plan(plan)
        raw = base64.b64decode(getattr(shown, member)) + b" "
        return shown.model_copy(update={member: base64.b64encode(raw).decode()})

    with pytest.raises(Rejected) as caught:
        read_checked_plan(home, lying(truth, plan=altered), finished.id)
    assert caught.value.code == "E_PLAN"


def test_a_plan_is_found_by_the_beginning_of_its_id_when_that_is_enough(
    alliance: AllianceInProcess, finished: Journey
) -> None:
    _home, client = owner_of(alliance)
    assert resolve_plan(client, finished.id[:8]).id == finished.id
    for reference, code in ((finished.id[:7], "E_USAGE"), ("f" * 12, "E_NOT_FOUND"), ("", "E_USAGE")):
        with pytest.raises(Unchecked) as caught:
            resolve_plan(client, reference)
        assert caught.value.code == code


# --- describing, drafting, consenting -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(
    alliance: AllianceInProcess, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, wire.Dataset]:
    """Real datasets of two labs, by lab."""
    made = {}
    for lab in LABS[:2]:
        folder = tmp_path_factory.mktemp("rows")
        write_rows(folder, 3)
        with alliance.as_(lab) as client:
            made[lab] = describe_dataset(
                alliance.homes[lab],
                client,
                folder,
                f"{lab}/rows",
                description="Rows.",
                license_id="CC-BY-4.0",
            )
    return made


def write_rows(folder: Path, count: int) -> None:
    for name in ("train.csv", "heldout.csv"):
        lines = ["label,p00", *(f"{number % 2},{number}" for number in range(count))]
        (folder / name).write_text("\n".join(lines) + "\n")


def test_a_folder_described_again_is_the_same_dataset_until_a_byte_changes(
    alliance: AllianceInProcess, described: Mapping[str, wire.Dataset]
) -> None:
    lab = LABS[0]
    home, first = alliance.homes[lab], described[lab]
    folder = home.dataset(first.asset_id).folder
    terms = {"description": "Rows.", "license_id": "CC-BY-4.0"}
    with alliance.as_(lab) as client:
        assert describe_dataset(home, client, folder, first.name, **terms) == first
        write_rows(folder, 4)
        second = describe_dataset(home, client, folder, first.name, **terms)
        (statement,) = client.all_statements(kind="asset", subject=second.asset_id)
        (earlier,) = client.all_statements(kind="asset", subject=first.asset_id)
        write_rows(folder, 3)
    assert (second.version, second.asset_id != first.asset_id) == (2, True)
    said = read_statement(open_envelope(statement.bundle.encode())).predicate
    assert said["previous"] == earlier.id
    salts = {read_manifest(each.manifest).salt for each in home.datasets()}
    assert len(salts) == 2, "a new version has a salt of its own"


@pytest.fixture(scope="module")
def base(alliance: AllianceInProcess) -> wire.ModelVersion:
    from federation.plan import make_model_config
    from tests.alliances import PARAMETERS, RECIPE

    config = make_model_config(RECIPE, PARAMETERS)
    return alliance.push({"model.safetensors": weights(1.0), "config.json": config}, "owner.example/drafted")


def terms_over(described: Mapping[str, wire.Dataset], **changes: Any) -> Terms:
    datasets = [each.asset_id for each in described.values()]
    return Terms(**{"participants": datasets, "rounds": 2, **changes})


def test_a_draft_becomes_a_plan_that_a_lab_consents_to(
    alliance: AllianceInProcess,
    base: wire.ModelVersion,
    described: Mapping[str, wire.Dataset],
    tmp_path: Path,
) -> None:
    home, client = owner_of(alliance)
    draft = draft_plan(client, tmp_path / "draft", f"{base.name}@1", terms_over(described))
    assert check_draft(home, draft).rounds == 2
    plan = submit_draft(home, client, read_draft(tmp_path / "draft"))
    assert plan.id in {statement.id for statement, _raw in home.statements("plan")}
    lab = alliance.homes[LABS[0]]
    with alliance.as_(LABS[0]) as steward:
        checked, _shown = read_checked_plan(lab, steward, plan.id)
        record = consent(lab, steward, checked, max_rounds=1, min_participants=2)
    (kept,) = [each for each, _raw in lab.statements("grant") if each.id == record.id]
    assert kept.predicate["conditions"] == {
        "code": checked.code,
        "plan": plan.id,
        "maxRounds": 1,
        "minParticipants": 2,
    }
    assert (kept.subject, kept.predicate["grantee"]) == (described[LABS[0]].asset_id, OWNER)
    assert {each.institution: each.consent for each in client.plan(plan.id).participants}[
        LABS[0]
    ] == record.id


def test_only_a_participant_consents(
    alliance: AllianceInProcess,
    base: wire.ModelVersion,
    described: Mapping[str, wire.Dataset],
    tmp_path: Path,
) -> None:
    home, client = owner_of(alliance)
    draft_plan(client, tmp_path / "draft", f"{base.name}@1", terms_over(described))
    checked = check_draft(home, read_draft(tmp_path / "draft"))
    with alliance.as_(LABS[2]) as steward, pytest.raises(Refused) as caught:
        consent(alliance.homes[LABS[2]], steward, checked)
    assert caught.value.code == "E_PLAN"
    assert list(alliance.homes[LABS[2]].statements("grant")) == []


@pytest.mark.parametrize(
    ("file", "text", "code"),
    [
        ("plan.json", "{", "E_DRAFT"),
        ("plan.json", "{}", "E_DRAFT"),
        ("plan.json", "[]", "E_DRAFT"),
        ("config.json", "{}", "E_CONFIG"),
        ("recipe.json", "{}", "E_PLAN"),
    ],
)
def test_a_draft_that_was_edited_wrongly_is_not_signed(
    alliance: AllianceInProcess,
    base: wire.ModelVersion,
    described: Mapping[str, wire.Dataset],
    tmp_path: Path,
    file: str,
    text: str,
    code: str,
) -> None:
    home, client = owner_of(alliance)
    draft_plan(client, tmp_path / "draft", f"{base.name}@1", terms_over(described))
    (tmp_path / "draft" / file).write_text(text)
    before = len(list(home.statements("plan")))
    with pytest.raises(FedhubError) as caught:
        submit_draft(home, client, read_draft(tmp_path / "draft"))
    assert caught.value.code == code
    assert len(list(home.statements("plan"))) == before


def test_a_plan_that_needs_more_participants_than_it_has_is_not_drafted(
    alliance: AllianceInProcess,
    base: wire.ModelVersion,
    described: Mapping[str, wire.Dataset],
    tmp_path: Path,
) -> None:
    home, client = owner_of(alliance)
    draft = draft_plan(
        client, tmp_path / "draft", f"{base.name}@1", terms_over(described, min_participants=3)
    )
    with pytest.raises(Rejected) as caught:
        check_draft(home, draft)
    assert "minParticipants" in caught.value.message


# --- approving, granting, revoking ----------------------------------------------------------------------------------


def test_a_release_waits_for_the_approvals_that_its_plan_asks_for(
    alliance: AllianceInProcess, finished: Journey
) -> None:
    home, client = owner_of(alliance)
    version, _chain = finish_run(home, client, finished.id)
    assert approvals_of(home, client, version).missing == 1
    with pytest.raises(Refused) as caught:
        publish_release(home, client, version)
    assert caught.value.code == "E_APPROVALS"
    assert all(lab in caught.value.hint for lab in LABS)
    assert client.version(version.name, version.version).released is False


def test_a_version_without_a_plan_is_never_released(
    alliance: AllianceInProcess, base: wire.ModelVersion
) -> None:
    home, client = owner_of(alliance)
    with pytest.raises(Refused) as caught:
        publish_release(home, client, base)
    assert caught.value.code == "E_APPROVALS"


def test_a_delegated_grant_keeps_the_terms_and_the_end_of_the_one_above(
    alliance: AllianceInProcess, base: wire.ModelVersion
) -> None:
    home, client = owner_of(alliance)
    duo = ["DUO:0000042"]
    above = issue_grant(home, client, base.asset_id, FIRM, ["pull"], days=2, duo=duo, depth=1)
    firm = alliance.homes[FIRM]
    with alliance.as_(FIRM) as holder:
        below = issue_grant(firm, holder, base.asset_id, LABS[0], ["pull"], days=30, parent=above.id)
    upper, lower = (read_statement(open_envelope(each.bundle.encode())).predicate for each in (above, below))
    assert lower["conditions"] == upper["conditions"] == {"duo": duo}
    assert lower["expires"] == upper["expires"]
    assert lower["parent"] == above.id


def test_a_status_list_repeats_what_was_revoked_and_its_number_grows(
    alliance: AllianceInProcess, base: wire.ModelVersion
) -> None:
    import time

    home, client = owner_of(alliance)
    grant = issue_grant(home, client, base.asset_id, FIRM, ["pull"], days=2)
    revoke(home, client, grant.id, reason="withdrawn")
    with alliance.as_(OWNER, "snapshot") as machine:
        first = post_status(home, machine, next_update=int(time.time()) + 600)
        second = post_status(home, machine, next_update=int(time.time()) + 600)
    said = read_statement(open_envelope(client.statement(second.id).bundle.encode())).predicate
    assert grant.id in said["revoked"]
    assert second.sequence == first.sequence + 1 == said["sequence"]


def test_everything_an_owner_signed_is_kept_in_its_home(
    alliance: AllianceInProcess, base: wire.ModelVersion
) -> None:
    home, client = owner_of(alliance)
    grant = issue_grant(home, client, base.asset_id, FIRM, ["pull"], days=3)
    revoke(home, client, grant.id, reason="withdrawn")
    kinds = {statement.kind for statement, _raw in home.statements()}
    assert {"asset", "grant", "revocation"} <= kinds
    for path in (home.path / "statements").iterdir():
        assert json.loads(path.read_text())["mediaType"]
        assert os.stat(path).st_size < 1 << 20


def test_the_operator_is_known_by_its_pin_and_not_by_its_name(alliance: AllianceInProcess) -> None:
    assert alliance.homes[OWNER].pins[OPERATOR] == alliance.operator.ring.pin
