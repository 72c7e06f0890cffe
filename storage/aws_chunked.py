"""Bodies of S3 requests in chunks, with the digest of all of them at the end.

The digest of a file so need not be known before its first byte is sent. Chunks bear no signatures: the
request's own covers its place, its size and the name of the trailer, and the store refuses a body that the
trailer does not fit.

Source: Amazon S3 API Reference, "Signature calculations for trailing headers" (unsigned payload); RFC 9112,
section 7.1.
"""

import base64
from collections.abc import Iterator

UNSIGNED_CHUNKS = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"  # as ``x-amz-content-sha256``
TRAILER = "x-amz-checksum-sha256"
CHUNK_BYTES = 8 << 20  # servers take 8 KiB at least, and MinIO 16 MiB at most


def trailing_digest(sha256: str) -> str:
    """A digest in hex as S3 writes it: in base64."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def chunks(size: int) -> Iterator[tuple[bytes, int]]:
    """What goes before each chunk of a body, and the chunk's bytes; ``END`` goes after each.

    >>> list(chunks(0x800001))
    [(b'800000\\r\\n', 8388608), (b'1\\r\\n', 1)]
    """
    for start in range(0, size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, size - start)
        yield b"%x\r\n" % length, length


END = b"\r\n"


def end_of_body(sha256: str) -> bytes:
    """What follows the last chunk: the digest of all of them."""
    return f"0\r\n{TRAILER}:{trailing_digest(sha256)}\r\n\r\n".encode()


def chunked_length(size: int) -> int:
    """Bytes of a whole body that carries ``size`` bytes."""
    frames = sum(len(before) + length + len(END) for before, length in chunks(size))
    return frames + len(end_of_body("0" * 64))
