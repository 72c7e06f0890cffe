"""Step V13: grants. Does this grant, with all it was delegated from, allow this use of this asset?

Read ``check_use`` first: the order of its checks is the order in which a use is refused. ``check_grant`` is
the part that does not depend on who uses the grant; receipts are held to it at the time and index of their
own. Whatever is not understood is refused, never skipped.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.asset_versions import valid_versions, versions_of
from storage.consents import plan_of_consent
from storage.encoding import (
    check_asset_name,
    check_institution,
    format_time,
    is_digest,
    parse_decimal,
    parse_time,
)
from storage.errors import Rejected, Unchecked, shown
from storage.evidence import Entry, Evidence
from storage.keys_in_force import check_not_revoked
from storage.members import duo_term
from storage.status_lists import check_not_named, check_status

ACTIONS = ("evaluate", "pull", "train")
MAX_LINKS = 4  # a grant of depth 3 and three delegations


@dataclass(frozen=True)
class Use:
    """What someone wants to do under a grant.

    Attributes:
        grant: statement id.
        grantee: the institution that uses it.
        action: ``evaluate``, ``pull`` or ``train``.
        asset: asset id.
        name: the asset's name as the grantee knows it. An id alone would let a stranger who claimed the bytes
            pose as their owner.
        duo: terms that the grantee has accepted for this use.
        at: moment of the use, seconds since 1970; None: now.
    """

    grant: str
    grantee: str
    action: str
    asset: str
    name: str
    duo: tuple[str, ...] = ()
    at: int | None = None

    @classmethod
    def parse(cls, value: object) -> "Use":
        """The use in a JSON object ``{grant, grantee, action, asset, name, duo[, at]}``.

        Raises:
            Unchecked: ``E_INPUT``; the one who asks wrote it wrong.
        """
        needed, allowed = ("grant", "grantee", "action", "asset", "name"), ("duo", "at")
        if not isinstance(value, Mapping) or not set(needed) <= set(value) <= {*needed, *allowed}:
            raise _bad_use(f"expected the members {', '.join(needed)}, and duo and at where needed", value)
        try:
            check_institution(value["grantee"])
            check_asset_name(value["name"])
            duo = value.get("duo", [])
            if not isinstance(duo, Sequence) or isinstance(duo, str):
                raise _bad_use("duo must be a list of terms", duo)
            for term in duo:
                duo_term(term, "duo")
            at = parse_time(value["at"]) if "at" in value else None
        except Rejected as error:
            raise _bad_use(error.message, dict(value)) from error
        for name in ("grant", "asset"):
            if not is_digest(value[name]):
                raise _bad_use(f"{name} must be 64 lower-case hex digits", value[name])
        if value["action"] not in ACTIONS:
            raise _bad_use(f"action must be one of {', '.join(ACTIONS)}", value["action"])
        texts: dict[str, str] = {name: value[name] for name in needed}
        return cls(**texts, duo=tuple(duo), at=at)


def _bad_use(rule: str, found: object) -> Unchecked:
    return Unchecked("E_INPUT", f"use: {rule}; found {shown(found)}")


# --- the chain of one grant ---------------------------------------------------------------------------------


def grant_chain(evidence: Evidence, grant: Entry) -> list[Entry]:
    """The grant and all it was delegated from, root last, each link as tight as the one above.

    Raises:
        Rejected: ``E_GRANT_PARENT``, ``E_GRANT_WIDENED``.
    """
    chain = [grant]
    while "parent" in chain[-1].says:
        if len(chain) >= MAX_LINKS:
            raise Rejected("E_GRANT_WIDENED", f"{grant}: delegated more than {MAX_LINKS - 1} times")
        chain.append(_parent(evidence, chain[-1]))
    for child, parent in itertools.pairwise(chain):
        _check_narrower(child, parent)
    return chain


def _parent(evidence: Evidence, child: Entry) -> Entry:
    parent = evidence.standing(child.says["parent"], "grant")
    if parent is None or parent.index >= child.index:
        raise Rejected(
            "E_GRANT_PARENT",
            f"{child}: its parent {child.says['parent'][:12]} is not logged before it, or not here",
        )
    if child.institution != parent.says["grantee"]:
        raise Rejected(
            "E_GRANT_PARENT", f"{child}: only {parent.says['grantee']} may delegate {parent}, not a stranger"
        )
    return parent


def _check_narrower(child: Entry, parent: Entry) -> None:
    mine, above = child.says, parent.says
    rules = (
        (child.subject == parent.subject, "the same asset"),
        (set(mine["actions"]) <= set(above["actions"]), "no further action"),
        (parse_time(mine["notBefore"]) >= parse_time(above["notBefore"]), "no earlier start"),
        (parse_time(mine["expires"]) <= parse_time(above["expires"]), "no later end"),
        (mine["depth"] < above["depth"], "a smaller depth"),
        (
            at_least_as_tight(mine["conditions"], above["conditions"]),
            "every condition of its parent, as tight",
        ),
    )
    for holds, rule in rules:
        if not holds:
            raise Rejected("E_GRANT_WIDENED", f"{child}: a delegation of {parent} must have {rule}")


def at_least_as_tight(child: Mapping[str, Any], parent: Mapping[str, Any]) -> bool:
    """True when every condition of ``parent`` stands in ``child`` and allows no more there.

    >>> at_least_as_tight({"maxRounds": 3}, {"maxRounds": 4}), at_least_as_tight({}, {"maxRounds": 4})
    (True, False)
    """
    for name, limit in parent.items():
        mine = child.get(name)
        if mine is None:
            return False
        if name == "duo":
            tight = set(mine) >= set(limit)
        elif name in ("code", "plan"):
            tight = mine == limit
        elif name == "maxRounds":
            tight = mine <= limit
        elif name == "minParticipants":
            tight = mine >= limit
        elif name in ("epsilon", "delta"):
            tight = parse_decimal(mine) <= parse_decimal(limit)
        else:
            tight = False  # a condition that we do not know is never as tight
        if not tight:
            return False
    return True


def check_window(chain: Sequence[Entry], at: int) -> None:
    """Every link's window holds this moment (seconds since 1970).

    Raises:
        Rejected: ``E_GRANT_NOT_YET``, ``E_GRANT_EXPIRED``.
    """
    for link in chain:
        if at < parse_time(link.says["notBefore"]):
            raise Rejected(
                "E_GRANT_NOT_YET", f"{link}: valid from {link.says['notBefore']}, used at {format_time(at)}"
            )
        if at >= parse_time(link.says["expires"]):
            raise Rejected(
                "E_GRANT_EXPIRED",
                f"{link}: expired {link.says['expires']}, used at {format_time(at)}",
                f"ask {link.institution} for a new grant",
            )


def check_owner(
    evidence: Evidence, chain: Sequence[Entry], *, index: int | None, name: str | None = None
) -> None:
    """The chain's root is issued by the owner of the asset, and the asset bears the expected name.

    Args:
        index: log index of the use; None: now.
        name: the asset's name as the user knows it; None where nobody said one.
    Raises:
        Rejected: ``E_GRANT_OWNER``, ``E_REVOKED``.
    """
    root = chain[-1]
    versions = versions_of(evidence, root.subject)
    if not versions or versions[0].institution != root.institution:
        owner = versions[0].institution if versions else "nobody here"
        raise Rejected("E_GRANT_OWNER", f"{root}: asset {root.subject[:12]} belongs to {owner}")
    if name is not None and all(entry.says["name"] != name for entry in versions):
        raise Rejected(
            "E_GRANT_OWNER", f"{root}: its asset is {versions[0].says['name']}, the use expects {name}"
        )
    valid_versions(evidence, root.subject, index=index)


def check_links_stand(evidence: Evidence, chain: Sequence[Entry], *, index: int | None) -> None:
    """No link is revoked for a use logged at ``index`` (None: now), by its issuer or by one above it.

    Raises:
        Rejected: ``E_REVOKED``.
    """
    for position, link in enumerate(chain):
        above = {entry.institution for entry in chain[position:]}
        check_not_revoked(evidence, link, index=index, by=above)


def check_grant(evidence: Evidence, grant: Entry, *, at: int, index: int | None) -> list[Entry]:
    """The chain of a grant that is valid at this moment for a use logged at ``index`` (None: now).

    Raises:
        Rejected: ``E_GRANT_PARENT``, ``_WIDENED``, ``_NOT_YET``, ``_EXPIRED``, ``_OWNER``; ``E_REVOKED``.
    """
    chain = grant_chain(evidence, grant)
    check_window(chain, at)
    check_owner(evidence, chain, index=index)
    check_links_stand(evidence, chain, index=index)
    return chain


# --- uses ---------------------------------------------------------------------------------------------------


def leaned_on(evidence: Evidence, grant_id: str) -> set[str]:
    """Whose status lists a use of this grant leans on: the issuers of its chain and the asset's owner."""
    names: set[str] = set()
    entry = evidence.standing(grant_id, "grant")
    for _ in range(MAX_LINKS):
        if entry is None:
            break
        names.add(entry.institution)
        names.update(version.institution for version in versions_of(evidence, entry.subject))
        entry = evidence.standing(entry.says.get("parent"), "grant")
    return names


def check_use(evidence: Evidence, use: Use, *, now: int) -> list[Entry]:
    """The chain that allows a use now, or at the moment that it names.

    Raises:
        Rejected: ``E_GRANT_MISSING``, ``_GRANTEE``, ``_ACTION``, ``E_SUBJECT``, and those of ``check_grant``;
            ``E_GRANT_CONDITION``.
    """
    grant = evidence.standing(use.grant, "grant")
    if grant is None:
        raise Rejected("E_GRANT_MISSING", f"grant {use.grant[:12]} is not here")
    if grant.says["grantee"] != use.grantee:
        raise Rejected("E_GRANT_GRANTEE", f"{grant}: for {grant.says['grantee']}, used by {use.grantee}")
    if use.action not in grant.says["actions"]:
        raise Rejected(
            "E_GRANT_ACTION", f"{grant}: allows {', '.join(grant.says['actions'])}, used to {use.action}"
        )
    if grant.subject != use.asset:
        raise Rejected(
            "E_SUBJECT", f"{grant}: is about asset {grant.subject}, used for {use.asset}", step="V13"
        )
    chain = grant_chain(evidence, grant)
    check_window(chain, now if use.at is None else use.at)
    check_owner(evidence, chain, index=None, name=use.name)
    check_links_stand(evidence, chain, index=None)
    _check_not_named(evidence, chain)
    _check_conditions(evidence, grant, use)
    return chain


def _check_conditions(evidence: Evidence, grant: Entry, use: Use) -> None:
    missing = sorted(set(grant.says["conditions"].get("duo", [])) - set(use.duo))
    if missing:
        raise Rejected(
            "E_GRANT_CONDITION",
            f"{grant}: its terms {', '.join(missing)} were not accepted",
            "accept them for this use, if they hold: they are part of the grant",
            step="V13",
        )
    if use.action != "pull" and "plan" in grant.says["conditions"]:
        try:
            plan_of_consent(evidence, grant)
        except Rejected as error:
            raise Rejected("E_GRANT_CONDITION", error.message, error.hint, step="V13") from error


def _check_not_named(evidence: Evidence, chain: Sequence[Entry]) -> None:
    for position, link in enumerate(chain):
        check_not_named(evidence, link, {entry.institution for entry in chain[position:]})
    for entry in valid_versions(evidence, chain[-1].subject):
        check_not_named(evidence, entry)


def check_use_now(evidence: Evidence, use: Use, *, now: int) -> list[Entry]:
    """``check_use`` with fresh status lists of all it leans on: steps V11 and V13 of one use.

    Raises:
        Rejected: those of V11 and V13.
    """
    for institution in sorted(leaned_on(evidence, use.grant)):
        check_status(evidence, institution, now=now, fresh=True)
    return check_use(evidence, use, now=now)
