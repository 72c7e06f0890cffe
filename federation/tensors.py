"""Named tensors in safetensors files: a reader that trusts nothing and a writer that hashes as it writes.

A file is ``uint64 little-endian header length, JSON header, tensor bytes``. The reader checks the whole
header against the file's size, and against the layout the caller expects, before it reads a tensor; then it
hands tensors out in pieces, so memory is bounded by the piece and not the file. It reads instead of mapping:
as fast here, no page of the file counts as ours, and a file that is cut meanwhile is an error instead of a
signal.

Letters: n elements of one piece. Deliberately without torch, and never pickle.
Source: https://huggingface.co/docs/safetensors, "Format"; our limits are tighter and stand below.
"""

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.encoding import read_json
from storage.errors import FedhubError, Misuse, Rejected, Unchecked, shown

Array = NDArray[Any]

MAX_HEADER_BYTES = 4 << 20  # ten thousand tensors take about one
MAX_TENSORS = 65_536
MAX_NAME = 512  # characters
MAX_DIMENSIONS = 8
PIECE = 1 << 20  # elements handed out at a time
_STEP_BYTES = 1 << 18  # written and hashed at a time

# bfloat16 has no numpy type: its bits travel as uint16 and are widened to float32 to compute.
_NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_STOCK_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I8", "U8", "BOOL")
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.count * _NUMPY[self.dtype].itemsize

    @property
    def is_float(self) -> bool:
        """Whether training moves it; other tensors are buffers that travel whole."""
        return self.dtype in FLOATS


@dataclass(frozen=True)
class Layout:
    """The tensors of a file in the order of their bytes."""

    tensors: tuple[TensorSpec, ...]

    @property
    def data_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def differences(self, found: "Layout") -> list[str]:
        """How another layout differs in names, types or shapes, at most five, as text; order may differ."""
        mine, theirs = {t.name: t for t in self.tensors}, {t.name: t for t in found.tensors}
        texts = [f"tensor {shown(name)} is missing" for name in mine if name not in theirs]
        texts += [f"tensor {shown(name)} is not expected" for name in theirs if name not in mine]
        for name, spec in mine.items():
            other = theirs.get(name)
            if other is not None and (spec.dtype, spec.shape) != (other.dtype, other.shape):
                texts.append(
                    f"tensor {shown(name)}: expected {spec.dtype} {list(spec.shape)}, "
                    f"found {other.dtype} {list(other.shape)}"
                )
        return texts[:5]


@dataclass(frozen=True)
class FileDigest:
    """What a reference to a file says: SHA-256 and size in bytes."""

    sha256: str
    size: int


class TensorFile:
    """A safetensors file, open for reading.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.safetensors")
    ...     digest = write_tensors(path, {"w": np.array([1.0, 2.0], np.float32)})
    ...     with TensorFile(path) as file:
    ...         file.read("w").tolist()
    [1.0, 2.0]
    """

    def __init__(self, path: Path, *, expect: Layout | None = None, size: int | None = None) -> None:
        """Open and check the header.

        Args:
            path: a regular file.
            expect: the layout it must have, in names, types and shapes.
            size: the size in bytes that was announced.
        Raises:
            Unchecked: ``E_TENSORS_MISSING``: the file cannot be read.
            Rejected: ``E_TENSORS``: not a safetensors file within our limits; ``E_LAYOUT``: not as expected.
        """
        self.path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            self._open(expect, size)
        except (FedhubError, OSError):
            self._file.close()
            raise

    def _open(self, expect: Layout | None, size: int | None) -> None:
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _malformed(self.path, "not a regular file")
        if size is not None and status.st_size != size:
            raise _malformed(self.path, f"announced as {size} bytes, it has {status.st_size}")
        head = self._file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise _malformed(
                self.path, f"its header should have 2 to {MAX_HEADER_BYTES} bytes, it says {length}"
            )
        if 8 + length > status.st_size:
            raise _malformed(self.path, f"its header should have {length} bytes, the file ends before")
        start = 8 + length
        self.layout, self.metadata, self._offsets = _read_header(
            self.path, self._file.read(length), status.st_size - start
        )
        if expect is not None and (differences := expect.differences(self.layout)):
            raise Rejected(
                "E_LAYOUT",
                f"{self.path.name}: " + "; ".join(differences),
                "the tensors must be those of the plan's base weights",
            )
        self._specs = {tensor.name: tensor for tensor in self.layout.tensors}
        self._start = start

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Elements ``start`` to ``stop`` of one tensor, flat, shape (n,), in its own type; bfloat16 as
        float32.

        Raises:
            Rejected: ``E_TENSORS``: the file has become shorter. Unchecked: the disk does not answer.
        """
        if self._file.closed:
            raise Misuse("E_CLOSED", f"{self.path.name} is closed")
        spec = self._specs[name]
        dtype = _NUMPY[spec.dtype]
        stop = spec.count if stop is None else min(stop, spec.count)
        values: Array = np.empty(max(0, stop - start), dtype)
        self._fill(values.view(np.uint8).data, self._start + self._offsets[name] + start * dtype.itemsize)
        return widen_bf16(values) if spec.dtype == "BF16" else values

    def _fill(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            try:
                count = os.preadv(self._file.fileno(), [buffer], offset)
            except OSError as error:
                raise _unreadable(self.path, error) from error
            if count == 0:
                raise _malformed(self.path, "it has become shorter while it was read")
            buffer, offset = buffer[count:], offset + count

    def pieces(self, name: str, size: int = PIECE) -> Iterator[tuple[int, int]]:
        """The (start, stop) pairs that cut one tensor into pieces of at most ``size`` elements."""
        count = self._specs[name].count
        for start in range(0, count, size):
            yield start, min(start + size, count)

    def array(self, name: str) -> Array:
        """One whole tensor in its own shape; bfloat16 as float32."""
        return self.read(name).reshape(self._specs[name].shape)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorWriter:
    """Writes one safetensors file front to back, hashing every byte once on the way.

    The file stands at its path only after ``finish``; leaving the ``with`` block before that removes all
    traces. What lies at ``unfinished(path)`` is written over.
    """

    def __init__(self, path: Path, layout: Layout, metadata: Mapping[str, str] | None = None) -> None:
        """Begin a file.

        Args:
            layout: tensors in the order they will be written.
            metadata: text to text, stored in the header.
        """
        self.path = path
        header = _header(layout, metadata)
        self.size = len(header) + layout.data_bytes
        self._layout = layout
        self._index = 0
        self._left = layout.tensors[0].size_bytes if layout.tensors else 0
        self._hash = hashlib.sha256()
        self._written = 0
        self._temporary = unfinished(path)
        try:
            opened = _open_alone(self._temporary)
        except OSError as error:
            raise _unwritable(path, error) from error
        self._file = open(opened, "wb", buffering=0)  # noqa: SIM115 - closed by __exit__
        try:
            self._put(memoryview(header))
        except Unchecked:
            self.__exit__(None, None, None)
            raise

    def write(self, values: Array) -> None:
        """Append the next elements of the tensor that is being written.

        Args:
            values: shape (n,), in the tensor's own type; for bfloat16 float32, rounded to nearest even.
        Raises:
            Misuse: not the type or more than the elements that the layout says.
        """
        if values.size == 0:
            return  # an empty tensor's turn is over before it begins
        while self._left == 0 and self._index + 1 < len(self._layout.tensors):
            self._index += 1
            self._left = self._layout.tensors[self._index].size_bytes
        if not self._layout.tensors:
            raise Misuse("E_WRITE", f"{self.path.name}: the layout has no tensor to write")
        spec = self._layout.tensors[self._index]
        data = np.ascontiguousarray(to_stored(values, spec.dtype))
        if data.nbytes > self._left:
            raise Misuse(
                "E_WRITE", f"tensor {spec.name}: {data.nbytes} bytes given, {self._left} left to write"
            )
        self._left -= data.nbytes
        self._put(data.reshape(-1).view(np.uint8).data)

    def finish(self) -> FileDigest:
        """Close the file, move it to its path, and say what it is.

        Raises:
            Misuse: tensors are incomplete.
        """
        if self._written != self.size:
            raise Misuse("E_WRITE", f"{self.path.name}: {self._written} of {self.size} bytes were written")
        self._file.truncate(self.size)  # of what lay there before
        self._file.close()
        os.replace(self._temporary, self.path)
        return FileDigest(self._hash.hexdigest(), self.size)

    def _put(self, data: memoryview) -> None:
        for start in range(0, len(data), _STEP_BYTES):  # hashed while it is in the processor's cache
            view = step = data[start : start + _STEP_BYTES]
            self._hash.update(step)
            while view:
                try:
                    view = view[self._file.write(view) :]
                except OSError as error:
                    raise _unwritable(self.path, error) from error
        self._written += len(data)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def _open_alone(path: Path) -> int:
    """Open a file to write over it; a new one where the bytes have another name too, as in a store."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    opened = os.open(path, flags, 0o666)
    if os.fstat(opened).st_nlink > 1:
        os.close(opened)
        path.unlink()
        opened = os.open(path, flags, 0o666)
    return opened


def unfinished(path: Path) -> Path:
    """Where the writer of a file works before it stands at its path.

    A file that is needed no more may be left there: memory and disk that a file has already are quicker to
    write to than new ones, above all on virtual machines that give back what is free.
    """
    return path.with_name(path.name + ".part")


def compute_dtype(dtype: str) -> np.dtype[Any]:
    """The type in which sums over a float tensor are kept: float64 for F64, else float32."""
    return np.dtype(np.float64 if dtype == "F64" else np.float32)


def widen_bf16(bits: Array) -> Array:
    """The float32 values of bfloat16 bits kept as uint16, shape (n,) both."""
    wide: Array = (bits.astype(np.uint32) << 16).view(np.float32)
    return wide


def to_stored(values: Array, dtype: str) -> Array:
    """Values as a file holds them; a float narrows to nearest even, and too large a value becomes infinity.

    Raises:
        Misuse: a buffer's values are of another type than the tensor.
    """
    stored = _NUMPY[dtype]
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        rounded[np.isnan(values)] = 0x7FC0  # rounding could carry a NaN into infinity
        return rounded
    if dtype in FLOATS:
        with np.errstate(over="ignore", under="ignore"):
            narrow: Array = values.astype(stored, copy=False)
        return narrow
    if values.dtype != stored:
        raise Misuse("E_WRITE", f"expected {dtype} values, found {values.dtype}")
    return values


def layout_of(path: Path) -> Layout:
    """The layout of a safetensors file; raises as ``TensorFile`` does."""
    with TensorFile(path) as file:
        return file.layout


def sorted_layout(tensors: Sequence[TensorSpec]) -> Layout:
    """Tensors in the order the stock safetensors writer gives them: by type, widest first, then by name."""
    return Layout(tuple(sorted(tensors, key=lambda spec: (_STOCK_ORDER.index(spec.dtype), spec.name))))


def write_tensors(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> FileDigest:
    """Write whole arrays as one safetensors file.

    Raises:
        Misuse: an array's type has no name in the format we keep.
    """
    names = {dtype: name for name, dtype in _NUMPY.items() if name != "BF16"}
    specs = []
    for name, array in tensors.items():
        if array.dtype not in names:
            raise Misuse("E_WRITE", f"tensor {name}: type {array.dtype} is not one that travels")
        specs.append(TensorSpec(name, names[array.dtype], tuple(array.shape)))
    with TensorWriter(path, sorted_layout(specs), metadata) as writer:
        for spec in sorted_layout(specs).tensors:
            writer.write(tensors[spec.name].reshape(-1))
        return writer.finish()


def _header(layout: Layout, metadata: Mapping[str, str] | None) -> bytes:
    """Length and JSON header, padded with spaces to a multiple of 8 so that tensors are aligned."""
    members: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for spec in layout.tensors:
        end = offset + spec.size_bytes
        members[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(members, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _read_header(path: Path, raw: bytes, data_bytes: int) -> tuple[Layout, dict[str, str], dict[str, int]]:
    """Layout, metadata and each tensor's offset, from a header whose every claim was checked."""
    if raw[:1] != b"{":
        raise _malformed(path, "its header does not begin with '{'")
    header = read_json(raw, code="E_TENSORS", limit=MAX_HEADER_BYTES)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(path, "its __metadata__ should be an object of texts")
    if len(header) > MAX_TENSORS:
        raise _malformed(path, f"it has {len(header)} tensors, the limit is {MAX_TENSORS}")
    entries = sorted(
        (_read_entry(path, name, entry) for name, entry in header.items()),
        key=lambda entry: (entry[1], entry[2]),
    )
    end = 0
    for spec, start, stop in entries:
        if start != end:
            raise _malformed(
                path, f"tensor {shown(spec.name)} begins at {start}, the one before ends at {end}"
            )
        end = stop
    if end != data_bytes:
        raise _malformed(path, f"its tensors end at byte {end}, its data at {data_bytes}")
    layout = Layout(tuple(spec for spec, _, _ in entries))
    return layout, metadata, {spec.name: start for spec, start, _ in entries}


def _read_entry(path: Path, name: str, entry: object) -> tuple[TensorSpec, int, int]:
    where = f"tensor {shown(name)}"
    if not 1 <= len(name) <= MAX_NAME:
        raise _malformed(path, f"{where}: its name should have 1 to {MAX_NAME} characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _malformed(path, f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _NUMPY:
        raise _malformed(path, f"{where}: its dtype should be one of {', '.join(_NUMPY)}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _malformed(path, f"{where}: its shape should be at most {MAX_DIMENSIONS} integers from 0")
    if not _counts(offsets) or len(offsets) != 2:
        raise _malformed(path, f"{where}: its data_offsets should be two integers from 0")
    spec = TensorSpec(name, dtype, tuple(shape))
    start, stop = offsets
    if stop - start != spec.size_bytes:
        raise _malformed(
            path, f"{where}: its shape takes {spec.size_bytes} bytes, its offsets {stop - start}"
        )
    return spec, start, stop


def _counts(value: object) -> bool:
    """Whether ``value`` is a list of whole numbers from 0 to 2^53."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 53 for item in value)


def _unreadable(path: Path, error: OSError) -> Unchecked:
    return Unchecked("E_TENSORS_MISSING", f"{path.name}: cannot be read ({error.strerror})")


def _unwritable(path: Path, error: OSError) -> Unchecked:
    return Unchecked(
        "E_TENSORS_WRITE", f"{path.name}: cannot be written ({error.strerror})", "make room for it"
    )


def _malformed(path: Path, rule: str) -> Rejected:
    return Rejected("E_TENSORS", f"{path.name}: {rule}", "only safetensors files are read")
