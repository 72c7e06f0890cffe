"""THE verifier: a folder of evidence and the reader's own pins in, a report out. It opens no connection.

Every step V1 to V15 is a function below with the step's number in its name; ``STEPS`` is their order. Each
says what it checked or raises the first rule that does not hold, and nothing after a failure is looked at.
The rules themselves are elsewhere, since the hub asks the same ones before it admits a statement::

    V1 pack_files, trust      V2-V4 checkpoint, merkle     V5 keyring              V6-V8 signing, checkpoint
    V9 statements, header     V10 keys_in_force            V11 status_lists        V12 asset_versions
    V13 grants                V14 training_record          V15 links

Faults of the pack end as a failed step (exit 1). Faults of the reader's own files and arguments raise
``Unchecked`` (exit 2). Read ``verify`` and ``examine`` first.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.asset_versions import check_files, check_manifest, check_version
from storage.checkpoint import Checkpoint, check_log_signature, check_quorum, parse_proof
from storage.errors import Misuse, Rejected, Unchecked, shown
from storage.evidence import Entry, Evidence
from storage.grants import Use, check_use, leaned_on
from storage.header import check_header, check_nonce
from storage.keyring import KeyRing, read_ring
from storage.keys_in_force import check_keys, check_shared
from storage.links import LEVELS, AssetLevels, check_level, check_links, heads, levels_of
from storage.manifests import FileEntry, read_manifest
from storage.merkle import check_consistency, check_inclusion, leaf_hash
from storage.pack_files import PackFolder
from storage.report import Finding, Recorder, Report, Step
from storage.saved_checkpoint import State, read_state, save_state
from storage.signing import BUNDLE_SUFFIX, Envelope, PublicKey, check_signature, log_leaf, open_envelope
from storage.statements import read_statement
from storage.status_lists import CLOCK_S, check_statuses
from storage.training_record import Record, check_record
from storage.trust import Trust

__all__ = ["Finding", "Report", "Step", "Trust", "Use", "examine", "read_state", "save_state", "verify"]


@dataclass
class _Look:
    """What the steps before have established."""

    pack: PackFolder
    trust: Trust
    now: int
    files: Path | None
    known: Mapping[str, FileEntry] | None
    use: Use | None
    state: State | None
    require: str | None
    evidence: Evidence
    checkpoint: Checkpoint | None = None
    envelopes: list[Envelope] = field(default_factory=list)
    # by statement id: the institution and the key that signed it, and its log index
    signers: dict[str, tuple[str, PublicKey]] = field(default_factory=dict)
    indexes: dict[str, int] = field(default_factory=dict)
    files_are: list[Entry] = field(default_factory=list)
    record: Record = field(default_factory=Record)
    levels: list[AssetLevels] = field(default_factory=list)

    @property
    def head(self) -> Checkpoint:
        """The checkpoint, from V2 on."""
        if self.checkpoint is None:
            raise Misuse("E_MISUSE", "a step was taken before V2")
        return self.checkpoint


def verify(
    pack: Path,
    trust: Trust,
    *,
    now: int,
    files: Path | None = None,
    known: Mapping[str, FileEntry] | None = None,
    use: Use | Mapping[str, Any] | None = None,
    state: Path | None = None,
    require: str | None = None,
) -> Report:
    """``examine``, for those who go on only when everything holds.

    Raises:
        Rejected: the first step that failed.
        Unchecked: the reader's own files or arguments cannot be used.
    """
    report = examine(pack, trust, now=now, files=files, known=known, use=use, state=state, require=require)
    if report.error is not None:
        raise report.error
    return report


def examine(
    pack: Path,
    trust: Trust,
    *,
    now: int,
    files: Path | None = None,
    known: Mapping[str, FileEntry] | None = None,
    use: Use | Mapping[str, Any] | None = None,
    state: Path | None = None,
    require: str | None = None,
) -> Report:
    """Take the steps V1 to V15 on a pack, up to the first that fails.

    Args:
        pack: the folder.
        trust: the reader's pins; nothing in the pack can add to them.
        now: seconds since 1970 to check for.
        files: folder with the files of an asset, which must be exactly one that the pack is about.
        known: files below it, by name, that the caller has hashed as it wrote them: they are not read again.
        use: a use of a grant to check, as ``Use`` or as the JSON object of ``--use``.
        state: file with the last accepted checkpoint; missing: nothing is saved yet. Only read here.
        require: the least level of the asset that ``files`` or ``use`` name, else of those the pack is about.
    Raises:
        Unchecked: ``E_INPUT``, ``E_TRUST``; the reader's own files or arguments cannot be used.
    """
    wanted = use if use is None or isinstance(use, Use) else Use.parse(use)
    if require is not None and require not in LEVELS:
        raise Unchecked("E_INPUT", f"level {shown(require)}: expected one of {', '.join(LEVELS)}")
    if files is not None and not os.path.isdir(files):
        raise Unchecked("E_INPUT", f"files {files}: no such folder")
    saved = read_state(state) if state is not None else None
    recorder = Recorder()
    error: Rejected | None = None
    look: _Look | None = None
    try:
        folder = PackFolder(pack)
        evidence = Evidence(trust.hub, trust.operator, {})
        look = _Look(folder, trust, now, files, known, wanted, saved, require, evidence)
        for step in STEPS:
            recorder.hold(len(recorder.steps) + 1, step(look))
    except Rejected as found:
        error = found
        recorder.fail(len(recorder.steps) + 1, found)
        found.step = recorder.steps[-1].id
    done = look if look is not None and error is None else None
    head = look.checkpoint if look is not None else None
    return Report(
        tuple(recorder.steps),
        error,
        now,
        head.size if head else 0,
        head.root if head else b"",
        tuple(done.levels) if done else (),
        tuple(sorted(look.evidence.rings)) if look else (),
    )


# --- the steps ----------------------------------------------------------------------------------------------


def _v1_inputs(look: _Look) -> Finding:
    pinned = len(look.trust.institutions)
    size = look.pack.total_bytes
    return Finding(f"{len(look.pack.files)} files, {size:,} bytes; trust.json pins {pinned} institutions")


def _v2_checkpoint(look: _Look) -> Finding:
    look.checkpoint = check_log_signature(look.pack.checkpoint(), look.trust.policy, look.trust.hub)
    return Finding(f"log of {look.head.origin}, {look.head.size} entries, signed by its key")


def _v3_witnesses(look: _Look) -> Finding:
    age = check_quorum(look.head, look.trust.policy, look.now, look.trust.max_checkpoint_age)
    if age is None:
        return Finding("", ("its age (no witness)",))
    return Finding(f"quorum {look.trust.policy.quorum} saw it, the oldest needed {age} s ago")


def _v4_saved(look: _Look) -> Finding:
    path, state = look.pack.consistency(), look.state
    if state is None:
        return Finding("", ("rollback and split view (no checkpoint saved)",))
    if look.head.size <= state.size:
        path = []  # nothing to prove: the root must be the same, or the log has shrunk
    check_consistency(state.size, state.root, look.head.size, look.head.root, path or [])
    return Finding(f"extends the {state.size} entries accepted before")


def _v5_rings(look: _Look) -> Finding:
    rings: dict[str, KeyRing] = {}
    for institution, pin in sorted(look.trust.institutions.items()):
        roots = look.pack.roots(institution)
        if not roots:
            continue
        ring = read_ring(institution, roots, pin)
        if ring.newest.expires <= look.now:
            raise Rejected(
                "E_KEYRING_EXPIRED",
                f"key ring of {institution}: version {ring.newest.version} has expired",
                f"get a newer pack; {institution} renews its ring with: fedhub institution rotate",
            )
        check_shared(ring, rings.values())
        rings[institution] = ring
    look.evidence.rings = rings
    return Finding(f"{len(rings)} rings of pinned institutions: {', '.join(sorted(rings)) or 'none'}")


def _v6_bundles(look: _Look) -> Finding:
    for name, raw in look.pack.bundles():
        envelope = open_envelope(raw)
        if name != envelope.id + BUNDLE_SUFFIX:
            raise Rejected("E_BUNDLE", f"pack: statements/{shown(name)} holds statement {envelope.id}")
        look.envelopes.append(envelope)
    return Finding(f"{len(look.envelopes)} bundles in strict form")


def _v7_signatures(look: _Look) -> Finding:
    for envelope in look.envelopes:
        signer = look.evidence.find_key(envelope.hint)
        if signer is None:
            raise Rejected(
                "E_KEY_UNKNOWN",
                f"statement {envelope.id}: key {envelope.hint} is in no ring that trust.json pins",
                "pin the institution after comparing its pin by another way, if you mean to trust it",
            )
        check_signature(signer[1], envelope)
        look.signers[envelope.id] = signer
    return Finding(f"{len(look.envelopes)} signatures by keys of those rings")


def _v8_proofs(look: _Look) -> Finding:
    head = look.head
    for envelope in look.envelopes:
        raw = look.pack.proof(envelope.id)
        if raw is None:
            raise Rejected("E_NOT_LOGGED", f"statement {envelope.id}: the pack has no log proof of it")
        proof = parse_proof(raw)
        if proof.note != head.note:
            raise Rejected("E_PROOF", f"statement {envelope.id}: its proof is to another checkpoint")
        _, key = look.signers[envelope.id]
        leaf = leaf_hash(log_leaf(key, envelope))
        check_inclusion(leaf, proof.index, head.size, proof.path, head.root)
        look.indexes[envelope.id] = proof.index
    return Finding(f"{len(look.envelopes)} statements are in the log of that checkpoint")


def _v9_statements(look: _Look) -> Finding:
    entries = []
    for envelope in look.envelopes:
        statement = read_statement(envelope)
        institution, _ = look.signers[envelope.id]
        check_header(statement, institution, hub=look.trust.hub, latest=look.now + CLOCK_S)
        entries.append(Entry(statement, institution, envelope.hint, look.indexes[envelope.id], envelope))
    for entry in sorted(entries, key=lambda entry: entry.index):
        check_nonce(look.evidence, entry)
        look.evidence.add(entry)
    look.evidence.size = look.head.size
    return Finding(f"{len(entries)} statements well formed, their issuers and hub as signed, no nonce twice")


def _v10_keys(look: _Look) -> Finding:
    check_keys(look.evidence)
    return Finding("every key in force at its index, in its role, not revoked")


def _v11_statuses(look: _Look) -> Finding:
    leaning = leaned_on(look.evidence, look.use.grant) if look.use else set()
    ages = check_statuses(look.evidence, now=look.now, leaning_on=leaning)
    told = ", ".join(
        f"{name} {_age(age)}" + (" (fresh)" if name in leaning else "") for name, age in ages.items()
    )
    return Finding(f"{len(ages)} newest status lists: {told}" if ages else "no institution needs one")


def _age(seconds: int) -> str:
    if seconds < 3600:
        return f"{max(0, seconds) // 60} min"
    return f"{seconds // 3600} h" if seconds < 2 * 86_400 else f"{seconds // 86_400} days"


def _v12_assets(look: _Look) -> Finding:
    evidence = look.evidence
    assets = evidence.find("asset")
    for asset in assets:
        check_version(evidence, asset)
    for asset_id, raw in look.pack.manifests():
        manifest = read_manifest(raw)
        if manifest.asset_id != asset_id:
            raise Rejected("E_SUBJECT", f"manifest of {asset_id}: its digest is {manifest.asset_id}")
        check_manifest(evidence, manifest)
        evidence.manifests[asset_id] = manifest
    what = f"{len(assets)} asset statements in unforked chains, {len(evidence.manifests)} manifests"
    if look.files is None:
        return Finding(what, ("files (no --files)",))
    look.files_are, manifest = check_files(evidence, look.files, look.known)
    evidence.manifests[manifest.asset_id] = manifest
    says = look.files_are[-1].says
    return Finding(f"{what}; the {len(manifest.files)} files are {says['name']} version {says['version']}")


def _v13_use(look: _Look) -> Finding:
    use = look.use
    if use is None:
        return Finding("", ("a use (no --use)",))
    chain = check_use(look.evidence, use, now=look.now)
    links = f"{len(chain)} grants" if len(chain) > 1 else "1 grant"
    return Finding(f"{use.grantee} may {use.action} {use.name}, by {links} from {chain[-1].institution}")


def _v14_record(look: _Look) -> Finding:
    look.record = record = check_record(look.evidence)
    rounds = sum(len(found) for found in record.rounds.values())
    what = f"{len(record.counted)} receipts, {rounds} rounds of {len(record.rounds)} plans"
    if record.not_counted:
        names = ", ".join(str(receipt) for receipt in record.not_counted[:3])
        what += f"; not counted, as no round lists them: {len(record.not_counted)} ({names})"
    return Finding(what)


def _v15_links(look: _Look) -> Finding:
    evidence = look.evidence
    check_links(evidence, look.record)
    granted = look.use.asset if look.use else None
    assets = evidence.find("asset")
    look.levels = [levels_of(evidence, look.record, asset, granted) for asset in assets]
    counts = {kind: len(evidence.find(kind)) for kind in ("provenance", "test-result", "verdict", "release")}
    what = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    if look.require is not None:
        target = look.files_are or [asset for asset in assets if asset.subject == granted] or heads(evidence)
        ids = {asset.id for asset in target}
        pairs = zip(assets, look.levels, strict=True)
        check_level((levels for asset, levels in pairs if asset.id in ids), look.require)
        what += f"; {look.require} reached"
    hidden = sorted(
        f"{entry.says['name']} version {entry.says['version']}"
        for entry, levels in zip(assets, look.levels, strict=True)
        if "TRAINED" in levels.levels and entry.subject not in evidence.manifests
    )
    part = f"that the last aggregate is in {', '.join(hidden)} (no manifest)"
    return Finding(what, (part,) if hidden else ())


STEPS: tuple[Callable[[_Look], Finding], ...] = (
    _v1_inputs,
    _v2_checkpoint,
    _v3_witnesses,
    _v4_saved,
    _v5_rings,
    _v6_bundles,
    _v7_signatures,
    _v8_proofs,
    _v9_statements,
    _v10_keys,
    _v11_statuses,
    _v12_assets,
    _v13_use,
    _v14_record,
    _v15_links,
)
