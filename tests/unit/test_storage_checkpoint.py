"""Notes, checkpoints, policies, witnesses and proof texts: good ones beside bad ones."""

import base64
import stat
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage.checkpoint import (
    Checkpoint,
    LogKey,
    Policy,
    Proof,
    Witness,
    check_checkpoint,
    check_log_signature,
    check_quorum,
    checkpoint_text,
    parse_checkpoint,
    parse_policy,
    parse_proof,
    parse_vkey,
    proof_text,
    sign_checkpoint,
)
from storage.errors import FedhubError, Rejected, Unchecked
from storage.merkle import EMPTY_ROOT, leaf_hash, root_of
from storage.notes import LOG, WITNESS, parse_note

NOW = 1_795_600_000
LOG_KEY = LogKey("hub.example", Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
WITNESSES = [
    LogKey(f"w{n}.example", Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32), WITNESS) for n in (2, 3, 4)
]
STRANGER = LogKey("x", Ed25519PrivateKey.from_private_bytes(b"\x05" * 32), WITNESS)
HASHES = [leaf_hash(b"%d" % n) for n in range(8)]


def policy_text(quorum: str = "none") -> str:
    lines = [f"log {LOG_KEY.vkey}", *(f"witness w{n} {key.vkey}" for n, key in enumerate(WITNESSES))]
    return "\n".join([*lines, "group two 2 w0 w1 w2", f"quorum {quorum}", ""])


def cosigned(*times: int | None) -> bytes:
    head = sign_checkpoint(LOG_KEY, 3, root_of(HASHES[:3]))
    text = parse_note(head.note).text
    lines = [key.cosign_note(text, at) for key, at in zip(WITNESSES, times, strict=False) if at is not None]
    return head.note + b"".join(lines)


# --- keys ----------------------------------------------------------------------------------------------------


def test_vkey_of_the_specification_verifies_its_note() -> None:
    """The example of C2SP signed-note, byte for byte."""
    key = parse_vkey("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
    note = (
        "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlT"
        "gK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
    ).encode()
    assert parse_note(note).times(key) == [0]
    with pytest.raises(Rejected, match=r"E_CHECKPOINT_SIG"):
        parse_note(note.replace(b"example message", b"examplE message")).times(key)


@pytest.mark.parametrize(
    "text",
    [
        "hub.example",
        "a b+00000000+AQ==",
        "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+530d903b+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+530D903A+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2",
        "example.com/foo+530d903a+AukyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
    ],
)
def test_odd_vkey_is_refused_as_the_readers_own_fault(text: str) -> None:
    with pytest.raises(Unchecked, match=r"E_TRUST"):
        parse_vkey(text)


def test_log_key_survives_its_file_which_is_for_its_owner_alone(tmp_path: Path) -> None:
    key, path = LogKey.generate("hub.example"), tmp_path / "log.key"
    key.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert LogKey.read(path).vkey == key.vkey
    with pytest.raises(Unchecked, match=r"never overwritten"):
        key.write(path)
    path.chmod(0o640)
    with pytest.raises(Unchecked, match=r"E_KEY_FILE.*0600"):
        LogKey.read(path)


@pytest.mark.parametrize(
    "change", [lambda t: t[:-2], lambda t: t.replace(b"hub", b"hab"), lambda t: b"", lambda t: b"\xff" + t]
)
def test_damaged_log_key_is_named_and_refused(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "log.key"
    LOG_KEY.write(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(Unchecked, match=r"E_KEY_FILE.*log\.key"):
        LogKey.read(path)


def test_missing_or_linked_log_key_is_refused(tmp_path: Path) -> None:
    LOG_KEY.write(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("none", "link"):
        with pytest.raises(Unchecked, match=r"cannot be opened"):
            LogKey.read(tmp_path / name)


# --- checkpoints ----------------------------------------------------------------------------------------------


def test_checkpoint_is_read_as_it_was_signed() -> None:
    head = sign_checkpoint(LOG_KEY, 3, root_of(HASHES[:3]))
    assert parse_checkpoint(head.note) == head
    assert head.note == sign_checkpoint(LOG_KEY, 3, root_of(HASHES[:3])).note
    assert check_checkpoint(head.note, parse_policy(policy_text()), "hub.example", NOW, 60) == head


BODY = checkpoint_text("hub.example", 3, root_of(HASHES[:3]))


@pytest.mark.parametrize(
    "text",
    [
        BODY + b"extension\n",
        BODY.replace(b"\n3\n", b"\n03\n"),
        BODY.replace(b"\n3\n", b"\n+3\n"),
        BODY.replace(b"\n3\n", b"\n3 \n"),
        BODY.replace(b"\n3\n", "\n３\n".encode()),
        BODY.replace(b"\n3\n", b"\n-3\n"),
        BODY.replace(b"\n3\n", b"\n12345678901234567\n"),
        b"\n" + BODY.split(b"\n", 1)[1],
        b"hub.example\n3\n" + base64.b64encode(b"x" * 31) + b"\n",
        b"hub.example\n3\n",
        BODY.replace(b"=\n", b"\n"),
    ],
)
def test_checkpoint_of_another_form_is_refused_though_it_is_signed(text: bytes) -> None:
    note = text + b"\n" + LOG_KEY.sign_note(text)
    with pytest.raises(Rejected, match=r"E_CHECKPOINT:"):
        parse_checkpoint(note)


GOOD = sign_checkpoint(LOG_KEY, 3, root_of(HASHES[:3])).note


@pytest.mark.parametrize(
    "note",
    [
        b"",
        GOOD[:-1],
        GOOD.replace(b"\n\n", b"\n"),
        GOOD + b"\n",
        GOOD + b"x",
        BODY + b"\n",
        GOOD.replace("—".encode(), b"-"),
        GOOD.replace(b"\n\n", b"\r\n\r\n"),
        GOOD.replace(b"hub.example\n3", b"hub.example\t\n3"),
        b"\xff" + GOOD,
        GOOD + "— a+b AAAAAAA=\n".encode(),
        GOOD + "— a b AAAAAAA=\n".encode(),
        GOOD + "— a\x85b AAAAAAA=\n".encode(),
        GOOD + "— a AAAA\n".encode(),
        GOOD + "— a AAAAAAB=\n".encode(),
        GOOD + "— a AAAAAAA\n".encode(),
        GOOD + 64 * "— a AAAAAAA=\n".encode(),
    ],
)
def test_note_of_another_form_is_refused(note: bytes) -> None:
    with pytest.raises(Rejected, match=r"E_CHECKPOINT:"):
        parse_checkpoint(note)


def test_line_that_only_python_would_cut_stays_one_line() -> None:
    """U+2028 in the origin: str.splitlines would see four lines and another log."""
    text = "hub.example\u20283\n3\n".encode() + base64.b64encode(EMPTY_ROOT) + b"\n"
    assert parse_checkpoint(text + b"\n" + LOG_KEY.sign_note(text)).origin == "hub.example\u20283"


def test_oversized_note_is_refused_unread() -> None:
    with pytest.raises(Rejected, match=r"E_LIMIT"):
        parse_checkpoint(GOOD + b"x" * (1 << 16))


def test_checkpoint_of_another_log_is_refused() -> None:
    policy = parse_policy(policy_text())
    other = LogKey.generate("other.example")
    with pytest.raises(Rejected, match=r"E_ORIGIN.*'other.example'"):
        check_log_signature(sign_checkpoint(other, 3, EMPTY_ROOT).note, policy, "hub.example")
    with pytest.raises(Rejected, match=r"E_ORIGIN.*not listed"):
        check_log_signature(sign_checkpoint(other, 3, EMPTY_ROOT).note, policy, "other.example")


def test_checkpoint_without_its_logs_signature_is_refused() -> None:
    policy = parse_policy(policy_text())
    impostor = LogKey.generate("hub.example")
    with pytest.raises(Rejected, match=r"E_CHECKPOINT_SIG.*no signature"):
        check_log_signature(sign_checkpoint(impostor, 3, EMPTY_ROOT).note, policy, "hub.example")
    text = checkpoint_text("hub.example", 4, EMPTY_ROOT)
    moved = text + b"\n" + LOG_KEY.sign_note(BODY)
    with pytest.raises(Rejected, match=r"E_CHECKPOINT_SIG.*wrong"):
        check_log_signature(moved, policy, "hub.example")


def test_unknown_signature_lines_are_ignored_and_a_known_keys_bad_one_refuses_the_note() -> None:
    policy = parse_policy(policy_text("none"))
    stranger = LogKey.generate("w9.example", WITNESS).cosign_note(BODY, NOW)
    check_checkpoint(GOOD + stranger, policy, "hub.example", NOW, 60)
    bad = WITNESSES[0].cosign_note(b"something else\n", NOW)
    with pytest.raises(Rejected, match=r"E_CHECKPOINT_SIG"):
        check_checkpoint(GOOD + bad, policy, "hub.example", NOW, 60)


# --- quorum ---------------------------------------------------------------------------------------------------


def test_quorum_none_says_that_nobody_vouches_for_time() -> None:
    assert check_quorum(parse_checkpoint(GOOD), parse_policy(policy_text()), NOW, 0) is None


@pytest.mark.parametrize(
    ("times", "age"),
    [((NOW - 5, NOW - 7, None), 7), ((NOW - 5, NOW - 7, NOW - 900), 7), ((NOW + 10, NOW + 20, None), 0)],
)
def test_age_is_that_of_the_oldest_cosignature_that_the_quorum_needs(
    times: tuple[int | None, ...], age: int
) -> None:
    assert check_quorum(parse_checkpoint(cosigned(*times)), parse_policy(policy_text("two")), NOW, 60) == age


def test_quorum_too_small_stale_or_from_the_future_is_refused() -> None:
    policy = parse_policy(policy_text("two"))
    with pytest.raises(Rejected, match=r"E_QUORUM.*seen by w0"):
        check_quorum(parse_checkpoint(cosigned(NOW)), policy, NOW, 60)
    with pytest.raises(Rejected, match=r"E_CHECKPOINT_STALE.*61 s"):
        check_quorum(parse_checkpoint(cosigned(NOW, NOW - 61)), policy, NOW, 60)
    with pytest.raises(Rejected, match=r"E_QUORUM"):
        check_quorum(parse_checkpoint(cosigned(NOW, NOW + 301)), policy, NOW, 60)


def test_cosignature_with_another_time_than_the_signed_one_is_refused() -> None:
    line = WITNESSES[0].cosign_note(BODY, NOW).decode()
    raw = bytearray(base64.b64decode(line.split(" ")[2]))
    raw[4:12] = struct.pack(">Q", NOW + 1)
    forged = f"— {WITNESSES[0].name} {base64.b64encode(raw).decode()}\n".encode()
    with pytest.raises(Rejected, match=r"E_CHECKPOINT_SIG"):
        check_quorum(parse_checkpoint(GOOD + forged), parse_policy(policy_text("two")), NOW, 60)


def test_groups_of_groups_take_the_newest_that_suffice() -> None:
    lines = [f"witness w{n} {key.vkey}" for n, key in enumerate(WITNESSES)]
    policy = parse_policy("\n".join([*lines, "group a any w0 w1", "group b all a w2", "quorum b"]))
    assert policy.witnessed_at("b", {"w0": 5, "w1": 9, "w2": 7}) == 7
    assert policy.witnessed_at("b", {"w0": 5, "w2": 7}) == 5
    assert policy.witnessed_at("b", {"w0": 5, "w1": 9}) is None


# --- policies -------------------------------------------------------------------------------------------------


def test_policy_may_hold_comments_tabs_and_urls() -> None:
    text = f"# alliance\n\n \tlog\t{LOG_KEY.vkey} https://hub.example/log/ \nwitness w {WITNESSES[0].vkey} https://w.example\nquorum w"
    policy = parse_policy(text)
    assert policy.logs == (LOG_KEY.public,)
    assert policy.quorum == "w"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "quorum two",
        "log",
        f"log {LOG_KEY.vkey}",
        f"log {WITNESSES[0].vkey}",
        f"witness x {LOG_KEY.vkey}",
        f"witness w0 {STRANGER.vkey}",
        f"witness x {WITNESSES[0].vkey}",
        f"witness none {STRANGER.vkey}",
        "group g 1 none",
        "group g 1 later",
        "group g 0 two",
        "group g 2 two",
        "group g two two",
        "group g 1 w0",
        "group two 1 two",
        "quorum none\nquorum none",
        "quorum later",
        "group g ２ two",
        "witnes w x",
        "group g 1 two\x0bquorum none",
        "group g 1 two\u2028quorum none",
    ],
)
def test_policy_that_says_two_things_or_none_is_refused(bad: str) -> None:
    text = policy_text().replace("quorum none\n", "")
    last = bad if "quorum" in bad else bad + "\nquorum two" if bad else ""
    if bad == "quorum two":
        last = "quorum two x"
    with pytest.raises(Unchecked, match=r"E_TRUST"):
        parse_policy(text + last)


def test_policy_error_names_the_line() -> None:
    with pytest.raises(Unchecked, match=r"policy line 2: .*odd"):
        parse_policy("quorum none\nodd line\n")


# --- witnesses ------------------------------------------------------------------------------------------------


def head_of(size: int) -> Checkpoint:
    return sign_checkpoint(LOG_KEY, size, root_of(HASHES[:size]))


def proof_between(old: int, new: int) -> list[bytes]:
    from storage.merkle import consistency_ranges, nodes_of, range_root

    return [range_root(lo, hi, nodes_of(HASHES[:new])) for lo, hi in consistency_ranges(old, new)]


def test_witness_cosigns_only_extensions_and_saves_first() -> None:
    saved: list[tuple[int, bytes]] = []
    witness = Witness(
        WITNESSES[0], LOG_KEY.public, save=lambda size, root: saved.append((size, root)), clock=lambda: NOW
    )
    first = witness.cosign(0, [], head_of(3).note)
    policy = Policy((LOG_KEY.public,), {"w0": WITNESSES[0].public}, {}, "w0")
    assert check_quorum(parse_checkpoint(head_of(3).note + first), policy, NOW, 0) == 0
    witness.cosign(3, proof_between(3, 7), head_of(7).note)
    assert saved == [(3, root_of(HASHES[:3])), (7, root_of(HASHES[:7]))]


def test_witness_refuses_forks_rollbacks_gaps_and_strangers() -> None:
    witness = Witness(WITNESSES[0], LOG_KEY.public, 3, root_of(HASHES[:3]))
    fork = sign_checkpoint(LOG_KEY, 7, root_of(HASHES[1:8]))
    cases: list[tuple[int, list[bytes], bytes, str]] = [
        (3, proof_between(3, 7), fork.note, "E_INCONSISTENT"),
        (3, [], head_of(7).note, "E_INCONSISTENT"),
        (3, [], head_of(2).note, "E_ROLLBACK"),
        (3, [], sign_checkpoint(LOG_KEY, 3, EMPTY_ROOT).note, "E_SPLIT_VIEW"),
        (2, proof_between(2, 7), head_of(7).note, "E_WITNESS_SIZE.*saw 3"),
        (0, [], head_of(7).note, "E_WITNESS_SIZE"),
        (3, [], sign_checkpoint(LogKey.generate("hub.example"), 3, EMPTY_ROOT).note, "E_CHECKPOINT_SIG"),
    ]
    for old, path, note, error in cases:
        with pytest.raises(Rejected, match=error):
            witness.cosign(old, path, note)
    assert (witness.size, witness.root) == (3, root_of(HASHES[:3]))


def test_new_witness_refuses_a_proof_from_nothing_and_a_false_empty_log() -> None:
    witness = Witness(WITNESSES[0], LOG_KEY.public)
    with pytest.raises(Rejected, match=r"E_INCONSISTENT"):
        witness.cosign(0, [HASHES[0]], head_of(3).note)
    with pytest.raises(Rejected, match=r"E_INCONSISTENT"):
        witness.cosign(0, [], sign_checkpoint(LOG_KEY, 0, HASHES[0]).note)


# --- proof texts ----------------------------------------------------------------------------------------------


def test_proof_text_is_read_as_it_was_written() -> None:
    for path in ((), tuple(HASHES[:4])):
        proof = Proof(5, path, GOOD)
        assert parse_proof(proof_text(proof)) == proof


TEXT = proof_text(Proof(5, tuple(HASHES[:2]), GOOD))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        TEXT.replace(b"@v1", b"@v2"),
        TEXT.replace(b"index 5", b"index 05"),
        TEXT.replace(b"index 5", b"index -5"),
        TEXT.replace(b"index 5\n", b"extra AAAA\nindex 5\n"),
        TEXT.replace(b"index 5\n", b""),
        TEXT.replace(b"\n\n", b"\n"),
        TEXT.replace(b"index 5\n", b"index 5\n" + base64.b64encode(b"x" * 31) + b"\n"),
        TEXT.replace(b"index 5\n", b"index 5\n" + base64.b64encode(b"x" * 32) * 62 + b"\n"),
        TEXT.replace(b"index 5\n", "index ５\n".encode()),
        TEXT.replace(b"index 5\n", b"index 5\r\n"),
        TEXT.replace(b"index 5\n", b"index 5\n" + (base64.b64encode(b"x" * 32) + b"\n") * 62),
    ],
)
def test_proof_text_of_another_form_is_refused(raw: bytes) -> None:
    with pytest.raises(Rejected, match=r"E_PROOF"):
        parse_proof(raw)


def test_key_names_with_spaces_or_plus_are_refused() -> None:
    for name in ("", "a b", "a+b", "a\u2028b"):
        with pytest.raises(FedhubError):
            LogKey.generate(name, LOG)
