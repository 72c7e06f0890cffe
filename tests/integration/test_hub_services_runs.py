"""Runs and rounds: nothing starts without consent, every round counts once, and every stop says why."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from federation import wire
from federation.client import HubClient
from federation.sending import send_file
from hub.services import run_updates
from hub.services.garbage import sweep
from hub.tables import BlobRow, RoundRow, RunRow, UploadRow
from storage.blobs import FolderStore
from storage.encoding import format_time
from storage.errors import FedhubError, Refused
from storage.signing import check_signature, open_envelope
from storage.statements import read_statement
from tests.alliances import BASE, ENGINES, FIRM, LABS, OWNER, Journey, Setting, digest, open_alliance, weights
from tests.hubs import OPERATOR


def refused(code: str, call: Any, /, *arguments: Any, **options: Any) -> FedhubError:
    with pytest.raises(FedhubError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code, caught.value
    return caught.value


@pytest.fixture(scope="module", params=ENGINES)
def setting(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Setting]:
    with open_alliance(tmp_path_factory.mktemp("runs"), request.param, superlink="external") as opened:
        yield Setting(opened)


def blob(setting: Setting, sha256: str) -> BlobRow | None:
    with setting.alliance.hub.database.session_scope(write=False) as session:
        return session.get(BlobRow, sha256)


# --- starting -------------------------------------------------------------------------------------------


def test_run_without_enough_consents_is_refused_and_names_who_is_missing(setting: Setting) -> None:
    journey = setting.plan((LABS[0],), least=2)
    with setting.alliance.as_(LABS[1]) as lab:
        lab.decline(journey.id, "not this year")
    with setting.alliance.as_(OWNER) as owner:
        error = refused("E_CONSENT", owner.start_run, journey.id)
        assert isinstance(error, Refused) and error.status == 409
        assert "not this year" in error.message and f"{LABS[2]} (no answer)" in error.message
        assert LABS[0] not in error.message
        refused("E_NOT_FOUND", owner.run, journey.id)
        journey.consents[LABS[2]] = setting.alliance.consent(LABS[2], journey.plan)
        assert owner.start_run(journey.id).state == "starting"


def test_consents_to_one_plan_start_no_second_plan(setting: Setting) -> None:
    first = setting.plan()
    second = setting.alliance.submit(setting.base, setting.datasets, rounds=3)
    with setting.alliance.as_(OWNER) as owner:
        assert owner.start_run(first.id).state == "starting"
        error = refused("E_CONSENT", owner.start_run, second.id)
    assert all(lab in error.message for lab in LABS)


def test_consent_taken_back_before_the_start_is_missing(setting: Setting) -> None:
    journey = setting.plan(LABS[:2], least=2)
    subject = [("grant.sigstore.json", journey.consents[LABS[0]])]
    setting.alliance.say(LABS[0], "revocation", subject, {"target": "statement", "reason": "withdrawn"})
    with setting.alliance.as_(OWNER) as owner:
        refused("E_CONSENT", owner.start_run, journey.id)


def test_plan_has_one_run(setting: Setting) -> None:
    journey = setting.running()
    with setting.alliance.as_(OWNER) as owner:
        again = owner.start_run(journey.id)
    assert (again.state, again.attempt) == ("running", 1)
    with setting.alliance.hub.database.session_scope(write=False) as session:
        assert len(session.exec(select(RunRow).where(RunRow.plan == journey.id)).all()) == 1


def test_only_the_owner_steers_a_run(setting: Setting) -> None:
    journey = setting.plan()
    with setting.alliance.as_(LABS[0]) as lab, setting.alliance.as_(FIRM) as firm:
        refused("E_ACCESS", lab.start_run, journey.id)
        refused("E_NOT_FOUND", firm.start_run, journey.id)
        with setting.alliance.as_(OWNER) as owner:
            owner.start_run(journey.id)
        refused("E_ACCESS", lab.cancel_run, journey.id)
        refused("E_NOT_FOUND", firm.run, journey.id)
        assert lab.run(journey.id).state == "starting"
        assert journey.id in {run.plan for run in lab.runs()} and firm.runs() == []


def test_run_without_lab_agents_is_refused(tmp_path: Path) -> None:
    with open_alliance(tmp_path, superlink="external") as alliance:
        base = alliance.push({"model.safetensors": BASE})
        plan = alliance.submit(base, {lab: alliance.describe(lab) for lab in LABS[:2]})
        for lab in LABS[:2]:
            alliance.consent(lab, plan)
        with alliance.as_(OWNER) as owner:
            error = refused("E_SITE", owner.start_run, plan.id)
    assert LABS[0] in error.message and "site up" in error.hint


def test_hub_without_superlink_starts_no_run(tmp_path: Path) -> None:
    with open_alliance(tmp_path, superlink="off", members=(OWNER, *LABS[:2])) as alliance:
        base = alliance.push({"model.safetensors": BASE})
        plan = alliance.submit(base, {lab: alliance.describe(lab) for lab in LABS[:2]})
        with alliance.as_(OWNER) as owner:
            refused("E_CONTROL", owner.start_run, plan.id)


# --- work and orders ------------------------------------------------------------------------------------


def test_first_work_is_round_one_from_the_base_weights_at_the_consenting_sites(setting: Setting) -> None:
    journey = setting.plan(LABS[:2])
    with setting.alliance.as_(OWNER) as owner:
        owner.start_run(journey.id)
    journey.supervise().release()
    work = journey.work()
    assert (work.attempt, work.next_round, work.rounds, work.min_participants) == (1, 1, 2, 2)
    assert work.config == journey.plan.config
    assert {site.institution: site.node_id for site in work.sites} == {
        lab: setting.nodes[lab] for lab in LABS[:2]
    }
    assert work.input.sha256 == digest(BASE)
    assert httpx.get(work.input.url, trust_env=False).content == BASE
    assert journey.run().state == "running"


def test_orders_are_signed_by_the_operator_for_each_consenting_site(setting: Setting) -> None:
    journey = setting.running()
    orders = journey.orders(1, digest(BASE)).orders
    assert set(orders) == set(setting.datasets.values())
    key = setting.alliance.operator.key("snapshot").public_key()
    for dataset, bundle in orders.items():
        envelope = open_envelope(bundle.encode())
        check_signature(key, envelope)
        order = read_statement(envelope)
        said = order.predicate
        assert (order.kind, order.issuer, order.subject) == ("order", OPERATOR, digest(BASE))
        assert (said["plan"], said["site"], said["action"]) == (journey.id, dataset, "train")
        assert (said["round"], said["input"]) == (1, digest(BASE))
    assert journey.run().deadline is not None
    with setting.alliance.client(setting.alliance.operator) as operator:
        assert not list(operator.all_statements(kind="order"))


def test_consent_that_ends_before_this_round_gets_no_order(setting: Setting) -> None:
    journey = setting.plan(LABS[:2])
    journey.consents[LABS[2]] = setting.alliance.consent(LABS[2], journey.plan, maxRounds=1)
    with setting.alliance.as_(OWNER) as owner:
        owner.start_run(journey.id)
    journey.supervise().release()
    journey.work()
    assert len(journey.orders(1, digest(BASE)).orders) == 3
    told = journey.reports(1, digest(BASE))
    journey.report(told)
    assert set(journey.orders(2, told.aggregate).orders) == {setting.datasets[lab] for lab in LABS[:2]}


def test_order_for_another_round_input_or_time_is_refused(setting: Setting) -> None:
    journey = setting.running()
    refused("E_ROUND", journey.orders, 2, digest(BASE))
    refused("E_ROUND", journey.orders, 1, "0" * 64)
    refused("E_ROUND", journey.orders, 1, "0" * 64, action="evaluate")
    assert len(journey.orders(1, digest(BASE), action="evaluate").orders) == 3
    refused("E_FIELD", journey.orders, 1, digest(BASE), deadline=format_time(int(time.time()) - 1))
    refused("E_FIELD", journey.orders, 1, digest(BASE), deadline=format_time(int(time.time()) + 3600))
    refused("E_FIELD", journey.orders, 1, digest(BASE), deadline="tomorrow")
    refused("E_ATTEMPT", journey.orders, 1, digest(BASE), attempt=2)


def test_site_that_takes_its_consent_back_gets_no_further_order(setting: Setting) -> None:
    journey = setting.running()
    subject = [("grant.sigstore.json", journey.consents[LABS[0]])]
    setting.alliance.say(LABS[0], "revocation", subject, {"target": "statement", "reason": "withdrawn"})
    assert setting.datasets[LABS[0]] not in journey.orders(1, digest(BASE)).orders
    with setting.alliance.as_(LABS[0], "snapshot") as lab:
        refused("E_NOT_FOUND", lab.weights, journey.id, digest(BASE))


def test_coordinators_routes_are_for_the_coordinator_alone(setting: Setting) -> None:
    journey = setting.running()
    for name in (OWNER, LABS[0], FIRM):
        with setting.alliance.as_(name) as client:
            refused("E_ACCESS", client.work, journey.id)
            refused("E_ACCESS", client.end_run, journey.id, wire.RunEnd(attempt=1, state="stopped"))
    with setting.alliance.http() as visitor:
        assert visitor.get(f"/api/v1/runs/{journey.id}/work").status_code == 401


# --- rounds ---------------------------------------------------------------------------------------------


def test_closed_round_is_signed_logged_and_the_next_begins_from_it(setting: Setting) -> None:
    journey = setting.running()
    journey.orders(1, digest(BASE))
    told = journey.reports(1, digest(BASE))
    record = journey.report(told)
    statement = read_statement(open_envelope(record.bundle.encode()))
    assert (record.kind, record.issuer, statement.subject) == ("round", OPERATOR, told.aggregate)
    assert statement.predicate["receipts"] == told.receipts and "previous" not in statement.predicate
    work = journey.work()
    assert (work.next_round, work.input.sha256) == (2, told.aggregate)
    second = journey.reports(2, told.aggregate, LABS[:2])
    closed = read_statement(open_envelope(journey.report(second).bundle.encode()))
    assert closed.predicate["previous"] == record.id
    run = journey.end("finished")
    assert (run.state, [one.round for one in run.rounds]) == ("finished", [1, 2])
    assert run.rounds[0].sites[LABS[0]] == {"accuracy": 0.5, "examples": 10}
    assert run.rounds[0].metrics == {"accuracy": 0.5} and run.rounds[1].receipts == second.receipts
    assert run.ended_at is not None and run.reason is None
    assert journey.run(LABS[2]).state == "finished"


def test_same_report_twice_gets_the_first_answer(setting: Setting) -> None:
    journey = setting.running()
    told = journey.reports(1, digest(BASE))
    first = journey.report(told)
    assert journey.report(told) == first
    changed = told.model_copy(update={"receipts": told.receipts[:2], "sites": {}})
    refused("E_ROUND", journey.report, changed)
    assert journey.kinds().count("round.closed") == 1
    with setting.alliance.hub.database.session_scope(write=False) as session:
        assert len(session.exec(select(RoundRow).where(RoundRow.plan == journey.id)).all()) == 1


def test_receipt_of_another_round_input_or_plan_keeps_a_round_open(setting: Setting) -> None:
    journey, other = setting.running(), setting.running()
    strange = other.reports(1, digest(BASE))
    told = journey.reports(1, digest(BASE))

    def with_receipts(receipts: list[str]) -> wire.RoundReport:
        return told.model_copy(update={"receipts": receipts, "sites": {}})

    refused("E_PARTICIPANTS", journey.report, with_receipts(strange.receipts))
    refused("E_PARTICIPANTS", journey.report, with_receipts([told.receipts[0], "0" * 64]))
    refused("E_PARTICIPANTS", journey.report, with_receipts([told.receipts[0], told.receipts[0]]))
    refused("E_PARTICIPANTS", journey.report, with_receipts(told.receipts[:1]))
    assert journey.run().rounds == []
    assert journey.report(told).kind == "round"


def test_report_of_a_round_that_is_not_next_is_refused(setting: Setting) -> None:
    journey = setting.running()
    told = journey.reports(1, digest(BASE))
    refused("E_ROUND", journey.report, told.model_copy(update={"round": 2}))
    refused("E_ROUND", journey.report, told.model_copy(update={"input": "0" * 64}))


def test_aggregate_that_nobody_uploaded_is_refused(setting: Setting) -> None:
    journey = setting.running()
    told = journey.reports(1, digest(BASE))
    error = refused("E_AGGREGATE", journey.report, told.model_copy(update={"aggregate": "0" * 64}))
    assert "not announced" in error.message
    refused("E_AGGREGATE", journey.report, told.model_copy(update={"size": told.size + 1}))
    with setting.alliance.as_(LABS[0], "snapshot") as lab:
        data = weights(66)
        setting.alliance.send(lab, data, plan=journey.id)
    by_lab = told.model_copy(update={"aggregate": digest(data), "size": len(data)})
    refused("E_AGGREGATE", journey.report, by_lab)


def left_open(client: HubClient, folder: Path, data: bytes, plan: str) -> wire.Upload:
    """Bytes that the store has under an order, which the hub has not heard of."""
    path = folder / f"open-{digest(data)[:8]}"
    path.write_bytes(data)
    return send_file(client, path, plan=plan, known=(digest(data), len(data)), settled=False)


def test_a_report_completes_the_upload_of_its_aggregate(setting: Setting) -> None:
    journey, made = setting.running(), weights(77)
    told = journey.reports(1, digest(BASE), aggregate=digest(made), size=len(made))
    with setting.alliance.coordinator() as coordinator:
        announced = coordinator.upload(digest(made), len(made), plan=journey.id)
        assert "open, " in refused("E_AGGREGATE", journey.report, told).message
        sent = left_open(coordinator, setting.alliance.folder, made, journey.id)
    assert (sent.id, sent.state) == (announced.id, "open")
    journey.report(told)
    assert blob(setting, digest(made)) is not None


def test_a_coordinator_beside_a_folder_store_leaves_its_aggregate_there(setting: Setting) -> None:
    if not isinstance(setting.alliance.store, FolderStore):
        pytest.skip("an S3 store is no folder")
    journey, made, other = setting.running(), weights(87), weights(88)
    with setting.alliance.coordinator() as coordinator:
        wrong = coordinator.upload(digest(other), len(other), plan=journey.id)
        assert wrong.file is not None
        Path(wrong.file).write_bytes(made)
        refused("E_DIGEST", coordinator.upload_complete, wrong.id)
        assert not Path(wrong.file).exists() and blob(setting, digest(other)) is None
        refused("E_INCOMPLETE", coordinator.upload_complete, wrong.id)
        upload = coordinator.upload(digest(made), len(made), plan=journey.id)
        assert upload.file is not None
        Path(upload.file).write_bytes(made)
        assert coordinator.upload_complete(upload.id).state == "stored"
        assert coordinator.upload_complete(upload.id).state == "stored"
    found = blob(setting, digest(made))
    assert found is not None and (found.checked_by, setting.alliance.store.get(found.key)) == ("hub", made)
    journey.report(journey.reports(1, digest(BASE), aggregate=digest(made), size=len(made)))


def test_only_the_coordinator_hears_where_a_file_lies_on_the_hubs_machine(setting: Setting) -> None:
    journey, made = setting.running(), weights(89)
    with setting.alliance.as_(LABS[0], "snapshot") as lab:
        assert lab.upload(digest(made), len(made), plan=journey.id).file is None
        setting.alliance.send(lab, made, plan=journey.id)
        assert lab.weights(journey.id, digest(BASE)).file is None
    with setting.alliance.coordinator() as coordinator:
        found = coordinator.updates(journey.id, [digest(made)])[digest(made)]
    if isinstance(setting.alliance.store, FolderStore):
        assert found.file is not None and Path(found.file).read_bytes() == made
    else:
        assert found.file is None


def test_a_file_that_the_hub_has_yet_to_read_is_to_be_fetched(setting: Setting) -> None:
    journey, made = setting.running(), weights(90)
    with setting.alliance.as_(LABS[0], "snapshot") as lab:
        left_open(lab, setting.alliance.folder, made, journey.id)
    with setting.alliance.hub.database.session_scope() as session:
        row = session.exec(select(UploadRow).where(UploadRow.sha256 == digest(made))).one()
        row.state = "checking"  # as one of several parts is
    with setting.alliance.coordinator() as coordinator:
        found = coordinator.updates(journey.id, [digest(made)])[digest(made)]
    assert found.file is None
    assert httpx.get(found.url, trust_env=False).content == made


def receipt_of(setting: Setting, journey: Journey, update: str) -> bytes:
    home, consent = setting.alliance.homes[LABS[0]], journey.consents[LABS[0]]
    members = {"action": "train", "grant": consent, "plan": journey.id, "round": 1, "examples": 5}
    return home.sign("receipt", [("update.safetensors", update)], {**members, "input": digest(BASE)})


def test_an_update_announced_with_its_receipt_is_there_once_its_bytes_are(setting: Setting) -> None:
    journey, made = setting.running(), weights(78)
    update, asked = digest(made), wire.UploadRequest(sha256=digest(made), size=len(made), plan=journey.id)
    path = setting.alliance.folder / "announced"
    path.write_bytes(made)
    with setting.alliance.as_(LABS[0], "snapshot") as lab, setting.alliance.coordinator() as coordinator:
        bundle = receipt_of(setting, journey, update)
        first = lab.post_statement(bundle, announces=asked)
        assert first.upload is not None and first.upload.state == "open"
        again = lab.post_statement(bundle, announces=asked)  # after a crash, say
        assert again.upload is not None and (again.id, again.upload.id) == (first.id, first.upload.id)
        assert coordinator.updates(journey.id, [update]) == {}
        known = (update, len(made))
        sent = send_file(lab, path, plan=journey.id, known=known, announced=first.upload, settled=False)
        assert sent.state == "open" and blob(setting, update) is None
        assert coordinator.updates(journey.id, [update])[update].receipts == [first.id]
        assert blob(setting, update) is not None
        third = lab.post_statement(bundle, announces=asked)
        assert third.upload is not None and third.upload.state == "stored"


def test_updates_of_the_same_bytes_become_one_blob(setting: Setting) -> None:
    journey, made = setting.running(), weights(79)
    with setting.alliance.coordinator() as coordinator:
        for name in LABS[:2]:
            with setting.alliance.as_(name, "snapshot") as lab:
                left_open(lab, setting.alliance.folder, made, journey.id)
        found = coordinator.updates(journey.id, [digest(made)])[digest(made)]
    assert httpx.get(found.url, trust_env=False).content == made
    with setting.alliance.hub.database.session_scope(write=False) as session:
        rows = session.exec(select(UploadRow).where(UploadRow.sha256 == digest(made))).all()
    kept = [row.key for row in rows if setting.alliance.store.size(row.key) is not None]
    assert [row.state for row in rows] == ["stored", "stored"] and len(kept) == 1


@pytest.mark.parametrize(
    ("code", "changes"),
    [("E_FIELD", {"plan": None}), ("E_ACCESS", {"plan": "0" * 64}), ("E_LIMIT", {"size": 1 << 60})],
)
def test_a_receipt_is_not_logged_without_what_it_announces(
    setting: Setting, code: str, changes: dict[str, Any]
) -> None:
    journey, made = setting.running(), weights(80)
    told = {"sha256": digest(made), "size": len(made), "plan": journey.id, **changes}
    bundle = receipt_of(setting, journey, digest(made))
    with setting.alliance.as_(LABS[0], "snapshot") as lab:
        refused(code, lab.post_statement, bundle, announces=wire.UploadRequest.model_validate(told))
        assert open_envelope(bundle).id not in {one.id for one in lab.all_statements(kind="receipt")}


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"accuracy": 1e400}},
        {"seconds": -1.0},
        {"metrics": {str(number): 1 for number in range(65)}},
        {"sites": {str(number): {"a": 1} for number in range(4)}},
        {"sites": {LABS[0]: {"note": "x" * 501}}},
    ],
)
def test_figures_out_of_bounds_are_refused(setting: Setting, changes: dict[str, Any]) -> None:
    told = wire.RoundReport(
        attempt=1, round=1, input="0" * 64, aggregate="0" * 64, size=1, receipts=["1" * 64, "2" * 64, "3" * 64],
        seconds=1.0, sites={}, metrics={},
    )  # fmt: skip
    token = setting.alliance.hub.keys.coordinator_token
    with setting.alliance.http(token=token) as http:
        body = (told.model_copy(update=changes)).model_dump_json().replace("Infinity", "1e400")
        answer = http.post(
            f"/api/v1/runs/{'0' * 64}/rounds", content=body, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 422, answer.text


def test_stale_attempt_is_refused_whatever_it_says(setting: Setting) -> None:
    journey = setting.running()
    told = journey.reports(1, digest(BASE))
    with setting.alliance.hub.database.session_scope() as session:
        run = session.get_one(RunRow, journey.id)
        run.attempt = 2
        session.add(run)
    for call, argument in (
        (journey.report, told),
        (lambda told: journey.end("stopped", told), "x"),
        (lambda number: journey.orders(number, digest(BASE)), 1),
    ):
        error = refused("E_ATTEMPT", call, argument)
        assert isinstance(error, Refused) and error.status == 409
    journey.attempt = 2
    assert journey.report(told.model_copy(update={"attempt": 2})).kind == "round"
    refused("E_ATTEMPT", journey.report, told)


def test_updates_are_dropped_once_folded_in_and_aggregates_stay(setting: Setting) -> None:
    journey = setting.running(keep_updates=False)
    told = journey.reports(1, digest(BASE))
    with setting.alliance.hub.database.session_scope(write=False) as session:
        rows = session.exec(select(UploadRow).where(UploadRow.plan == journey.id)).all()
        updates = {row.sha256 for row in rows} - {told.aggregate}
        keys = {session.get_one(BlobRow, sha256).key for sha256 in updates}
    assert len(updates) == 3
    journey.report(told)
    assert all(blob(setting, sha256) is None for sha256 in updates)
    assert all(setting.alliance.store.size(key) is None for key in keys)
    assert blob(setting, told.aggregate) is not None and blob(setting, digest(BASE)) is not None


def test_updates_stay_when_the_plan_keeps_them(setting: Setting) -> None:
    journey = setting.running(keep_updates=True)
    told = journey.reports(1, digest(BASE))
    journey.report(told)
    run_updates.drop(setting.alliance.hub, "0" * 64)
    with setting.alliance.hub.database.session_scope(write=False) as session:
        rows = session.exec(select(UploadRow).where(UploadRow.plan == journey.id)).all()
    assert len(rows) == 4 and all(blob(setting, row.sha256) is not None for row in rows)


def test_update_that_is_also_a_versions_file_is_not_dropped(setting: Setting) -> None:
    journey = setting.running(keep_updates=False)
    data = weights(3, 1, 4, 1, 5)
    with setting.alliance.as_(LABS[0], "snapshot") as lab:
        setting.alliance.send(lab, data, plan=journey.id)
    setting.alliance.push({"model.safetensors": data}, f"{OWNER}/coincidence")
    run_updates.drop(setting.alliance.hub, journey.id)
    found = blob(setting, digest(data))
    assert found is not None and setting.alliance.store.get(found.key) == data


def test_run_that_is_over_takes_no_uploads(setting: Setting) -> None:
    journey = setting.running()
    journey.end("stopped", "for a test")
    with setting.alliance.as_(LABS[0], "snapshot") as lab:
        refused("E_RUN", lab.upload, "0" * 64, 10, plan=journey.id)
    with setting.alliance.as_(FIRM, "snapshot") as firm:
        refused("E_ACCESS", firm.upload, "0" * 64, 10, plan=journey.id)


# --- weights --------------------------------------------------------------------------------------------


def test_weights_are_for_owner_consenting_participants_and_coordinator(setting: Setting) -> None:
    journey = setting.plan(LABS[:2])
    with setting.alliance.as_(LABS[0]) as lab:
        refused("E_NOT_FOUND", lab.weights, journey.id, digest(BASE))
    with setting.alliance.as_(OWNER) as owner:
        owner.start_run(journey.id)
    journey.supervise().release()
    journey.work()
    update, _ = setting.alliance.train(LABS[0], journey.plan, journey.consents[LABS[0]], 1, digest(BASE))

    def location(client: HubClient, sha256: str) -> bytes:
        found = client.weights(journey.id, sha256)
        return httpx.get(found.url, trust_env=False).content

    with setting.alliance.as_(OWNER) as owner, setting.alliance.as_(LABS[0], "snapshot") as lab:
        assert location(owner, digest(BASE)) == location(lab, digest(BASE)) == BASE
        refused("E_NOT_FOUND", owner.weights, journey.id, update)
        refused("E_NOT_FOUND", lab.weights, journey.id, update)
    with setting.alliance.coordinator() as coordinator:
        (found,) = coordinator.updates(journey.id, [update, "0" * 64]).values()
        assert digest(httpx.get(found.url, trust_env=False).content) == update
        assert location(coordinator, digest(BASE)) == BASE
        refused("E_NOT_FOUND", coordinator.weights, journey.id, update)
    for name in (LABS[2], FIRM):
        with setting.alliance.as_(name, "snapshot") as other:
            refused("E_NOT_FOUND", other.weights, journey.id, digest(BASE))
    with setting.alliance.client(setting.alliance.operator) as operator:
        refused("E_NOT_FOUND", operator.weights, journey.id, digest(BASE))


def test_weights_that_lie_in_parts_are_told_with_their_parts(setting: Setting) -> None:
    journey, parts = setting.running(), ["1" * 64, "2" * 64]
    with setting.alliance.as_(OWNER) as owner:
        assert owner.weights(journey.id, digest(BASE)).parts is None
        note_parts(setting, digest(BASE), parts)
        try:
            assert owner.weights(journey.id, digest(BASE)).parts == parts
        finally:
            note_parts(setting, digest(BASE), None)


def note_parts(setting: Setting, sha256: str, parts: list[str] | None) -> None:
    with setting.alliance.hub.database.session_scope() as session:
        session.get_one(BlobRow, sha256).parts = parts


def test_the_coordinator_hears_which_receipts_of_an_update_are_logged(setting: Setting) -> None:
    journey = setting.running()
    update, receipt = setting.alliance.train(
        LABS[0], journey.plan, journey.consents[LABS[0]], 1, digest(BASE)
    )
    with setting.alliance.as_(LABS[1], "snapshot") as lab:
        unsigned = weights(5, 6, 7)
        setting.alliance.send(lab, unsigned, plan=journey.id)
    with setting.alliance.coordinator() as coordinator:
        found = coordinator.updates(journey.id, [update, digest(unsigned)])
    assert {sha256: one.receipts for sha256, one in found.items()} == {
        update: [receipt],
        digest(unsigned): [],
    }
    with setting.alliance.as_(OWNER) as owner:
        assert owner.weights(journey.id, digest(BASE)).receipts == []
        refused("E_ACCESS", owner.updates, journey.id, [update])


@pytest.mark.parametrize("keeps", [True, False])
def test_updates_that_a_plan_keeps_are_for_its_owner_and_the_operator_once_counted(
    setting: Setting, keeps: bool
) -> None:
    journey = setting.running(keep_updates=keeps)
    told = journey.reports(1, digest(BASE))
    with setting.alliance.as_(OWNER) as owner:
        receipts = {one.id: one for one in owner.all_statements(kind="receipt", plan=journey.id)}
    update = read_statement(open_envelope(receipts[told.receipts[0]].bundle.encode())).subject
    with setting.alliance.as_(OWNER) as owner:
        refused("E_NOT_FOUND", owner.weights, journey.id, update)  # its round is open
    journey.report(told)
    operator = setting.alliance.client(setting.alliance.operator)
    with setting.alliance.as_(OWNER) as owner, operator, setting.alliance.as_(LABS[1]) as lab:
        for client in (owner, operator):
            if keeps:
                found = client.weights(journey.id, update)
                assert digest(httpx.get(found.url, trust_env=False).content) == update
                assert client.weights(journey.id, told.aggregate).sha256 == told.aggregate
            else:
                refused("E_NOT_FOUND", client.weights, journey.id, update)
        refused("E_NOT_FOUND", lab.weights, journey.id, update)


def test_updates_that_a_plan_keeps_outlive_its_run(setting: Setting) -> None:
    journey = setting.running(rounds=1, keep_updates=True)
    told = journey.reports(1, digest(BASE))
    journey.report(told)
    journey.end("finished")
    with setting.alliance.as_(OWNER) as owner:
        receipts = {one.id: one for one in owner.all_statements(kind="receipt", plan=journey.id)}
        update = read_statement(open_envelope(receipts[told.receipts[0]].bundle.encode())).subject
        sweep(setting.alliance.hub, now=int(time.time()) + 400 * 86_400)
        assert owner.weights(journey.id, update).sha256 == update


def server_state(setting: Setting, journey: Journey, data: bytes) -> wire.StoredFile:
    with setting.alliance.coordinator() as coordinator:
        setting.alliance.send(coordinator, data, plan=journey.id)
    return wire.StoredFile(sha256=digest(data), size=len(data))


def test_a_round_names_the_state_that_the_next_attempt_goes_on_from(setting: Setting) -> None:
    journey = setting.running(keep_updates=False)
    first = server_state(setting, journey, weights(1.5, 2.5))
    told = journey.reports(1, digest(BASE), state={"momentum": first})
    journey.report(told)
    work = journey.work()
    assert set(work.state) == {"momentum"} and work.state["momentum"].sha256 == first.sha256
    found = httpx.get(work.state["momentum"].url, trust_env=False).content
    assert digest(found) == first.sha256
    run_updates.drop(setting.alliance.hub, journey.id)  # as after a stop
    assert blob(setting, first.sha256) is not None
    second = server_state(setting, journey, weights(3.5, 4.5))
    journey.report(journey.reports(2, told.aggregate, state={"momentum": second}))
    assert blob(setting, first.sha256) is None
    assert blob(setting, second.sha256) is not None


def test_a_state_that_nobody_uploaded_or_with_a_strange_name_is_refused(setting: Setting) -> None:
    journey = setting.running()
    state = {"momentum": wire.StoredFile(sha256="9" * 64, size=9)}
    told = journey.reports(1, digest(BASE), state=state)
    error = refused("E_AGGREGATE", journey.report, told)
    assert "state 'momentum'" in error.message
    strange = told.model_copy(update={"state": {"../x": state["momentum"]}})
    assert refused("E_FIELD", journey.report, strange).field == "state"  # type: ignore[attr-defined]
    assert journey.run().rounds == []


# --- events ---------------------------------------------------------------------------------------------


def tell(journey: Journey, kind: str, **data: Any) -> None:
    with journey.alliance.coordinator() as coordinator:
        told = wire.EventReport(attempt=journey.attempt, kind=kind, data=data)
        coordinator.report_events(journey.id, told)


def test_events_tell_the_run_in_order(setting: Setting) -> None:
    journey = setting.running()
    journey.orders(1, digest(BASE))
    tell(journey, "site.replied", institution=LABS[0], round=1, seconds=0.5)
    tell(journey, "coordinator.alive")
    journey.report(journey.reports(1, digest(BASE)))
    journey.end("stopped", "enough")
    assert journey.kinds() == [
        "run.started",
        "attempt.started",
        "round.opened",
        "site.replied",
        "round.closed",
        "run.ended",
    ]
    with setting.alliance.as_(LABS[0]) as lab:
        everything = lab.events(journey.id)
        assert [event.id for event in lab.events(journey.id, after=everything[2].id)] == [
            event.id for event in everything[3:]
        ]
        assert everything[3].data == {"institution": LABS[0], "round": 1, "seconds": 0.5}
        assert everything[4].data["metric.accuracy"] == 0.5


def test_coordinator_reports_only_its_own_kinds_of_event(setting: Setting) -> None:
    journey = setting.running()
    for kind in ("run.ended", "round.closed", "no.such", ""):
        refused("E_FIELD", tell, journey, kind)
    refused("E_FIELD", tell, journey, "site.late", note="x" * 501)
    refused("E_FIELD", tell, journey, "site.late", **{f"m{number}": 1 for number in range(65)})


def test_events_stream_until_the_run_has_ended(setting: Setting) -> None:
    journey = setting.running()
    journey.end("stopped", "enough")
    with setting.alliance.as_(OWNER) as owner:
        token = owner._token()
    with setting.alliance.http(token=token) as http:
        answer = http.get(f"/api/v1/runs/{journey.id}/events", headers={"Accept": "text/event-stream"})
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.text.split("\n")
        again = http.get(
            f"/api/v1/runs/{journey.id}/events",
            headers={"Accept": "text/event-stream", "Last-Event-ID": lines[2].removeprefix("id: ")},
        )
    assert [line for line in lines if line.startswith("event: ")] == [
        "event: run.started",
        "event: attempt.started",
        "event: run.ended",
        "event: end",
    ]
    assert "run.started" not in again.text and "run.ended" in again.text
    with setting.alliance.as_(FIRM) as firm:
        refused("E_NOT_FOUND", firm.events, journey.id)


# --- ends -----------------------------------------------------------------------------------------------


def test_stopped_run_says_why_and_goes_on_from_its_last_aggregate(setting: Setting) -> None:
    journey = setting.running()
    told = journey.reports(1, digest(BASE))
    journey.report(told)
    stopped = journey.end("stopped", "quorum not met: 1 of 2 replied")
    assert stopped.state == "stopped" and stopped.reason is not None
    assert "quorum not met" in stopped.reason and "fedhub run resume" in stopped.reason
    assert journey.end("stopped", "again") == stopped
    refused("E_RUN", journey.work)
    with setting.alliance.as_(OWNER) as owner:
        assert owner.resume_run(journey.id).state == "starting"
        assert owner.resume_run(journey.id).reason is None
    refused("E_ATTEMPT", journey.work)
    supervisor = journey.supervise()
    supervisor.look()
    supervisor.release()
    work = journey.work()
    assert (work.attempt, work.next_round, work.input.sha256) == (2, 2, told.aggregate)


def test_resume_needs_consents_as_a_start_does(setting: Setting) -> None:
    journey = setting.running(labs=LABS[:2], least=2)
    journey.end("stopped", "for a test")
    subject = [("grant.sigstore.json", journey.consents[LABS[0]])]
    setting.alliance.say(LABS[0], "revocation", subject, {"target": "statement", "reason": "withdrawn"})
    with setting.alliance.as_(OWNER) as owner:
        refused("E_CONSENT", owner.resume_run, journey.id)


def test_run_cannot_finish_before_its_last_round(setting: Setting) -> None:
    journey = setting.running()
    refused("E_ROUND", journey.end, "finished")
    assert journey.run().state == "running"


def test_cancelled_run_is_over_for_good(setting: Setting) -> None:
    journey = setting.running()
    with setting.alliance.as_(OWNER) as owner:
        cancelled = owner.cancel_run(journey.id)
        assert (cancelled.state, cancelled.reason is not None) == ("cancelled", True)
        assert owner.cancel_run(journey.id) == cancelled
        refused("E_RUN", owner.resume_run, journey.id)
    refused("E_RUN", journey.orders, 1, digest(BASE))


def test_refusal_of_a_site_is_shown_with_its_code(setting: Setting) -> None:
    journey = setting.running()
    order = journey.orders(1, digest(BASE)).orders[setting.datasets[LABS[0]]]
    home = setting.alliance.homes[LABS[0]]
    members = {
        "order": open_envelope(order.encode()).id,
        "plan": journey.id,
        "round": 1,
        "code": "E_BUDGET",
    }
    bundle = home.sign("refusal", [("model.safetensors", digest(BASE))], members)
    with setting.alliance.client(home, "snapshot") as lab:
        refusal = lab.post_statement(bundle).id
    run = journey.run()
    assert [(one.institution, one.round, one.code, one.statement) for one in run.refusals] == [
        (LABS[0], 1, "E_BUDGET", refusal)
    ]
    supervisor = journey.supervise()
    supervisor.look()
    supervisor.release()
    assert journey.kinds().count("site.refused") == 1
