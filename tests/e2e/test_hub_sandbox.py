"""A sandbox alliance as a student keeps it: ready line, tokens, commands with bad input, stop, kill, start again.

The tests of this module share one sandbox and run in order; the last ones stop it.
"""

import base64
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import save_file

from federation.connection import HubConnection
from federation.lifeline import plain_environment
from federation.plan import make_model_config
from hub.cli import dispatch
from hub.demo.journey import PARAMETERS, RECIPE
from hub.terminal import Terminal

pytestmark = [pytest.mark.timeout(400)]

ROLES = {
    "operator.example": "operator",
    "owner.example": "owner",
    "lab-a.example": "lab",
    "lab-b.example": "lab",
    "lab-c.example": "lab",
    "firm.example": "firm",
}


class Sandbox:
    """``fedhub sandbox up`` in one folder; it may be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.elsewhere = folder.parent / "elsewhere"
        self.elsewhere.mkdir()
        self.settings = {
            "FEDHUB_DATABASE_URL": f"sqlite:///{self.elsewhere / 'rows.db'}",
            "FEDHUB_STORE_URL": (self.elsewhere / "objects").as_uri(),
        }
        self.told: dict[str, Any] = {}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            command("sandbox", "up", "--dir", str(self.folder), "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=plain_environment(self.settings),
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            said = self.process.stderr.read()
            self.end(signal.SIGKILL)
            pytest.fail(f"the sandbox did not start: {said}")
        self.told = json.loads(line)

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(60)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self.process = None
        return code

    def home(self, name: str) -> str:
        return str(self.told["institutions"][f"{name}.example"]["home"])

    def token(self, name: str) -> str:
        return str(self.told["institutions"][f"{name}.example"]["token"])

    def run(self, name: str, *argv: str, **limits: Any) -> "subprocess.CompletedProcess[str]":
        """A command as one institution; in this process, unless it has limits of its own."""
        if limits:
            return fedhub("--home", self.home(name), "--json", *argv, **limits)
        terminal = Terminal(Path(self.home(name)), json=True, out=io.StringIO(), err=io.StringIO())
        code = dispatch(list(argv), terminal)
        out, err = cast(io.StringIO, terminal.out).getvalue(), cast(io.StringIO, terminal.err).getvalue()
        return subprocess.CompletedProcess(argv, int(code), out, err)

    def ok(self, name: str, *argv: str) -> dict[str, Any]:
        done = self.run(name, *argv)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def refused(self, name: str, *argv: str, code: int, **limits: Any) -> dict[str, str]:
        """The error of a command that must fail with this exit code and one line of JSON."""
        done = self.run(name, *argv, **limits)
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout == ""
        error: dict[str, str] = json.loads(done.stderr)["error"]
        assert set(error) - {"cause", "owner", "step"} == {"code", "message", "hint"}
        return error


def command(*argv: str) -> list[str]:
    return [sys.executable, "-P", "-m", "hub", *argv]


def fedhub(*argv: str, **limits: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*argv),
        capture_output=True,
        text=True,
        env=plain_environment(),
        timeout=120,
        check=False,
        **limits,
    )


def processes_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path_factory.mktemp("sandbox") / "alliance")
    made.start()
    yield made
    if made.process is not None:
        made.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def model(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pushed model of 1 MiB, for what needs one."""
    folder = tmp_path_factory.mktemp("model")
    save_file({"w": np.arange(1 << 18, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_bytes(make_model_config(RECIPE, PARAMETERS))
    made = sandbox.ok("owner", "model", "push", str(folder), "owner.example/m", "--tag", "first")
    return f"{made['name']}@{made['version']}"


# --- what it says ---------------------------------------------------------------------------------------------------


def test_the_first_line_says_where_everything_is(sandbox: Sandbox) -> None:
    assert set(sandbox.told) == {"endpoint", "log_base", "log_key", "institutions"}
    assert {name: each["role"] for name, each in sandbox.told["institutions"].items()} == ROLES
    for each in sandbox.told["institutions"].values():
        assert set(each) == {"role", "home", "token"}
        assert (Path(each["home"]) / "home.json").exists()
    with urllib.request.urlopen(f"{sandbox.told['log_base'].rstrip('/')}/checkpoint", timeout=10) as answer:
        assert answer.read().startswith(b"hub.example\n")
    assert sandbox.told["log_key"].startswith("hub.example+")


def test_database_and_store_are_where_the_settings_say(sandbox: Sandbox, model: str) -> None:
    assert model
    assert (sandbox.elsewhere / "rows.db").stat().st_size > 0
    assert list((sandbox.elsewhere / "objects" / "blobs").rglob("*.*"))
    assert not list((sandbox.folder / "hub").glob("*.db"))
    assert not (sandbox.folder / "hub" / "store").exists()


def test_a_token_acts_for_its_institution_with_a_stock_client(sandbox: Sandbox) -> None:
    for name, role in ROLES.items():
        found = get(sandbox, "whoami", sandbox.token(name.removesuffix(".example")))
        assert (found["institution"], found["role"], found["by"]) == (name, role, "personal")
        assert set(found["scopes"]) == {"read", "write"}


def get(sandbox: Sandbox, path: str, token: str) -> Any:
    request = urllib.request.Request(
        f"{sandbox.told['endpoint']}/api/v1/{path}", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_a_wrong_token_is_401_with_a_problem_document(sandbox: Sandbox) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(sandbox, "whoami", "fhp_" + "x" * 43)
    with caught.value as answer:
        assert answer.code == 401
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        assert json.load(answer)["code"].startswith("E_")


def test_each_home_acts_as_its_institution(sandbox: Sandbox) -> None:
    for name in ("owner", "lab-b", "firm"):
        found = sandbox.ok(name, "whoami")
        assert (found["institution"], found["key_role"]) == (f"{name}.example", "targets")


def test_three_agents_are_online_with_their_data(sandbox: Sandbox) -> None:
    for lab in ("lab-a", "lab-b", "lab-c"):
        found = sandbox.ok(lab, "site", "status")
        assert [each["online"] for each in found["sites"]] == [True]
        assert [each["name"] for each in found["datasets"]] == [f"{lab}.example/digits"]
    found = sandbox.ok("operator", "hub", "status")
    assert (found["institutions"], found["sites_online"], found["pending"]) == (6, 3, [])


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_pickle_is_refused_before_anything_is_sent(sandbox: Sandbox, tmp_path: Path) -> None:
    import pickle

    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps({"a": [1, 2]}))
    error = sandbox.refused("owner", "model", "push", str(tmp_path), "owner.example/bad", code=1)
    assert error["code"] == "E_UNSAFE_FORMAT"
    assert "weights.safetensors" in error["message"] and error["hint"]
    assert sandbox.refused("owner", "model", "show", "owner.example/bad", code=2)["code"] == "E_NOT_FOUND"


@pytest.mark.parametrize("name", ["a\\b", ".gitattributes", "trailing.", "COLON:x"])
def test_a_file_name_that_means_something_else_elsewhere_is_refused(
    sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("x")
    assert (
        sandbox.refused("owner", "model", "push", str(tmp_path), "owner.example/bad", code=1)["code"]
        == "E_PATH"
    )


def test_a_link_in_a_push_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "passwords").symlink_to("/etc/passwd")
    assert (
        sandbox.refused("owner", "model", "push", str(tmp_path), "owner.example/bad", code=1)["code"]
        == "E_PATH"
    )


@pytest.mark.parametrize(
    ("who", "argv", "code", "slug"),
    [
        ("firm", ["model", "show", "owner.example/none"], 2, "E_NOT_FOUND"),
        ("firm", ["model", "show", "no-institution"], 2, "E_USAGE"),
        ("firm", ["model", "show", "owner.example/m@zero"], 2, "E_USAGE"),
        ("firm", ["model", "pull", "owner.example/m@1", "{tmp}"], 2, "E_TARGET"),
        ("firm", ["model", "pull", "owner.example/m@1", "{tmp}/x"], 1, "E_GRANT_MISSING"),
        ("firm", ["model", "tag", "owner.example/m@1", "mine"], 1, None),
        ("owner", ["model", "pull", "owner.example/m:unknown", "{tmp}/x"], 2, "E_NOT_FOUND"),
        (
            "owner",
            ["grant", "issue", "owner.example/m@1", "--to", "firm.example", "--action", "train"],
            2,
            "E_USAGE",
        ),
        (
            "owner",
            ["grant", "issue", "owner.example/m@1", "--to", "firm.example", "--action", "fly"],
            2,
            "E_USAGE",
        ),
        ("owner", ["grant", "issue", "owner.example/m@1", "--to", "Firm"], 1, "E_STATEMENT"),
        ("owner", ["grant", "issue", "owner.example/m@1", "--to", "nobody.example"], 2, "E_NOT_FOUND"),
        ("firm", ["grant", "issue", "owner.example/m@1", "--to", "lab-a.example"], 1, None),
        ("owner", ["grant", "revoke", "0" * 64], 2, "E_NOT_FOUND"),
        ("owner", ["run", "start", "0" * 64], 2, "E_NOT_FOUND"),
        ("owner", ["run", "show", "short"], 2, "E_USAGE"),
        ("lab-a", ["site", "approve", "0" * 64], 2, "E_NOT_FOUND"),
        ("owner", ["release", "publish", "owner.example/m@1"], 1, "E_APPROVALS"),
        ("lab-a", ["evaluate", "owner.example/m@1"], 1, "E_PLAN"),
        ("owner", ["plan", "submit", "{tmp}"], 2, "E_DRAFT"),
        ("owner", ["institution", "trust", "firm.example", "--pin", "f" * 64], 1, "E_KEYRING_PIN"),
        ("owner", ["institution", "trust", "other.example", "--pin", "short"], 1, "E_KEYRING_PIN"),
        ("lab-a", ["hub", "invite", "new.example", "lab"], 1, None),
        ("operator", ["institution", "approve", "nobody.example", "--pin", "f" * 64], 2, "E_NOT_FOUND"),
        ("owner", ["audit", "export", "owner.example/m@1", "--out", "{tmp}"], 2, "E_TARGET"),
        ("lab-a", ["data", "describe", "{tmp}", "lab-b.example/d"], 1, "E_ISSUER"),
        ("lab-a", ["data", "show", "lab-a.example/none"], 2, "E_NOT_FOUND"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_and_does_nothing(
    sandbox: Sandbox, model: str, tmp_path: Path, who: str, argv: list[str], code: int, slug: str | None
) -> None:
    assert model == "owner.example/m@1"
    error = sandbox.refused(who, *(word.format(tmp=tmp_path) for word in argv), code=code)
    assert slug in (None, error["code"])
    assert error["code"].startswith("E_") and error["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_plan_over_a_dataset_that_nobody_described_is_refused(
    sandbox: Sandbox, model: str, tmp_path: Path
) -> None:
    args = ["--model", model, "--rounds", "1", "--participant", "lab-a.example/none"]
    error = sandbox.refused("owner", "plan", "new", str(tmp_path / "draft"), *args, code=2)
    assert error["code"] == "E_NOT_FOUND" and "lab-a.example/none" in error["message"]
    assert not (tmp_path / "draft").exists()


def test_a_draft_with_a_wrong_setting_names_every_one(sandbox: Sandbox, model: str, tmp_path: Path) -> None:
    args = ["--model", model, "--rounds", "1", "--participant", "lab-a.example/digits"]
    args += ["--set", "epochs=0", "--set", "learningRate=fast"]
    error = sandbox.refused("owner", "plan", "new", str(tmp_path / "draft"), *args, code=1)
    assert error["code"] == "E_CONFIG"
    assert "epochs" in error["message"] and "learningRate" in error["message"]


def test_an_invitation_is_for_one_name_and_good_once(sandbox: Sandbox, tmp_path: Path) -> None:
    code = sandbox.ok("operator", "hub", "invite", "new.example", "firm")["code"]
    for name, home, exit_code in (
        ("other.example", "a", 1),
        ("new.example", "b", 0),
        ("new.example", "c", 1),
    ):
        done = fedhub(
            "--home", str(tmp_path / home), "--json", "institution", "create", name, "--invitation", code
        )
        assert done.returncode == exit_code, done.stderr
    assert not (tmp_path / "a").exists()
    sandbox.refused("operator", "institution", "approve", "new.example", "--pin", "f" * 64, code=1)
    assert sandbox.ok("operator", "institution", "show", "new.example")["state"] == "pending"


def test_an_invitation_that_names_another_log_key_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    code = sandbox.ok("operator", "hub", "invite", "careful.example", "firm")["code"]
    said = json.loads(base64.urlsafe_b64decode(code + "=" * (-len(code) % 4)))
    said["operator_pin"] = "0" * 64
    raw = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    forged = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    args = ["--json", "institution", "create", "careful.example", "--invitation", forged]
    done = fedhub("--home", str(tmp_path / "home"), *args)
    assert done.returncode == 1
    assert "operator's pin" in json.loads(done.stderr)["error"]["message"]
    assert not (tmp_path / "home").exists()


def test_a_full_disk_while_pulling_leaves_nothing_behind(
    sandbox: Sandbox, model: str, tmp_path: Path
) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    error = sandbox.refused(
        "owner", "model", "pull", model, str(tmp_path / "m"), code=2, preexec_fn=small_files
    )
    assert "model.safetensors" in error["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_pull_of_an_own_model_is_verified_and_whole(sandbox: Sandbox, model: str, tmp_path: Path) -> None:
    found = sandbox.ok("owner", "model", "pull", model, str(tmp_path / "m"), "--pack", str(tmp_path / "pack"))
    assert found["grant"] is None
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors"}
    assert (tmp_path / "pack" / "checkpoint").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"m", "pack"}


def test_a_revoked_grant_pulls_nothing_more(sandbox: Sandbox, model: str, tmp_path: Path) -> None:
    grant = sandbox.ok("owner", "grant", "issue", model, "--to", "firm.example")["grant"]
    assert sandbox.ok("firm", "grant", "verify", grant)["valid"] is True
    assert sandbox.ok("firm", "model", "pull", model, str(tmp_path / "one"))["grant"] == grant
    assert _state_of(sandbox, grant) == "valid"
    sandbox.ok("owner", "grant", "revoke", grant)
    assert _state_of(sandbox, grant) == "revoked"
    error = sandbox.refused("firm", "model", "pull", model, str(tmp_path / "two"), code=1)
    assert error["code"] in ("E_REVOKED", "E_GRANT_MISSING")
    assert sandbox.refused("firm", "grant", "verify", grant, code=1)["code"] == "E_REVOKED"
    assert not (tmp_path / "two").exists()


def _state_of(sandbox: Sandbox, grant: str) -> str:
    """As the list of its holder has it."""
    listed = sandbox.ok("firm", "grant", "list")["grants"]
    return next(str(each["state"]) for each in listed if each["id"] == grant)


def test_a_personal_token_makes_a_home_that_pulls_and_never_signs(
    sandbox: Sandbox, model: str, tmp_path: Path
) -> None:
    home, token = str(tmp_path / "me"), tmp_path / "token"
    token.write_text(sandbox.token("owner") + "\n")
    args = ["--token-file", str(token), "--endpoint", sandbox.told["endpoint"]]
    args += ["--trust", str(Path(sandbox.home("owner")) / "trust.json")]
    assert fedhub("--home", home, "login", *args).returncode == 0
    done = fedhub("--home", home, "--json", "model", "pull", model, str(tmp_path / "m"))
    assert done.returncode == 0, done.stderr
    signing = fedhub("--home", home, "--json", "grant", "issue", model, "--to", "firm.example")
    assert json.loads(signing.stderr)["error"]["code"] == "E_KEY_MISSING"


def test_a_login_with_a_wrong_token_is_refused_and_makes_no_home(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("fhp_wrong")
    args = ["--token-file", str(tmp_path / "token"), "--endpoint", sandbox.told["endpoint"]]
    args += ["--trust", str(Path(sandbox.home("owner")) / "trust.json")]
    done = fedhub("--home", str(tmp_path / "me"), "--json", "login", *args)
    assert done.returncode == 1
    assert not (tmp_path / "me").exists()


def test_a_revoked_token_is_refused_at_once(sandbox: Sandbox) -> None:
    made = sandbox.ok("firm", "token", "new", "for a minute")
    assert get(sandbox, "whoami", made["token"])["institution"] == "firm.example"
    sandbox.ok("firm", "token", "revoke", made["id"])
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(sandbox, "whoami", made["token"])
    with caught.value as answer:
        assert answer.code == 401


def test_a_rotated_key_signs_and_the_old_one_logs_in_no_more(sandbox: Sandbox) -> None:
    key = Path(sandbox.home("firm")) / "keys" / "targets.pem"
    old = key.read_bytes()
    assert sandbox.ok("firm", "institution", "rotate", "targets")["ring_version"] == 2
    fresh = key.read_bytes()
    assert sandbox.ok("firm", "whoami")["institution"] == "firm.example"
    key.write_bytes(old)
    try:
        sandbox.refused("firm", "whoami", code=1)
    finally:
        key.write_bytes(fresh)


def test_a_port_in_use_is_named(sandbox: Sandbox, tmp_path: Path) -> None:
    port = sandbox.told["endpoint"].rpartition(":")[2]
    done = fedhub("--json", "sandbox", "up", "--dir", str(tmp_path / "second"), "--port", port)
    assert done.returncode == 2
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "E_PORT" and port in error["message"]


def test_a_hub_that_is_not_there_is_2_and_named(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HubConnection.__init__.__kwdefaults__ or {}, "patience_s", 0.5)
    home = tmp_path / "home"
    shutil.copytree(sandbox.home("firm"), home)
    card = json.loads((home / "home.json").read_text())
    (home / "home.json").write_text(json.dumps({**card, "endpoint": "http://127.0.0.1:9"}))
    terminal = Terminal(home, json=True, out=io.StringIO(), err=io.StringIO())
    assert dispatch(["whoami"], terminal) == 2
    assert terminal.problem["code"] == "E_HUB_UNREACHABLE"


def test_the_doctor_finds_nothing_wrong_with_a_folder_store(sandbox: Sandbox) -> None:
    ports = json.loads((sandbox.folder / "sandbox.json").read_text())["ports"]
    given = {f"FEDHUB_{name.upper()}": str(port) for name, port in ports.items()}
    given |= {"FEDHUB_DATA_DIR": str(sandbox.folder / "hub"), **sandbox.settings}
    done = subprocess.run(
        command("--json", "--home", sandbox.home("operator"), "hub", "doctor"),
        capture_output=True,
        text=True,
        env=plain_environment(given),
        timeout=120,
        check=False,
    )
    found = json.loads(done.stdout)
    assert [each for each in found["findings"] if not each["ok"]] == []
    assert done.returncode == 0


# --- stop, kill, start again ----------------------------------------------------------------------------------------


def test_started_again_everything_is_still_there(sandbox: Sandbox, model: str) -> None:
    before = sandbox.told
    assert sandbox.end(signal.SIGTERM) == 0
    assert processes_of(sandbox.folder) == []
    sandbox.start()
    assert sandbox.told == before, "same address, same homes, same tokens"
    assert sandbox.ok("firm", "model", "show", model)["name"] == "owner.example/m"
    assert get(sandbox, "whoami", sandbox.token("lab-c"))["institution"] == "lab-c.example"
    assert sandbox.ok("lab-a", "site", "status")["sites"][0]["online"] is True


def test_killed_it_leaves_no_process_and_starts_again(sandbox: Sandbox) -> None:
    before = sandbox.told
    sandbox.end(signal.SIGKILL)
    wait_for(lambda: processes_of(sandbox.folder) == [], 30)
    sandbox.start()
    assert sandbox.told == before
    assert sandbox.ok("owner", "whoami")["institution"] == "owner.example"


def test_interrupted_it_stops_in_order(sandbox: Sandbox) -> None:
    assert sandbox.end(signal.SIGINT) == 0
    assert processes_of(sandbox.folder) == []


def wait_for(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.2)
