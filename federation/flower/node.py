"""The lab agent's connection to Flower: one node, outbound only, that answers orders.

flwr's own Fleet client does the talking: it activates the node, signs each call with the site's node key and
sends heartbeats. What arrives is bounded before it is read and then handed to ``federation.agent``; no code
that came with a run is ever fetched or loaded. A SuperLink that has started again does not know the node
until the hub has registered it: then this process, which is warm, connects again. flwr may still end the
process when the hub refuses the node, so this is a child (``python -m federation.flower.node``) under
``federation.supervisor``.
"""

import argparse
import fcntl
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec

from federation.flower import carried
from federation.flower.ending import Ending
from federation.flower.quiet import keep_quiet
from federation.home import Home
from federation.lifeline import die_with
from federation.messages import MESSAGE_LIMIT_BYTES, OrderMessage, OrderReply, RefusalNote, read_message
from federation.reaching import ON_THE_WAY, explain, read_roots
from federation.site_bases import base_folders
from federation.site_log import SiteLog
from storage.errors import FedhubError, Rejected, Unchecked

if TYPE_CHECKING:
    import httpx

    from federation.agent import Agent

Keys = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]

RECORD = "fedhub"  # the one record of a message
MEMBER = "json"  # the one member of that record
MAX_OBJECTS = 16
SHORT_POLL_S = 0.05
LONG_POLL_S = 1.0
HELD_S = 0.5  # a poll that took this long was held by the server: the next may follow at once
GIVE_UP_S = 3.0  # how long flwr, with growing pauses, tries a call again before we connect anew
ADMITTED_S = 60.0  # how long a node that is refused asks again; then flwr says why, and ends the process
TOLD_S = 4.0  # after which that is told: a SuperLink that has just started knows nobody for a moment
FIRST_PAUSE_S = 0.3
LONGEST_PAUSE_S = 2.0
STEADY_S = 10.0
SHORT_LIVES = 3  # connections in a row that ended within STEADY_S; then the supervisor starts us afresh


class Node:
    """A connected node."""

    def __init__(self, connection: Any, fleet: Any, agent: "Agent") -> None:
        """
        Args:
            connection: what flwr's ``http_request_response`` yields.
            fleet: flwr's client of the same port, for what is called most.
        """
        from flwr.proto.node_pb2 import Node as Named
        from flwr.supercore.retry import make_simple_http_retry_invoker

        self.id: int
        self.id, *_, self._pull_object, self._push_object, self._confirm = connection
        self._named = Named(node_id=self.id)
        self._fleet = fleet
        self._patiently = make_simple_http_retry_invoker()
        self._patiently.max_time = GIVE_UP_S
        self._agent = agent
        self._pause_s = LONG_POLL_S

    def serve(self, check: Callable[[], None] = lambda: None) -> NoReturn:
        """Answer messages for ever.

        Args:
            check: called between messages; what it raises ends this.
        """
        while True:
            check()
            began = time.monotonic()
            if self.serve_one():
                self._pause_s = SHORT_POLL_S
            elif time.monotonic() - began < HELD_S:
                time.sleep(self._pause_s)
                self._pause_s = min(self._pause_s * 1.3, LONG_POLL_S)

    def serve_one(self) -> bool:
        """Answer the next message, if there is one."""
        from flwr.supercore.run import RunNotRunningException

        # A run that has ended meanwhile wants no answer.
        with suppress(RunNotRunningException):
            message = self._receive()
            if message is None:
                return False
            began = time.monotonic()
            text = _text(message)
            content = _foreign() if text is None else _record(self._reply(text))
            self._answer(message, content, time.monotonic() - began)
        return True

    def _receive(self) -> Any | None:
        """The next message, with its content as long as it is small."""
        from flwr.common.serde import message_from_proto
        from flwr.proto.fleet_pb2 import PullMessagesRequest

        asked = carried.want(PullMessagesRequest(node=self._named))
        found = self._patiently.invoke(self._fleet.PullMessages, asked)
        if not found.messages_list:
            return None
        head, tree = message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        run_id, names = head.metadata.run_id, carried.names_in(tree)
        if len(names) > MAX_OBJECTS:
            return head
        contents = carried.objects_of(found)
        missing = [name for name in names if name not in contents]
        if missing:
            contents |= carried.pull_missing(missing, lambda name: self._pull_object(run_id, name))
        if sum(map(len, contents.values())) > 2 * MESSAGE_LIMIT_BYTES:
            return head
        if missing:
            self._confirm(run_id, tree.object_id)
        return carried.put_together(tree, contents)

    def _reply(self, text: str) -> OrderReply:
        try:
            return self._agent.perform(read_message(text, OrderMessage))
        except Rejected as error:
            note = RefusalNote(code=error.code, message=error.message[:2000], statement=None)
            return OrderReply(dataset=None, refusal=note)

    def _answer(self, message: Any, content: Any, seconds: float) -> None:
        from flwr.app import Message
        from flwr.proto.fleet_pb2 import PushMessagesRequest

        answer = Message(content, reply_to=message)
        bare, tree, objects = carried.take_apart(answer)
        request = PushMessagesRequest(
            node=self._named,
            messages_list=[bare],
            message_object_trees=[tree],
            clientapp_runtime_list=[seconds],
        )
        carried.add(request, objects)
        taken = self._patiently.invoke(self._fleet.PushMessages, request)
        for name in taken.objects_to_push:
            self._push_object(answer.metadata.run_id, taken.session_id, name, objects[name])


def _text(message: Any) -> str | None:
    """The one text of a message; None for one of another kind, as those of Flower's own apps are."""
    record: Any = message.content.get(RECORD, {}) if message.has_content() else {}
    text = record.get(MEMBER) if hasattr(record, "get") else None
    return text if isinstance(text, str) else None


def _record(reply: OrderReply) -> Any:
    """The content of an answer to the coordinator."""
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({RECORD: ConfigRecord({MEMBER: reply.model_dump_json()})})


def _foreign() -> Any:
    """The refusal of what is no order of the hub: Flower's own error, which its strategies leave out.

    A reply with content would be counted by them as a result, and end a stock run.
    """
    from flwr.app import Error
    from flwr.common.constant import ErrorCode

    said = "message: no order of the hub is in it; this site runs only what its institution has consented to"
    return Error(ErrorCode.MOD_FAILED_PRECONDITION, f"E_MESSAGE: {said}")


def serve_node(home: Home, ending: Ending) -> NoReturn:
    """Be this home's Flower node until the end is told, which deactivates it."""
    keep_quiet(home.site / "flower")
    lock = take_lock(home)
    _keep_scratch(home)
    private = home.key("node")
    keys = (private, private.public_key())
    roots = read_roots(home.path)
    _warm(home)
    short = 0
    with lock:
        while short < SHORT_LIVES:
            with ending.put_off():
                _release_lease(home, keys, roots)
            _wait_admitted(home, keys, roots, ending)
            began = time.monotonic()
            # flwr interrupts the process when SuperLink does not know the node any more, as after a restart.
            with suppress(KeyboardInterrupt):
                _serve_connected(home, keys, roots, ending)
            short = 0 if time.monotonic() - began > STEADY_S else short + 1
            print(f"the connection to {home.fleet} has ended; connecting again", file=sys.stderr, flush=True)
    raise Unchecked("E_FLEET", f"the connection to {home.fleet} ended {SHORT_LIVES} times at once")


def _keep_scratch(home: Home) -> None:
    """Let whatever is written for a while lie below the home, and nothing of an earlier life."""
    scratch = home.site / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    tempfile.tempdir = str(scratch)


def _serve_connected(home: Home, keys: Keys, roots: bytes, ending: Ending) -> None:
    """Answer orders until the connection ends."""
    from flwr.supernode.fleet_http_connection import http_request_response

    from federation.agent import Agent
    from federation.ledger import SiteLedger

    with (
        ending.put_off(),  # while the node is activated, and deactivated
        ExitStack() as stack,
        home.client("snapshot") as client,
        SiteLedger(home.site / "ledger.db") as ledger,
        http_request_response(
            home.fleet,
            insecure=False,
            root_certificates=roots,
            authentication_keys=keys,
            max_retries=None,
            max_wait_time=GIVE_UP_S,
        ) as connection,
        fleet_client(home, keys, roots) as fleet,
    ):
        agent = stack.enter_context(closing(Agent(home, client, ledger)))
        node = Node(connection, fleet, agent)
        _note_lease(home, node.id)
        print(json.dumps({"node": str(node.id)}), flush=True)
        with ending.at_once():
            node.serve(ending.check)


def take_lock(home: Home) -> Any:
    """A lock that one process holds per home, and that ends with it.

    Raises:
        Unchecked: ``E_SITE_RUNNING``.
    """
    home.site.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (home.site / "node.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise Unchecked(
            "E_SITE_RUNNING",
            f"an agent for {home.path} is running already",
            "stop it first, or use another home",
        ) from error
    return file


def _warm(home: Home) -> None:
    """Load what the first order would wait for; the libraries of text models only where a base model lies."""
    with suppress(ModuleNotFoundError):  # the order that needs it is refused by name
        import federation.recipes.loop
    if base_folders(home):
        with suppress(ModuleNotFoundError):
            import federation.recipes.adapters  # noqa: F401


def _note_lease(home: Home, node_id: int) -> None:
    (home.site / "node.json").write_text(json.dumps({"node": str(node_id)}))


def _release_lease(home: Home, keys: Keys, roots: bytes) -> None:
    """End the lease of a process of this home that was killed; else SuperLink refuses the node for a minute.

    The lock says that no such process lives any more.
    """
    import httpx
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest

    try:
        left = int(json.loads((home.site / "node.json").read_text())["node"])
    except (OSError, ValueError, KeyError):
        return
    # No such lease, or the hub is away: activation says more.
    with suppress(httpx.HTTPError), fleet_client(home, keys, roots) as fleet:
        fleet.DeactivateNode(DeactivateNodeRequest(node_id=left))


def _wait_admitted(home: Home, keys: Keys, roots: bytes, ending: Ending) -> None:
    """Wait until SuperLink takes this node: it may be away, or not have been told of it yet.

    flwr ends the process at the first no, so this asks before it does, and gives the lease back.
    """
    import httpx
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    public = public_key_to_bytes(keys[1])
    asked = ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
    log, began, pause_s = SiteLog(home), time.monotonic(), FIRST_PAUSE_S
    while time.monotonic() < began + ADMITTED_S:
        try:
            with fleet_client(home, keys, roots) as fleet, ending.put_off():
                node_id = fleet.ActivateNode(asked).node_id
                try:
                    _note_lease(home, node_id)
                finally:
                    fleet.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        except httpx.HTTPError as error:
            if time.monotonic() - began > TOLD_S:
                log.tell(_in_the_way(error, home.fleet))
        else:
            trouble = log.newest()
            if trouble is not None and trouble.code in ("E_NODE_REFUSED", *ON_THE_WAY):
                log.over()
            return
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)


def _in_the_way(error: "httpx.HTTPError", fleet: str) -> Unchecked:
    """Why SuperLink does not take this node: it says no, or cannot be reached."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None and status < 500:
        return Unchecked("E_NODE_REFUSED", f"{fleet} answers {status} to this site's node key")
    return explain(error, fleet) or Unchecked("E_PORT_REFUSED", f"{fleet}: {type(error).__name__}")


def fleet_client(home: Home, keys: Keys, roots: bytes) -> Any:
    """flwr's client of the Fleet port, which signs each call; a context."""
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    interceptors: list[Any] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(*keys),
    ]
    return FleetHttpClient.from_server_address(home.fleet, False, roots, interceptors=interceptors)


def main(arguments: Sequence[str] | None = None) -> int:
    """The child process: ``python -m federation.flower.node --home DIR --parent PID``."""
    parser = argparse.ArgumentParser("python -m federation.flower.node")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent", type=int)
    found = parser.parse_args(arguments)
    if found.parent is not None:
        die_with(found.parent, signal.SIGTERM)
    ending = Ending()
    signal.signal(signal.SIGTERM, ending.hear)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # flwr's; a shell has "&" ignore it
    home = Home.open(found.home)
    try:
        serve_node(home, ending)
    except FedhubError as error:
        SiteLog(home).tell(error)
        return int(error.exit)


if __name__ == "__main__":
    sys.exit(main())
