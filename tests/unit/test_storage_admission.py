"""What the hub admits: everything that is honest, nothing that an auditor would refuse, and each thing once."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from storage.admission import check_admission, check_pull
from storage.encoding import b64, format_time, sha256_hex
from storage.errors import Rejected
from storage.evidence import Evidence
from storage.keyring import read_ring
from storage.manifests import read_manifest
from storage.signing import new_private_key, open_envelope, sign
from tests.simulators import (
    DAY,
    FIRM,
    LABS,
    MODEL,
    NOW,
    OPERATOR,
    OWNER,
    Alliance,
    Story,
    consent_terms,
    grant_terms,
    release_terms,
    result_of,
    tell_story,
    verdict,
)
from tests.unit.test_storage_verify_attacks import ACCEPTED, SIGNED_ATTACKS, Signed

LAB_A, LAB_B, LAB_C = LABS

# Attacks in which statements are withheld or ring files missing: nothing is posted that the hub could refuse.
NOT_POSTED = {
    "asset_claimed_with_the_owners_statement_withheld",
    "revocation_withheld_but_on_the_status_list",
    "newer_ring_withheld",
    "newer_rings_statement_withheld",
    "third_round_left_out_of_provenance",
    "approval_after_the_release",
}
# Honest for an auditor, since ignored or not counted; the hub says no to the one who posts it.
REFUSED_HERE = {
    "honest_revocation_by_strangers": "E_ISSUER",
    "honest_grantee_cannot_revoke_its_grant": "E_ISSUER",
    "honest_strangers_key_revocation": "E_ISSUER",
    "honest_lone_receipt_is_not_counted": "E_BUDGET",
}
# Refused by the auditor only because someone leans on it; a hub logs it as any other statement.
LEANED_ON = {
    "delegation_revoked_from_above",
    "grant_revoked",
    "key_revoked_from_its_start",
    "parent_of_a_delegation_revoked",
    "receipt_as_a_grant",
}


@pytest.fixture(scope="module")
def told() -> Story:
    return tell_story()


def replay(alliance: Alliance, evidence: Evidence) -> None:
    """Post what is in the log of ``alliance`` and not yet in ``evidence``, as a hub receives it."""
    for name, member in alliance.members.items():
        evidence.rings[name] = read_ring(name, member.roots, sha256_hex(member.roots[0]))
    evidence.manifests |= {asset_id: read_manifest(raw) for asset_id, raw in alliance.manifests.items()}
    for logged in alliance.logged.values():
        if evidence.get(logged.id) is None:
            entry = check_admission(evidence, logged.raw, now=NOW)
            if entry.index == evidence.size:
                evidence.add(entry)


def test_the_honest_story_is_admitted_statement_by_statement(told: Story) -> None:
    evidence = Evidence("hub.example", OPERATOR, {}, whole=True)
    replay(told.alliance, evidence)
    assert evidence.size == len(told.alliance.logged)


POSTED = [(a, e) for a, e in SIGNED_ATTACKS if a.__name__ not in NOT_POSTED]


@pytest.mark.parametrize(("attack", "error"), POSTED, ids=[attack.__name__ for attack, _ in POSTED])
def test_the_hub_refuses_what_an_auditor_would(told: Story, attack: Signed, error: str) -> None:
    story, before = told.fork(), told.fork()
    attack(story)
    for known in set(told.alliance.logged) - set(story.alliance.logged):
        del before.alliance.logged[known]
    evidence = before.alliance.evidence()
    name = attack.__name__
    wanted = REFUSED_HERE.get(name, ACCEPTED if name in LEANED_ON else error)
    if name == "asset_revoked" or (wanted == ACCEPTED and name not in REFUSED_HERE):
        replay(story.alliance, evidence)
        return
    with pytest.raises(Rejected):
        replay(story.alliance, evidence)


def refused(story: Story, raw: bytes, code: str, *, now: int = NOW) -> None:
    with pytest.raises(Rejected) as caught:
        check_admission(story.alliance.evidence(), raw, now=now)
    assert caught.value.code == code, caught.value


# --- time, signers, repetitions ---------------------------------------------------------------------------


@pytest.mark.parametrize(("moved", "code"), [(601, "E_TIME"), (-601, "E_TIME"), (599, ""), (-599, "")])
def test_a_statement_is_admitted_within_ten_minutes_of_its_time(told: Story, moved: int, code: str) -> None:
    raw = told.alliance.sign(OWNER, "grant", told.about_model, grant_terms())
    if code:
        refused(told, raw, code, now=NOW + moved)
    else:
        assert check_admission(told.alliance.evidence(), raw, now=NOW + moved).kind == "grant"


def test_a_statement_posted_twice_is_answered_with_the_first(told: Story) -> None:
    evidence = told.alliance.evidence()
    known = told.alliance.logged[told.grant]
    assert check_admission(evidence, known.raw, now=NOW + 10 * DAY).index == known.index


def test_a_key_of_no_member_is_refused(told: Story) -> None:
    payload = told.alliance.payload(OWNER, "grant", told.about_model, grant_terms())
    refused(told, sign(new_private_key(), payload), "E_KEY_UNKNOWN")


def test_the_same_words_of_a_second_institution_are_refused_not_taken_for_the_first(told: Story) -> None:
    payload = open_envelope(told.alliance.logged[told.approvals[LAB_A]].raw).payload
    refused(told, sign(told.alliance.members[LAB_C].keys["targets"][-1], payload), "E_REPLAY")


def test_the_same_payload_under_a_wrong_signature_is_refused(told: Story) -> None:
    raw = told.alliance.logged[told.grant].raw
    other = open_envelope(told.alliance.logged[told.release].raw)
    bundle = json.loads(raw)
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = b64(other.signature)
    refused(told, json.dumps(bundle).encode(), "E_SIGNATURE")


# --- training ---------------------------------------------------------------------------------------------


def test_a_second_receipt_of_a_round_is_answered_with_the_first(told: Story) -> None:
    raw = told.alliance.sign(LAB_A, "receipt", [("update", "0" * 64)], told.receipt(LAB_A, 2))
    assert told.alliance.fork().admit(raw).id == told.receipts[LAB_A, 2]


def test_a_second_statement_of_a_round_is_answered_with_the_first(told: Story) -> None:
    says = {
        "plan": told.plan,
        "round": 2,
        "input": told.aggregates[0],
        "receipts": [told.receipts[LAB_A, 2], told.receipts[LAB_B, 2]],
        "previous": told.rounds[0],
    }
    raw = told.alliance.sign(OPERATOR, "round", [("aggregate", "0" * 64)], says)
    assert told.alliance.fork().admit(raw).id == told.rounds[1]


def test_a_second_result_of_the_same_evaluation_is_answered_with_the_first(told: Story) -> None:
    says = {**result_of(told.datasets[LAB_A], told.consents[LAB_A]), "result": "FAILED"}
    raw = told.alliance.sign(LAB_A, "test-result", told.about_model, says)
    assert told.alliance.fork().admit(raw).id == told.results[LAB_A]


def test_an_evaluation_in_the_same_round_as_training_is_another_chain(told: Story) -> None:
    story = told.fork()
    about = [("manifest.json", story.datasets[LAB_A])]
    says = story.receipt(LAB_A, 2, action="evaluate", previous=None)
    assert story.alliance.admit(story.alliance.sign(LAB_A, "receipt", about, says)).kind == "receipt"


def test_a_receipt_must_follow_the_last_that_was_admitted(told: Story) -> None:
    story = told.fork()
    terms = consent_terms(story.plan, story.code, maxRounds=3)
    about = [("manifest.json", story.datasets[LAB_A])]
    story.consents[LAB_A] = story.alliance.say(LAB_A, "grant", about, terms)
    says = story.receipt(LAB_A, 3, previous=story.receipts[LAB_A, 1])
    refused(story, story.alliance.sign(LAB_A, "receipt", [("u", "0" * 64)], says), "E_RECEIPT_CHAIN")
    honest = story.alliance.sign(LAB_A, "receipt", [("u", "0" * 64)], story.receipt(LAB_A, 3))
    assert story.alliance.admit(honest).index == len(story.alliance.leaves) - 1


def test_a_result_is_refused_once_its_consent_has_expired(told: Story) -> None:
    story = told.fork()
    story.alliance.now = late = NOW + 30 * DAY
    raw = story.alliance.sign(
        LAB_A,
        "test-result",
        [("manifest.json", story.base.asset_id)],
        result_of(story.datasets[LAB_A], story.consents[LAB_A]),
    )
    refused(story, raw, "E_GRANT_EXPIRED", now=late)


def plan_terms(story: Story, **changes: Any) -> dict[str, Any]:
    return {
        "rounds": 1,
        "minParticipants": 1,
        "approvals": 1,
        "strategy": "FedAvg",
        "participants": [{"institution": LAB_A, "dataset": story.datasets[LAB_A]}],
        "expires": format_time(NOW + DAY),
        **changes,
    }


def about_plan(story: Story, base: str) -> list[tuple[str, str]]:
    return [("recipe.json", story.code), ("manifest.json", base), ("config.json", story.config)]


@pytest.mark.parametrize(
    "change",
    [
        {"participants": [{"institution": LAB_A, "dataset": "0" * 64}]},
        {"participants": [{"institution": LAB_B, "dataset": "DATASET OF LAB A"}]},
    ],
)
def test_a_plan_over_anothers_or_no_dataset_is_refused(told: Story, change: dict[str, Any]) -> None:
    for part in change["participants"]:
        part["dataset"] = part["dataset"].replace("DATASET OF LAB A", told.datasets[LAB_A])
    raw = told.alliance.sign(OWNER, "plan", about_plan(told, told.base.asset_id), plan_terms(told, **change))
    refused(told, raw, "E_PLAN")


def test_a_plan_from_an_unknown_base_is_refused(told: Story) -> None:
    refused(told, told.alliance.sign(OWNER, "plan", about_plan(told, "0" * 64), plan_terms(told)), "E_PLAN")


def test_a_refusal_of_an_unknown_plan_is_refused(told: Story) -> None:
    says = {"order": "0" * 64, "plan": "0" * 64, "round": 1, "code": "E_CONSENT"}
    refused(told, told.alliance.sign(LAB_A, "refusal", [("w", "0" * 64)], says), "E_PLAN")


# --- grants, assets, revocations, status lists ------------------------------------------------------------


def test_a_grant_that_has_expired_is_refused(told: Story) -> None:
    terms = grant_terms(notBefore=format_time(NOW - 100), expires=format_time(NOW))
    refused(told, told.alliance.sign(OWNER, "grant", told.about_model, terms), "E_GRANT_EXPIRED")


def test_a_grant_for_later_is_admitted(told: Story) -> None:
    terms = grant_terms(notBefore=format_time(NOW + 100), expires=format_time(NOW + 200))
    raw = told.alliance.sign(OWNER, "grant", told.about_model, terms)
    assert check_admission(told.alliance.evidence(), raw, now=NOW).kind == "grant"


def test_a_consent_to_a_plan_that_does_not_list_the_dataset_is_refused(told: Story) -> None:
    story = told.fork()
    plan = story.alliance.say(OWNER, "plan", about_plan(story, story.base.asset_id), plan_terms(story))
    about = [("manifest.json", story.datasets[LAB_B])]
    terms = consent_terms(plan, story.code, minParticipants=1)
    refused(story, story.alliance.sign(LAB_B, "grant", about, terms), "E_PLAN")


def test_a_version_under_a_strangers_plan_is_refused(told: Story) -> None:
    story = told.fork()
    manifest, _ = story.alliance.model(f"{FIRM}/m", 1, {"x": b"1"})
    evidence = story.alliance.evidence()
    oms = evidence.by_kind("oms")[-1].id
    says = {"type": "model", "name": f"{FIRM}/m2", "version": 1, "oms": oms, "plan": story.plan}
    refused(story, story.alliance.sign(FIRM, "asset", [("manifest.json", "1" * 64)], says), "E_LINK")
    assert manifest.asset_id in evidence.manifests


@pytest.mark.parametrize(
    ("target", "allowed"), [("grant", OWNER), ("delegation", OWNER), ("delegation", FIRM)]
)
def test_a_grant_is_revoked_by_its_issuer_or_one_above(told: Story, target: str, allowed: str) -> None:
    says = {"target": "statement", "reason": "withdrawn"}
    about = [("grant", getattr(told, target))]
    assert told.alliance.fork().admit(told.alliance.sign(allowed, "revocation", about, says))
    refused(told, told.alliance.sign(LAB_B, "revocation", about, says), "E_ISSUER")


def test_a_revocation_of_what_is_not_logged_is_refused(told: Story) -> None:
    says = {"target": "statement", "reason": "withdrawn"}
    refused(told, told.alliance.sign(OWNER, "revocation", [("x", "0" * 64)], says), "E_ISSUER")


def test_a_status_list_that_names_an_old_ring_is_refused(told: Story) -> None:
    story = told.fork()
    old = story.alliance.members[OWNER].roots[0]
    story.alliance.rotate(OWNER)
    says = {"sequence": 9, "nextUpdate": format_time(NOW + DAY), "revoked": [], "keys": []}
    raw = story.alliance.sign(OWNER, "status", [("1.root.json", sha256_hex(old))], says)
    refused(story, raw, "E_KEYRING_STALE")


def test_a_ring_with_a_key_of_another_institution_is_refused(told: Story) -> None:
    story = told.fork()
    firm = story.alliance.members[FIRM]
    firm.keys["snapshot"] = [*story.alliance.members[OWNER].keys["snapshot"]]
    story.alliance._log_ring(firm, log=False)
    subject = [("2.root.json", sha256_hex(firm.roots[-1]))]
    refused(story, story.alliance.sign(FIRM, "keyring", subject, {"version": 2}), "E_KEYRING_SHARED")


def test_a_stolen_keys_own_revocations_count_for_nothing_once_it_is_revoked_from_before(told: Story) -> None:
    story = told.fork()
    a = story.alliance
    stolen, good = a.members[OWNER].hint("targets"), a.members[OWNER].hint("snapshot")
    here = len(a.leaves)
    a.revoke_key(OWNER, good)
    a.revoke(OWNER, story.grant)
    assert a.evidence().void_from(good) == here
    a.rotate(OWNER)
    a.revoke_key(OWNER, stolen, fromIndex=here)
    evidence = a.evidence()
    assert evidence.void_from(stolen) == here
    assert evidence.void_from(good) > 1 << 60
    a.status(OWNER)
    options = {"grantee": FIRM, "asset_id": story.model.asset_id, "name": MODEL, "duo": ["DUO:0000042"]}
    assert check_pull(a.evidence(), now=NOW, **options) == story.grant


# --- releases ---------------------------------------------------------------------------------------------


def unreleased(told: Story) -> Story:
    """The story up to the approvals, without the last one and the release."""
    story = told.fork()
    for known in (story.release, story.approvals[LAB_B]):
        del story.alliance.logged[known]
    return story


def test_a_release_is_refused_until_enough_participants_approved(told: Story) -> None:
    story = unreleased(told)
    raw = story.alliance.sign(OWNER, "release", story.about_model, release_terms())
    refused(story, raw, "E_APPROVALS")
    story.alliance.say(LAB_C, "verdict", story.about_model, verdict(LAB_C, story.plan))
    assert story.alliance.admit(raw).kind == "release"


def test_a_second_release_or_approval_is_answered_with_the_first(told: Story) -> None:
    again = {**release_terms(), "note": "again"}
    raw = told.alliance.sign(OWNER, "release", told.about_model, again)
    assert told.alliance.fork().admit(raw).id == told.release
    says = verdict(LAB_A, told.plan, timeVerified=format_time(NOW + 1))
    raw = told.alliance.sign(LAB_A, "verdict", told.about_model, says)
    assert told.alliance.fork().admit(raw).id == told.approvals[LAB_A]


def test_a_version_that_names_no_plan_cannot_be_released(told: Story) -> None:
    about = [("manifest.json", told.base.asset_id)]
    refused(told, told.alliance.sign(OWNER, "release", about, release_terms(version=1)), "E_APPROVALS")


def test_a_revoked_version_cannot_be_released(told: Story) -> None:
    story = unreleased(told)
    story.alliance.say(LAB_C, "verdict", story.about_model, verdict(LAB_C, story.plan))
    story.alliance.revoke(OWNER, story.model_statement)
    raw = story.alliance.sign(OWNER, "release", story.about_model, release_terms())
    refused(story, raw, "E_REVOKED")


@pytest.mark.parametrize(
    "says",
    [
        lambda s: (FIRM, verdict(FIRM, s.plan)),
        lambda s: (LAB_C, verdict(LAB_C, "0" * 64)),
        lambda s: (LAB_C, verdict(LAB_C, s.plan, verificationResult="FAILED")),
    ],
    ids=["by a stranger", "of another plan", "failed"],
)
def test_an_approval_that_would_count_for_nothing_is_refused(
    told: Story, says: Callable[[Story], tuple[str, dict[str, Any]]]
) -> None:
    who, predicate = says(told)
    refused(told, told.alliance.sign(who, "verdict", told.about_model, predicate), "E_APPROVALS")


def test_an_opinion_that_is_no_approval_is_admitted_from_anyone(told: Story) -> None:
    says = verdict(FIRM, "0" * 64, verifiedLevels=["FEDHUB_SIGNED"])
    raw = told.alliance.sign(FIRM, "verdict", told.about_model, says)
    assert told.alliance.fork().admit(raw).kind == "verdict"


# --- pulls ------------------------------------------------------------------------------------------------


def may_pull(story: Story, grantee: str = FIRM, **changes: Any) -> str | None:
    options: dict[str, Any] = {
        "grantee": grantee,
        "asset_id": story.model.asset_id,
        "name": MODEL,
        "duo": ["DUO:0000042"],
        "now": NOW,
        **changes,
    }
    return check_pull(story.alliance.evidence(), **options)


def no_pull(story: Story, code: str, grantee: str = FIRM, **changes: Any) -> None:
    with pytest.raises(Rejected) as caught:
        may_pull(story, grantee, **changes)
    assert caught.value.code == code


def test_a_pull_is_allowed_by_a_grant_and_needs_none_for_an_own_asset(told: Story) -> None:
    assert may_pull(told) == told.grant
    assert may_pull(told, OWNER) is None
    assert may_pull(told, LAB_A, duo=["DUO:0000042", "DUO:0000046"]) == told.delegation


def test_a_pull_is_refused_with_the_reason(told: Story) -> None:
    no_pull(told, "E_GRANT_MISSING", LAB_C)
    no_pull(told, "E_GRANT_CONDITION", duo=[])
    no_pull(told, "E_GRANT_EXPIRED", now=NOW + 3600)
    no_pull(told, "E_STATUS_STALE", now=NOW + DAY + 1)
    no_pull(told, "E_GRANT_OWNER", name=f"{OWNER}/other")
    no_pull(told, "E_GRANT_MISSING", asset_id=told.base.asset_id)


def test_a_pull_uses_the_newest_grant_that_allows_it(told: Story) -> None:
    story = told.fork()
    newer = story.alliance.say(OWNER, "grant", story.about_model, grant_terms())
    assert may_pull(story, duo=[]) == newer
    story.alliance.revoke(OWNER, newer)
    assert may_pull(story) == story.grant
    no_pull(story, "E_REVOKED", duo=[])


def test_a_pull_is_refused_after_the_version_or_the_key_of_its_grant_was_revoked(told: Story) -> None:
    story = told.fork()
    story.alliance.revoke(OWNER, story.model_statement)
    no_pull(story, "E_REVOKED")
    story = told.fork()
    index = story.alliance.logged[story.grant].index
    old = story.alliance.members[OWNER].hint("targets")
    story.alliance.rotate(OWNER)
    story.alliance.revoke_key(OWNER, old, fromIndex=index)
    story.alliance.status(OWNER)
    no_pull(story, "E_GRANT_MISSING")


def test_where_the_whole_log_is_at_hand_a_status_list_alone_voids_nothing(told: Story) -> None:
    story = told.fork()
    hint = story.alliance.members[OWNER].hint("targets")
    story.alliance.status(OWNER, revoked=[story.grant], keys={hint: 0})
    assert may_pull(story) == story.grant


def test_a_pull_needs_a_fresh_status_list_of_every_link(told: Story) -> None:
    story = told.fork()
    story.alliance.now = later = NOW + DAY + 60
    window = {"notBefore": format_time(later - 60), "expires": format_time(later + 600)}
    parent = story.alliance.say(OWNER, "grant", story.about_model, grant_terms(depth=1, **window))
    terms = grant_terms(LAB_A, parent=parent, **window)
    grant = story.alliance.say(FIRM, "grant", story.about_model, terms)
    story.alliance.status(OWNER)
    no_pull(story, "E_STATUS_STALE", LAB_A, now=later)
    story.alliance.status(FIRM)
    assert may_pull(story, LAB_A, now=later) == grant
