"""Key rings: pins, names, thresholds, rotation, and python-tuf as the judge of what we read and write."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]

from storage.encoding import sha256_hex
from storage.errors import Misuse, Rejected
from storage.keyring import RING_LIMIT_BYTES, ROLES, KeyRing, read_ring, tuf_canonical
from storage.ringmaker import make_ring
from storage.signing import PrivateKey, key_hint, new_private_key, public_pem, sign_bytes

LAB = "lab-a.example"
EXPIRES = 1_900_000_000


def keys(first: int = 1) -> dict[str, list[PrivateKey]]:
    made = [ec.derive_private_key(first + index, ec.SECP256R1()) for index in range(6)]
    return {"root": made[:3], "targets": [made[3]], "snapshot": [made[4]], "timestamp": [made[5]]}


KEYS = keys()
FIRST = make_ring(LAB, KEYS, version=1, expires_at=EXPIRES, signers=KEYS["root"][:2], root_threshold=2)
PIN = sha256_hex(FIRST)


def ring(*raws: bytes, pin: str = PIN, institution: str = LAB) -> KeyRing:
    return read_ring(institution, list(raws), pin)


def resigned(signers: Sequence[PrivateKey], change: Any = None, raw: bytes = FIRST) -> bytes:
    """A ring whose signed part was changed and signed again by these keys."""
    document = json.loads(raw)
    if change is not None:
        change(document["signed"])
    signed = tuf_canonical(document["signed"])
    document["signatures"] = [
        {"keyid": key_hint(key.public_key()), "sig": sign_bytes(key, signed).hex()} for key in signers
    ]
    return json.dumps(document).encode()


def rejected(raw: bytes, needle: str = "", code: str = "E_KEYRING") -> None:
    with pytest.raises(Rejected) as error:
        ring(raw, pin=sha256_hex(raw))
    assert (error.value.code, error.value.step) == (code, "V5")
    assert needle in error.value.message


# --- reading --------------------------------------------------------------------------------------


def test_first_version_reads_with_its_pin() -> None:
    made = ring(FIRST)
    assert (made.institution, made.pin, made.newest.version) == (LAB, PIN, 1)
    assert (made.newest.expires, made.newest.root_threshold, made.newest.raw) == (EXPIRES, 2, FIRST)
    assert {role: len(found) for role, found in made.newest.roles.items()} == {
        "root": 3,
        "targets": 1,
        "snapshot": 1,
        "timestamp": 1,
    }
    targets = KEYS["targets"][0].public_key()
    assert made.newest.roles["targets"] == {key_hint(targets): targets}


def test_key_id_is_the_digest_of_the_pem_file() -> None:
    keyid = json.loads(FIRST)["signed"]["roles"]["targets"]["keyids"][0]
    assert keyid == sha256_hex(public_pem(KEYS["targets"][0].public_key()).encode())


def test_ring_with_another_pin_is_rejected() -> None:
    with pytest.raises(Rejected) as error:
        ring(FIRST, pin="0" * 64)
    assert (error.value.code, error.value.step) == ("E_KEYRING_PIN", "V5")
    assert "trust.json" in error.value.hint


def test_one_changed_byte_of_the_first_version_breaks_the_pin() -> None:
    with pytest.raises(Rejected, match="E_KEYRING_PIN"):
        ring(FIRST + b"\n")


def test_ring_under_another_name_is_rejected() -> None:
    with pytest.raises(Rejected, match="E_KEYRING_NAME"):
        ring(FIRST, institution="evil.example")


def test_ring_without_files_is_rejected() -> None:
    with pytest.raises(Rejected, match="E_KEYRING"):
        ring()


def test_ring_over_its_size_limit_is_rejected() -> None:
    rejected(FIRST + b" " * RING_LIMIT_BYTES, code="E_LIMIT")


# --- thresholds and rotation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "signers", [[], KEYS["root"][:1], [new_private_key(), new_private_key()], KEYS["targets"]]
)
def test_ring_signed_below_its_threshold_is_rejected(signers: list[PrivateKey]) -> None:
    rejected(resigned(signers), "whose threshold is 2")


def test_bad_signature_does_not_count_and_a_strangers_does_no_harm() -> None:
    document = json.loads(resigned([*KEYS["root"], new_private_key()]))
    document["signatures"][0]["sig"] = document["signatures"][1]["sig"]
    raw = json.dumps(document).encode()
    assert ring(raw, pin=sha256_hex(raw)).newest.version == 1


def test_key_that_signs_twice_is_rejected() -> None:
    document = json.loads(resigned(KEYS["root"][:1]))
    document["signatures"] *= 2
    rejected(json.dumps(document).encode(), "signed twice")


def second(
    signers: Sequence[PrivateKey], new: dict[str, list[PrivateKey]] | None = None, **options: Any
) -> bytes:
    settings: dict[str, Any] = {"version": 2, "expires_at": EXPIRES, "root_threshold": 2, **options}
    return make_ring(LAB, new or {**KEYS, "targets": [new_private_key()]}, signers=signers, **settings)


def test_rotation_is_signed_by_the_old_and_the_new_root_keys() -> None:
    new = keys(100)
    raw = second([*KEYS["root"][:2], *new["root"][:2]], new)
    rotated = ring(FIRST, raw)
    assert (rotated.newest.version, rotated.pin) == (2, PIN)
    assert set(rotated.versions[1].roles["targets"]) != set(rotated.versions[2].roles["targets"])


def test_rotation_signed_by_the_old_root_keys_alone_is_never_made() -> None:
    with pytest.raises(Rejected, match="root keys of version 2"):
        second(KEYS["root"][:2], keys(100))


@pytest.mark.parametrize("count", [0, 1])
def test_rotation_that_too_few_old_root_keys_signed_is_rejected(count: int) -> None:
    new = keys(100)
    raw = second([*KEYS["root"][:count], *new["root"][:2]], new)
    with pytest.raises(Rejected, match="root keys of version 1, whose threshold is 2"):
        ring(FIRST, raw)
    with pytest.raises(Rejected, match="root keys of version 1"):
        second([*KEYS["root"][:count], *new["root"][:2]], new, before=ring(FIRST).newest)


def test_versions_out_of_order_or_with_a_gap_are_rejected() -> None:
    raw, third = second(KEYS["root"][:2]), second(KEYS["root"][:2], version=3)
    for raws in ([FIRST, third], [FIRST, FIRST], [FIRST, raw, raw]):
        with pytest.raises(Rejected, match="version: expected"):
            ring(*raws)


def test_later_version_of_another_institution_is_rejected() -> None:
    foreign = make_ring("evil.example", KEYS, version=2, expires_at=EXPIRES, signers=KEYS["root"])
    with pytest.raises(Rejected, match="E_KEYRING_NAME"):
        ring(FIRST, foreign)


# --- form -----------------------------------------------------------------------------------------


def change_role(role: str, **values: Any) -> Any:
    return lambda signed: signed["roles"][role].update(values)


HINT = {role: key_hint(KEYS[role][0].public_key()) for role in ROLES}
OTHER = new_private_key().public_key()


def add_unused_key(signed: dict[str, Any]) -> None:
    entry = dict(signed["keys"][HINT["root"]], keyval={"public": public_pem(OTHER)})
    signed["keys"][key_hint(OTHER)] = entry


def wrong_key(**changes: Any) -> Any:
    return lambda signed: signed["keys"][HINT["targets"]].update(changes)


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        (lambda signed: signed.update(_type="targets"), "TUF root"),
        (lambda signed: signed.update(version=True), "version"),
        (lambda signed: signed.update(version=2), "version"),
        (lambda signed: signed.update(version="1"), "version"),
        (lambda signed: signed.update(spec_version="2.0.0"), "specification 1"),
        (lambda signed: signed.update(spec_version=1), "specification 1"),
        (lambda signed: signed.update(expires="2030-01-01"), "time"),
        (lambda signed: signed.update(consistent_snapshot=1), "consistent_snapshot"),
        (lambda signed: signed.update(extra={}), "exactly"),
        (lambda signed: signed.pop("expires"), "exactly"),
        (lambda signed: signed.update(keys=[]), "keys"),
        (lambda signed: signed.update(roles=[]), "roles"),
        (lambda signed: signed["roles"].update(mirrors=signed["roles"]["root"]), "roles"),
        (lambda signed: signed["roles"].pop("timestamp"), "roles"),
        (change_role("root", threshold=0), "threshold"),
        (change_role("root", threshold=4), "threshold"),
        (change_role("root", threshold=True), "threshold"),
        (change_role("root", threshold="2"), "threshold"),
        (change_role("root", extra=1), "exactly"),
        (change_role("targets", threshold=2), "threshold"),
        (change_role("targets", keyids=[]), "threshold"),
        (change_role("targets", keyids="x"), "keyids"),
        (change_role("targets", keyids=[{}]), "keyids"),
        (change_role("targets", keyids=["0" * 64]), "keyids"),
        (change_role("targets", keyids=[HINT["targets"]] * 2), "twice"),
        (change_role("targets", keyids=[HINT["targets"], HINT["snapshot"]]), "share a key"),
        (change_role("targets", keyids=[HINT["root"]]), "without a role"),
        (add_unused_key, "without a role"),
        (wrong_key(keytype="rsa"), "ecdsa"),
        (wrong_key(scheme="ecdsa-sha2-nistp384"), "ecdsa"),
        (wrong_key(keyval={"public": public_pem(OTHER)}), "digest of its PEM"),
        (wrong_key(keyval={"public": public_pem(KEYS["targets"][0].public_key()).strip()}), "one form"),
        (wrong_key(keyval={"public": "x"}), "P-256"),
        (wrong_key(keyval={"public": "x", "private": "y"}), "exactly"),
        (wrong_key(note=1), "exactly"),
    ],
)
def test_ring_in_another_form_is_rejected_though_well_signed(change: Any, needle: str) -> None:
    rejected(resigned(KEYS["root"], change), needle)


def test_two_working_roles_may_each_hold_several_keys() -> None:
    many = {**KEYS, "snapshot": [*KEYS["snapshot"], new_private_key(), new_private_key()]}
    raw = make_ring(LAB, many, version=1, expires_at=EXPIRES, signers=KEYS["root"])
    assert len(ring(raw, pin=sha256_hex(raw)).newest.roles["snapshot"]) == 3


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b'{"signed":{},"signatures":[]}',
        b'{"signed":[],"signatures":[]}',
        FIRST.replace(b'"signatures"', b'"signatures":[],"signatures"', 1),
        FIRST.replace(b'"signatures"', b'"sigs"', 1),
        FIRST[:-1] + b',"x":1}',
    ],
    ids=lambda raw: repr(raw[:30]),
)
def test_file_that_is_no_ring_is_rejected(raw: bytes) -> None:
    with pytest.raises(Rejected) as error:
        ring(raw, pin=sha256_hex(raw))
    assert error.value.code in ("E_KEYRING", "E_KEYRING_NAME")


@pytest.mark.parametrize(
    "signatures",
    [
        None,
        {},
        [None],
        [{"keyid": HINT["root"]}],
        [{"keyid": HINT["root"], "sig": "zz"}],
        [{"keyid": "x", "sig": "00" * 64}],
    ],
)
def test_malformed_signatures_are_rejected(signatures: Any) -> None:
    document = json.loads(FIRST)
    document["signatures"] = signatures
    rejected(json.dumps(document).encode(), "signature")


# --- making ---------------------------------------------------------------------------------------


def test_same_arguments_make_the_same_ring() -> None:
    again = make_ring(LAB, KEYS, version=1, expires_at=EXPIRES, signers=KEYS["root"][:2], root_threshold=2)
    assert again == FIRST


def test_public_halves_of_keys_suffice() -> None:
    public = {role: [key.public_key() for key in found] for role, found in KEYS.items()}
    raw = make_ring(LAB, public, version=1, expires_at=EXPIRES, signers=KEYS["root"][:2], root_threshold=2)
    assert raw == FIRST


def test_ring_with_other_roles_is_our_own_bug() -> None:
    with pytest.raises(Misuse):
        make_ring(LAB, {"root": KEYS["root"]}, version=1, expires_at=EXPIRES, signers=KEYS["root"])


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"targets": KEYS["snapshot"]}, {}),
        ({"timestamp": []}, {}),
        ({}, {"root_threshold": 4}),
        ({}, {"root_threshold": 0}),
        ({}, {"version": 0}),
        ({"targets": KEYS["targets"] * 2}, {}),
        ({}, {"signers": []}),
    ],
)
def test_impossible_ring_is_not_made(changes: Any, options: Any) -> None:
    settings: dict[str, Any] = {"version": 1, "expires_at": EXPIRES, "signers": KEYS["root"], **options}
    with pytest.raises(Rejected, match="E_KEYRING"):
        make_ring(LAB, {**KEYS, **changes}, **settings)


def test_ring_of_an_impossible_name_is_not_made() -> None:
    with pytest.raises(Rejected, match="E_KEYRING"):
        make_ring("Lab A", KEYS, version=1, expires_at=EXPIRES, signers=KEYS["root"])


# --- python-tuf as oracle -------------------------------------------------------------------------


def tuf_accepts(raws: Sequence[bytes]) -> bool:
    """What python-tuf says about a chain of root metadata."""
    before: Root | None = None
    for raw in raws:
        metadata = Metadata[Root].from_bytes(raw)
        try:
            for signers in filter(None, (before, metadata.signed)):
                signers.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError:
            return False
        before = metadata.signed
    return True


def we_accept(raws: Sequence[bytes]) -> bool:
    try:
        ring(*raws, pin=sha256_hex(raws[0]))
    except Rejected:
        return False
    return True


def test_python_tuf_agrees_about_thresholds() -> None:
    new = keys(100)
    for old_count in range(4):
        for new_count in range(4):
            raw = resigned(
                [*KEYS["root"][:old_count], *new["root"][:new_count]],
                raw=second([*KEYS["root"], *new["root"]], new),
            )
            chain = [FIRST, raw]
            assert we_accept(chain) == tuf_accepts(chain) == (old_count >= 2 and new_count >= 2)


def test_python_tuf_signs_the_bytes_that_we_check() -> None:
    for raw in (FIRST, second(KEYS["root"])):
        assert Metadata[Root].from_bytes(raw).signed_bytes == tuf_canonical(json.loads(raw)["signed"])
