"""The hub's own secrets: made once in its data folder, mode 0600, read at every start.

The log key signs checkpoints and can never be replaced. The others can: removing a file and starting again
ends open sessions (``token.secret``), the coordinator's access (``coordinator.token``), open upload orders
and reads of a folder store (``blob.secret``) or the hub's own access to SuperLink (``control.token``). None
of them signs statements: those keys lie in the operator's home.
"""

import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hub.settings import Settings
from storage.checkpoint import LogKey
from storage.errors import Unchecked

SECRET_BYTES = 32


@dataclass(frozen=True)
class HubKeys:
    """What ``open_keys`` found or made."""

    folder: Path
    shared: Path  # with an external SuperLink; else the same folder
    log: LogKey = field(repr=False)
    token_secret: bytes = field(repr=False)  # of access tokens
    blob_secret: str = field(repr=False)  # of the folder store's orders and addresses
    coordinator_token: str = field(repr=False)
    control_token: str = field(repr=False)

    @property
    def coordinator_file(self) -> Path:
        """Where the coordinator reads its token: a path is told, never the token."""
        return self.shared / "coordinator.token"

    @property
    def control_file(self) -> Path:
        """Where SuperLink's launcher reads the Control API's token."""
        return self.shared / "control.token"

    def derive(self, purpose: str) -> bytes:
        """A secret of 32 bytes for one more purpose, bound to ``token.secret``."""
        return hmac.digest(self.token_secret, f"fedhub {purpose}".encode(), hashlib.sha256)


def keys_of(settings: Settings) -> HubKeys:
    """The keys of the hub with these settings; missing ones are made."""
    return open_keys(settings.data_dir / "keys", settings.origin, shared=settings.shared_dir)


def open_keys(folder: Path, origin: str, *, shared: Path | None = None) -> HubKeys:
    """The hub's keys in ``folder``; missing ones are made.

    Args:
        shared: folder of the two tokens that SuperLink reads too; by default with the others.

    Raises:
        Unchecked: ``E_SETTING`` when the log key is another origin's; ``E_KEY_FILE`` when a file can be read
            by
            others or is not what it should be.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "log.key"
    if not path.exists():
        LogKey.generate(origin).write(path)
    log = LogKey.read(path)
    if log.name != origin:
        raise Unchecked(
            "E_SETTING",
            f"FEDHUB_ORIGIN: {origin} given, but the log key in {path} is of {log.name}",
            "A log keeps its name for ever; choose another data folder for another hub.",
        )
    common = shared or folder
    common.mkdir(parents=True, exist_ok=True, mode=0o700)
    return HubKeys(
        folder=folder,
        shared=common,
        log=log,
        token_secret=bytes.fromhex(_secret(folder / "token.secret")),
        blob_secret=_secret(folder / "blob.secret"),
        coordinator_token=_secret(common / "coordinator.token"),
        control_token=_secret(common / "control.token"),
    )


def _secret(path: Path) -> str:
    """The 64 hex digits in ``path``; two processes that start together end up with the same ones."""
    if not path.exists():
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(SECRET_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)
        except FileExistsError:
            pass  # another process was first
        finally:
            Path(name).unlink()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise Unchecked("E_KEY_FILE", f"{path}: mode {mode:04o}, expected 0600", f"chmod 600 {path}")
    text = path.read_text().strip()
    if len(text) != 2 * SECRET_BYTES or not all(digit in "0123456789abcdef" for digit in text):
        raise Unchecked("E_KEY_FILE", f"{path}: not {2 * SECRET_BYTES} hex digits", "Restore it.")
    return text
