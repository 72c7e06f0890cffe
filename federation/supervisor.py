"""A site in the foreground: the agent's process kept alive, and what the institution owes others kept fresh.

The agent is a child process (``federation.flower.node``), because flwr ends it when the hub refuses its node
and because a recipe's fault must not end the site. It is started again with growing pauses, and only while
the Fleet address answers, so that a hub that is away costs nothing. SIGTERM or Ctrl-C ends both in order;
when this process is killed, the child gets SIGTERM from the system.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from federation.app_process import describe_apps
from federation.home import Home
from federation.joining import post_status, register_site
from federation.lifeline import code_path, python_command
from federation.reaching import ON_THE_WAY, fleet_place, reach, read_roots, trusting
from federation.site_log import SiteLog, outward
from federation.wire import SiteTrouble
from storage.errors import FedhubError, Refused, Rejected, Unchecked

SITE_NAME = "main"
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
AWAY_PAUSE_S = 1.0  # between looks whether the Fleet address answers again
# For the child, unless the site says otherwise: torch takes large tensors in large pages, which saves a sixth
# of a step's time; and its threads share two heaps, instead of keeping up to eight per core.
LEAN = {"THP_MEM_ALLOC_ENABLE": "1", "MALLOC_ARENA_MAX": "2"}
STEADY_S = 20.0  # an agent that lived this long begins with the first pause again
LOOK_S = 0.2
STOP_S = 15.0
TELL_AGAIN_S = 5.0  # what lasts is told again, to runs that have begun since
STATUS_EVERY_S = 12 * 3600
STATUS_AGAIN_S = 60.0  # after a failure
STATUS_VALID_S = 24 * 3600

Say = Callable[[str], None]


def run_site(
    home: Home, *, name: str = SITE_NAME, say: Say = print, stop: threading.Event | None = None
) -> None:
    """Run the lab agent of ``home`` until SIGTERM, SIGINT, or ``stop`` is set.

    Args:
        name: of this site, when an institution has several machines.
        say: told in one line what happens.
        stop: ends it from another thread.
    Raises:
        Refused: the hub does not take this site's node key. Unchecked: keys or the Fleet address are missing.
    """
    ended = stop or threading.Event()
    log = SiteLog(home, say)
    log.over()
    try:
        _check(home)
    except FedhubError as error:
        log.tell(error)
        raise
    say(describe_apps())
    report = threading.Thread(target=_report, args=(home, name, log, ended), name="trouble", daemon=True)
    report.start()
    status = threading.Thread(target=_keep_status, args=(home, say, ended), name="status", daemon=True)
    with _ending(ended):
        _register(home, name, log, ended)
        status.start()
        AgentProcess(home, say, ended).keep_alive()
    status.join(STOP_S)


class AgentProcess:
    """The child process, started again whenever it ends."""

    def __init__(self, home: Home, say: Say, ended: threading.Event) -> None:
        self._home = home
        self._say = say
        self._ended = ended
        self._log = SiteLog(home, say)
        self._pause_s = FIRST_PAUSE_S
        self.process: subprocess.Popen[bytes] | None = None

    def keep_alive(self) -> None:
        """Return when the site is told to end."""
        away = False
        while not self._ended.is_set():
            if not self._reaches_fleet():
                away = True
                self._ended.wait(AWAY_PAUSE_S)
                continue
            if away:  # what ended the agent was not the agent's fault
                self._pause_s = FIRST_PAUSE_S
            away = False
            self._run_once()

    def _reaches_fleet(self) -> bool:
        """Whether the Fleet address answers by its certificate; else what is in the way is told."""
        try:
            reach(fleet_place(self._home.fleet), trusting(read_roots(self._home.path)))
        except Unchecked as error:
            self._log.tell(error)
            return False
        trouble = self._log.newest()
        if trouble is not None and trouble.code in ON_THE_WAY:
            self._log.over()
        return True

    def _run_once(self) -> None:
        """Start the child and wait for its end, or end it when the site ends."""
        command = python_command(
            "federation.flower.node", "--home", str(self._home.path), "--parent", str(os.getpid())
        )
        began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env=self._environment(),
            start_new_session=True,  # a Ctrl-C reaches us alone, and we end the agent in order
        )
        self._say(f"the agent of {self._home.institution} runs as process {self.process.pid}")
        while self.process.poll() is None:
            if self._ended.wait(LOOK_S):
                self._end(self.process)
                return
        if time.monotonic() - began > STEADY_S:
            self._pause_s = FIRST_PAUSE_S
        self._say(f"the agent ended with status {self.process.returncode}; starting it again")
        if self.process.returncode == -signal.SIGKILL:
            self._log.tell(Unchecked("E_AGENT_DIED", "the agent's process was killed (signal 9)"))
        self._wait()

    def _wait(self) -> None:
        self._ended.wait(self._pause_s)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _environment(self) -> dict[str, str]:
        """The site's own surroundings; a proxy is never asked for an address of this machine."""
        surroundings = {**LEAN, **os.environ, **code_path()}
        host = self._home.fleet.rpartition(":")[0].strip("[]")
        if host in ("127.0.0.1", "::1", "localhost"):
            for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                surroundings.pop(proxy, None)
                surroundings.pop(proxy.lower(), None)
        return surroundings


def _check(home: Home) -> None:
    """What has to be there before anything starts."""
    home.key("node")
    home.key("snapshot")
    if not home.fleet:
        raise Unchecked("E_FLEET", f"{home.path} knows no Fleet address", "join with an invitation first")


def _register(home: Home, name: str, log: SiteLog, ended: threading.Event) -> None:
    """Register at the hub, waiting for it while it is away."""
    pause_s = FIRST_PAUSE_S
    while not ended.is_set():
        try:
            register_site(home, name)
            return
        except Unchecked as error:
            log.tell(error)
        except (Refused, Rejected) as error:
            log.tell(error)
            raise
        ended.wait(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _keep_status(home: Home, say: Say, ended: threading.Event) -> None:
    """Sign and post a status list now and every twelve hours, so that auditors see what was revoked."""
    if not (home.path / "keys" / "timestamp.pem").exists():
        say("no timestamp key here: sign status lists elsewhere with fedhub institution status --watch")
        return
    wait_s = 0.0
    while not ended.wait(wait_s):
        try:
            with home.client("snapshot") as client:
                post_status(home, client, next_update=int(time.time()) + STATUS_VALID_S)
            wait_s = STATUS_EVERY_S
        except (Refused, Rejected, Unchecked) as error:
            say(f"no status list was logged: {error}; trying again")
            wait_s = STATUS_AGAIN_S


def _report(home: Home, name: str, log: SiteLog, ended: threading.Event) -> None:
    """Let the hub know what keeps the agent from its work, while it does, so that runs can show it."""
    said: tuple[str, int] | None = None
    said_at = float("-inf")
    while not ended.wait(LOOK_S):
        trouble = log.newest()
        now = time.monotonic()
        if trouble is None or ((trouble.code, trouble.at) == said and now - said_at < TELL_AGAIN_S):
            continue
        said, said_at = (trouble.code, trouble.at), now
        # What keeps us from telling the hub is in the log already.
        with contextlib.suppress(FedhubError), home.client("snapshot") as client:
            message = outward(home, trouble.message)
            client.tell_trouble(SiteTrouble(name=name, code=trouble.code, message=message))


@contextlib.contextmanager
def _ending(ended: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT end the site; outside the main thread signals are not ours to take."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
