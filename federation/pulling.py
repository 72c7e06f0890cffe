"""A firm pulls a version: nothing stands at the final path before every byte and every signature was checked.

Files stream into a folder beside the target, each checked against its digest while it streams; the evidence
pack is fetched and verified by this home's own pins; then one rename installs. On any failure nothing is at
the target, and the error names the file. A pull that was cut, by ``kill -9`` too, is gone on with by the next
one of the same version to the same target.
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from federation import fetching
from federation.home import Home
from federation.small_files import SMALL_BYTES, fetch_small
from federation.streams import Progress
from storage.encoding import is_digest
from storage.errors import FedhubError, Refused, Rejected, Unchecked, shown
from storage.manifests import FileEntry, Manifest, build_manifest, read_manifest
from storage.pack import unzip_pack, write_pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation import wire
    from federation.client import HubClient
    from storage.verify import Report

LISTED = "fedhub grant list shows the grants that are valid now"
_GRANT_ID = re.compile("[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Pulled:
    """What was installed, and what the verification said."""

    version: "wire.ModelVersion"
    folder: Path
    grant: str | None
    report: "Report"


def find_version(client: "HubClient", reference: str) -> "wire.ModelVersion":
    """The version that ``NAME@3``, ``NAME:tag`` or ``NAME`` (the newest) names.

    Raises:
        Unchecked: no such model, version or tag (E_NOT_FOUND), or the text is no reference (E_USAGE).
    """
    name, version, tag = split_reference(reference)
    if version is not None:
        return client.version(name, version)
    versions = client.model(name).versions
    if tag is not None:
        versions = [each for each in versions if tag in each.tags]
    if not versions:
        raise Unchecked("E_NOT_FOUND", f"{reference}: no such version", f"fedhub model show {name}")
    return max(versions, key=lambda each: each.version)


def split_reference(reference: str) -> tuple[str, int | None, str | None]:
    """Name, version, tag of a reference; at most one of the last two is given.

    >>> split_reference("lab.example/m@3"), split_reference("lab.example/m:best")
    (('lab.example/m', 3, None), ('lab.example/m', None, 'best'))
    """
    name, at, version = reference.partition("@")
    tag = ""
    if not at:
        name, colon, tag = reference.partition(":")
        at = colon
    bad = "/" not in name or (at and not (version or tag)) or (version and not version.isascii())
    if bad or (version and not (version.isdigit() and int(version) > 0)):
        hint = "write INSTITUTION/NAME@VERSION or INSTITUTION/NAME:TAG"
        raise Unchecked("E_USAGE", f"{reference!r} names no version", hint)
    return name, int(version) if version else None, tag or None


def pull_version(
    home: Home,
    client: "HubClient",
    reference: str,
    target: Path,
    *,
    grant: str | None = None,
    duo: Sequence[str] = (),
    moved: Callable[[int], None] | None = None,
    keep_pack: Path | None = None,
) -> Pulled:
    """Install a version at ``target`` after its bytes and its evidence were checked.

    Args:
        grant: id of the grant to lean on, or its first 8 digits and more; without it the hub finds one.
        duo: terms that this use accepts.
        moved: told how many bytes arrived, as they arrive.
        keep_pack: a folder to leave the evidence pack in, for auditors.
    Raises:
        Refused: no valid grant; or ``target`` is there already.
        Rejected: a file or the evidence is not what was signed; the message names the file.
    """
    if target.exists() or target.is_symlink():
        raise Unchecked("E_TARGET", f"{target} is there already", "choose another folder, or remove it first")
    version = find_version(client, reference)
    with resting(target.parent / f".{target.name}.{version.asset_id[:16]}.pull") as place:
        pulled = pull_checked(home, client, version, place, grant=grant, duo=duo, moved=moved)
        os.rename(pulled.folder, target)
        if keep_pack is not None:
            shutil.move(place / "pack", keep_pack)
    return replace(pulled, folder=target)


def pull_checked(
    home: Home,
    client: "HubClient",
    version: "wire.ModelVersion",
    place: Path,
    *,
    grant: str | None = None,
    duo: Sequence[str] = (),
    moved: Callable[[int], None] | None = None,
) -> Pulled:
    """Bring a version's files to ``place/files`` and its evidence to ``place/pack``, and check all of it.

    What an earlier call left in ``place`` is not fetched again; it is checked with the rest.
    """
    if grant is not None and not _GRANT_ID.fullmatch(grant):
        message = f"{shown(grant)} is not how the id of a grant begins: at least 8 hex digits"
        raise Refused("E_GRANT_MISSING", message, LISTED)
    pull = client.pull(version.asset_id, duo, grant=grant)
    if grant is not None and not (pull.grant or "").startswith(grant):
        message = f"the hub leaned on grant {pull.grant or 'none'}, not on {shown(grant)}"
        raise Refused("E_GRANT_MISSING", message, LISTED)
    pack, files = place / "pack", place / "files"
    shutil.rmtree(pack, ignore_errors=True)
    fetch_pack(home, client, version.asset_id, pack)
    manifest = manifest_of(client, version, version.asset_id)
    came = fetch_files(client, pull, manifest, files, moved=moved)
    use = None
    if pull.grant is not None:
        use = use_of(pull.grant, home.institution, version.asset_id, version.name, duo)
    return Pulled(version, files, pull.grant, check_pack(home, pack, files=files, known=came, use=use))


def verify_folder(home: Home, client: "HubClient", reference: str, folder: Path) -> Pulled:
    """Check that a folder holds exactly the files of a version, and the version's evidence; fetches no file.

    Raises:
        Rejected: ``E_SUBJECT`` naming the files that differ; or the first step that failed.
    """
    version = find_version(client, reference)
    manifest = manifest_of(client, version, version.asset_id)
    found = build_manifest(folder, manifest.name)
    if found.asset_id != manifest.asset_id:
        here = {entry.name: entry.sha256 for entry in found.files}
        there = {entry.name: entry.sha256 for entry in manifest.files}
        names = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        told = ", ".join(map(shown, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        what = f"{folder} is not {version.name}@{version.version}: {told}"
        raise Rejected("E_SUBJECT", what, "changed, missing or added files; pull into a new folder")
    with beside(home.path / "verify") as place:
        fetch_pack(home, client, version.asset_id, place / "pack")
        return Pulled(version, folder, None, check_pack(home, place / "pack", files=folder))


def use_of(grant: str, grantee: str, asset: str, name: str, duo: Sequence[str]) -> dict[str, Any]:
    """The use that a pull makes of a grant, as ``verify --use`` takes it."""
    return {
        "grant": grant,
        "grantee": grantee,
        "action": "pull",
        "asset": asset,
        "name": name,
        "duo": sorted(duo),
    }


def fetch_files(
    client: "HubClient",
    pull: "wire.Pull",
    manifest: Manifest,
    folder: Path,
    *,
    moved: Callable[[int], None] | None = None,
) -> dict[str, FileEntry]:
    """Fetch every file of ``manifest`` into ``folder``, each checked while it streams.

    Sizes and digests come from the manifest, whose own digest is the asset id; the hub only says where. Files
    that an earlier call brought stay; whoever calls checks the folder as a whole.

    Returns:
        The large files that came now, by name: what they are is known, the others are still to be read.
    """
    urls, came = {file.name: file.url for file in pull.files}, dict[str, FileEntry]()
    folder.mkdir(exist_ok=True)
    small = pull.small
    if small is not None:
        with _naming_the_rest():
            fetch_small(manifest.files, lambda number: f"{small}/{number}", folder, moved)
    for entry in manifest.files:
        if small is not None and entry.size <= SMALL_BYTES:
            continue
        url = urls.get(entry.name)
        if url is None:
            raise Rejected("E_SUBJECT", f"{entry.name}: in the manifest, but the hub has no address for it")
        path = folder / PurePosixPath(entry.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size == entry.size:
            if moved is not None:
                moved(entry.size)
            continue  # by an earlier call: it got its name only when it was whole
        try:
            fetching.fetch(
                url,
                path,
                entry.sha256,
                entry.size,
                entry.parts,
                parts_are_signed=True,
                durable=True,
                progress=steps(moved),
                by_hub=True,
            )
        except FedhubError as error:
            if entry.name not in error.message:
                error.message = f"{entry.name}: {error.message}"
            error.hint = error.hint or "nothing was installed; tell the operator if it happens again"
            raise
        except OSError as error:
            hint = "nothing was installed; make room, then pull again"
            raise Unchecked("E_WRITE", f"{entry.name}: cannot be written ({error.strerror})", hint) from error
        came[entry.name] = entry
    return came


@contextmanager
def _naming_the_rest() -> "Iterator[None]":
    """Errors of small files, in the words of the others."""
    try:
        yield
    except FedhubError as error:
        error.hint = error.hint or "nothing was installed; tell the operator if it happens again"
        raise
    except OSError as error:
        hint = "nothing was installed; make room, then pull again"
        raise Unchecked("E_WRITE", f"small files: cannot be written ({error.strerror})", hint) from error


def steps(moved: Callable[[int], None] | None) -> Progress | None:
    """What a transfer tells (bytes done, bytes in all) as the numbers of bytes in between."""
    if moved is None:
        return None
    told = 0

    def progress(done: int, _total: int) -> None:
        nonlocal told
        moved(done - told)
        told = done

    return progress


def manifest_of(client: "HubClient", version: "wire.ModelVersion", asset_id: str) -> Manifest:
    """The manifest whose digest is ``asset_id``; the hub's word is not needed for anything in it.

    Raises:
        Rejected: the hub answers with other bytes (E_SUBJECT).
    """
    manifest = read_manifest(client.manifest(version.name, version.version))
    if manifest.asset_id != asset_id:
        message = f"the manifest of {version.name}@{version.version} has the digest {manifest.asset_id}"
        raise Rejected("E_SUBJECT", message, f"expected {asset_id}")
    return manifest


def fetch_pack(
    home: Home, client: "HubClient", asset_id: str, folder: Path, *, state: Path | None = None
) -> None:
    """Fetch the evidence for one asset into the new ``folder``.

    Args:
        state: state file of the reader to whose last checkpoint the pack must connect; by default the home's.
    """
    write_pack(folder, unzip_pack(client.pack(asset_id, from_size=saved_size(state or home.state_path))))


def check_pack(
    home: Home,
    pack: Path,
    *,
    files: Path | None = None,
    known: Mapping[str, FileEntry] | None = None,
    use: dict[str, Any] | None = None,
    require: str | None = None,
) -> "Report":
    """Verify a pack by this home's own pins and saved checkpoint.

    Args:
        files, known, use, require: as in ``storage.verify.examine``.
    Raises:
        Rejected: the first step that failed.
    """
    from storage.verify import save_state, verify

    report = verify(
        pack,
        home.trust,
        now=int(time.time()),
        files=files,
        known=known,
        use=use,
        state=home.state_path,
        require=require,
    )
    save_state(home.state_path, report)
    return report


def saved_size(state: Path) -> int:
    """Size of the checkpoint in a state file, 0 when none was saved."""
    from storage.verify import read_state

    saved = read_state(state)
    return saved.size if saved is not None else 0


@contextmanager
def beside(target: Path) -> "Iterator[Path]":
    """A temporary folder on the same file system as ``target``; whatever is left in it goes away."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise Unchecked("E_WRITE", f"{target.parent} cannot be written ({error.strerror})") from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def resting(folder: Path) -> "Iterator[Path]":
    """A folder, ours alone, in which a pull that is cut leaves what has arrived for the next one like it.

    It goes away when the pull ends well, is refused, or finds no room.

    Raises:
        Unchecked: ``E_BUSY``; another process pulls the same.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Unchecked("E_WRITE", f"{folder} cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(handle), os.stat(folder))
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:  # or it was finished and removed between our two calls
            raise Unchecked(
                "E_BUSY", f"{folder}: another process is pulling the same into it", "wait for its end"
            )
        try:
            yield folder
        except FedhubError as error:
            if not isinstance(error, Unchecked) or error.code in ("E_WRITE", "E_DISK_FULL", "E_TARGET"):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def find_dataset(client: "HubClient", reference: str) -> "wire.Dataset":
    """The dataset with this asset id, or the newest version of this name, wherever its rows lie."""
    if is_digest(reference):
        return client.dataset(reference)
    listed = (each for kept in ("site", "hub") for each in client.datasets(kept))
    named = [each for each in listed if each.name == reference]
    if not named:
        raise Unchecked("E_NOT_FOUND", f"{reference}: no such dataset", "fedhub data list")
    return max(named, key=lambda each: each.version)
