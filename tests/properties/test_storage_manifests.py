"""Manifests keep what they are given, in one order, under one spelling."""

import hashlib
import tempfile
from pathlib import Path

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from storage.encoding import canonical
from storage.errors import Rejected
from storage.manifests import MANIFEST_TYPE, PART_BYTES, build_manifest, check_names, read_manifest

NAME = "owner.example/m"
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
PARTS = st.text(st.sampled_from("abAB-_.é "), min_size=1, max_size=4)
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


def accepted(names: list[str]) -> bool:
    try:
        check_names(names)
    except Rejected as error:
        assert error.code == "E_PATH"
        return False
    return True


@given(st.lists(PATHS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_verdict_on_names_does_not_depend_on_their_order(names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert accepted(names) == accepted(shuffled)


@given(st.lists(PATHS, min_size=1, max_size=5))
def test_accepted_names_stay_apart_where_case_is_ignored(names: list[str]) -> None:
    assume(accepted(names))
    assert len({name.casefold() for name in names}) == len(names)
    folded = {name.casefold() for name in names}
    assert not any(other.startswith(name + "/") for name in folded for other in folded)


@given(
    st.dictionaries(PATHS, st.tuples(DIGESTS, st.integers(0, 3 * PART_BYTES)), min_size=1, max_size=5),
    st.none() | DIGESTS,
    st.data(),
)
def test_manifest_reads_back_what_it_was_made_of(
    files: dict[str, tuple[str, int]], salt: str | None, data: st.DataObject
) -> None:
    assume(accepted(list(files)))
    entries = []
    for name in sorted(files, key=lambda name: name.split("/")):
        digest, size = files[name]
        entry: dict[str, object] = {"name": name, "sha256": digest, "size": size}
        if size > PART_BYTES:
            count = -(-size // PART_BYTES)
            entry["parts"] = data.draw(st.lists(DIGESTS, min_size=count, max_size=count))
        entries.append(entry)
    document = {"files": entries, "name": NAME, "type": MANIFEST_TYPE} | ({"salt": salt} if salt else {})
    made = read_manifest(canonical(document))
    assert {found.name: (found.sha256, found.size) for found in made.files} == files
    assert (made.salt, made.name) == (salt, NAME)


@settings(max_examples=50)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.binary(max_size=30), min_size=1, max_size=4)
)
def test_asset_id_depends_on_content_and_not_on_when_files_were_made(files: dict[str, bytes]) -> None:
    ids = set()
    for order in (sorted(files), sorted(files, reverse=True)):
        with tempfile.TemporaryDirectory() as folder:
            for name in order:
                (Path(folder) / name).write_bytes(files[name])
            made = build_manifest(Path(folder), NAME)
            ids.add(made.asset_id)
            assert {found.name: found.sha256 for found in made.files} == {
                name: hashlib.sha256(content).hexdigest() for name, content in files.items()
            }
    assert len(ids) == 1


@settings(max_examples=300)
@given(st.data())
def test_edited_byte_of_a_manifest_is_rejected_or_another_asset(data: st.DataObject) -> None:
    entries = [{"name": "a", "sha256": "0" * 64, "size": 1}]
    raw = canonical({"files": entries, "name": NAME, "type": MANIFEST_TYPE, "salt": "1" * 64})
    place, byte = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 255))
    edited = raw[:place] + bytes([byte]) + raw[place + 1 :]
    try:
        found = read_manifest(edited)
    except Rejected:
        return
    assert (found == read_manifest(raw)) == (edited == raw) == (found.asset_id == read_manifest(raw).asset_id)
