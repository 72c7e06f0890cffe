"""Any byte of a pack that changes is found out, and an archive from outside cannot do harm."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import FedhubError, Rejected
from storage.pack import unzip_pack, write_pack, zip_pack
from storage.trust import Trust
from storage.verify import examine
from tests.simulators import LABS, NOW, OWNER, Story, tell_story, write_files

SLOW = settings(
    max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Bench:
    """One pack on disk, verified with everything an auditor can give, whose files change one at a time."""

    def __init__(self, place: Path) -> None:
        story = tell_story(labs=LABS[:2], rounds=1)
        old = story.alliance.checkpoint
        story.alliance.rotate(OWNER)
        story.alliance.status(OWNER)
        self.story: Story = story
        self.files = story.alliance.export(
            story.model.asset_id, consistency=story.alliance.consistency(old.size)
        )
        self.pack = write_files(place / "pack", self.files)
        state = place / "state.json"
        state.write_text(json.dumps({"size": old.size, "root": old.root.hex()}))
        self.trust: Trust = story.alliance.trust()
        self.options: dict[str, Any] = {
            "now": NOW,
            "files": story.write_model(place / "files"),
            "use": story.use,
            "state": state,
            "require": "APPROVED",
        }

    def verdict(self) -> str:
        report = examine(self.pack, self.trust, **self.options)
        return report.error.code if report.error else "ACCEPTED"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("bench"))
    assert made.verdict() == "ACCEPTED"
    return made


@SLOW
@given(data=st.data())
def test_a_pack_with_one_changed_byte_is_refused_or_says_the_same(bench: Bench, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(bench.files)))
    raw = bench.files[path]
    place = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(1, 255))
    changed = raw[:place] + bytes([raw[place] ^ byte]) + raw[place + 1 :]
    (bench.pack / path).write_bytes(changed)
    try:
        if bench.verdict() == "ACCEPTED":
            assert json.loads(changed) == json.loads(raw), "more than white space between members changed"
    finally:
        (bench.pack / path).write_bytes(raw)


@SLOW
@given(data=st.data())
def test_a_pack_with_a_file_cut_short_is_refused(bench: Bench, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(bench.files)))
    raw = bench.files[path]
    (bench.pack / path).write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    try:
        assert bench.verdict() != "ACCEPTED"
    finally:
        (bench.pack / path).write_bytes(raw)


def test_a_pack_without_any_one_of_its_files_never_shows_more(bench: Bench) -> None:
    whole = examine(bench.pack, bench.trust, **bench.options)
    accepted = set()
    for path, raw in bench.files.items():
        (bench.pack / path).unlink()
        report = examine(bench.pack, bench.trust, **bench.options)
        (bench.pack / path).write_bytes(raw)
        if report.ok:
            accepted.add(path)
            for asset in report.assets:
                assert asset in whole.assets
    # What may be absent without making anything untrue: opinions and uses beside the way to this version.
    evidence = bench.story.alliance.evidence()
    entries = [evidence.get(Path(path).name.split(".")[0]) for path in accepted]
    assert {entry.kind for entry in entries if entry} <= {
        "grant",
        "receipt",
        "status",
        "test-result",
        "verdict",
    }
    assert not {path for path in accepted if path.startswith(("keyrings/", "proofs/", "checkpoint"))}


# --- archives ---------------------------------------------------------------------------------------------

PATHS = st.one_of(
    st.just("checkpoint"),
    st.just("consistency.json"),
    st.from_regex(r"\A(statements/[0-9a-f]{64}\.sigstore\.json)\Z"),
    st.from_regex(r"\A(proofs/[0-9a-f]{64}\.tlog-proof)\Z"),
    st.from_regex(r"\A(assets/[0-9a-f]{64}/manifest\.json)\Z"),
    st.from_regex(r"\Akeyrings/[a-z][a-z0-9.-]{0,20}/[1-9]\.root\.json\Z"),
)


@given(files=st.dictionaries(PATHS, st.binary(max_size=2000), max_size=8))
def test_a_pack_survives_its_archive_and_the_same_files_give_the_same_bytes(files: dict[str, bytes]) -> None:
    raw = zip_pack(files)
    assert unzip_pack(raw) == files
    assert zip_pack(dict(reversed(files.items()))) == raw


@given(
    data=st.data(), files=st.dictionaries(PATHS, st.binary(min_size=1, max_size=200), min_size=1, max_size=3)
)
def test_a_damaged_archive_is_refused_or_unpacks_to_paths_of_a_pack(
    data: st.DataObject, files: dict[str, bytes]
) -> None:
    raw = bytearray(zip_pack(files))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unzip_pack(bytes(raw))
    except FedhubError:
        return
    assert all(not path.startswith("/") and ".." not in path.split("/") for path in found)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../checkpoint", "E_PATH"),
        ("/checkpoint", "E_PATH"),
        ("statements/../checkpoint", "E_PATH"),
        ("statements\\x", "E_PATH"),
        ("statements/", "E_PATH"),
        ("keyrings/../../x/1.root.json", "E_PATH"),
        (f"statements/{'0' * 64}.sigstore.json\n", "E_PATH"),
        (f"statements/{'٠' * 64}.sigstore.json", "E_PATH"),
        ("keyrings/lab-a.example/01.root.json", "E_PATH"),
        ("trust.json", "E_PATH"),
    ],
)
def test_an_archive_with_a_path_that_is_no_packs_is_refused(tmp_path: Path, path: str, code: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(path, b"x")
    with pytest.raises(Rejected) as caught:
        unzip_pack(buffer.getvalue())
    assert caught.value.code == code
    with pytest.raises(Rejected):
        write_pack(tmp_path / "pack", {path: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_unpacks_to_more_than_a_file_may_be_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("checkpoint", bytes(1 << 24))
    assert len(buffer.getvalue()) < 1 << 16
    with pytest.raises(Rejected, match="E_LIMIT"):
        unzip_pack(buffer.getvalue())


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_archive_with_a_path_twice_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("checkpoint", b"x")
        archive.writestr("checkpoint", b"y")
    with pytest.raises(Rejected, match="E_PATH"):
        unzip_pack(buffer.getvalue())


@pytest.mark.parametrize("raw", [b"", b"PK", b"not a zip", bytes(100)])
def test_what_is_no_archive_is_refused(raw: bytes) -> None:
    with pytest.raises(Rejected, match="E_MALFORMED"):
        unzip_pack(raw)
