"""flwr's frequent calls say the same whether they go the short way or flwr's own."""

import asyncio
import base64
import datetime
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from federation.flower import calls, carried, superlink
from federation.flower.quiet import keep_quiet
from storage.signing import public_pem

keep_quiet()
PROTOBUF = (b"content-type", b"application/protobuf")
KEY = ec.generate_private_key(ec.SECP384R1())


class Counted:
    """flwr's application, counting what goes the long way."""

    def __init__(self, app: Any) -> None:
        self.app, self.asked = app, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await self.app(scope, receive, send)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)


@pytest.fixture(scope="module")
def application() -> Iterator[calls.Calls]:
    short, _factory = superlink._application(secrets.token_urlsafe(32))
    short._app = Counted(short._app)
    yield short


@pytest.fixture(scope="module")
def node(application: calls.Calls) -> int:
    state = application._app.state.linkstate_factory.state()
    found: int = state.create_node("aid", "account", public_pem(KEY.public_key()).encode(), 30)
    assert state.activate_node(found, 30)
    return found


def signed(key: ec.EllipticCurvePrivateKey = KEY, at: str | None = None) -> list[tuple[bytes, bytes]]:
    """Headers of a node's call, as flwr's client signs them."""
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.primitives.asymmetric import sign_message

    moment = at or datetime.datetime.now(datetime.UTC).isoformat()
    proof = sign_message(key, moment.encode())
    return [
        (FLEET_HTTP_PUBLIC_KEY_HEADER.encode(), base64.b64encode(public_pem(key.public_key()).encode())),
        (FLEET_HTTP_SIGNATURE_HEADER.encode(), base64.b64encode(proof)),
        (TIMESTAMP_HEADER.encode(), moment.encode()),
    ]


def ask(
    app: Any, path: str, body: bytes, headers: list[tuple[bytes, bytes]]
) -> tuple[int, dict[str, str], bytes]:
    """One request: status, the headers that say what the answer is, and its body."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "scheme": "http"}
    scope |= {"headers": headers, "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2), "root_path": ""}
    asyncio.run(app({**scope, "raw_path": path.encode(), "http_version": "1.1"}, receive, send))
    shown = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], shown, b"".join(part.get("body", b"") for part in sent[1:])


def heartbeat(node: int) -> bytes:
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.node_pb2 import Node

    return bytes(SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=30).SerializeToString())


BEAT, NODES = "/v1/fleet/send-node-heartbeat", "/v1/runtime/get-nodes"
CASES = {
    "good": (BEAT, None, lambda: [PROTOBUF, *signed()], 200),
    "no content type": (BEAT, None, signed, 415),
    "no protobuf": (BEAT, b"\xff\xff", lambda: [PROTOBUF, *signed()], 400),
    "nobody": (BEAT, None, lambda: [PROTOBUF], 401),
    "another key": (BEAT, None, lambda: [PROTOBUF, *signed(ec.generate_private_key(ec.SECP384R1()))], 401),
    "an old proof": (BEAT, None, lambda: [PROTOBUF, *signed(at="2026-01-01T00:00:00+00:00")], 401),
    "a bad interval": (BEAT, b"", lambda: [PROTOBUF, *signed()], 401),
    "no task token": (NODES, b"", lambda: [PROTOBUF], 401),
    "a wrong task token": (NODES, b"", lambda: [PROTOBUF, (b"flwr-task-token", b"x" * 40)], 401),
    "two task tokens": (NODES, b"", lambda: [PROTOBUF, *[(b"flwr-task-token", b"x")] * 2], 401),
    "an old flwr": (
        NODES,
        b"",
        lambda: [PROTOBUF, *[(f"flwr-{n}".encode(), v) for n, v in (
            ("package-name", b"flwr"), ("package-version", b"1.2.0"), ("component-name", b"x"))]],
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_short_way_answers_as_flwr_does(application: calls.Calls, node: int, case: str) -> None:
    path, body, headers, status = CASES[case]
    given = heartbeat(node) if body is None else body
    before = application._app.asked
    short = ask(application, path, given, headers())
    assert application._app.asked == before
    assert short == ask(application._app, path, given, headers())
    assert status in (None, short[0]) and (status is not None or short[0] >= 400)


@pytest.mark.parametrize(
    ("path", "size"), [("/v1/fleet/activate-node", 10), (BEAT, calls.SMALL_BYTES + 1), ("/v1/fleet/x", 0)]
)
def test_everything_else_goes_flwrs_own_way(application: calls.Calls, path: str, size: int) -> None:
    before = application._app.asked
    ask(application, path, b"\0" * size, [PROTOBUF])
    assert application._app.asked == before + 1


def test_every_frequent_call_of_both_apis_has_a_short_way(application: calls.Calls) -> None:
    found = {path for _method, path in application._handlers}
    shared = set(calls.OFTEN) - {"send-node-heartbeat", "send-task-heartbeat", "get-nodes"}
    assert found == {f"/v1/{api}/{call}" for api in ("fleet", "runtime") for call in shared} | {
        BEAT, NODES, "/v1/runtime/send-task-heartbeat"
    }  # fmt: skip


# --- objects that travel with their message -----------------------------------------------------------------


@pytest.fixture
def task(application: calls.Calls, node: int) -> tuple[int, str]:
    """A run that is under way, and its task's token."""
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
    from flwr.superlink.servicer.runtime import runtime_handlers

    state = application._app.state.linkstate_factory.state()
    run_id = state.create_run(None, None, "f" * 64, {}, NOOP_FEDERATION_ID, None, "aid", TaskType.SERVER_APP)
    taken = runtime_handlers.acquire_task(
        AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]), state
    )
    assert taken.task.run_id == run_id and state.activate_task(taken.task.task_id)
    return run_id, taken.token


def order(run_id: int, node: int, text: str) -> tuple[Any, Any, dict[str, bytes]]:
    from flwr.app import ConfigRecord, Metadata, RecordDict
    from flwr.app.message import make_message

    about = Metadata(run_id, "", 1, node, "", "", time.time(), 3600.0, "train")
    return carried.take_apart(make_message(about, RecordDict({"fedhub": ConfigRecord({"json": text})})))


def call(application: calls.Calls, name: str, request: Any, form: Any, token: str | None = None) -> Any:
    """One call of a task (with its token) or of the node, as an answer of flwr's."""
    who = signed() if token is None else [(b"flwr-task-token", token.encode())]
    path = f"/v1/{'fleet' if token is None else 'runtime'}/{name}"
    status, _, body = ask(application, path, request.SerializeToString(), [PROTOBUF, *who])
    assert status == 200, body
    return form.FromString(body)


def push(application: calls.Calls, run_id: int, token: str, node: int, text: str, sent: int) -> Any:
    """Push an order with its first ``sent`` objects: SuperLink's answer, and all objects."""
    from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse

    bare, tree, objects = order(run_id, node, text)
    request = PushAppMessagesRequest(messages_list=[bare], message_object_trees=[tree])
    carried.add(request, dict(list(objects.items())[:sent]))
    return call(application, "push-messages", request, PushAppMessagesResponse, token), objects


def pull(application: calls.Calls, node: int, *, wants: bool) -> Any:
    from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
    from flwr.proto.node_pb2 import Node

    request = PullMessagesRequest(node=Node(node_id=node))
    return call(
        application, "pull-messages", carried.want(request) if wants else request, PullMessagesResponse
    )


def is_kept(application: calls.Calls, name: str) -> bool:
    return application._app.state.linkstate_factory.state().object_store.get(name) is not None


def test_a_message_and_its_objects_go_both_ways_in_one_call_each(
    application: calls.Calls, node: int, task: tuple[int, str]
) -> None:
    answer, objects = push(application, *task, node, "do this", 3)
    assert len(objects) == 3 and list(answer.objects_to_push) == [] and answer.message_ids[0]
    found = pull(application, node, wants=True)
    assert carried.objects_of(found) == objects
    message = carried.put_together(found.message_object_trees[0], dict(objects))
    assert message.content["fedhub"]["json"] == "do this"
    assert not any(is_kept(application, name) for name in objects)


def test_flwrs_own_node_sees_nothing_of_it_and_asks_for_each_object(
    application: calls.Calls, node: int, task: tuple[int, str]
) -> None:
    from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
    from flwr.proto.node_pb2 import Node

    _, objects = push(application, *task, node, "do that", 3)
    found = pull(application, node, wants=False)
    assert len(found.messages_list) == 1 and carried.objects_of(found) == {}
    for name, content in objects.items():
        asked = PullObjectRequest(node=Node(node_id=node), run_id=task[0], object_id=name)
        assert call(application, "pull-object", asked, PullObjectResponse).object_content == content


def test_what_did_not_travel_is_named_and_a_message_without_it_is_not_delivered_whole(
    application: calls.Calls, node: int, task: tuple[int, str]
) -> None:
    answer, objects = push(application, *task, node, "half of it", 1)
    assert set(answer.objects_to_push) == set(list(objects)[1:])
    found = pull(application, node, wants=True)
    assert len(found.messages_list) == 1 and carried.objects_of(found) == {}
    assert all(is_kept(application, name) for name in objects)


def test_a_large_message_is_pulled_object_by_object(
    application: calls.Calls, node: int, task: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, objects = push(application, *task, node, "much", 3)
    monkeypatch.setattr(carried, "LARGEST_BYTES", 10)
    assert carried.objects_of(pull(application, node, wants=True)) == {}
    assert all(is_kept(application, name) for name in objects)
