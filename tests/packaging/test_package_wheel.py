"""The wheel that people install: whole, and enough for an auditor with the base install alone."""

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("hub", "federation", "storage")
pytestmark = [pytest.mark.slow]


def run(*command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out), cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (found,) = out.glob("fedhub-*.whl")
    return found


@pytest.fixture(scope="module")
def auditor(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with the base install and nothing else."""
    folder = tmp_path_factory.mktemp("auditor")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--python", str(python)]
    installed = run(*uv, "--constraint", str(_versions(folder)), str(wheel), cwd=folder)
    assert installed.returncode == 0, installed.stderr
    yield folder


def _versions(folder: Path) -> Path:
    """The lock's versions without its hashes, which a wheel just built cannot have."""
    path = folder / "constraints.txt"
    pins = [
        line.split("\\")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    ]
    path.write_text("\n".join(pins))
    return path


def tracked() -> set[str]:
    listed = run("git", "ls-files", *PACKAGES, cwd=ROOT)
    return set(listed.stdout.split())


def test_the_wheel_holds_every_file_of_the_three_packages_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    untracked = {name for name in names if name not in tracked()}
    assert tracked() <= names
    assert not {name for name in untracked if not (ROOT / name).exists()}
    assert {name.split("/")[0] for name in names} == set(PACKAGES)


def test_the_base_install_verifies_and_holds_no_server_and_no_training(auditor: Path) -> None:
    fedhub = auditor / "venv" / "bin" / "fedhub"
    assert run(str(fedhub), "verify", "--help", cwd=auditor).returncode == 0
    missing = run(str(fedhub), "verify", "nowhere", "--trust", "none.json", cwd=auditor)
    assert missing.returncode == 2 and "Traceback" not in missing.stderr
    listed = run(str(auditor / "venv" / "bin" / "python"), "-c", "import torch", cwd=auditor)
    assert listed.returncode != 0


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("hub", "up"), "hub"),
        (("institution", "create", "firm.example", "--invitation", "code"), "pull"),
        (("demo", "--dir", "demo"), "demo"),
    ],
)
def test_a_command_whose_extra_is_missing_names_it(
    auditor: Path, command: tuple[str, ...], extra: str
) -> None:
    fedhub = str(auditor / "venv" / "bin" / "fedhub")
    home = auditor / "home"
    answer = run(fedhub, "--home", str(home), *command, cwd=auditor)
    assert answer.returncode == 2
    assert f"fedhub[{extra}]" in answer.stderr or f"fedhub[{extra}]" in answer.stdout, answer.stderr


def test_the_base_install_is_small(auditor: Path) -> None:
    size = sum(
        path.stat().st_size
        for path in (auditor / "venv").rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    assert size < 100 * 2**20


def test_the_command_is_not_led_astray_by_files_in_the_current_folder(auditor: Path, tmp_path: Path) -> None:
    (tmp_path / "storage.py").write_text("raise SystemExit(7)")
    (tmp_path / "hub.py").write_text("raise SystemExit(7)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [auditor / "venv" / "bin" / "fedhub", "--version"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0 and answer.stdout.strip().endswith("0.1.0")
