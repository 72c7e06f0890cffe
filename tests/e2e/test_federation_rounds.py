"""Rounds between real processes: SuperLink, coordinator and lab agents; the hub is one in memory behind a
port.

Whoever is killed with -9, the run ends as if nothing had happened: same weights, no round twice.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from federation import training
from federation.flower.control import Control
from federation.flower.launch import SuperLinkProcess
from federation.home import Home
from federation.ledger import SiteLedger
from federation.lifeline import code_path
from storage.signing import public_pem
from tests.round_hub import PARAMETERS, RoundHub, serve

SITE = """
import sys
from pathlib import Path
from federation.home import Home
from federation.supervisor import run_site
run_site(Home.open(Path(sys.argv[1])), say=lambda line: print(line, file=sys.stderr, flush=True))
"""
# A node that sends itself signals at given moments: "SIGTERM before DeactivateNode 2" is just before its second call.
TOLD_NODE = """
import os, signal, sys
from pathlib import Path
from federation.flower import node
from federation.flower.quiet import keep_quiet
from federation.home import Home
keep_quiet(Home.open(Path(sys.argv[1])).site / "flower")
from flwr.supernode.fleet_http_client import FleetHttpClient

moments = [moment.split() for moment in sys.argv[2].split(", ")]

def told_at(call):
    own, calls = getattr(FleetHttpClient, call), []

    def tell(place):
        for name, *moment in moments:
            if moment == [place, call, str(len(calls))]:
                os.kill(os.getpid(), signal.Signals[name])

    def called(self, request):
        calls.append(request)
        tell("before")
        answer = own(self, request)
        tell("after")
        return answer

    setattr(FleetHttpClient, call, called)

for call in ("ActivateNode", "DeactivateNode", "PullMessages"):
    told_at(call)
sys.exit(node.main(["--home", sys.argv[1]]))
"""
SLOW = {**PARAMETERS, "epochs": 400, "batch": 4}  # about two seconds of training a round


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    until = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < until, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.05)


class Play:
    """All processes of one run."""

    def __init__(
        self,
        folder: Path,
        *,
        rounds: int,
        parameters: dict[str, Any] = PARAMETERS,
        allowed: tuple[str, ...] = (),
        **config: Any,
    ) -> None:
        self.folder = folder
        self.processes = ExitStack()
        self.allowed = allowed
        self.fleet_port, self.hub_port = free_port(), free_port()
        for name in ("token", "coordinator-token"):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(secrets.token_hex(32))
        self.sites: dict[str, subprocess.Popen[bytes]] = {}
        self.start_superlink()
        ca = (folder / "link" / "tls" / "fleet-ca.pem").read_text()
        self.hub = RoundHub.start(
            folder / "hub",
            endpoint=f"http://127.0.0.1:{self.hub_port}",
            fleet=f"127.0.0.1:{self.fleet_port}",
            ca=ca,
        )
        for number, name in enumerate(("lab-a", "lab-b")):
            self.hub.add_lab(name, self._rows(folder / name, number), ca=ca)
        self.plan = self.hub.submit(
            self._weights(parameters), rounds=rounds, minimum=2, parameters=parameters, **config
        )
        for name in self.hub.labs:
            self.hub.consent(name)
        self.url = self.processes.enter_context(serve(self.hub, port=self.hub_port))

    def start_superlink(self) -> None:
        self.link = SuperLinkProcess(
            self.folder / "link",
            self.folder / "token",
            fleet=f"127.0.0.1:{self.fleet_port}",
            hosts=("127.0.0.1",),
            fleet_body=32 << 20,
            allowed_apps=self.allowed,
        )
        self.addresses = self.link.wait_ready()
        self.control = Control(f"http://{self.addresses.local}", (self.folder / "token").read_text())

    def register_nodes(self) -> None:
        for lab in self.hub.labs.values():
            lab.node_id = self.control.register_node(node_pem(lab.home), lab.home.institution)

    def start_site(self, name: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        command = [sys.executable, "-c", SITE, str(self.hub.labs[name].home.path)]
        self.sites[name] = subprocess.Popen(
            command, stderr=log, env={**os.environ, **code_path()}, start_new_session=True
        )
        log.close()

    def wait_online(self) -> None:
        wait_for(
            lambda: sum(node.online for node in self.control.list_nodes()) >= len(self.hub.labs),
            "agents online",
        )

    def start(self) -> str:
        """Start the run's next attempt; its Flower run id."""
        self.run = self.control.start_run(
            {
                "hub": self.url,
                "plan": self.plan,
                "attempt": self.hub.attempt,
                "token-file": str(self.folder / "coordinator-token"),
            }
        )
        return self.run

    def up(self) -> None:
        self.register_nodes()
        for name in self.hub.labs:
            self.start_site(name)
        self.wait_online()
        self.start()

    def wait_ended(self, seconds: float = 120) -> Any:
        try:
            return wait_for(lambda: self.hub.ended, "the end of the run", seconds)
        except AssertionError as error:
            logs = "".join(self.control.logs(self.run)) if self.control.status(self.run) else ""
            sites = "".join((self.folder / f"{name}.log").read_text() for name in self.sites)
            raise AssertionError(f"{error}\n{self.hub.events}\n{logs}\n{sites}") from error

    def flower_ended(self, run: str) -> str:
        """How a Flower run ended, empty before."""
        found = self.control.status(run)
        return found.outcome if found is not None else ""

    def children(self, module: str) -> list[int]:
        """Process ids of our descendants that run this module."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_text().split("\0")
                surroundings = str(self.folder) in " ".join(words) or self.addresses.local in words
            except OSError:
                continue
            if module in words and surroundings:
                found.append(int(path.parent.name))
        return found

    def check_done_once(self) -> None:
        """Every round has one receipt of each site, and each site trained it once."""
        assert [report.round for report in self.hub.rounds] == list(range(1, self.hub.rounds_planned + 1))
        for report, after in zip(self.hub.rounds, self.hub.rounds[1:], strict=False):
            assert after.input == report.aggregate
        for lab in self.hub.labs.values():
            rounds = [one.predicate["round"] for one in self.hub.receipts(lab.home.institution)]
            assert rounds == list(range(1, self.hub.rounds_planned + 1))
            with SiteLedger(lab.home.site / "ledger.db") as ledger:
                assert [answer.round for answer in ledger.answers()] == rounds

    def close(self) -> None:
        for site in self.sites.values():
            site.terminate()
        for site in self.sites.values():
            try:
                site.wait(20)
            except subprocess.TimeoutExpired:
                site.kill()
                site.wait()
        self.control.close()
        self.link.stop()
        self.processes.close()
        self.hub.stop()

    def _rows(self, folder: Path, seed: int) -> Path:
        import random

        numbers = random.Random(seed)
        folder.mkdir()
        lines = ["label," + ",".join(f"p{number:02d}" for number in range(16))]
        lines += [
            ",".join(
                str(number) for number in [numbers.randrange(3), *(numbers.randrange(17) for _ in range(16))]
            )
            for _ in range(30)
        ]
        for name in ("train.csv", "heldout.csv"):
            (folder / name).write_text("\n".join(lines) + "\n")
        return folder

    def _weights(self, parameters: dict[str, Any]) -> Path:
        from federation.recipes.image_classification import build
        from federation.recipes.loop import repeatable

        with repeatable(5):
            training.save_weights(build(parameters), self.folder / "base.safetensors")
        return self.folder / "base.safetensors"


def node_pem(home: Home) -> str:
    return public_pem(home.key("node").public_key())


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Play]]:
    made: list[Play] = []

    def start(**options: Any) -> Play:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Play(folder, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


# --- undisturbed --------------------------------------------------------------------------------------------


def test_two_agents_and_a_coordinator_finish_a_run_by_reference(play: Callable[..., Play]) -> None:
    one = play(rounds=3)
    one.up()
    ended = one.wait_ended()
    assert (ended.state, ended.reason) == ("finished", None)
    one.check_done_once()
    assert wait_for(lambda: one.flower_ended(one.run) == "completed", "the Flower run's end")
    assert (one.folder / "link" / "coordinator").is_dir()
    assert list((one.folder / "link" / "coordinator").iterdir()) == []


def test_an_agent_that_is_told_to_end_leaves_its_node_free(play: Callable[..., Play]) -> None:
    one = play(rounds=1)
    one.register_nodes()
    one.start_site("lab-a")
    wait_for(lambda: any(node.online for node in one.control.list_nodes()), "agent online")
    (agent,) = one.children("federation.flower.node")
    one.sites["lab-a"].send_signal(signal.SIGTERM)
    assert one.sites["lab-a"].wait(20) == 0
    # At once, and not when the lease ends by itself, a minute later.
    wait_for(lambda: not any(node.online for node in one.control.list_nodes()), "the node is free", 10)
    assert not Path(f"/proc/{agent}").exists()


def test_a_node_is_free_whenever_its_process_was_told_to_end(play: Callable[..., Play]) -> None:
    one = play(rounds=1)
    one.register_nodes()
    home = one.hub.labs["lab-a"].home
    for moments in (
        "SIGTERM after ActivateNode 1",  # it asks first whether it is admitted, and gives that lease back
        "SIGTERM before DeactivateNode 1",
        "SIGTERM after ActivateNode 2",  # then it connects
        "SIGTERM before PullMessages 1, SIGTERM before DeactivateNode 2",  # as from systemd: all of us, then again
        "SIGINT before PullMessages 1, SIGTERM before DeactivateNode 2",  # flwr's own interrupt, when refused
    ):
        (home.site / "node.json").unlink(missing_ok=True)
        ended = subprocess.run(
            [sys.executable, "-c", TOLD_NODE, str(home.path), moments],
            env={**os.environ, **code_path()},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as after a shell's "&"
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, (moments, ended.stderr)
        assert not any(node.online for node in one.control.list_nodes()), moments


def test_a_ctrl_c_ends_a_site_in_order(play: Callable[..., Play]) -> None:
    one = play(rounds=1)
    one.register_nodes()
    one.start_site("lab-a")
    wait_for(lambda: '{"node"' in (one.folder / "lab-a.log").read_text(), "agent connected")
    (agent,) = one.children("federation.flower.node")
    foreground = one.sites["lab-a"].pid
    assert os.getpgid(agent) != foreground, "the agent must not be interrupted beside its supervisor"
    os.killpg(foreground, signal.SIGINT)  # as a terminal does
    assert one.sites["lab-a"].wait(20) == 0
    assert not any(node.online for node in one.control.list_nodes())


def test_a_second_agent_of_the_same_home_does_not_start(play: Callable[..., Play]) -> None:
    one = play(rounds=1)
    one.register_nodes()
    one.start_site("lab-a")
    wait_for(lambda: any(node.online for node in one.control.list_nodes()), "agent online")
    home = one.hub.labs["lab-a"].home.path
    second = subprocess.run(
        [sys.executable, "-m", "federation.flower.node", "--home", str(home)],
        env={**os.environ, **code_path()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 2
    assert "E_SITE_RUNNING" in second.stderr


# --- killed -------------------------------------------------------------------------------------------------


@pytest.mark.fault
def test_an_agent_killed_while_it_trains_costs_nothing_but_time(play: Callable[..., Play]) -> None:
    one = play(rounds=3, parameters=SLOW)
    one.up()
    wait_for(lambda: len(one.hub.rounds) == 1, "round 1")
    time.sleep(0.5)
    (agent,) = [pid for pid in one.children("federation.flower.node") if "lab-b" in _command(pid)]
    os.kill(agent, signal.SIGKILL)
    assert one.wait_ended().state == "finished"
    one.check_done_once()


@pytest.mark.fault
def test_a_site_killed_whole_and_started_again_goes_on(play: Callable[..., Play]) -> None:
    one = play(rounds=3, parameters=SLOW)
    one.up()
    wait_for(lambda: len(one.hub.rounds) == 1, "round 1")
    one.sites["lab-a"].kill()
    one.sites["lab-a"].wait()
    one.start_site("lab-a")
    assert one.wait_ended().state == "finished"
    one.check_done_once()


@pytest.mark.fault
def test_a_coordinator_killed_in_a_round_is_followed_by_the_next_attempt(play: Callable[..., Play]) -> None:
    one = play(rounds=3, parameters=SLOW)
    one.up()
    wait_for(lambda: len(one.hub.rounds) == 1, "round 1")
    time.sleep(1.0)
    (coordinator,) = one.children("federation.flower.executor")
    os.kill(coordinator, signal.SIGKILL)
    wait_for(lambda: one.flower_ended(one.run), "the Flower run's end", 20)
    one.hub.attempt = 2
    one.start()
    assert one.wait_ended().state == "finished"
    one.check_done_once()


@pytest.mark.fault
def test_a_superlink_killed_in_a_round_loses_nothing(play: Callable[..., Play]) -> None:
    one = play(rounds=3, parameters=SLOW)
    one.up()
    wait_for(lambda: len(one.hub.rounds) == 1, "round 1")
    time.sleep(1.0)
    agents = one.children("federation.flower.node")
    one.link.process.kill()
    one.link.stop()
    wait_for(lambda: not one.children("federation.flower.executor"), "the coordinator's end")
    one.control.close()
    one.start_superlink()
    one.register_nodes()
    one.wait_online()
    assert one.children("federation.flower.node") == agents, "agents stay warm and connect again"
    one.hub.attempt = 2
    one.start()
    assert one.wait_ended().state == "finished"
    one.check_done_once()


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
