"""What stewards and owners sign by their own decision: consents, grants, revocations, approvals, releases.

Every decision is taken on documents that were checked against this home's own pins first; what the hub says
of them counts for nothing. Reading order: ``read_checked_plan`` (what every decision about a plan starts
from), ``consent``, ``issue_grant``, ``approve_release``, ``publish_release``.
"""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.home import Home
from federation.plan import TrainingPlan, check_recipe, read_plan
from storage.encoding import format_time, is_digest, sha256_hex
from storage.errors import Refused, Rejected, Unchecked
from storage.keyring import KeyRing
from storage.signing import check_signature, open_envelope
from storage.standard import release_purl
from storage.statements import KINDS, Statement, read_statement

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient

VERIFIER = "https://fedhub.dev/verifier/v1"
_DAY_S = 86_400
_MAX_GRANT_S = 366 * _DAY_S


@dataclass(frozen=True)
class Approvals:
    """How far a version is on its way to a release."""

    needed: int
    participants: tuple[str, ...]
    approved_by: tuple[str, ...]

    @property
    def missing(self) -> int:
        return max(0, self.needed - len(self.approved_by))


def resolve_plan(client: "HubClient", reference: str) -> "wire.Plan":
    """The plan whose id starts with ``reference`` (at least 8 hex digits).

    Raises:
        Unchecked: none or several of the plans this caller may see.
    """
    if is_digest(reference):
        return client.plan(reference)
    if len(reference) < 8:
        raise Unchecked("E_USAGE", f"{reference!r} is too short for a plan id", "give at least 8 hex digits")
    found = [plan for plan in client.plans() if plan.id.startswith(reference)]
    if len(found) != 1:
        what = "no plan has" if not found else f"{len(found)} plans have"
        hint = "fedhub plan list"
        if len(reference) > 12 and reference.isdecimal():
            hint += (
                "; a run of fedhub app run is unsigned: it has no plan, and nothing of it is ever released"
            )
        raise Unchecked("E_NOT_FOUND", f"{what} an id that starts with {reference}", hint)
    return found[0]


def read_signed(home: Home, client: "HubClient", bundle: str, *, kind: str, issuer: str) -> Statement:
    """A statement from the hub, believed only as far as ``issuer``'s ring under this home's own pin signs it.

    Raises:
        Refused: this home does not pin ``issuer``.
        Rejected: another kind or issuer, an unknown key or one without the role, a wrong signature.
    """
    envelope = open_envelope(bundle.encode())
    statement = read_statement(envelope)
    if statement.kind != kind:
        raise Rejected("E_KIND", f"statement {statement.id} is a {statement.kind}, not a {kind}")
    if KINDS[kind].own and statement.issuer != issuer:
        raise Rejected("E_ISSUER", f"statement {statement.id} is issued by {statement.issuer}, not {issuer}")
    if KINDS[kind].own and statement.predicate["hub"] != home.hub:
        raise Rejected("E_HUB", f"statement {statement.id} is for the hub {statement.predicate['hub']}")
    role = KINDS[kind].role
    for source in (None, client):  # the ring as kept here, and only for a key that is not in it, as it is now
        ring = _ring(home, issuer, source)
        for version in ring.versions.values() if ring else ():
            key = version.roles[role].get(envelope.hint)
            if key is not None:
                check_signature(key, envelope)
                return statement
    raise Rejected(
        "E_KEY_UNKNOWN", f"statement {statement.id}: no {role} key of {issuer} has the hint it names"
    )


def _ring(home: Home, institution: str, client: "HubClient | None") -> KeyRing | None:
    try:
        return home.ring_of(institution, client)
    except Unchecked:
        if client is not None:
            raise
        return None  # nothing is kept here yet


def read_checked_plan(home: Home, client: "HubClient", reference: str) -> tuple[TrainingPlan, "wire.Plan"]:
    """A plan whose signature, files and code were checked here."""
    shown = resolve_plan(client, reference)
    statement = read_signed(home, client, shown.bundle, kind="plan", issuer=shown.issuer)
    if statement.id != shown.id:
        raise Rejected("E_PLAN", f"the hub answers plan {shown.id} with the document {statement.id}")
    plan = read_plan(statement, base64.b64decode(shown.recipe), base64.b64decode(shown.config))
    return plan, shown


def consent(
    home: Home,
    client: "HubClient",
    plan: TrainingPlan,
    *,
    max_rounds: int | None = None,
    min_participants: int | None = None,
    epsilon: str | None = None,
    delta: str | None = None,
) -> "wire.StatementRecord":
    """Sign this institution's consent to exactly this plan, keep it in the home, and have it logged.

    The agent trains only on a consent in its own home, so nothing at the hub can stand in for it.

    Raises:
        Refused: no dataset of this home takes part, or the plan is over (E_PLAN).
        Rejected: the recipe installed here is not the code that the plan names (E_RECIPE).
    """
    own = [site.dataset for site in plan.sites if site.institution == home.institution]
    if not own:
        raise Refused("E_PLAN", f"plan {plan.id} does not name {home.institution}", "nothing to consent to")
    now = int(time.time())
    if plan.expires <= now:
        raise Refused(
            "E_PLAN", f"plan {plan.id} expired at {format_time(plan.expires)}", "ask for a new plan"
        )
    if plan.config.app is None:  # an app's digest stands in the consent; its steward has read the code
        check_recipe(plan.config, plan.code)
    conditions: dict[str, Any] = {
        "code": plan.code,
        "plan": plan.id,
        "maxRounds": min(max_rounds or plan.rounds, plan.rounds),
        "minParticipants": max(min_participants or 1, plan.min_participants),
    }
    ceiling = epsilon or (str(plan.epsilon) if plan.epsilon is not None else None)
    if ceiling is not None:
        conditions |= {"epsilon": ceiling, "delta": delta or str(plan.delta)}
    record = None
    for dataset in own:
        home.dataset(dataset)  # refuses a dataset that does not lie here
        members = {
            "grantee": plan.issuer,
            "actions": ["evaluate", "train"],
            "conditions": conditions,
            "notBefore": format_time(now),
            "expires": format_time(min(plan.expires, now + _MAX_GRANT_S)),
            "depth": 0,
        }
        bundle = home.sign("grant", [("manifest.json", dataset)], members)
        record = client.post_statement(bundle)
        home.keep(bundle)  # after the hub logged it: a consent counts only when logged after the plan
    assert record is not None
    return record


def issue_grant(
    home: Home,
    client: "HubClient",
    asset_id: str,
    grantee: str,
    actions: Sequence[str],
    *,
    days: int,
    duo: Sequence[str] = (),
    depth: int = 0,
    parent: str | None = None,
) -> "wire.StatementRecord":
    """Sign and log a grant on an own asset, or, with ``parent``, a delegation of a grant to this home."""
    now = int(time.time())
    members: dict[str, Any] = {
        "grantee": grantee,
        "actions": sorted(set(actions)),
        "conditions": {"duo": sorted(set(duo))} if duo else {},
        "notBefore": format_time(now),
        "expires": format_time(now + days * _DAY_S),
        "depth": depth,
    }
    if parent is not None:
        above = read_statement(open_envelope(client.statement(parent).bundle.encode()))
        terms = set(duo) | set(above.predicate["conditions"].get("duo", []))
        members["parent"] = parent
        members["conditions"] = {**above.predicate["conditions"], **({"duo": sorted(terms)} if terms else {})}
        latest = min(members["expires"], above.predicate["expires"])
        members["expires"] = latest
        members["notBefore"] = max(members["notBefore"], above.predicate["notBefore"])
    bundle = home.sign("grant", [("manifest.json", asset_id)], members)
    record = client.post_statement(bundle)
    home.keep(bundle)
    return record


def revoke(home: Home, client: "HubClient", target: str, *, reason: str) -> "wire.StatementRecord":
    """Sign and log that a statement of this institution counts no more, from its revocation's index on."""
    record = client.statement(target)
    members = {"target": "statement", "reason": reason}
    bundle = home.sign("revocation", [(f"{record.kind}.sigstore.json", target)], members)
    posted = client.post_statement(bundle)
    home.keep(bundle)
    return posted


def approvals_of(home: Home, client: "HubClient", version: "wire.ModelVersion") -> Approvals:
    """Who has approved the version's release so far, by verdicts checked against this home's pins.

    Raises:
        Refused: the version was not made by a plan's run, so nobody can approve it (E_APPROVALS).
    """
    if version.plan is None:
        message = f"{version.name}@{version.version} was not made by a plan's run"
        raise Refused("E_APPROVALS", message, "only a version that fedhub run finish made can be released")
    plan, _shown = read_checked_plan(home, client, version.plan)
    participants = tuple(dict.fromkeys(site.institution for site in plan.sites))
    approved = set()
    for record in client.all_statements(kind="verdict", subject=version.asset_id):
        if record.issuer in participants:
            verdict = read_signed(home, client, record.bundle, kind="verdict", issuer=record.issuer)
            if is_approval(verdict, version, plan.id):
                approved.add(record.issuer)
    return Approvals(plan.approvals, participants, tuple(sorted(approved)))


def is_approval(verdict: Statement, version: "wire.ModelVersion", plan: str) -> bool:
    """Whether a verdict approves the release of this version under this plan; any other verdict does not."""
    said = verdict.predicate
    return (
        verdict.subject == version.asset_id
        and said["resourceUri"] == version.name
        and said["verificationResult"] == "PASSED"
        and "FEDHUB_RELEASE" in said["verifiedLevels"]
        and said["policy"]["digest"]["sha256"] == plan
    )


def approve_release(
    home: Home, client: "HubClient", version: "wire.ModelVersion", pack: Path
) -> "wire.StatementRecord":
    """Sign this participant's approval of a version whose evidence ``pack`` the caller has verified.

    Raises:
        Refused: the version has no plan, or this home is no participant of it.
    """
    if version.plan is None:
        message = f"{version.name}@{version.version} was not made by a plan's run"
        raise Refused("E_APPROVALS", message, "only a version that fedhub run finish made can be released")
    plan, _shown = read_checked_plan(home, client, version.plan)
    if home.institution not in {site.institution for site in plan.sites}:
        raise Refused(
            "E_APPROVALS", f"{home.institution} takes no part in plan {plan.id}", "participants approve"
        )
    checked = sorted(path.name.split(".")[0] for path in (pack / "statements").glob("*.sigstore.json"))
    members = {
        # with its institution: two labs' verdicts of the same second would else be one and the same statement
        "verifier": {"id": f"{VERIFIER}#{home.institution}"},
        "timeVerified": format_time(int(time.time())),
        "resourceUri": version.name,
        "policy": {"uri": "https://fedhub.dev/plan/v1", "digest": {"sha256": plan.id}},
        "inputAttestations": [{"digest": {"sha256": each}} for each in checked],
        "verificationResult": "PASSED",
        "verifiedLevels": ["FEDHUB_RELEASE", "FEDHUB_SIGNED", "FEDHUB_TRAINED"],
    }
    bundle = home.sign("verdict", [("manifest.json", version.asset_id)], members)
    record = client.post_statement(bundle)
    home.keep(bundle)
    return record


def publish_release(home: Home, client: "HubClient", version: "wire.ModelVersion") -> "wire.StatementRecord":
    """Sign and log the release of a version that enough participants approved.

    Raises:
        Refused: approvals are missing (E_APPROVALS); says how many and from whom.
    """
    approvals = approvals_of(home, client, version)
    if approvals.missing:
        waiting = ", ".join(sorted(set(approvals.participants) - set(approvals.approved_by)))
        have, named = len(approvals.approved_by), f"{version.name}@{version.version}"
        message = f"{named} has {have} of {approvals.needed} approvals"
        raise Refused("E_APPROVALS", message, f"ask {waiting} for: fedhub release approve")
    members = {"purl": release_purl(version.name, version.version, home.hub), "packageId": version.name}
    bundle = home.sign("release", [("manifest.json", version.asset_id)], members)
    record = client.post_statement(bundle)
    home.keep(bundle)
    return record


def digest_of(path: Path) -> str:
    """The digest of a small file, as a plan names it."""
    return sha256_hex(path.read_bytes())
