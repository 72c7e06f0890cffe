"""The coordinator as Flower sees it: the ServerApp of a run, and the exchange of texts with nodes.

It sends to the node ids that the hub names and to no others, with its own push and pull instead of flwr's
``send_and_receive``, which sleeps for seconds. SuperLink holds an empty pull for a while (``doors``), so an
answer is here as soon as it has arrived. What a round is and does stands in ``federation.coordination``.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.coordination import Coordinator
from federation.delivery import Delivery
from federation.flower import carried
from federation.flower.superlink import read_token
from storage.errors import FedhubError

if TYPE_CHECKING:
    from flwr.serverapp import ServerApp

MESSAGE_TYPE = "train"  # Flower wants one of its own; what is to be done stands in the order
RECORD, MEMBER = "fedhub", "json"
HELD_S = 0.5
PAUSE_S = 0.1
MAX_ANSWER = 1 << 20
AT_ONCE = 12  # orders in one request: SuperLink takes the short way up to 64 KiB


def make_app() -> "ServerApp":
    """The ServerApp that the bundle in ``app/`` names."""
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        coordinate(grid, context.run_config)

    return app


def coordinate(grid: Any, config: Mapping[str, Any]) -> None:
    """Run the rounds that a run's configuration names; an error ends the Flower run, and the hub starts the
    next.
    """
    from federation.client import HubClient

    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    work = Path(os.environ["FEDHUB_COORDINATOR_WORK"])
    token = read_token(Path(str(config["token-file"])))
    with HubClient(str(config["hub"]), token=token) as client:
        run = Coordinator(client, FlowerExchange(grid), str(config["plan"]), int(config["attempt"]), work)
        try:
            run.run()
        except FedhubError as error:
            print(f"{error}\n{error.hint}", file=sys.stderr, flush=True)
            raise


class FlowerExchange:
    """Texts to and from nodes, over a run's Grid."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def send(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Send texts to node ids and give the message id for each node that could be sent to."""
        nodes, names = list(texts), list[str]()
        for start in range(0, len(nodes), AT_ONCE):
            names += self._push({node: texts[node] for node in nodes[start : start + AT_ONCE]})
        return {node: name for node, name in zip(nodes, names, strict=True) if name}

    def _push(self, texts: Mapping[str, str]) -> list[str]:
        from flwr.app import ConfigRecord, Message, RecordDict
        from flwr.proto.message_pb2 import PushObjectRequest
        from flwr.proto.runtime_pb2 import PushAppMessagesRequest

        contents = {node: RecordDict({RECORD: ConfigRecord({MEMBER: text})}) for node, text in texts.items()}
        parts = [carried.take_apart(Message(one, int(node), MESSAGE_TYPE)) for node, one in contents.items()]
        request = PushAppMessagesRequest(
            messages_list=[bare for bare, _, _ in parts], message_object_trees=[tree for _, tree, _ in parts]
        )
        objects = {name: content for *_, own in parts for name, content in own.items()}
        carried.add(request, objects)
        client = self._grid._runtime_client
        taken = client.PushMessages(request)
        for name in taken.objects_to_push:
            about = {"node": self._grid.node, "run_id": self._grid.run.run_id, "session_id": taken.session_id}
            client.PushObject(PushObjectRequest(object_id=name, object_content=objects[name], **about))
        return list(taken.message_ids)

    def collect(self, messages: Sequence[str], *, wait_s: float) -> list[Delivery]:
        """The answers that have come by now, waiting up to ``wait_s`` for the first."""
        until = time.monotonic() + wait_s
        while True:
            began = time.monotonic()
            answers = self._pull(messages)
            now = time.monotonic()
            if answers or now >= until:
                return answers
            if now - began < HELD_S:
                time.sleep(min(PAUSE_S, until - now))

    def _pull(self, messages: Sequence[str]) -> list[Delivery]:
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest

        asked = carried.want(PullAppMessagesRequest(message_ids=messages))
        found = self._grid._runtime_client.PullMessages(asked)
        contents = carried.objects_of(found)
        return [
            self._read(head, tree, contents)
            for head, tree in zip(found.messages_list, found.message_object_trees, strict=True)
        ]

    def _read(self, head: Any, tree: Any, contents: dict[str, bytes]) -> Delivery:
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
        from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

        client, node, run_id = self._grid._runtime_client, self._grid.node, self._grid.run.run_id
        own = {name: contents[name] for name in carried.names_in(tree) if name in contents}
        missing = [name for name in carried.names_in(tree) if name not in own]
        if missing:
            pull = make_pull_object_fn_protobuf(client.PullObject, node, run_id)
            try:
                own |= carried.pull_missing(missing, pull)
            except ObjectPullError as error:
                return Delivery(head.metadata.reply_to_message_id, None, f"its answer did not come: {error}")
            done = {"node": node, "run_id": run_id, "message_object_id": tree.object_id}
            client.ConfirmMessageReceived(ConfirmMessageReceivedRequest(**done))
        return _delivery(carried.put_together(tree, own))

    def connected(self) -> dict[str, str]:
        """Node ids that are connected, each with the time it connected."""
        return {
            str(node.node_id): node.last_activated_at
            for node in self._grid.get_nodes()
            if node.status == "online"
        }


def _delivery(answer: Any) -> Delivery:
    asked = answer.metadata.reply_to_message_id
    if answer.has_error():
        return Delivery(asked, None, f"Flower error {answer.error.code}: {answer.error.reason}")
    record = answer.content.get(RECORD)
    text = record.get(MEMBER) if hasattr(record, "get") else None
    if not isinstance(text, str) or len(text) > MAX_ANSWER:
        return Delivery(asked, "", "")
    return Delivery(asked, text)
