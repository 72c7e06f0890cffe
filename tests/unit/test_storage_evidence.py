"""Evidence: lookups by relation, entries in log order, and keys that were taken back."""

import pytest

from storage.errors import Misuse
from storage.evidence import NEVER, Evidence, plan_of
from tests.simulators import FIRM, HUB, LABS, OPERATOR, OWNER, Story, grant_terms, tell_story

LAB_A = LABS[0]


@pytest.fixture(scope="module")
def told() -> Story:
    return tell_story()


@pytest.fixture
def evidence(told: Story) -> Evidence:
    return told.alliance.evidence()


def test_entries_are_found_by_id_kind_subject_issuer_and_plan(told: Story, evidence: Evidence) -> None:
    grant = evidence.get(told.grant)
    assert grant is not None
    assert (grant.kind, grant.institution, grant.subject) == ("grant", OWNER, told.model.asset_id)
    assert str(grant) == f"grant {told.grant[:12]} of {OWNER}"
    ids = {entry.id for entry in evidence.find("grant", subject=told.model.asset_id)}
    assert ids == {told.grant, told.delegation}
    assert {e.id for e in evidence.find("grant", subject=told.model.asset_id, issuer=FIRM)} == {
        told.delegation
    }
    assert {e.id for e in evidence.find("grant", plan=told.plan)} == set(told.consents.values())
    assert {e.id for e in evidence.find("receipt", plan=told.plan, issuer=LAB_A)} == {
        told.receipts[LAB_A, 1],
        told.receipts[LAB_A, 2],
    }
    assert evidence.find("grant", plan="0" * 64) == []
    assert [e.index for e in evidence.by_kind("status")] == sorted(
        e.index for e in evidence.by_kind("status")
    )


def test_an_entry_stands_only_as_the_kind_that_it_is(told: Story, evidence: Evidence) -> None:
    assert evidence.standing(told.plan, "plan") is not None
    assert evidence.standing(told.plan, "grant") is None
    assert evidence.standing("0" * 64, "plan") is None
    assert evidence.standing(None, "plan") is None


def test_entries_are_added_once_and_in_log_order(told: Story, evidence: Evidence) -> None:
    entry = evidence.get(told.grant)
    assert entry is not None
    with pytest.raises(Misuse):
        evidence.add(entry)
    with pytest.raises(Misuse):
        fresh = Evidence(HUB, OPERATOR, {})
        fresh.size = 1_000
        fresh.add(entry)


def test_the_plan_of_a_statement_is_the_one_that_it_names(told: Story, evidence: Evidence) -> None:
    named = {
        kind: {plan_of(entry) for entry in evidence.by_kind(kind)} for kind in ("round", "verdict", "status")
    }
    assert named == {"round": {told.plan}, "verdict": {told.plan}, "status": {None}}


def test_keys_are_found_in_rings_that_were_put_in_later(told: Story, evidence: Evidence) -> None:
    rings = dict(evidence.rings)
    hint = told.alliance.members[OWNER].hint("snapshot")
    late = Evidence(HUB, OPERATOR, {})
    assert late.find_key(hint) is None
    late.rings[OWNER] = rings[OWNER]
    found = late.find_key(hint)
    assert found is not None
    assert found[0] == OWNER


def test_a_revoked_keys_later_entries_stand_no_more(told: Story) -> None:
    story = told.fork()
    index = story.alliance.logged[story.receipts[LAB_A, 2]].index
    story.alliance.revoke_key(LAB_A, story.alliance.members[LAB_A].hint("snapshot"), fromIndex=index)
    evidence = story.alliance.evidence()
    assert evidence.standing(story.receipts[LAB_A, 1], "receipt") is not None
    assert evidence.standing(story.receipts[LAB_A, 2], "receipt") is None
    assert evidence.get(story.receipts[LAB_A, 2]) is not None
    assert story.receipts[LAB_A, 2] not in {entry.id for entry in evidence.find("receipt")}


def test_a_key_that_nobody_revoked_is_never_void(told: Story, evidence: Evidence) -> None:
    assert evidence.void_from(told.alliance.members[OWNER].hint("targets")) == NEVER
    assert evidence.void_from("0" * 64) == NEVER


def test_of_two_keys_that_revoke_each_other_the_later_revocation_counts(told: Story) -> None:
    a = told.fork().alliance
    keys = a.members[OWNER].keys["targets"]
    start, old = len(a.leaves), a.members[OWNER].hint("targets")
    a.rotate(OWNER)
    new = a.members[OWNER].hint("targets")
    keys.reverse()  # the old key, stolen, speaks first
    a.revoke_key(OWNER, new, fromIndex=start)
    keys.reverse()
    a.revoke_key(OWNER, old, fromIndex=start)
    evidence = a.evidence()
    assert evidence.void_from(old) == start
    assert evidence.void_from(new) == NEVER


def test_a_fork_of_evidence_grows_on_its_own(told: Story) -> None:
    evidence = told.alliance.evidence()
    story = told.fork()
    added = story.alliance.say(OWNER, "grant", story.about_model, grant_terms())
    entry = story.alliance.evidence().get(added)
    assert entry is not None
    copy = evidence.fork()
    copy.add(entry)
    assert (copy.get(added), evidence.get(added)) == (entry, None)
    assert (copy.size, evidence.size) == (entry.index + 1, entry.index)
