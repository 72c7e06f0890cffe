"""Step V12: assets. Whose they are, how their versions follow each other, and whether files are one of them.

An asset id is the digest of a manifest that holds the asset's own name. Two institutions never share an id,
a name lies inside its issuer's namespace, and the versions of a name form one chain from 1 without gaps or
forks.
"""

from collections.abc import Mapping
from pathlib import Path

from storage.encoding import canonical, read_json, sha256_hex
from storage.errors import Rejected
from storage.evidence import Entry, Evidence
from storage.keys_in_force import check_not_revoked, revocation_of
from storage.manifests import (
    MANIFEST_LIMIT_BYTES,
    FileEntry,
    Manifest,
    build_manifest,
    check_oms,
    read_manifest,
)
from storage.status_lists import check_not_named

V12 = "V12"


def versions_of(evidence: Evidence, asset_id: str) -> list[Entry]:
    """The asset statements about this id: usually one, more when a version repeats an earlier one's files."""
    return evidence.find("asset", subject=asset_id)


def owner_of(evidence: Evidence, asset_id: str) -> str | None:
    """The institution whose asset this is."""
    versions = versions_of(evidence, asset_id)
    return versions[0].institution if versions else None


def valid_versions(evidence: Evidence, asset_id: str, *, index: int | None = None) -> list[Entry]:
    """The asset statements about this id that are not revoked for a use logged at ``index`` (default: now).

    Raises:
        Rejected: ``E_REVOKED``; there are some, and each is revoked.
    """
    versions = versions_of(evidence, asset_id)
    valid = [entry for entry in versions if revocation_of(evidence, entry, index=index) is None]
    if versions and not valid:
        check_not_revoked(evidence, versions[-1], index=index)
    return valid


def check_version(evidence: Evidence, entry: Entry) -> None:
    """One asset statement against all others, whether it stands in the evidence or is the one to come next.

    Raises:
        Rejected: ``E_ASSET_CLAIMED``, ``E_ISSUER``, ``E_VERSION_CHAIN``.
    """
    name, version = entry.says["name"], entry.says["version"]
    for other in versions_of(evidence, entry.subject):
        if other.institution != entry.institution:
            raise Rejected(
                "E_ASSET_CLAIMED",
                f"asset {entry.subject}: is {other.says['name']}, claimed as {name} by {entry.institution}",
            )
    if not name.startswith(entry.institution + "/"):
        raise Rejected(
            "E_ISSUER", f"{entry}: {name} lies outside the namespace {entry.institution}/", step=V12
        )
    for other in evidence.find("asset", issuer=entry.institution):
        if other.id != entry.id and (other.says["name"], other.says["version"]) == (name, version):
            raise Rejected(
                "E_VERSION_CHAIN", f"{name}: version {version} is {other.id[:12]} and also {entry.id[:12]}"
            )
    if version > 1:
        _check_previous(evidence, entry)


def _check_previous(evidence: Evidence, entry: Entry) -> None:
    name, version = entry.says["name"], entry.says["version"]
    before = evidence.standing(entry.says["previous"], "asset")
    expected = (entry.institution, name, version - 1, entry.says["type"])
    if before is None or before.index >= entry.index:
        raise Rejected(
            "E_VERSION_CHAIN",
            f"{name}: version {version} names {entry.says['previous'][:12]}, which is not here",
        )
    found = (before.institution, before.says["name"], before.says["version"], before.says["type"])
    if found != expected:
        raise Rejected(
            "E_VERSION_CHAIN",
            f"{name}: version {version} must follow version {version - 1}, "
            f"it follows version {found[2]} of {found[1]}",
        )


def check_manifest(evidence: Evidence, manifest: Manifest) -> None:
    """A manifest against the asset statements about it: the same name and, for a model, a fitting signature.

    Raises:
        Rejected: ``E_SUBJECT``, ``E_ASSET_CLAIMED``, ``E_OMS``, ``E_REVOKED``.
    """
    versions = versions_of(evidence, manifest.asset_id)
    if not versions:
        raise Rejected("E_SUBJECT", f"manifest {manifest.asset_id} of {manifest.name}: no such asset is here")
    for entry in versions:
        if entry.says["name"] != manifest.name:
            raise Rejected(
                "E_ASSET_CLAIMED", f"{entry}: claims the files of {manifest.name} as {entry.says['name']}"
            )
        if entry.says["type"] == "model":
            check_model_signature(evidence, entry, manifest)


def check_model_signature(evidence: Evidence, entry: Entry, manifest: Manifest | None = None) -> None:
    """A model's asset statement names its issuer's OMS statement; with the manifest, over the same files.

    Raises:
        Rejected: ``E_OMS``, ``E_REVOKED``.
    """
    oms = evidence.standing(entry.says["oms"], "oms")
    if oms is None or oms.institution != entry.institution:
        raise Rejected(
            "E_OMS", f"{entry}: OMS statement {entry.says['oms'][:12]} of {entry.institution} is not here"
        )
    check_not_revoked(evidence, oms)
    if manifest is not None:
        if manifest.salt is not None:
            raise Rejected("E_OMS", f"{entry}: the manifest of a model has no salt")
        check_oms(oms.statement, manifest)


def check_files(
    evidence: Evidence, folder: Path, known: Mapping[str, FileEntry] | None = None
) -> tuple[list[Entry], Manifest]:
    """The versions that the files in a folder are, all of them and no others, and their manifest.

    Args:
        known: as in ``read_entries``.
    Raises:
        Rejected: ``E_PATH``, ``E_SUBJECT``, ``E_REVOKED``, ``E_OMS``, ``E_ASSET_CLAIMED``.
        Unchecked: ``E_INPUT``; the folder cannot be read.
    """
    manifest = _rebuild(evidence, folder, known)
    versions = valid_versions(evidence, manifest.asset_id)
    for entry in versions:
        check_not_named(evidence, entry)
    check_manifest(evidence, manifest)
    return versions, manifest


def _rebuild(evidence: Evidence, folder: Path, known: Mapping[str, FileEntry] | None) -> Manifest:
    """The manifest of a folder under the name of that asset here whose id it has; reads each file once."""
    names = sorted({entry.says["name"] for entry in evidence.find("asset")})
    built = build_manifest(folder, names[0] if names else "none.example/none", known=known)
    document = read_json(built.raw, limit=MANIFEST_LIMIT_BYTES)
    salts = {(known.name, known.salt) for known in evidence.manifests.values() if known.salt}
    for name, salt in [*((name, None) for name in names), *sorted(salts)]:
        named = {**document, "name": name}
        raw = canonical(named if salt is None else {**named, "salt": salt})
        if versions_of(evidence, sha256_hex(raw)):
            return read_manifest(raw)
    raise Rejected(
        "E_SUBJECT",
        f"files in {folder}: {len(built.files)} files that are no asset of this pack",
        "a file was added, removed, renamed or changed, or the pack is about another version",
    )
