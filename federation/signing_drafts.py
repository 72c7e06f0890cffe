"""An institution signs what its people pushed with stock clients: a draft becomes a version.

No token can sign, so a draft is the hub's word about what was sent. The signer compares it with a folder
of their own, file by file, before the institution's key is used; to sign without one is to trust the
hub, and must be said.
"""

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from federation.home import Home
from federation.licences import check_license
from federation.publishing import check_namespace, post_version
from federation.stock_names import is_reserved
from storage.croissant import make_croissant
from storage.encoding import sha256_hex
from storage.errors import Rejected, Unchecked, shown
from storage.manifests import Manifest, hash_file, read_manifest

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient

# What stock clients leave at home when they upload a folder.
IGNORED = ".cache/huggingface/"
SHOWN = 10


def sign_draft(
    home: Home,
    client: "HubClient",
    name: str,
    revision: str,
    *,
    files: Path | None,
    license_id: str | None = None,
    tags: Sequence[str] = (),
) -> "wire.ModelVersion":
    """Make a draft of a model the next version; one that was signed already is that version.

    Args:
        revision: branch, tag or commit id.
        files: the signer's own copy of the files; None trusts the hub that the draft is what was meant.
    Raises:
        Rejected: ``E_DRAFT``; the folder's files are not the draft's.
        Unchecked: ``E_DRAFT``, nothing to sign.
    """
    draft, manifest = _fetch(home, client, "model", name, revision)
    if files is not None:
        compare(manifest, files)
    if draft.version is not None:
        return client.version(name, draft.version)
    return post_version(
        home,
        client,
        manifest,
        newest=(draft.newest, draft.newest_statement),
        license_id=license_id,
        tags=tags,
    )


def share_draft(
    home: Home,
    client: "HubClient",
    name: str,
    revision: str,
    *,
    files: Path,
    description: str,
    license_id: str,
    duo: Sequence[str] = (),
) -> "wire.Revision":
    """Make a draft of a shared data set the next version, described from the signer's own files."""
    from federation.wire import SharePost

    license_id = check_license(license_id)
    draft, manifest = _fetch(home, client, "dataset", name, revision)
    compare(manifest, files)
    if draft.version is not None:
        return draft
    croissant = make_croissant(files, manifest, description=description, license_id=license_id, duo=duo)
    members: dict[str, object] = {
        "type": "dataset",
        "name": name,
        "version": (draft.newest or 0) + 1,
        "license": license_id,
    }
    members |= {"previous": draft.newest_statement} if draft.newest_statement else {}
    subjects = [("manifest.json", manifest.asset_id), ("croissant.json", sha256_hex(croissant))]
    asset = home.sign("asset", subjects, members)
    post = SharePost(
        manifest=base64.b64encode(manifest.raw).decode(),
        asset=asset.decode(),
        croissant=base64.b64encode(croissant).decode(),
    )
    made = client.share_dataset(name, post)
    home.keep(asset)
    return made


def _fetch(
    home: Home, client: "HubClient", kind: Literal["model", "dataset"], name: str, revision: str
) -> "tuple[wire.Revision, Manifest]":
    check_namespace(home, name)
    draft = client.revision(kind, name, revision)
    if draft.manifest is None:
        raise Unchecked("E_DRAFT", f"{name} at {revision} has no files: there is nothing to sign")
    manifest = read_manifest(base64.b64decode(draft.manifest))
    if manifest.name != name or manifest.salt is not None or manifest.asset_id != draft.asset_id:
        raise Rejected("E_DRAFT", f"{name} at {revision}: the hub's manifest is not one of {name}")
    return draft, manifest


def compare(manifest: Manifest, folder: Path) -> None:
    """Return only when a folder holds the manifest's files, all of them and no others.

    What stock clients do not upload (``.git*``, their own cache) and what the hub adds is passed over.

    Raises:
        Rejected: ``E_DRAFT``, naming the files.
        Unchecked: ``E_INPUT``; a file cannot be read.
    """
    own = dict(_walk(folder))
    listed = {entry.name: entry for entry in manifest.files}
    wrong = [f"{shown(name)} is not in the folder" for name in listed if name not in own]
    wrong += [
        f"{shown(name)} is not in the draft" for name in own if name not in listed and not _passed(name)
    ]
    for name, entry in listed.items():
        if name in own and hash_file(own[name])[:2] != (entry.sha256, entry.size):
            wrong.append(f"{shown(name)} differs")
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise Rejected(
            "E_DRAFT",
            f"{manifest.name}: {'; '.join(wrong[:SHOWN])}{more}",
            "Sign only what you have: upload your folder again, or look at who changed the draft.",
        )


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix(), path


def _passed(name: str) -> bool:
    git = any(part.casefold().startswith(".git") for part in name.split("/"))
    return git or is_reserved(name) or name.startswith(IGNORED)
