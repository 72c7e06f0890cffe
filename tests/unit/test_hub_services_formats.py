"""Files are judged by their bytes: what runs code when loaded is refused, whatever its name."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.services.formats import HEAD_BYTES, check_content, check_safetensors
from storage.errors import Refused
from tests.unit.test_hub_services_arrow_types import PARQUET


def look(name: str, data: bytes) -> str:
    return check_content(name, len(data), lambda offset, length: data[offset : offset + length])


def reason(name: str, data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        look(name, data)
    assert (caught.value.code, caught.value.status) == ("E_UNSAFE_FORMAT", 422)
    assert caught.value.field is not None and caught.value.hint
    return caught.value


def safetensors(header: object, body: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def array(values: object, **options: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return stream.getvalue()


def tarred(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


class Calls:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("loaded",)


GOOD = safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [Calls(), {"weights": [1.0, 2.0], "name": "m"}], ids=["calls", "plain"])
@pytest.mark.parametrize("name", ["model.bin", "model.pt", "README.md", "model.safetensors", "config.json"])
def test_pickle_of_any_protocol_is_refused_under_any_name(protocol: int, value: object, name: str) -> None:
    assert "pickle" in reason(name, pickle.dumps(value, protocol=protocol)).message


def test_pickle_longer_than_the_window_is_refused() -> None:
    for protocol in range(6):
        data = pickle.dumps([Calls() for _ in range(20_000)], protocol=protocol)
        assert len(data) > HEAD_BYTES
        assert "pickle" in reason("model.bin", data).message


@pytest.mark.parametrize(
    "wrap",
    [gzip.compress, zlib.compress, bz2.compress, lzma.compress, lambda data: zipped(model__data__pkl=data)],
)
def test_pickle_in_a_wrapper_is_refused(wrap: object) -> None:
    assert "pickle" in reason("model.bin", wrap(pickle.dumps(Calls()))).message  # type: ignore[operator]


CALL = b"cos\nsystem\n(S'id'\ntR."
PADDED = b"S'" + b"a" * 3_000_000 + b"'\n0" + CALL


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        gzip.compress,
        zlib.compress,
        lambda data: b"\x58\x85" + zlib.compress(data, wbits=13)[2:],
        bz2.compress,
        lzma.compress,
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        lambda data: lzma.compress(
            data, lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, "lc": 1, "lp": 1, "pb": 0}]
        ),
        lambda data: zipped(model=data),
        lambda data: tarred("model", data),
        lambda data: gzip.compress(b"") * 50 + bytes(70_000) + gzip.compress(data),
        lambda data: bz2.compress(b"") + bz2.compress(data),
        lambda data: lzma.compress(b"") + lzma.compress(data),
        lambda data: gzip.compress(data)[:-8] + b"broken at the end",
    ],
)
def test_call_far_inside_is_found(wrap: Callable[[bytes], bytes]) -> None:
    assert "is a pickle" in reason("model.bin", wrap(PADDED)).message


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_every_member_of_a_compressed_tar_is_looked_at(compress: Callable[[bytes], bytes]) -> None:
    images = {f"{n}.bin": random.Random(n).randbytes(30_000) for n in range(20)}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in (images | {"weights": PADDED}).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found = reason("data.tar.gz", compress(stream.getvalue()))
    assert "data.tar.gz/weights" in found.message and "is a pickle" in found.message
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        end = archive.getmember("weights").offset
    assert look("data.tar.gz", compress(stream.getvalue()[:end] + bytes(10_240))) == "compressed"


def test_call_in_a_block_that_gives_its_first_byte_at_its_end_is_found() -> None:
    data = bz2.compress(CALL + random.Random(1).randbytes(800_000))
    assert "is a pickle" in reason("model.bz2", data).message


def test_call_before_a_fault_is_found() -> None:
    data = bytearray(gzip.compress(CALL.ljust(5000, b"N") + random.Random(1).randbytes(20_000)))
    data[6_000:] = b"\xff" * 20_000
    assert "is a pickle" in reason("model.gz", bytes(data)).message


def test_what_takes_much_to_unpack_is_refused_and_not_taken_for_something_else() -> None:
    large = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    assert "memory" in reason("m.xz", lzma.compress(CALL, filters=large)).message
    empty = gzip.compress(b"")
    named = empty[:3] + b"\x08" + empty[4:10] + b"name" * 250 + b"\0" + empty[10:]
    assert gzip.decompress(named) == b""
    assert "nothing comes out" in reason("m.gz", named * 5000).message
    assert "more" in reason("m.gz", (empty * 1000 + gzip.compress(b"N")) * 110).message
    words = gzip.compress(b"V" + bytes(300 << 20), 1)
    assert "more" in reason("m.gz", words).message


@pytest.mark.parametrize("text", [b"The quick brown fox. ", b"Version 1.0\n", b"Bread, butter\n", b"I am. "])
@pytest.mark.parametrize("wrap", [gzip.compress, bz2.compress, lzma.compress, lambda data: zipped(a=data)])
def test_compressed_text_is_not_taken_for_a_pickle(text: bytes, wrap: Callable[[bytes], bytes]) -> None:
    assert look("texts.csv.gz", wrap(text * 20_000)) in ("compressed", "archive")


def test_bytes_that_look_compressed_by_chance_are_plain() -> None:
    for head in (b"\x78\x9c", b"\x1f\x8b", b"BZh9", b"\x5d\x00\x00\x80\x00" + b"\xff" * 8, bytes(20)):
        assert look("weights.bin", head + b"\xff" * 5000) == "plain"
    assert look("zeros.bin", bytes(100_000)) in ("plain", "compressed")


def test_torch_archive_is_refused_with_the_way_to_convert_it() -> None:
    torch_like = zipped(
        archive__data=b"\x00" * 64, **{"archive__data.pkl": pickle.dumps({"w": 1}, protocol=2)}
    )
    error = reason("pytorch_model.bin", torch_like)
    assert "data.pkl" in error.message and "safetensors" in error.hint


def test_old_torch_tar_is_refused() -> None:
    assert "pickle" in reason("m.tar", tarred("pickle", pickle.dumps(Calls()))).message


def test_tar_of_the_oldest_form_is_looked_into() -> None:
    """It has no mark: a reader, torch's too, knows it by the sum over its header."""
    data = bytearray(tarred("pickle", pickle.dumps(Calls())))
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        assert archive.getnames() == ["pickle"]
    assert "pickle" in reason("m.tar", bytes(data)).message


def test_archive_behind_other_bytes_is_looked_into() -> None:
    assert "pickle" in reason("m.bin", b"#!/bin/sh\n" + zipped(data=pickle.dumps(Calls()))).message


def test_archive_behind_a_sound_safetensors_header_is_looked_into() -> None:
    """Its bytes are the last tensor's, and whoever finds archives by their end opens it."""
    hidden = zipped(data=pickle.dumps(Calls()))
    data = safetensors(
        {"w": {"dtype": "U8", "shape": [len(hidden)], "data_offsets": [0, len(hidden)]}}, hidden
    )
    assert zipfile.is_zipfile(io.BytesIO(data))
    for name in ("model.safetensors", "model.bin"):
        assert "pickle" in reason(name, data).message


def test_archives_nested_too_deep_are_refused() -> None:
    data = b"text"
    for _ in range(4):
        data = zipped(inner=data)
    reason("m.zip", data)


def test_compression_that_cannot_be_opened_is_refused() -> None:
    reason("m.joblib", b"\x04\x22\x4d\x18" + bytes(20))
    reason("m.zst", b"\x28\xb5\x2f\xfd" + bytes(20))


def test_broken_archive_is_refused() -> None:
    reason("m.zip", zipped(a=b"x" * 1000)[:-40])
    damaged = bytearray(zipped(a=b"x" * 1000))
    damaged[33] ^= 0xFF
    reason("m.zip", bytes(damaged))


def test_object_array_is_refused_and_number_array_is_not() -> None:
    assert (
        "Python objects"
        in reason("a.npy", array(np.array([Calls()], dtype=object), allow_pickle=True)).message
    )
    fields = np.dtype([("number", "<f4"), ("thing", "O")])
    reason("a.npy", array(np.zeros(2, fields), allow_pickle=True))
    assert look("a.npy", array(np.zeros((3, 2), np.float32))) == "npy"
    assert look("a.npy", array(np.zeros(2, np.dtype([("Offset", "<f4"), ("Other", "<i8", (3,))])))) == "npy"


def test_npz_with_an_object_array_is_refused_and_plain_npz_is_not() -> None:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(3), b=np.array([{}], dtype=object))
    reason("a.npz", stream.getvalue())
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(3))
    assert look("a.npz", stream.getvalue()) == "archive"


def keras(description: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("config.json", description)
        archive.writestr("model.weights.npz", zipped(a=b"1"))
    return stream.getvalue()


@pytest.mark.parametrize(
    "description",
    [
        {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "4wEA"}},
        {"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda"}]}, "pad": "x" * 100_000},
        {"module": "os", "class_name": "function", "config": "system"},
    ],
)
def test_keras_archive_is_refused_also_without_hdf5(description: dict[str, object]) -> None:
    found = reason("m.zip", keras(json.dumps(description).encode()))
    assert "Keras" in found.message and "safetensors" in found.hint
    found = reason("m.zip", keras(json.dumps(description).encode("utf-16")))
    assert "Keras" in found.message


def test_archive_with_a_description_that_keras_does_not_read_is_an_archive() -> None:
    for description in (b'{"architectures": ["BertModel"]}', b"no json", b"[]", b"\xff"):
        data = keras(description)
        assert (
            check_content("m.zip", len(data), lambda at, length, data=data: data[at : at + length])
            == "archive"
        )
    assert "larger than" in reason("m.zip", keras(b" " * ((16 << 20) + 1))).message


def test_table_with_a_column_that_a_pickle_describes_is_refused() -> None:
    found = reason("train.parquet", PARQUET)
    assert "CVE-2023-47248" in found.message and "columns" in found.hint


def test_hdf5_is_refused() -> None:
    assert "HDF5" in reason("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(100)).message


@pytest.mark.parametrize("before", [512, 1024, HEAD_BYTES, HEAD_BYTES * 4])
def test_hdf5_behind_a_block_of_the_users_own_is_refused(before: int) -> None:
    """Its readers look for the mark at 512, 1024, 2048, … bytes, whatever stands before."""
    data = b"#" * before + b"\x89HDF\r\n\x1a\n" + bytes(100)
    assert "HDF5" in reason("weights.bin", data).message
    entry = {"dtype": "U8", "shape": [], "data_offsets": [0, 0]}
    header = json.dumps({"w": entry | {"shape": [2 * before], "data_offsets": [0, 2 * before]}}).encode()
    padded = header.ljust(before - 8)  # so that the tensor begins at this very place
    sound = len(padded).to_bytes(8, "little") + padded + data[before:].ljust(2 * before, b"\0")
    check_safetensors("a", len(sound), lambda offset, length: sound[offset : offset + length])
    assert "HDF5" in reason("model.safetensors", sound).message


@pytest.mark.parametrize(
    "text",
    [
        "# A model\n\nTrained on digits.\n",
        '{"a": [1, 2.5, null]}',
        "cache\ntmp\n.idea\n",
        "confusion\nmatrix\nRead.",
        "I am\n.",
        "",
        ".",
        "N.",
        "x^2 is a parabola",
        "BZh is no archive",
    ],
)
def test_text_is_not_taken_for_a_pickle(text: str) -> None:
    assert look("README.md", text.encode()) == "plain"


@given(st.text(max_size=400))
def test_text_made_at_random_is_not_taken_for_a_pickle_that_calls(text: str) -> None:
    try:
        look("notes.txt", text.encode())
    except Refused as error:  # a text that a loader would follow to its end is one
        assert "pickle" in error.message or "compressed" in error.message


@given(st.binary(max_size=600))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    for name in ("a.bin", "a.safetensors"):
        try:
            look(name, data)
        except Refused as error:
            assert error.code == "E_UNSAFE_FORMAT"


def test_sound_safetensors_is_accepted() -> None:
    assert look("model.safetensors", GOOD) == "safetensors"
    assert look("a.safetensors", safetensors({"__metadata__": {"format": "pt"}}, b"")) == "safetensors"
    empty = {"w": {"dtype": "F16", "shape": [0, 4], "data_offsets": [0, 0]}}
    assert look("a.safetensors", safetensors(empty, b"")) == "safetensors"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"short", "too few"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "claims"),
        ((2).to_bytes(8, "little") + b"[]", "not an object"),
        ((2).to_bytes(8, "little") + b"{,", "not JSON"),
        (GOOD + b"\0", "end at byte"),
        (GOOD[:-1], "end at byte"),
        (
            safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
            "expected 0",
        ),
        (safetensors({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)), "do not fit"),
        (
            safetensors({"w": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
            "unknown dtype",
        ),
        (safetensors({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)), "malformed"),
        (
            safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, True]}}, bytes(8)),
            "malformed",
        ),
        (safetensors({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)), "exactly"),
        (safetensors({"__metadata__": {"a": 1}}, b""), "text only"),
    ],
)
def test_unsound_safetensors_is_refused(data: bytes, found: str) -> None:
    assert found in reason("model.safetensors", data).message


def test_safetensors_with_overlapping_tensors_is_refused() -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert "expected 8" in reason("m.safetensors", safetensors({"a": entry, "b": entry}, bytes(8))).message


def test_safetensors_with_a_repeated_name_is_refused() -> None:
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    with pytest.raises(Refused, match="unique"):
        data = len(header).to_bytes(8, "little") + header + b"\0"
        check_safetensors("m.safetensors", len(data), lambda offset, length: data[offset : offset + length])
