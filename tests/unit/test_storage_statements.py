"""Every kind of statement: the good document, and each way in which a document can be wrong."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from storage.encoding import canonical, format_time, read_json
from storage.errors import Misuse, Rejected
from storage.members import CONDITIONS, TRAIN_NEEDS
from storage.signing import PAYLOAD_LIMIT_BYTES, open_envelope, sign, statement_id
from storage.statements import KINDS, Kind, Statement, compose, compose_standard, read_statement
from tests.vectors.make_vectors import (
    CONSENT,
    DAY,
    EXAMPLES,
    HUB,
    ISSUER,
    KEY,
    NONCE,
    NOW,
    at,
    digest,
    example_payload,
)

OWN = [name for name, kind in KINDS.items() if kind.own]
STANDARD = [name for name, kind in KINDS.items() if not kind.own]
OMS_URI = "https://model_signing/signature/v1.0"


def read(payload: bytes) -> Statement:
    return read_statement(open_envelope(sign(KEY, payload)))


def document(kind: str) -> dict[str, Any]:
    value: dict[str, Any] = read_json(example_payload(kind))
    return value


def composed(kind: str, subjects: list[tuple[str, str]] | None = None, **changes: Any) -> bytes:
    """The example of a kind with other members; None takes one away."""
    usual, members = EXAMPLES[kind]
    members = {name: value for name, value in {**members, **changes}.items() if value is not None}
    files = usual if subjects is None else subjects
    if not KINDS[kind].own:
        return compose_standard(kind, files, members)
    return compose(kind, files, members, issuer=ISSUER, hub=HUB, now=NOW, nonce=NONCE)


def rejected(payload: bytes, code: str = "E_STATEMENT") -> Rejected:
    with pytest.raises(Rejected) as error:
        read(payload)
    assert (error.value.code, error.value.step) == (code, "V9")
    return error.value


# --- the table ------------------------------------------------------------------------------------


def test_table_has_the_fifteen_kinds_with_their_roles() -> None:
    assert {name: (kind.role, kind.own, kind.logged) for name, kind in KINDS.items()} == {
        "keyring": ("targets", True, True),
        "asset": ("targets", True, True),
        "grant": ("targets", True, True),
        "revocation": ("targets", True, True),
        "status": ("timestamp", True, True),
        "plan": ("targets", True, True),
        "order": ("snapshot", True, False),
        "round": ("snapshot", True, True),
        "refusal": ("snapshot", True, True),
        "receipt": ("snapshot", True, True),
        "oms": ("targets", False, True),
        "provenance": ("targets", False, True),
        "test-result": ("snapshot", False, True),
        "release": ("targets", False, True),
        "verdict": ("targets", False, True),
    }


def test_uris_are_those_of_the_design() -> None:
    own = {name: f"https://fedhub.dev/{name}/v1" for name in OWN}
    assert {name: kind.uri for name, kind in KINDS.items()} == own | {
        "oms": OMS_URI,
        "provenance": "https://slsa.dev/provenance/v1",
        "test-result": "https://in-toto.io/attestation/test-result/v0.1",
        "release": "https://in-toto.io/attestation/release/v0.2",
        "verdict": "https://slsa.dev/verification_summary/v1",
    }


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_table_says_in_words_what_each_kind_and_member_is(kind: Kind) -> None:
    assert kind.text and kind.subject
    assert all(member.text for member in kind.members)
    assert len({member.name for member in kind.members}) == len(kind.members)


# --- what holds for every kind --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_example_reads_back_as_it_was_composed(kind: str) -> None:
    payload = example_payload(kind)
    statement = read(payload)
    subjects, members = EXAMPLES[kind]
    assert (statement.kind, statement.id, statement.payload) == (kind, statement_id(payload), payload)
    assert list(statement.subjects) == subjects
    assert statement.subject == subjects[0][1]
    assert members.items() <= statement.predicate.items()


@pytest.mark.parametrize("kind", OWN)
def test_own_kind_carries_the_header(kind: str) -> None:
    statement = read(example_payload(kind))
    assert (statement.issuer, statement.issued_at) == (ISSUER, NOW)
    assert statement.predicate["hub"] == HUB
    assert statement.predicate["nonce"] == NONCE


@pytest.mark.parametrize("kind", STANDARD)
def test_standard_kind_has_no_header_to_ask_for(kind: str) -> None:
    statement = read(example_payload(kind))
    with pytest.raises(Misuse):
        _ = statement.issuer
    with pytest.raises(Misuse):
        _ = statement.issued_at


def test_statement_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        read(example_payload("grant")).kind = "plan"  # type: ignore[misc]


def test_nonce_and_time_are_fresh_when_not_given() -> None:
    subjects, members = EXAMPLES["keyring"]
    first, second = (
        read(compose("keyring", subjects, members, issuer=ISSUER, hub=HUB)).predicate for _ in range(2)
    )
    assert first["nonce"] != second["nonce"]
    assert first["issuedAt"] > "2025"


@pytest.mark.parametrize("kind", OWN)
def test_unknown_member_is_rejected_never_ignored(kind: str) -> None:
    value = document(kind)
    value["predicate"]["note"] = "x"
    assert "unknown member 'note'" in rejected(canonical(value)).message


@pytest.mark.parametrize(
    ("kind", "member"),
    [(name, member.name) for name in OWN for member in KINDS[name].members if not member.optional],
)
def test_missing_member_is_rejected(kind: str, member: str) -> None:
    value = document(kind)
    del value["predicate"][member]
    assert f"member {member} is missing" in rejected(canonical(value)).message


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("member", ["issuer", "hub", "issuedAt", "nonce"])
def test_missing_or_null_header_member_is_rejected(kind: str, member: str) -> None:
    value = document(kind)
    value["predicate"][member] = None
    rejected(canonical(value))
    del value["predicate"][member]
    rejected(canonical(value))


@pytest.mark.parametrize(
    ("kind", "member"),
    [(name, member.name) for name in OWN for member in KINDS[name].members if member.name != "conditions"],
)
@pytest.mark.parametrize("wrong", [None, [], {}, "", "x y\n", -1, True, [None], {"a": 1}], ids=repr)
def test_member_of_another_type_is_rejected(kind: str, member: str, wrong: Any) -> None:
    if kind == "status" and wrong == []:
        wrong = [[]]  # an empty list of revoked things is a good one
    value = document(kind)
    value["predicate"][member] = wrong
    assert member in rejected(canonical(value)).message


@pytest.mark.parametrize("kind", OWN)
def test_own_kind_that_is_not_canonical_is_rejected(kind: str) -> None:
    payload = example_payload(kind)
    for respelled in (
        payload.replace(b":", b": ", 1),
        payload + b"\n",
        payload.replace(b"https:", b"https\\u003a", 1),
    ):
        assert "canonical" in rejected(respelled).message


@pytest.mark.parametrize("kind", STANDARD)
def test_standard_kind_may_be_spelled_and_extended_by_others(kind: str) -> None:
    import json

    value = document(kind)
    value["predicate"]["extension"] = {"score": 0.5}
    assert read(json.dumps(value, indent=1).encode()).kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_statement_needs_exactly_the_four_members_of_in_toto(kind: str) -> None:
    for member in ("_type", "subject", "predicateType", "predicate"):
        value = document(kind)
        del value[member]
        rejected(canonical(value))
    value = document(kind)
    value["extra"] = 1
    rejected(canonical(value))
    value = document(kind)
    value["_type"] = "https://in-toto.io/Statement/v0.1"
    rejected(canonical(value))


@pytest.mark.parametrize("payload", [b"null", b"[]", b'"x"', b"7", b"{}", b"", b"{", b"\xff"])
def test_payload_that_is_no_statement_is_rejected(payload: bytes) -> None:
    rejected(payload)


@pytest.mark.parametrize(
    "uri", ["https://fedhub.dev/gift/v1", "https://fedhub.dev/grant/v2", "grant", "", None, ["x"], {}]
)
def test_unknown_kind_is_rejected_by_name(uri: Any) -> None:
    value = document("grant")
    value["predicateType"] = uri
    rejected(canonical(value), "E_KIND")


@pytest.mark.parametrize(
    "subject",
    [
        None,
        [],
        {},
        [None],
        [{"name": "manifest.json"}],
        [{"name": "manifest.json", "digest": {}}],
        [{"name": "manifest.json", "digest": {"sha512": digest(1)}}],
        [{"name": "manifest.json", "digest": {"sha256": digest(1), "sha1": ""}}],
        [{"name": "manifest.json", "digest": {"sha256": "A" * 64}}],
        [{"name": "", "digest": {"sha256": digest(1)}}],
        [{"name": "a\nb", "digest": {"sha256": digest(1)}}],
        [{"name": "x" * 513, "digest": {"sha256": digest(1)}}],
        [{"name": None, "digest": {"sha256": digest(1)}}],
        [{"name": "manifest.json", "digest": {"sha256": digest(1)}, "uri": "x"}],
        [{"name": "manifest.json", "digest": {"sha256": digest(1)}}] * 257,
    ],
    ids=lambda subject: repr(subject)[:40],
)
@pytest.mark.parametrize("kind", ["grant", "release"])
def test_malformed_subject_is_rejected(kind: str, subject: Any) -> None:
    value = document(kind)
    value["subject"] = subject
    rejected(canonical(value))


def test_compose_refuses_what_no_reader_would_accept() -> None:
    with pytest.raises(Rejected, match="new grant: member depth: expected an integer from 0 to 3, found 4"):
        composed("grant", depth=4)
    with pytest.raises(Rejected, match="institution"):
        compose("keyring", *EXAMPLES["keyring"], issuer="Lab A", hub=HUB)


def test_compose_refuses_a_payload_over_the_limit() -> None:
    resources = [
        {"name": f"{number:0900d}", "algorithm": "sha256", "digest": digest(1)}
        for number in range(PAYLOAD_LIMIT_BYTES // 900)
    ]
    with pytest.raises(Rejected, match="E_LIMIT"):
        composed("oms", resources=resources)


def test_calls_that_mix_up_kinds_or_header_are_our_own_bugs() -> None:
    with pytest.raises(Misuse):
        compose("release", *EXAMPLES["release"], issuer=ISSUER, hub=HUB)
    with pytest.raises(Misuse):
        compose_standard("grant", *EXAMPLES["grant"])
    with pytest.raises(Misuse):
        compose("gift", [], {}, issuer=ISSUER, hub=HUB)
    with pytest.raises(Misuse):
        composed("grant", issuer="firm.example")


# --- subjects of each kind ------------------------------------------------------------------------

TWO = [("manifest.json", digest(1)), ("manifest.json", digest(2))]


@pytest.mark.parametrize(
    ("kind", "subjects"),
    [
        ("keyring", [("1.root.json", digest(4))]),
        ("keyring", [("2.root.json", digest(4)), ("2.root.json", digest(4))]),
        ("asset", [("model.json", digest(1))]),
        ("asset", TWO),
        ("asset", [("manifest.json", digest(1)), ("croissant.json", digest(2))]),
        ("grant", [("x", digest(1))]),
        ("grant", TWO),
        ("revocation", [("grant", digest(1))]),
        ("revocation", [("key.pem", digest(1)), ("key.pem", digest(2))]),
        ("status", [("root.json", digest(4))]),
        ("status", [("01.root.json", digest(4))]),
        ("status", [("٣.root.json", digest(4))]),
        ("plan", [("recipe.json", digest(2)), ("manifest.json", digest(1))]),
        ("plan", [("recipe.json", digest(2)), ("config.json", digest(1)), ("manifest.json", digest(1))]),
        ("plan", [("recipe.py", digest(2)), ("manifest.json", digest(1)), ("config.json", digest(1))]),
        ("plan", [("manifest.json", digest(2)), ("manifest.json", digest(1)), ("config.json", digest(1))]),
        ("order", [("weights", digest(15))]),
        ("order", [("weights", digest(14)), ("weights", digest(14))]),
        ("round", TWO),
        ("refusal", TWO),
        ("receipt", TWO),
        ("provenance", [("model.json", digest(1))]),
        ("test-result", [("model.json", digest(1))]),
        ("release", [("model.json", digest(1))]),
        ("verdict", [("model.json", digest(1))]),
    ],
)
def test_statement_about_another_file_is_rejected(kind: str, subjects: list[tuple[str, str]]) -> None:
    with pytest.raises(Rejected, match="E_STATEMENT"):
        composed(kind, subjects)


def test_plan_may_name_a_flower_app_bundle() -> None:
    subjects = [("app.fab", digest(2)), ("manifest.json", digest(1)), ("config.json", digest(10))]
    assert read(composed("plan", subjects)).subjects[0].name == "app.fab"


# --- rules of single kinds ------------------------------------------------------------------------


def bad(kind: str, *needles: str, expected: str = "E_STATEMENT", **changes: Any) -> None:
    with pytest.raises(Rejected) as error:
        composed(kind, **changes)
    assert (error.value.code, error.value.step) == (expected, "V9")
    assert all(needle in error.value.message for needle in needles)


def test_dataset_has_a_croissant_file_and_needs_no_oms() -> None:
    subjects = [("manifest.json", digest(1)), ("croissant.json", digest(2))]
    read(composed("asset", subjects, type="dataset", oms=None, plan=None))
    with pytest.raises(Rejected, match=r"croissant\.json"):
        composed("asset", type="dataset")


def test_model_needs_its_oms_statement() -> None:
    bad("asset", "oms", oms=None)


def test_first_version_has_no_previous_and_a_later_one_has() -> None:
    read(composed("asset", version=1, previous=None))
    bad("asset", "previous", version=1)
    bad("asset", "previous", version=2, previous=None)


@pytest.mark.parametrize(
    "name", ["m", "lab-a.example/", "lab-a.example/../x", "Lab/m", "lab-a.example/" + "x" * 600]
)
def test_asset_name_outside_the_form_is_rejected(name: str) -> None:
    bad("asset", "name", name=name)


@pytest.mark.parametrize(
    "license_id", ["Apache-2.0", "MIT OR (GPL-2.0-only WITH Classpath-exception-2.0)", "LicenseRef-x"]
)
def test_license_is_an_spdx_expression(license_id: str) -> None:
    read(composed("asset", license=license_id))


def test_grant_lasts_more_than_nothing_and_at_most_366_days() -> None:
    read(composed("grant", expires=at(366 * DAY)))
    bad("grant", "expires", expires=at(366 * DAY + 1))
    bad("grant", "expires", expires=at(0))
    bad("grant", "expires", expires=at(-1))


@pytest.mark.parametrize(
    "actions",
    [[], ["train", "evaluate"], ["pull", "pull"], ["publish"], ["Pull"], ["statistics"], "pull", [["pull"]]],
)
def test_actions_of_a_grant_are_a_closed_ascending_set(actions: Any) -> None:
    bad("grant", "actions", actions=actions)


def test_delegation_names_its_parent_and_depth_is_at_most_three() -> None:
    read(composed("grant", depth=3, parent=digest(1)))
    bad("grant", "depth", depth=4)
    bad("grant", "depth", depth=-1)
    bad("grant", "parent", parent="x")


def test_conditions_are_the_closed_set_of_the_design() -> None:
    names = [member.name for member in CONDITIONS]
    assert names == ["duo", "code", "plan", "maxRounds", "minParticipants", "epsilon", "delta"]
    read(composed("grant", conditions={**CONSENT, "duo": ["DUO:0000042", "DUO:0000046"]}))
    read(composed("grant", actions=["pull"], conditions={}))


@pytest.mark.parametrize(
    "change",
    [
        {"onTuesdays": True},
        {"fab": digest(2)},
        {"duo": []},
        {"duo": ["DUO:0000046", "DUO:0000042"]},
        {"duo": ["DUO:0000042", "DUO:0000042"]},
        {"duo": ["DUO:42"]},
        {"duo": ["DUO:٠٠٠٠٠٤٢"]},
        {"duo": "DUO:0000042"},
        {"code": "x"},
        {"plan": None},
        {"maxRounds": 0},
        {"maxRounds": True},
        {"maxRounds": "10"},
        {"minParticipants": 0},
        {"epsilon": 4},
        {"epsilon": "-1"},
        {"epsilon": "1e3"},
        {"delta": ".1"},
    ],
    ids=repr,
)
def test_unknown_or_malformed_condition_is_rejected(change: dict[str, Any]) -> None:
    bad("grant", *change, expected="E_GRANT_CONDITION", conditions={**CONSENT, **change})


@pytest.mark.parametrize("missing", ["epsilon", "delta"])
def test_epsilon_and_delta_stand_together(missing: str) -> None:
    left = {name: value for name, value in CONSENT.items() if name != missing}
    bad("grant", "both or neither", expected="E_GRANT_CONDITION", conditions=left)
    bad("plan", "both or neither", **{missing: None})
    bad("receipt", "both or neither", **{missing: None})


@pytest.mark.parametrize("missing", TRAIN_NEEDS)
def test_grant_to_train_states_code_rounds_and_participants(missing: str) -> None:
    left = {name: value for name, value in CONSENT.items() if name != missing}
    bad("grant", missing, expected="E_GRANT_CONDITION", conditions=left)
    read(composed("grant", actions=["evaluate"], conditions=left))


@pytest.mark.parametrize("conditions", [[], "x", 1, None])
def test_conditions_that_are_no_object_are_rejected(conditions: Any) -> None:
    value = document("grant")
    value["predicate"]["conditions"] = conditions
    rejected(canonical(value), "E_GRANT_CONDITION")


def test_revocation_of_a_statement_takes_any_file_name() -> None:
    read(
        composed(
            "revocation", [("statement", digest(8))], target="statement", reason="withdrawn", fromIndex=None
        )
    )


def test_status_list_is_valid_for_at_most_a_day() -> None:
    read(composed("status", nextUpdate=at(DAY)))
    bad("status", "nextUpdate", nextUpdate=at(DAY + 1))
    bad("status", "nextUpdate", nextUpdate=at(0))


def test_lists_of_a_status_list_ascend() -> None:
    bad("status", "revoked", revoked=[digest(9), digest(8)])
    bad("status", "revoked", revoked=[digest(8), digest(8)])
    key = {"hint": digest(7), "fromIndex": 1}
    bad("status", "keys", keys=[key, key])
    bad("status", "keys", keys=[{**key, "note": ""}])
    bad("status", "fromIndex", keys=[{"hint": digest(7)}])


def test_participants_ascend_and_bound_the_counts() -> None:
    participants = EXAMPLES["plan"][1]["participants"]
    bad("plan", "participants", participants=participants[::-1])
    bad("plan", "participants", participants=participants[:1] * 2)
    bad("plan", "participants", participants=[])
    bad("plan", "minParticipants", minParticipants=4)
    bad("plan", "approvals", approvals=4)
    bad("plan", "rounds", rounds=0)
    bad("plan", "strategy", strategy="a\nb")


def test_approvals_count_institutions_not_datasets() -> None:
    two = [{"institution": "lab-a.example", "dataset": digest(number)} for number in (11, 12)]
    read(composed("plan", participants=two, minParticipants=2, approvals=1))
    bad("plan", "approvals", participants=two, minParticipants=2, approvals=2)


def test_plan_expires_after_it_was_issued() -> None:
    bad("plan", "expires", expires=at(0))


def test_round_keeps_the_order_in_which_receipts_were_folded_in() -> None:
    assert read(composed("round")).predicate["receipts"] == [digest(18), digest(16), digest(17)]
    bad("round", "receipts", receipts=[])
    bad("round", "receipts", receipts=["x"])
    bad("round", "round", round=0)


@pytest.mark.parametrize("code", ["consent", "E_", "E_consent", "E_CONSENT\n", "E_" + "X" * 63, "E-CONSENT"])
def test_refusal_names_an_error(code: str) -> None:
    bad("refusal", "code", code=code)


def test_receipt_of_a_pull_has_action_and_grant_only() -> None:
    less = dict.fromkeys(("plan", "round", "input", "examples", "epsilon", "delta", "previous"))
    manifest = [("manifest.json", digest(1))]
    read(composed("receipt", manifest, **{**less, "action": "pull"}))
    for name in less:
        with pytest.raises(Rejected, match=name):
            left = {key: value for key, value in less.items() if key != name}
            composed("receipt", manifest, **{**left, "action": "pull"})


@pytest.mark.parametrize("missing", ["plan", "round", "input", "examples"])
def test_receipt_under_a_consent_says_plan_round_input_and_examples(missing: str) -> None:
    bad("receipt", missing, **{missing: None})


def test_receipt_names_the_update_when_training_and_else_the_manifest() -> None:
    read(composed("receipt", [("manifest.json", digest(1))], action="evaluate"))
    read(composed("receipt", [("manifest.json", digest(1))], action="statistics"))
    bad("receipt", "manifest.json", action="evaluate")
    bad("receipt", "action", action="publish")


# --- standard kinds: what we require --------------------------------------------------------------


def without(kind: str, *path: str) -> bytes:
    value = document(kind)
    place = value["predicate"]
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return canonical(value)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("oms", ("serialization",)),
        ("oms", ("resources",)),
        ("provenance", ("buildDefinition",)),
        ("provenance", ("buildDefinition", "buildType")),
        ("provenance", ("buildDefinition", "externalParameters")),
        ("provenance", ("buildDefinition", "externalParameters", "plan")),
        ("provenance", ("buildDefinition", "resolvedDependencies")),
        ("provenance", ("runDetails", "builder", "id")),
        ("test-result", ("result",)),
        ("test-result", ("configuration",)),
        ("release", ("purl",)),
        ("release", ("packageId",)),
        ("verdict", ("verifier", "id")),
        ("verdict", ("timeVerified",)),
        ("verdict", ("resourceUri",)),
        ("verdict", ("policy", "digest", "sha256")),
        ("verdict", ("inputAttestations",)),
        ("verdict", ("verificationResult",)),
        ("verdict", ("verifiedLevels",)),
    ],
)
def test_required_member_of_a_standard_kind_must_stand(kind: str, path: tuple[str, ...]) -> None:
    assert path[-1] in rejected(without(kind, *path)).message


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("oms", {"resources": []}),
        ("oms", {"resources": [{"name": "a"}]}),
        ("oms", {"serialization": []}),
        ("provenance", {"buildDefinition": None, "x": 1}),
        ("provenance", {"runDetails": {"builder": {"id": "https://fedhub.dev/coordinator/v2"}}}),
        ("provenance", {"runDetails": {"builder": "x"}}),
        ("test-result", {"result": "GOOD"}),
        ("test-result", {"configuration": [{"name": "config", "digest": {"sha256": digest(1)}}]}),
        ("test-result", {"configuration": [{"name": "config"}]}),
        ("test-result", {"passedTests": "auc"}),
        ("test-result", {"failedTests": [1]}),
        ("release", {"packageId": "lab-a.example/other"}),
        ("release", {"purl": "pkg:pypi/m@1?repository_url=https://hub.example"}),
        ("release", {"purl": "pkg:generic/lab-a.example/m@0?repository_url=https://hub.example"}),
        ("release", {"purl": "pkg:generic/lab-a.example/m@2?repository_url=http://hub.example"}),
        ("release", {"purl": "pkg:generic/lab-a.example/m@2?repository_url=https://hub.example/x"}),
        ("release", {"purl": "pkg:generic/m@2?repository_url=https://hub.example"}),
        ("verdict", {"timeVerified": "yesterday"}),
        ("verdict", {"resourceUri": "m"}),
        ("verdict", {"policy": {"digest": {"sha256": "x"}}}),
        ("verdict", {"policy": []}),
        ("verdict", {"inputAttestations": [{"uri": "x"}]}),
        ("verdict", {"verificationResult": "passed"}),
        ("verdict", {"verifiedLevels": ["FEDHUB_TRAINED_1"]}),
        ("verdict", {"verifiedLevels": ["FEDHUB_SIGNED", "FEDHUB_SIGNED"]}),
    ],
    ids=repr,
)
def test_malformed_member_of_a_standard_kind_is_rejected(kind: str, changes: dict[str, Any]) -> None:
    bad(kind, **changes)


def test_provenance_names_its_plan_and_nothing_else_as_parameter() -> None:
    value = document("provenance")
    value["predicate"]["buildDefinition"]["externalParameters"]["seed"] = 1
    rejected(canonical(value))


def test_predicate_that_is_no_object_is_rejected() -> None:
    for kind in KINDS:
        value = document(kind)
        value["predicate"] = []
        rejected(canonical(value))


def test_message_names_the_statement_by_its_id() -> None:
    value = document("grant")
    value["predicate"]["depth"] = 9
    payload = canonical(value)
    assert rejected(payload).message.startswith(f"statement {statement_id(payload)}: member depth:")


def test_type_confusion_between_kinds_is_rejected() -> None:
    for kind in OWN:
        for other in OWN:
            if kind != other:
                value = document(kind)
                value["predicateType"] = KINDS[other].uri
                rejected(canonical(value))


def test_issue_time_is_told_in_whole_seconds() -> None:
    assert read(composed("keyring")).issued_at == NOW
    assert read(composed("keyring")).predicate["issuedAt"] == format_time(NOW)
