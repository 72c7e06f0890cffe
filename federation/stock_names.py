"""By which names stock Hugging Face clients know a file, and how large one may be.

The hub answers with these names, and a pull fills the clients' cache by them.

A file is *large* by its name and size alone, so that every answer about it agrees: large ones are named by
their SHA-256, small ones by git's blob SHA-1. Some names are the hub's own: what proves a version.
"""

import hashlib
import re
from collections.abc import Iterable

from storage.errors import Rejected, shown

SMALL_BYTES = 1 << 20  # a larger file is always a large one
LARGEST_BYTES = 50_000_000_000  # they refuse to download more by plain HTTP
LARGE_ENDINGS = (
    ".arrow", ".bin", ".ftz", ".gguf", ".h5", ".model", ".msgpack", ".npy", ".npz", ".onnx", ".ot", ".pb",
    ".parquet", ".pt", ".pth", ".safetensors", ".tflite",
)  # fmt: skip
SIGNATURE_FILE = "model.sig"
PROOF_FOLDER = "fedhub"
LONGEST_PART = 240  # bytes: clients keep files of theirs beside it, with endings such as .metadata

# Source: "Naming Files, Paths, and Namespaces" of Windows; with any ending, too.
_DEVICE = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\.|$)", re.IGNORECASE
)
# They make a name look like another one, or break the line it stands on.
_TURNS_TEXT = re.compile("[\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def is_reserved(path: str) -> bool:
    """Whether the hub makes this file itself, so that no version has one of its own; whatever its case."""
    return path.casefold().partition("/")[0] == PROOF_FOLDER or path.casefold() == SIGNATURE_FILE


def check_unreserved(paths: Iterable[str]) -> None:
    """Refuse a version's own files where those that prove it will stand.

    Raises:
        Rejected: ``E_PATH``.
    """
    taken = [path for path in paths if is_reserved(path)]
    if taken:
        raise Rejected(
            "E_PATH",
            f"file {shown(taken[0])}: the hub makes it itself, as proof of a version",
            f"remove {SIGNATURE_FILE} and the folder {PROOF_FOLDER}/: they prove an earlier version",
        )


def check_portable(paths: Iterable[str]) -> None:
    """Refuse new files that some member's machine could not hold, or would show under another name.

    The rules of a manifest's names are the verifier's and stay as they are: what was signed before holds.

    Raises:
        Rejected: ``E_PATH``.
    """
    for path in paths:
        parts = path.split("/")
        rules = (
            (
                not any(map(_DEVICE.match, parts)),
                "is no device of Windows (CON, NUL, COM1, …), whatever its ending",
            ),
            (_TURNS_TEXT.search(path) is None, "has no character that turns text around or breaks a line"),
            (
                all(len(part.encode(errors="surrogatepass")) <= LONGEST_PART for part in parts),
                f"has parts of at most {LONGEST_PART} bytes, so that stock clients can download it",
            ),
        )
        for holds, rule in rules:
            if not holds:
                raise Rejected(
                    "E_PATH", f"file {shown(path)}: expected a name that {rule}", "rename the file"
                )


def is_large(path: str, size: int) -> bool:
    """Whether this file goes to the store by itself."""
    return size > SMALL_BYTES or (size > 0 and path.lower().endswith(LARGE_ENDINGS))


def git_oid(data: bytes) -> str:
    """What git calls these bytes.

    >>> git_oid(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
