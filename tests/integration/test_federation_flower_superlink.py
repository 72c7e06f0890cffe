"""A live SuperLink in our launcher: who gets through which door, what it starts, and what survives it."""

import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from federation.flower.control import Control
from federation.flower.executor import Bundle, build_bundle
from federation.flower.launch import Addresses, SuperLinkProcess
from federation.flower.quiet import keep_quiet
from federation.lifeline import code_path
from storage.errors import Misuse, Refused, Unchecked
from storage.signing import public_pem

PROTOBUF = {"content-type": "application/protobuf"}
FOREIGN = """
[project]
name = "stranger"
version = "1.0.0"
description = "an app of somebody else"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.42"]
[tool.flwr.app]
publisher = "somebody"
fab-format-version = 1
flwr-version-target = "1.42.0"
[tool.flwr.app.components]
serverapp = "stranger.server:app"
clientapp = "stranger.server:app"
[tool.flwr.app.config]
mark = "{mark}"
"""
SERVER = """
import os, sys
from pathlib import Path
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    print("SURROUNDINGS", sorted(os.environ))
    print("ARGUMENTS", sys.argv)
"""


def bundle(mark: str) -> Bundle:
    """A Flower app bundle that is not ours."""
    keep_quiet()
    return build_bundle(
        {
            "pyproject.toml": FOREIGN.format(mark=mark).encode(),
            "LICENSE": b"Apache-2.0",
            "stranger/__init__.py": b"",
            "stranger/server.py": SERVER.encode(),
        }
    )


@dataclass
class Live:
    """A SuperLink with all three doors."""

    folder: Path
    process: SuperLinkProcess
    addresses: Addresses
    token: str
    control: Control

    @property
    def roots(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / "link" / "tls" / "fleet-ca.pem")

    def fleet(self, path: str, content: bytes = b"") -> httpx.Response:
        url = f"https://{self.addresses.fleet}{path}"
        return httpx.post(url, content=content, headers=PROTOBUF, verify=self.roots, trust_env=False)

    def local(self, path: str, content: bytes = b"", token: str | None = None) -> httpx.Response:
        headers = PROTOBUF if token is None else {**PROTOBUF, "authorization": f"Bearer {token}"}
        return httpx.post(
            f"http://{self.addresses.local}{path}", content=content, headers=headers, trust_env=False
        )


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    token = secrets.token_hex(32)
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(token)
    process = SuperLinkProcess(
        folder / "link",
        folder / "token",
        fleet="127.0.0.1:0",
        hosts=("127.0.0.1",),
        control="127.0.0.1:0",
        allowed_apps=(bundle("allowed").digest,),
    )
    try:
        addresses = process.wait_ready()
        with Control(f"http://{addresses.local}", token) as control:
            yield Live(folder, process, addresses, token, control)
    finally:
        process.stop()


def node_key() -> str:
    return public_pem(ec.generate_private_key(ec.SECP384R1()).public_key())


def wait_finished(control: Control, run: str, seconds: float = 60) -> tuple[str, str]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = control.status(run)
        assert found is not None
        if found.state == "finished":
            return found.outcome, found.details
        time.sleep(0.2)
    raise AssertionError("the run did not end")


# --- doors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/health",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_but_fleet_is_behind_the_public_port(live: Live, path: str) -> None:
    assert live.fleet(path).status_code == 404


def test_the_public_port_speaks_tls_only_and_with_our_authority(live: Live) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{live.addresses.fleet}/", trust_env=False)
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"https://{live.addresses.fleet}/", trust_env=False)


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/redoc", "/v1/fleet/activate-node", "/v1/control/add-app"]
)
def test_docs_and_calls_that_nobody_makes_are_not_served_inside_either(live: Live, path: str) -> None:
    assert live.local(path, token=live.token).status_code == 404


@pytest.mark.parametrize("token", [None, "x", "wrong" * 10])
def test_control_wants_the_hubs_token(live: Live, token: str | None) -> None:
    for path in ("list-nodes", "start-run", "register-node", "list-runs"):
        assert live.local(f"/v1/control/{path}", token=token).status_code == 401


def test_a_wrong_token_is_told_as_such(live: Live) -> None:
    with (
        Control(f"http://{live.addresses.local}", "x" * 64) as stranger,
        pytest.raises(Refused, match="E_SUPERLINK_TOKEN"),
    ):
        stranger.list_nodes()


def test_control_alone_is_behind_the_third_port(live: Live) -> None:
    assert live.addresses.control is not None
    with Control(f"http://{live.addresses.control}", live.token) as control:
        control.list_nodes()
    answer = httpx.post(
        f"http://{live.addresses.control}/v1/runtime/acquire-task", headers=PROTOBUF, trust_env=False
    )
    assert answer.status_code == 404


def test_nobody_can_take_a_task_by_http(live: Live) -> None:
    answer = live.local("/v1/runtime/acquire-task", token=live.token)
    assert answer.status_code in (401, 403)


def test_a_node_that_is_not_registered_is_refused(live: Live) -> None:
    assert live.fleet("/v1/fleet/activate-node", b"").status_code == 401
    assert live.fleet("/v1/fleet/register-node", b"").status_code in (401, 403)


def _rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def test_a_large_body_is_refused_unread(live: Live) -> None:
    before = _rss_kib(live.process.process.pid)
    for _ in range(3):
        try:
            answer = live.fleet("/v1/fleet/push-messages", bytes(40 << 20))
        except httpx.TransportError:
            continue  # it closed the connection while we were sending
        assert answer.status_code == 413
    assert _rss_kib(live.process.process.pid) - before < 20 << 10


def test_no_connection_leads_off_this_machine(live: Live) -> None:
    sockets = {
        os.readlink(path).removeprefix("socket:[").rstrip("]")
        for path in Path(f"/proc/{live.process.process.pid}/fd").iterdir()
        if os.path.islink(path) and os.readlink(path).startswith("socket:[")
    }
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    peers = {line.split()[2].split(":")[0] for line in lines if line.split()[9] in sockets}
    assert peers <= {"00000000", "0100007F"}


# --- nodes --------------------------------------------------------------------------------------------------


def test_a_key_keeps_its_node_id_until_it_is_shut_out(live: Live) -> None:
    key = node_key()
    first = live.control.register_node(key, "lab-a.example")
    assert live.control.register_node(key, "lab-a.example") == first
    (found,) = [node for node in live.control.list_nodes() if node.id == first]
    assert (found.name, found.public_key, found.online) == ("lab-a.example", key, False)
    live.control.unregister(first)
    assert first not in [node.id for node in live.control.list_nodes()]


@pytest.mark.parametrize(
    "key", ["", "nonsense", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_key_is_refused_by_name(live: Live, key: str) -> None:
    with pytest.raises(Refused, match="E_NODE_KEY"):
        live.control.register_node(key, "lab-a.example")


# --- runs ---------------------------------------------------------------------------------------------------


def test_a_run_is_started_with_exactly_its_four_settings(live: Live) -> None:
    with pytest.raises(Misuse, match="E_RUN_CONFIG"):
        live.control.start_run({"hub": "http://127.0.0.1:1", "plan": "a" * 64})


def test_an_unknown_run_is_none_and_stopping_it_is_no_error(live: Live) -> None:
    assert live.control.status("12345") is None
    live.control.stop("12345")


def test_an_app_that_the_operator_does_not_allow_never_runs(live: Live) -> None:
    run = live.control.start_bundle(bundle("foreign").content, {})
    outcome, details = wait_finished(live.control, run)
    assert outcome == "failed"
    assert "E_APP_NOT_ALLOWED" in details
    assert "SURROUNDINGS" not in "".join(live.control.logs(run))


def test_an_allowed_app_runs_and_sees_no_secret(live: Live) -> None:
    run = live.control.start_bundle(bundle("allowed").content, {})
    assert wait_finished(live.control, run) == ("completed", "")
    said = "".join(live.control.logs(run))
    assert "SURROUNDINGS" in said
    assert live.token not in said
    assert "FEDHUB_STORE" not in said


def test_a_coordinator_without_its_token_file_says_so_in_the_runs_log(live: Live) -> None:
    config = {"hub": "http://127.0.0.1:1", "plan": "a" * 64, "attempt": 1, "token-file": "/nonexistent"}
    run = live.control.start_run(config)
    outcome, details = wait_finished(live.control, run)
    assert outcome == "failed"
    assert "E_TOKEN_FILE" in details


def _waiting(live: Live) -> int:
    """The process id of the coordinator that waits for a run."""
    until = time.monotonic() + 60
    link = live.process.process.pid
    while time.monotonic() < until:
        children = Path(f"/proc/{link}/task").glob("*/children")
        for child in " ".join(path.read_text() for path in children).split():
            if b"federation.flower.executor" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        time.sleep(0.1)
    raise AssertionError("no coordinator waits")


@pytest.mark.parametrize("killed", [False, True])
def test_the_coordinator_that_waits_takes_the_next_run_and_none_is_lost_when_it_died(
    live: Live, killed: bool
) -> None:
    waiting = _waiting(live)
    if killed:
        os.kill(waiting, signal.SIGKILL)
    config = {"hub": "http://127.0.0.1:1", "plan": "a" * 64, "attempt": 1, "token-file": "/nonexistent"}
    outcome, details = wait_finished(live.control, live.control.start_run(config))
    assert outcome == "failed" and "E_TOKEN_FILE" in details
    assert _waiting(live) != waiting


def test_neither_files_nor_command_lines_show_the_token(live: Live) -> None:
    for path in (live.folder / "link").rglob("*"):
        if path.is_file() and path.suffix != ".key":
            assert live.token.encode() not in path.read_bytes(), path
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert live.token.encode() not in path.read_bytes()
        except OSError:
            continue


# --- starting and ending ------------------------------------------------------------------------------------


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


def test_a_port_in_use_is_told_by_name(live: Live, tmp_path: Path, token_file: Path) -> None:
    process = SuperLinkProcess(
        tmp_path / "link", token_file, fleet=live.addresses.fleet, hosts=("127.0.0.1",)
    )
    with pytest.raises(Unchecked, match=r"E_PORT: Fleet: cannot listen on 127.0.0.1 port"):
        process.wait_ready()
    process.stop()


@pytest.mark.parametrize(("mode", "text"), [(0o644, "x" * 64), (0o600, "short"), (0o600, "two words" * 10)])
def test_a_token_that_others_read_or_guess_is_refused(
    tmp_path: Path, token_file: Path, mode: int, text: str
) -> None:
    token_file.write_text(text)
    token_file.chmod(mode)
    process = SuperLinkProcess(tmp_path / "link", token_file, fleet="127.0.0.1:0", hosts=("127.0.0.1",))
    with pytest.raises(Unchecked, match="E_TOKEN_FILE") as error:
        process.wait_ready()
    process.stop()
    assert text not in str(error.value)


HOST = """
import sys, time
from pathlib import Path
from federation.flower.executor import Bundle, build_bundle
from federation.flower.launch import SuperLinkProcess
folder = Path(sys.argv[1])
process = SuperLinkProcess(folder / "link", folder / "token", fleet="127.0.0.1:0", hosts=("127.0.0.1",))
print(process.process.pid, process.wait_ready().local, flush=True)
time.sleep(120)
"""


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task")
    return [int(child) for task in path.iterdir() for child in (task / "children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(condition: object, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("victim", ["hub", "superlink"])
def test_a_kill_leaves_no_process_behind(tmp_path: Path, token_file: Path, victim: str) -> None:
    surroundings = {**os.environ, **code_path()}
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=surroundings
    )
    assert host.stdout is not None
    pid, address = host.stdout.readline().split()
    link = int(pid)
    with Control(f"http://{address}", token_file.read_text()) as control:
        config = {
            "hub": "http://10.255.255.1:1",
            "plan": "a" * 64,
            "attempt": 1,
            "token-file": str(token_file),
        }
        control.start_run(config)  # its coordinator hangs on a hub that never answers
        _wait(lambda: _children(link))
        (coordinator,) = _children(link)
    os.kill(host.pid if victim == "hub" else link, signal.SIGKILL)
    _wait(lambda: not _alive(link) and not _alive(coordinator))
    host.kill()
    host.wait()
    host.stdout.close()
