"""The demo's parts that need no process: its data, its alterations of a pack, its view of memory."""

import time
from collections import Counter
from pathlib import Path

import pytest

from hub.demo import attacks, digits
from hub.demo.alliance import Alliance, check_ours, clear, lock
from hub.demo.memory import CLASSES, MemoryWatch
from hub.terminal import Terminal
from storage.errors import Exit, Refused, Unchecked


def test_the_split_is_the_same_every_time_and_holds_every_row_once() -> None:
    first, second = digits.split(), digits.split()
    assert first == second
    rows = [tuple(row) for parts in first.values() for part in parts.values() for row in part]
    assert len(rows) == 1797
    assert Counter(rows) == Counter(tuple(row) for row in digits._bundled_rows())


def test_every_lab_knows_every_digit_and_is_at_home_with_its_own() -> None:
    for lab, home in digits.HOME_DIGITS.items():
        counts = Counter(row[0] for row in digits.split()[lab]["train"])
        assert set(counts) == set(range(10))
        assert sum(counts[digit] for digit in home) > 0.85 * sum(counts.values())


def test_the_files_are_written_once_and_read_back(tmp_path: Path) -> None:
    digits.write_split(tmp_path)
    path = tmp_path / "lab-b" / "heldout.csv"
    assert path.read_text().splitlines()[0] == ",".join(digits.HEADER)
    assert digits.read_rows(path) == digits.split()["lab-b"]["heldout"]
    path.write_text("kept")
    digits.write_split(tmp_path)
    assert path.read_text() == "kept", "a lab's own folder is never written again"


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    check_ours(tmp_path)
    check_ours(tmp_path / "new")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(Refused):
        check_ours(tmp_path)
    with pytest.raises(Refused):
        check_ours(tmp_path / "notes.txt")
    (tmp_path / "sandbox.json").write_text("{}")
    check_ours(tmp_path)


def answering(code: Exit) -> "object":
    def call(_argv: list[str], terminal: Terminal) -> Exit:
        print("said", file=terminal.out)
        terminal.answer = {"a": 1}
        return code

    return call


def test_a_step_that_ends_otherwise_than_it_should_stops_the_story(tmp_path: Path) -> None:
    told: list[str] = []
    alliance = Alliance(tmp_path, answering(Exit.DONE), told=lambda line, _answer: told.append(line))  # type: ignore[arg-type]
    assert alliance.run("firm", "whoami").data == {"a": 1}
    assert told == ["fedhub --home homes/firm whoami"]
    with pytest.raises(Exception, match="expected refused, found done"):
        alliance.run("firm", "whoami", expect=Exit.REFUSED, tell=False)
    assert len(told) == 1, "what is not to be told is not"


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        alliance = Alliance(tmp_path, answering(Exit.DONE), ports={"port": port})  # type: ignore[arg-type]
        with pytest.raises(Unchecked, match=str(port)) as caught:
            alliance.start_hub()
        alliance.down()
    assert caught.value.code == "E_PORT"
    assert alliance.processes == []


def test_two_sandboxes_never_share_a_folder(tmp_path: Path) -> None:
    with lock(tmp_path):
        with pytest.raises(Unchecked) as caught:
            Alliance(tmp_path, answering(Exit.DONE)).start_hub()  # type: ignore[arg-type]
        with pytest.raises(Unchecked):
            clear(tmp_path)
    assert caught.value.code == "E_SANDBOX_RUNNING"
    check_ours(tmp_path)


def test_clearing_removes_an_earlier_alliance_and_nothing_else(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours, other):
        (folder / "homes").mkdir(parents=True)
    (ours / "sandbox.json").write_text("{}")
    clear(ours)
    assert [path.name for path in ours.iterdir()] == [".lock"]
    with pytest.raises(Refused):
        clear(other)
    assert (other / "homes").exists()
    clear(tmp_path / "new")


def test_a_damaged_card_is_named(tmp_path: Path) -> None:
    (tmp_path / "sandbox.json").write_text("[")
    alliance = Alliance(tmp_path, answering(Exit.DONE))  # type: ignore[arg-type]
    with pytest.raises(Unchecked) as caught:
        alliance.start_hub()
    alliance.down()
    assert caught.value.code == "E_SANDBOX"


def test_an_alteration_changes_the_copy_and_never_the_pack(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "checkpoint").write_text("hub.example\n7\nroot\n\n— sig\n")
    what, alter = attacks.ALTERATIONS[0]
    assert "one more entry" in what
    copy = attacks.altered(pack, tmp_path / "copy", alter)
    assert (copy / "checkpoint").read_text().split("\n")[1] == "8"
    assert (pack / "checkpoint").read_text().split("\n")[1] == "7"


def test_a_process_without_sockets_has_none() -> None:
    import subprocess
    import sys

    script = attacks.WITHOUT_SOCKETS.split("from hub.cli")[0] + "import socket\nsocket.socket()\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "may not open sockets" in done.stderr


def test_an_offline_verification_of_nothing_is_a_failure_and_not_a_success(tmp_path: Path) -> None:
    verdict = attacks.verify_offline(str(tmp_path / "none"), "--trust", str(tmp_path / "none.json"))
    assert verdict.exit == 2
    assert verdict.data["error"]["code"] in ("E_TRUST", "E_INPUT")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_told_by_class_for_descendants_only() -> None:
    import subprocess
    import sys

    assert len({name for _word, name in CLASSES}) == len(CLASSES)
    watch = MemoryWatch()
    watch.start()
    script = "import sys; data = bytearray(40_000_000); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, "storage.blob_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(1.2)
        found = watch.stop()
        child.communicate(b"")
    assert set(found) == {"blob_server"}
    assert found["blob_server"] > 40
