"""The calls that a round makes for each site, handed to flwr's own functions with no framework between.

flwr serves a call through layers of middleware, a router with dependencies and three changes of threads,
which on messages as small as ours cost several times what flwr then does. ``Calls`` takes the same steps
with flwr's own parts in one go: read the protobuf request, check the caller's version, authenticate node or
task, call the handler, put errors into flwr's words. SuperLink's state lies in memory, so that a handler is
done at once. Every other request, and one with a larger body, goes the long way. Our nodes and coordinator
have the objects of a message travel with it (``carried``).
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, cast

from federation.flower import carried

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OFTEN = (  # by the last part of their paths
    "push-messages",
    "push-object",
    "pull-messages",
    "pull-object",
    "confirm-message-received",
    "send-node-heartbeat",
    "send-task-heartbeat",
    "get-nodes",
)
SMALL_BYTES = 1 << 16  # of a request; flwr's own apps send tensors, which are not to hold up everybody else


class Calls:
    """flwr's application, with its most frequent calls in front.

    Args:
        app: what ``flwr.superlink.main.create_app`` makes.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._handlers = _handlers(app)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        handler = self._handlers.get((scope.get("method", ""), scope.get("path", "")))
        if handler is None:
            await self._app(scope, receive, send)
            return
        first = await receive()
        if first.get("more_body") or len(first.get("body", b"")) > SMALL_BYTES:
            await self._app(scope, _again(first, receive), send)
            return
        response = await self._answer(scope, first.get("body", b""), handler)
        await response(scope, receive, send)

    async def _answer(self, scope: Message, body: bytes, handler: "Handler") -> Any:
        from flwr.supercore.error import http_error_translator
        from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
        from starlette.requests import Request
        from starlette.responses import Response

        async def serve(request: Any) -> Any:
            return Response(handler(request, body).SerializeToString(), media_type=PROTOBUF_MEDIA_TYPE)

        scope["app"] = self._app
        return await http_error_translator(Request(scope), serve)


Handler = Callable[[Any, bytes], Any]  # request and its body in, protobuf answer out


def _handlers(app: Any) -> dict[tuple[str, str], Handler]:
    """flwr's functions by method and path."""
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
    from flwr.supercore.routers.runtime.router import router as runtime
    from flwr.superlink.routers.fleet.router import router as fleet

    found: dict[tuple[str, str], Handler] = {}
    for router, made in ((fleet, _fleet_call), (runtime, _runtime_call)):
        paths = {route.path.rpartition("/")[2]: route for route in cast(list[Any], router.routes)}
        functions = {name: inspect.unwrap(paths[name].endpoint) for name in OFTEN if name in paths}
        for name, function in functions.items():  # unwrapped: flwr wraps each for FastAPI
            key = ("POST", paths[name].path)
            call = {"pull-messages": _pull, "push-messages": _push}.get(name)
            served = function if call is None else partial(call, functions)
            asked = inspect.signature(function).parameters
            further = {"handlers": app.state.runtime_handlers} if "handlers" in asked else {}
            found[key] = made(app, PROTOBUF_REQUEST_TYPES[key], partial(served, **further))
    return found


def _pull(functions: Mapping[str, Callable[..., Any]], *, request: Any, **given: Any) -> Any:
    """Messages, with their objects where the caller wants them and all are there: they are then delivered."""
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest

    answer = functions["pull-messages"](request=request, **given)
    if not answer.messages_list or not carried.wants(request):
        return answer
    whole: dict[str, bytes] = {}
    for head, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
        about = {"node": _node(request), "run_id": head.metadata.run_id}
        objects = {}
        for name in carried.names_in(tree):
            asked = PullObjectRequest(object_id=name, **about)
            objects[name] = functions["pull-object"](request=asked, **given).object_content
        if all(objects.values()) and sum(map(len, objects.values())) <= carried.LARGEST_BYTES:
            done = ConfirmMessageReceivedRequest(message_object_id=tree.object_id, **about)
            functions["confirm-message-received"](request=done, **given)
            whole |= objects
    carried.add(answer, whole)
    return answer


def _push(functions: Mapping[str, Callable[..., Any]], *, request: Any, **given: Any) -> Any:
    """Take messages with the objects that travel with them; the answer names those that are still wanted."""
    from flwr.proto.message_pb2 import PushObjectRequest

    objects = carried.objects_of(request)
    answer = functions["push-messages"](request=request, **given)
    about = {"node": _node(request), "session_id": answer.session_id}
    if request.messages_list:
        about["run_id"] = request.messages_list[0].metadata.run_id
    left = []
    for name in answer.objects_to_push:
        sent = PushObjectRequest(object_id=name, object_content=objects.get(name, b""), **about)
        if name not in objects or not functions["push-object"](request=sent, **given).stored:
            left.append(name)
    answer.objects_to_push[:] = left
    return answer


def _node(request: Any) -> Any:
    """Who asks: the node that was authenticated, or a task at SuperLink itself."""
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.proto.node_pb2 import Node

    return request.node if hasattr(request, "node") else Node(node_id=SUPERLINK_NODE_ID)


def _fleet_call(app: Any, kind: Any, function: Callable[..., Any]) -> Handler:
    from flwr.superlink.routers.fleet.node_auth import authenticate_node

    state = app.state.linkstate_factory.state

    def handle(request: Any, body: bytes) -> Any:
        request.state.protobuf_request = _message(request, body, kind)
        authenticate_node(request)
        return function(request=request.state.protobuf_request, state=state())

    return handle


def _runtime_call(app: Any, kind: Any, function: Callable[..., Any]) -> Handler:
    from flwr.supercore.constant import TASK_TOKEN_HEADER
    from flwr.supercore.dependencies.task import authenticate_task
    from flwr.supercore.dependencies.version import VersionDependency

    version = VersionDependency(
        component_name="SuperLink", connection_name="Caller <-> SuperLink Runtime API"
    )
    state = app.state.linkstate_factory.state

    def handle(request: Any, body: bytes) -> Any:
        message = _message(request, body, kind)
        version(request)
        task = authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), state())
        return function(request=message, state=state(), task=task)

    return handle


def _message(request: Any, body: bytes, kind: Any) -> Any:
    """The protobuf request.

    Raises:
        FlowerError: another content type, or bytes that are none.
    """
    from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware as Translation

    Translation._check_request_media_type(request)
    return Translation._parse_request(body, kind)


def _again(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
