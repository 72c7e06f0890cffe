"""Any tensors come back as they went in, and the digest is that of the bytes."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from federation.tensors import TensorFile, write_tensors

DTYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "u1", "?")


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = int(np.prod(shape)) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype == np.dtype("?"):
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype).reshape(shape)


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)


@settings(max_examples=150)
@given(st.dictionaries(names, arrays(), max_size=5), st.integers(1, 7))
def test_tensors_come_back_bit_for_bit_in_any_pieces(tensors: dict[str, Any], piece: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w")
        digest = write_tensors(path, tensors)
        raw = path.read_bytes()
        assert digest.sha256 == hashlib.sha256(raw).hexdigest() and digest.size == len(raw)
        with TensorFile(path, size=digest.size) as file:
            assert {spec.name for spec in file.layout.tensors} == set(tensors)
            for name, array in tensors.items():
                parts = [file.read(name, start, stop) for start, stop in file.pieces(name, piece)]
                assert b"".join(part.tobytes() for part in parts) == array.tobytes()
                assert file.array(name).shape == array.shape


@settings(max_examples=50)
@given(st.dictionaries(st.from_regex(r"[a-z][a-z.]{0,8}", fullmatch=True), arrays(), min_size=1, max_size=5))
def test_the_stock_writer_writes_the_same_bytes(tensors: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder, "w"), tensors)
        assert Path(folder, "w").read_bytes() == save(tensors)
