"""``compose.yaml`` comes up for real: images built, services healthy, the main job run on it, every container killed.

The tests of this module share one set of containers and run in order. See README.md for what is a stand-in.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from federation import training
from hub.demo import accuracy, attacks
from hub.demo.alliance import LABS, institution
from hub.demo.journey import MODEL, PARAMETERS, RECIPE
from storage.errors import Exit
from tests.compose import engine as engines
from tests.compose.alliance import Outside
from tests.compose.engine import Engine

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

SERVICES = ("hub", "superlink", "postgres", "store")
PORTS = {"hub": {"8000", "8001"}, "superlink": {"8003"}, "postgres": set(), "store": {"9000"}}
PARTS = ("Dockerfile", "compose.yaml", ".dockerignore", "Makefile", "pyproject.toml", "README.md", "docker")
PACKAGES = ("hub", "federation", "storage")
ADDRESS = "127.0.0.77"  # a loopback address of our own, so that nobody else's port is in the way
ROUNDS = 12
UP_S = 120.0
RUN_S = 180.0
CHUNK = 1 << 20


@dataclass
class Site:
    """The containers, the folder they were made from, and the alliance around them."""

    engine: Engine
    checkout: Path
    alliance: Outside
    reference: str = ""

    def container(self, service: str) -> str:
        return f"fedhub-under-test_{service}_1"

    def state(self, service: str) -> dict[str, Any]:
        return dict(self.engine.inspect(self.container(service))["State"])

    def healthy(self) -> bool:
        return all(self.state(service).get("Health", {}).get("Status") == "healthy" for service in SERVICES)

    def up(self) -> None:
        try:
            self.engine.compose(self.checkout, "up", "-d", "--build")
            wait(self.healthy, "healthy containers", UP_S)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{self.engine.compose(self.checkout, 'logs', '--tail', '40')}"
            ) from error

    def secrets(self) -> dict[str, str]:
        """Every secret of this installation, by its file's name."""
        given = {path.name: path.read_text() for path in (self.checkout / "secrets").iterdir()}
        found = self.engine.docker(
            *("exec", self.container("hub"), "sh", "-c"),
            "grep -H . /var/lib/fedhub-shared/*.token /var/lib/fedhub/hub/keys/*.secret",
        )
        made = dict(line.rsplit(":", 1) for line in found.strip().splitlines())
        assert len(given) == 4 and len(made) >= 4
        return given | made


def wait(done: Callable[[], bool], what: str, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < until, f"no {what} within {timeout_s:g} s"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if os.geteuid() != 0:
        pytest.skip("starting a Docker Engine needs root")
    if os.environ.get("FEDHUB_COMPOSE_INSTALL") == "1":
        engines.install()
    if engines.missing():
        names = " ".join(engines.missing())
        pytest.fail(
            f"not installed: {names}. Install them, or set FEDHUB_COMPOSE_INSTALL=1 for Debian's packages."
        )
    folder = tmp_path_factory.mktemp("compose")
    checkout = copy_checkout(folder / "fedhub-under-test")
    with engines.running_engine() as engine:
        alliance = Outside(folder / "alliance", engine, "fedhub-under-test_hub_1")
        site = Site(engine, checkout, alliance)
        engines.make_stand_ins(engine, image_names(checkout))
        try:
            engine.compose(checkout, "down", "-v", "--remove-orphans")  # of a run that was cut short
            site.up()
            yield site
        finally:
            alliance.down()
            engine.compose(checkout, "down", "-v", "--remove-orphans")
            engine.docker("image", "prune", "--force")


def copy_checkout(target: Path) -> Path:
    """The files that an operator has, prepared as the guide says: ``make env``, addresses into ``.env``."""
    target.mkdir()
    for name in (*PARTS, *PACKAGES, *(path.name for path in engines.ROOT.glob("*.lock"))):
        source = engines.ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    subprocess.run(["make", "env", f"PYTHON={sys.executable}"], cwd=target, check=True)
    with (target / ".env").open("a") as settings:
        settings.write(
            f"FEDHUB_BIND={ADDRESS}\nFEDHUB_PUBLIC_URL=http://{ADDRESS}:8000\n"
            f"FEDHUB_DOWNLOAD_URL=http://{ADDRESS}:8001\nFEDHUB_STORE_PUBLIC_URL=http://{ADDRESS}:9000\n"
            f"FEDHUB_FLEET_PUBLIC={ADDRESS}:8003\n"
        )
    return target


def image_names(checkout: Path) -> dict[str, str]:
    """Variable -> default, of the images that compose.yaml takes from a registry."""
    text = (checkout / "compose.yaml").read_text()
    found = {
        name: text.split(f"${{{name}:-")[1].split("}")[0]
        for name in (engines.PYTHON, engines.POSTGRES, engines.STORE)
    }
    assert f"ARG {engines.PYTHON}={found[engines.PYTHON]}\n" in (checkout / "Dockerfile").read_text()
    return found


def test_only_the_four_ports_are_published(site: Site) -> None:
    running = site.engine.docker("ps", "--format", "{{.Names}}").split()
    assert sorted(running) == sorted(map(site.container, SERVICES)), "what else runs"
    for service in SERVICES:
        bound = site.engine.inspect(site.container(service))["NetworkSettings"]["Ports"]
        published = {(one["HostIp"], one["HostPort"]) for each in bound.values() for one in each or ()}
        assert published == {(ADDRESS, port) for port in PORTS[service]}, service


def test_nothing_runs_as_root_or_writes_outside_its_volumes(site: Site) -> None:
    for service in SERVICES:
        found = site.engine.inspect(site.container(service))
        assert found["HostConfig"]["ReadonlyRootfs"], service
        assert found["HostConfig"]["CapDrop"] == ["ALL"] and not found["HostConfig"]["CapAdd"], service
        assert "no-new-privileges:true" in found["HostConfig"]["SecurityOpt"], service
        owners = site.engine.docker("top", site.container(service), "-eo", "uid,gid,pid,args").splitlines()[
            1:
        ]
        assert owners and all(line.split()[:2] == ["10001", "10001"] for line in owners), owners
        said = site.engine.docker("exec", site.container(service), "sh", "-c", "echo x > /usr/x", check=False)
        assert "Read-only file system" in said, service


def test_no_secret_stands_in_an_environment_or_an_image(site: Site) -> None:
    kept = site.secrets()
    for service in SERVICES:
        told = site.engine.docker("inspect", site.container(service))
        assert [name for name, value in kept.items() if value in told] == [], service
    image = site.engine.inspect(site.container("hub"))["Config"]["Image"]
    history = site.engine.docker("history", "--no-trunc", image)
    assert [name for name, value in kept.items() if value in history] == []
    assert find_in_image(site.engine, image, [value.encode() for value in kept.values()]) is None
    canary = b"class Coordinator"
    assert find_in_image(site.engine, image, [canary]) == canary, "the search would find what is there"
    listed = site.engine.docker(
        "exec", site.container("hub"), "sh", "-c", "ls /opt/fedhub/lib/python3*/site-packages"
    )
    assert "flwr" in listed and "torch" not in listed, "the hub's image holds no PyTorch"


def find_in_image(engine: Engine, image: str, wanted: list[bytes]) -> bytes | None:
    """The first of these texts that stands in any layer of an image, or in its description."""
    longest = max(map(len, wanted))
    with engine.open_image(image) as process:
        assert process.stdout is not None
        tail = b""
        found = None
        while chunk := process.stdout.read(CHUNK):
            text = tail + chunk
            found = found or next((each for each in wanted if each in text), None)
            tail = text[-longest:]
    assert process.returncode == 0
    return found


def test_the_main_job_survives_the_death_of_every_container(site: Site, tmp_path: Path) -> None:
    alliance = site.alliance
    alliance.join()
    base = tmp_path / "base"
    base.mkdir()
    training.train_base(RECIPE, PARAMETERS, alliance.data("public"), base, 1, epochs=20)
    alliance.run("owner", "model", "push", str(base), MODEL, "--tag", "base", "--license", "Apache-2.0")
    plan = submit_plan(alliance, tmp_path / "plan")
    for lab in LABS:
        alliance.run(lab, "site", "approve", plan)
    alliance.run("owner", "run", "start", plan)
    for service in SERVICES:
        kill_in_the_middle(site, plan, service)
    watched = alliance.run("owner", "run", "watch", plan, "--timeout", str(RUN_S)).data["run"]
    assert watched["state"] == "finished" and [each["round"] for each in watched["rounds"]] == list(
        range(1, ROUNDS + 1)
    )
    assert all(len(each["receipts"]) == len(LABS) for each in watched["rounds"]), (
        "no lab was left out for our deaths"
    )
    wait(site.healthy, "healthy containers after their deaths", UP_S)
    assert alliance.crashed() is None, "agents outlive every container"
    version = alliance.run("owner", "run", "finish", plan, "--tag", "federated").data
    site.reference = f"{version['name']}@{version['version']}"
    for lab in LABS:
        alliance.run(lab, "evaluate", site.reference)
    alliance.run("lab-a", "release", "approve", site.reference)
    alliance.run("owner", "release", "publish", site.reference, expect=Exit.REFUSED)
    alliance.run("lab-b", "release", "approve", site.reference)
    alliance.run("owner", "release", "publish", site.reference)


def submit_plan(alliance: Outside, folder: Path) -> str:
    arguments = ["plan", "new", str(folder), "--model", f"{MODEL}:base", "--rounds", str(ROUNDS)]
    for lab in LABS:
        arguments += ["--participant", f"{institution(lab)}/digits"]
    alliance.run("owner", *arguments, "--approvals", "2", "--seed", "1", "--deadline", "60")
    return str(alliance.run("owner", "plan", "submit", str(folder)).data["id"])


def kill_in_the_middle(site: Site, plan: str, service: str) -> None:
    """Kill -9 a container's first process while rounds go on; the engine starts it again, and rounds go on."""

    def rounds() -> int:
        return len(site.alliance.run_state(plan).get("rounds", ()))

    def back() -> bool:
        return site.state(service)["Pid"] not in (0, dead) and bool(site.alliance.run_state(plan))

    before = rounds()
    wait(lambda: rounds() > before, f"round closed before {service} is killed", RUN_S)
    assert site.alliance.run_state(plan)["state"] == "running", (
        f"the run ended before {service} could be killed"
    )
    dead = site.state(service)["Pid"]
    print(f"{service}: killed after round {rounds()}", flush=True)
    os.kill(dead, signal.SIGKILL)
    wait(back, f"{service} started again", UP_S)


def test_what_was_done_outlives_down_and_up(site: Site, tmp_path: Path) -> None:
    alliance = site.alliance
    if not site.reference:
        pytest.skip("nothing was released")
    before = alliance.run("owner", "model", "show", MODEL).data
    info = alliance.run("operator", "hub", "status").data
    site.engine.compose(site.checkout, "stop")
    ended = {service: site.state(service)["ExitCode"] for service in ("hub", "superlink", "postgres")}
    assert set(ended.values()) == {0}, f"what stops in order ends with 0: {ended}"
    site.engine.compose(site.checkout, "down")
    assert site.engine.docker("ps", "--all", "--quiet") == ""
    site.up()
    assert alliance.run("owner", "model", "show", MODEL).data == before
    after = alliance.run("operator", "hub", "status").data
    assert (after["log_key"], after["operator_pin"]) == (info["log_key"], info["operator_pin"])
    wait(
        lambda: alliance.run("operator", "hub", "status").data["sites_online"] == len(LABS),
        "agents online",
        UP_S,
    )
    pulled = tmp_path / "digits"
    alliance.run("firm", "model", "pull", site.reference, str(pulled), expect=Exit.REFUSED)
    alliance.run("owner", "grant", "issue", site.reference, "--to", institution("firm"), "--action", "pull")
    alliance.run("firm", "model", "pull", site.reference, str(pulled))
    said = accuracy.predict_some(pulled, alliance.data("lab-a") / "heldout.csv", 12)
    assert len(said) == 12
    pack = tmp_path / "pack"
    state = str(tmp_path / "state.json")
    alliance.run("owner", "audit", "export", site.reference, "--out", str(pack), "--state", state)
    trust = str(alliance.home("firm") / "trust.json")
    arguments = [
        str(pack),
        "--trust",
        trust,
        "--state",
        state,
        "--files",
        str(pulled),
        "--require",
        "APPROVED",
    ]
    verdict = attacks.verify_offline(*arguments)
    assert verdict.exit == 0, verdict.error


def test_make_env_never_changes_a_secret(site: Site) -> None:
    before = {path.name: path.read_text() for path in (site.checkout / "secrets").iterdir()}
    subprocess.run(["make", "env", f"PYTHON={sys.executable}"], cwd=site.checkout, check=True)
    assert {path.name: path.read_text() for path in (site.checkout / "secrets").iterdir()} == before
    assert {path.stat().st_mode & 0o777 for path in (site.checkout / "secrets").iterdir()} == {0o600}
