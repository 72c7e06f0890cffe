"""Packs for auditors: the evidence for one asset, under the newest checkpoint, for those whom it concerns.

The choice of statements is ``storage.pack``'s; whether they are true is for ``storage.verify`` on the
reader's own machine. Who may have a pack: the owner, participants of the plan that made the asset,
grantees, auditors, the operator; and every member once the version is released or public, or is a described
data set.
"""

from sqlmodel import Session

from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import bad_field, not_found
from hub.services.pulls import is_public, may_pull
from hub.services.statements import parties_of
from storage.asset_versions import versions_of
from storage.checkpoint import Checkpoint
from storage.encoding import is_digest
from storage.evidence import Evidence
from storage.pack import pack_files, select, zip_pack
from storage.translog import consistency_proof, inclusion_proofs


def pack_of(hub: Hub, actor: Actor, asset_id: str, *, from_size: int) -> bytes:
    """The pack of one asset as a zip archive.

    Args:
        from_size: entries of the checkpoint that the reader saved, 0 for none; the pack then holds the
        proof that
            today's log continues that one.
    Raises:
        Unchecked: ``E_NOT_FOUND``, no such asset for this caller; or the store is away.
    """
    if not is_digest(asset_id):
        raise not_found("asset", asset_id)
    checkpoint = hub.ledger.publish()  # so that what was logged a moment ago is in
    if checkpoint is None:
        raise not_found("asset", asset_id)
    if from_size > checkpoint.size:
        raise bad_field(
            "from_size", f"this log has {checkpoint.size} entries", "Is that checkpoint of this log?"
        )
    proof = consistency_proof(hub.store, checkpoint, from_size) if from_size else None
    with hub.database.session_scope(write=False) as session:
        with hub.ledger.evidence(session) as evidence:
            decide(actor, "read pack", thing_of(session, evidence, asset_id))
            models = _models(evidence, asset_id, checkpoint)
        manifests = _manifests(hub, session, actor, models)
        with hub.ledger.evidence(session) as evidence:
            files = pack_files(
                evidence,
                asset_id,
                checkpoint,
                lambda indexes: inclusion_proofs(hub.store, checkpoint, indexes),
                consistency=proof,
                manifests=manifests,
            )
    return zip_pack(files)


def thing_of(session: Session, evidence: Evidence, asset_id: str) -> Thing:
    """The asset with its owner and all whom it concerns."""
    versions = versions_of(evidence, asset_id)
    if not versions:
        raise not_found("asset", asset_id)
    parties: set[str] = set()
    released = bool(evidence.find("release", subject=asset_id))
    described = any(version.says["type"] == "dataset" for version in versions)
    for version in versions:
        parties |= parties_of(version, evidence)
        plan = evidence.standing(version.says.get("plan"), "plan")
        if plan is not None:
            parties |= parties_of(plan, evidence)
    for grant in evidence.find("grant", subject=asset_id):
        parties |= parties_of(grant, evidence)
    members = released or described or is_public(session, asset_id)
    return Thing(f"asset {asset_id}", versions[0].institution, frozenset(parties), members=members)


def _models(evidence: Evidence, asset_id: str, checkpoint: Checkpoint) -> list[str]:
    entries = select(evidence, asset_id, size=checkpoint.size)
    return [e.subject for e in entries if e.kind == "asset" and e.says["type"] == "model"]


def _manifests(hub: Hub, session: Session, actor: Actor, models: list[str]) -> dict[str, bytes]:
    """Manifests of the versions whose files this caller may see."""
    found = {}
    for asset_id in models:
        key = f"assets/{asset_id}/manifest.json"
        if actor.institution is None or not may_pull(hub, session, actor.institution, asset_id):
            continue
        if hub.store.size(key) is not None:
            found[asset_id] = hub.store.get(key)
    return found
