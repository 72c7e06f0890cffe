"""The cache of stock Hugging Face clients, filled with verified versions, so that they load them offline.

Layout, as ``huggingface_hub`` reads it: ``models--<institution>--<name>/`` with ``blobs/<etag>``, one file
each, ``snapshots/<commit>/<path>`` pointing to them, and ``refs/<branch or tag>`` holding a commit. A blob's
etag is the SHA-256 of a large file, git's blob SHA-1 of a small one. The commit's id comes from the hub: it
only names the folder, while what lies in it was checked against the signed manifest.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from federation.home import Home
from federation.pulling import Pulled, find_version, manifest_of, pull_checked, resting
from federation.stock_names import git_oid, is_large
from storage.errors import FedhubError, Rejected, shown
from storage.manifests import FileEntry

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REF = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


def cache_folder() -> Path:
    """Where stock clients look: HF_HUB_CACHE, else HF_HOME/hub, else the user's own cache folder."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("HF_HOME")
    base = Path(home).expanduser() if home else None
    return (base or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface") / "hub"


def pull_into_cache(
    home: Home,
    client: "HubClient",
    reference: str,
    cache: Path,
    *,
    revision: str | None = None,
    grant: str | None = None,
    duo: Sequence[str] = (),
    moved: Callable[[int], None] | None = None,
) -> Pulled:
    """Pull a version as ``pulling.pull_version`` does, into a stock client's cache.

    Its commit is found there as ``v<number>``, by its tags, as ``main`` where main shows it now, and as
    ``revision``.

    Args:
        cache: the folder that holds all repositories.
        revision: one more name to find it by.
    Raises:
        Refused, Rejected: as for any pull; nothing new is in the cache then.
    """
    version = find_version(client, reference)
    commit = _commit_of(client, version)
    refs = {f"v{version.version}", *version.tags, *([revision] if revision else ())}
    if _shows(client, version.name, "main", commit):
        refs.add("main")
    for ref in refs:
        if not _REF.fullmatch(ref):
            raise Rejected("E_PATH", f"{shown(ref)} cannot be a name in the cache")
    repository = cache / ("models--" + version.name.replace("/", "--"))
    with resting(repository / f".{version.asset_id[:16]}.pull") as place:
        pulled = pull_checked(home, client, version, place, grant=grant, duo=duo, moved=moved)
        manifest = manifest_of(client, version, version.asset_id)
        snapshot = _install(repository, commit, manifest.files, pulled.folder, place)
        for ref in sorted(refs):
            _write_whole(repository / "refs" / ref, commit)
    return replace(pulled, folder=snapshot)


def _commit_of(client: "HubClient", version: "wire.ModelVersion") -> str:
    found = client.revision("model", version.name, f"v{version.version}")
    if found.asset_id != version.asset_id or not _COMMIT.fullmatch(found.revision):
        message = f"the hub's commit {shown(found.revision)} is not {version.name}@{version.version}"
        raise Rejected("E_SUBJECT", message, "tell the operator")
    return found.revision


def _shows(client: "HubClient", name: str, ref: str, commit: str) -> bool:
    try:
        return client.revision("model", name, ref).revision == commit
    except FedhubError as error:
        if error.code not in ("E_REVISION", "E_NOT_FOUND"):
            raise
        return False


def _install(repository: Path, commit: str, files: Sequence[FileEntry], checked: Path, place: Path) -> Path:
    """Move checked files to their blobs, then make the snapshot visible in one step."""
    blobs, snapshot = repository / "blobs", repository / "snapshots" / commit
    blobs.mkdir(exist_ok=True)
    snapshot.parent.mkdir(exist_ok=True)
    fresh = place / "snapshot"
    shutil.rmtree(fresh, ignore_errors=True)
    for entry in files:
        source = checked / entry.name
        etag = entry.sha256 if is_large(entry.name, entry.size) else git_oid(source.read_bytes())
        source.replace(blobs / etag)
        link = fresh / PurePosixPath(entry.name)
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "/".join([".."] * (2 + entry.name.count("/")))
        link.symlink_to(f"{up}/blobs/{etag}")
    if snapshot.exists():  # a stock client may have fetched a part of it, by names only: ours were checked
        shutil.rmtree(snapshot)
    fresh.rename(snapshot)
    return snapshot


def _write_whole(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fresh.write_text(content)
    fresh.replace(path)
