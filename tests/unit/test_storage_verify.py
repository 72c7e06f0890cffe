"""The report of a verification: steps as data, what was not checked, limits, and the reader's own state."""

import json
import os
from pathlib import Path

import pytest

from storage import pack_files
from storage.encoding import b64
from storage.errors import STEPS as STEP_CODES
from storage.errors import Exit, Misuse, Rejected, Unchecked
from storage.report import STEP_NAMES, Finding, Recorder
from storage.saved_checkpoint import read_state, save_state
from storage.verify import STEPS, examine, verify
from tests.simulators import LABS, NOW, Story, tell_story, write_files


@pytest.fixture(scope="module")
def told() -> Story:
    return tell_story(labs=LABS[:2], rounds=1)


@pytest.fixture
def pack(told: Story, tmp_path: Path) -> Path:
    return write_files(tmp_path / "pack", told.alliance.export(told.model.asset_id))


def test_there_are_fifteen_steps_with_names_in_their_order() -> None:
    assert [step.__name__.split("_")[1] for step in STEPS] == [f"v{number}" for number in range(1, 16)]
    assert len(STEP_NAMES) == len(STEPS) == len(STEP_CODES)


def test_a_report_without_options_says_what_was_not_checked(told: Story, pack: Path) -> None:
    report = verify(pack, told.alliance.trust(), now=NOW)
    assert (report.ok, report.exit) == (True, Exit.DONE)
    assert report.not_checked == (
        "V4 rollback and split view (no checkpoint saved)",
        "V12 files (no --files)",
        "V13 a use (no --use)",
    )
    assert [step.outcome for step in report.steps].count("not checked") == 2
    assert report.lines()[-1].startswith("VERIFIED as of 2026-11-18T")
    assert "not checked: 3" in report.lines()[-1]
    assert report.as_json()["checkpoint"]["size"] == len(told.alliance.leaves)


def test_a_failed_verification_raises_for_callers_who_go_on_only_when_all_holds(
    told: Story, pack: Path
) -> None:
    (pack / "checkpoint").unlink()
    with pytest.raises(Rejected, match="E_MALFORMED") as caught:
        verify(pack, told.alliance.trust(), now=NOW)
    assert caught.value.step == "V2"
    report = examine(pack, told.alliance.trust(), now=NOW)
    assert (report.exit, report.steps[-1].code, report.steps[-1].outcome) == (
        Exit.REFUSED,
        "E_MALFORMED",
        "failed",
    )
    assert len(report.steps) == 2
    assert report.summary == "REFUSED by V2: E_MALFORMED; not taken: V3 to V15"
    assert (report.assets, report.size) == ((), 0)


def test_the_level_is_required_of_what_the_pack_is_about(told: Story, pack: Path, tmp_path: Path) -> None:
    trust = told.alliance.trust()
    for level in ("SIGNED", "TRAINED", "APPROVED"):
        assert examine(pack, trust, now=NOW, require=level).ok
    report = examine(pack, trust, now=NOW, require="GRANTED")
    assert report.error is not None
    assert report.error.code == "E_LEVEL"
    assert examine(pack, trust, now=NOW, require="GRANTED", use=told.use).ok
    base = write_files(tmp_path / "base", told.alliance.export(told.base.asset_id))
    report = examine(base, trust, now=NOW, require="TRAINED")
    assert report.error is not None
    assert report.error.code == "E_LEVEL"
    dataset = write_files(tmp_path / "dataset", told.alliance.export(told.datasets[LABS[0]]))
    assert examine(dataset, trust, now=NOW, require="SIGNED").ok


def test_the_level_of_other_files_is_not_taken_for_that_of_the_pack(
    told: Story, pack: Path, tmp_path: Path
) -> None:
    files = {**told.files, "model.safetensors": b"weights 0"}
    folder = write_files(tmp_path / "base-files", files)
    report = examine(pack, told.alliance.trust(), now=NOW, files=folder, require="APPROVED")
    assert report.error is not None
    assert report.error.code == "E_LEVEL"


def test_without_the_manifest_the_last_aggregate_is_named_as_not_checked(told: Story, pack: Path) -> None:
    (pack / "assets" / told.model.asset_id / "manifest.json").unlink()
    report = examine(pack, told.alliance.trust(), now=NOW)
    assert report.ok
    assert any("last aggregate" in part for part in report.not_checked)


def test_other_files_in_the_folder_are_not_read(told: Story, pack: Path) -> None:
    (pack / "README.txt").write_text("hello")
    os.symlink("/etc/passwd", pack / "extra")
    assert examine(pack, told.alliance.trust(), now=NOW).ok


@pytest.mark.parametrize("name", ["MAX_FILES", "MAX_PACK_BYTES"])
def test_a_pack_beyond_the_limits_is_refused_before_it_is_read(
    told: Story, pack: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(pack_files, name, 10)
    report = examine(pack, told.alliance.trust(), now=NOW)
    assert report.error is not None
    assert (report.error.code, report.steps[-1].id) == ("E_LIMIT", "V1")


@pytest.mark.parametrize(
    "path",
    [
        "checkpoint",
        "statements/{id}.sigstore.json",
        "proofs/{id}.tlog-proof",
        "keyrings/owner.example/1.root.json",
    ],
)
def test_a_file_larger_than_its_limit_is_refused(told: Story, pack: Path, path: str) -> None:
    target = pack / path.format(id=told.grant)
    target.write_bytes(target.read_bytes() + b" " * (5 << 20))
    report = examine(pack, told.alliance.trust(), now=NOW)
    assert report.error is not None
    assert report.error.code == "E_LIMIT"


@pytest.mark.parametrize("text", ["{}", "[1]", '["x"]', "[", '{"a":1,"a":2}', f'["{b64(b"short")}"]'])
def test_a_damaged_consistency_file_is_the_packs_fault(
    told: Story, pack: Path, tmp_path: Path, text: str
) -> None:
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"size": 3, "root": "00" * 32}))
    (pack / "consistency.json").write_text(text)
    report = examine(pack, told.alliance.trust(), now=NOW, state=state)
    assert report.error is not None
    assert (report.error.code, report.steps[-1].id) == ("E_INCONSISTENT", "V4")


def test_the_same_checkpoint_again_is_accepted_whatever_consistency_file_lies_there(
    told: Story, tmp_path: Path
) -> None:
    story = told.fork()
    old = story.alliance.checkpoint
    story.alliance.status(LABS[0])
    files = story.alliance.export(story.model.asset_id, consistency=story.alliance.consistency(old.size))
    pack, state = write_files(tmp_path / "p", files), tmp_path / "state.json"
    report = examine(pack, story.alliance.trust(), now=NOW, state=state)
    save_state(state, report)
    assert examine(pack, story.alliance.trust(), now=NOW, state=state).ok


# --- the state file ---------------------------------------------------------------------------------------


def test_a_state_file_is_written_and_read_back(told: Story, pack: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert read_state(path) is None
    save_state(path, examine(pack, told.alliance.trust(), now=NOW))
    found = read_state(path)
    assert found is not None
    assert (found.size, found.root) == (told.alliance.checkpoint.size, told.alliance.checkpoint.root)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pack", "state.json"]


def test_the_checkpoint_of_a_refused_pack_is_never_saved(told: Story, pack: Path, tmp_path: Path) -> None:
    (pack / "checkpoint").unlink()
    with pytest.raises(Misuse):
        save_state(tmp_path / "state.json", examine(pack, told.alliance.trust(), now=NOW))
    assert not (tmp_path / "state.json").exists()


def test_a_state_file_that_cannot_be_written_is_said_so(told: Story, pack: Path, tmp_path: Path) -> None:
    report = examine(pack, told.alliance.trust(), now=NOW)
    with pytest.raises(Unchecked, match="E_INPUT"):
        save_state(tmp_path / "no" / "folder" / "state.json", report)


def test_a_state_of_size_zero_means_nothing_saved(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"size": 0, "root": "00" * 32}))
    assert read_state(path) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"size":1}',
        '{"size":-1,"root":"' + "0" * 64 + '"}',
        '{"size":true,"root":"' + "0" * 64 + '"}',
        '{"size":1,"root":"00"}',
        '{"size":1.5,"root":"' + "0" * 64 + '"}',
        "[]",
        "null",
    ],
)
def test_a_damaged_state_file_is_the_readers_own_fault(
    told: Story, pack: Path, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(Unchecked, match="E_INPUT"):
        examine(pack, told.alliance.trust(), now=NOW, state=path)


def test_steps_are_recorded_in_order() -> None:
    recorder = Recorder()
    recorder.hold(1, Finding("x"))
    with pytest.raises(Misuse):
        recorder.hold(3, Finding("x"))
