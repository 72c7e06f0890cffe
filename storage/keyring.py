"""Key rings: which keys speak for an institution, in which role, in each version of its ring.

A ring is TUF root metadata, one file ``N.root.json`` per version. Its first version is pinned by digest; each
later one is signed to the root thresholds of the version before and of itself. Four roles: ``root`` changes
the ring, ``targets`` signs the institution's word, ``snapshot`` holds the site machines' keys, ``timestamp``
signs status lists. This module reads rings with nothing but ``cryptography``; ``storage.ringmaker`` writes
them with python-tuf. From which log index a version is in force, and whether it has expired, is not decided
here: both need the log or a clock.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from storage.encoding import check_institution, is_digest, parse_time, read_json, sha256_hex
from storage.errors import Rejected, shown
from storage.signing import PublicKey, key_hint, read_public_key

INSTITUTION_MEMBER = "x-fedhub-institution"
RING_LIMIT_BYTES = 512_000
MAX_VERSIONS = 1024
MAX_KEYS = 256
ROLES = ("root", "targets", "snapshot", "timestamp")
WORKING_ROLES = ROLES[1:]
E = "E_KEYRING"

_HEX = re.compile(r"([0-9a-f]{2}){8,80}")
_SPEC = re.compile(r"1\.[0-9]{1,4}\.[0-9]{1,4}")
_ECDSA = ec.ECDSA(hashes.SHA256())
_SIGNED = {
    "_type",
    "consistent_snapshot",
    "expires",
    "keys",
    "roles",
    "spec_version",
    "version",
    INSTITUTION_MEMBER,
}


@dataclass(frozen=True)
class RingVersion:
    """One version of an institution's ring.

    Attributes:
        version: N of ``N.root.json``.
        digest: SHA-256 of the file.
        expires: seconds since 1970.
        roles: role -> key hint -> key, for all four roles.
        raw: the file.
        root_threshold: how many root keys must sign a change.
    """

    version: int
    digest: str
    expires: int
    roles: dict[str, dict[str, PublicKey]]
    raw: bytes
    root_threshold: int


@dataclass(frozen=True)
class KeyRing:
    """All versions of an institution's ring, 1 to N, each checked against the one before."""

    institution: str
    versions: dict[int, RingVersion]

    @property
    def newest(self) -> RingVersion:
        """The version with the highest number."""
        return self.versions[len(self.versions)]

    @property
    def pin(self) -> str:
        """What others write down to recognise this ring: the digest of its first version."""
        return self.versions[1].digest


def read_ring(institution: str, raws: list[bytes], pin: str) -> KeyRing:
    """An institution's ring from its files in order, accepted only from the pinned first one on.

    Args:
        institution: whose ring this must be.
        raws: ``1.root.json``, ``2.root.json``, ... without a gap.
        pin: SHA-256 of ``1.root.json``, from the reader's own ``trust.json``.
    Raises:
        Rejected: ``E_KEYRING_PIN``, ``E_KEYRING_NAME``, ``E_KEYRING``, ``E_LIMIT`` (V5).
    Source: TUF specification 1.0, section 5.3, without its expiry check.
    """
    if not 1 <= len(raws) <= MAX_VERSIONS:
        raise Rejected(E, f"key ring of {institution}: expected 1 to {MAX_VERSIONS} files, found {len(raws)}")
    found = sha256_hex(raws[0])
    if found != pin:
        raise Rejected(
            "E_KEYRING_PIN",
            f"key ring of {institution}: 1.root.json has digest {found}, pinned is {shown(pin, 70)}",
            "ask the institution for its pin by another way, and correct trust.json if it was wrong",
        )
    versions: dict[int, RingVersion] = {}
    for number, raw in enumerate(raws, start=1):
        versions[number] = read_version(institution, number, raw, versions.get(number - 1))
    return KeyRing(institution, versions)


def read_version(institution: str, number: int, raw: bytes, before: RingVersion | None) -> RingVersion:
    """One version of a ring, signed to its own root threshold and to that of the version before.

    Without ``before`` only its own threshold is looked at, which proves nothing about a later version: to
    accept a ring, use ``read_ring``.

    Raises:
        Rejected: ``E_KEYRING_NAME``, ``E_KEYRING``, ``E_LIMIT`` (V5).
    """
    what = f"key ring of {institution}, {number}.root.json"
    try:
        version, signed, signatures = _parse(institution, number, raw)
        for signers in (version,) if before is None else (before, version):
            _check_threshold(signers, signed, signatures)
    except Rejected as error:
        raise Rejected(error.code, f"{what}: {error.message}", error.hint, step="V5") from error
    return version


def _parse(institution: str, number: int, raw: bytes) -> tuple[RingVersion, bytes, dict[str, bytes]]:
    document = read_json(raw, code=E, limit=RING_LIMIT_BYTES)
    _exactly(document, {"signatures", "signed"}, "metadata")
    signed = document["signed"]
    if not isinstance(signed, dict) or signed.get(INSTITUTION_MEMBER) != institution:
        named = signed.get(INSTITUTION_MEMBER) if isinstance(signed, dict) else None
        raise Rejected("E_KEYRING_NAME", f"is the ring of {shown(named)}")
    check_institution(institution, "E_KEYRING_NAME")
    _exactly(signed, _SIGNED, "signed")
    if type(signed["version"]) is not int or signed["version"] != number:
        raise Rejected(E, f"version: expected {number}, found {shown(signed['version'])}")
    spec = signed["spec_version"]
    if signed["_type"] != "root" or not isinstance(spec, str) or _SPEC.fullmatch(spec) is None:
        raise Rejected(E, "expected TUF root metadata of specification 1")
    if type(signed["consistent_snapshot"]) is not bool:
        raise Rejected(E, "consistent_snapshot: expected true or false")
    roles, threshold = _roles(signed["roles"], _keys(signed["keys"]))
    version = RingVersion(number, sha256_hex(raw), parse_time(signed["expires"], E), roles, raw, threshold)
    return version, tuf_canonical(signed), _signatures(document["signatures"])


def _exactly(value: Any, members: set[str], what: str) -> None:
    if not isinstance(value, dict) or set(value) != members:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise Rejected(E, f"{what}: expected exactly {', '.join(sorted(members))}, found {shown(found)}")


def _keys(value: Any) -> dict[str, PublicKey]:
    if not isinstance(value, dict) or len(value) > MAX_KEYS:
        raise Rejected(E, f"keys: expected an object of at most {MAX_KEYS}")
    keys: dict[str, PublicKey] = {}
    for keyid, entry in value.items():
        _exactly(entry, {"keytype", "scheme", "keyval"}, "key")
        _exactly(entry["keyval"], {"public"}, "keyval")
        if (entry["keytype"], entry["scheme"]) != ("ecdsa", "ecdsa-sha2-nistp256"):
            raise Rejected(E, f"key {shown(keyid)}: expected ecdsa with ecdsa-sha2-nistp256")
        key = read_public_key(entry["keyval"]["public"], E)
        if key_hint(key) != keyid:
            raise Rejected(E, f"key {shown(keyid)}: its id is not the digest of its PEM text")
        keys[keyid] = key
    return keys


def _roles(value: Any, keys: dict[str, PublicKey]) -> tuple[dict[str, dict[str, PublicKey]], int]:
    _exactly(value, set(ROLES), "roles")
    roles: dict[str, dict[str, PublicKey]] = {}
    for role in ROLES:
        _exactly(value[role], {"keyids", "threshold"}, f"role {role}")
        keyids, threshold = value[role]["keyids"], value[role]["threshold"]
        if not isinstance(keyids, list) or not all(is_digest(k) and k in keys for k in keyids):
            raise Rejected(E, f"role {role}: keyids must name keys of this ring")
        if len(set(keyids)) != len(keyids):
            raise Rejected(E, f"role {role}: a key stands twice")
        if type(threshold) is not int or not 1 <= threshold <= len(keyids):
            raise Rejected(E, f"role {role}: expected a threshold from 1 to {len(keyids)}")
        if role != "root" and threshold != 1:
            raise Rejected(E, f"role {role}: expected threshold 1, found {threshold}")
        roles[role] = {keyid: keys[keyid] for keyid in keyids}
    working = [keyid for role in WORKING_ROLES for keyid in roles[role]]
    if len(set(working)) != len(working):
        raise Rejected(E, "roles targets, snapshot and timestamp must not share a key")
    if set(working) | set(roles["root"]) != set(keys):
        raise Rejected(E, "keys: a key without a role")
    return roles, value["root"]["threshold"]


def _signatures(value: Any) -> dict[str, bytes]:
    if not isinstance(value, list) or len(value) > MAX_KEYS:
        raise Rejected(E, f"signatures: expected a list of at most {MAX_KEYS}")
    signatures: dict[str, bytes] = {}
    for entry in value:
        _exactly(entry, {"keyid", "sig"}, "signature")
        keyid, sig = entry["keyid"], entry["sig"]
        if not is_digest(keyid) or not isinstance(sig, str) or _HEX.fullmatch(sig) is None:
            raise Rejected(E, "signature: expected a key id and hex digits")
        if keyid in signatures:
            raise Rejected(E, f"signatures: key {keyid} signed twice")
        signatures[keyid] = bytes.fromhex(sig)
    return signatures


def _check_threshold(ring: RingVersion, signed: bytes, signatures: dict[str, bytes]) -> None:
    good = 0
    for keyid, key in ring.roles["root"].items():
        if keyid in signatures:
            try:
                key.verify(signatures[keyid], signed, _ECDSA)
            except InvalidSignature:
                continue  # as TUF says: a bad signature is one that does not count
            good += 1
    if good < ring.root_threshold:
        raise Rejected(
            E,
            f"signed by {good} root keys of version {ring.version}, whose threshold is {ring.root_threshold}",
        )


def tuf_canonical(value: Any) -> bytes:
    """The bytes of TUF metadata that its signatures cover.

    Unlike ``storage.encoding.canonical`` it escapes only the quotation mark and the backslash, so the line
    ends of a PEM key stay as they are.

    Raises:
        Rejected: ``E_KEYRING``; the value holds a float.
    Source: the OLPC canonical JSON that TUF 1.0 section 4.2.1 names.
    """
    pieces: list[str] = []
    _spell(value, pieces.append)
    return "".join(pieces).encode()


def _spell(value: Any, put: Callable[[str], None]) -> None:
    if isinstance(value, str):
        put('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"')
    elif isinstance(value, dict):
        put("{")
        for index, name in enumerate(sorted(value)):
            put("," if index else "")
            _spell(name, put)
            put(":")
            _spell(value[name], put)
        put("}")
    elif isinstance(value, list):
        put("[")
        for index, item in enumerate(value):
            put("," if index else "")
            _spell(item, put)
        put("]")
    elif value is None or isinstance(value, (bool, int)):
        put(json.dumps(value))
    else:
        raise Rejected(E, f"TUF canonical JSON: {type(value).__name__} has no canonical form")
