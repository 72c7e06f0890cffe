"""Packs: the evidence for one asset and all that it stands on, chosen from a whole log, as a folder or a zip.

``select`` is the choice: the asset with the versions before it, its signature, grants with their parents,
pulls, evaluations, approvals and release; where a plan made it, the plan with its participants' datasets,
consents, receipts, rounds and provenance; the same for the base version, down to one that no plan made. For
every institution that signed any of it: its ring, the statements that put the ring into force, its newest
status list, and its revocations of what is here.

What is in a pack is not true because it is there: ``storage.verify`` decides.
"""

import io
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from storage.asset_versions import versions_of
from storage.checkpoint import Checkpoint, Proof, proof_text
from storage.errors import Rejected, Unchecked, shown
from storage.evidence import Entry, Evidence
from storage.pack_files import MAX_FILES, MAX_PACK_BYTES, PROOF_SUFFIX, consistency_text, limit_of
from storage.signing import BUNDLE_SUFFIX

Prove = Callable[[Sequence[int]], Sequence[Proof]]
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same evidence gives the same zip


# --- what belongs to an asset -------------------------------------------------------------------------------


class _Choice:
    """Entries chosen so far, below the size of a checkpoint and with signatures that count."""

    def __init__(self, evidence: Evidence, size: int) -> None:
        self.evidence = evidence
        self.size = size
        self.chosen: dict[str, Entry] = {}
        self._plans: set[str] = set()
        self._assets: set[str] = set()

    def take(self, entry: Entry | None) -> bool:
        """Choose an entry; False when it is not in this log, counts for nothing, or was chosen before."""
        if entry is None or entry.index >= self.size or entry.id in self.chosen:
            return False
        if self.evidence.is_void(entry):
            return False
        self.chosen[entry.id] = entry
        return True

    def take_found(self, kind: str, *, subject: str | None = None, plan: str | None = None) -> list[Entry]:
        """Choose all entries of a kind about a subject or a plan; gives those that are in this log."""
        found = [e for e in self.evidence.find(kind, subject=subject, plan=plan) if e.index < self.size]
        for entry in found:
            self.take(entry)
        return found

    def take_versions(self, asset_id: str) -> None:
        """An asset's statements with those of the versions before, and the model signatures they name."""
        waiting = [entry for entry in versions_of(self.evidence, asset_id) if entry.index < self.size]
        while waiting:
            entry = waiting.pop()
            if self.take(entry) and "previous" in entry.says:
                before = self.evidence.standing(entry.says["previous"], "asset")
                waiting.extend([before] if before else [])
            self.take(self.evidence.standing(entry.says.get("oms"), "oms"))

    def take_history(self, asset_id: str) -> None:
        """How an asset came to be: versions, plan and run, approvals, release; its base version likewise."""
        waiting = [asset_id]
        while waiting:
            current = waiting.pop()
            if current in self._assets:
                continue
            self._assets.add(current)
            self.take_versions(current)
            for kind in ("verdict", "release"):
                self.take_found(kind, subject=current)
            for version in versions_of(self.evidence, current):
                plan = self.evidence.standing(version.says.get("plan"), "plan")
                if plan is not None and plan.index < self.size:
                    self.take_plan(plan)
                    self.take_found("provenance", subject=current, plan=plan.id)
                    waiting.append(plan.statement.subjects[1].digest)

    def take_plan(self, plan: Entry) -> None:
        """A plan, its participants' datasets, their consents, and the record of its run."""
        if plan.id in self._plans:
            return
        self._plans.add(plan.id)
        self.take(plan)
        self.take_versions(plan.statement.subjects[1].digest)
        for part in plan.says["participants"]:
            self.take_versions(part["dataset"])
            self.take_found("grant", subject=part["dataset"], plan=plan.id)
        for kind in ("receipt", "round"):
            self.take_found(kind, plan=plan.id)

    def take_results(self) -> None:
        """Evaluations of the assets here under consents that are here; others lean on other plans."""
        for asset_id in self._assets:
            for entry in self.evidence.find("test-result", subject=asset_id):
                named = {part["name"]: part["digest"]["sha256"] for part in entry.says["configuration"]}
                if named["consent"] in self.chosen:
                    self.take(entry)

    def take_grants(self, asset_id: str) -> None:
        """Grants on an asset, consents left out, with the receipts of its pulls."""
        for grant in self.evidence.find("grant", subject=asset_id):
            if "plan" not in grant.says["conditions"]:
                self.take(grant)
        for receipt in self.evidence.find("receipt", subject=asset_id):
            if receipt.says["action"] == "pull" and receipt.says["grant"] in self.chosen:
                self.take(receipt)

    def take_institutions(self) -> None:
        """Rings, newest status lists and revocations of all who signed something here and of the operator."""
        names = {entry.institution for entry in self.chosen.values()} | {self.evidence.operator}
        for name in sorted(names):
            for entry in self.evidence.by_kind("keyring"):
                if entry.institution == name:
                    self.take(entry)
            statuses = [e for e in self.evidence.find("status", issuer=name) if e.index < self.size]
            self.take(statuses[-1] if statuses else None)
            for entry in self.evidence.find("revocation", issuer=name):
                if entry.says["target"] == "key" or entry.subject in self.chosen:
                    self.take(entry)


def select(evidence: Evidence, asset_id: str, *, size: int) -> list[Entry]:
    """The entries of the pack of one asset, in log order.

    Args:
        evidence: the whole log.
        size: entries of the checkpoint; what was logged later is left out.
    Raises:
        Unchecked: ``E_NOT_FOUND``; no such asset in a log of this size.
    """
    choice = _Choice(evidence, size)
    choice.take_history(asset_id)
    if not any(entry.kind == "asset" and entry.subject == asset_id for entry in choice.chosen.values()):
        raise Unchecked(
            "E_NOT_FOUND",
            f"asset {asset_id}: not in the log's first {size} entries",
            "what was logged a moment ago is published shortly: try again",
        )
    choice.take_results()
    choice.take_grants(asset_id)
    choice.take_institutions()
    return sorted(choice.chosen.values(), key=lambda entry: entry.index)


def pack_files(
    evidence: Evidence,
    asset_id: str,
    checkpoint: Checkpoint,
    prove: Prove,
    *,
    consistency: Sequence[bytes] | None = None,
    manifests: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """The files of the pack of one asset: path -> bytes.

    Args:
        evidence: the whole log.
        checkpoint: the published head that all proofs lead to.
        prove: gives the inclusion proofs of these indexes, in their order.
        consistency: hashes from the size that the reader saved; None when it asked for none.
        manifests: asset id -> ``manifest.json``, for models whose files the reader may see.
    Raises:
        Unchecked: ``E_NOT_FOUND``; no such asset in the published log.
    """
    entries = select(evidence, asset_id, size=checkpoint.size)
    files = {"checkpoint": checkpoint.note}
    if consistency is not None:
        files["consistency.json"] = consistency_text(list(consistency))
    logged: dict[str, int] = {}
    for entry in entries:
        files[f"statements/{entry.id}{BUNDLE_SUFFIX}"] = entry.envelope.raw
        if entry.kind == "keyring":
            logged[entry.institution] = entry.says["version"]
    for entry, proof in zip(entries, prove([entry.index for entry in entries]), strict=True):
        files[f"proofs/{entry.id}{PROOF_SUFFIX}"] = proof_text(proof)
    for institution, newest in sorted(logged.items()):
        for number, version in sorted(evidence.rings[institution].versions.items()):
            if number <= newest:  # a version that the published log does not know yet is not in force in it
                files[f"keyrings/{institution}/{number}.root.json"] = version.raw
    here = {entry.subject for entry in entries if entry.kind == "asset"}
    for known, raw in sorted((manifests or {}).items()):
        if known in here:
            files[f"assets/{known}/manifest.json"] = raw
    return files


# --- folder and zip -----------------------------------------------------------------------------------------


def write_pack(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a pack into a new folder, which appears whole or not at all.

    Raises:
        Unchecked: ``E_TARGET``; the folder is there already or cannot be written.
        Rejected: ``E_PATH``, ``E_LIMIT``; a path is no path of a pack, or a file is too large for one.
    """
    for path, raw in files.items():
        _check_file(path, len(raw))
    if folder.exists() or folder.is_symlink():
        raise Unchecked(
            "E_TARGET", f"{folder}: is there already", "choose another folder, or remove it first"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for path, raw in files.items():
                target = beside / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(raw)
            beside.chmod(0o755)
            os.rename(beside, folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        hint = "make room there, get the right to write, or choose another folder"
        raise Unchecked("E_TARGET", f"{folder}: cannot be written ({error.strerror})", hint) from error


def zip_pack(files: Mapping[str, bytes]) -> bytes:
    """A pack as one zip archive; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files):
            member = zipfile.ZipInfo(path, _EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, files[path])
    return buffer.getvalue()


def unzip_pack(raw: bytes) -> dict[str, bytes]:
    """The files of a pack in a zip archive from outside: path -> bytes.

    Only the paths that a pack has are accepted, each once and within its size, so that nothing can climb
    out of a folder, stand twice, or unpack to more than a pack may be.

    Raises:
        Rejected: ``E_PATH``, ``E_LIMIT``, ``E_MALFORMED``.
    """
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_PACK_BYTES:
                raise Rejected(
                    "E_LIMIT", f"pack archive: more than {MAX_FILES} files or {MAX_PACK_BYTES} bytes"
                )
            for member in members:
                limit = _check_file(member.filename, member.file_size)
                if member.filename in files:
                    raise Rejected("E_PATH", f"pack archive: {shown(member.filename)} stands twice")
                if member.flag_bits & 0x1 or member.compress_type not in (
                    zipfile.ZIP_STORED,
                    zipfile.ZIP_DEFLATED,
                ):
                    raise Rejected(
                        "E_MALFORMED", f"pack archive: {shown(member.filename)} is packed otherwise"
                    )
                with archive.open(member) as stream:
                    files[member.filename] = stream.read(limit + 1)
                _check_file(member.filename, len(files[member.filename]))
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, zlib.error) as error:
        raise Rejected("E_MALFORMED", f"pack archive: {error}") from error
    return files


def _check_file(path: str, size: int) -> int:
    limit = limit_of(path)
    if limit is None:
        raise Rejected("E_PATH", f"pack: {shown(path)} is no path of a pack")
    if size > limit:
        raise Rejected("E_LIMIT", f"pack: {shown(path)} has {size} bytes, at most {limit} are read")
    return limit
