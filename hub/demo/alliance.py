"""An alliance of real processes on one machine: hub, SuperLink, blob server, three lab agents, six homes.

Everything is done through the product's own commands: the hub is ``fedhub hub up``, an agent is ``fedhub site
up``, institutions join by invitation codes. Nothing here knows a shortcut into the hub. Started again from
the same folder, everything is still there; only what is missing is made.

Layout of the folder::

    sandbox.json        ports and personal tokens, mode 0600
    hub/                the hub's own data
    homes/<short name>/ one home per institution
    data/<lab>/         what each lab holds on-site; data/public/ for the base model
    logs/               what the processes print
"""

import fcntl
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from federation.home import Home, write_atomically
from federation.lifeline import plain_environment, python_command
from hub.demo import digits
from hub.terminal import Terminal
from storage.errors import Exit, FedhubError, Refused, Unchecked

if TYPE_CHECKING:
    from hub.keys import HubKeys
    from hub.settings import Settings

HUB = "hub.example"
ROLES = {
    "operator": "operator",
    "owner": "owner",
    "lab-a": "lab",
    "lab-b": "lab",
    "lab-c": "lab",
    "firm": "firm",
}
LABS = digits.LABS
Call = Callable[[list[str], Terminal], Exit]
PORTS = ("port", "download_port", "blob_port", "fleet_port", "control_port")
LOCK = ".lock"
READY_S = 60.0
STOP_S = 15.0
# What a sandbox takes over from its surroundings: where the hub keeps rows and objects, and nothing else.
FROM_OUTSIDE = ("FEDHUB_DATABASE_URL", "FEDHUB_STORE_")


def institution(name: str) -> str:
    """The full name of one of the six."""
    return f"{name}.example"


class CommandFailed(FedhubError):
    """A command of the journey did not do what it should."""

    exit = Exit.FAILED


@dataclass(frozen=True)
class Answer:
    """What one command said."""

    exit: Exit
    data: dict[str, Any]
    error: dict[str, str]
    text: str


@dataclass
class Process:
    """One of the alliance's own processes, and what it was started with."""

    name: str
    popen: "subprocess.Popen[str]"
    log: Path
    command: list[str]
    settings: Mapping[str, str]
    ready: dict[str, Any] = field(default_factory=dict)


class Alliance:
    """The processes and homes under one folder.

    Args:
        folder: where everything lies; made when missing.
        call: runs one command line at a terminal, as ``hub.cli`` does.
        ports: ports to use instead of free ones, by the names in ``PORTS``.
        told: called with each command line before it runs and with its answer after.
    """

    def __init__(
        self,
        folder: Path,
        call: Call,
        *,
        ports: Mapping[str, int] | None = None,
        told: "Callable[[str, Answer], None] | None" = None,
    ) -> None:
        self.folder = folder.resolve()
        self._call = call
        self.processes: list[Process] = []
        self._given = dict(ports or {})
        self._lock: IO[bytes] | None = None
        self._told = told
        self._card: dict[str, Any] = {"ports": {}, "tokens": {}}

    # --- what others ask ------------------------------------------------------------------------------------

    def home(self, name: str) -> Path:
        """The home folder of one of the six."""
        return self.folder / "homes" / name

    def data(self, name: str) -> Path:
        """The folder of rows of a lab, or of the public part."""
        return self.folder / "data" / name

    @property
    def hub_info(self) -> dict[str, Any]:
        """What the hub's process said when it was ready."""
        return self.processes[0].ready

    @property
    def log_base(self) -> str:
        """Folder or URL below which the log's ``checkpoint`` and ``tile/`` lie."""
        return str(self.hub_info["log_base"])

    def description(self) -> dict[str, Any]:
        """What a program needs to use the sandbox."""
        return {
            "endpoint": self.hub_info["endpoint"],
            "log_base": self.log_base,
            "log_key": self.hub_info["log_key"],
            "institutions": {
                institution(name): {
                    "role": role,
                    "home": str(self.home(name)),
                    "token": self._card["tokens"][name],
                }
                for name, role in ROLES.items()
            },
        }

    def run(self, name: str, *args: str, expect: Exit | None = Exit.DONE, tell: bool = True) -> Answer:
        """Run one ``fedhub`` command as one of the six, in this process, and give what it answered.

        Args:
            expect: the exit code without which this raises; None takes any.
            tell: whether to show it; of many that are alike one is enough.
        """
        terminal = Terminal(self.home(name), out=io.StringIO(), err=io.StringIO())
        code = self._call(list(args), terminal)
        answer = Answer(code, terminal.answer, terminal.problem, _text(terminal))
        line = shlex.join(["fedhub", "--home", f"homes/{name}", *args])
        if self._told is not None and tell:
            self._told(line, answer)
        if expect is not None and code is not expect:
            message = f"{line}: expected {expect.name.lower()}, found {code.name.lower()}: {answer.text}"
            raise CommandFailed(answer.error.get("code", "E_DEMO"), message, answer.error.get("hint", ""))
        return answer

    # --- what only a demo may do: it is the operator's machine too ----------------------------------------

    def hub_settings(self) -> "tuple[Settings, HubKeys]":
        """The settings and keys that the hub's process runs with."""
        from hub.keys import keys_of
        from hub.settings import load_settings

        given = {name: str(port) for name, port in self._card["ports"].items()}
        settings = load_settings(
            **given,
            origin=HUB,
            operator=institution("operator"),
            data_dir=self.folder / "hub",
            operator_home=self.home("operator"),
        )
        return settings, keys_of(settings)

    @contextmanager
    def flipped(self, sha256: str) -> Iterator[None]:
        """One bit of the first byte of a stored file is another one, as long as this lasts."""
        from hub.api.app import store_of

        store = store_of(*self.hub_settings())
        (key,) = store.list(f"blobs/sha256/{sha256[:2]}/{sha256}.")
        right = b"".join(store.stream(key))
        store.put(key, bytes([right[0] ^ 1]) + right[1:])
        try:
            yield
        finally:
            store.put(key, right)

    def copy_log(self, target: Path) -> None:
        """Copy the public log, as the hub serves it to anybody, so that it outlives the demo's processes."""
        from hub.api.app import store_of

        store = store_of(*self.hub_settings())
        for key in store.list("log/"):
            path = target / key.removeprefix("log/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(key))

    # --- starting -------------------------------------------------------------------------------------------

    def start_hub(self) -> None:
        """Start the hub's process and wait until it answers; remembers its ports for the next time."""
        self._lock = lock(self.folder)
        for name in ("homes", "logs", "data"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._read_card()
        self._card["ports"] = self._choose_ports()
        self._write_card()
        settings = {f"FEDHUB_{name.upper()}": str(port) for name, port in self._card["ports"].items()}
        settings |= {
            "FEDHUB_ORIGIN": HUB,
            "FEDHUB_OPERATOR": institution("operator"),
            "FEDHUB_DATA_DIR": str(self.folder / "hub"),
            "FEDHUB_OPERATOR_HOME": str(self.home("operator")),
            "FEDHUB_OPEN_PAGES": "true",  # on loopback, for whoever plays all six
        }
        settings |= {key: value for key, value in os.environ.items() if key.startswith(FROM_OUTSIDE)}
        self._spawn("hub", ["hub", "up"], self.home("operator"), settings)
        for name in ROLES:
            if (self.home(name) / "home.json").exists():
                home = Home.open(self.home(name))
                home.moved(endpoint=self.hub_info["endpoint"], fleet=self.hub_info["fleet"])

    def enrol(self, name: str) -> None:
        """Have one institution join by an invitation code, unless it has joined before."""
        full = institution(name)
        if name != "operator" and not (self.home(name) / "home.json").exists():
            code = self.run("operator", "hub", "invite", full, ROLES[name]).data["code"]
            made = self.run(name, "institution", "create", full, "--invitation", code).data
            self.run("operator", "institution", "approve", full, "--pin", made["pin"])

    def pin_each_other(self) -> None:
        """Every home pins every other institution; the pins are compared in person, as it were."""
        pins = {name: Home.open(self.home(name)).ring.pin for name in ROLES}
        tell = True
        for name in ROLES:
            known = Home.open(self.home(name)).pins
            for other in (each for each in ROLES if institution(each) not in known):
                self.run(name, "institution", "trust", institution(other), "--pin", pins[other], tell=tell)
                tell = False

    def describe_data(self) -> None:
        """Each lab writes its rows on-site and describes them."""
        digits.write_split(self.folder / "data")
        for lab in LABS:
            if not Home.open(self.home(lab)).datasets():
                about = f"Scans of handwritten digits, {institution(lab)}'s part of the UCI test set."
                name = f"{institution(lab)}/digits"
                terms = ["--description", about, "--license", "CC-BY-4.0"]
                self.run(lab, "data", "describe", str(self.data(lab)), name, *terms)

    def start_agents(self) -> None:
        """Start one agent per lab side by side, and wait until the hub sees them all online."""
        for lab in LABS:
            self.run(lab, "site", "init")
        started = [self._popen(lab, ["site", "up"], self.home(lab), {}) for lab in LABS]
        for process in started:
            self._wait_ready(process)

    def make_tokens(self) -> None:
        """A personal token with write scope for each of the six, kept in ``sandbox.json``."""
        for name in ROLES:
            if name not in self._card["tokens"]:
                args = ("token", "new", "sandbox", "--scope", "write", "--days", "366")
                made = self.run(name, *args, tell=name == "owner")
                self._card["tokens"][name] = made.data["token"]
        self._write_card()

    def publish_status_lists(self) -> None:
        """Those without an agent say what they have revoked; agents do it by themselves."""
        for name in ROLES:
            if name not in LABS:
                self.run(name, "institution", "status", tell=name == "owner")

    def up(self) -> None:
        """All of it, in order."""
        self.start_hub()
        for name in ROLES:
            self.enrol(name)
        self.pin_each_other()
        self.describe_data()
        self.start_agents()
        self.make_tokens()
        self.publish_status_lists()

    def restart(self, name: str, *, wait: bool = True) -> None:
        """Start a process that has died as it was started before; with ``wait`` until it is ready.

        Raises:
            Unchecked: it does not start.
        """
        process = next(each for each in self.processes if each.name == name)
        _end(process.popen)
        process.popen = _launch(process.command, process.settings, process.log)
        if wait:
            self._wait_ready(process)

    # --- stopping -------------------------------------------------------------------------------------------

    def down(self) -> None:
        """Stop agents first, then the hub; a process that does not end in time is killed."""
        while self.processes:
            group = self.processes[1:] or self.processes[:1]
            for process in group:
                if process.popen.poll() is None:
                    process.popen.send_signal(signal.SIGTERM)
            for process in group:
                _end(process.popen)
                self.processes.remove(process)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def stop(self, name: str) -> None:
        """Stop one process in order; ``restart`` starts it again."""
        popen = next(each.popen for each in self.processes if each.name == name)
        popen.send_signal(signal.SIGTERM)
        _end(popen)

    def crashed(self) -> Process | None:
        """A process that ended by itself, if one did."""
        return next((process for process in self.processes if process.popen.poll() is not None), None)

    # --- inside ---------------------------------------------------------------------------------------------

    def _spawn(self, name: str, args: list[str], home: Path, settings: Mapping[str, str]) -> None:
        self._wait_ready(self._popen(name, args, home, settings))

    def _popen(self, name: str, args: list[str], home: Path, settings: Mapping[str, str]) -> Process:
        log = self.folder / "logs" / f"{name}.log"
        command = python_command("hub", "--home", str(home), *args, "--json", "--parent", str(os.getpid()))
        process = Process(name, _launch(command, settings, log), log, command, settings)
        self.processes.append(process)
        return process

    def _wait_ready(self, process: Process) -> None:
        assert process.popen.stdout is not None
        timer = threading.Timer(READY_S, process.popen.kill)
        timer.start()
        line = process.popen.stdout.readline()
        timer.cancel()
        if not line:
            process.popen.wait()
            said = process.log.read_text(errors="replace").strip().splitlines()[-3:]
            why = " ".join(said) or f"it ended with {process.popen.returncode} and said nothing"
            raise Unchecked("E_SANDBOX", f"{process.name} did not start: {why}", f"read {process.log}")
        process.ready = json.loads(line)

    def _choose_ports(self) -> dict[str, int]:
        chosen: dict[str, int] = {}
        for name in PORTS:
            if name in self._given:
                if not _is_free(self._given[name]):
                    message = f"port {self._given[name]} is in use"
                    raise Unchecked("E_PORT", message, "give another one, or none for a free one")
                chosen[name] = self._given[name]
                continue
            before = self._card["ports"].get(name)
            chosen[name] = before if before and _is_free(before) else _free_port(set(chosen.values()))
        return chosen

    def _read_card(self) -> None:
        path = self.folder / "sandbox.json"
        if path.exists():
            try:
                self._card = json.loads(path.read_text())
                self._card["ports"], self._card["tokens"]
            except (ValueError, KeyError, TypeError) as error:
                hint = "start in another folder, or remove this one"
                raise Unchecked("E_SANDBOX", f"{path} is damaged", hint) from error

    def _write_card(self) -> None:
        text = json.dumps(self._card, indent=2, sort_keys=True)
        write_atomically(self.folder / "sandbox.json", text.encode() + b"\n", mode=0o600)


def check_ours(folder: Path) -> None:
    """Refuse a folder that holds something other than a sandbox.

    Raises:
        Refused: it is not empty and has no ``sandbox.json`` (E_SANDBOX).
    """
    if folder.exists() and not folder.is_dir():
        raise Refused("E_SANDBOX", f"{folder} is not a folder", "choose another one")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names - {LOCK} and "sandbox.json" not in names:
        raise Refused("E_SANDBOX", f"{folder} holds something else", "choose an empty or new folder")


def clear(folder: Path) -> None:
    """Remove what an earlier alliance left in ``folder``, unless one runs there now.

    Raises:
        Refused, Unchecked: as ``check_ours`` and ``lock``; nothing was removed.
    """
    check_ours(folder)
    with lock(folder):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()


def lock(folder: Path) -> IO[bytes]:
    """Hold ``folder`` for one alliance; the lock ends with the process, however that ends.

    Raises:
        Unchecked: another process holds it (E_SANDBOX_RUNNING).
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise Unchecked("E_SANDBOX_RUNNING", f"an alliance runs in {folder}", "stop it first") from error
    return file


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(taken: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port


def _launch(command: list[str], settings: Mapping[str, str], log: Path) -> "subprocess.Popen[str]":
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env=plain_environment(settings),
            start_new_session=True,  # a Ctrl-C reaches us alone, and we stop them in order
        )


def _end(popen: "subprocess.Popen[str]") -> None:
    try:
        popen.wait(STOP_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    if popen.stdout is not None:
        popen.stdout.close()


def _text(terminal: Terminal) -> str:
    assert isinstance(terminal.out, io.StringIO)
    assert isinstance(terminal.err, io.StringIO)
    return (terminal.out.getvalue() + terminal.err.getvalue()).strip()


def wait_until(done: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Look again and again until ``done``.

    Raises:
        Unchecked: it did not come to pass in time (E_TIMEOUT).
    """
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise Unchecked(
                "E_TIMEOUT", f"{what} did not happen within {timeout_s:g} s", "read the logs folder"
            )
        time.sleep(0.1)
