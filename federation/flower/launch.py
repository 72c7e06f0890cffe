"""SuperLink as a child process: started, found ready, stopped. Imports neither flwr nor a web server.

Linux takes the thread that starts a process for its parent: start it from a thread that lasts as long as the
hub (the main thread does), or SuperLink is killed when that thread ends.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from federation.lifeline import plain_environment, python_command
from storage.errors import Unchecked

STOP_S = 10.0


@dataclass(frozen=True)
class Addresses:
    """Where a SuperLink listens, each as ``host:port``."""

    local: str
    fleet: str
    control: str | None


class SuperLinkProcess:
    """A running SuperLink that dies with this process.

    Args:
        folder: SuperLink's own.
        token_file: mode 0600, with the Control API's bearer token.
        fleet: ``host:port`` for labs; port 0 takes a free one.
        hosts: names and addresses by which labs reach it, for the certificate.
        local_port: of the Control API on loopback; 0 takes a free one.
        fleet_body: largest body from a site in bytes; None for SuperLink's own default.
        allowed_apps: digests of Flower app bundles that may be started besides our coordinator.
        log: file that its output is appended to.
    """

    def __init__(
        self,
        folder: Path,
        token_file: Path,
        *,
        fleet: str,
        hosts: tuple[str, ...],
        local_port: int = 0,
        control: str | None = None,
        fleet_body: int | None = None,
        allowed_apps: tuple[str, ...] = (),
        log: Path | None = None,
    ) -> None:
        arguments = ["--folder", str(folder), "--token-file", str(token_file), "--fleet", fleet]
        for host in hosts:
            arguments += ["--host", host]
        arguments += ["--local-port", str(local_port), "--parent", str(os.getpid())]
        if control is not None:
            arguments += ["--control", control]
        if fleet_body is not None:
            arguments += ["--fleet-body", str(fleet_body)]
        for digest in allowed_apps:
            arguments += ["--allow-app", digest]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._log = log or folder / "superlink.log"
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                python_command("federation.flower.superlink", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                env=plain_environment(),
            )

    def wait_ready(self) -> Addresses:
        """Block until all doors are open.

        Raises:
            Unchecked: ``E_SUPERLINK``: it ended instead; the message repeats what it said.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(STOP_S)
            said = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise Unchecked("E_SUPERLINK", "SuperLink did not start: " + " ".join(said), f"see {self._log}")
        return Addresses(**json.loads(line))

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """End it, gently at first."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
