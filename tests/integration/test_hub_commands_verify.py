"""``fedhub verify`` as an auditor runs it: a process of its own, no network, an exit code that means something."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.encoding import format_time
from tests.simulators import MODEL, NOW, Story, tell_story, write_files

ROOT = Path(__file__).resolve().parents[2]
AT = format_time(NOW)

# Runs one command line in a process in which no socket can be made, and tells what was imported.
BLOCKED = """
import json, sys

def forbid(event, args):
    if event.startswith("socket.") or event in ("urllib.Request", "http.client.connect"):
        raise RuntimeError(f"the verifier touched the network: {event}")

sys.addaudithook(forbid)
from hub.cli import main
code = main(sys.argv[1:])
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(code)
"""
# typer, held back by flwr, imports a name that the newest click would like to drop
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9:DeprecationWarning")
FORBIDDEN = {
    "asyncio", "fastapi", "flwr", "http", "httpx", "importlib.metadata", "minio", "numpy", "pydantic", "requests",
    "rich", "securesystemslib", "socket", "sqlalchemy", "sqlmodel", "ssl", "torch", "tuf", "urllib.request",
}  # fmt: skip


@pytest.fixture(scope="module")
def told() -> Story:
    return tell_story(witnesses=0)


class Auditor:
    """A folder with a pack, the auditor's own files, and the command."""

    def __init__(self, story: Story, place: Path) -> None:
        self.story, self.place = story, place
        self.pack = write_files(place / "pack", story.alliance.export(story.model.asset_id))
        self.files = story.write_model(place / "files")
        self.trust = place / "trust.json"
        self.trust.write_text(json.dumps(story.alliance.trust_document()))
        self.state = place / "state.json"

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """The command inside this process."""
        from hub.cli import dispatch
        from hub.terminal import Terminal

        out, err = io.StringIO(), io.StringIO()
        line = ["verify", str(self.pack), "--trust", str(self.trust), *options]
        code = dispatch(line, Terminal(None, out=out, err=err))
        return subprocess.CompletedProcess(line, int(code), out.getvalue(), err.getvalue())

    def run_alone(self, *options: str) -> subprocess.CompletedProcess[str]:
        """The command in a process of its own that has no network."""
        line = [sys.executable, "-c", BLOCKED, "verify", str(self.pack), "--trust", str(self.trust), *options]
        return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)

    def whole(self) -> tuple[str, ...]:
        return (
            "--files",
            str(self.files),
            "--state",
            str(self.state),
            "--use",
            json.dumps(self.story.use),
            "--require",
            "APPROVED",
            "--at",
            AT,
        )


@pytest.fixture
def auditor(told: Story, tmp_path: Path) -> Auditor:
    return Auditor(told, tmp_path)


def test_a_whole_verification_needs_no_network_and_imports_nothing_heavy(auditor: Auditor) -> None:
    done = auditor.run_alone(*auditor.whole())
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert not {
        name for name in loaded if name in FORBIDDEN or name.partition(".")[0] in FORBIDDEN - {"http"}
    }
    assert {"storage.verify", "hub.commands.verify"} <= loaded


def test_help_imports_no_network_or_training_library(auditor: Auditor) -> None:
    line = [sys.executable, "-c", BLOCKED, "verify", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert not loaded & (FORBIDDEN - {"rich", "importlib.metadata"})
    for option in ("--trust", "--files", "--use", "--state", "--require", "--at", "--json"):
        assert option in done.stdout


def test_every_step_is_printed_and_the_last_line_counts_what_was_not_checked(auditor: Auditor) -> None:
    auditor.run(*auditor.whole())
    lines = auditor.run(*auditor.whole()).stdout.splitlines()
    steps = [line for line in lines if line.startswith("V") and line[1].isdigit()]
    assert [line.split()[0] for line in steps] == [f"V{number}" for number in range(1, 16)]
    assert "not checked" in steps[2]
    assert "no witness" in steps[2]
    assert lines[0].endswith(f"as of {AT}, a moment that you chose")
    assert lines[-1] == f"VERIFIED as of {AT}; not checked: 1 (V3 its age (no witness))"


def test_json_tells_every_step_and_level(auditor: Auditor) -> None:
    done = auditor.run(*auditor.whole(), "--json")
    told = json.loads(done.stdout)
    assert (told["verified"], told["exit"], told["error"]) == (True, 0, None)
    assert [step["step"] for step in told["steps"]] == [f"V{number}" for number in range(1, 16)]
    assert {step["outcome"] for step in told["steps"]} == {"ok", "not checked"}
    levels = {(asset["name"], asset["version"]): asset["levels"] for asset in told["assets"]}
    assert levels[MODEL, 2] == ["SIGNED", "GRANTED", "TRAINED", "APPROVED"]


def test_state_is_written_after_success_only(auditor: Auditor) -> None:
    manifest = auditor.pack / "assets" / auditor.story.model.asset_id / "manifest.json"
    raw = manifest.read_bytes()
    manifest.write_bytes(raw.replace(b"config.json", b"confug.json"))
    done = auditor.run("--state", str(auditor.state), "--at", AT)
    assert (done.returncode, auditor.state.exists()) == (1, False)
    assert "E_SUBJECT" in done.stdout
    manifest.write_bytes(raw)
    assert auditor.run("--state", str(auditor.state), "--at", AT).returncode == 0
    head = auditor.story.alliance.checkpoint
    assert json.loads(auditor.state.read_text()) == {"size": head.size, "root": head.root.hex()}
    assert [path.name for path in auditor.place.iterdir() if path.name.startswith(".")] == []


def test_a_later_pack_is_checked_against_the_saved_state(auditor: Auditor) -> None:
    assert auditor.run("--state", str(auditor.state), "--at", AT).returncode == 0
    auditor.state.write_text(json.dumps({"size": 10_000, "root": "00" * 32}))
    done = auditor.run("--state", str(auditor.state), "--at", AT)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "REFUSED by V4: E_ROLLBACK; not taken: V5 to V15"
    assert json.loads(auditor.state.read_text())["size"] == 10_000


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--use", "null"), "E_INPUT"),
        (("--use", "{"), "E_INPUT"),
        (("--use", "{}"), "E_INPUT"),
        (("--use", '{"grant":1,"grant":2}'), "E_INPUT"),
        (("--require", "SUPREME"), "E_INPUT"),
        (("--at", "yesterday"), "E_INPUT"),
        (("--files", "/nowhere/at/all"), "E_INPUT"),
        (("--state", "."), "E_INPUT"),
        (("--bogus",), "E_USAGE"),
    ],
)
def test_wrong_arguments_exit_2_and_name_the_fault(
    auditor: Auditor, options: tuple[str, ...], code: str
) -> None:
    done = auditor.run(*options)
    assert done.returncode == 2
    assert code in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"hub":1}', "\x00"])
def test_a_damaged_trust_file_is_the_auditors_own_fault(auditor: Auditor, text: str) -> None:
    auditor.trust.write_text(text)
    done = auditor.run("--at", AT)
    assert (done.returncode, "E_TRUST" in done.stderr) == (2, True)


def test_missing_own_files_exit_2_and_a_missing_part_of_the_pack_exits_1(auditor: Auditor) -> None:
    (auditor.pack / "checkpoint").unlink()
    done = auditor.run("--at", AT)
    assert (done.returncode, "E_MALFORMED" in done.stdout) == (1, True)
    auditor.trust.unlink()
    assert auditor.run("--at", AT).returncode == 2
    auditor.trust.write_text(json.dumps(auditor.story.alliance.trust_document()))
    auditor.pack = auditor.place / "no-such-pack"
    done = auditor.run("--at", AT)
    assert (done.returncode, "E_INPUT" in done.stderr) == (2, True)


def test_a_refusal_in_json_names_step_and_error(auditor: Auditor) -> None:
    next((auditor.pack / "proofs").iterdir()).unlink()
    assert auditor.run_alone("--at", AT).returncode == 1
    done = auditor.run("--json", "--at", AT)
    told: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 1
    assert (told["verified"], told["error"]["code"], told["error"]["step"]) == (False, "E_NOT_LOGGED", "V8")
    assert told["steps"][-1]["outcome"] == "failed"
