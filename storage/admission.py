"""What the hub asks before a statement enters its log, and before a file leaves for a grantee.

These are the rules that an auditor applies later, asked about one statement as if it were logged next,
against the whole log. Who may post what is for the hub to decide; nothing here knows a caller.
"""

from collections.abc import Callable

from storage.asset_versions import check_model_signature, check_version, owner_of
from storage.consents import plan_of_consent
from storage.encoding import parse_time
from storage.errors import Rejected
from storage.evidence import Entry, Evidence
from storage.grants import (
    Use,
    check_links_stand,
    check_owner,
    check_use_now,
    grant_chain,
)
from storage.header import check_header, check_nonce
from storage.keys_in_force import check_key, check_reach, check_ring_order, check_shared
from storage.links import (
    APPROVAL,
    approvals_of,
    check_may_release,
    check_provenance,
    check_release,
    check_result,
    check_verdict,
    is_approval,
    release_of,
    released_version,
)
from storage.signing import check_signature, open_envelope
from storage.statements import KINDS, Statement, read_statement
from storage.status_lists import check_grows, check_names_newest, newest_status
from storage.training_record import (
    chain_before,
    check_receipt,
    check_receipt_chain,
    check_round,
    check_round_issuer,
)

ISSUED_WITHIN_S = 600


def check_admission(evidence: Evidence, raw: bytes, *, now: int) -> Entry:
    """The entry that a bundle becomes when it is logged next.

    A statement that is logged already, or a second one for the same plan, site, action and round, is
    answered with the first: an entry whose index is below ``evidence.size``. Only an entry with that index
    is new, and the caller adds it when it is durable.

    Args:
        evidence: the whole log.
        raw: the bundle.
        now: seconds since 1970.
    Raises:
        Rejected: the first rule that does not hold.
    """
    envelope = open_envelope(raw)
    signer = evidence.find_key(envelope.hint)
    if signer is None:
        raise Rejected(
            "E_KEY_UNKNOWN", f"statement {envelope.id}: no member's ring holds key {envelope.hint}"
        )
    institution, key = signer
    check_signature(key, envelope)
    known = evidence.get(envelope.id)
    if known is not None:
        _check_same_signer(known, institution)
        return known
    statement = read_statement(envelope)
    check_header(statement, institution, hub=evidence.hub, latest=now + ISSUED_WITHIN_S)
    _check_recent(statement, now)
    entry = Entry(statement, institution, envelope.hint, evidence.size, envelope)
    check_nonce(evidence, entry)
    if entry.kind == "keyring":
        _check_keyring(evidence, entry)
    check_key(evidence, entry)
    check = _RULES.get(entry.kind)
    first = check(evidence, entry, now) if check else None
    return entry if first is None else first


def _check_same_signer(known: Entry, institution: str) -> None:
    # Standard kinds have no nonce: what two institutions say in the same words is one statement, with one id.
    if known.institution != institution:
        raise Rejected(
            "E_REPLAY",
            f"{known}: logged as the word of {known.institution}, now signed by {institution}",
            "a statement has one signer: write it anew, in words of your own",
        )


def _check_recent(statement: Statement, now: int) -> None:
    if KINDS[statement.kind].own and statement.issued_at < now - ISSUED_WITHIN_S:
        raise Rejected(
            "E_TIME",
            f"statement {statement.id}: issued {statement.predicate['issuedAt']}, more than "
            f"{ISSUED_WITHIN_S // 60} minutes ago",
            "sign it again now, and check the clock of the machine that signs",
        )


# --- rules of single kinds: each returns the entry that answers a repetition, or None -----------------------


def _check_keyring(evidence: Evidence, entry: Entry) -> None:
    ring = evidence.rings[entry.institution]
    check_ring_order(evidence, entry)
    check_shared(ring, evidence.rings.values())
    if entry.says["version"] != ring.newest.version:
        raise Rejected(
            "E_KEYRING_UNLOGGED", f"{entry}: the newest ring of {entry.institution} is {ring.newest.version}"
        )


def _check_asset(evidence: Evidence, entry: Entry, now: int) -> None:
    check_version(evidence, entry)
    if entry.says["type"] == "model":
        check_model_signature(evidence, entry, evidence.manifests.get(entry.subject))
    plan_id = entry.says.get("plan")
    if plan_id is not None:
        plan = evidence.standing(plan_id, "plan")
        if plan is None or plan.institution != entry.institution:
            raise Rejected("E_LINK", f"{entry}: names plan {plan_id[:12]}, which is no plan of its issuer")


def _check_grant(evidence: Evidence, entry: Entry, now: int) -> None:
    chain = grant_chain(evidence, entry)
    check_owner(evidence, chain, index=None)
    check_links_stand(evidence, chain, index=None)
    if now >= parse_time(entry.says["expires"]):
        raise Rejected("E_GRANT_EXPIRED", f"{entry}: expired already, {entry.says['expires']}")
    if "plan" in entry.says["conditions"]:
        plan_of_consent(evidence, entry)


def _check_revocation(evidence: Evidence, entry: Entry, now: int) -> None:
    check_reach(evidence, entry)
    if entry.says["target"] == "key":
        holder = evidence.find_key(entry.subject)
        allowed = {holder[0]} if holder else set()
    else:
        target = evidence.get(entry.subject)
        allowed = {target.institution} if target else set()
        while target is not None and "parent" in target.says and target.kind == "grant":
            target = evidence.standing(target.says["parent"], "grant")
            allowed |= {target.institution} if target else set()
    if entry.institution not in allowed:
        who = ", ".join(sorted(allowed)) or "nobody here"
        raise Rejected(
            "E_ISSUER",
            f"{entry}: {entry.says['target']} {entry.subject[:12]} is for {who} to revoke",
            step="V10",
        )


def _check_status(evidence: Evidence, entry: Entry, now: int) -> None:
    check_grows(entry, newest_status(evidence, entry.institution))
    check_names_newest(evidence, entry)


def _check_plan(evidence: Evidence, entry: Entry, now: int) -> None:
    base = entry.statement.subjects[1].digest
    if owner_of(evidence, base) is None:
        raise Rejected("E_PLAN", f"{entry}: its base version {base[:12]} is not logged")
    for part in entry.says["participants"]:
        if owner_of(evidence, part["dataset"]) != part["institution"]:
            raise Rejected(
                "E_PLAN",
                f"{entry}: dataset {part['dataset'][:12]} is not {part['institution']}'s, or not logged",
            )
    if now >= parse_time(entry.says["expires"]):
        raise Rejected("E_PLAN", f"{entry}: expired already, {entry.says['expires']}")


def _check_receipt(evidence: Evidence, entry: Entry, now: int) -> Entry | None:
    check_receipt(evidence, entry)
    if entry.says["action"] == "pull":
        return None
    chain = chain_before(evidence, entry)
    for earlier in chain:
        if earlier.says["round"] == entry.says["round"]:
            return earlier
    if chain and entry.says.get("previous") != chain[-1].id:
        raise Rejected("E_RECEIPT_CHAIN", f"{entry}: must name {chain[-1]}, this site's receipt before it")
    check_receipt_chain(evidence, entry, chain[-1] if chain else None)
    return None


def _check_round(evidence: Evidence, entry: Entry, now: int) -> Entry | None:
    check_round_issuer(evidence, entry)
    rounds = evidence.find("round", plan=entry.says["plan"])
    for earlier in rounds:
        if earlier.says["round"] == entry.says["round"]:
            return earlier
    for receipt_id in entry.says["receipts"]:
        receipt = evidence.standing(receipt_id, "receipt")
        if receipt is not None:
            check_receipt(evidence, receipt)
    check_round(evidence, entry, rounds[-1] if rounds else None)
    return None


def _check_refusal(evidence: Evidence, entry: Entry, now: int) -> None:
    if evidence.standing(entry.says["plan"], "plan") is None:
        raise Rejected("E_PLAN", f"{entry}: plan {entry.says['plan'][:12]} is not logged")


def _check_provenance(evidence: Evidence, entry: Entry, now: int) -> None:
    check_provenance(evidence, entry)


def _check_result(evidence: Evidence, entry: Entry, now: int) -> Entry | None:
    check_result(evidence, entry, now=now)
    mine = _configuration(entry)
    for earlier in evidence.find("test-result", subject=entry.subject, issuer=entry.institution):
        if _configuration(earlier) == mine:
            return earlier
    return None


def _configuration(entry: Entry) -> dict[str, str]:
    return {part["name"]: part["digest"]["sha256"] for part in entry.says["configuration"]}


def _check_release(evidence: Evidence, entry: Entry, now: int) -> Entry | None:
    asset = released_version(evidence, entry)
    check_may_release(evidence, asset)
    check_release(evidence, entry)
    return release_of(evidence, asset)


def _check_verdict(evidence: Evidence, entry: Entry, now: int) -> Entry | None:
    check_verdict(evidence, entry)
    if APPROVAL not in entry.says["verifiedLevels"]:
        return None
    for asset in evidence.find("asset", subject=entry.subject):
        plan = evidence.standing(asset.says.get("plan"), "plan")
        if plan is not None and is_approval(entry, asset, plan):
            standing = approvals_of(evidence, asset, plan)
            return next((known for known in standing if known.institution == entry.institution), None)
    raise Rejected(
        "E_APPROVALS",
        f"{entry}: {APPROVAL} is for a participant of the plan that made this version, with verdict PASSED "
        "and that plan's id as policy digest",
    )


_Rule = Callable[[Evidence, Entry, int], Entry | None]
_RULES: dict[str, _Rule] = {
    "asset": _check_asset,
    "grant": _check_grant,
    "revocation": _check_revocation,
    "status": _check_status,
    "plan": _check_plan,
    "receipt": _check_receipt,
    "round": _check_round,
    "refusal": _check_refusal,
    "provenance": _check_provenance,
    "test-result": _check_result,
    "release": _check_release,
    "verdict": _check_verdict,
}


# --- before a pull ------------------------------------------------------------------------------------------


def check_pull(
    evidence: Evidence, *, grantee: str, asset_id: str, name: str, duo: list[str], now: int, named: str = ""
) -> str | None:
    """The id of the grant under which ``grantee`` may pull an asset now; None when the asset is its own.

    Args:
        name: the asset's name as the hub serves it.
        duo: terms that the grantee accepts for this use.
        now: seconds since 1970.
        named: how the id of the grant to lean on begins; no other is looked at.
    Raises:
        Rejected: why the newest of its grants does not allow it (V11, V13); ``E_GRANT_MISSING`` without any.
    """
    if owner_of(evidence, asset_id) == grantee:
        return None
    refused: Rejected | None = None
    for grant in reversed(evidence.find("grant", subject=asset_id)):
        if grant.says["grantee"] != grantee or "pull" not in grant.says["actions"]:
            continue
        if not grant.id.startswith(named):
            continue
        use = Use(grant.id, grantee, "pull", asset_id, name, tuple(duo))
        try:
            check_use_now(evidence, use, now=now)
        except Rejected as error:
            refused = refused or error
            continue
        return grant.id
    such = f"no grant {named}" if named else "no grant"
    raise refused or Rejected("E_GRANT_MISSING", f"{grantee} holds {such} to pull {name} ({asset_id[:12]})")
