"""SuperLink in our launcher: flwr's own application behind three doors, none wider than it must be.

============ =========================== =====================================================
loopback     Control, Runtime            plain HTTP; Control wants the hub's bearer token
public       Fleet alone, with TLS       registered node keys only; bodies capped
internal     Control alone (optional)    plain HTTP on an address of the operator's choice
============ =========================== =====================================================

No file of flwr is changed: its application takes an account plugin, and we bring the listeners. Tasks are
claimed inside the process (``executor``), and the HTTP call that claims one is shut with a secret that nobody
knows. Started as ``python -m federation.flower.superlink``, usually by the hub (``launch``); its state lives
in memory, so whoever starts it registers the nodes again.
"""

import argparse
import asyncio
import hmac
import json
import logging
import secrets
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from federation.flower.calls import Calls
from federation.flower.doors import CONTROL, FLEET, RUNTIME, Bell, Door
from federation.flower.quiet import keep_quiet
from federation.flower.tls import FleetTls, make_fleet_tls
from federation.lifeline import die_with
from storage.errors import FedhubError, Unchecked

if TYPE_CHECKING:
    import uvicorn

FLEET_BODY_BYTES = 1 << 20  # messages are references; Flower's own apps, which send tensors, need more
LOCAL_BODY_BYTES = 64 << 20
MAX_TOKEN_BYTES = 512
SETTLE_S = 0.02  # between the coordinator's pushes: a message first, then its objects
SITE_HOLD_S = 5.0  # how long an idle site's poll is held: the load of many sites, against nothing

# These do nothing without the plugins of Flower's paid edition, which are never given.
_IDLE = ("ControlLicenseMiddleware", "ControlEventLogMiddleware", "FleetEventLogMiddleware")


@dataclass(frozen=True)
class Options:
    """What one SuperLink is told.

    Attributes:
        folder: its own: certificates, what flwr writes, the coordinator's work.
        token_file: file of mode 0600 with the bearer token of the Control API.
        fleet: address and port that labs reach; port 0 takes a free one.
        hosts: names and addresses in the certificate of that port.
        local_port: of Control and Runtime on loopback.
        control: address and port for Control alone, or None.
        fleet_body: largest body of a request from a site, in bytes.
        foreign_apps: digests of Flower app bundles that may be started besides our coordinator.
        parent: process id of whoever started it as a child, or None.
    """

    folder: Path
    token_file: Path
    fleet: tuple[str, int]
    hosts: tuple[str, ...]
    local_port: int = 0
    control: tuple[str, int] | None = None
    fleet_body: int = FLEET_BODY_BYTES
    foreign_apps: frozenset[str] = frozenset()
    parent: int | None = None


def read_token(path: Path) -> str:
    """The bearer token in a file that only its owner can read.

    Raises:
        Unchecked: ``E_TOKEN_FILE``: missing, readable by others, or no token.
    """
    hint = f"write at least 32 random characters to it, then: chmod 600 {path}"
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unchecked("E_TOKEN_FILE", f"token file {path}: cannot be read as text", hint) from error
    if stat.S_IMODE(mode) & 0o077:
        raise Unchecked(
            "E_TOKEN_FILE", f"token file {path}: others can read it ({stat.filemode(mode)})", hint
        )
    if not 32 <= len(text) <= MAX_TOKEN_BYTES or not text.isprintable() or " " in text:
        raise Unchecked(
            "E_TOKEN_FILE", f"token file {path}: expected 32 to {MAX_TOKEN_BYTES} characters", hint
        )
    return text


def bind(host: str, port: int, what: str) -> socket.socket:
    """A listening socket, so that a port in use is told before anything else starts.

    Raises:
        Unchecked: ``E_PORT``.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unchecked(
            "E_PORT", f"{what}: cannot listen on {host} port {port} ({error.strerror})", "choose another port"
        ) from error
    return listener


def serve_superlink(options: Options) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent dies.

    Prints one line of JSON when all doors are open: ``{"local": "127.0.0.1:…", "fleet": "host:…",
    "control": "host:…" or null}``. The same may be read from ``ready.json`` in the folder.

    Raises:
        Unchecked: a port, the token file or the certificate stands in the way.
    """
    keep_quiet(options.folder / "flower")
    token = read_token(options.token_file)
    tls = make_fleet_tls(options.folder / "tls", options.hosts)
    local = bind("127.0.0.1", options.local_port, "Control and Runtime")
    fleet = bind(*options.fleet, "Fleet")
    control = bind(*options.control, "Control") if options.control else None
    with asyncio.Runner(loop_factory=_loop()) as runner:
        runner.run(_serve(options, token, tls, local, fleet, control))


async def _serve(
    options: Options,
    token: str,
    tls: FleetTls,
    local: socket.socket,
    fleet: socket.socket,
    control: socket.socket | None,
) -> None:
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, TASK_TOKEN_HEADER

    from federation.flower.executor import TaskStarter, coordinator_bundle

    logging.getLogger("flwr").setLevel(logging.WARNING)  # it logs every call, and the hub asks often
    address = f"127.0.0.1:{local.getsockname()[1]}"
    app, factory = _application(token)
    allowed = options.foreign_apps | {coordinator_bundle().digest}
    starter = TaskStarter(factory, address, allowed=allowed, folder=options.folder)
    to_sites = Bell(
        "/v1/fleet/pull-messages",
        ("/v1/runtime/push-messages", "/v1/runtime/push-object"),
        FLEET_HTTP_PUBLIC_KEY_HEADER.encode(),
        hold_s=SITE_HOLD_S,
        settle_s=SETTLE_S,
    )
    to_hub = Bell("/v1/runtime/pull-messages", ("/v1/fleet/push-messages",), TASK_TOKEN_HEADER.encode())
    bells = (to_sites, to_hub)
    fleet_door = Door(app, FLEET, max_body=options.fleet_body, bells=bells)
    servers = [
        (_server(Door(app, CONTROL + RUNTIME, max_body=LOCAL_BODY_BYTES, bells=bells), lifespan="on"), local),
        (_server(fleet_door, ssl_certfile=str(tls.certificate), ssl_keyfile=str(tls.key)), fleet),
    ]
    if control is not None:
        servers.append((_server(Door(app, CONTROL, max_body=LOCAL_BODY_BYTES)), control))
    _stop_on_signal([server for server, _ in servers], bells)
    serving = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in servers]
    while not all(server.started for server, _ in servers):
        if any(task.done() for task in serving):
            break
        await asyncio.sleep(0.01)
    else:
        starter.start()
        _announce(options, address, fleet, control)
    try:
        await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*serving)
        await asyncio.to_thread(starter.stop)


def _application(token: str) -> tuple[Any, Any]:
    """flwr's application, its most frequent calls in front, and the factory of its state."""
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secrets.token_bytes(32),
        authn_plugin=_hub_token(token),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    app.user_middleware = [one for one in app.user_middleware if _name(one) not in _IDLE]
    return Calls(app), app.state.linkstate_factory


def _name(middleware: Any) -> str:
    return str(middleware.cls.__name__)


def _hub_token(token: str) -> Any:
    """flwr's account plugin that knows one account, proved by one bearer token."""
    from flwr.supercore.auth.typing import AccountInfo
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

    class HubToken(NoOpControlAuthnPlugin):
        def validate_tokens_in_metadata(
            self, metadata: Sequence[tuple[str, str | bytes]]
        ) -> tuple[bool, AccountInfo | None]:
            given = str(next((value for _, value in metadata), ""))
            if not hmac.compare_digest(given.encode(), token.encode()):
                return False, None
            return super().validate_tokens_in_metadata(metadata)

        def get_login_details(self) -> None:
            return None

        def refresh_tokens(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[None, None]:
            return None, None

    return HubToken()


def _loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """The faster event loop where it is installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _server(app: Any, **options: Any) -> "uvicorn.Server":
    import uvicorn

    class Server(uvicorn.Server):
        """One of several in one loop; signals are taken for all of them, in ``_stop_on_signal``."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    settings = {
        "lifespan": "off",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        **options,
    }
    return Server(uvicorn.Config(app, **settings))


def _stop_on_signal(servers: Sequence["uvicorn.Server"], bells: Sequence[Bell]) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        for bell in bells:
            bell.open()  # else the servers would wait for the polls that they hold
        for server in servers:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _announce(options: Options, local: str, fleet: socket.socket, control: socket.socket | None) -> None:
    line = json.dumps(
        {
            "local": local,
            "fleet": _address(fleet),
            "control": None if control is None else _address(control),
        }
    )
    ready = options.folder / "ready.json"
    temporary = ready.with_suffix(".new")
    temporary.write_text(line)
    temporary.replace(ready)
    print(line, flush=True)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, found {text!r}")
    return host.strip("[]"), int(port)


def parse(arguments: Sequence[str]) -> Options:
    """Options from a command line, see ``--help``."""
    parser = argparse.ArgumentParser(
        "python -m federation.flower.superlink", description=serve_superlink.__doc__
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--fleet", type=_host_port, required=True, metavar="HOST:PORT")
    parser.add_argument(
        "--host", action="append", default=[], help="name or address in the Fleet certificate"
    )
    parser.add_argument(
        "--public", type=_host_port, metavar="HOST:PORT", help="where labs reach Fleet; its host joins --host"
    )
    parser.add_argument("--local-port", type=int, default=0)
    parser.add_argument("--control", type=_host_port, metavar="HOST:PORT")
    parser.add_argument("--fleet-body", type=int, default=FLEET_BODY_BYTES, metavar="BYTES")
    parser.add_argument("--allow-app", action="append", default=[], metavar="SHA256")
    parser.add_argument("--parent", type=int, metavar="PID")
    found = parser.parse_args(arguments)
    return Options(
        folder=found.folder,
        token_file=found.token_file,
        fleet=found.fleet,
        hosts=(*found.host, *((found.public[0],) if found.public else ())) or (found.fleet[0],),
        local_port=found.local_port,
        control=found.control,
        fleet_body=found.fleet_body,
        foreign_apps=frozenset(found.allow_app),
        parent=found.parent,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a process of its own; exit status 2 says on stderr what stands in the way."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.parent is not None:
        die_with(options.parent)
    try:
        options.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        serve_superlink(options)
    except FedhubError as error:
        print(f"{error}\n{error.hint}", file=sys.stderr)
        return int(error.exit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
