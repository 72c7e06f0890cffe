"""Whatever a Xet client posts as xorb or shard: chunks and files within their limits, or ``E_XET``."""

import struct
import tracemalloc
from typing import Any

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.services.xet_format import (
    CHUNK_BYTES,
    SHARD_FILES,
    XORB_CHUNKS,
    XORB_UNPACKED_BYTES,
    ShardFile,
    Xorb,
    read_shard,
)
from storage.errors import Rejected
from tests.xet_bytes import chunk, shard, xorb

SOUND_XORB = xorb(chunk(b"plain"), chunk(b"packed" * 50, 1), chunk(bytes(range(256)), 2))[1]
SOUND_SHARD = shard(
    ("ab" * 32, [("cd" * 32, 5, 0, 1), ("ef" * 32, 7, 1, 3)]),
    ("12" * 32, [("cd" * 32, 5, 2, 3)]),
    checks=True,
)


@st.composite
def bent(draw: Any, sound: bytes) -> bytes:
    """A sound document with bytes changed, cut out, put in or doubled."""
    raw = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        end = min(len(raw), at + draw(st.integers(0, 60)))
        raw[at:end] = draw(st.binary(max_size=60) | st.just(bytes(raw[at:end]) * 2))
    return bytes(raw)


HEADERS = st.builds(
    lambda version, packed, scheme, length: (
        bytes([version]) + packed.to_bytes(3, "little") + bytes([scheme]) + length.to_bytes(3, "little")
    ),
    st.sampled_from([0, 0, 0, 1]),
    st.integers(0, 40) | st.integers(0, (1 << 24) - 1),
    st.integers(0, 3),
    st.integers(0, 40) | st.integers(0, (1 << 24) - 1),
)
XORBS = st.binary(max_size=200) | bent(SOUND_XORB) | st.lists(HEADERS | st.binary(max_size=40)).map(b"".join)
ENTRIES = st.builds(
    lambda name, a, b, c, d: name + struct.pack("<IIII", a, b, c, d),
    st.sampled_from([b"\xff" * 32, b"\x01" * 32]),
    *[st.sampled_from([0, 1, 2, 0x40000000, 0x80000000, 0xC0000000, 0xFFFFFFFF])] * 4,
)
SHARDS = st.binary(max_size=400) | bent(SOUND_SHARD) | st.lists(ENTRIES, max_size=12).map(b"".join)


def _chunks(raw: bytes) -> list[bytes]:
    """All chunks of a xorb; refusals are E_XET and nothing else is raised."""
    try:
        found = Xorb(raw)
        return list(found.chunks(0, len(found)))
    except Rejected as error:
        assert error.code == "E_XET" and "HF_HUB_DISABLE_XET" in error.hint
        return []


@settings(max_examples=150)
@given(XORBS)
def test_a_xorb_is_read_within_its_limits_or_refused(raw: bytes) -> None:
    found = _chunks(raw)
    assert len(found) <= XORB_CHUNKS and sum(map(len, found)) <= XORB_UNPACKED_BYTES
    assert all(len(one) <= CHUNK_BYTES for one in found)


@settings(max_examples=150)
@given(SHARDS)
def test_a_shard_is_read_or_refused(raw: bytes) -> None:
    found: list[ShardFile] = []
    try:
        found = read_shard(raw)
    except Rejected as error:
        assert error.code == "E_XET"
    assert len(found) <= SHARD_FILES
    assert sum(48 * len(file.segments) for file in found) <= len(raw)
    assert all(segment.start < segment.end for file in found for segment in file.segments)


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 2)), max_size=5))
def test_what_a_sound_client_packs_is_what_is_read(pieces: list[tuple[bytes, int]]) -> None:
    assert _chunks(xorb(*[chunk(data, scheme) for data, scheme in pieces])[1]) == [data for data, _ in pieces]


@pytest.mark.parametrize("said", [100, CHUNK_BYTES], ids=["short", "longest"])
def test_a_chunk_that_unpacks_to_gigabytes_costs_one_chunk(said: int) -> None:
    bomb = lz4.frame.compress(bytes(200 << 20))
    head = b"\0" + len(bomb).to_bytes(3, "little") + b"\1" + said.to_bytes(3, "little")
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(Rejected, match="unpacks to another length"):
            list(Xorb(head + bomb).chunks(0, 1))
        assert tracemalloc.get_traced_memory()[1] < 4 * CHUNK_BYTES + len(bomb)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [1, 1 << 16, 0xFFFFFFFF])
def test_a_shard_that_claims_more_than_it_holds_costs_what_it_holds(count: int) -> None:
    raw = bytes(48) + bytes(32) + struct.pack("<II", 0x40000000, count) + bytes(8) + bytes(100)
    tracemalloc.start()
    try:
        with pytest.raises(Rejected, match="E_XET"):
            read_shard(raw)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_xorb_of_nothing_but_empty_chunks_ends_at_the_limit() -> None:
    assert len(Xorb(chunk(b"") * XORB_CHUNKS)) == XORB_CHUNKS
    with pytest.raises(Rejected, match=str(XORB_CHUNKS)):
        Xorb(chunk(b"") * (XORB_CHUNKS + 1))
