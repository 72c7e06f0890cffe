"""Xorbs and shards, the two forms in which Xet clients send files: strict readers, every length bounded.

A *xorb* is a row of chunks, each with an 8-byte header: version, packed length (3 bytes), scheme, length (3
bytes); scheme 0 is raw, 1 an LZ4 frame, 2 the same over bytes grouped by four. A *shard* says of each file
which runs of chunks of which xorbs it is made of, and its SHA-256. Nothing here knows where bytes lie.

Source: the formats as client hf-xet 1.8 sends them; numbers are little-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import lz4.frame  # type: ignore[import-untyped]

from storage.errors import Rejected

XORB_BYTES = 64 << 20 | 1 << 16  # of 64 MiB of chunks, with their headers and a footer
XORB_UNPACKED_BYTES = 128 << 20
XORB_CHUNKS = 16_384  # clients pack 8,192 at most
CHUNK_BYTES = 1 << 20  # clients cut at 128 KiB
SHARD_BYTES = 64 << 20
SHARD_FILES = 10_000
FOOTER = b"XETBLOB"
_ENTRY = 48
_WITH_CHECKS, _WITH_SHA256 = 0x80000000, 0x40000000
_END = b"\xff" * 32


@dataclass(frozen=True)
class Segment:
    """A run of chunks of one xorb: from ``start`` up to but not including ``end``."""

    xorb: str
    length: int  # of the run, unpacked, in bytes
    start: int
    end: int


@dataclass(frozen=True)
class ShardFile:
    """One file: the runs that it is made of, and its digest."""

    segments: tuple[Segment, ...]
    sha256: str


def _bad(what: str, rule: str) -> Rejected:
    return Rejected("E_XET", f"{what}: {rule}", "Set HF_HUB_DISABLE_XET=1 to upload without Xet.")


# --- xorbs ------------------------------------------------------------------------------------------------


class Xorb:
    """A xorb whose chunk headers are all sound and which does not unpack to too much.

    Raises:
        Rejected: ``E_XET``, with the rule that it breaks.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._index: list[tuple[int, int, int, int]] = []  # start, packed length, scheme, length
        offset = total = 0
        while offset < len(data) and data[offset : offset + len(FOOTER)] != FOOTER:
            head = data[offset : offset + 8]
            if len(head) < 8 or head[0] != 0:
                raise _bad("xorb", f"no chunk header at byte {offset}")
            packed, length = int.from_bytes(head[1:4], "little"), int.from_bytes(head[5:8], "little")
            end, total = offset + 8 + packed, total + length
            if head[4] > 2 or length > CHUNK_BYTES or end > len(data):
                raise _bad("xorb", f"the chunk at byte {offset} has an unknown scheme or is too long")
            if total > XORB_UNPACKED_BYTES or len(self._index) >= XORB_CHUNKS:
                raise _bad("xorb", f"has over {XORB_CHUNKS} chunks or {XORB_UNPACKED_BYTES} bytes unpacked")
            self._index.append((offset + 8, packed, head[4], length))
            offset = end

    def __len__(self) -> int:
        """How many chunks it has."""
        return len(self._index)

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """The unpacked chunks from ``start`` up to but not including ``end``.

        Raises:
            Rejected: ``E_XET``; there are not so many, or one does not unpack to the length it says.
        """
        if end > len(self):
            raise _bad("xorb", f"has {len(self)} chunks, asked for {start} to {end}")
        for offset, packed, scheme, length in self._index[start:end]:
            yield _unpack(self._data[offset : offset + packed], scheme, length)


def _unpack(data: bytes, scheme: int, length: int) -> bytes:
    if scheme:
        try:
            reader = lz4.frame.LZ4FrameDecompressor()
            data = reader.decompress(data, max_length=length + 1)
        except (RuntimeError, EOFError) as error:
            raise _bad("xorb", "a chunk is no LZ4 frame") from error
    if len(data) != length:
        raise _bad("xorb", f"a chunk of {length} bytes unpacks to another length")
    return _ungroup(data) if scheme == 2 else data


def _ungroup(data: bytes) -> bytes:
    """Bytes grouped by their place in words of four, back in order."""
    out, offset = bytearray(len(data)), 0
    for place in range(4):
        count = len(data) // 4 + (1 if place < len(data) % 4 else 0)
        out[place::4] = data[offset : offset + count]
        offset += count
    return bytes(out)


# --- shards -----------------------------------------------------------------------------------------------


def read_shard(data: bytes) -> list[ShardFile]:
    """The files that a shard describes.

    Raises:
        Rejected: ``E_XET``; it is cut, has too many files, or a file without a SHA-256.
    """
    offset = _ENTRY  # the shard's own head
    files: list[ShardFile] = []
    while True:
        entry = _entry(data, offset)
        if entry[:32] == _END:
            return files
        if len(files) >= SHARD_FILES:
            raise _bad("shard", f"has more than {SHARD_FILES} files")
        flags, count = struct.unpack_from("<II", entry, 32)
        offset += _ENTRY
        if offset + count * _ENTRY > len(data):
            raise _bad("shard", "ends inside a file")
        segments = tuple(_segment(_entry(data, offset + n * _ENTRY)) for n in range(count))
        offset += count * _ENTRY * (2 if flags & _WITH_CHECKS else 1)
        if not flags & _WITH_SHA256:
            raise _bad("shard", "a file has no SHA-256")
        files.append(ShardFile(segments, hash_text(_entry(data, offset)[:32])))
        offset += _ENTRY


def _entry(data: bytes, offset: int) -> bytes:
    entry = data[offset : offset + _ENTRY]
    if len(entry) != _ENTRY:
        raise _bad("shard", "is cut")
    return entry


def _segment(entry: bytes) -> Segment:
    _flags, length, start, end = struct.unpack_from("<IIII", entry, 32)
    if not start < end:
        raise _bad("shard", "a run of chunks is empty")
    return Segment(hash_text(entry[:32]), length, start, end)


def hash_text(raw: bytes) -> str:
    """The hex text of a hash that is stored as four little-endian 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))
