"""Parsers of outside bytes raise our errors and no others."""

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.plan import make_config, read_config, read_model_config
from federation.recipes.rows import read_rows
from federation.tensors import TensorFile, write_tensors
from storage.errors import FedhubError

IMAGE = {
    "classes": 10,
    "height": 8,
    "width": 8,
    "channels": 1,
    "filters": 0,
    "hidden": 16,
    "pixelMax": 16,
    "epochs": 1,
    "batch": 8,
    "learningRate": "0.1",
    "momentum": "0",
    "proximalMu": "0",
}
CONFIG = make_config("image-classification", IMAGE, quorum=2)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def edited(raw: bytes) -> st.SearchStrategy[bytes]:
    """A valid file with a few bytes put elsewhere, changed or cut out."""
    edits = st.lists(
        st.tuples(st.integers(0, len(raw)), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4
    )

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        data = raw
        for place, cut, new in changes:
            data = data[:place] + new + data[place + cut :]
        return data

    return edits.map(apply)


def read_file(raw: bytes, reader: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(raw)
        try:
            reader(path)
        except FedhubError:
            return


def read_tensors(path: Path) -> None:
    with TensorFile(path) as file:
        for spec in file.layout.tensors:
            assert file.array(spec.name).shape == spec.shape


def valid_tensors() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(
            Path(folder, "w"), {"a": np.array([[1, 2]], np.float32), "b": np.array(3, np.int64)}, {"k": "v"}
        )
        return Path(folder, "w").read_bytes()


@settings(max_examples=300)
@given(st.binary(max_size=200) | edited(valid_tensors()))
def test_bytes_that_are_no_tensors_raise_only_our_errors(raw: bytes) -> None:
    read_file(raw, read_tensors)


entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(("F32", "BF16", "BOOL", "F8", "I64")) | json_values,
        "shape": st.lists(st.integers(-1, 1 << 66), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | json_values,
    },
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(max_size=4), entries | json_values, max_size=3), st.binary(max_size=40))
def test_headers_that_lie_raise_only_our_errors(header: dict[str, object], data: bytes) -> None:
    text = json.dumps(header).encode("utf-8", "replace")
    read_file(struct.pack("<Q", len(text)) + text + data, read_tensors)


@pytest.mark.parametrize("reader", [read_config, read_model_config])
def test_bytes_that_are_no_config_raise_only_our_errors(reader: Callable[[bytes], object]) -> None:
    @settings(max_examples=200)
    @given(
        st.binary(max_size=60) | edited(CONFIG) | json_values.map(lambda value: json.dumps(value).encode())
    )
    def check(raw: bytes) -> None:
        try:
            reader(raw)
        except FedhubError:
            return

    check()


@settings(max_examples=200)
@given(st.sampled_from(sorted(json.loads(CONFIG))), json_values)
def test_any_value_in_any_field_is_read_or_named(field: str, value: object) -> None:
    config = {**json.loads(CONFIG), field: value}
    try:
        read_config(
            json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
                "utf-8", "replace"
            )
        )
    except FedhubError as error:
        assert error.code in ("E_CONFIG", "E_LIMIT") and len(str(error)) < 2000


@settings(max_examples=300)
@given(st.binary(max_size=80) | edited(b"label,p00,p01\n1,2,3\n0,4.5,-1e3\n"))
def test_bytes_that_are_no_rows_raise_only_our_errors(raw: bytes) -> None:
    read_file(raw, lambda path: read_rows(path, ("p00", "p01"), 2))
