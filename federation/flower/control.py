"""The hub's side of Flower: starts, watches and stops runs, and registers the nodes of sites.

A run is only ever started from our own coordinator bundle, built from the files installed here, and node ids
leave this module as decimal text, since JSON cannot hold a uint64. flwr's client is internal to flwr: this is
the one place that uses it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from federation.flower.quiet import keep_quiet
from storage.errors import FedhubError, Misuse, Refused, Unchecked, shown

CONFIG_KEYS = ("hub", "plan", "attempt", "token-file")
CONNECT_S = 3.0  # SuperLink is near: one whose machine is gone must not hold up the hub for flwr's 30 s


@dataclass(frozen=True)
class FlowerRun:
    """State of one Flower run.

    Attributes:
        state: how far it is. ``outcome`` and ``details`` say how it ended, and are empty before.
    """

    id: str
    state: Literal["pending", "starting", "running", "finished"]
    outcome: Literal["", "completed", "failed", "stopped"]
    details: str


@dataclass(frozen=True)
class FlowerNode:
    """A site's node as SuperLink knows it."""

    id: str
    name: str
    public_key: str  # PEM
    online: bool
    last_activated_at: str  # ISO 8601, empty when never


class Control:
    """One SuperLink, seen by the hub.

    Args:
        url: address of the Control API, ``http://host:port``.
        token: its bearer token.
    """

    def __init__(self, url: str, token: str) -> None:
        keep_quiet()
        from flwr.supercore.control.control_http_client import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Unchecked("E_SUPERLINK", f"{url!r} is not the http(s) address of a Control API")
        self._url = url
        self._client = ControlHttpClient.from_server_address(
            parts.netloc,
            insecure=parts.scheme == "http",
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="hub"), _Bearer(token)],
        )

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- runs ---------------------------------------------------------------------------------------------

    def start_run(self, config: Mapping[str, str | int]) -> str:
        """Start our coordinator and return the Flower run's id.

        Args:
            config: exactly ``hub``, ``plan``, ``attempt`` and ``token-file``; every node can read it, so no
                secret.
        """
        from federation.flower.executor import coordinator_bundle

        if set(config) != set(CONFIG_KEYS):
            raise Misuse("E_RUN_CONFIG", f"start_run: expected {CONFIG_KEYS}, found {sorted(config)}")
        return self.start_bundle(coordinator_bundle().content, config)

    def start_bundle(self, content: bytes, config: Mapping[str, str | int | float | bool]) -> str:
        """Start the ServerApp of any Flower app bundle; SuperLink runs it only if its operator allows the
        digest.

        Such a run is Flower's own: by value, without orders, consents or receipts, so nothing of it can be
        released.
        """
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        bundle = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(
            fab=fab_to_proto(bundle), override_config=user_config_to_proto(dict(config))
        )
        answer = self._call(self._client.StartRun, request)
        if not answer.run_id:
            raise Unchecked("E_SUPERLINK", "SuperLink did not start the run")
        return str(answer.run_id)

    def status(self, run_id: str) -> FlowerRun | None:
        """How far a run is; None when SuperLink does not know it, as after a restart."""
        from flwr.proto.control_pb2 import ListRunsRequest

        try:
            answer = self._call(self._client.ListRuns, ListRunsRequest(run_id=int(run_id)))
        except Refused as error:
            if error.code == "E_FLOWER_RUN_UNKNOWN":
                return None
            raise
        found = answer.run_dict.get(int(run_id))
        if found is None:
            return None
        return FlowerRun(run_id, found.status.status, found.status.sub_status, found.status.details)

    def stop(self, run_id: str) -> None:
        """Stop a run; one that is over or unknown stays as it is."""
        from flwr.proto.control_pb2 import StopRunRequest

        try:
            self._call(self._client.StopRun, StopRunRequest(run_id=int(run_id)))
        except Refused as error:
            if error.code not in ("E_FLOWER_RUN_UNKNOWN", "E_FLOWER_RUN_OVER"):
                raise

    def logs(self, run_id: str) -> Iterator[str]:
        """What the coordinator prints, as it comes; ends when the run has ended."""
        from flwr.proto.control_pb2 import StreamLogsRequest

        request = StreamLogsRequest(run_id=int(run_id), after_timestamp=0.0)
        with _translated(self._url):
            for part in self._client.StreamLogs(request):
                yield part.log_output

    # --- nodes --------------------------------------------------------------------------------------------

    def register_node(self, public_key_pem: str, name: str) -> str:
        """Let a site's node in, and return its id; a key that is registered keeps its id.

        Args:
            public_key_pem: SubjectPublicKeyInfo of a key on a NIST curve.
            name: the institution's, shown beside the node.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        key = public_key_pem.encode()
        try:
            answer = self._call(self._client.RegisterNode, RegisterNodeRequest(public_key=key, name=name))
        except Refused as error:
            if error.code != "E_NODE_KEY_IN_USE":
                raise
            known = next((node for node in self.list_nodes() if node.public_key == public_key_pem), None)
            if known is None:
                raise
            return known.id
        return str(answer.node_id)

    def unregister(self, node_id: str) -> None:
        """Shut a node out from its next call on."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        self._call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=int(node_id)))

    def list_nodes(self) -> list[FlowerNode]:
        """All registered nodes."""
        from flwr.proto.control_pb2 import ListNodesRequest

        answer = self._call(self._client.ListNodes, ListNodesRequest())
        return [
            FlowerNode(
                id=str(node.node_id),
                name=node.name,
                public_key=node.public_key.decode("ascii", "replace"),
                online=node.status == "online",
                last_activated_at=node.last_activated_at,
            )
            for node in answer.nodes_info
            if node.status != "unregistered"
        ]

    def _call(self, method: Any, request: Any) -> Any:
        with _translated(self._url):
            return method(request)


class _Bearer:
    """Adds the token to each request of flwr's client, and gives up a connection that nobody answers."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Any) -> Any:
        context.request.headers["authorization"] = f"Bearer {self._token}"
        context.request.extensions["timeout"]["connect"] = CONNECT_S
        return call_next(context)


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turns what flwr's client raises into our errors."""
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _error(error.response, url) from error
    except httpx.TransportError as error:
        raise Unchecked(
            "E_SUPERLINK_AWAY",
            f"SuperLink at {url} cannot be reached: {type(error).__name__}",
            "is it running, and is this the address of its Control API?",
        ) from error


def _error(response: Any, url: str) -> FedhubError:
    from flwr.supercore.error import ApiErrorCode, FlowerError

    response.read()
    told = FlowerError.from_json(response.text)
    if response.status_code == 401:
        return Refused(
            "E_SUPERLINK_TOKEN",
            f"SuperLink at {url} does not accept the hub's token",
            "both must read the same token file",
            status=401,
        )
    if told is None:
        return Unchecked(
            "E_SUPERLINK", f"SuperLink at {url} answered {response.status_code} without a reason"
        )
    codes = {
        ApiErrorCode.RUN_ID_NOT_FOUND: "E_FLOWER_RUN_UNKNOWN",
        ApiErrorCode.RUN_ALREADY_FINISHED: "E_FLOWER_RUN_OVER",
        ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE: "E_NODE_KEY_IN_USE",
        ApiErrorCode.PUBLIC_KEY_NOT_VALID: "E_NODE_KEY",
    }
    code = codes.get(ApiErrorCode(told.code), "E_FLOWER_REFUSED")
    details = f": {told.public_details}" if told.public_details else ""
    return Refused(
        code, f"SuperLink refused: {shown(told.message + details, 300)}", status=response.status_code
    )
