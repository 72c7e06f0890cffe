"""The frozen base model that adapters sit on: a folder at the site, held against the plan's digests.

A plan names each file of the base by SHA-256. A site finds a folder that has them, as pulled from the hub or
as installed there; other files in that folder are never looked at. Nothing is ever fetched. Needs neither
numpy nor torch.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.errors import Refused, Rejected
from storage.manifests import hash_file

CONFIG = "config.json"

# What a file's digest was when its name, size and times were these: a base is large, and read every round.
_known: dict[tuple[str, int, int, int, int], str] = {}


def find_base(files: Mapping[str, str], folders: Sequence[Path]) -> Path:
    """The first of ``folders`` that holds every file with its digest.

    Args:
        files: name -> SHA-256 in hex.
    Raises:
        Refused: ``E_BASE_MISSING``: no folder has files of these names.
        Rejected: ``E_BASE_DIGEST``: a folder has them, with other bytes.
    """
    wrong = ""
    for folder in folders:
        if not all((folder / name).is_file() for name in files):
            continue
        strange = next((name for name in sorted(files) if _digest(folder / name) != files[name]), None)
        if strange is None:
            return folder
        found = _digest(folder / strange)
        wrong = wrong or f"{folder / strange}: the plan names {files[strange]}, the file here is {found}"
    if wrong:
        raise Rejected(
            "E_BASE_DIGEST",
            f"base model: {wrong}",
            "pull the base model that the plan names, then: fedhub site base FOLDER",
        )
    raise Refused(
        "E_BASE_MISSING",
        f"no folder at this site holds the base model ({CONFIG} {files[CONFIG]}); looked into {len(folders)}",
        "pull or install the base model, then: fedhub site base FOLDER",
    )


@contextmanager
def only(files: Mapping[str, str], folder: Path) -> Iterator[Path]:
    """A folder that shows the named files of ``folder`` and no other, while the block runs."""
    with TemporaryDirectory(prefix="fedhub-base-") as place:
        for name in files:
            (Path(place) / name).symlink_to((folder / name).resolve())
        yield Path(place)


def base_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files of ``folder`` that make a base model, for a plan to name.

    Raises:
        Rejected: ``E_BASE_MODEL``: it has no configuration, tokenizer or safetensors weights.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and is_base_file(path.name))
    kinds = {
        CONFIG: CONFIG in names,
        "tokenizer.json": "tokenizer.json" in names,
        "a .safetensors file": any(name.endswith(".safetensors") for name in names),
    }
    if lacking := [kind for kind, there in kinds.items() if not there]:
        raise Rejected(
            "E_BASE_MODEL",
            f"{folder}: no base model, it lacks {', '.join(lacking)}",
            "name a folder with config.json, tokenizer.json and weights as safetensors",
        )
    return {name: _digest(folder / name) for name in names}


def is_base_file(name: str) -> bool:
    """Whether a file of this name can be part of a base: configuration, tokenizer or weights.

    >>> [is_base_file(name) for name in ("config.json", "model.safetensors", "pytorch_model.bin")]
    [True, True, False]
    """
    return name in _NAMES or name.endswith(".safetensors")


_NAMES = frozenset(
    {
        CONFIG,
        "added_tokens.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)


def _digest(path: Path) -> str:
    status = os.stat(path)
    key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if key not in _known:
        _known[key] = hash_file(path)[0]
    return _known[key]
