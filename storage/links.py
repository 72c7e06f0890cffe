"""Step V15: provenance, evaluations, releases and verdicts name assets that are here, and say what is true.

Also the levels that follow for each asset. ``TRAINED`` asks for the whole way from a base version to this
one: a plan, rounds that hold (V14), and provenance that lists exactly them. ``APPROVED`` asks besides for a
release after enough participants of that plan approved it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from storage.asset_versions import versions_of
from storage.consents import participants, plan_of_consent
from storage.errors import Rejected
from storage.evidence import Entry, Evidence
from storage.grants import check_grant, grant_chain
from storage.keys_in_force import check_not_revoked, revocation_of
from storage.standard import read_purl
from storage.training_record import Record, statistics_of

LEVELS = ("SIGNED", "GRANTED", "TRAINED", "APPROVED")
APPROVAL = "FEDHUB_RELEASE"


@dataclass(frozen=True)
class AssetLevels:
    """What a verification reached for one asset statement."""

    asset_id: str
    name: str
    version: int
    type: str
    levels: tuple[str, ...]
    revoked: bool = False


def check_links(evidence: Evidence, record: Record) -> None:
    """Step V15 for all that is here, but for the level that the auditor requires.

    Raises:
        Rejected: ``E_LINK``, ``E_APPROVALS``.
    """
    for kind in ("provenance", "test-result", "release", "verdict"):
        for entry in evidence.find(kind):
            _asset_named(evidence, entry)
    for entry in evidence.find("provenance"):
        check_provenance(evidence, entry, record.rounds)
    for entry in evidence.find("test-result"):
        check_result(evidence, entry)
    for entry in evidence.find("release"):
        check_release(evidence, entry)
    for entry in evidence.find("verdict"):
        check_verdict(evidence, entry)


def _asset_named(evidence: Evidence, entry: Entry) -> list[Entry]:
    versions = [version for version in versions_of(evidence, entry.subject) if version.index < entry.index]
    if not versions:
        raise Rejected(
            "E_LINK", f"{entry}: its asset {entry.subject[:12]} is not logged before it, or not here"
        )
    return versions


# --- provenance ---------------------------------------------------------------------------------------------


def check_provenance(
    evidence: Evidence, entry: Entry, rounds: Mapping[str, Sequence[Entry]] | None = None
) -> None:
    """Provenance is the word of the plan's issuer, and lists exactly the plan's rounds and their receipts.

    Args:
        rounds: plan id -> its round statements; read from the evidence when absent.
    Raises:
        Rejected: ``E_LINK``.
    """
    versions = _asset_named(evidence, entry)
    build = entry.says["buildDefinition"]
    plan = evidence.standing(build["externalParameters"]["plan"], "plan")
    if plan is None or plan.index >= entry.index:
        raise Rejected("E_LINK", f"{entry}: its plan is not logged before it, or not here")
    if plan.institution != entry.institution:
        raise Rejected("E_LINK", f"{entry}: plan {plan.id[:12]} is {plan.institution}'s to build from")
    if all(version.says.get("plan") != plan.id for version in versions):
        raise Rejected("E_LINK", f"{entry}: no statement of its asset names plan {plan.id[:12]}")
    closed = evidence.find("round", plan=plan.id) if rounds is None else rounds.get(plan.id, ())
    needed = {found.id for found in closed} | {r for found in closed for r in found.says["receipts"]}
    needed |= {digest for found in closed if (digest := statistics_of(found)) is not None}
    code, base, config = (subject.digest for subject in plan.statement.subjects)
    listed = {material["digest"]["sha256"] for material in build["resolvedDependencies"]}
    if not {code, base} <= listed:
        raise Rejected("E_LINK", f"{entry}: must list the plan's base model and code")
    missing, strange = needed - listed, listed - needed - {code, base, config}
    if missing or strange:
        which = (
            f"leaves out {min(missing)[:12]}"
            if missing
            else f"lists {min(strange)[:12]}, which is none of them"
        )
        raise Rejected(
            "E_LINK",
            f"{entry}: must list exactly the rounds of plan {plan.id[:12]}, their receipts and statistics; "
            f"it {which}",
        )
    _check_last_aggregate(evidence, entry, closed)


def _check_last_aggregate(evidence: Evidence, entry: Entry, closed: Sequence[Entry]) -> None:
    if not closed:
        raise Rejected("E_LINK", f"{entry}: its plan has closed no round")
    manifest, last = evidence.manifests.get(entry.subject), closed[-1]
    if manifest is not None and last.subject not in {file.sha256 for file in manifest.files}:
        raise Rejected(
            "E_LINK", f"{entry}: {last} ended with {last.subject[:12]}, which is no file of {manifest.name}"
        )
    scaled = statistics_of(last)
    if manifest is not None and scaled is not None and scaled not in {file.sha256 for file in manifest.files}:
        raise Rejected(
            "E_LINK", f"{entry}: rows were scaled by {scaled[:12]}, which is no file of {manifest.name}"
        )


# --- evaluations --------------------------------------------------------------------------------------------


def check_result(evidence: Evidence, entry: Entry, *, now: int | None = None) -> None:
    """A test result is the word of a participant about its own dataset, under its own consent.

    Args:
        now: seconds since 1970, when the result is to come next; its consent must then be valid.
    Raises:
        Rejected: ``E_LINK``; ``E_REVOKED`` and those of V13 for the consent.
    """
    versions = _asset_named(evidence, entry)
    named = {part["name"]: part["digest"]["sha256"] for part in entry.says["configuration"]}
    consent = evidence.standing(named["consent"], "grant")
    if consent is None or consent.index >= entry.index:
        raise Rejected("E_LINK", f"{entry}: its consent {named['consent'][:12]} is not logged before it")
    if (consent.institution, consent.subject) != (entry.institution, named["dataset"]):
        raise Rejected("E_LINK", f"{entry}: {consent} is no consent of {entry.institution} for that dataset")
    if "evaluate" not in consent.says["actions"]:
        raise Rejected("E_LINK", f"{entry}: {consent} does not allow evaluate")
    if all(v.institution != entry.institution for v in versions_of(evidence, named["dataset"])):
        raise Rejected("E_LINK", f"{entry}: dataset {named['dataset'][:12]} is not {entry.institution}'s")
    try:
        plan = plan_of_consent(evidence, consent)
    except Rejected as error:
        raise Rejected("E_LINK", f"{entry}: {error.message}") from error
    _, base, _ = (subject.digest for subject in plan.statement.subjects)
    if entry.subject != base and all(version.says.get("plan") != plan.id for version in versions):
        raise Rejected("E_LINK", f"{entry}: its asset neither starts nor ends plan {plan.id[:12]}")
    if now is not None:
        check_grant(evidence, consent, at=now, index=entry.index)
    else:
        for link in grant_chain(evidence, consent):
            check_not_revoked(evidence, link, index=entry.index)


# --- approvals and releases ---------------------------------------------------------------------------------


def check_verdict(evidence: Evidence, entry: Entry) -> None:
    """A verdict names its asset by its name, too.

    Raises:
        Rejected: ``E_LINK``.
    """
    versions = _asset_named(evidence, entry)
    if all(version.says["name"] != entry.says["resourceUri"] for version in versions):
        raise Rejected(
            "E_LINK", f"{entry}: names {entry.says['resourceUri']}, its asset is {versions[0].says['name']}"
        )


def is_approval(entry: Entry, asset: Entry, plan: Entry) -> bool:
    """True for a participant's verdict PASSED on this asset, for its release, under this plan."""
    says = entry.says
    return (
        entry.subject == asset.subject
        and entry.index > asset.index
        and entry.institution in participants(plan.statement)
        and says["verificationResult"] == "PASSED"
        and APPROVAL in says["verifiedLevels"]
        and says["resourceUri"] == asset.says["name"]
        and says["policy"]["digest"]["sha256"] == plan.id
    )


def approvals_of(evidence: Evidence, asset: Entry, plan: Entry, *, index: int | None = None) -> list[Entry]:
    """The first approval of each participant that stands at a log index (default: the end of the log)."""
    limit = evidence.size if index is None else index
    found: dict[str, Entry] = {}
    for entry in evidence.find("verdict", subject=asset.subject, plan=plan.id):
        if entry.index >= limit or not is_approval(entry, asset, plan):
            continue
        if revocation_of(evidence, entry, index=limit) is None:
            found.setdefault(entry.institution, entry)
    return list(found.values())


def released_version(evidence: Evidence, entry: Entry) -> Entry:
    """The asset statement that a release is about.

    Raises:
        Rejected: ``E_LINK``.
    """
    name, number, hub = read_purl(entry.says["purl"])
    if hub != evidence.hub:
        raise Rejected("E_LINK", f"{entry}: released at {hub}, this is the log of {evidence.hub}")
    for version in _asset_named(evidence, entry):
        if (version.says["name"], version.says["version"]) == (name, number):
            return version
    raise Rejected("E_LINK", f"{entry}: its asset {entry.subject[:12]} is not {name} version {number}")


def check_release(evidence: Evidence, entry: Entry) -> None:
    """A release follows enough approvals, where a plan says how many that is.

    Raises:
        Rejected: ``E_LINK``, ``E_APPROVALS``.
    """
    asset = released_version(evidence, entry)
    if entry.institution != asset.institution:
        raise Rejected("E_LINK", f"{entry}: {asset.says['name']} is {asset.institution}'s to release")
    plan_id = asset.says.get("plan")
    if plan_id is None:
        return
    plan = evidence.standing(plan_id, "plan")
    if plan is None or plan.index >= entry.index or plan.institution != entry.institution:
        raise Rejected(
            "E_LINK", f"{entry}: plan {plan_id[:12]} of {entry.institution} is not logged before it"
        )
    if provenance_of(evidence, asset, before=entry.index) is None:
        raise Rejected(
            "E_LINK", f"{entry}: provenance of plan {plan_id[:12]} is not logged before it, or not here"
        )
    check_approved(evidence, asset, plan, index=entry.index)


def check_approved(evidence: Evidence, asset: Entry, plan: Entry, *, index: int | None = None) -> None:
    """Enough participants approved this version's release, before a log index (default: the end of the log).

    Raises:
        Rejected: ``E_APPROVALS``.
    """
    found, needed = approvals_of(evidence, asset, plan, index=index), plan.says["approvals"]
    if len(found) < needed:
        missing = sorted(participants(plan.statement) - {entry.institution for entry in found})
        raise Rejected(
            "E_APPROVALS",
            f"{asset.says['name']} version {asset.says['version']}: {len(found)} of the {needed} approvals "
            f"that plan {plan.id[:12]} asks for are in the log",
            f"still to ask: {', '.join(missing)}",
        )


def check_may_release(evidence: Evidence, asset: Entry) -> None:
    """A version that may be released now: trained under a plan, with provenance, and approved by enough.

    Raises:
        Rejected: ``E_APPROVALS``, ``E_LINK``, ``E_REVOKED``.
    """
    what = f"{asset.says['name']} version {asset.says['version']}"
    plan_id = asset.says.get("plan")
    if plan_id is None:
        raise Rejected("E_APPROVALS", f"{what}: names no plan, so there is nobody to approve its release")
    check_not_revoked(evidence, asset)
    plan = evidence.standing(plan_id, "plan")
    if plan is None or provenance_of(evidence, asset) is None:
        raise Rejected("E_LINK", f"{what}: its plan or its provenance is not logged")
    check_approved(evidence, asset, plan)


def provenance_of(evidence: Evidence, asset: Entry, *, before: int | None = None) -> Entry | None:
    """The provenance of a version under the plan that its statement names."""
    limit = evidence.size if before is None else before
    for entry in evidence.find("provenance", subject=asset.subject, plan=asset.says.get("plan", "")):
        if asset.index < entry.index < limit and revocation_of(evidence, entry) is None:
            return entry
    return None


def release_of(evidence: Evidence, asset: Entry) -> Entry | None:
    """The release of a version that nobody has withdrawn."""
    for entry in evidence.find("release", subject=asset.subject):
        name, number, _ = read_purl(entry.says["purl"])
        same = (name, number) == (asset.says["name"], asset.says["version"])
        if same and entry.index > asset.index and revocation_of(evidence, entry) is None:
            return entry
    return None


# --- levels -------------------------------------------------------------------------------------------------


def levels_of(evidence: Evidence, record: Record, asset: Entry, granted: str | None) -> AssetLevels:
    """The levels of one asset statement, after V12 to V15 held; none for one that its owner revoked.

    Args:
        granted: asset id that V13 allowed a use of.
    """
    says = asset.says
    if revocation_of(evidence, asset) is not None:
        return AssetLevels(asset.subject, says["name"], says["version"], says["type"], (), True)
    reached = ["SIGNED"]
    if asset.subject == granted:
        reached.append("GRANTED")
    plan = evidence.standing(asset.says.get("plan"), "plan")
    trained = (
        plan is not None
        and plan.institution == asset.institution
        and bool(record.rounds.get(plan.id))
        and provenance_of(evidence, asset) is not None
    )
    if trained:
        reached.append("TRAINED")
        if release_of(evidence, asset) is not None:
            reached.append("APPROVED")
    return AssetLevels(asset.subject, says["name"], says["version"], says["type"], tuple(reached))


def heads(evidence: Evidence) -> list[Entry]:
    """The assets that a pack is about: model versions on which no other asset here stands, else datasets."""
    assets = evidence.find("asset")
    below = {asset.says["previous"] for asset in assets if "previous" in asset.says}
    bases = {plan.statement.subjects[1].digest for plan in evidence.find("plan")}
    for wanted in ("model", "dataset"):
        of_type = [asset for asset in assets if asset.says["type"] == wanted]
        top = [asset for asset in of_type if asset.id not in below and asset.subject not in bases]
        if top:
            return top
    return [asset for asset in assets if asset.id not in below]


def check_level(found: Iterable[AssetLevels], required: str) -> None:
    """Each of these assets reached the required level.

    Raises:
        Rejected: ``E_LEVEL``.
    """
    checked = list(found)
    if not checked:
        raise Rejected("E_LEVEL", f"no asset here could reach {required}")
    for asset in checked:
        if required not in asset.levels:
            reached = "is revoked" if asset.revoked else f"reached {', '.join(asset.levels)}"
            raise Rejected(
                "E_LEVEL", f"{asset.name} version {asset.version} {reached}, required is {required}"
            )
