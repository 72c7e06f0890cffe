"""A Docker Engine of its own for these tests, and stand-ins for the images that no registry gives us here.

The engine comes from Debian's packages and is started by hand, as root, with its socket in a temporary folder and its
images in a folder that outlives the test (``FEDHUB_COMPOSE_CACHE``, by default ``~/.cache/fedhub-compose``): a second
run finds every layer that has not changed. Remove that folder to begin from nothing.

Stand-ins carry the names that ``compose.yaml`` and ``Dockerfile`` use, and a label that calls them what they are.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import find_program

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEBIAN = "stand-in/debian:bookworm"
PACKAGES = {"dockerd": "docker.io", "docker-compose": "docker-compose", "debootstrap": "debootstrap"}
START_S = 60.0
STOP_S = 60.0
PYTHON, POSTGRES, STORE = "PYTHON_IMAGE", "POSTGRES_IMAGE", "STORE_IMAGE"  # variables of compose.yaml
# What a machine sets so that its package installers find an index; passed on to the stand-in for Python as it is.
INDEX_VARIABLES = re.compile(
    r"(PIP_(EXTRA_)?INDEX_URL|UV_(DEFAULT_|EXTRA_)?INDEX(_URL)?|(https?|no)_proxy)", re.IGNORECASE
)


def missing() -> list[str]:
    """Debian packages that have to be installed first, and ``versitygw`` when it is nowhere."""
    packages = [
        package for program, package in PACKAGES.items() if shutil.which(program, path=_path()) is None
    ]
    return packages + (["versitygw"] if find_program("versitygw") is None else [])


def install() -> None:
    """Install the missing Debian packages; ``versitygw`` is Go's to install (``.ci/run``)."""
    packages = [name for name in missing() if name != "versitygw"]
    if packages:
        surroundings = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", *command], check=True, stdout=subprocess.DEVNULL, env=surroundings)


def _path() -> str:
    return (
        f"/usr/bin:/usr/sbin:{os.environ['PATH']}"  # the client that belongs to Debian's engine comes first
    )


class Engine:
    """A running Docker Engine."""

    def __init__(self, socket: Path) -> None:
        self._environment = os.environ | {
            "DOCKER_HOST": f"unix://{socket}",
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_DOCKER_CLI_BUILD": "0",
            "PATH": _path(),
        }

    def docker(self, *arguments: str, check: bool = True, **options: Any) -> str:
        """What one ``docker`` command printed."""
        return self._run(["docker", *arguments], check, **options)

    def compose(self, folder: Path, *arguments: str) -> str:
        """What one ``docker-compose`` command printed, for the project in this folder."""
        return self._run(
            ["nice", "ionice", "-c3", "docker-compose", "--ansi", "never", *arguments], True, cwd=folder
        )

    def inspect(self, name: str) -> dict[str, Any]:
        """Everything the engine knows about one container or image."""
        return dict(json.loads(self.docker("inspect", name))[0])

    def open_image(self, name: str) -> "subprocess.Popen[bytes]":
        """``docker save`` of an image, to be read from its output."""
        return subprocess.Popen(["docker", "save", name], stdout=subprocess.PIPE, env=self._environment)

    def _run(self, command: list[str], check: bool, **options: Any) -> str:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
            check=False,
            **options,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-6000:]}")
        return done.stdout


@contextmanager
def running_engine() -> Iterator[Engine]:
    """Start an engine, and stop it by its process id; one at a time per cache folder."""
    cache = Path(os.environ.get("FEDHUB_COMPOSE_CACHE") or Path.home() / ".cache" / "fedhub-compose")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock, tempfile.TemporaryDirectory(prefix="fedhub-engine-") as name:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(name)
        command = ["dockerd", "--host", f"unix://{folder}/docker.sock", "--data-root", str(cache / "engine")]
        command += ["--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid")]
        with (cache / "engine.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PATH": _path()})
        try:
            engine = Engine(folder / "docker.sock")
            _wait(engine, process, cache / "engine.log")
            yield engine
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _unmount_below(folder)


def _unmount_below(folder: Path) -> None:
    """The engine leaves its network namespace mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.split()[1].startswith(f"{folder}/"):
            subprocess.run(["umount", line.split()[1]], check=True)


def _wait(engine: Engine, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        if engine.docker("version", "--format", "{{.Server.Version}}", check=False).startswith("20."):
            return
        time.sleep(0.3)
    raise AssertionError(f"dockerd did not start:\n{log.read_text(errors='replace')[-3000:]}")


# --- stand-ins ----------------------------------------------------------------------------------------------


def make_stand_ins(engine: Engine, names: Mapping[str, str]) -> None:
    """Build a stand-in for each image of ``names`` (variable of compose.yaml -> image name)."""
    if engine.docker("images", "--quiet", DEBIAN).strip() == "":
        _import_debian(engine)
    for variable, folder in ((PYTHON, "python"), (POSTGRES, "postgres"), (STORE, "store")):
        with tempfile.TemporaryDirectory(prefix="fedhub-stand-in-") as name:
            context = Path(name) / folder
            shutil.copytree(HERE / "stand_ins" / folder, context)
            if variable == PYTHON:
                _add_machine(context)
            elif variable == STORE:
                program = find_program("versitygw")
                assert program is not None
                shutil.copy2(program, context)
            label = f"fedhub.stand-in=for {names[variable]}"
            print(f"stand-in for {names[variable]}, from Debian's packages", flush=True)
            engine.docker(
                "build", "--network", "host", "--label", label, "--tag", names[variable], str(context)
            )


def _import_debian(engine: Engine) -> None:
    print("stand-in base: debootstrap bookworm", flush=True)
    with tempfile.TemporaryDirectory(prefix="fedhub-debian-") as name:
        root = Path(name) / "root"
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root)]
        subprocess.run(["nice", "ionice", "-c3", *command], check=True, stdout=subprocess.DEVNULL)
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            engine.docker("import", "-", DEBIAN, stdin=tar.stdout)
        assert tar.returncode == 0


def _add_machine(context: Path) -> None:
    """What this machine needs to reach its package index: its certificates, and variables that it sets itself."""
    certificates = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    target = context / "machine" / "etc" / "ssl" / "certs" / "machine.crt"
    target.parent.mkdir(parents=True)
    shutil.copy(certificates, target)
    found = {name: value for name, value in os.environ.items() if INDEX_VARIABLES.fullmatch(name)}
    if found:
        pairs = " ".join(f"{name}={json.dumps(value)}" for name, value in sorted(found.items()))
        with (context / "Dockerfile").open("a") as dockerfile:
            dockerfile.write(f"ENV {pairs}\n")
