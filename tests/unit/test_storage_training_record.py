"""Consents before a run, receipts that lie between, and rounds against the base version's files."""

import pytest

from storage.encoding import format_time, sha256_hex
from storage.errors import Rejected
from storage.training_record import check_record, check_startable, consents_to, valid_consent
from tests.simulators import DAY, LABS, NOW, OPERATOR, OWNER, Alliance, Story, consent_terms, tell_story

LAB_A, LAB_B, LAB_C = LABS


@pytest.fixture(scope="module")
def told() -> Story:
    return tell_story()


def test_a_plan_may_start_once_enough_participants_consent(told: Story) -> None:
    consents = check_startable(told.alliance.evidence(), told.plan, now=NOW)
    assert {pair[0]: entry and entry.id for pair, entry in consents.items()} == told.consents
    story = told.fork()
    story.alliance.revoke(LAB_A, story.consents[LAB_A])
    assert (
        check_startable(story.alliance.evidence(), story.plan, now=NOW)[LAB_A, story.datasets[LAB_A]] is None
    )
    story.alliance.revoke(LAB_B, story.consents[LAB_B])
    with pytest.raises(Rejected, match="E_CONSENT") as caught:
        check_startable(story.alliance.evidence(), story.plan, now=NOW)
    assert LAB_A in caught.value.hint
    assert LAB_B in caught.value.hint


def test_a_plan_does_not_start_when_it_is_unknown_expired_or_withdrawn(told: Story) -> None:
    evidence = told.alliance.evidence()
    with pytest.raises(Rejected, match="E_PLAN"):
        check_startable(evidence, "0" * 64, now=NOW)
    with pytest.raises(Rejected, match="E_PLAN"):
        check_startable(evidence, told.plan, now=NOW + 30 * DAY)
    story = told.fork()
    story.alliance.revoke(OWNER, story.plan)
    with pytest.raises(Rejected, match="E_REVOKED"):
        check_startable(story.alliance.evidence(), story.plan, now=NOW)


def test_the_newest_consent_that_allows_the_action_is_the_one_that_counts(told: Story) -> None:
    story = told.fork()
    about = [("manifest.json", story.datasets[LAB_A])]
    terms = {**consent_terms(story.plan, story.code), "actions": ["train"]}
    newer = story.alliance.say(LAB_A, "grant", about, terms)
    evidence = story.alliance.evidence()
    plan = evidence.standing(story.plan, "plan")
    assert plan is not None
    pair = (LAB_A, story.datasets[LAB_A])
    train = valid_consent(evidence, plan, *pair, now=NOW)
    evaluate = valid_consent(evidence, plan, *pair, now=NOW, action="evaluate")
    assert train is not None
    assert evaluate is not None
    assert (train.id, evaluate.id) == (newer, story.consents[LAB_A])
    assert valid_consent(evidence, plan, *pair, now=NOW + 30 * DAY) is None


def test_a_consent_of_another_institution_or_to_other_code_does_not_count(told: Story) -> None:
    story = told.fork()
    for lab in (LAB_A, LAB_B):
        story.alliance.revoke(lab, story.consents[lab])
    about = [("manifest.json", story.datasets[LAB_A])]
    story.alliance.say(LAB_B, "grant", about, consent_terms(story.plan, story.code))
    story.alliance.say(LAB_A, "grant", about, consent_terms(story.plan, "0" * 64))
    evidence = story.alliance.evidence()
    plan = evidence.standing(story.plan, "plan")
    assert plan is not None
    agreed = {pair[0] for pair, consent in consents_to(evidence, plan, now=NOW).items() if consent}
    assert agreed == {LAB_C}


def test_receipts_that_no_round_lists_are_links_of_the_chain_and_are_reported(told: Story) -> None:
    """Lab C trains in round 3, is late, and trains again in round 4: its fourth receipt names the third."""
    story = tell_story(rounds=2)
    terms = consent_terms(story.plan, story.code, maxRounds=3, epsilon="8")
    for lab in LABS:
        about = [("manifest.json", story.datasets[lab])]
        story.consents[lab] = story.alliance.say(lab, "grant", about, terms)
    late = story.alliance.say(
        LAB_C, "receipt", [("u", "1" * 64)], story.receipt(LAB_C, 3, epsilon="3.0", round=3)
    )
    record = check_record(story.alliance.evidence())
    assert [entry.id for entry in record.not_counted] == [late]
    assert len(record.counted) == len(story.receipts) + 1
    assert [entry.id for entry in record.rounds[story.plan]] == story.rounds


def test_the_first_round_starts_from_a_file_of_the_base_version(told: Story) -> None:
    broken = told.fork()
    check_record(broken.alliance.evidence())
    for known in (*broken.rounds, *broken.receipts.values(), broken.provenance, broken.release):
        del broken.alliance.logged[known]
    receipts = [
        broken.alliance.say(
            lab,
            "receipt",
            [("u", sha256_hex(lab.encode()))],
            broken.receipt(lab, 1, input="0" * 64),
        )
        for lab in LABS
    ]
    says = {"plan": broken.plan, "round": 1, "input": "0" * 64, "receipts": receipts}
    broken.alliance.say(OPERATOR, "round", [("a", "2" * 64)], says)
    with pytest.raises(Rejected, match="E_ROUND_CHAIN"):
        check_record(broken.alliance.evidence())
    unseen = broken.alliance.evidence()
    unseen.manifests.clear()
    check_record(unseen)  # without the manifest nobody can tell


def test_a_receipt_signed_after_its_plan_expired_is_refused() -> None:
    story = tell_story()
    a: Alliance = story.alliance
    terms = consent_terms(story.plan, story.code, maxRounds=3)
    terms = {**terms, "expires": format_time(NOW + 60 * DAY)}
    about = [("manifest.json", story.datasets[LAB_A])]
    story.consents[LAB_A] = a.say(LAB_A, "grant", about, terms)
    a.now = NOW + 31 * DAY
    receipt = a.say(LAB_A, "receipt", about, story.receipt(LAB_A, 2, action="evaluate", previous=None))
    assert receipt in a.logged
    with pytest.raises(Rejected, match="E_PLAN"):
        check_record(a.evidence())
