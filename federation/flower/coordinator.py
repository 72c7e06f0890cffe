"""The coordinator as Flower sees it: the ServerApp of a run, and the exchange of texts with nodes.

It sends to the node ids that the hub names and to no others, with its own push and pull instead of flwr's
``send_and_receive``, which sleeps for seconds. SuperLink holds an empty pull for a while (``doors``), so an
answer is here as soon as it has arrived. What a round is and does stands in ``federation.coordination``.
"""

import functools
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.coordination import Coordinator
from federation.delivery import Delivery
from federation.flower.superlink import read_token
from storage.errors import FedhubError

if TYPE_CHECKING:
    from flwr.serverapp import ServerApp

MESSAGE_TYPE = "train"  # Flower wants one of its own; what is to be done stands in the order
RECORD, MEMBER = "fedhub", "json"
HELD_S = 0.5
PAUSE_S = 0.1
MAX_ANSWER = 1 << 20


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
    _pull_without_long_waits()
    work = Path(os.environ["FEDHUB_COORDINATOR_WORK"])
    token = read_token(Path(str(config["token-file"])))
    with HubClient(str(config["hub"]), token=token) as client:
        run = Coordinator(client, FlowerExchange(grid), str(config["plan"]), int(config["attempt"]), work)
        try:
            run.run()
        except FedhubError as error:
            print(f"{error}\n{error.hint}", file=sys.stderr, flush=True)
            raise


def _pull_without_long_waits() -> None:
    """A message can be seen before its content has arrived; flwr then waits 1, 2, 4 ... s, which we do not
    want.
    """
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.superlink.grid import http_grid

    patient = functools.partial(pull_objects, initial_backoff=0.02, backoff_cap=0.5)
    vars(http_grid)["pull_objects"] = patient


class FlowerExchange:
    """Texts to and from nodes, over a run's Grid."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def send(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Send texts to node ids and give the message id for each node that could be sent to."""
        from flwr.app import ConfigRecord, Message, RecordDict

        nodes = list(texts)
        messages = [
            Message(RecordDict({RECORD: ConfigRecord({MEMBER: texts[node]})}), int(node), MESSAGE_TYPE)
            for node in nodes
        ]
        return {
            node: name for node, name in zip(nodes, self._grid.push_messages(messages), strict=True) if name
        }

    def collect(self, messages: Sequence[str], *, wait_s: float) -> list[Delivery]:
        """The answers that have come by now, waiting up to ``wait_s`` for the first."""
        until = time.monotonic() + wait_s
        while True:
            began = time.monotonic()
            answers = list(self._grid.pull_messages(messages))
            now = time.monotonic()
            if answers or now >= until:
                return [_delivery(answer) for answer in answers]
            if now - began < HELD_S:
                time.sleep(min(PAUSE_S, until - now))

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
