"""By which names stock Hugging Face clients know a file, and how large one may be.

The hub answers with these names, and a pull fills the clients' cache by them.

A file is *large* by its name and size alone, so that every answer about it agrees: large ones are named by
their SHA-256, small ones by git's blob SHA-1. Some names are the hub's own: what proves a version.
"""

import hashlib
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


def is_large(path: str, size: int) -> bool:
    """Whether this file goes to the store by itself."""
    return size > SMALL_BYTES or (size > 0 and path.lower().endswith(LARGE_ENDINGS))


def git_oid(data: bytes) -> str:
    """What git calls these bytes.

    >>> git_oid(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
