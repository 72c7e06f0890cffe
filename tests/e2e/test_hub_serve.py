"""The hub as a real process: ready, stopped, killed, its children, its ports."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from federation.client import HubClient
from federation.home import Home
from federation.lifeline import python_command
from storage.errors import Unchecked
from tests.hubs import ORIGIN
from tests.small_disks import empty, fill, small_disk

ROOT = Path(__file__).parents[2]
PORTS = ("PORT", "DOWNLOAD_PORT", "BLOB_PORT", "FLEET_PORT", "CONTROL_PORT")


class HubProcess:
    """``fedhub hub up`` on free ports."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        given = {f"FEDHUB_{name}": "0" for name in PORTS}
        given |= {"FEDHUB_DATA_DIR": str(folder / "hub"), "FEDHUB_OPERATOR_HOME": str(folder / "operator")}
        given |= {"FEDHUB_SUPERLINK": "off", **{f"FEDHUB_{name}": value for name, value in settings.items()}}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDHUB_")}
        self.log = folder / "hub.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = python_command("hub", "--home", str(folder / "operator"), "--json", "hub", "up")
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**kept, **given, "PYTHONPATH": str(ROOT)},
            )

    def ready(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, self.log.read_text()
        told: dict[str, Any] = json.loads(line)
        return told

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        code = self.popen.wait(60)
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        return code

    def children(self) -> dict[str, int]:
        """Name of the module -> process id."""
        listed = subprocess.run(
            ["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True
        ).stdout
        found = {}
        for line in listed.splitlines()[1:]:
            pid, parent, args = line.split(None, 2)
            if int(parent) == self.popen.pid and " -m " in args:
                found[args.split(" -m ")[1].split()[0]] = int(pid)
        return found


@contextmanager
def hub_process(folder: Path, **settings: str) -> Iterator[HubProcess]:
    hub = HubProcess(folder, **settings)
    try:
        yield hub
    finally:
        hub.end(signal.SIGKILL)


def wait(reached: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if reached():
            return True
        time.sleep(0.1)
    return False


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if sys.platform == "linux" else True


def operator(told: dict[str, Any], folder: Path) -> HubClient:
    home = Home.open(folder / "operator")
    key = home.key("targets")
    return HubClient(told["endpoint"], origin=ORIGIN, institution=home.institution, key=key)


def test_a_hub_tells_where_it_is_serves_and_stops_in_order(tmp_path: Path) -> None:
    with hub_process(tmp_path) as hub:
        told = hub.ready()
        assert set(told) >= {"endpoint", "log_base", "log_key", "operator_pin", "fleet"}
        with operator(told, tmp_path) as client:
            assert client.whoami().role == "operator"
            client.invite("lab-a.example", "lab")
        assert wait(lambda: httpx.get(f"{told['log_base']}/checkpoint").status_code == 200)
        children = hub.children()
        assert set(children) == {"storage.blob_server"}
        assert hub.end() == 0
        assert wait(lambda: not any(map(lives, children.values())))
    for line in hub.log.read_text().splitlines():
        assert json.loads(line)["message"], line


def test_an_answered_write_survives_kill_and_the_children_do_not_outlive_their_hub(tmp_path: Path) -> None:
    with hub_process(tmp_path) as hub:
        told = hub.ready()
        with operator(told, tmp_path) as client:
            made = client.create_token("kept", ["read"])
        children = hub.children()
        hub.end(signal.SIGKILL)
        assert wait(lambda: not any(map(lives, children.values())))
    with hub_process(tmp_path) as hub:
        told = hub.ready()
        with HubClient(told["endpoint"], token=made.token) as client:
            assert client.whoami().by == "personal"
        with operator(told, tmp_path) as client:
            assert [record.index for record in client.all_statements()] == [0]


def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    with hub_process(tmp_path) as hub:
        hub.ready()
        (before,) = hub.children().values()
        os.kill(before, signal.SIGKILL)
        assert wait(lambda: before not in hub.children().values() and len(hub.children()) == 1)
        assert hub.end() == 0


def test_a_hub_on_a_full_disk_says_so_lives_on_and_is_not_started_half(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, 4096):
        with hub_process(tmp_path, DATA_DIR=str(disk)) as hub:
            told = hub.ready()
            children = hub.children()
            fill(disk)
            with operator(told, tmp_path) as client:
                with pytest.raises(Unchecked, match="E_HUB_FULL"):
                    client.whoami()
                empty(disk)
                assert client.whoami().role == "operator"
            assert hub.children() == children and hub.end() == 0
        fill(disk)
        with hub_process(tmp_path, DATA_DIR=str(disk)) as hub:
            assert hub.popen.wait(60) == 2
            said = hub.log.read_text() + (hub.popen.stdout.read() if hub.popen.stdout else "")
        assert "E_HUB_FULL" in said and "no room" in said
        empty(disk)
        with hub_process(tmp_path, DATA_DIR=str(disk)) as hub, operator(hub.ready(), tmp_path) as client:
            assert client.whoami().role == "operator"


@pytest.mark.parametrize("name", ["PORT", "DOWNLOAD_PORT", "BLOB_PORT", "FLEET_PORT", "CONTROL_PORT"])
def test_a_port_in_use_is_told_by_its_setting_and_nothing_is_left_running(tmp_path: Path, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with hub_process(tmp_path, **{"SUPERLINK": "child", name: port}) as hub:
            assert hub.popen.wait(60) == 2
            said = hub.log.read_text()
            told = said + (hub.popen.stdout.read() if hub.popen.stdout else "")
    assert "E_PORT" in told and f"FEDHUB_{name}" in told and port in told
    assert "Traceback" not in told


def test_a_wrong_setting_is_told_by_its_name(tmp_path: Path) -> None:
    with hub_process(tmp_path, STORE_URL="ftp://x/hunter2") as hub:
        assert hub.popen.wait(60) == 2
        assert "Traceback" not in hub.log.read_text()
    with hub_process(tmp_path, LEASE_S="never") as hub:
        assert hub.popen.wait(60) == 2
        assert "FEDHUB_LEASE_S" in hub.log.read_text()


@pytest.mark.slow
def test_superlink_is_a_child_that_knows_the_hub_s_token(tmp_path: Path) -> None:
    with hub_process(tmp_path, SUPERLINK="child") as hub:
        told = hub.ready()
        assert set(hub.children()) == {"storage.blob_server", "federation.flower.superlink"}
        with operator(told, tmp_path) as client:
            assert client.hub().fleet_ca.startswith("-----BEGIN CERTIFICATE-----")
        before = hub.children()["federation.flower.superlink"]
        os.kill(before, signal.SIGKILL)
        assert wait(lambda: hub.children().get("federation.flower.superlink", before) != before)
        assert hub.end() == 0
