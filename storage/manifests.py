"""Asset manifests: the exact files of a model or dataset version, and the OMS signature of a model.

The digest of ``manifest.json`` is the asset's id. Files are read once: the digest of the whole and, for a
file above 32 MiB, the digests of its parts come out of the same pass. Names are kept so plain that every
file system and every stock tool sees the same files. Fetching and storing files is not done here.
"""

import errno
import hashlib
import io
import os
import re
import secrets
import stat
import threading
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.encoding import MAX_INTEGER, canonical, check_asset_name, is_digest, read_canonical, sha256_hex
from storage.errors import Rejected, Unchecked, shown
from storage.statements import Statement, compose_standard

PART_BYTES = 33_554_432
MANIFEST_LIMIT_BYTES = 16 << 20
MANIFEST_TYPE = "https://fedhub.dev/manifest/v1"
# What the stock OMS signer leaves out unless told otherwise; our rule of names keeps these files away.
OMS_IGNORED = frozenset({".git", ".gitattributes", ".github", ".gitignore"})

_READ_BYTES = 1 << 20  # divides PART_BYTES
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f\\<>:"|?*]')


@dataclass(frozen=True)
class FileEntry:
    """One file of an asset: its name below the asset's folder, its digest, its size in bytes.

    ``parts`` holds the digests of its 32 MiB parts in order, exactly when the file is larger than one part.
    """

    name: str
    sha256: str
    size: int
    parts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Manifest:
    """The files of one version of an asset, in the manifest's order.

    Attributes:
        name: the asset's name, ``<institution>/<path>``.
        files: sorted by the parts of their names.
        salt: 64 random hex digits, for data that stay at their site; None for files that others may see.
        raw: the bytes of ``manifest.json``.
        asset_id: their SHA-256.
    """

    name: str
    files: tuple[FileEntry, ...]
    salt: str | None
    raw: bytes
    asset_id: str

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.size for entry in self.files)


# --- names ----------------------------------------------------------------------------------------


def check_names(names: Iterable[str]) -> None:
    """Return only when these file names mean the same files everywhere.

    Raises:
        Rejected: ``E_PATH`` (V12); a name is not NFC, too long, absolute, climbs, ends in space or dot, holds
            a forbidden character, has a part that starts with ``.git``, stands twice, or equals another
            name or folder but for its case.
    """
    seen: dict[str, tuple[str, bool]] = {}
    for name in names:
        parts = _check_name(name)
        for depth in range(1, len(parts) + 1):
            prefix, is_file = "/".join(parts[:depth]), depth == len(parts)
            folded = unicodedata.normalize("NFC", prefix.casefold())
            if folded not in seen:
                seen[folded] = (prefix, is_file)
            elif is_file or seen[folded] != (prefix, False):
                other = seen[folded][0]
                raise _bad_name(
                    name, f"differs from every other file and folder, also in case; so is {shown(other)}"
                )


def _check_name(name: str) -> list[str]:
    parts = name.split("/")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError as error:
        raise _bad_name(name, "is text that UTF-8 can hold") from error
    rules = (
        (all(sizes), "has no empty part and does not start or end with /"),
        (sum(sizes) + len(parts) - 1 <= 1024, "has at most 1,024 bytes"),
        (max(sizes) <= 255, "has parts of at most 255 bytes"),
        (not {".", ".."} & set(parts), "has no part . or .."),
        (not any(part.endswith((" ", ".")) for part in parts), "has no part that ends in a space or a dot"),
        (_FORBIDDEN.search(name) is None, 'has no control character and none of \\ < > : " | ? *'),
        (not any(part.casefold().startswith(".git") for part in parts), "has no part that starts with .git"),
        (unicodedata.is_normalized("NFC", name), "is in Unicode form NFC"),
    )
    for holds, rule in rules:
        if not holds:
            raise _bad_name(name, rule)
    return parts


def _bad_name(name: str, rule: str) -> Rejected:
    return Rejected("E_PATH", f"file {shown(name)}: expected a name that {rule}", "rename the file")


# --- building ---------------------------------------------------------------------------------------


def new_salt() -> str:
    """A fresh salt for a dataset's manifest: its asset id then confirms no guess about the files."""
    return secrets.token_hex(32)


def build_manifest(
    folder: Path, name: str, *, salt: str | None = None, known: Mapping[str, FileEntry] | None = None
) -> Manifest:
    """The manifest of everything in a folder, read once.

    Args:
        folder: the asset's files; every file below it belongs to the asset.
        name: the asset's name.
        salt: ``new_salt()`` for data that stay at their site, None for files that others may see.
        known: as in ``read_entries``.
    Raises:
        Rejected: ``E_PATH`` (V12); a name breaks a rule, or something is no regular file, or there is none.
        Unchecked: ``E_INPUT``; the folder or a file cannot be read, or a file changes meanwhile.
    """
    return _manifest(name, list(read_entries(folder, known=known)), salt)


def read_entries(
    folder: Path, stop: threading.Event | None = None, *, known: Mapping[str, FileEntry] | None = None
) -> Generator[FileEntry, None, None]:
    """The files of a folder in a manifest's order, each read once, when it is asked for.

    Before the first, all names are checked.

    Args:
        known: those, by name, that the caller has hashed as it wrote them: they are not read.
        stop: once set, by another thread, the file that is being read is given up.
    Raises:
        Rejected, Unchecked: as ``build_manifest`` and ``hash_file``.
    """
    for relative, path in list_files(folder):
        yield (known or {}).get(relative) or FileEntry(relative, *hash_file(path, stop))


def list_files(folder: Path) -> list[tuple[str, Path]]:
    """Names and places of the files of a folder, in a manifest's order.

    Raises:
        Rejected: ``E_PATH`` (V12); a name breaks a rule, or something is no regular file.
        Unchecked: ``E_INPUT``; the folder cannot be read.
    """
    found = list(_walk(folder, ""))
    check_names(relative for relative, _ in found)
    return sorted(found, key=lambda pair: pair[0].split("/"))


def compose_manifest(name: str, files: Iterable[FileEntry]) -> Manifest:
    """The manifest of files that are known by their digests already.

    Raises:
        Rejected: ``E_PATH`` for a name, or for no files at all; ``E_LIMIT`` for its size.
    """
    return _manifest(name, sorted(files, key=lambda entry: entry.name.split("/")), None)


def _manifest(name: str, files: list[FileEntry], salt: str | None) -> Manifest:
    document: dict[str, Any] = {
        "files": [_entry_document(entry) for entry in files],
        "name": name,
        "type": MANIFEST_TYPE,
    }
    if salt is not None:
        document["salt"] = salt
    return read_manifest(canonical(document))


def _entry_document(entry: FileEntry) -> dict[str, Any]:
    document: dict[str, Any] = {"name": entry.name, "sha256": entry.sha256, "size": entry.size}
    if entry.parts is not None:
        document["parts"] = list(entry.parts)
    return document


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise Unchecked("E_INPUT", f"folder {folder}: cannot be read ({error.strerror})") from error
    for entry in listed:
        relative = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), relative + "/")
        elif entry.is_file(follow_symlinks=False):
            yield relative, Path(entry.path)
        else:
            raise Rejected(
                "E_PATH", f"file {shown(relative)}: expected a regular file, no link and no device"
            )


def part_length(number: int, size: int) -> int:
    """Bytes of part ``number``, from 1, of a file of ``size`` bytes."""
    return min(PART_BYTES, size - (number - 1) * PART_BYTES)


def hash_file(path: Path, stop: threading.Event | None = None) -> tuple[str, int, tuple[str, ...] | None]:
    """Digest, size in bytes, and digests of the 32 MiB parts (None up to one part) of a file, in one pass.

    Args:
        stop: once set, by another thread, the file is given up.
    Raises:
        Rejected: ``E_PATH`` (V12); it is a link or no regular file.
        Unchecked: ``E_INPUT``; it cannot be read, or its size changes while it is read. ``E_INTERRUPTED``.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_no_link) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                hash_all = _hash_with_parts if status.st_size > PART_BYTES else _hash_whole
                sha256, size, parts = hash_all(file, stop or threading.Event())
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise _no_file(str(path)) from error
        raise Unchecked("E_INPUT", f"file {path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise _no_file(str(path))
    if size != status.st_size:
        raise Unchecked(
            "E_INPUT", f"file {path}: had {status.st_size} bytes when opened and {size} when read"
        )
    return sha256, size, parts


def _open_no_link(path: str, flags: int) -> int:
    # Without O_NONBLOCK a named pipe among the files would hang us.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _no_file(name: str) -> Rejected:
    return Rejected("E_PATH", f"file {shown(name, 300)}: expected a regular file, no link and no device")


def _hash_whole(file: io.RawIOBase, stop: threading.Event) -> tuple[str, int, None]:
    digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(_READ_BYTES))
    while count := _read_unless(stop, file, buffer):
        digest.update(buffer[:count])
        size += count
    return digest.hexdigest(), size, None


def _read_unless(stop: threading.Event, file: io.RawIOBase, buffer: memoryview) -> int:
    if stop.is_set():
        raise Unchecked("E_INTERRUPTED", "nobody waits for these digests any more")
    return file.readinto(buffer) or 0


def _hash_with_parts(file: io.RawIOBase, stop: threading.Event) -> tuple[str, int, tuple[str, ...]]:
    """The whole in this thread and its parts in a second one, over the same bytes: SHA-256 lets both run."""
    whole, part, size = hashlib.sha256(), hashlib.sha256(), 0
    parts: list[str] = []
    buffers = [memoryview(bytearray(_READ_BYTES)) for _ in range(2)]
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        hashed = pool.submit(int)
        while count := _read_unless(
            stop, file, buffers[0][: min(_READ_BYTES, PART_BYTES - size % PART_BYTES)]
        ):
            data = buffers[0][:count]
            hashed.result()  # the other buffer is free again
            if size and size % PART_BYTES == 0:
                parts.append(part.hexdigest())
                part = hashlib.sha256()
            hashed = pool.submit(part.update, data)  # type: ignore[arg-type]
            whole.update(data)
            size += count
            buffers.reverse()
        hashed.result()
    return whole.hexdigest(), size, (*parts, part.hexdigest())


def read_manifest(raw: bytes, *, code: str = "E_MALFORMED") -> Manifest:
    """The manifest in these bytes, with every rule checked.

    Raises:
        Rejected: ``code`` for its form, ``E_PATH`` for a name or an empty asset, ``E_LIMIT`` for its size.
    """
    document = read_canonical(raw, code=code, limit=MANIFEST_LIMIT_BYTES)
    if not isinstance(document, dict) or set(document) - {"salt"} != {"files", "name", "type"}:
        raise Rejected(code, "manifest: expected exactly files, name and type, and salt for a dataset")
    if document["type"] != MANIFEST_TYPE:
        raise Rejected(code, f"manifest: expected type {MANIFEST_TYPE}, found {shown(document['type'])}")
    name = check_asset_name(document["name"], code)
    if "salt" in document and not is_digest(document["salt"]):
        raise Rejected(code, "manifest: expected a salt of 64 lower-case hex digits")
    entries = document["files"]
    if not isinstance(entries, list):
        raise Rejected(code, "manifest: expected a list of files")
    if not entries:
        raise Rejected("E_PATH", f"asset {name}: expected at least one file, found none")
    files = tuple(_read_entry(entry, code) for entry in entries)
    check_names(entry.name for entry in files)
    order = [entry.name.split("/") for entry in files]
    if order != sorted(order):
        raise Rejected(code, "manifest: files must be sorted by the parts of their names")
    return Manifest(name, files, document.get("salt"), raw, sha256_hex(raw))


def _read_entry(entry: Any, code: str) -> FileEntry:
    if not isinstance(entry, dict) or set(entry) - {"parts"} != {"name", "sha256", "size"}:
        raise Rejected(code, "manifest: a file has exactly name, sha256 and size, and parts above 32 MiB")
    name, digest, size = entry["name"], entry["sha256"], entry["size"]
    if not isinstance(name, str):
        raise Rejected(code, f"manifest: a file's name must be text, found {shown(name)}")
    if not is_digest(digest) or type(size) is not int or not 0 <= size <= MAX_INTEGER:
        raise Rejected(code, f"manifest: file {shown(name)} needs a SHA-256 digest and a size")
    count = -(-size // PART_BYTES) if size > PART_BYTES else 0
    parts = entry.get("parts", [])
    if not isinstance(parts, list) or len(parts) != count or not all(map(is_digest, parts)):
        raise Rejected(code, f"manifest: file {shown(name)} of {size} bytes must have {count} parts")
    if ("parts" in entry) != (count > 0):
        raise Rejected(code, f"manifest: file {shown(name)} of {size} bytes has no parts")
    return FileEntry(name, digest, size, tuple(parts) if count else None)


# --- OpenSSF model signing --------------------------------------------------------------------------


def oms_root(manifest: Manifest) -> str:
    """The OMS root digest. It ignores names and sizes: never use it as an id."""
    return sha256_hex(b"".join(bytes.fromhex(entry.sha256) for entry in manifest.files))


def oms_payload(manifest: Manifest, model_name: str) -> bytes:
    """The payload whose signature stock ``model_signing verify`` accepts for exactly these files.

    Source: OpenSSF model signing v1.0, method ``files``.
    """
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
    predicate = {"serialization": serialization, "resources": _resources(manifest)}
    return compose_standard("oms", [(model_name, oms_root(manifest))], predicate)


def _resources(manifest: Manifest) -> list[dict[str, str]]:
    return [{"name": e.name, "algorithm": "sha256", "digest": e.sha256} for e in manifest.files]


def check_oms(statement: Statement, manifest: Manifest) -> None:
    """Return only when an OMS statement covers the files of a manifest, all of them and no others.

    Stock verification obeys the signed ``ignore_paths``, so only what the rule of names forbids anyway may
    stand there.

    Raises:
        Rejected: ``E_OMS`` (V12).
    """
    what = f"OMS statement {statement.id} for {manifest.name}"
    if statement.kind != "oms" or set(statement.predicate) != {"serialization", "resources"}:
        raise Rejected("E_OMS", f"{what}: expected an OMS statement with exactly serialization and resources")
    serialization = dict(statement.predicate["serialization"])
    ignored = serialization.pop("ignore_paths", [])
    if not isinstance(ignored, list) or not all(isinstance(p, str) and p in OMS_IGNORED for p in ignored):
        raise Rejected("E_OMS", f"{what}: ignore_paths may name only {', '.join(sorted(OMS_IGNORED))}")
    if canonical(serialization, code="E_OMS") != canonical(
        {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    ):
        raise Rejected("E_OMS", f"{what}: expected serialization by files, sha256, without symlinks")
    if statement.predicate["resources"] != _resources(manifest):
        raise Rejected("E_OMS", f"{what}: its resources are not the files of the manifest, in its order")
    if len(statement.subjects) != 1 or statement.subject != oms_root(manifest):
        raise Rejected("E_OMS", f"{what}: its one subject must be the digest over all file digests")
