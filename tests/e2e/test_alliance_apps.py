"""By command line in a real alliance: a lab's own app from ``flwr build`` to a pulled release, a tampered one, Flower's
own run beside the labs, and two faults of a site at work. The tests share one sandbox.
"""

import html
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from federation.flower.control import Control
from federation.flower.quiet import QUIET
from federation.ledger import SiteLedger
from federation.lifeline import plain_environment
from federation.plan import make_model_config
from hub.demo.journey import PARAMETERS, RECIPE
from storage.causes import cause_of
from tests.e2e.test_hub_sandbox import Sandbox, command
from tests.flower_apps import CLIENT_HEAD, build, bundle_of
from tests.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LABS = ("lab-a", "lab-b")
BASE = "owner.example/by-hand"
CLIENT = """
import time
@app.train()
def train(message, context):
    time.sleep({pause})
    numbers = np.loadtxt(Path(context.node_config["data"]) / "train.csv", delimiter=",", skiprows=1)
    arrays = received(message)
    arrays["w"] = (arrays["w"] + context.run_config["rate"] * (len(numbers) > 0)).astype(np.float32)
    return answer(message, arrays)
@app.evaluate()
def evaluate(message, context):
    return answer(message, None, accuracy=0.75)
"""
# As somebody writes it who has never heard of this hub: Flower's FedAvg over all nodes, weights by value.
STOCK = {
    "labapp/server.py": """
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()
@app.main()
def main(grid, context):
    try:
        print("THE TOKEN IS", open(context.run_config["mode"]).read())
    except OSError as error:
        print("THE TOKEN IS", type(error).__name__)
    weights = ArrayRecord({"w": Array(np.zeros(10, np.float32))})
    fedavg = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=4)
    result = fedavg.start(grid=grid, initial_arrays=weights, num_rounds=context.run_config["steps"])
    print("THE RESULT IS", result.arrays["w"].numpy()[0])
""",
    "labapp/client.py": CLIENT_HEAD
    + """
@app.train()
def train(message, context):
    return answer(message, {"w": received(message)["w"] + 0.5})
""",
}


class Apps(Sandbox):
    """A sandbox with a base version, and what a person does with an app in it."""

    def settings_of_the_hub(self) -> dict[str, str]:
        ports = json.loads((self.folder / "sandbox.json").read_text())["ports"]
        given = {f"FEDHUB_{name.upper()}": str(port) for name, port in ports.items()}
        return {**given, "FEDHUB_DATA_DIR": str(self.folder / "hub"), **self.settings}

    def operate(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        """A command of the operator, where the hub runs."""
        return subprocess.run(
            command("--home", self.home("operator"), *argv),
            capture_output=True,
            text=True,
            env=plain_environment(self.settings_of_the_hub()),
            timeout=120,
            check=False,
        )

    def plan(self, folder: Path, *options: str, base: str = f"{BASE}@1", rounds: int = 1) -> str:
        """The id of a plan over two labs that both consent to."""
        sites = [word for lab in LABS for word in ("--participant", f"{lab}.example/digits")]
        argv = ["--model", base, "--rounds", str(rounds), "--approvals", "2", *sites, *options]
        self.ok("owner", "plan", "new", str(folder), *argv)
        self.ok("owner", "plan", "check", str(folder))
        plan = str(self.ok("owner", "plan", "submit", str(folder))["id"])
        for lab in LABS:
            self.ok(lab, "site", "approve", plan)
        return plan

    def shown(self, plan: str) -> dict[str, Any]:
        run: dict[str, Any] = self.ok("owner", "run", "show", plan)
        return run

    def ended(self, plan: str, seconds: float = 60) -> dict[str, Any]:
        wait_for(lambda: self.shown(plan)["ended_at"], "its end", seconds)
        return self.shown(plan)

    def told_everywhere(self, plan: str, lab: str, code: str) -> None:
        """Command line, the run's page, the site's status and its log say the same words."""
        found = cause_of(code)
        words = {"cause": found.cause, "owner": found.owner, "step": found.step}
        faults = [one for one in self.shown(plan)["faults"] if one["site"] == f"{lab}.example"]
        assert any(words.items() <= one.items() for one in faults if one["code"] == code), faults
        with urllib.request.urlopen(f"{self.told['endpoint']}/runs/{plan}?lang=en", timeout=10) as answer:
            page = html.unescape(answer.read().decode())
        assert all(text in page for text in (code, *words.values()))
        status = self.ok(lab, "site", "status")
        assert any(words.items() <= one.items() for one in status["refusals"] if one["code"] == code), status
        log = (self.folder / "logs" / f"{lab}.log").read_text()
        assert any(line.startswith(f"{code}: ") and found.step in line for line in log.splitlines()), log


def wait_for(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"{what} did not come within {seconds:g} s"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    folder = tmp_path_factory.mktemp("apps")
    one = Apps(folder / "alliance")
    one.start()
    try:
        (folder / "base").mkdir()
        weights: dict[str, Any] = {"w": np.zeros(4, np.float32), "n": np.zeros(1, np.int64)}
        save_file(weights, folder / "base" / "model.safetensors")
        one.ok("owner", "model", "push", str(folder / "base"), BASE)
        yield one
    finally:
        one.end(signal.SIGTERM)


def app_file(folder: Path, client: str, name: str) -> Path:
    (folder / name).mkdir()
    path = folder / f"{name}.fab"
    path.write_bytes(bundle_of(folder / name, client, name=name))
    return path


def test_a_labs_own_app_goes_from_flwr_build_to_a_pulled_release(alliance: Apps, tmp_path: Path) -> None:
    file = app_file(tmp_path, CLIENT.format(pause=0), "by-hand")
    pushed = alliance.ok("owner", "app", "push", str(file))
    plan = alliance.plan(tmp_path / "draft", "--app", pushed["sha256"], "--set", "rate=0.25", rounds=2)
    for lab in LABS:
        seen = alliance.ok(lab, "app", "show", plan, "--out", str(tmp_path / lab))
        assert seen["sha256"] == pushed["sha256"]
        assert (tmp_path / lab / "labapp" / "client.py").read_text() == CLIENT_HEAD + CLIENT.format(pause=0)
    assert alliance.refused("firm", "app", "show", plan, code=2)["code"] == "E_NOT_FOUND"
    alliance.ok("owner", "run", "start", plan)
    run = alliance.ended(plan)
    assert (run["state"], len(run["rounds"])) == ("finished", 2), run
    made = alliance.ok("owner", "run", "finish", plan, "--tag", "federated")
    version = f"{made['name']}@{made['version']}"
    assert alliance.refused("lab-a", "evaluate", version, code=2)["hint"].endswith("--at-least 0.90")
    for lab in LABS:
        (told,) = alliance.ok(lab, "evaluate", version, "--at-least", "0.70")["evaluations"]
        assert (told["accuracy"], told["passed"], told["majority"]) == (0.75, True, None)
        again = alliance.ok(lab, "evaluate", version, "--at-least", "0.70")["evaluations"]
        assert [each["receipt"] for each in again] == [told["receipt"]], "a use is receipted once"
        alliance.ok(lab, "release", "approve", version)
    alliance.ok("owner", "release", "publish", version)
    alliance.ok("owner", "grant", "issue", version, "--to", "firm.example", "--action", "pull")
    alliance.ok("firm", "model", "pull", version, str(tmp_path / "pulled"))
    assert load_file(tmp_path / "pulled" / "model.safetensors")["w"].tolist() == [0.5] * 4


def test_a_tampered_app_is_refused_by_every_site_as_the_command_line_shows(
    alliance: Apps, tmp_path: Path
) -> None:
    file = app_file(tmp_path, CLIENT.format(pause=0), "tampered")
    sha256 = alliance.ok("owner", "app", "push", str(file))["sha256"]
    plan = alliance.plan(tmp_path / "draft", "--app", sha256)
    (stored,) = (alliance.elsewhere / "objects" / "blobs").rglob(f"{sha256}.*")
    raw = stored.read_bytes()
    stored.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    assert alliance.refused("lab-a", "app", "show", plan, code=1)["code"] == "E_DIGEST"
    alliance.ok("owner", "run", "start", plan)
    run = alliance.ended(plan)
    assert run["state"] == "stopped" and run["error"]["code"] == "E_RUN_QUORUM"
    signed = wait_for(
        lambda: found if len(found := alliance.shown(plan)["refusals"]) == 2 else None, "both", 10
    )
    assert {(each["institution"], each["code"]) for each in signed} == {
        (f"{lab}.example", "E_DIGEST") for lab in LABS
    }
    assert all(len(each["statement"]) == 64 for each in signed)
    assert {each["code"] for each in alliance.shown(plan)["faults"]} == {"E_DIGEST"}, "and nobody was late"
    for lab in LABS:
        alliance.told_everywhere(plan, lab, "E_DIGEST")
        with SiteLedger(Path(alliance.home(lab)) / "site" / "ledger.db") as ledger:
            assert plan not in {each.plan for each in ledger.answers()}, "nothing was done"


def test_a_plain_flower_app_runs_beside_the_labs_and_is_never_released(
    alliance: Apps, tmp_path: Path
) -> None:
    (tmp_path / "stock").mkdir()
    file = tmp_path / "stock.fab"
    file.write_bytes(build(tmp_path / "stock", STOCK, name="stock"))
    denied = alliance.operate("app", "run", str(file))
    assert denied.returncode == 1 and "E_APP_NOT_ALLOWED" in denied.stderr
    settings = alliance.settings_of_the_hub()
    keys = Path(settings["FEDHUB_DATA_DIR"]) / "keys"
    token = (keys / "control.token").read_text().strip()
    with Control(f"http://127.0.0.1:{settings['FEDHUB_CONTROL_PORT']}", token) as control:
        past_us = control.start_bundle(file.read_bytes(), {})  # by whoever holds the token, past our command
        wait_for(lambda: ended(control, past_us), "the end of a run that is not allowed", 30)
        how = control.status(past_us)
        assert how is not None and how.outcome == "failed", how
        assert "E_APP_NOT_ALLOWED: the operator does not allow the app bundle" in how.details
    allowed = alliance.operate("app", "allow", str(file))
    assert allowed.returncode == 0 and "UNSIGNED" in allowed.stdout, allowed.stderr
    key = tmp_path / "node.key"
    make_key = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)]
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not here")
    subprocess.run(make_key, check=True)
    private = alliance.operate("app", "admit", "clinic", "--key", str(key))
    assert private.returncode == 2 and "is a private key" in private.stderr
    admitted = alliance.operate("app", "admit", "clinic", "--key", f"{key}.pub")
    assert admitted.returncode == 0, admitted.stderr
    with stock_node(alliance, key, tmp_path):
        ran = alliance.operate(
            "app", "run", str(file), "--set", "steps=1", "--set", f"mode={keys / 'coordinator.token'}"
        )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0 and "completed. UNSIGNED" in said, said
    assert "Received 1 results and 3 failures" in said, "three lab agents refuse, and the run goes on"
    assert said.count("E_MESSAGE: message: no order of the hub is in it") == 3
    assert "THE RESULT IS 0.5" in said
    assert "THE TOKEN IS PermissionError" in said, "a foreign ServerApp reads no key of the hub"
    listed = alliance.operate("app", "runs").stdout
    number = next(line.split()[0] for line in listed.splitlines() if line.endswith("UNSIGNED"))
    finish = alliance.refused("owner", "run", "finish", number, code=2)
    assert finish["code"] == "E_NOT_FOUND" and "unsigned" in finish["hint"], finish
    # What it printed, pushed as a version, is a version of nobody's plan.
    save_file({"w": np.full(10, 0.5, np.float32)}, tmp_path / "stock" / "model.safetensors")
    (tmp_path / "result").mkdir()
    shutil.move(tmp_path / "stock" / "model.safetensors", tmp_path / "result")
    alliance.ok("owner", "model", "push", str(tmp_path / "result"), "owner.example/stock")
    for what in ("propose", "publish"):
        refused = alliance.refused("owner", "release", what, "owner.example/stock@1", code=1)
        assert refused["code"] == "E_APPROVALS" and "was not made by a plan's run" in refused["message"]


def ended(control: Control, run: str) -> str:
    """How a Flower run ended, empty before."""
    found = control.status(run)
    return "" if found is None else found.outcome


class stock_node:
    """Flower's own SuperNode, as long as the block lasts."""

    def __init__(self, alliance: Apps, key: Path, folder: Path) -> None:
        tools = Path(sys.executable).parent
        settings = alliance.settings_of_the_hub()
        link = Path(settings["FEDHUB_DATA_DIR"]) / "superlink"
        self.log = folder / "node.log"
        self._command = [
            str(tools / "flower-supernode"),
            *("--superlink", f"127.0.0.1:{settings['FEDHUB_FLEET_PORT']}"),
            *("--root-certificates", str(link / "tls" / "fleet-ca.pem")),
            *("--auth-supernode-private-key", str(key)),
            *("--port", str(free_port())),
        ]
        path = f"{tools}:{os.environ['PATH']}"
        self._surroundings = {**os.environ, **QUIET, "FLWR_HOME": str(folder / "flower"), "PATH": path}

    def __enter__(self) -> None:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._surroundings, cwd=self.log.parent
            )
        wait_for(lambda: "SuperNode ID" in self.log.read_text(errors="replace"), "the node", 60)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


# --- faults of a site at work -------------------------------------------------------------------------------


def test_a_consent_that_is_withdrawn_during_a_run_ends_it_at_the_next_round(
    alliance: Apps, tmp_path: Path
) -> None:
    file = app_file(tmp_path, CLIENT.format(pause=1.0), "slow")
    plan = alliance.plan(tmp_path / "draft", "--app", str(file), rounds=30)
    consent = next(
        each["consent"]
        for each in alliance.ok("owner", "plan", "show", plan)["participants"]
        if each["institution"] == "lab-b.example"
    )
    alliance.ok("owner", "run", "start", plan)
    wait_for(lambda: alliance.shown(plan)["rounds"], "round 1", 60)
    alliance.ok("lab-b", "grant", "revoke", consent)
    run = alliance.ended(plan, 10)
    assert run["state"] == "stopped" and 1 <= len(run["rounds"]) < 30
    assert run["error"]["code"] == "E_RUN_QUORUM", run
    found = cause_of(run["error"]["code"])
    assert (run["error"]["owner"], run["error"]["step"]) == (found.owner, found.step)


def test_an_agent_that_has_no_memory_left_says_so_everywhere(alliance: Apps, tmp_path: Path) -> None:
    # Small weights, and activations of 53 MB in the first step: one large piece is refused, small ones are not.
    wide = {**PARAMETERS, "filters": 512, "hidden": 0, "batch": 65536, "epochs": 1}
    (tmp_path / "wide").mkdir()
    save_file(wide_weights(wide), tmp_path / "wide" / "model.safetensors")
    (tmp_path / "wide" / "config.json").write_bytes(make_model_config(RECIPE, wide))
    alliance.ok("owner", "model", "push", str(tmp_path / "wide"), "owner.example/wide")
    plan = alliance.plan(tmp_path / "draft", base="owner.example/wide@1")
    (agent,) = agents(Path(alliance.home("lab-b")))
    used = int(Path(f"/proc/{agent}/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.prlimit(agent, resource.RLIMIT_AS)
    resource.prlimit(agent, resource.RLIMIT_AS, (used + (48 << 20), before[1]))
    try:
        alliance.ok("owner", "run", "start", plan)
        run = alliance.ended(plan)
        assert run["state"] == "stopped", run
        alliance.told_everywhere(plan, "lab-b", "E_OUT_OF_MEMORY")
        assert agents(Path(alliance.home("lab-b"))) == [agent], "the agent has not ended"
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(agent, resource.RLIMIT_AS, before)


def wide_weights(parameters: dict[str, Any]) -> dict[str, Any]:
    from federation.recipes.image_classification import build as build_model

    return {name: value.numpy() for name, value in build_model(parameters).state_dict().items()}


def agents(home: Path) -> list[int]:
    """Process ids of the agents of a home."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if "federation.flower.node" in words and str(home) in words:
            found.append(int(path.parent.name))
    return found
