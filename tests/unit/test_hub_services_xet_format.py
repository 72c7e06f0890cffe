"""The forms in which Xet clients send files: what is read, and that nothing unbounded is."""

import os

import lz4.frame
import pytest

from hub.services import xet_format
from hub.services.xet_format import Segment, Xorb, hash_text, read_shard
from storage.errors import Rejected
from tests.xet_bytes import chunk, raw_hash, shard, xorb

NAME = "0123456789abcdef" * 4


@pytest.mark.parametrize("scheme", [0, 1, 2])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 1000, 65_537])
def test_chunks_come_out_as_they_went_in(scheme: int, length: int) -> None:
    data = os.urandom(length // 2) + bytes(length - length // 2)
    _name, body = xorb(chunk(b"before"), chunk(data, scheme), chunk(b"after", 1))
    assert list(Xorb(body).chunks(1, 2)) == [data]
    assert list(Xorb(body).chunks(0, 3)) == [b"before", data, b"after"]


def test_hashes_are_stored_as_four_little_endian_numbers() -> None:
    assert hash_text(raw_hash(NAME)) == NAME
    assert raw_hash(NAME)[:8] == bytes.fromhex("efcdab8967452301")


@pytest.mark.parametrize("checks", [False, True])
def test_shard_tells_runs_and_digest_of_each_file(checks: bool) -> None:
    files = read_shard(
        shard((NAME, [(NAME, 10, 0, 2), (NAME, 5, 3, 4)]), ("f" * 64, [(NAME, 1, 0, 1)]), checks=checks)
    )
    assert files[0].segments == (Segment(NAME, 10, 0, 2), Segment(NAME, 5, 3, 4))
    assert [file.sha256 for file in files] == [NAME, "f" * 64]


@pytest.mark.parametrize(
    "body",
    [
        b"\1" + chunk(b"x")[1:],  # another version
        chunk(b"x")[:4] + b"\3" + chunk(b"x")[5:],  # another scheme
        chunk(b"x")[:-1],  # cut
        chunk(b"x")[:5],
        b"\0\xff\xff\xff\0\xff\xff\xff" + b"x",
    ],
)
def test_xorb_that_is_not_one_is_refused_before_anything_is_unpacked(body: bytes) -> None:
    with pytest.raises(Rejected, match="E_XET"):
        Xorb(body)


def test_chunk_that_unpacks_to_more_than_it_says_is_refused() -> None:
    bomb = lz4.frame.compress(bytes(50_000_000))
    body = b"\0" + len(bomb).to_bytes(3, "little") + b"\1" + (1000).to_bytes(3, "little") + bomb
    with pytest.raises(Rejected, match="another length"):
        list(Xorb(body).chunks(0, 1))
    for packed in (b"nonsense", b"", lz4.frame.compress(b"too short")):
        body = b"\0" + len(packed).to_bytes(3, "little") + b"\1" + (1000).to_bytes(3, "little") + packed
        with pytest.raises(Rejected, match="E_XET"):
            list(Xorb(body).chunks(0, 1))


def test_xorb_of_too_many_chunks_or_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xet_format, "XORB_CHUNKS", 3)
    Xorb(chunk(b"") * 3)
    with pytest.raises(Rejected, match="chunks"):
        Xorb(chunk(b"") * 4)
    monkeypatch.setattr(xet_format, "XORB_UNPACKED_BYTES", 10)
    with pytest.raises(Rejected, match="10 bytes"):
        Xorb(chunk(b"123456") * 2)


def test_chunk_that_says_it_is_longer_than_clients_cut_is_refused_before_it_is_unpacked() -> None:
    Xorb(chunk(bytes(xet_format.CHUNK_BYTES)))
    for scheme in (0, 1):
        with pytest.raises(Rejected, match="too long"):
            Xorb(chunk(bytes(xet_format.CHUNK_BYTES + 1), scheme))


def test_run_of_chunks_that_are_not_there_is_refused() -> None:
    with pytest.raises(Rejected, match="asked for 1 to 3"):
        list(Xorb(chunk(b"a") * 2).chunks(1, 3))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(48),
        shard((NAME, [(NAME, 1, 0, 1)]))[:-49],
        shard((NAME, [(NAME, 1, 0, 1)]))[:150],
        shard((NAME, [(NAME, 1, 1, 1)])),
        shard((NAME, [(NAME, 1, 0, 1)]), digests=False),
        bytes(48) + bytes(32) + b"\0\0\0\x40" + b"\xff\xff\xff\xff" + bytes(8),
    ],
)
def test_shard_that_is_cut_or_names_no_digest_is_refused(body: bytes) -> None:
    with pytest.raises(Rejected, match="E_XET"):
        read_shard(body)


def test_shard_of_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xet_format, "SHARD_FILES", 2)
    with pytest.raises(Rejected, match="more than 2 files"):
        read_shard(shard(*[(NAME, [(NAME, 1, 0, 1)])] * 3))
