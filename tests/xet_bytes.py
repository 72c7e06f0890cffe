"""Xorbs and shards as Xet clients send them, written out by hand for tests."""

import hashlib
import struct
from collections.abc import Sequence

import lz4.frame

Run = tuple[str, int, int, int]  # xorb's name, unpacked length, first chunk, end


def raw_hash(name: str) -> bytes:
    """The stored form of a hash's text."""
    return struct.pack("<4Q", *(int(name[start : start + 16], 16) for start in range(0, 64, 16)))


def chunk(data: bytes, scheme: int = 0) -> bytes:
    """One chunk: raw, LZ4, or LZ4 over bytes grouped by four."""
    grouped = b"".join(data[place::4] for place in range(4)) if scheme == 2 else data
    packed = lz4.frame.compress(grouped) if scheme else grouped
    return (
        b"\0" + len(packed).to_bytes(3, "little") + bytes([scheme]) + len(data).to_bytes(3, "little") + packed
    )


def xorb(*chunks: bytes) -> tuple[str, bytes]:
    """A xorb with a name that tests choose; the hub never believes what a name says."""
    body = b"".join(chunks)
    return hashlib.sha256(b"xorb" + body).hexdigest(), body + b"XETBLOB footer"


def shard(*files: tuple[str, Sequence[Run]], checks: bool = False, digests: bool = True) -> bytes:
    """A shard of files: (sha256, runs)."""
    body = b"header".ljust(48, b"\0")
    for sha256, runs in files:
        flags = (0x80000000 if checks else 0) | (0x40000000 if digests else 0)
        body += bytes(32) + struct.pack("<II", flags, len(runs)) + bytes(8)
        for name, length, start, end in runs:
            body += raw_hash(name) + struct.pack("<IIII", 0, length, start, end)
        if checks:
            body += bytes(48 * len(runs))
        if digests:
            body += raw_hash(sha256) + bytes(16)
    return body + b"\xff" * 32 + bytes(16)
