"""What is inside a compressed file, as its readers would see it, from the first byte on.

Readers take several streams one after another for one, so an empty one in front hides nothing; a bzip2 block
gives its first byte only at its end; what needs more memory than is lent is told apart from what is no
compressed file. Read ``unpack``.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from hub.services.ranged import Reader

IN_BYTES = 1 << 16
OUT_BYTES = 4096  # at once, less than readers ask for: they see what stands before a fault
UNPACKED_BYTES = 256 << 20
EMPTY_BYTES = 4 << 20  # read before anything comes out; a bzip2 block is less than 1 MB
STREAMS = 100_000
MEMORY_BYTES = 128 << 20

GZIP = b"\x1f\x8b"
_LZ4_OR_ZSTD = (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd")
_SKIPPED_FRAME = b"\x2a\x4d\x18"  # of both, behind a byte from 0x50 to 0x5f
_BROKEN = (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError)


class Unreadable(Exception):
    """It is compressed and cannot be looked into; the message says why."""


def unpack(head: bytes, size: int, read: Reader) -> "Unpacked | None":
    """The bytes inside a compressed file; None: it is none, and its first bytes look like one by chance.

    Raises:
        Unreadable: lz4 or zstd; as ``Unpacked.read``.
    """
    if head.startswith(_LZ4_OR_ZSTD) or (head[1:4] == _SKIPPED_FRAME and head[0] >> 4 == 5):
        raise Unreadable("it is compressed (lz4 or zstd), so its content cannot be looked at")
    make = _decoder_of(head)
    if make is None:
        return None
    found = Unpacked(make, size, read, is_gzip=head.startswith(GZIP))
    return found if found.is_one() else None


def _decoder_of(head: bytes) -> Callable[[], Any] | None:
    if head.startswith(GZIP):
        return lambda: zlib.decompressobj(wbits=31)
    if head.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    if head.startswith(b"\xfd7zXZ\x00") or _is_lzma_alone(head):
        return lambda: lzma.LZMADecompressor(memlimit=MEMORY_BYTES)
    if len(head) > 2 and head[0] & 0x8F == 8 and (head[0] << 8 | head[1]) % 31 == 0:
        return zlib.decompressobj
    return None


def _is_lzma_alone(head: bytes) -> bool:
    """By what its readers ask of the header, which has no mark.

    Source: ``lzma_auto_decoder`` of liblzma: properties, a dictionary of 2^n or 2^n + 2^(n-1) bytes, a length
    below 2^38 or unknown.
    """
    dictionary, length = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:13], "little")
    power = 1 << max(0, dictionary.bit_length() - 1)
    return (
        len(head) >= 13
        and head[0] < 225
        and dictionary in (power, power + power // 2)
        and (length < 1 << 38 or length == (1 << 64) - 1)
    )


class Unpacked:
    """Forward reads of what a compressed file holds."""

    def __init__(self, make: Callable[[], Any], size: int, read: Reader, *, is_gzip: bool) -> None:
        self._make, self._size, self._read, self._is_gzip = make, size, read, is_gzip
        self._decoder, self._at, self._rest = make(), 0, b""  # what has been read and not yet unpacked
        self._streams, self._came, self._between = 0, 0, False
        self._start, self._ready = 0, b""  # what has been unpacked and not yet asked for

    def is_one(self) -> bool:
        """Whether anything comes out, or a whole stream goes in."""
        self._ready = self._next()
        return bool(self._ready or self._streams)

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``, not before that of the last read; fewer only at the end.

        Raises:
            Unreadable: more than ``MEMORY_BYTES``, ``STREAMS``, ``UNPACKED_BYTES``; nothing of
                ``EMPTY_BYTES``.
        """
        pieces, missing = list[bytes](), length
        while missing and (piece := self._ready or self._next()):
            skipped = min(len(piece), max(0, offset - self._start))
            taken = piece[skipped : skipped + missing]
            self._start += skipped + len(taken)
            self._ready = piece[skipped + len(taken) :]
            pieces.append(taken)
            missing -= len(taken)
        return b"".join(pieces)

    def _next(self) -> bytes:
        """What comes out next; nothing at the end, or at a fault."""
        while True:
            before = self._decoder.copy() if self._is_gzip else None
            try:
                found: bytes = self._decoder.decompress(self._rest, OUT_BYTES)
            except _BROKEN as error:
                if isinstance(error, lzma.LZMAError) and "memory" in str(error).lower():
                    raise Unreadable(f"more than {MEMORY_BYTES} bytes of memory unpack it") from error
                found, self._rest, self._at = _up_to_fault(before, self._rest), b"", self._size
                return found
            self._rest = getattr(self._decoder, "unconsumed_tail", b"")
            if self._decoder.eof:
                self._rest, self._between = self._decoder.unused_data, True
                self._decoder, self._streams = self._make(), self._streams + 1
            self._came += len(found)
            self._check_limits()
            if found or not self._fill():
                return found

    def _fill(self) -> bool:
        """Have something to unpack; zero bytes may stand between streams."""
        while True:
            if self._between:
                self._rest = self._rest.lstrip(b"\0")
            if self._rest:
                self._between = False
                return True
            if self._at >= self._size:
                return False
            self._rest = self._read(self._at, IN_BYTES)
            self._at = self._at + len(self._rest) if self._rest else self._size

    def _check_limits(self) -> None:
        if self._came > UNPACKED_BYTES or self._streams > STREAMS:
            raise Unreadable("there is more in it than is unpacked to look for a pickle")
        if not self._came and self._at > EMPTY_BYTES:
            raise Unreadable("nothing comes out of its first bytes when it is unpacked")


def _up_to_fault(before: Any, data: bytes) -> bytes:
    """What comes out before a fault: readers of gzip hand out the last bytes, and then look at their sum.

    Others hand out nothing of the piece in which a fault is, and their pieces are larger than ours.
    """
    found = b""
    try:
        while before is not None and (byte := before.decompress(data, 1)):
            found, data = found + byte, before.unconsumed_tail
    except _BROKEN:
        pass
    return found
