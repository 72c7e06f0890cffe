"""Whether an Arrow or Parquet file names the column type whose description is a pickle.

``pyarrow`` before 14.0.1 unpickled it as soon as such a file was opened (CVE-2023-47248). The type stands by
name in the schema: plain in Arrow's formats, in Base64 in the footer of Parquet. Read ``names_pickled_type``.

Source: Arrow columnar format 1.5, "IPC File Format" and "Encapsulated message format"; FlatBuffers,
"Internals"; Parquet format, "File Format".
"""

import base64

from hub.services.ranged import Reader

SCHEMA_BYTES = 64 << 20
PICKLED_TYPE = b"arrow.py_extension_type"


class TooLarge(Exception):
    """Its schema is larger than is looked at."""


def names_pickled_type(head: bytes, size: int, read: Reader) -> bool:
    """Look at the schema of an Arrow file, an Arrow stream or a Parquet file; false for all others.

    Raises:
        TooLarge: ``SCHEMA_BYTES``.
    """
    if head.startswith(b"PAR1"):
        footer = _footer(size, read, b"PAR1")
        return any(name in footer for name in _IN_BASE64)
    if head.startswith(b"ARROW1\0\0"):
        return PICKLED_TYPE in _footer(size, read, b"ARROW1") or _in_stream(head[8:], 8, size, read)
    return _in_stream(head, 0, size, read)


def _footer(size: int, read: Reader, mark: bytes) -> bytes:
    """What stands before its own length, of 4 bytes, and the mark at the end; nothing where no mark is."""
    behind = 4 + len(mark)
    end = read(max(0, size - behind), behind)
    length = _number(end, 0)
    return _schema(size - behind - length, length, size, read) if end[4:] == mark else b""


def _in_stream(head: bytes, start: int, size: int, read: Reader) -> bool:
    """Whether the first message of a stream names it; in the oldest form no mark stands before its length."""
    skipped = 4 if head.startswith(b"\xff\xff\xff\xff") else 0
    length, begin = _number(head, skipped), start + skipped + 4
    if (
        not length
        or length > size - begin
        or not _is_message(begin, length, _number(head, skipped + 4), read)
    ):
        return False
    return PICKLED_TYPE in _schema(begin, length, size, read)


def _is_message(begin: int, length: int, root: int, read: Reader) -> bool:
    """Whether a table stands at ``root``, and its fields are listed where it says."""
    if not 4 <= root <= length - 4:
        return False
    fields = root - int.from_bytes(read(begin + root, 4), "little", signed=True)
    if not 4 <= fields <= length - 4:
        return False
    bytes_of_fields = int.from_bytes(read(begin + fields, 2), "little")
    return 4 <= bytes_of_fields <= 64 and bytes_of_fields % 2 == 0


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _schema(begin: int, length: int, size: int, read: Reader) -> bytes:
    if begin < 0:
        return b""
    if length > SCHEMA_BYTES:
        raise TooLarge
    return read(begin, min(length, size - begin))


def _aligned(shift: int) -> bytes:
    """The name in Base64 behind ``shift`` bytes of a group of three, without the letters that they change."""
    text = bytes(shift) + PICKLED_TYPE
    return base64.b64encode(text[: len(text) // 3 * 3])[(0, 2, 3)[shift] :]


_IN_BASE64 = tuple(_aligned(shift) for shift in range(3))
