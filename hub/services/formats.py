"""What a file's own bytes say it is, and whether a model may hold it.

Loading a pickle runs whatever program its author put in, so files that hold one are refused by content and
never by name: a pickle renamed ``weights.safetensors`` is still a pickle, and so is one that lies behind a
sound safetensors header. The look takes a few ranged reads of the stored file: its head, the places where a
mark may stand, the directory of an archive, the first bytes of each member; more only of what begins as a
pickle does (``hub.services.pickles``). Nothing is unpickled, extracted or kept.

Read ``check_content`` first. What this does not do: judge text files; a ``.py`` beside a model runs only
where a person asks for it.
"""

import ast
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Literal

from hub.services.arrow_types import SCHEMA_BYTES, TooLarge, names_pickled_type
from hub.services.compressed import UNPACKED_BYTES, Unreadable, unpack
from hub.services.pickles import TooLong, is_pickle
from hub.services.ranged import RangedFile, Reader
from storage.errors import Refused

HEAD_BYTES = 65_536
MAX_MEMBERS = 2_000  # of one archive
MAX_MEMBER_BYTES = 256 << 20  # unpacked to follow what begins as a pickle
MAX_DEPTH = 3  # archives and compressions within each other
MAX_KERAS_BYTES = 16 << 20  # of the description of a Keras model in its archive
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, the limit of the format's own library

ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

TO_SAFETENSORS = (
    "Load it once where you trust it, write the tensors with safetensors.torch.save_file and push that file."
)
TO_NUMBERS = "Write numeric arrays only, with numpy.save(..., allow_pickle=False), or safetensors."
TO_COLUMNS = "Write it with columns of Arrow's own types only, in several files if they are many."
UNWRAP = "Push the files themselves, uncompressed."

HDF5 = b"\x89HDF\r\n\x1a\n"


def check_content(name: str, size: int, read: Reader) -> str:
    """Say what the file is: ``safetensors``, ``npy``, ``archive``, ``compressed`` or ``plain``.

    Args:
        name: the file's name in its manifest; ``*.safetensors`` must be what it says.
        size: its length in bytes.
        read: ranged reads of it.
    Raises:
        Refused: ``E_UNSAFE_FORMAT`` (status 422), naming the file, what was found and how to convert it.
    """
    found = _look(name, size, read, depth=0)
    if name.lower().endswith(".safetensors"):
        check_safetensors(name, size, read)
        return "safetensors"
    return found


def check_safetensors(name: str, size: int, read: Reader) -> None:
    """Check a safetensors file's header: shapes, types and offsets that cover the file once and exactly.

    Raises:
        Refused: ``E_UNSAFE_FORMAT``, with the tensor and the rule.
    """
    if size < 8:
        raise _refused(name, f"{size} bytes are too few for a safetensors header", TO_SAFETENSORS)
    length = int.from_bytes(read(0, 8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise _refused(name, f"the header claims {length} bytes in a file of {size}", TO_SAFETENSORS)
    try:
        header = json.loads(read(8, length).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _refused(
            name, "the safetensors header is not JSON with unique names", TO_SAFETENSORS
        ) from error
    if not isinstance(header, dict):
        raise _refused(name, "the safetensors header is not an object", TO_SAFETENSORS)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refused(name, "__metadata__ of a safetensors file holds text only", TO_SAFETENSORS)
    spans = sorted(_span(name, tensor, entry) for tensor, entry in header.items())
    position = 0
    for begin, end, tensor in spans:
        if begin != position:
            raise _refused(
                name, f"tensor {tensor!r} begins at byte {begin}, expected {position}", TO_SAFETENSORS
            )
        position = end
    if 8 + length + position != size:
        raise _refused(name, f"the tensors end at byte {8 + length + position} of {size}", TO_SAFETENSORS)


def _span(name: str, tensor: str, entry: Any) -> tuple[int, int, str]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _refused(name, f"tensor {tensor!r} needs exactly dtype, shape and data_offsets", TO_SAFETENSORS)
    bits = ITEM_BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        raise _refused(name, f"tensor {tensor!r} has an unknown dtype", TO_SAFETENSORS)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _refused(name, f"tensor {tensor!r} has a malformed shape or data_offsets", TO_SAFETENSORS)
    items = 1
    for length in shape:
        items *= length
    if (items * bits) % 8 or offsets[1] - offsets[0] != items * bits // 8:
        raise _refused(name, f"tensor {tensor!r} has data_offsets that do not fit its shape", TO_SAFETENSORS)
    return offsets[0], offsets[1], tensor


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate member")
    return found


# --- looking --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """What stands inside another file: its first bytes, and a reader that goes forward through all of it."""

    name: str
    head: bytes
    size: int | None
    forward: Reader


def _look(name: str, size: int, read: Reader, depth: int) -> str:
    head = read(0, min(size, HEAD_BYTES))
    _refuse_pickle(name, head, size, read)
    return _look_further(name, head, size, read, depth)


def _look_further(name: str, head: bytes, size: int, read: Reader, depth: int) -> str:
    if _is_hdf5(head, size, read):
        raise _refused(name, "an HDF5 file can carry Python code (Keras Lambda layers)", TO_SAFETENSORS)
    _refuse_pickled_types(name, head, size, read)
    if head.startswith(b"\x93NUMPY"):
        _refuse_object_array(name, head)
        return "npy"
    if _is_zip(head, size, read):
        _look_into(name, _zip_members(name, size, read), depth)
        return "archive"
    if _is_tar(head):
        stored = io.BufferedReader(RangedFile(size, read), HEAD_BYTES)
        _look_into(name, _tar_members(name, stored, "r:"), depth)
        return "archive"
    if _look_into_compressed(name, head, size, read, depth):
        return "compressed"
    return "plain"


def _look_into(name: str, members: Iterator[_Member], depth: int) -> None:
    if depth + 1 >= MAX_DEPTH:
        raise _refused(name, "archives are nested too deep to be looked into", UNWRAP)
    for member in members:
        head = member.head
        _refuse_pickle(member.name, head, member.size, member.forward)
        _look_further(member.name, head, len(head), partial(_within, head), depth + 1)


def _within(head: bytes, offset: int, length: int) -> bytes:
    return head[offset : offset + length]


def _look_into_compressed(name: str, head: bytes, size: int, read: Reader, depth: int) -> bool:
    try:
        inside = unpack(head, size, read)
        if inside is None:
            return False
        first = inside.read(0, HEAD_BYTES)
        if _is_tar(first) and (again := unpack(head, size, read)):  # it reads forward only
            _refuse_pickle(name, first, None, inside.read)
            _look_into(name, _tar_members(name, RangedFile(UNPACKED_BYTES, again.read), "r|"), depth)
        else:
            _look_into(name, iter([_Member(f"{name} (decompressed)", first, None, inside.read)]), depth)
        return True
    except Unreadable as error:
        raise _refused(name, str(error), UNWRAP) from error


def _refuse_pickle(name: str, head: bytes, size: int | None, read: Reader) -> None:
    if head.startswith(b"ZF0x"):
        raise _refused(name, "it is a joblib file, which holds a pickle", TO_SAFETENSORS)
    try:
        found = is_pickle(head, size, read)
    except TooLong as error:
        rule = "it begins with instructions of a pickle, more than are followed"
        raise _refused(name, rule, TO_SAFETENSORS) from error
    if found:
        raise _refused(name, "it is a pickle, which runs code when it is loaded", TO_SAFETENSORS)


def _refuse_object_array(name: str, head: bytes) -> None:
    wide = head[6:7] not in {b"\x01"}
    start = 12 if wide else 10
    length = int.from_bytes(head[8:start], "little")
    if len(head) < start or start + length > len(head):
        raise _refused(name, "its array header is longer than the file or than 64 KiB", TO_NUMBERS)
    try:
        header = ast.literal_eval(head[start : start + length].decode("utf-8").strip())
        described = header["descr"]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise _refused(name, "its array header cannot be read", TO_NUMBERS) from error
    if _holds_objects(described):
        raise _refused(name, "it is an array of Python objects, stored as a pickle", TO_NUMBERS)


def _holds_objects(described: Any) -> bool:
    if isinstance(described, str):
        return "O" in described
    if isinstance(described, (list, tuple)):
        # A field is (name, type) or (name, type, shape): its name may contain any letter.
        if described and isinstance(described, tuple) and len(described) in (2, 3):
            return _holds_objects(described[1])
        return any(_holds_objects(field) for field in described)
    return True


def _refuse_pickled_types(name: str, head: bytes, size: int, read: Reader) -> None:
    try:
        found = names_pickled_type(head, size, read)
    except TooLarge as error:
        raise _refused(name, f"its schema is larger than {SCHEMA_BYTES} bytes", TO_COLUMNS) from error
    if found:
        rule = "its schema names a column type that is described by a pickle (CVE-2023-47248)"
        raise _refused(name, rule, TO_COLUMNS)


def _refuse_keras(name: str, description: bytes) -> None:
    """Refuse a Keras archive: what it describes is built by name, Python code of Lambda layers included.

    Its weights need not be HDF5. Source: ``keras.saving.load_model`` of Keras 3 reads ``config.json`` first.
    """
    if len(description) > MAX_KERAS_BYTES:
        raise _refused(name, f"its config.json is larger than {MAX_KERAS_BYTES} bytes", UNWRAP)
    try:
        found = json.loads(description)
    except (ValueError, RecursionError):
        return  # Keras does not read it either
    if isinstance(found, dict) and {"class_name", "module", "registered_name"} & found.keys():
        raise _refused(name, "a Keras archive can carry Python code (Lambda layers)", TO_SAFETENSORS)


def _is_hdf5(head: bytes, size: int, read: Reader) -> bool:
    """Whether the mark stands where readers look for it: at 0, 512, 1024, 2048, … bytes.

    Source: HDF5 file format specification 3.0, section II.A.
    """
    at = 0
    while at + len(HDF5) <= size:
        mark = head[at : at + len(HDF5)] if at + len(HDF5) <= len(head) else read(at, len(HDF5))
        if mark == HDF5:
            return True
        at = max(512, 2 * at)
    return False


def _is_tar(head: bytes) -> bool:
    """By its mark, or as readers know the oldest form, which has none: by the sum over its header."""
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _is_zip(head: bytes, size: int, read: Reader) -> bool:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return True
    # zipfile and torch find an archive by its end, whatever stands before it.
    tail_length = min(size, 65_557)
    tail = read(size - tail_length, tail_length)
    at = tail.rfind(b"PK\x05\x06")
    comment = int.from_bytes(tail[at + 20 : at + 22], "little")
    return at >= 0 and len(tail) - at >= 22 and at + 22 + comment == len(tail)


def _zip_members(name: str, size: int, read: Reader) -> Iterator[_Member]:
    try:
        with zipfile.ZipFile(io.BufferedReader(RangedFile(size, read), HEAD_BYTES)) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise _refused(name, f"it holds {len(members)} members, more than {MAX_MEMBERS}", UNWRAP)
            for member in members:
                with archive.open(member) as stream:
                    if member.filename == "config.json":
                        _refuse_keras(name, stream.read(MAX_KERAS_BYTES + 1))
                        stream.seek(0)
                    yield _member(f"{name}/{member.filename}", stream, member.file_size)
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OSError, zlib.error) as error:
        raise _refused(name, "it looks like a zip archive and cannot be read as one", UNWRAP) from error


def _tar_members(name: str, file: io.IOBase, mode: Literal["r:", "r|"]) -> Iterator[_Member]:
    try:
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise _refused(name, f"it holds more than {MAX_MEMBERS} members", UNWRAP)
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    yield _member(f"{name}/{member.name}", stream, member.size)
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise _refused(name, "it looks like a tar archive and cannot be read as one", UNWRAP) from error


def _member(name: str, stream: IO[bytes], size: int) -> _Member:
    head = stream.read(HEAD_BYTES)
    at = len(head)

    def forward(offset: int, length: int) -> bytes:
        nonlocal at
        if offset > MAX_MEMBER_BYTES:
            raise TooLong
        while at < offset and (skipped := stream.read(min(offset - at, 1 << 20))):
            at += len(skipped)
        found = stream.read(length)
        at += len(found)
        return found

    return _Member(name, head, size, forward)


def _refused(name: str, found: str, hint: str) -> Refused:
    return Refused("E_UNSAFE_FORMAT", f"file {name!r}: {found}", hint, status=422, field=name)
