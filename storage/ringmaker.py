"""Makes versions of a key ring with python-tuf; the only module of the project that imports it.

Reading and checking rings needs no TUF library: that is ``storage.keyring``, and every ring made here is read
back by it before it is handed out.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec

# These packages re-export their public names without saying so in the way that mypy wants.
from securesystemslib.signer import Signature, SSlibKey  # type: ignore[attr-defined]
from tuf.api.metadata import Metadata, Role, Root  # type: ignore[attr-defined]

from storage.encoding import check_institution, format_time
from storage.errors import Misuse, Rejected
from storage.keyring import INSTITUTION_MEMBER, ROLES, RingVersion, read_version
from storage.signing import PrivateKey, PublicKey, key_hint, public_pem, sign_bytes

TUF_SPECIFICATION = "1.0.31"


def make_ring(
    institution: str,
    keys: Mapping[str, Sequence[PrivateKey | PublicKey]],
    *,
    version: int,
    expires_at: int,
    signers: Sequence[PrivateKey],
    root_threshold: int = 1,
    before: RingVersion | None = None,
) -> bytes:
    """The bytes of ``N.root.json``; the same arguments give the same bytes.

    Args:
        institution: whose ring it is.
        keys: keys of the roles ``root``, ``targets``, ``snapshot`` and ``timestamp``; public halves suffice.
        version: N, from 1.
        expires_at: seconds since 1970.
        signers: root keys that sign; for N > 1 enough of the old ones and enough of the new ones.
        root_threshold: how many root keys a change needs from now on.
        before: version N-1, when N > 1: what is made is then checked against it too.
    Raises:
        Misuse: the roles are not exactly those four.
        Rejected: ``E_KEYRING``; too few signers, a key in two working roles, an impossible threshold;
            ``E_STATEMENT``; it would expire outside the calendar.
    """
    check_institution(institution, "E_KEYRING")
    format_time(expires_at)
    if set(keys) != set(ROLES):
        raise Misuse("E_MISUSE", f"make_ring: expected the roles {', '.join(ROLES)}")
    public = {role: [_public(key) for key in keys[role]] for role in ROLES}
    try:
        root = Root(
            version=version,
            spec_version=TUF_SPECIFICATION,
            expires=datetime.fromtimestamp(expires_at, UTC),
            keys={key_hint(key): _tuf_key(key) for role in ROLES for key in public[role]},
            roles={
                role: Role([key_hint(key) for key in public[role]], root_threshold if role == "root" else 1)
                for role in ROLES
            },
            consistent_snapshot=True,
            unrecognized_fields={INSTITUTION_MEMBER: institution},
        )
    except ValueError as error:  # a version or threshold below 1, a key twice in one role
        raise Rejected("E_KEYRING", f"key ring of {institution}: {error}") from error
    metadata = Metadata(root)
    for signer in signers:
        hint = key_hint(signer.public_key())
        metadata.signatures[hint] = Signature(hint, sign_bytes(signer, metadata.signed_bytes).hex())
    raw: bytes = metadata.to_bytes()
    read_version(institution, version, raw, before)
    return raw


def _public(key: PrivateKey | PublicKey) -> PublicKey:
    return key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key


def _tuf_key(key: PublicKey) -> SSlibKey:
    return SSlibKey(key_hint(key), "ecdsa", "ecdsa-sha2-nistp256", {"public": public_pem(key)})
