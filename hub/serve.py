"""The hub as a process: opens it, starts what belongs to it, serves until told to stop.

Beside the two web applications run: the blob server of a folder store and SuperLink as child processes,
each started again when it dies, and the supervisor of runs. Children end with this process, however it
ends. SIGTERM or Ctrl-C stops in order: no new requests, supervisor, children, log published. A store that
breaks a promise on which safety rests stops the start.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import uvicorn

from federation.lifeline import plain_environment, python_command
from hub import __version__
from hub.api.app import create_app, create_download_app, near_store_of, open_hub, store_secret_of
from hub.context import Hub, NodeRegistry
from hub.errors import no_room
from hub.logs import log_as_json
from hub.services.alliance import hub_info
from hub.services.store_check import ensure_safe
from hub.settings import Settings
from hub.supervisor import start_supervisor
from storage.errors import Unchecked
from storage.stores import folder_of

RESTART_MAX_S = 30.0
STOP_S = 10.0
WATCH_S = 0.3
_log = logging.getLogger("fedhub.serve")


class Child(Protocol):
    """A child process that is watched."""

    @property
    def running(self) -> bool:
        """Whether it lives."""

    def stop(self) -> None:
        """End it, gently at first."""


def run_hub(settings: Settings, *, ready: Callable[[Hub], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        ready: called once everything answers.
    Raises:
        Unchecked: ``E_PORT`` naming port and setting, or whatever stands in the way of a start.
    """
    log_as_json(settings.log_level)
    settings = settle_ports(settings)
    api = bind(settings.listen, settings.port, "FEDHUB_PORT")
    downloads = bind(settings.listen, settings.download_port, "FEDHUB_DOWNLOAD_PORT")
    check_free(settings)
    hub = open_hub(settings, nodes=control_of(settings))
    children = Children(settings, hub)
    children.start()
    try:
        children.wait_started()
        ensure_safe(near_store_of(settings, hub.keys), settings.store, hub.ledger.now())
        servers = [
            _server(create_app(settings, hub=hub), settings),
            _server(create_download_app(settings, hub=hub), settings),
        ]
        background = start_supervisor(hub)
        try:
            told = None if ready is None else lambda: ready(hub)
            loop = servers[0].config.get_loop_factory()  # uvloop where it is installed
            with _stopping(servers), asyncio.Runner(loop_factory=loop) as runner:
                runner.run(_serve(servers, [api, downloads], told))
        finally:
            background.stop()
    finally:
        children.stop()
        hub.database.close()
        for one in (api, downloads):
            one.close()


# --- ports ------------------------------------------------------------------------------------------------


def settle_ports(settings: Settings) -> Settings:
    """The same settings with every port 0 replaced by one that is free now, so that addresses can be told."""
    names = ["port", "download_port", "blob_port", "fleet_port", "control_port"]
    open_names = [name for name in names if getattr(settings, name) == 0]
    held = [bind(settings.listen, 0, name) for name in open_names]
    chosen = {name: one.getsockname()[1] for name, one in zip(open_names, held, strict=True)}
    for one in held:
        one.close()
    return settings.model_copy(update=chosen)


def bind(host: str, port: int, setting: str) -> socket.socket:
    """A bound socket; a port in use is told by the setting that names it."""
    # The protocol by name: asyncio sends small answers at once (TCP_NODELAY) only on sockets that say TCP.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)  # two listeners may share a bound address, so that binding alone proves nothing
    except OSError as error:
        listener.close()
        raise Unchecked(
            "E_PORT",
            f"{setting}: cannot listen on {host} port {port}: {error.strerror}",
            f"Stop the program that uses it, or set {setting} to another port.",
        ) from error
    return listener


def check_free(settings: Settings) -> None:
    """The ports that children will open are free now: told here, by the setting's name."""
    wanted = []
    if folder_of(settings.store) is not None:
        wanted.append((settings.listen, settings.blob_port, "FEDHUB_BLOB_PORT"))
    if settings.superlink == "child":
        wanted.append((settings.listen, settings.fleet_port, "FEDHUB_FLEET_PORT"))
        wanted.append(("127.0.0.1", settings.control_port, "FEDHUB_CONTROL_PORT"))
    for host, port, setting in wanted:
        bind(host, port, setting).close()


# --- children ---------------------------------------------------------------------------------------------


def control_of(settings: Settings) -> NodeRegistry | None:
    """SuperLink's Control API, or None when there is no SuperLink."""
    if settings.superlink == "off":
        return None
    from federation.flower.control import Control
    from hub.keys import keys_of

    token = settings.control_token
    made = keys_of(settings).control_token
    return Control(settings.control, made if token is None else token.get_secret_value())


class BlobServer:
    """The folder store's own server as a child."""

    def __init__(self, settings: Settings, hub: Hub) -> None:
        root = folder_of(settings.store)
        assert root is not None
        self._process = subprocess.Popen(
            python_command(
                "storage.blob_server",
                *("--root", str(root), "--host", settings.listen, "--port", str(settings.blob_port)),
                *("--secret-file", "/dev/stdin", "--parent-pid", str(os.getpid())),
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=plain_environment(),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as given:
            given.write(store_secret_of(settings, hub.keys).encode())
        if not self._process.stdout.readline():
            self._process.wait(STOP_S)
            raise Unchecked("E_BLOB_SERVER", "the folder store's server did not start; its output says why")

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it, gently at first."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def start_superlink(settings: Settings, hub: Hub) -> Child:
    """SuperLink as a child, all doors open."""
    from federation.flower.launch import SuperLinkProcess

    host = settings.fleet.rpartition(":")[0].strip("[]")
    child = SuperLinkProcess(
        settings.superlink_dir,
        hub.keys.control_file,
        fleet=f"{settings.listen}:{settings.fleet_port}",
        hosts=(host,),
        local_port=settings.control_port,
        fleet_body=settings.fleet_body,
    )
    try:
        child.wait_ready()
    except Unchecked:
        child.stop()
        raise
    return child


class Children:
    """Starts the children from one thread that lasts as long as the hub, and starts them again when they die.

    Linux ends a child when the *thread* that started it ends (``federation.lifeline``), hence the thread.
    """

    def __init__(self, settings: Settings, hub: Hub) -> None:
        self._makers: dict[str, Callable[[], Child]] = {}
        if folder_of(settings.store) is not None:
            self._makers["blob server"] = lambda: BlobServer(settings, hub)
        if settings.superlink == "child":
            self._makers["superlink"] = lambda: start_superlink(settings, hub)
        self._alive: dict[str, Child] = {}
        self._failure: Unchecked | OSError | None = None
        self._started = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fedhub-children", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait_started(self) -> None:
        """Wait until every child answers.

        Raises:
            Unchecked: one of them did not start.
        """
        self._started.wait()
        if self._failure is not None:
            raise no_room(self._failure) or self._failure

    def stop(self) -> None:
        """End all children."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for name, make in self._makers.items():
                self._alive[name] = make()
        except (Unchecked, OSError) as error:
            self._failure = error
            self._stop.set()
        self._started.set()
        while not self._stop.wait(WATCH_S):
            for name in self._makers:
                if not self._alive[name].running:
                    self._again(name)
        for child in reversed(list(self._alive.values())):
            child.stop()

    def _again(self, name: str) -> None:
        """Start one child again, with growing pauses while it fails."""
        self._alive[name].stop()
        pause_s = 0.2
        while not self._stop.is_set():
            _log.warning("%s has ended; starting it again", name)
            try:
                self._alive[name] = self._makers[name]()
                return
            except (Unchecked, OSError) as error:  # on a full disk as well: this thread holds all others
                _log.error("%s does not start: %s", name, error)
            self._stop.wait(pause_s)
            pause_s = min(pause_s * 2, RESTART_MAX_S)


# --- serving ----------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """One of two servers in one loop; signals are ours to take, for both."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: Any, settings: Settings) -> uvicorn.Server:
    return _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(STOP_S),
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies or None,
            h11_max_incomplete_event_size=64 << 10,
        )
    )


async def _serve(
    servers: Sequence[uvicorn.Server], sockets: Sequence[socket.socket], ready: Callable[[], None] | None
) -> None:
    tasks = [
        asyncio.create_task(server.serve(sockets=[one])) for server, one in zip(servers, sockets, strict=True)
    ]
    while not all(server.started for server in servers):
        if any(task.done() for task in tasks):
            break
        await asyncio.sleep(0.01)
    if ready is not None and all(server.started for server in servers):
        ready()
    await asyncio.gather(*tasks)


@contextmanager
def _stopping(servers: Sequence[uvicorn.Server]) -> Iterator[None]:
    """SIGTERM and SIGINT end both servers; outside the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        for server in servers:
            server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def where(hub: Hub) -> dict[str, str]:
    """For those who started the hub: where everything is and what to trust."""
    with hub.database.session_scope(write=False) as session:
        info = hub_info(hub, session, __version__)
    return {
        "endpoint": hub.settings.public,
        "downloads": hub.settings.downloads,
        "origin": info.origin,
        "operator": info.operator,
        "operator_pin": info.operator_pin,
        "fleet": info.fleet,
        "log_base": info.log_base,
        "log_key": info.log_key,
    }
