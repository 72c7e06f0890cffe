"""A real disk that is small enough to be filled: a tmpfs, which only root may mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

FILLER = "filler"


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """The folder as a disk of this many KiB; the test is skipped where that is not allowed."""
    options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte of it, in a file that ``empty`` removes."""
    with (disk / FILLER).open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(OSError, match="No space left"):
        (disk / f"{FILLER}.more").write_bytes(b"x")
    (disk / f"{FILLER}.more").unlink(missing_ok=True)


def empty(disk: Path) -> None:
    """Make room again."""
    (disk / FILLER).unlink()
