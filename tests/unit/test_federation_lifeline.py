"""Children die with their parents, and learn no secret from their surroundings."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from federation.lifeline import code_path, plain_environment, python_command

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}, str({parent})])
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = """
import sys, time
from federation.lifeline import die_with
die_with(int(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _wait_gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not _alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    program = PARENT.format(child=CHILD, parent="__import__('os').getpid()")
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline().strip() == "ready"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _wait_gone(child)


def test_a_child_whose_parent_was_gone_before_it_looked_ends_at_once() -> None:
    found = subprocess.run([sys.executable, "-c", CHILD, "1"], capture_output=True, check=False, timeout=30)
    assert found.returncode == -signal.SIGKILL
    assert found.stdout == b""


def test_a_child_sees_no_variable_that_could_be_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "FEDHUB_STORE_SECRET_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "DATABASE_URL",
        "HTTPS_PROXY",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    found = plain_environment({"EXTRA": "1"})
    assert "secret" not in found.values()
    assert found["LC_ALL"] == "C.UTF-8"
    assert found["EXTRA"] == "1"
    assert found["PATH"] == os.environ["PATH"]


def test_a_module_is_found_from_any_folder_and_a_stray_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "storage.py").write_text("raise SystemExit('a stray module was imported')")
    command = python_command("federation.flower.superlink", "--help")
    found = subprocess.run(
        command, cwd=tmp_path, env=plain_environment(), capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_an_installed_package_needs_no_path() -> None:
    root = Path(__file__).resolve().parents[2]
    assert code_path() in ({}, {"PYTHONPATH": str(root)})
