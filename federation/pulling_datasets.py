"""A member pulls a shared data set: its bytes and its evidence are checked like a model's before it is there.

Only data sets whose owner put the files into the hub on purpose can be pulled; of those that stay on-site
the hub has no file.
"""

import base64
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.home import Home
from federation.pulling import check_pack, fetch_files, fetch_pack, resting, split_reference, use_of
from storage.errors import Rejected, Unchecked
from storage.manifests import Manifest, read_manifest

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient
    from storage.verify import Report


@dataclass(frozen=True)
class PulledDataset:
    """What was installed, and what the verification said."""

    name: str
    version: int
    manifest: Manifest
    folder: Path
    grant: str | None
    report: "Report"


def pull_dataset(
    home: Home,
    client: "HubClient",
    reference: str,
    target: Path,
    *,
    duo: Sequence[str] = (),
    moved: Callable[[int], None] | None = None,
) -> PulledDataset:
    """Install a version of a shared data set at ``target`` after its bytes and evidence were checked.

    Args:
        reference: ``NAME@3``, or ``NAME`` for the newest version.
        duo: terms of use that the puller accepts.
        moved: told how many bytes arrived, as they arrive.
    Raises:
        Refused: no valid grant.
        Rejected: a file or the evidence is not what was signed; the message names it.
        Unchecked: ``E_NOT_FOUND``, ``E_TARGET``.
    """
    if target.exists() or target.is_symlink():
        raise Unchecked("E_TARGET", f"{target} is there already", "choose another folder, or remove it first")
    found, manifest = _find(client, reference)
    name, version = found.name, found.version or 0
    with resting(target.parent / f".{target.name}.{manifest.asset_id[:16]}.pull") as place:
        pull = client.pull(manifest.asset_id, duo)
        shutil.rmtree(place / "pack", ignore_errors=True)  # of a pull that was cut
        fetch_pack(home, client, manifest.asset_id, place / "pack")
        came = fetch_files(client, pull, manifest, place / "files", moved=moved)
        use = use_of(pull.grant, home.institution, manifest.asset_id, name, duo) if pull.grant else None
        report = check_pack(home, place / "pack", files=place / "files", known=came, use=use)
        os.rename(place / "files", target)
    return PulledDataset(name, version, manifest, target, pull.grant, report)


def _find(client: "HubClient", reference: str) -> "tuple[wire.Revision, Manifest]":
    """The signed version that a reference names, and its manifest."""
    name, version, tag = split_reference(reference)
    if version is None and tag is None:
        version = client.revision("dataset", name, "main").newest
    revision = tag or f"v{version}"
    found = None if version is None and tag is None else client.revision("dataset", name, revision)
    if found is None or found.version is None or found.manifest is None:
        raise Unchecked("E_NOT_FOUND", f"{reference}: no signed version", "its owner runs: fedhub data share")
    manifest = read_manifest(base64.b64decode(found.manifest))
    if manifest.asset_id != found.asset_id or manifest.name != name:
        what = f"the manifest of {name} at {revision} is {manifest.asset_id} of {manifest.name}"
        raise Rejected("E_SUBJECT", what, f"expected {found.asset_id}")
    return found, manifest
