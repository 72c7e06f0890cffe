"""Bundles changed at random are refused by name or read as what they say; nothing else comes out."""

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from federation.app_bundle import CONTENT, read_bundle, unpack
from storage.encoding import sha256_hex
from storage.errors import Rejected
from tests.unit.test_federation_app_bundle import FILES, pack

GOOD = pack()


def read_or_refused(raw: bytes) -> bool:
    """Whether it reads, and then as files whose digests its own list names."""
    try:
        bundle = read_bundle(raw)
    except Rejected as error:
        assert error.code == "E_APP"
        return False
    assert all(each.sha256 == sha256_hex(each.data) for each in bundle.files)
    assert bundle.sha256 == sha256_hex(raw)
    return True


@settings(max_examples=300)
@given(st.data())
def test_a_bundle_with_bytes_changed_is_refused_or_holds_the_same_files(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if read_or_refused(bytes(raw)):
        assert {each.name: each.data for each in read_bundle(bytes(raw)).files} == FILES


@settings(max_examples=150)
@given(st.binary(max_size=400), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
def test_cut_joined_and_random_bytes_are_refused_by_name(noise: bytes, start: int, end: int) -> None:
    for raw in (noise, GOOD[:start], GOOD[start:end] + noise, noise + GOOD, GOOD + noise):
        read_or_refused(raw)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=30)


@settings(max_examples=150)
@given(st.dictionaries(NAMES, st.binary(max_size=40), max_size=4))
def test_whatever_reads_is_unpacked_below_its_folder(files: dict[str, bytes]) -> None:
    import tempfile

    named = {name: data for name, data in files.items() if "\x00" not in name and name != CONTENT}
    raw = pack({**FILES, **named})
    if not read_or_refused(raw):
        return
    with tempfile.TemporaryDirectory() as place:
        unpack(read_bundle(raw), Path(place) / "code")
        found = {path.relative_to(Path(place, "code")).as_posix() for path in Path(place).rglob("*")}
        files_found = {name for name in found if (Path(place) / "code" / name).is_file()}
        assert files_found == {each.name for each in read_bundle(raw).files}


def test_two_thousand_random_edits_raise_nothing_else() -> None:
    numbers = random.Random(20261125)
    read = 0
    for _ in range(2_000):
        raw = bytearray(GOOD)
        for _ in range(numbers.randrange(1, 3)):
            raw[numbers.randrange(len(raw))] ^= 1 << numbers.randrange(8)
        read += read_or_refused(bytes(raw))
    assert read < 2_000
