"""Signs and checks one document: an in-toto payload in a DSSE envelope in a Sigstore bundle, ECDSA P-256.

One shape for everything that is ever signed, the shape that stock ``cosign`` and ``model_signing`` read.
A statement's id is the digest of what is signed (the PAE), not of the signature, so a signature that was
changed into another valid one is still the same statement. What a payload says is for
``storage.statements``; which key may sign what is for ``storage.keyring``.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from storage.encoding import b64, canonical, is_digest, read_json, sha256_hex, unb64
from storage.errors import Rejected, Unchecked, shown

PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
BUNDLE_SUFFIX = ".sigstore.json"
PAYLOAD_LIMIT_BYTES = 1 << 20
BUNDLE_LIMIT_BYTES = 4 << 20

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey

_ECDSA = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class Envelope:
    """An opened bundle whose signature nobody has checked yet.

    Attributes:
        payload: the signed in-toto statement, as bytes.
        signature: ECDSA signature, DER.
        hint: digest of the PEM of the key that is said to have signed.
        id: the statement's id.
        raw: the bundle as it was read.
    """

    payload: bytes
    signature: bytes
    hint: str
    id: str
    raw: bytes


# --- keys -----------------------------------------------------------------------------------------


def new_private_key() -> PrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def write_private_key(path: Path, key: PrivateKey) -> None:
    """Put a private key into a new file of mode 0600; an existing file is never overwritten.

    Raises:
        Unchecked: ``E_KEY_FILE``; the file exists already or cannot be written.
    """
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise Unchecked(
            "E_KEY_FILE",
            f"key file {path}: exists already and is never overwritten",
            "choose another folder, or move the old key away",
        ) from error
    except OSError as error:
        raise Unchecked("E_KEY_FILE", f"key file {path}: cannot be written ({error.strerror})") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def read_private_key(path: Path) -> PrivateKey:
    """The private key in a file that only its owner can read.

    Raises:
        Unchecked: ``E_KEY_FILE``; missing, a link, readable by others, or no PEM key on P-256.
    """
    try:
        with open(path, "rb", opener=_open_no_link) as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(1 << 16) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise Unchecked("E_KEY_FILE", f"key file {path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
        raise Unchecked(
            "E_KEY_FILE",
            f"key file {path}: expected a regular file of mode 0600, found {stat.filemode(mode)}",
            f"chmod 600 {path}, and make a new key if others may have read this one",
        )
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Unchecked("E_KEY_FILE", f"key file {path}: not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Unchecked("E_KEY_FILE", f"key file {path}: expected an elliptic curve key on secp256r1")
    return key


def _open_no_link(path: str, flags: int) -> int:
    # Without O_NONBLOCK a named pipe in the place of a key would hang us.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def public_pem(key: PublicKey) -> str:
    """The PEM SubjectPublicKeyInfo text of a public key, with its final newline."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode("ascii")


def read_public_key(pem: object, code: str) -> PublicKey:
    """The P-256 public key in PEM text, refused unless the text is the key's one spelling."""
    problem = "expected the PEM SubjectPublicKeyInfo of a P-256 key"
    if not isinstance(pem, str) or not pem.isascii():
        raise Rejected(code, f"public key: {problem}, found {shown(pem)}")
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Rejected(code, f"public key: {problem}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Rejected(code, f"public key: {problem}, found another kind of key")
    if public_pem(key) != pem:
        raise Rejected(code, "public key: the PEM text is not written in its one form")
    return key


def key_hint(key: PublicKey) -> str:
    """What names a key: the SHA-256 of its PEM text, which ``sha256sum key.pem`` prints too."""
    return sha256_hex(public_pem(key).encode())


# --- statements -----------------------------------------------------------------------------------


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """The bytes that are signed: DSSE v1 pre-authentication encoding (secure-systems-lab/dsse, protocol.md).

    >>> pae(b"hello world", "http://example.com/HelloWorld")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def statement_id(payload: bytes) -> str:
    """The id of a statement: SHA-256 of its PAE."""
    return sha256_hex(pae(payload))


def sign_bytes(key: PrivateKey, data: bytes) -> bytes:
    """A DER signature, ECDSA with SHA-256 and the nonce of RFC 6979: same key and data, same bytes."""
    return key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def sign(key: PrivateKey, payload: bytes) -> bytes:
    """The bundle of a payload and its signature over the PAE."""
    signature = sign_bytes(key, pae(payload))
    return canonical(
        {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key_hint(key.public_key())}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": b64(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": b64(signature), "keyid": ""}],
            },
        }
    )


def open_envelope(raw: bytes) -> Envelope:
    """What a bundle holds, with its form checked to the last member and its signature not yet checked.

    ``tlogEntries`` and ``keyid`` may be left out when empty, as some stock signers do.

    Raises:
        Rejected: ``E_BUNDLE`` (V6); ``E_LIMIT`` for more than 4 MiB, or a payload of more than 1 MiB.
    """
    bundle = read_json(raw, code="E_BUNDLE", limit=BUNDLE_LIMIT_BYTES)
    _members(bundle, "bundle", {"mediaType", "verificationMaterial", "dsseEnvelope"})
    _expect(bundle["mediaType"], BUNDLE_TYPE, "mediaType")
    material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
    _members(material, "verificationMaterial", {"publicKey"}, frozenset({"tlogEntries"}))
    _expect(material.get("tlogEntries", []), [], "tlogEntries")
    _members(material["publicKey"], "publicKey", {"hint"})
    hint = material["publicKey"]["hint"]
    if not is_digest(hint):
        raise Rejected("E_BUNDLE", f"bundle: publicKey.hint must be a SHA-256 digest, found {shown(hint)}")
    _members(envelope, "dsseEnvelope", {"payload", "payloadType", "signatures"})
    _expect(envelope["payloadType"], PAYLOAD_TYPE, "payloadType")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise Rejected("E_BUNDLE", "bundle: dsseEnvelope.signatures must hold exactly one signature")
    _members(signatures[0], "signature", {"sig"}, frozenset({"keyid"}))
    _expect(signatures[0].get("keyid", ""), "", "keyid")
    payload = unb64(envelope["payload"], "E_BUNDLE")
    if len(payload) > PAYLOAD_LIMIT_BYTES:
        raise Rejected(
            "E_LIMIT", f"bundle: a payload has at most {PAYLOAD_LIMIT_BYTES} bytes, found {len(payload)}"
        )
    return Envelope(payload, unb64(signatures[0]["sig"], "E_BUNDLE"), hint, statement_id(payload), raw)


def _members(value: Any, what: str, required: set[str], optional: frozenset[str] = frozenset()) -> None:
    if not isinstance(value, dict) or not required <= set(value) <= required | optional:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise Rejected(
            "E_BUNDLE", f"bundle: {what} must have exactly {sorted(required)}, found {shown(found)}"
        )


def _expect(found: Any, expected: Any, what: str) -> None:
    if type(found) is not type(expected) or found != expected:
        raise Rejected("E_BUNDLE", f"bundle: {what} must be {expected!r}, found {shown(found)}")


def check_signature(key: PublicKey, envelope: Envelope) -> None:
    """Return only when this key signed this payload.

    Raises:
        Rejected: ``E_SIGNATURE`` (V7).
    """
    try:
        key.verify(envelope.signature, pae(envelope.payload), _ECDSA)
    except InvalidSignature as error:
        raise Rejected(
            "E_SIGNATURE",
            f"statement {envelope.id}: not signed by the key {key_hint(key)} that its bundle names",
        ) from error


def log_leaf(key: PublicKey, envelope: Envelope) -> bytes:
    """The transparency log's entry for a statement: it shows the key and the digest, none of the content.

    Source: Rekor v2 ``hashedrekord`` 0.0.2.
    """
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    verifier = {"keyDetails": "PKIX_ECDSA_P256_SHA_256", "publicKey": {"rawBytes": b64(der)}}
    record = {
        "data": {"algorithm": "SHA2_256", "digest": b64(bytes.fromhex(envelope.id))},
        "signature": {"content": b64(envelope.signature), "verifier": verifier},
    }
    return canonical({"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": record}})
