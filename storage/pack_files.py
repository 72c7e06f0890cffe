"""A pack as files: where each document lies, how large it may be, and how a pack on disk is read.

::

    checkpoint                        the log's head
    consistency.json                  base64 hashes from an earlier head to this one, when one was asked for
    keyrings/<institution>/<N>.root.json
    statements/<statement id>.sigstore.json
    proofs/<statement id>.tlog-proof  all to that one checkpoint
    assets/<asset id>/manifest.json   of versions whose files the reader may see

Whatever is missing, malformed or too large here is the pack's fault (``Rejected``). What else lies in the
folder is not read.
"""

import os
import re
import stat
from pathlib import Path

from storage.encoding import b64, canonical, is_digest, read_json, unb64
from storage.errors import Rejected, Unchecked, shown
from storage.keyring import RING_LIMIT_BYTES
from storage.manifests import MANIFEST_LIMIT_BYTES
from storage.notes import MAX_NOTE_BYTES
from storage.signing import BUNDLE_LIMIT_BYTES, BUNDLE_SUFFIX

PROOF_SUFFIX = ".tlog-proof"
MAX_FILES = 400_000
MAX_PACK_BYTES = 1 << 30
PROOF_LIMIT_BYTES = 2 * MAX_NOTE_BYTES
CONSISTENCY_LIMIT_BYTES = 1 << 16

_INSTITUTION = r"[a-z0-9][a-z0-9.-]{0,252}"
_ID = r"[0-9a-f]{64}"
# The one table of what a pack holds: path, most bytes.
LAYOUT: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"checkpoint"), MAX_NOTE_BYTES),
    (re.compile(r"consistency\.json"), CONSISTENCY_LIMIT_BYTES),
    (re.compile(rf"keyrings/{_INSTITUTION}/[1-9][0-9]{{0,8}}\.root\.json"), RING_LIMIT_BYTES),
    (re.compile(rf"statements/{_ID}\.sigstore\.json"), BUNDLE_LIMIT_BYTES),
    (re.compile(rf"proofs/{_ID}\.tlog-proof"), PROOF_LIMIT_BYTES),
    (re.compile(rf"assets/{_ID}/manifest\.json"), MANIFEST_LIMIT_BYTES),
)
_ROOT_FILE = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


def limit_of(path: str) -> int | None:
    """Most bytes of the pack's file at ``path``; None when a pack has no such file."""
    return next((limit for pattern, limit in LAYOUT if pattern.fullmatch(path)), None)


class PackFolder:
    """A pack on disk, measured when it is opened and read file by file."""

    def __init__(self, root: Path) -> None:
        """Measure the pack at ``root``.

        Raises:
            Unchecked: ``E_INPUT``; there is no folder, or it cannot be read.
            Rejected: ``E_LIMIT`` (too many files or bytes), ``E_MALFORMED`` (a link or a device).
        """
        if not os.path.isdir(root):
            raise Unchecked(
                "E_INPUT", f"pack {root}: no such folder", "give the folder that a pack was written to"
            )
        self.root = root
        self.files: dict[str, int] = {}  # path -> size in bytes
        self._measure(root, "")
        self.total_bytes = sum(self.files.values())
        if self.total_bytes > MAX_PACK_BYTES:
            raise Rejected("E_LIMIT", f"pack: {self.total_bytes} bytes, at most {MAX_PACK_BYTES} are read")

    def _measure(self, folder: Path, prefix: str) -> None:
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            raise Unchecked("E_INPUT", f"pack folder {folder}: cannot be read ({error.strerror})") from error
        for entry in entries:
            path = prefix + entry.name
            if not prefix and entry.name not in TOP_LEVEL:
                continue
            if entry.is_dir(follow_symlinks=False):
                if path.count("/") > 1:
                    raise Rejected("E_MALFORMED", f"pack: {shown(path)} is a folder too deep")
                self._measure(Path(entry.path), path + "/")
            elif entry.is_file(follow_symlinks=False):
                self.files[path] = entry.stat(follow_symlinks=False).st_size
                if len(self.files) > MAX_FILES:
                    raise Rejected("E_LIMIT", f"pack: more than {MAX_FILES} files")
            else:
                raise Rejected("E_MALFORMED", f"pack: {shown(path)} is a link or no regular file")

    def read(self, path: str, *, limit: int) -> bytes:
        """The bytes of one file, at most ``limit``.

        Raises:
            Rejected: ``E_MALFORMED`` (missing or unreadable), ``E_LIMIT``.
        """
        try:
            descriptor = os.open(self.root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise Rejected("E_MALFORMED", f"pack: {shown(path)} is missing or cannot be read") from error
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Rejected("E_MALFORMED", f"pack: {shown(path)} is no regular file")
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise Rejected("E_LIMIT", f"pack: {shown(path)} has more than {limit} bytes")
        return raw

    def checkpoint(self) -> bytes:
        """The checkpoint's note."""
        return self.read("checkpoint", limit=MAX_NOTE_BYTES)

    def consistency(self) -> list[bytes] | None:
        """The hashes from an earlier head to this pack's, or None when the pack has none.

        Raises:
            Rejected: ``E_INCONSISTENT``; the file is not a list of base64 hashes.
        """
        if "consistency.json" not in self.files:
            return None
        raw = self.read("consistency.json", limit=CONSISTENCY_LIMIT_BYTES)
        found = read_json(raw, code="E_INCONSISTENT", limit=CONSISTENCY_LIMIT_BYTES)
        if not isinstance(found, list):
            raise Rejected("E_INCONSISTENT", "consistency.json: expected a list of base64 hashes")
        return [unb64(item, "E_INCONSISTENT") for item in found]

    def roots(self, institution: str) -> list[bytes]:
        """The files of an institution's ring in order, 1.root.json first; empty when the pack has none.

        Raises:
            Rejected: ``E_KEYRING``; the numbers have a gap, or something else lies there.
        """
        prefix = f"keyrings/{institution}/"
        names = [path.removeprefix(prefix) for path in self.files if path.startswith(prefix)]
        numbers = sorted(int(match[1]) if (match := _ROOT_FILE.fullmatch(name)) else 0 for name in names)
        if numbers != list(range(1, len(names) + 1)):
            raise Rejected(
                "E_KEYRING", f"key ring of {institution}: expected 1.root.json, 2.root.json and so on"
            )
        return [self.read(f"{prefix}{number}.root.json", limit=RING_LIMIT_BYTES) for number in numbers]

    def bundles(self) -> list[tuple[str, bytes]]:
        """File name and bytes of each statement's bundle, in the order of names.

        Raises:
            Rejected: ``E_BUNDLE``; something else lies among the statements.
        """
        names = sorted(path for path in self.files if path.startswith("statements/"))
        for path in names:
            if not path.endswith(BUNDLE_SUFFIX):
                raise Rejected("E_BUNDLE", f"pack: {shown(path)} is no statement's bundle")
        return [
            (path.removeprefix("statements/"), self.read(path, limit=BUNDLE_LIMIT_BYTES)) for path in names
        ]

    def proof(self, statement_id: str) -> bytes | None:
        """The log proof of a statement, or None when the pack has none."""
        path = f"proofs/{statement_id}{PROOF_SUFFIX}"
        return self.read(path, limit=PROOF_LIMIT_BYTES) if path in self.files else None

    def manifests(self) -> list[tuple[str, bytes]]:
        """Asset id and bytes of each manifest here.

        Raises:
            Rejected: ``E_MALFORMED``; something else lies among the assets.
        """
        found = []
        for path in sorted(path for path in self.files if path.startswith("assets/")):
            asset_id = path.removeprefix("assets/").removesuffix("/manifest.json")
            if not is_digest(asset_id) or limit_of(path) is None:
                raise Rejected("E_MALFORMED", f"pack: {shown(path)} is no manifest of an asset")
            found.append((asset_id, self.read(path, limit=MANIFEST_LIMIT_BYTES)))
        return found


TOP_LEVEL = frozenset({"checkpoint", "consistency.json", "keyrings", "statements", "proofs", "assets"})


def consistency_text(path: list[bytes]) -> bytes:
    """A consistency proof as ``consistency.json``."""
    return canonical([b64(value) for value in path])
