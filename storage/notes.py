"""Signed notes: a text with signature lines under it, and the keys that make and check such lines.

C2SP signed-note, with the two signature types that we use: Ed25519 (``LOG``) and the timestamped Ed25519
cosignature of tlog-cosignature (``WITNESS``). Text is cut at LF and space only: Python's ``split()`` and
``splitlines()`` also cut at U+0085, U+2028 and others, and a note that two programs cut differently can say
two things. Lines of unknown keys are ignored, so that newer signature types can be added beside ours.
"""

import base64
import hashlib
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from storage.encoding import b64, unb64
from storage.errors import FedhubError, Rejected, Unchecked

MAX_NOTE_BYTES = 1 << 16
MAX_SIGNATURES = 64
LOG, WITNESS = 1, 4  # signature types of signed-note

_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/=]+)")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_KEY_FILE_LIMIT_BYTES = 4096


# --- keys -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerifierKey:
    """Public key of a log (``kind`` 1) or a witness (``kind`` 4), with the name that it signs under."""

    name: str
    kind: int
    public: bytes  # 32 bytes

    @property
    def id(self) -> bytes:
        """First 4 bytes of sha256(name LF kind public): tells keys apart, proves nothing."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        """The ``name+id+base64`` line that policies hold."""
        return f"{self.name}+{self.id.hex()}+{b64(bytes([self.kind]) + self.public)}"

    def signed_at(self, text: bytes, signature: bytes) -> int:
        """Time of this cosignature over ``text``, in Unix seconds; 0 for a log's own signature.

        Raises:
            Rejected: ``E_CHECKPOINT_SIG``, the signature is not this key's over this text.
        """
        at, message = 0, text
        if self.kind == WITNESS:
            if len(signature) != 72:
                raise Rejected(
                    "E_CHECKPOINT_SIG", f"cosignature of {self.name} has {len(signature)} bytes, expected 72"
                )
            at = struct.unpack(">Q", signature[:8])[0]
            message, signature = b"cosignature/v1\ntime %d\n" % at + text, signature[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            raise Rejected(
                "E_CHECKPOINT_SIG", f"the checkpoint's signature of {self.name} is wrong"
            ) from None
        return at


def parse_vkey(text: str) -> VerifierKey:
    """Read a verifier key line.

    Raises:
        Unchecked: ``E_TRUST``; such lines stand only in the reader's own files.
    """
    parts = text.split("+", 2)
    if len(parts) != 3 or not parts[0] or re.search(r"\s", parts[0]):
        raise Unchecked("E_TRUST", f"verifier key {text[:80]!r} is not name+id+base64")
    try:
        raw = unb64(parts[2], "E_TRUST")
    except FedhubError as error:
        raise Unchecked("E_TRUST", f"verifier key of {parts[0]}: {error.message}") from error
    if len(raw) != 33 or raw[0] not in (LOG, WITNESS):
        raise Unchecked("E_TRUST", f"verifier key of {parts[0]} is not Ed25519 of type 1 or 4")
    key = VerifierKey(parts[0], raw[0], raw[1:])
    if key.id.hex() != parts[1]:
        raise Unchecked(
            "E_TRUST",
            f"verifier key of {parts[0]}: its id is {key.id.hex()}, the line says {parts[1][:16]!r}",
        )
    return key


class LogKey:
    """Private key that signs checkpoints (``LOG``) or cosigns them (``WITNESS``)."""

    def __init__(self, name: str, key: Ed25519PrivateKey, kind: int = LOG) -> None:
        if not name or re.search(r"[\s+]", name):
            raise Unchecked("E_INPUT", f"key name {name!r} is empty or holds a space or a plus sign")
        self._key = key
        self.public = VerifierKey(name, kind, key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str, kind: int = LOG) -> "LogKey":
        return cls(name, Ed25519PrivateKey.generate(), kind)

    @property
    def name(self) -> str:
        return self.public.name

    @property
    def vkey(self) -> str:
        """The line by which others know this key."""
        return str(self.public)

    def sign_note(self, text: bytes) -> bytes:
        """Signature line over a note's text, for a log's key."""
        return self._line(self._key.sign(text))

    def cosign_note(self, text: bytes, now: int) -> bytes:
        """Cosignature line over a checkpoint's text at ``now`` (Unix seconds), for a witness's key."""
        return self._line(struct.pack(">Q", now) + self._key.sign(b"cosignature/v1\ntime %d\n" % now + text))

    def _line(self, signature: bytes) -> bytes:
        return f"— {self.name} {b64(self.public.id + signature)}\n".encode()

    def write(self, path: Path) -> None:
        """Store the key for its owner alone (mode 0600); an existing file is never replaced."""
        secret = b64(bytes([self.public.kind]) + self._key.private_bytes_raw())
        text = f"PRIVATE+KEY+{self.name}+{self.public.id.hex()}+{secret}\n"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError as error:
            raise Unchecked(
                "E_KEY_FILE",
                f"log key {path}: exists already and is never overwritten",
                "a log keeps its key",
            ) from error
        except OSError as error:
            raise Unchecked("E_KEY_FILE", f"log key {path}: cannot be written ({error.strerror})") from error
        with os.fdopen(file, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(file)

    @classmethod
    def read(cls, path: Path) -> "LogKey":
        """Read a key written by ``write``; a file that others may read is refused."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise Unchecked("E_KEY_FILE", f"log key {path}: cannot be opened ({error.strerror})") from error
        with os.fdopen(file, "rb") as stream:
            mode = os.fstat(file).st_mode
            if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
                raise Unchecked(
                    "E_KEY_FILE",
                    f"log key {path}: expected a regular file of mode 0600, found {stat.filemode(mode)}",
                    f"chmod 600 {path}, and make a new key if others may have read this one",
                )
            raw = stream.read(_KEY_FILE_LIMIT_BYTES)
        match = re.fullmatch(rb"PRIVATE\+KEY\+([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)\n", raw)
        try:
            secret = base64.b64decode(match[3], validate=True) if match else b""
            name = match[1].decode() if match else ""
        except ValueError:
            secret = b""
        if match is None or len(secret) != 33 or secret[0] not in (LOG, WITNESS):
            raise Unchecked("E_KEY_FILE", f"log key {path}: not a signed-note private key")
        key = cls(name, Ed25519PrivateKey.from_private_bytes(secret[1:]), secret[0])
        if key.public.id.hex().encode() != match[2]:
            raise Unchecked("E_KEY_FILE", f"log key {path}: its id is not the one that it names")
        return key


# --- notes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """A text and the signature lines under it, not yet checked: ``(key name, key id, signature)``."""

    text: bytes
    signatures: tuple[tuple[str, bytes, bytes], ...]

    def times(self, key: VerifierKey) -> list[int]:
        """``VerifierKey.signed_at`` of each line of this key; a wrong line refuses the whole note."""
        return [
            key.signed_at(self.text, s)
            for name, id_, s in self.signatures
            if (name, id_) == (key.name, key.id)
        ]


def parse_note(raw: bytes) -> Note:
    """Cut a signed note into text and signatures.

    Raises:
        Rejected: ``E_CHECKPOINT`` for any departure from the form, ``E_LIMIT`` for its size.
    """
    if len(raw) > MAX_NOTE_BYTES:
        raise Rejected("E_LIMIT", f"the signed note has {len(raw)} bytes, at most {MAX_NOTE_BYTES} are read")
    try:
        whole = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Rejected("E_CHECKPOINT", "the signed note is not UTF-8") from None
    if _CONTROL.search(whole):
        raise Rejected("E_CHECKPOINT", "the signed note holds a control character")
    cut = whole.rfind("\n\n")
    if cut < 0 or not whole.endswith("\n"):
        raise Rejected("E_CHECKPOINT", "the signed note has no blank line between text and signatures")
    lines = whole[cut + 2 :].split("\n")[:-1]
    if not 1 <= len(lines) <= MAX_SIGNATURES:
        raise Rejected(
            "E_CHECKPOINT", f"the signed note has {len(lines)} signatures, expected 1 to {MAX_SIGNATURES}"
        )
    signatures: list[tuple[str, bytes, bytes]] = []
    for line in lines:
        match = _SIGNATURE.fullmatch(line)
        signature = unb64(match[2], "E_CHECKPOINT") if match else b""
        if match is None or len(signature) < 5:
            raise Rejected("E_CHECKPOINT", f"signature line {len(signatures) + 1} is not '— name base64'")
        signatures.append((match[1], signature[:4], signature[4:]))
    return Note(whole[: cut + 1].encode(), tuple(signatures))
