"""The rules of each kind: its subjects, its members taken together, what we require of standard kinds."""

from typing import Any

import pytest

from storage.encoding import canonical, read_json
from storage.errors import Rejected
from storage.members import CONDITIONS, TRAIN_NEEDS
from storage.signing import open_envelope, sign
from storage.statements import KINDS, Statement, read_statement
from tests.vectors.make_vectors import CONSENT, DAY, EXAMPLES, KEY, at, digest, example_payload


def read(payload: bytes) -> Statement:
    return read_statement(open_envelope(sign(KEY, payload)))


def document(kind: str) -> dict[str, Any]:
    value: dict[str, Any] = read_json(example_payload(kind))
    return value


def rejected(payload: bytes, code: str = "E_STATEMENT") -> Rejected:
    with pytest.raises(Rejected) as error:
        read(payload)
    assert (error.value.code, error.value.step) == (code, "V9")
    return error.value


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
        example_payload(kind, subjects)


def test_plan_may_name_a_flower_app_bundle() -> None:
    subjects = [("app.fab", digest(2)), ("manifest.json", digest(1)), ("config.json", digest(10))]
    assert read(example_payload("plan", subjects)).subjects[0].name == "app.fab"


# --- rules of single kinds ------------------------------------------------------------------------


def bad(kind: str, *needles: str, expected: str = "E_STATEMENT", **changes: Any) -> None:
    with pytest.raises(Rejected) as error:
        example_payload(kind, **changes)
    assert (error.value.code, error.value.step) == (expected, "V9")
    assert all(needle in error.value.message for needle in needles)


def test_dataset_has_a_croissant_file_and_needs_no_oms() -> None:
    subjects = [("manifest.json", digest(1)), ("croissant.json", digest(2))]
    read(example_payload("asset", subjects, type="dataset", oms=None, plan=None))
    with pytest.raises(Rejected, match=r"croissant\.json"):
        example_payload("asset", type="dataset")


def test_model_needs_its_oms_statement() -> None:
    bad("asset", "oms", oms=None)


def test_first_version_has_no_previous_and_a_later_one_has() -> None:
    read(example_payload("asset", version=1, previous=None))
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
    read(example_payload("asset", license=license_id))


def test_grant_lasts_more_than_nothing_and_at_most_366_days() -> None:
    read(example_payload("grant", expires=at(366 * DAY)))
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
    read(example_payload("grant", depth=3, parent=digest(1)))
    bad("grant", "depth", depth=4)
    bad("grant", "depth", depth=-1)
    bad("grant", "parent", parent="x")


def test_conditions_are_the_closed_set_of_the_design() -> None:
    names = [member.name for member in CONDITIONS]
    assert names == ["duo", "code", "plan", "maxRounds", "minParticipants", "epsilon", "delta"]
    read(example_payload("grant", conditions={**CONSENT, "duo": ["DUO:0000042", "DUO:0000046"]}))
    read(example_payload("grant", actions=["pull"], conditions={}))


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
    gone: dict[str, Any] = {missing: None}
    bad("plan", "both or neither", **gone)
    bad("receipt", "both or neither", **gone)


@pytest.mark.parametrize("missing", TRAIN_NEEDS)
def test_grant_to_train_states_code_rounds_and_participants(missing: str) -> None:
    left = {name: value for name, value in CONSENT.items() if name != missing}
    bad("grant", missing, expected="E_GRANT_CONDITION", conditions=left)
    read(example_payload("grant", actions=["evaluate"], conditions=left))


@pytest.mark.parametrize("conditions", [[], "x", 1, None])
def test_conditions_that_are_no_object_are_rejected(conditions: Any) -> None:
    value = document("grant")
    value["predicate"]["conditions"] = conditions
    rejected(canonical(value), "E_GRANT_CONDITION")


def test_revocation_of_a_statement_takes_any_file_name() -> None:
    read(
        example_payload(
            "revocation", [("statement", digest(8))], target="statement", reason="withdrawn", fromIndex=None
        )
    )


def test_status_list_is_valid_for_at_most_a_day() -> None:
    read(example_payload("status", nextUpdate=at(DAY)))
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
    read(example_payload("plan", participants=two, minParticipants=2, approvals=1))
    bad("plan", "approvals", participants=two, minParticipants=2, approvals=2)


def test_plan_expires_after_it_was_issued() -> None:
    bad("plan", "expires", expires=at(0))


def test_round_keeps_the_order_in_which_receipts_were_folded_in() -> None:
    assert read(example_payload("round")).predicate["receipts"] == [digest(18), digest(16), digest(17)]
    bad("round", "receipts", receipts=[])
    bad("round", "receipts", receipts=["x"])
    bad("round", "round", round=0)


@pytest.mark.parametrize("code", ["consent", "E_", "E_consent", "E_CONSENT\n", "E_" + "X" * 63, "E-CONSENT"])
def test_refusal_names_an_error(code: str) -> None:
    bad("refusal", "code", code=code)


def test_receipt_of_a_pull_has_action_and_grant_only() -> None:
    less = dict.fromkeys(("plan", "round", "input", "examples", "epsilon", "delta", "previous"))
    manifest = [("manifest.json", digest(1))]
    read(example_payload("receipt", manifest, **{**less, "action": "pull"}))
    for name in less:
        with pytest.raises(Rejected, match=name):
            left = {key: value for key, value in less.items() if key != name}
            example_payload("receipt", manifest, **{**left, "action": "pull"})


@pytest.mark.parametrize("missing", ["plan", "round", "input", "examples"])
def test_receipt_under_a_consent_says_plan_round_input_and_examples(missing: str) -> None:
    gone: dict[str, Any] = {missing: None}
    bad("receipt", missing, **gone)


def test_receipt_names_the_update_when_training_and_else_the_manifest() -> None:
    read(example_payload("receipt", [("manifest.json", digest(1))], action="evaluate"))
    read(example_payload("receipt", [("manifest.json", digest(1))], action="statistics"))
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
