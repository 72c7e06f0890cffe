"""A hub that lies: it sends labs to work on a plan that they never consented to.

It holds everything the real hub holds, the operator's signing key too, and reaches SuperLink's Control API
with the hub's own token. So its orders are truly signed and arrive like any other. What stands between it and
the labs' rows is only what the labs check by themselves.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from federation import wire
from federation.flower.control import Control
from federation.home import Home
from storage.encoding import format_time
from storage.errors import Unchecked


@dataclass
class Told:
    """What the coordinator reported back."""

    events: list[dict[str, Any]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


class HostileHub:
    """Answers a coordinator's questions as a hub would, with orders that no lab has agreed to.

    Args:
        operator: home of the operator, whose snapshot key signs orders.
        plan: the plan as the real hub shows it.
        weights: where the input of round 1 lies, as the real hub says it.
        nodes: dataset asset id -> Flower node id of its lab.
    """

    def __init__(
        self, operator: Home, plan: wire.Plan, weights: wire.WeightsLocation, nodes: dict[str, str]
    ) -> None:
        self._operator = operator
        self._plan = plan
        self._weights = weights
        self._nodes = nodes
        self.told = Told()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _answering(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where the coordinator finds it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self, control: Control, token_file: Path) -> str:
        """Answer from now on, and have SuperLink start a run; gives the Flower run's id."""
        self._thread.start()
        config: dict[str, str | int] = {
            "hub": self.url,
            "plan": self._plan.id,
            "attempt": 1,
            "token-file": str(token_file),
        }
        return control.start_run(config)

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    # --- the routes of a coordinator ------------------------------------------------------------------------

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON of one answer."""
        what = path.removeprefix(f"/api/v1/runs/{self._plan.id}/")
        if (method, what) == ("GET", "work"):
            return 200, self._work().model_dump(mode="json")
        if (method, what) == ("POST", "orders"):
            return 200, self._orders(body).model_dump(mode="json")
        if (method, what) == ("POST", "events"):
            self.told.events.append(body)
            return 200, {}
        if (method, what) == ("POST", "end"):
            self.told.events.append({"kind": "run.ended", "data": {"reason": body.get("reason")}})
            self.told.ended.set()
            return 200, self._ended(body).model_dump(mode="json")
        problem = wire.Problem(type="about:blank", title="no", status=404, detail=path, code="E_NOT_FOUND")
        return 404, problem.model_dump(mode="json")

    def _work(self) -> wire.Work:
        return wire.Work(
            plan=self._plan.id,
            attempt=1,
            next_round=1,
            rounds=1,
            min_participants=self._plan.min_participants,
            config=self._plan.config,
            input=self._weights,
            sites=[
                wire.WorkSite(
                    institution=each.institution, dataset=each.dataset, node_id=self._nodes[each.dataset]
                )
                for each in self._plan.participants
            ],
        )

    def _orders(self, asked: dict[str, Any]) -> wire.Orders:
        """Orders that only consent is missing from: right plan, right site, right input, right signature."""
        orders = {}
        for each in self._plan.participants:
            members = {
                "plan": self._plan.id,
                "site": each.dataset,
                "action": asked["action"],
                "round": asked["round"],
                "input": asked["input"],
                "deadline": asked["deadline"],
            }
            bundle = self._operator.sign("order", [("model.safetensors", asked["input"])], members)
            orders[each.dataset] = bundle.decode()
        return wire.Orders(orders=orders)

    def _ended(self, body: dict[str, Any]) -> wire.Run:
        return wire.Run(
            plan=self._plan.id,
            state=body.get("state", "stopped"),
            reason=body.get("reason"),
            attempt=1,
            rounds_planned=1,
            rounds_closed=0,
            rounds=[],
            refusals=[],
            started_at=format_time(int(time.time())),
        )


def node_ids(control: Control, plan: wire.Plan) -> dict[str, str]:
    """Dataset asset id -> Flower node id, as SuperLink lists its nodes by their institutions' names.

    Raises:
        Unchecked: a participant has no node online.
    """
    by_name = {node.name: node.id for node in control.list_nodes() if node.online}
    missing = [each.institution for each in plan.participants if each.institution not in by_name]
    if missing:
        raise Unchecked(
            "E_NODE", f"no node of {', '.join(missing)} is online", "start its agent: fedhub site up"
        )
    return {each.dataset: by_name[each.institution] for each in plan.participants}


def _answering(hub: HostileHub) -> type[BaseHTTPRequestHandler]:
    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET", {})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self._answer("POST", json.loads(self.rfile.read(length) or b"{}"))

        def _answer(self, method: str, body: dict[str, Any]) -> None:
            status, said = hub.answer(method, urlsplit(self.path).path, body)
            raw = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_args: object) -> None:
            """Nothing: the coordinator's own log says what it asked."""

    return Answering
