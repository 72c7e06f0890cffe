"""Keys, envelopes and signatures, against published vectors."""

import base64
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from storage.encoding import b64
from storage.errors import Rejected, Unchecked
from storage.signing import (
    BUNDLE_LIMIT_BYTES,
    PAYLOAD_LIMIT_BYTES,
    check_signature,
    key_hint,
    log_leaf,
    new_private_key,
    open_envelope,
    pae,
    public_pem,
    read_private_key,
    read_public_key,
    sign,
    sign_bytes,
    statement_id,
    write_private_key,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ecdsa.json").read_text())
KEY = ec.derive_private_key(int(VECTORS["rfc6979"]["private"], 16), ec.SECP256R1())
ORDER_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PAYLOAD = b'{"a":1}'


def bundle(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(sign(KEY, PAYLOAD))
    for path, value in changes.items():
        *way, last = path.split("__")
        place: Any = document
        for step in way:
            place = place[int(step)] if step.isdigit() else place[step]
        place[last] = value
    return document


def opened(document: Any) -> Any:
    return open_envelope(json.dumps(document).encode())


# --- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["rfc6979"]["signatures"], ids=lambda vector: vector["message"])
def test_signature_is_the_one_of_rfc_6979(vector: dict[str, str]) -> None:
    r, s = decode_dss_signature(sign_bytes(KEY, vector["message"].encode()))
    assert (r, s) == (int(vector["r"], 16), int(vector["s"], 16))


def test_public_key_is_the_one_of_rfc_6979() -> None:
    numbers = KEY.public_key().public_numbers()
    assert numbers.x == int(VECTORS["rfc6979"]["public_x"], 16)
    assert numbers.y == int(VECTORS["rfc6979"]["public_y"], 16)


def test_pae_and_signature_are_those_of_the_dsse_protocol() -> None:
    vector = VECTORS["dsse"]
    signed = pae(vector["payload"].encode(), vector["payload_type"])
    assert signed == vector["pae"].encode()
    r, s = decode_dss_signature(
        sign_bytes(ec.derive_private_key(int(vector["private"]), ec.SECP256R1()), signed)
    )
    assert b64(r.to_bytes(32, "big") + s.to_bytes(32, "big")) == vector["signature"]


def test_statement_id_is_the_digest_of_the_pae() -> None:
    expected = b"DSSEv1 28 application/vnd.in-toto+json 7 " + PAYLOAD
    assert statement_id(PAYLOAD) == hashlib.sha256(expected).hexdigest()


# --- envelopes ------------------------------------------------------------------------------------


def test_bundle_opens_and_its_signature_holds() -> None:
    raw = sign(KEY, PAYLOAD)
    envelope = open_envelope(raw)
    assert (envelope.payload, envelope.id, envelope.raw) == (PAYLOAD, statement_id(PAYLOAD), raw)
    assert envelope.hint == key_hint(KEY.public_key())
    check_signature(KEY.public_key(), envelope)


def test_signing_again_gives_the_same_bytes() -> None:
    assert sign(KEY, PAYLOAD) == sign(KEY, PAYLOAD)


def test_bundle_of_a_stock_signer_without_empty_members_opens() -> None:
    document = bundle()
    del document["verificationMaterial"]["tlogEntries"]
    del document["dsseEnvelope"]["signatures"][0]["keyid"]
    check_signature(KEY.public_key(), opened(document))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("extra", 1),
        ("mediaType", "application/vnd.dev.sigstore.bundle.v0.2+json"),
        ("mediaType", None),
        ("verificationMaterial", None),
        ("verificationMaterial__certificate", {"rawBytes": ""}),
        ("verificationMaterial__tlogEntries", [{}]),
        ("verificationMaterial__tlogEntries", {}),
        ("verificationMaterial__publicKey", {}),
        ("verificationMaterial__publicKey__rawBytes", ""),
        ("verificationMaterial__publicKey__hint", "A" * 64),
        ("verificationMaterial__publicKey__hint", 5),
        ("dsseEnvelope__extra", 1),
        ("dsseEnvelope__payloadType", "application/json"),
        ("dsseEnvelope__payload", "e30"),
        ("dsseEnvelope__payload", "e30=\n"),
        ("dsseEnvelope__payload", None),
        ("dsseEnvelope__signatures", []),
        ("dsseEnvelope__signatures", [{"sig": "", "keyid": ""}] * 2),
        ("dsseEnvelope__signatures", {"sig": "", "keyid": ""}),
        ("dsseEnvelope__signatures", [None]),
        ("dsseEnvelope__signatures__0__keyid", "abc"),
        ("dsseEnvelope__signatures__0__keyid", None),
        ("dsseEnvelope__signatures__0__sig", "===="),
        ("dsseEnvelope__signatures__0__cert", ""),
    ],
)
def test_bundle_in_another_form_is_rejected_at_v6(path: str, value: Any) -> None:
    with pytest.raises(Rejected) as error:
        opened(bundle(**{path: value}))
    assert (error.value.code, error.value.step) == ("E_BUNDLE", "V6")


@pytest.mark.parametrize("path", ["mediaType", "verificationMaterial", "dsseEnvelope"])
def test_bundle_without_a_member_is_rejected(path: str) -> None:
    document = bundle()
    del document[path]
    with pytest.raises(Rejected, match="E_BUNDLE"):
        opened(document)


@pytest.mark.parametrize("document", [None, [], "x", 1, [{}]])
def test_bundle_that_is_no_object_is_rejected(document: Any) -> None:
    with pytest.raises(Rejected, match="E_BUNDLE"):
        opened(document)


def test_bundle_with_a_member_twice_is_rejected() -> None:
    raw = sign(KEY, PAYLOAD).replace(b'"mediaType":', b'"mediaType":"x","mediaType":')
    with pytest.raises(Rejected, match=r"E_BUNDLE.*stands twice"):
        open_envelope(raw)


def test_payload_and_bundle_over_their_limits_are_refused() -> None:
    open_envelope(sign(KEY, b" " * PAYLOAD_LIMIT_BYTES))
    with pytest.raises(Rejected, match="E_LIMIT"):
        open_envelope(sign(KEY, b" " * (PAYLOAD_LIMIT_BYTES + 1)))
    with pytest.raises(Rejected, match="E_LIMIT"):
        open_envelope(b" " * (BUNDLE_LIMIT_BYTES + 1))


def test_signature_of_another_key_or_payload_is_rejected_at_v7() -> None:
    other = open_envelope(sign(new_private_key(), PAYLOAD))
    moved = opened(bundle(dsseEnvelope__payload=b64(b'{"a":2}')))
    for envelope in (other, moved):
        with pytest.raises(Rejected) as error:
            check_signature(KEY.public_key(), envelope)
        assert (error.value.code, error.value.step) == ("E_SIGNATURE", "V7")


def test_signature_over_the_bare_payload_or_an_old_encoding_is_rejected() -> None:
    old = f"DSSEV1 28 application/vnd.in-toto+json 7 {PAYLOAD!r}".encode()
    for data in (PAYLOAD, old):
        envelope = opened(bundle(dsseEnvelope__signatures__0__sig=b64(sign_bytes(KEY, data))))
        with pytest.raises(Rejected, match="E_SIGNATURE"):
            check_signature(KEY.public_key(), envelope)


def test_malleated_signature_is_the_same_statement() -> None:
    envelope = open_envelope(sign(KEY, PAYLOAD))
    r, s = decode_dss_signature(envelope.signature)
    twin = opened(bundle(dsseEnvelope__signatures__0__sig=b64(encode_dss_signature(r, ORDER_P256 - s))))
    check_signature(KEY.public_key(), twin)
    assert twin.signature != envelope.signature
    assert twin.id == envelope.id


@pytest.mark.parametrize(
    "signature", [b"", b"\x30\x00", b"\x00" * 70, encode_dss_signature(0, 0), encode_dss_signature(1, 1)]
)
def test_degenerate_signature_is_rejected(signature: bytes) -> None:
    with pytest.raises(Rejected, match="E_SIGNATURE"):
        check_signature(KEY.public_key(), opened(bundle(dsseEnvelope__signatures__0__sig=b64(signature))))


def test_signature_with_loose_der_is_rejected() -> None:
    good = open_envelope(sign(KEY, PAYLOAD)).signature
    for loose in (
        good + b"\x00",
        b"\x30\x81" + good[1:],
        good[:1] + bytes([good[1] + 1]) + good[2:] + b"\x00",
    ):
        with pytest.raises(Rejected, match="E_SIGNATURE"):
            check_signature(KEY.public_key(), opened(bundle(dsseEnvelope__signatures__0__sig=b64(loose))))


def test_log_leaf_shows_key_digest_and_signature_and_no_content() -> None:
    envelope = open_envelope(sign(KEY, b'{"secret":"grantee"}'))
    leaf = log_leaf(KEY.public_key(), envelope)
    record = json.loads(leaf)["spec"]["hashedRekordV002"]
    assert base64.b64decode(record["data"]["digest"]).hex() == envelope.id
    assert base64.b64decode(record["signature"]["content"]) == envelope.signature
    der = base64.b64decode(record["signature"]["verifier"]["publicKey"]["rawBytes"])
    assert serialization.load_der_public_key(der) == KEY.public_key()
    assert b"grantee" not in leaf
    assert len(leaf) < 500


# --- keys -----------------------------------------------------------------------------------------


def test_key_hint_is_what_sha256sum_prints_for_the_pem_file(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text(public_pem(KEY.public_key()))
    assert key_hint(KEY.public_key()) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.read_text().endswith("-----END PUBLIC KEY-----\n")


def test_private_key_file_is_0600_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "targets.pem"
    old = os.umask(0)
    try:
        write_private_key(path, KEY)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_private_key(path).private_numbers() == KEY.private_numbers()


def test_existing_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "targets.pem"
    write_private_key(path, KEY)
    before = path.read_bytes()
    with pytest.raises(Unchecked, match="exists already"):
        write_private_key(path, new_private_key())
    assert path.read_bytes() == before


def test_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.pem").symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(Unchecked, match="E_KEY_FILE"):
        write_private_key(tmp_path / "link.pem", KEY)
    assert not (tmp_path / "elsewhere.pem").exists()


def test_key_in_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match="E_KEY_FILE"):
        write_private_key(tmp_path / "no" / "targets.pem", KEY)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601, 0o777])
def test_key_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "targets.pem"
    write_private_key(path, KEY)
    path.chmod(mode)
    with pytest.raises(Unchecked, match="mode 0600") as error:
        read_private_key(path)
    assert "chmod 600" in error.value.hint


def test_key_file_that_is_missing_a_link_or_a_folder_is_refused(tmp_path: Path) -> None:
    write_private_key(tmp_path / "targets.pem", KEY)
    (tmp_path / "link.pem").symlink_to(tmp_path / "targets.pem")
    (tmp_path / "folder.pem").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe.pem", 0o600)
    for name in ("no.pem", "link.pem", "folder.pem", "pipe.pem"):
        with pytest.raises(Unchecked, match="E_KEY_FILE"):
            read_private_key(tmp_path / name)


def test_key_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    wrong = {
        "text": b"hello",
        "public": public_pem(KEY.public_key()).encode(),
        "ed25519": ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        "encrypted": KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        ),
    }
    for name, content in wrong.items():
        path = tmp_path / name
        path.touch(0o600)
        path.write_bytes(content)
        with pytest.raises(Unchecked, match="E_KEY_FILE") as error:
            read_private_key(path)
        assert "secret" not in str(error.value)


def test_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    write_private_key(tmp_path / "node.pem", ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(Unchecked, match="secp256r1"):
        read_private_key(tmp_path / "node.pem")


def test_public_key_is_read_from_its_one_pem_text() -> None:
    assert read_public_key(public_pem(KEY.public_key()), "E_KEYRING") == KEY.public_key()


@pytest.mark.parametrize(
    "pem",
    [
        None,
        "",
        "hello",
        public_pem(KEY.public_key()).strip(),
        public_pem(KEY.public_key()).replace("\n", "\r\n"),
        public_pem(KEY.public_key()) + "\n",
        "x" + public_pem(KEY.public_key()),
        public_pem(ec.generate_private_key(ec.SECP384R1()).public_key()),
        "é",
    ],
)
def test_public_key_in_another_text_is_refused(pem: object) -> None:
    with pytest.raises(Rejected, match="E_KEYRING"):
        read_public_key(pem, "E_KEYRING")
