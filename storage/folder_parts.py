"""Parts of an object in a folder: joined without a second look, as long as no power cut can have harmed them.

The blob server checked each part as it came, and does not bring it to the disk by itself. While the machine
has not started anew since the upload began, what was written is what is read; after that, each part is read
and checked once more before it is joined. Used by ``storage.blobs`` only.
"""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from storage.errors import Refused

READ_BYTES = 1 << 20
COPY_BYTES = 64 << 20
BOOT = "boot"  # file beside the parts: during which run of the machine the upload began


def note_boot(folder: Path) -> None:
    """Remember during which run of the machine this upload begins."""
    (folder / BOOT).write_text(_boot_id())


def same_boot(folder: Path) -> bool:
    """Whether the machine has run without a break since the upload began."""
    try:
        return (folder / BOOT).read_text() == _boot_id()
    except FileNotFoundError:
        return False


def check_part(part: Path, sha256: str) -> None:
    """Read a part that was stored before the machine last started: a power cut may have damaged it."""
    found = hashlib.sha256()
    with part.open("rb", buffering=0) as stream:
        while chunk := stream.read(READ_BYTES):
            found.update(chunk)
    if found.hexdigest() != sha256:
        part.unlink()
        message = f"part {part.name.split('.')[0]} was damaged in the store and has been dropped"
        raise Refused("E_PARTS", message, "send it again", status=400)


def join_parts(joined: Path, parts: Sequence[Path]) -> None:
    """Make a file of parts; a single one only gets a second name, where the file system knows links."""
    if len(parts) == 1:
        try:
            os.link(parts[0], joined)
            return
        except OSError:  # what is wrong with the part itself is told below
            pass
    with joined.open("xb", buffering=0) as stream:
        for part in parts:
            _append(stream, part)


def _append(joined: BinaryIO, part: Path) -> None:
    """Copy a part's bytes to the end of the joined object, inside the kernel where it can."""
    copy = getattr(os, "copy_file_range", None)
    with part.open("rb", buffering=0) as stream:
        try:
            while copy is not None and copy(stream.fileno(), joined.fileno(), COPY_BYTES):
                pass
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        shutil.copyfileobj(stream, joined, READ_BYTES)  # what is left


def _boot_id() -> str:
    """Names this run of the machine; never the same twice where the machine tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return secrets.token_hex(16)
