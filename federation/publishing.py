"""An owner makes a folder a signed model version, a lab makes a folder a described dataset.

A version's files go up by orders that fit their digests only; then manifest, OMS signature and ``asset``
statement are posted in one request, so a version exists whole or not at all. A dataset's rows and its
manifest stay where they are: only the Croissant description and the signed statement leave.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from federation import sending
from federation.ahead import ahead
from federation.home import Home
from federation.licences import check_license
from federation.pulling import steps
from federation.small_files import SMALL_BYTES, send_small
from federation.unhashed import sent_unhashed
from storage.croissant import make_croissant
from storage.encoding import check_asset_name, sha256_hex
from storage.errors import FedhubError, Refused, Unchecked
from storage.manifests import (
    PART_BYTES,
    FileEntry,
    Manifest,
    build_manifest,
    compose_manifest,
    list_files,
    new_salt,
    oms_payload,
    read_entries,
    read_manifest,
)
from storage.signing import open_envelope, sign

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient


def push_version(
    home: Home,
    client: "HubClient",
    folder: Path,
    name: str,
    *,
    license_id: str | None = None,
    tags: Sequence[str] = (),
    plan: str | None = None,
    provenance: Callable[[Manifest], bytes] | None = None,
    moved: Callable[[int], None] | None = None,
) -> "wire.ModelVersion":
    """Make the files of ``folder`` the next version of ``name``, signed with the targets key.

    A folder whose files are the newest version already is that version: it gets the tags that it lacks, and
    nothing is signed again.

    Args:
        name: ``<institution>/<path>`` in the home's own namespace.
        license_id: SPDX expression; it is signed in its canonical spelling.
        plan: id of the plan whose run made the files; ``provenance`` then gives the signed bundle for them.
        moved: told how many bytes went up, as they go.
    Raises:
        Rejected: a file name or a symlink (E_PATH); the hub refuses pickles (E_UNSAFE_FORMAT).
        Refused: the name is in another institution's namespace (E_ISSUER); these very files were signed with
            another licence (E_LICENSE).
    """
    check_namespace(home, name)
    license_id = check_license(license_id) if license_id else None
    known = find_model(client, name)
    newest = max(known.versions, key=lambda version: version.version) if known and known.versions else None
    there = {file.sha256 for file in newest.files} if newest else set()
    manifest = compose_manifest(name, _send_files(client, folder, there, moved))
    if newest is not None and newest.asset_id == manifest.asset_id:
        return _as_asked(client, newest, license_id, tags)
    return post_version(
        home,
        client,
        manifest,
        newest=(newest.version, newest.statement) if newest else (None, None),
        license_id=license_id,
        tags=tags,
        plan=plan,
        provenance=provenance,
    )


def _as_asked(
    client: "HubClient", version: "wire.ModelVersion", license_id: str | None, tags: Sequence[str]
) -> "wire.ModelVersion":
    """A version that is there already, with the tags that are asked for."""
    if license_id is not None and version.license != license_id:
        raise Refused(
            "E_LICENSE",
            f"{version.name}@{version.version} has these very files and was signed with "
            f"{version.license or 'no licence'}, not {license_id}",
            "a licence is signed with a version: change a file, such as the card, and push again",
        )
    for tag in tags:
        if tag not in version.tags:
            version = client.tag(version.name, tag, version.version)
    return version


def _send_files(
    client: "HubClient", folder: Path, there: set[str], moved: Callable[[int], None] | None
) -> list[FileEntry]:
    """Bring the files of ``folder`` into the store, but for those whose digests are ``there``.

    While one is sent, the next is hashed here and those before it are checked by the hub. The first large one
    is sent while it is hashed itself.
    """
    entries, small, uploads = list[FileEntry](), list[FileEntry](), list[tuple[str, "wire.Upload"]]()
    with _read_entries_ahead(folder) as coming, _first_sent_unhashed(client, folder, moved) as end:
        for entry in coming:
            entries.append(entry)
            if entry.sha256 in there:
                if moved is not None:
                    moved(entry.size)
            elif entry.size <= SMALL_BYTES:
                small.append(entry)
            else:
                uploads.append((entry.name, end(entry) or _send(client, folder, entry, moved)))
    together = send_small(client, folder, small, moved)
    alone = [entry for entry in small if entry.name not in together]
    uploads += [(entry.name, _send(client, folder, entry, moved)) for entry in alone]
    for name, upload in uploads:
        with _naming(name):
            sending.wait_stored(client, upload)
    return entries


@contextmanager
def _read_entries_ahead(folder: Path) -> Iterator[Iterator[FileEntry]]:
    """The files of a folder, the next one hashed by a thread that ends with this context."""
    stop = Event()
    with closing(ahead(read_entries(folder, stop), 1)) as entries:
        try:
            yield entries
        finally:
            stop.set()


@contextmanager
def _first_sent_unhashed(
    client: "HubClient", folder: Path, moved: Callable[[int], None] | None
) -> Iterator[Callable[[FileEntry], "wire.Upload | None"]]:
    """Send the first large file while it is hashed; given its entry, the value ends that."""
    large = (name for name, path in list_files(folder) if path.lstat().st_size > PART_BYTES)
    first = next(large, None)
    if first is None:
        yield lambda entry: None
        return
    with sent_unhashed(client, folder / first, steps(moved)) as end:

        def end_first(entry: FileEntry) -> "wire.Upload | None":
            with _naming(entry.name):
                return end(entry.sha256) if entry.name == first else None

        yield end_first


def _send(
    client: "HubClient", folder: Path, entry: FileEntry, moved: Callable[[int], None] | None
) -> "wire.Upload":
    hashed = (entry.sha256, entry.size, entry.parts)
    with _naming(entry.name):
        return sending.send_file(
            client, folder / entry.name, progress=steps(moved), hashed=hashed, settled=False
        )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors with the name of the file: a hub knows its digest only."""
    try:
        yield
    except FedhubError as error:
        if name not in error.message:
            error.message = f"{name}: {error.message}"
        raise


def post_version(
    home: Home,
    client: "HubClient",
    manifest: Manifest,
    *,
    newest: tuple[int | None, str | None],
    license_id: str | None = None,
    tags: Sequence[str] = (),
    plan: str | None = None,
    provenance: Callable[[Manifest], bytes] | None = None,
) -> "wire.ModelVersion":
    """Sign files that are in the hub already as the next version.

    Args:
        newest: number and statement of the newest version; None and None before the first.
    """
    from federation.wire import VersionPost

    name, (number, statement) = manifest.name, newest
    oms = sign(home.key("targets"), oms_payload(manifest, name))
    members: dict[str, object] = {
        "type": "model",
        "name": name,
        "version": (number or 0) + 1,
        "oms": open_envelope(oms).id,
    }
    members |= {"previous": statement} if statement else {}
    members |= {"license": license_id} if license_id else {}
    members |= {"plan": plan} if plan else {}
    asset = home.sign("asset", [("manifest.json", manifest.asset_id)], members)
    post = VersionPost(
        manifest=base64.b64encode(manifest.raw).decode(),
        oms=oms.decode(),
        asset=asset.decode(),
        provenance=provenance(manifest).decode() if provenance else None,
        tags=list(tags),
    )
    made = client.push_version(name, post)
    home.keep(asset)
    return made


def describe_dataset(
    home: Home,
    client: "HubClient",
    folder: Path,
    name: str,
    *,
    description: str,
    license_id: str,
    duo: Sequence[str] = (),
) -> "wire.Dataset":
    """Describe a folder of tables on-site and publish what may be known: columns, types, row counts, terms.

    The salted manifest, with the files' digests, stays in the home. The same folder described again is the
    same dataset as long as no byte changed.
    """
    check_namespace(home, name)
    license_id = check_license(license_id)
    newest = _newest_dataset(client, home.institution, name)
    kept = next((each for each in home.datasets() if newest and each.asset_id == newest.asset_id), None)
    if newest is not None and kept is not None:
        salt = read_manifest(kept.manifest).salt
        if build_manifest(folder, name, salt=salt).asset_id == newest.asset_id:
            home.add_dataset(name, folder, kept.manifest, kept.croissant)  # the folder may have moved
            return newest
    manifest = build_manifest(folder, name, salt=new_salt())
    croissant = make_croissant(
        folder, manifest, description=description, license_id=license_id, duo=list(duo)
    )
    members: dict[str, object] = {
        "type": "dataset",
        "name": name,
        "version": newest.version + 1 if newest else 1,
        "license": license_id,
    }
    if newest is not None:
        members["previous"] = _statement_of(client, newest.asset_id)
    subjects = [("manifest.json", manifest.asset_id), ("croissant.json", sha256_hex(croissant))]
    asset = home.sign("asset", subjects, members)
    home.add_dataset(name, folder, manifest.raw, croissant)
    client.post_statement(asset, {"croissant.json": croissant})
    home.keep(asset)
    return client.dataset(manifest.asset_id)


def check_namespace(home: Home, name: str) -> None:
    """Refuse what is no name in the institution's own namespace before anything is read or sent."""
    owner, slash, rest = name.partition("/")
    if not slash or not rest:
        raise Unchecked("E_USAGE", f"{name!r} is no name", f"write {home.institution}/NAME")
    if owner != home.institution:
        message = f"{name} is in the namespace of {owner}, this home is {home.institution}"
        raise Refused("E_ISSUER", message, f"write {home.institution}/{rest}")
    check_asset_name(name, "E_MALFORMED")


def find_model(client: "HubClient", name: str) -> "wire.Model | None":
    """The model as this caller sees it, or None."""
    try:
        return client.model(name)
    except Unchecked as error:
        if error.code != "E_NOT_FOUND":
            raise
        return None


def _newest_dataset(client: "HubClient", institution: str, name: str) -> "wire.Dataset | None":
    own = [each for each in client.datasets() if each.owner == institution and each.name == name]
    return max(own, key=lambda each: each.version, default=None)


def _statement_of(client: "HubClient", asset_id: str) -> str:
    """The id of the statement that made this asset."""
    for record in client.all_statements(kind="asset", subject=asset_id):
        return record.id
    raise Unchecked("E_NOT_FOUND", f"the hub shows no asset statement for {asset_id}", "ask the operator")
