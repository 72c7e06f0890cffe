"""safetensors: what we write is what the stock library writes, and a false claim in a header is refused."""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation import tensors
from federation.tensors import (
    Layout,
    TensorFile,
    TensorSpec,
    TensorWriter,
    layout_of,
    to_stored,
    unfinished,
    write_tensors,
)
from storage.errors import Misuse, Rejected, Unchecked

ARRAYS: dict[str, Any] = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.weight": np.array([1.5, -2.0], np.float64),
    "half": np.array([0.5], np.float16),
    "count": np.array(7, np.int64),
    "index": np.array([1, 2], np.int32),
    "bytes": np.array([0, 255], np.uint8),
    "mask": np.array([True, False, True]),
    "empty": np.empty((0, 4), np.float32),
}


def raw_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_file_we_write_is_byte_for_byte_what_the_stock_writer_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save

    write_tensors(tmp_path / "ours", ARRAYS)
    stock = save(ARRAYS)
    assert (tmp_path / "ours").read_bytes() == stock


def test_the_stock_reader_reads_what_we_write(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write_tensors(tmp_path / "ours", ARRAYS, {"made": "here"})
    found = load_file(tmp_path / "ours")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }


def test_what_is_written_is_read_back_with_types_shapes_and_metadata(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "w", ARRAYS, {"made": "here"})
    with TensorFile(tmp_path / "w", size=digest.size) as file:
        assert file.metadata == {"made": "here"}
        for name, array in ARRAYS.items():
            assert file.array(name).dtype == array.dtype
            assert file.array(name).tolist() == array.tolist()


def test_the_digest_is_of_the_bytes_on_disk(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "w", ARRAYS)
    data = (tmp_path / "w").read_bytes()
    assert (digest.sha256, digest.size) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_a_file_written_over_another_holds_nothing_of_it(tmp_path: Path, size: int) -> None:
    new = write_tensors(tmp_path / "new", ARRAYS)
    unfinished(tmp_path / "over").write_bytes(b"\xff" * size)
    assert write_tensors(tmp_path / "over", ARRAYS) == new
    assert (tmp_path / "over").read_bytes() == (tmp_path / "new").read_bytes()
    assert not unfinished(tmp_path / "over").exists()


def test_a_file_is_not_written_over_bytes_that_have_another_name(tmp_path: Path) -> None:
    kept, old = tmp_path / "kept", unfinished(tmp_path / "new")
    kept.write_bytes(b"as the store has it" * 100)
    old.hardlink_to(kept)
    write_tensors(tmp_path / "new", ARRAYS)
    assert kept.read_bytes() == b"as the store has it" * 100


def test_bfloat16_is_widened_when_read_and_rounded_to_even_when_written(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    values = np.array([1.0, 1.00390625, 1.01171875, -3.1415927, 1e-40, 3.4e38], np.float32)
    layout = Layout((TensorSpec("w", "BF16", (6,)),))
    with TensorWriter(tmp_path / "w", layout) as writer:
        writer.write(values)
        writer.finish()
    expected = torch.from_numpy(values).to(torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "w")["w"], expected)
    with TensorFile(tmp_path / "w") as file:
        assert file.read("w").tolist() == expected.float().tolist()
    assert np.isnan(tensors.widen_bf16(to_stored(np.array([np.nan], np.float32), "BF16"))[0])


def test_pieces_cover_a_tensor_once(tmp_path: Path) -> None:
    values = np.arange(10_000, dtype=np.float32)
    write_tensors(tmp_path / "w", {"w": values})
    with TensorFile(tmp_path / "w") as file:
        pieces = [file.read("w", start, stop) for start, stop in file.pieces("w", 3000)]
        assert [len(piece) for piece in pieces] == [3000, 3000, 3000, 1000]
        assert np.concatenate(pieces).tolist() == values.tolist()


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "w", {"w": np.arange(10_000, dtype=np.float32)})
    with TensorFile(tmp_path / "w") as file:
        os.truncate(tmp_path / "w", digest.size - 4)
        assert file.read("w", 0, 10).tolist() == list(range(10))
        with pytest.raises(Rejected, match="become shorter"):
            file.read("w")


HEADER_TESTS = {
    "empty file": (b"", "header should have"),
    "length beyond the limit": (struct.pack("<Q", 1 << 40) + b"{}", "header should have 2 to"),
    "length beyond the file": (struct.pack("<Q", 100) + b"{}", "file ends before"),
    "a list": (struct.pack("<Q", 2) + b"[]", "begin with '{'"),
    "space first": (struct.pack("<Q", 3) + b" {}", "begin with '{'"),
    "not JSON": (struct.pack("<Q", 2) + b"{x", "JSON"),
    "not UTF-8": (struct.pack("<Q", 7) + b'{"\xff":1}', "UTF-8"),
    "a name twice": (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "twice"),
}


@pytest.mark.parametrize(("raw", "rule"), HEADER_TESTS.values(), ids=HEADER_TESTS.keys())
def test_a_header_that_is_no_safetensors_header_is_refused(tmp_path: Path, raw: bytes, rule: str) -> None:
    (tmp_path / "w").write_bytes(raw)
    with pytest.raises(Rejected, match=rule) as caught:
        TensorFile(tmp_path / "w")
    assert caught.value.code == "E_TENSORS"


ENTRY_TESTS: dict[str, tuple[object, bytes, str]] = {
    "unknown type": ({"w": entry("F8_E4M3", (4,), (0, 4))}, b"1234", "dtype should be one of"),
    "type is no text": ({"w": {**entry(), "dtype": ["F32"]}}, b"1234", "dtype should be one of"),
    "no entry": ({"w": 1}, b"", "expected dtype, shape"),
    "member more": ({"w": {**entry(), "x": 1}}, b"1234", "expected dtype, shape"),
    "negative shape": ({"w": entry(shape=(-1,))}, b"1234", "shape should be"),
    "shape of floats": ({"w": entry(shape=(1.0,))}, b"1234", "shape should be"),
    "shape of booleans": ({"w": entry(shape=(True,))}, b"1234", "shape should be"),
    "nine dimensions": ({"w": entry(shape=(1,) * 9)}, b"1234", "shape should be at most 8"),
    "three offsets": ({"w": entry(offsets=(0, 4, 8))}, b"1234", "two integers"),
    "offsets backwards": ({"w": entry(offsets=(4, 0))}, b"1234", "offsets -4"),
    "shape larger than offsets": ({"w": entry(shape=(1 << 40, 1 << 40))}, b"1234", "its shape takes"),
    "offsets beyond the file": ({"w": entry(shape=(2,), offsets=(0, 8))}, b"1234", "its data at 4"),
    "data left over": ({"w": entry()}, b"12345", "its data at 5"),
    "a gap": ({"v": entry(), "w": entry(offsets=(5, 9))}, b"123456789", "begins at 5"),
    "an overlap": ({"v": entry(), "w": entry(offsets=(2, 6))}, b"123456", "begins at 2"),
    "the same bytes twice": ({"v": entry(), "w": entry()}, b"1234", "begins at 0"),
    "long name": ({"w" * 600: entry()}, b"1234", "1 to 512 characters"),
    "no name": ({"": entry()}, b"1234", "1 to 512 characters"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
}


@pytest.mark.parametrize(("header", "data", "rule"), ENTRY_TESTS.values(), ids=ENTRY_TESTS.keys())
def test_a_false_claim_about_a_tensor_is_refused(
    tmp_path: Path, header: object, data: bytes, rule: str
) -> None:
    with pytest.raises(Rejected, match=rule) as caught:
        TensorFile(raw_file(tmp_path / "w", header, data))
    assert caught.value.code == "E_TENSORS"


def test_a_message_about_a_hostile_name_is_one_short_line_of_ascii(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as caught:
        TensorFile(raw_file(tmp_path / "w", {"\x1b[31m\n\u202e" * 90: entry("X")}))
    assert str(caught.value).isascii() and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_file_of_another_size_than_announced_is_refused(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "w", ARRAYS)
    with pytest.raises(Rejected, match=f"announced as {digest.size + 1} bytes"):
        TensorFile(tmp_path / "w", size=digest.size + 1)


def test_a_layout_that_differs_is_refused_and_every_difference_named(tmp_path: Path) -> None:
    write_tensors(
        tmp_path / "a",
        {"v": np.array([1], np.float32), "w": np.array([1], np.float32), "x": np.array([1], np.float32)},
    )
    write_tensors(
        tmp_path / "b",
        {"v": np.array([1], np.float64), "w": np.array([[1]], np.float32), "y": np.array([1], np.float32)},
    )
    with pytest.raises(Rejected) as caught:
        TensorFile(tmp_path / "b", expect=layout_of(tmp_path / "a"))
    assert caught.value.code == "E_LAYOUT"
    for words in ("'x' is missing", "'y' is not expected", "F32 [1], found F64", "F32 [1], found F32 [1, 1]"):
        assert words in caught.value.message


def test_the_order_of_tensors_is_free(tmp_path: Path) -> None:
    path = raw_file(
        tmp_path / "w", {"v": entry(offsets=(4, 8)), "w": entry()}, np.array([1, 2], np.float32).tobytes()
    )
    with TensorFile(path) as file:
        assert [spec.name for spec in file.layout.tensors] == ["w", "v"]
        assert (file.read("w")[0], file.read("v")[0]) == (1.0, 2.0)


def test_a_missing_file_and_a_folder_are_unchecked(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(Unchecked, match="cannot be read"):
            TensorFile(path)


def test_an_unfinished_file_leaves_nothing_behind(tmp_path: Path) -> None:
    layout = Layout((TensorSpec("w", "F32", (4,)),))
    with pytest.raises(Misuse, match="bytes were written"), TensorWriter(tmp_path / "w", layout) as writer:
        writer.write(np.zeros(2, np.float32))
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_more_values_than_the_layout_says_are_refused(tmp_path: Path) -> None:
    layout = Layout((TensorSpec("w", "F32", (1,)),))
    with pytest.raises(Misuse, match="0 left to write"), TensorWriter(tmp_path / "w", layout) as writer:
        writer.write(np.zeros(1, np.float32))
        writer.write(np.zeros(1, np.float32))


def test_values_of_another_type_than_a_buffer_are_refused(tmp_path: Path) -> None:
    layout = Layout((TensorSpec("n", "I64", (1,)),))
    with pytest.raises(Misuse, match="expected I64"), TensorWriter(tmp_path / "w", layout) as writer:
        writer.write(np.zeros(1, np.float32))


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    layout = Layout((TensorSpec("w", "F32", (1,)),))
    with pytest.raises(Unchecked, match="cannot be written") as caught:
        TensorWriter(tmp_path / "missing" / "w", layout)
    assert caught.value.code == "E_TENSORS_WRITE"


def test_a_closed_file_answers_no_more(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", ARRAYS)
    with TensorFile(tmp_path / "w") as file:
        pass
    with pytest.raises(Misuse):
        file.read("b.weight")
