"""Whatever bytes come: the log's parsers answer or raise an error of ours, and change nothing silently."""

import contextlib
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from storage.checkpoint import (
    LogKey,
    parse_checkpoint,
    parse_policy,
    parse_proof,
    parse_vkey,
    proof_text,
    sign_checkpoint,
)
from storage.errors import FedhubError, Rejected, Unchecked
from storage.merkle import EMPTY_ROOT, check_consistency, check_inclusion, leaf_hash
from storage.notes import parse_note

KEY = LogKey.generate("hub.example")
GOOD = sign_checkpoint(KEY, 5, EMPTY_ROOT).note
PROOF = b"c2sp.org/tlog-proof@v1\nindex 5\nR5q0bmGoFqPUzz9HuFm6TwMbJYX8ZkDp3U4nUiGeZ1U=\n\n" + GOOD
ODD = [
    "\n",
    "\n\n",
    " ",
    "\t",
    "— ",
    "+",
    "=",
    "0",
    "\x85",
    "\u2028",
    "\x00",
    "\r\n",
    "quorum none",
    "group a any b",
    "index 0",
]


def altered(whole: bytes) -> st.SearchStrategy[bytes]:
    """The text with one piece cut out and something put in its place."""
    spots = st.tuples(st.integers(0, len(whole)), st.integers(0, 6))
    put = st.binary(max_size=6) | st.sampled_from(ODD).map(str.encode)
    return st.tuples(spots, put).map(lambda draw: whole[: draw[0][0]] + draw[1] + whole[sum(draw[0]) :])


@settings(max_examples=600)
@given(altered(GOOD) | st.binary(max_size=300))
def test_note_that_still_parses_says_what_it_said_or_loses_its_signature(raw: bytes) -> None:
    try:
        checkpoint = parse_checkpoint(raw)
        times = parse_note(raw).times(KEY.public)
    except Rejected:
        return
    if times:
        assert (checkpoint.origin, checkpoint.size, checkpoint.root) == ("hub.example", 5, EMPTY_ROOT)


@settings(max_examples=600)
@given(altered(PROOF) | st.binary(max_size=300))
def test_proof_that_parses_is_written_back_as_it_was(raw: bytes) -> None:
    try:
        proof = parse_proof(raw)
    except Rejected:
        return
    assert proof_text(proof) == raw


POLICY = f"log {KEY.vkey}\nwitness w {LogKey.generate('w.example', 4).vkey}\ngroup g any w\nquorum g\n"


@settings(max_examples=600)
@given(altered(POLICY.encode()).map(lambda raw: raw.decode(errors="replace")) | st.text(max_size=200))
def test_policy_is_read_or_refused_as_the_readers_own_fault(text: str) -> None:
    with contextlib.suppress(Unchecked):
        policy = parse_policy(text)
        assert policy.quorum == "none" or policy.witnessed_at(policy.quorum, {}) is None


@given(st.text(max_size=120))
def test_vkey_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Unchecked):
        assert str(parse_vkey(text)) == text


@given(st.lists(st.binary(max_size=40), max_size=80), st.integers(-2, 70), st.integers(-2, 70))
def test_tree_checks_refuse_whatever_is_not_a_proof(path: list[bytes], index: int, size: int) -> None:
    leaf = leaf_hash(b"x")
    checks: list[Callable[[], None]] = [
        lambda: check_inclusion(leaf, index, size, path, EMPTY_ROOT),
        lambda: check_consistency(index, leaf, size, EMPTY_ROOT, path),
    ]
    for check in checks:
        try:
            check()
        except FedhubError:
            continue
        raise AssertionError("nonsense was accepted")
