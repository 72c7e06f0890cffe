"""Seconds per round and peak memory: our rounds by reference beside stock Flower FedAvg by value, in one run.

``python tests/bench/bench_rounds.py [--mb 1] [--sites 2] [--rounds 5] [--json FILE] [--only ours|stock]``;
each option also from the environment: MB, SITES, ROUNDS, JSON. Ours is the product as it is: a hub process
with its database and log, blob server, SuperLink, one agent per site, orders and receipts signed, every
transfer checked; each site makes one step of a network of that size. Stock is flwr's own SuperLink,
SuperNodes and FedAvg with clients that add a constant. All processes share this machine; the first round is
not counted in the median.

A site's files lie on no disk that it shares with the hub and the other sites, as at a site: in memory, where
there is room (``--site-files FOLDER`` puts them elsewhere). Stock's clients write no files.
"""

import argparse
import base64
import itertools
import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from federation import deciding, planning, publishing, training
from federation.flower.control import Control
from federation.flower.executor import build_bundle
from federation.flower.quiet import QUIET
from federation.home import Home
from federation.joining import join, register_site
from federation.lifeline import code_path, python_command
from federation.plan import make_model_config
from federation.supervisor import LEAN
from storage.encoding import canonical
from tests.bench.watch import Watch, per_round

OURS = {
    "federation.flower.superlink": "superlink",
    "federation.flower.executor": "coordinator",
    "federation.flower.node": "agent",
    "many_sites.py": "agents",
    "storage.blob_server": "blob server",
    "hub\0up": "hub",
}
STOCK = {
    "flower-superlink": "superlink",
    "flower-superexec": "superexec",
    "flwr-serverapp": "serverapp",
    "flower-supernode": "supernode",
    "flwr-clientapp": "clientapp",
}
LIMIT_S = 1800.0
TOGETHER = 16  # more sites than these share one process
MANY_SITES = Path(__file__).with_name("many_sites.py")
BARE_TRAINING = Path(__file__).with_name("bare_training.py")
ROWS = 1  # of each site: one step moves every weight, and the rest of the round is not torch


@dataclass
class Figures:
    """What one side needed."""

    seconds_per_round: list[float] = field(default_factory=list)
    peak_rss_mb: dict[str, float] = field(default_factory=dict)
    cpu_s_per_round: dict[str, float] = field(default_factory=dict)
    start_to_first_round_s: float = 0.0
    bare_training_mb: float = 0.0  # what torch alone needs for the same step

    @property
    def median(self) -> float:
        later = self.seconds_per_round[1:] or self.seconds_per_round
        return statistics.median(later)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(
    condition: Callable[[], Any], what: str, seconds: float = LIMIT_S, *, every_s: float = 0.1
) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > until:
            raise SystemExit(f"{what} did not happen within {seconds:g} s")
        time.sleep(every_s)
    return found


@contextmanager
def process(command: list[str], surroundings: Mapping[str, str], log: Path, **options: Any) -> Iterator[Any]:
    with log.open("ab") as output:
        running = subprocess.Popen(command, env=dict(surroundings), stderr=output, **options)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        if running.stdout is not None:
            running.stdout.close()


# --- ours ---------------------------------------------------------------------------------------------------


def side_of(mb: float) -> int:
    """Pictures of 16 x 16, without many columns; of 32 x 32 where a network is to have 500 MB and more."""
    return 16 if mb < 300 else 32


def parameters(mb: float) -> dict[str, Any]:
    """A network of about ``mb`` MB of float32 weights."""
    side = side_of(mb)
    filters = 8 if mb < 5 else 32 if mb < 50 else 128 if mb < 600 else 512
    hidden = max(1, min(4096, round((mb * 250_000 - 9 * filters**2) / (side**2 // 4 * filters))))
    return {
        "channels": 1,
        "height": side,
        "width": side,
        "filters": filters,
        "hidden": hidden,
        "classes": 2,
        "pixelMax": 16,
        "epochs": 1,
        "batch": 4,
        "learningRate": "0.01",
        "momentum": "0",
        "proximalMu": "0",
    }


def room_for_sites(mb: float, sites: int) -> Path | None:
    """Memory that looks like a disk, if the sites' inputs and updates are a small part of it."""
    memory, needed = Path("/dev/shm"), 6 * mb * sites * 1e6 + 2e8
    return memory if memory.is_dir() and needed < shutil.disk_usage(memory).free / 3 else None


def ours(folder: Path, mb: float, sites: int, rounds: int, site_files: Path | None) -> Figures:
    """A whole alliance with ``sites`` labs, and one run of a plan."""
    folder.mkdir(parents=True)
    names = [f"lab-{number}" for number in range(sites)]
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(OURS))
        operator = start_hub(stack, folder)
        at_sites = Path(tempfile.mkdtemp(prefix="bench-sites-", dir=site_files or folder))
        stack.callback(shutil.rmtree, at_sites)
        homes = {name: enrol(at_sites, operator, name) for name in ["owner", *names]}
        for name, home in homes.items():
            for other, peer in homes.items():
                if name != other:
                    home.pin(peer.institution, peer.ring.pin)
        for number, name in enumerate(names):
            describe(at_sites, homes[name], number, side_of(mb) ** 2)
        plan = make_plan(folder, homes["owner"], [homes[name] for name in names], mb, rounds)
        start_sites(stack, folder, [homes[name] for name in names])
        client = homes["owner"].client()
        wait_for(
            lambda: sum(site.online for site in client.sites()) == sites, "agents online", 120 + 10 * sites
        )
        began = time.monotonic()
        client.start_run(plan)
        wait_for(lambda: client.run(plan).rounds, "the first round")
        first, before = time.monotonic() - began, watch.spent()
        run = wait_for(lambda: _ended(client.run(plan)), "the end of our run", every_s=1.0)
        if run.state != "finished":
            raise SystemExit(f"our run ended {run.state}: {run.reason}")
        spent = per_round(before, watch.spent(), rounds - 1)
        figures = Figures([one.seconds for one in client.whole_run(plan).rounds], {}, spent, round(first, 2))
    figures.peak_rss_mb = watch.peaks
    figures.bare_training_mb = bare_training(mb)
    return figures


def bare_training(mb: float) -> float:
    """Peak memory of a process that only imports torch and makes the same step, in MB."""
    command = [sys.executable, str(BARE_TRAINING), json.dumps(parameters(mb)), str(ROWS)]
    ended = subprocess.run(command, env={**os.environ, **LEAN}, check=True, capture_output=True, text=True)
    return round(float(ended.stdout), 1)


def start_sites(stack: ExitStack, folder: Path, labs: list[Home]) -> None:
    """A supervised agent for each lab; above ``TOGETHER`` labs all agents in one process."""
    surroundings = {**os.environ, **code_path()}
    if len(labs) > TOGETHER:
        for lab in labs:
            register_site(lab, lab.institution.partition(".")[0])
        commands = [[sys.executable, str(MANY_SITES), *(str(lab.path) for lab in labs)]]
    else:
        commands = [python_command("hub", "--home", str(lab.path), "site", "up", "--json") for lab in labs]
    for number, command in enumerate(commands):
        log = folder / f"sites-{number}.log"
        stack.enter_context(process(command, surroundings, log, stdout=subprocess.DEVNULL))


def _ended(run: Any) -> Any:
    return run if run.state not in ("starting", "running") else None


def start_hub(stack: ExitStack, folder: Path) -> Home:
    ports = {
        name: str(free_port())
        for name in ("PORT", "DOWNLOAD_PORT", "BLOB_PORT", "FLEET_PORT", "CONTROL_PORT")
    }
    surroundings = {
        **os.environ,
        **code_path(),
        **{f"FEDHUB_{name}": port for name, port in ports.items()},
        "FEDHUB_DATA_DIR": str(folder / "hub"),
        "FEDHUB_OPERATOR_HOME": str(folder / "operator"),
    }
    command = python_command("hub", "--home", str(folder / "operator"), "hub", "up", "--json")
    hub = stack.enter_context(process(command, surroundings, folder / "hub.log", stdout=subprocess.PIPE))
    if not hub.stdout.readline():
        raise SystemExit("the hub did not start:\n" + (folder / "hub.log").read_text()[-2000:])
    return Home.open(folder / "operator")


def enrol(folder: Path, operator: Home, name: str) -> Home:
    full = f"{name}.example"
    with operator.client() as client:
        invitation = client.invite(full, "owner" if name == "owner" else "lab")
        code = base64.urlsafe_b64encode(canonical(invitation.model_dump(mode="json"))).rstrip(b"=").decode()
        home, _ = join(folder / "homes" / name, full, code)
        client.approve(full)
    return home


def describe(folder: Path, home: Home, seed: int, pixels: int) -> None:
    numbers = random.Random(seed)
    data = folder / "data" / home.institution
    data.mkdir(parents=True)
    lines = ["label," + ",".join(f"p{number:02d}" for number in range(pixels))]
    for _ in range(ROWS):
        lines.append(",".join(str(numbers.randrange(2 if place == 0 else 17)) for place in range(pixels + 1)))
    for name in ("train.csv", "heldout.csv"):
        (data / name).write_text("\n".join(lines) + "\n")
    with home.client() as client:
        publishing.describe_dataset(
            home,
            client,
            data,
            f"{home.institution}/data",
            description="Random pictures.",
            license_id="CC0-1.0",
        )


def make_plan(folder: Path, owner: Home, labs: list[Home], mb: float, rounds: int) -> str:
    from federation.recipes.image_classification import build
    from federation.recipes.loop import repeatable

    base = folder / "base"
    base.mkdir()
    settings = parameters(mb)
    (base / "config.json").write_bytes(make_model_config("image-classification", settings))
    with repeatable(1):
        training.save_weights(build(settings), base / "model.safetensors")
    with owner.client() as client:
        publishing.push_version(owner, client, base, "owner.example/bench", license_id="CC0-1.0")
        terms = planning.Terms(
            participants=[f"{lab.institution}/data" for lab in labs],
            rounds=rounds,
            round_deadline_s=3600,
            keep_updates=False,
        )
        draft = planning.draft_plan(client, folder / "plan", "owner.example/bench@1", terms)
        plan = planning.submit_draft(owner, client, draft).id
    for lab in labs:
        with lab.client() as client:
            checked, _ = deciding.read_checked_plan(lab, client, plan)
            deciding.consent(lab, client, checked)
    return plan


# --- stock --------------------------------------------------------------------------------------------------

APP = {
    "pyproject.toml": b"""
[project]
name = "stock"
version = "1.0.0"
description = "Flower FedAvg as it comes"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.42"]
[tool.flwr.app]
publisher = "bench"
fab-format-version = 1
flwr-version-target = "1.42.0"
[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"
[tool.flwr.app.config]
mb = 1.0
sites = 2
rounds = 3
out = ""
""",
    "LICENSE": b"Apache-2.0",
    "stock/__init__.py": b"",
    "stock/server.py": b"""
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

class Timed(FedAvg):
    def configure_train(self, *arguments, **options):
        times.append(time.time())
        return super().configure_train(*arguments, **options)

times = []

@app.main()
def main(grid, context):
    config, arrays, left = context.run_config, {}, int(context.run_config["mb"] * 250_000)
    numbers = np.random.default_rng(1)  # equal arrays would travel once only: Flower names them by digest
    while left > 0:
        count = min(2_000_000, left)
        arrays[f"t{len(arrays):04d}"] = Array(numbers.standard_normal(count, np.float32))
        left -= count
    sites = config["sites"]
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(arrays), num_rounds=config["rounds"])
    times.append(time.time())
    with open(config["out"], "w") as file:
        json.dump(times, file)
""",
    "stock/client.py": b"""
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    step = np.float32(context.node_id % 1000 / 1e6)  # another one at each site
    got = message.content["arrays"]
    moved = ArrayRecord({name: Array(array.numpy() + step) for name, array in got.items()})
    return Message(RecordDict({"arrays": moved, "metrics": MetricRecord({"num-examples": 4})}), reply_to=message)
""",
}


def stock(folder: Path, mb: float, sites: int, rounds: int, _: Path | None) -> Figures:
    """flwr's own programs, as its documentation starts them on one machine."""
    folder.mkdir(parents=True, exist_ok=True)
    tools, port, out = Path(sys.executable).parent, free_port(), folder / "times.json"
    bundle = build_bundle(APP)
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(STOCK))

        def start(name: str, *arguments: str) -> None:
            surroundings = {
                **os.environ,
                **QUIET,
                "FLWR_HOME": str(folder / name),
                "PATH": f"{tools}:{os.environ['PATH']}",
            }
            command = [str(tools / arguments[0]), *arguments[1:]]
            log = folder / f"{name}.log"
            stack.enter_context(process(command, surroundings, log, stdout=subprocess.DEVNULL, cwd=folder))

        start("link", "flower-superlink", "--insecure", "--port", str(port))
        control = stack.enter_context(Control(f"http://127.0.0.1:{port}", "none"))
        wait_for(lambda: _reachable(port), "stock SuperLink", 60)
        for number in range(sites):
            own = ("--port", str(free_port()))
            start(
                f"node-{number}", "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", *own
            )
        wait_for(
            lambda: sum(node.online for node in control.list_nodes()) == sites, "stock nodes online", 300
        )
        began = time.time()
        config = {"mb": mb, "sites": sites, "rounds": rounds, "out": str(out)}
        run = control.start_bundle(bundle.content, config)
        wait_for(lambda: _over(control, run), "the end of stock Flower's run")
        if not out.exists():
            raise SystemExit("stock Flower's run failed:\n" + "".join(control.logs(run))[-2000:])
        times = json.loads(out.read_text())
        seconds = [round(after - before, 3) for before, after in itertools.pairwise(times)]
        figures = Figures(seconds, {}, {}, round(times[1] - began, 2))
    figures.peak_rss_mb = watch.peaks
    return figures


def _over(control: Control, run: str) -> bool:
    found = control.status(run)
    return found is None or found.state == "finished"


def _reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- both ---------------------------------------------------------------------------------------------------


def table(figures: Mapping[str, Figures], mb: float, sites: int) -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        f"{mb:g} MB, {sites} sites; {os.cpu_count()} cores, Python {platform.python_version()}, load {load}",
        f"{'':8} {'s/round':>9} {'min':>8} {'max':>8} {'1st round':>10}   peak memory, MB",
    ]
    for name, one in figures.items():
        memory = ", ".join(f"{kind} {peak:.0f}" for kind, peak in sorted(one.peak_rss_mb.items()))
        seconds = one.seconds_per_round
        lines.append(
            f"{name:8} {one.median:9.3f} {min(seconds):8.3f} {max(seconds):8.3f} "
            f"{one.start_to_first_round_s:10.2f}   {memory}"
        )
    for name, one in figures.items():
        if one.cpu_s_per_round:
            spent = ", ".join(f"{kind} {value:.2f}" for kind, value in sorted(one.cpu_s_per_round.items()))
            lines.append(f"{name}: CPU seconds a round: {spent}")
        if one.bare_training_mb and "agent" in one.peak_rss_mb:
            bare, agent = one.bare_training_mb, one.peak_rss_mb["agent"]
            lines.append(
                f"{name}: agent {agent:.0f} MB at its peak, {agent - bare:.0f} MB beyond a bare torch process "
                f"that makes the same step ({bare:.0f} MB)"
            )
    if len(figures) == 2:
        lines.append(f"ours takes 1/{figures['stock'].median / figures['ours'].median:.1f} of stock's time")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=float, default=float(os.environ.get("MB") or 1))
    parser.add_argument("--sites", type=int, default=int(os.environ.get("SITES") or 2))
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS") or 5))
    parser.add_argument("--json", type=Path, default=os.environ.get("JSON") or None)
    parser.add_argument("--only", choices=("ours", "stock"))
    parser.add_argument("--site-files", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-rounds-"))
    site_files = options.site_files or room_for_sites(options.mb, options.sites)
    sides: dict[str, Callable[..., Figures]] = {"ours": ours, "stock": stock}
    figures: dict[str, Figures] = {}
    try:
        for name, measure in sides.items():
            if options.only in (None, name):
                figures[name] = measure(folder / name, options.mb, options.sites, options.rounds, site_files)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(figures, options.mb, options.sites))
    if options.json:
        told = {name: vars(one) for name, one in figures.items()}
        Path(options.json).write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
