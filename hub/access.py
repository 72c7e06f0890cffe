"""Who may do what: the only place that says yes or no.

``decide(actor, action, thing)`` returns or raises; services name the action, describe the thing by its owner
and parties, and never compare roles themselves. A signature that is needed besides (a statement, a grant) is
checked by ``storage.admission``: nothing here replaces it.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from hub.errors import not_found
from storage.errors import Refused

Scope = Literal["read", "write"]
KeyRole = Literal["targets", "snapshot"]


@dataclass(frozen=True)
class Actor:
    """Whoever asks: an institution's signing key, a person's token, the coordinator, or nobody known."""

    institution: str | None = None
    role: str | None = None  # operator, owner, lab, firm, auditor
    by: Literal["access", "personal", "coordinator", "anonymous"] = "anonymous"
    scopes: frozenset[str] = field(default_factory=frozenset)
    key_role: KeyRole | None = None  # of the key that logged in; None for tokens

    @property
    def known(self) -> bool:
        """Whether the hub knows who is asking."""
        return self.by != "anonymous"

    @property
    def name(self) -> str:
        """Words for messages and logs."""
        return self.institution or self.by


ANONYMOUS = Actor()
COORDINATOR = Actor(by="coordinator", scopes=frozenset({"read", "write"}))


@dataclass(frozen=True)
class Thing:
    """What is asked for: its owner, who else takes part, and whether more may see it."""

    name: str
    owner: str | None = None
    parties: frozenset[str] = field(default_factory=frozenset)
    members: bool = False  # every member may read it
    public: bool = False  # so may everybody


class Who(Enum):
    """The circle that a rule admits."""

    ANYONE = "anyone"
    MEMBER = "a member of the alliance"
    OWNER = "its owner"
    PARTY = "its owner or one of its parties"
    READER = "its owner, its parties, an auditor or the operator"
    OPERATOR = "the operator"
    COORDINATOR = "the coordinator"
    OWNER_OR_COORDINATOR = "its owner or the coordinator"
    PARTY_OR_COORDINATOR = "its owner, its parties or the coordinator"


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    who: Who
    scope: Scope = "read"
    key_role: KeyRole | Literal["any"] | None = None  # a ring key of this role must have logged in
    hidden: bool = False  # a refusal looks like 'not found'


RULES: dict[str, Rule] = {
    # the alliance
    "invite": Rule(Who.OPERATOR, "write"),
    "approve": Rule(Who.OPERATOR, "write", "targets"),
    "see alliance": Rule(Who.MEMBER),
    "change key ring": Rule(Who.OWNER, "write", "targets"),
    "register site": Rule(Who.OWNER, "write", "any"),
    "see own": Rule(Who.MEMBER),
    "keep tokens": Rule(Who.OWNER, "write"),
    # statements
    "post statement": Rule(Who.OWNER, "write"),
    "read statement": Rule(Who.READER, hidden=True),
    # bytes, models, datasets
    "upload": Rule(Who.MEMBER, "write"),
    "upload for a run": Rule(Who.PARTY_OR_COORDINATOR, "write"),
    "use upload": Rule(Who.OWNER_OR_COORDINATOR, "write", hidden=True),
    "list assets": Rule(Who.MEMBER),
    "read model": Rule(Who.READER, hidden=True),
    "read dataset": Rule(Who.MEMBER),
    "read repository": Rule(Who.READER, hidden=True),
    "write repository": Rule(Who.OWNER, "write"),
    "push version": Rule(Who.OWNER, "write"),
    "tag version": Rule(Who.OWNER, "write"),
    "open model": Rule(Who.OWNER, "write", "targets"),
    "tighten model": Rule(Who.OWNER, "write"),
    "pull": Rule(Who.MEMBER),
    "read pack": Rule(Who.READER, hidden=True),
    # plans and runs
    "submit plan": Rule(Who.OWNER, "write"),
    "read plan": Rule(Who.READER, hidden=True),
    "decline plan": Rule(Who.PARTY, "write"),
    "steer run": Rule(Who.OWNER, "write"),
    "read run": Rule(Who.READER, hidden=True),
    "read weights": Rule(Who.PARTY_OR_COORDINATOR, hidden=True),
    "audit updates": Rule(Who.READER, hidden=True),  # where the plan keeps them; no parties
    "coordinate": Rule(Who.COORDINATOR, "write"),
}


def decide(actor: Actor, action: str, thing: Thing) -> None:
    """Say yes by returning, no by raising.

    Raises:
        Refused: ``E_LOGIN`` (401), ``E_SCOPE``, ``E_KEY_ROLE`` or ``E_ACCESS`` (403).
        Unchecked: ``E_NOT_FOUND`` where even the existence is not for this actor to know.
    """
    rule = RULES[action]
    if _admits(rule.who, actor, thing):
        _check_credential(rule, actor, action, thing)
        return
    if not actor.known:
        raise Refused(
            "E_LOGIN", f"{action} {thing.name}: needs a login", "Log in or send a token.", status=401
        )
    if rule.hidden:
        raise not_found("", thing.name)
    raise Refused(
        "E_ACCESS",
        f"{thing.name}: {action} is only for {rule.who.value}, not for {actor.name}",
        "Ask its owner, or act as the right institution.",
    )


def may(actor: Actor, action: str, thing: Thing) -> bool:
    """``decide`` for lists: leave out what the actor may not see."""
    rule = RULES[action]
    return _admits(rule.who, actor, thing) and (
        rule.who is Who.ANYONE or thing.public or rule.scope in actor.scopes
    )


def sees_all(actor: Actor) -> bool:
    """Auditors and the operator read every statement, and nothing else by that."""
    return actor.role in ("auditor", "operator")


def _admits(who: Who, actor: Actor, thing: Thing) -> bool:
    member = actor.institution is not None
    owner = member and actor.institution == thing.owner
    party = owner or (member and actor.institution in thing.parties)
    coordinator = actor.by == "coordinator"
    match who:
        case Who.ANYONE:
            return True
        case Who.MEMBER:
            return member
        case Who.OWNER:
            return owner
        case Who.PARTY:
            return party
        case Who.READER:
            return thing.public or party or (member and (thing.members or sees_all(actor)))
        case Who.OPERATOR:
            return member and actor.role == "operator"
        case Who.COORDINATOR:
            return coordinator
        case Who.OWNER_OR_COORDINATOR:
            return owner or coordinator
        case Who.PARTY_OR_COORDINATOR:
            return party or coordinator


def _check_credential(rule: Rule, actor: Actor, action: str, thing: Thing) -> None:
    if rule.who is Who.ANYONE or (thing.public and rule.scope == "read"):
        return
    if rule.scope not in actor.scopes:
        raise Refused(
            "E_SCOPE",
            f"{action} {thing.name}: the token's scopes are {' '.join(sorted(actor.scopes)) or 'none'},"
            f" {rule.scope} is needed",
            f"Make a token with the scope {rule.scope}.",
        )
    if rule.key_role is None or actor.key_role == rule.key_role:
        return
    if actor.key_role is None or rule.key_role != "any":
        needed = "ring" if rule.key_role == "any" else rule.key_role
        raise Refused(
            "E_KEY_ROLE",
            f"{action} {thing.name}: needs a login with a {needed} key,"
            f" not {'a ' + actor.key_role + ' key' if actor.key_role else 'a token'}",
            f"Log in with the institution's {needed} key.",
        )
