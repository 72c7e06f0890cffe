"""A Flower app bundle (FAB) read as evidence: nothing is taken from it that its own list does not name.

A FAB, as ``flwr build`` of Flower 1.42 makes it, is a zip of text files with ``.info/CONTENT``: one line per
file, ``path,sha256,bits``. Flower itself installs files that the list does not name and checks no digest of
the whole; here entries and list must agree one to one, in names, sizes and digests, before a byte is written
anywhere. Deliberately without flwr: hub, steward and agent read bundles before they trust any code.
"""

import io
import os
import re
import stat
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.app_terms import APP_BYTES, AppTerms
from storage.encoding import is_digest, sha256_hex
from storage.errors import FedhubError, Rejected, Unchecked, shown
from storage.manifests import check_names

CONTENT = ".info/CONTENT"
PROJECT = "pyproject.toml"
UNPACKED_BYTES = 64 << 20
MOST_FILES = 2000
MOST_SETTINGS = 256
TELL = "do not use it: build it again with flwr build, and tell who gave it to you"

Scalar = bool | int | float | str

_REFERENCE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,200}:[A-Za-z_][A-Za-z0-9_.]{0,100}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,11}")
_ENCRYPTED = 0x1
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    OSError,
)


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle."""

    name: str
    sha256: str
    data: bytes


@dataclass(frozen=True)
class AppBundle:
    """A bundle whose every entry was checked.

    Attributes:
        sha256, size: of the FAB itself, in bytes.
        name, version: what the project calls itself; nothing is decided by them.
        client: ``module:attribute`` of its ClientApp.
        settings: its ``[tool.flwr.app.config]``, flat: ``a.b`` for nested tables.
    """

    sha256: str
    size: int
    files: tuple[BundleFile, ...]
    name: str
    version: str
    client: str
    settings: Mapping[str, Scalar]


def read_bundle(raw: bytes) -> AppBundle:
    """A bundle from the bytes of a FAB.

    Raises:
        Rejected: ``E_APP``, with the entry and the rule that it breaks.
    """
    if len(raw) > APP_BYTES:
        raise _rejected(f"at most {APP_BYTES} bytes are read, found {len(raw)}")
    entries = _entries(raw)
    listed = _listed(entries.pop(CONTENT, None))
    if missing := sorted(set(listed) - set(entries)):
        raise _rejected(f"{CONTENT} lists {shown(missing[0])}, which is not in it")
    if strange := sorted(set(entries) - set(listed)):
        raise _rejected(f"entry {shown(strange[0])} is not listed in {CONTENT}")
    files = []
    for name, data in sorted(entries.items()):
        digest, size = listed[name]
        if len(data) != size:
            raise _rejected(f"entry {shown(name)}: {CONTENT} says {size} bytes, it has {len(data)}")
        if sha256_hex(data) != digest:
            raise _rejected(f"entry {shown(name)}: {CONTENT} says digest {digest}, it has {sha256_hex(data)}")
        files.append(BundleFile(name, digest, data))
    name, version, client, settings = _project(entries.get(PROJECT))
    return AppBundle(sha256_hex(raw), len(raw), tuple(files), name, version, client, settings)


def read_bundle_file(path: Path) -> tuple[bytes, AppBundle]:
    """The bytes of a FAB on this disk, and what they hold.

    Raises:
        Unchecked: ``E_APP_FILE``: cannot be read. Rejected: ``E_APP``.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(APP_BYTES + 1)
    except OSError as error:
        raise Unchecked("E_APP_FILE", f"{path}: cannot be read ({error.strerror})", "flwr build") from error
    return raw, read_bundle(raw)


def check_named(bundle: AppBundle, terms: AppTerms) -> None:
    """Return only when this is the bundle that a plan names, and takes the plan's parameters.

    Raises:
        Rejected: ``E_APP``.
    """
    if (bundle.sha256, bundle.size) != (terms.sha256, terms.size):
        raise Rejected(
            "E_APP",
            f"app bundle: the plan names {terms.sha256} of {terms.size} bytes, "
            f"this one is {bundle.sha256} of {bundle.size}",
            TELL,
        )
    run_config(bundle, terms.parameters)


def run_config(bundle: AppBundle, parameters: Mapping[str, Any]) -> dict[str, Scalar]:
    """The settings that the app sees: its own defaults, and the plan's parameters in their place.

    As in stock Flower a parameter must have a default; its type decides how a decimal in text is read.

    Raises:
        Rejected: ``E_APP``, naming the parameter.
    """
    found = dict(bundle.settings)
    for name, value in parameters.items():
        if name not in found:
            raise Rejected(
                "E_APP",
                f"parameter {shown(name)}: the app has no such setting",
                f"its settings are in [tool.flwr.app.config]: {', '.join(sorted(found)) or 'none'}",
            )
        found[name] = _like(found[name], name, value)
    return found


def typed_parameters(bundle: AppBundle, given: Mapping[str, str]) -> dict[str, Any]:
    """Parameters as a person typed them, in the form that a plan holds: decimals stay text.

    Raises:
        Rejected: ``E_APP``, naming the parameter.
    """
    typed: dict[str, Any] = {}
    for name, text in given.items():
        default = bundle.settings.get(name)
        if isinstance(default, bool):
            typed[name] = {"true": True, "false": False}.get(text, text)
        elif isinstance(default, int) and re.fullmatch(r"-?(0|[1-9][0-9]{0,14})", text):
            typed[name] = int(text)
        else:
            typed[name] = text
    run_config(bundle, typed)
    return typed


def unpack(bundle: AppBundle, folder: Path) -> None:
    """Write the files of a bundle into a new folder of mode 0700, which others cannot have prepared.

    Raises:
        OSError: the folder is there already, or the disk does not take it.
    """
    folder.mkdir(mode=0o700)
    for entry in bundle.files:
        path = folder / entry.name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o400), "wb") as file:
            file.write(entry.data)


def _entries(raw: bytes) -> dict[str, bytes]:
    """Every entry of the zip, within the limits: a bomb is recognised by what it says and by what comes."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            infos = archive.infolist()
            if len(infos) > MOST_FILES + 1:
                raise _rejected(f"at most {MOST_FILES} files are read, found {len(infos)}")
            for info in infos:
                _check_entry(info)
            _check_entry_names([info.filename for info in infos])
            if sum(info.file_size for info in infos) > UNPACKED_BYTES:
                raise _rejected(f"at most {UNPACKED_BYTES} bytes are unpacked, its entries say more")
            return {info.filename: _read_entry(archive, info) for info in infos}
    except FedhubError:
        raise
    except _BROKEN as error:
        raise _rejected(f"is no zip that can be read whole ({type(error).__name__})") from error


def _check_entry(info: zipfile.ZipInfo) -> None:
    where = f"entry {shown(info.orig_filename)}"
    mode = info.external_attr >> 16
    if info.filename != info.orig_filename:
        raise _rejected(f"{where}: its name is read in two ways")
    if info.is_dir() or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
        raise _rejected(f"{where}: expected a regular file")
    if info.flag_bits & _ENCRYPTED:
        raise _rejected(f"{where}: is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _rejected(f"{where}: is packed in another way than flwr build packs")


def _check_entry_names(names: list[str]) -> None:
    try:
        check_names(names)
    except Rejected as error:
        raise _rejected(error.message) from error


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as entry:
        data = entry.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise _rejected(f"entry {shown(info.filename)}: says {info.file_size} bytes, has {len(data)} or more")
    return data


def _listed(content: bytes | None) -> dict[str, tuple[str, int]]:
    """Digest and size in bytes of each file that ``.info/CONTENT`` names."""
    if content is None:
        raise _rejected(f"it has no {CONTENT}")
    listed: dict[str, tuple[str, int]] = {}
    try:
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise _rejected(f"{CONTENT} is not UTF-8") from error
    for number, line in enumerate(lines, 1):
        name, _, rest = line.rpartition(",")[0].rpartition(",")
        bits = line.rpartition(",")[2]
        if not name or not is_digest(rest) or not _SIZE.fullmatch(bits) or int(bits) % 8:
            raise _rejected(f"{CONTENT} line {number}: expected path,sha256,bits, found {shown(line)}")
        if name in listed:
            raise _rejected(f"{CONTENT} line {number}: {shown(name)} stands twice")
        listed[name] = (rest, int(bits) // 8)
    return listed


def _project(raw: bytes | None) -> tuple[str, str, str, dict[str, Scalar]]:
    """Name, version, ClientApp and settings from ``pyproject.toml``."""
    if raw is None:
        raise _rejected(f"it has no {PROJECT}")
    try:
        project = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise _rejected(f"{PROJECT} is not TOML ({type(error).__name__})") from error
    app = _table(_table(_table(project, "tool"), "flwr"), "app")
    client = _table(app, "components").get("clientapp")
    if not isinstance(client, str) or not _REFERENCE.fullmatch(client):
        raise _rejected(f"{PROJECT}: tool.flwr.app.components.clientapp should be module:attribute")
    about = _table(project, "project")
    name, version = about.get("name"), about.get("version")
    if not all(isinstance(text, str) and 0 < len(text) <= 200 for text in (name, version)):
        raise _rejected(f"{PROJECT}: project.name and project.version should be texts")
    settings: dict[str, Scalar] = {}
    _flatten(_table(app, "config"), "", settings)
    return str(name), str(version), client, settings


def _table(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name, {})
    if not isinstance(found, Mapping):
        raise _rejected(f"{PROJECT}: {name} should be a table")
    return found


def _flatten(table: Mapping[str, Any], prefix: str, into: dict[str, Scalar]) -> None:
    for name, value in table.items():
        if isinstance(value, Mapping):
            if prefix.count(".") > 8:
                raise _rejected(f"{PROJECT}: tool.flwr.app.config is nested too deeply")
            _flatten(value, f"{prefix}{name}.", into)
        elif isinstance(value, bool | int | float | str):
            into[f"{prefix}{name}"] = value
        else:
            raise _rejected(f"{PROJECT}: setting {shown(prefix + name)} should be a text, number or boolean")
    if len(into) > MOST_SETTINGS:
        raise _rejected(f"{PROJECT}: at most {MOST_SETTINGS} settings")


def _like(default: Scalar, name: str, value: object) -> Scalar:
    """A plan's value in the type of the app's default."""
    wanted = type(default).__name__
    if isinstance(default, float) and not isinstance(value, bool) and isinstance(value, int | str):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is type(default) and isinstance(value, bool | int | str):
        return value
    raise Rejected(
        "E_APP", f"parameter {shown(name)}: the app's setting is of type {wanted}, found {shown(value)}"
    )


def _rejected(rule: str) -> Rejected:
    return Rejected("E_APP", f"app bundle: {rule}", TELL)
