"""Access: each circle of the table, the credential it needs, and what a refusal may tell."""

import pytest

from hub.access import ANONYMOUS, COORDINATOR, RULES, Actor, Thing, Who, decide, may
from storage.errors import FedhubError, Refused, Unchecked

BOTH = frozenset({"read", "write"})
OWNER = Actor("owner.example", "owner", "access", BOTH, "targets")
LAB = Actor("lab-a.example", "lab", "access", BOTH, "snapshot")
FIRM = Actor("firm.example", "firm", "personal", frozenset({"read"}))
AUDITOR = Actor("auditor.example", "auditor", "personal", frozenset({"read"}))
OPERATOR = Actor("operator.example", "operator", "access", BOTH, "targets")
PLAN = Thing("plan 1", "owner.example", frozenset({"lab-a.example"}))


@pytest.mark.parametrize("action", sorted(RULES))
def test_nobody_known_may_do_nothing_to_a_thing_that_is_not_public(action: str) -> None:
    with pytest.raises(Refused) as caught:
        decide(ANONYMOUS, action, PLAN)
    assert (caught.value.code, caught.value.status) == ("E_LOGIN", 401)


@pytest.mark.parametrize("action", sorted(name for name, rule in RULES.items() if rule.who is Who.OWNER))
def test_an_owner_s_act_is_refused_to_parties_operator_and_coordinator(action: str) -> None:
    for actor in (LAB, OPERATOR, COORDINATOR):
        with pytest.raises(Refused, match="only for its owner"):
            decide(actor, action, PLAN)


@pytest.mark.parametrize(
    "action", sorted(name for name, rule in RULES.items() if rule.who is Who.COORDINATOR)
)
def test_the_coordinator_s_acts_are_refused_to_every_member(action: str) -> None:
    for actor in (OWNER, LAB, OPERATOR, AUDITOR):
        with pytest.raises(FedhubError):
            decide(actor, action, PLAN)
    decide(COORDINATOR, action, PLAN)


def test_readers_of_a_plan_are_its_parties_auditors_and_the_operator_alone() -> None:
    for actor in (OWNER, LAB, AUDITOR, OPERATOR):
        decide(actor, "read plan", PLAN)
        assert may(actor, "read plan", PLAN)
    assert not may(FIRM, "read plan", PLAN)


def test_a_stranger_is_told_that_a_hidden_thing_is_not_there() -> None:
    with pytest.raises(Unchecked) as caught:
        decide(FIRM, "read plan", PLAN)
    assert caught.value.code == "E_NOT_FOUND"


def test_a_token_that_only_reads_cannot_write() -> None:
    owner = Actor("owner.example", "owner", "personal", frozenset({"read"}))
    with pytest.raises(Refused) as caught:
        decide(owner, "tag version", PLAN)
    assert caught.value.code == "E_SCOPE"


@pytest.mark.parametrize(
    ("actor", "needed"),
    [
        (Actor("operator.example", "operator", "access", BOTH, "snapshot"), "targets"),
        (Actor("operator.example", "operator", "personal", BOTH), "targets"),
    ],
)
def test_approving_needs_a_login_with_the_targets_key(actor: Actor, needed: str) -> None:
    decide(OPERATOR, "approve", Thing("lab-a.example"))
    with pytest.raises(Refused, match=needed) as caught:
        decide(actor, "approve", Thing("lab-a.example"))
    assert caught.value.code == "E_KEY_ROLE"


def test_a_site_is_registered_with_a_ring_key_and_never_with_a_personal_token() -> None:
    site = Thing("site", "lab-a.example")
    decide(LAB, "register site", site)
    decide(Actor("lab-a.example", "lab", "access", BOTH, "targets"), "register site", site)
    with pytest.raises(Refused) as caught:
        decide(Actor("lab-a.example", "lab", "personal", BOTH), "register site", site)
    assert caught.value.code == "E_KEY_ROLE"


def test_a_public_thing_is_read_without_a_login_but_not_changed() -> None:
    public = Thing("model", "owner.example", public=True)
    decide(ANONYMOUS, "read model", public)
    with pytest.raises(Refused):
        decide(ANONYMOUS, "tag version", public)


def test_a_member_s_thing_is_read_by_members_and_by_nobody_else() -> None:
    asset = Thing("statement", "owner.example", members=True)
    decide(FIRM, "read statement", asset)
    with pytest.raises(Refused):
        decide(ANONYMOUS, "read statement", asset)
