"""Sites that do what a test tells them, a hub in memory and a coordinator between them: no Flower, no training.

``Stage`` is a plan over three labs; each ``ScriptedSite`` answers orders honestly unless ``answer`` says else.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from federation.coordination import Coordinator
from federation.delivery import Delivery
from federation.messages import (
    OrderMessage,
    OrderReply,
    ReceiptReference,
    RefusalNote,
    UpdateReference,
    read_message,
)
from federation.orders import read_order
from federation.sending import send_file
from federation.tensors import TensorFile, write_tensors
from storage.encoding import sha256_hex
from storage.manifests import hash_file
from tests.round_hub import LocalClient, RoundHub

BASE: dict[str, Any] = {"w": np.array([10.0, 20.0, 30.0], np.float32), "steps": np.array([1, 2], np.int64)}
Behaviour = Callable[["ScriptedSite", OrderMessage], OrderReply | str | None]


@dataclass
class ScriptedSite:
    """A site whose every move a test decides."""

    hub: RoundHub
    name: str
    node: str
    folder: Path
    delta: float = 1.0
    examples: int = 10
    answer: Behaviour | None = None
    connected: str | None = "2026-01-01"
    asked: list[OrderMessage] = field(default_factory=list)
    receipt_says: dict[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return self.hub.labs[self.name].dataset

    def do(self, text: str) -> OrderReply | str | None:
        message = read_message(text, OrderMessage)
        assert read_order(message.order).dataset == self.dataset
        self.asked.append(message)
        return (self.answer or ScriptedSite.train)(self, message)

    def train(self, message: OrderMessage, tensors: Mapping[str, Any] | None = None) -> OrderReply:
        """An honest reply: an update of ``delta``, uploaded, with a logged receipt."""
        path = self.folder / f"{self.name}-{message.round}.safetensors"
        moved: dict[str, Any] = {"w": np.full(3, self.delta, np.float32), "steps": np.array([7, 8], np.int64)}
        write_tensors(path, dict(tensors or moved))
        return self.send(message, path)

    def send(self, message: OrderMessage, path: Path) -> OrderReply:
        """The reply for an update file."""
        client = LocalClient(self.hub, f"{self.name}.example")
        upload = send_file(client, path, plan=message.plan)
        sha256, size, _ = hash_file(path)
        update = UpdateReference(sha256=sha256, size=size, upload=upload.id)
        return OrderReply(
            dataset=self.dataset,
            update=update,
            examples=self.examples,
            metrics={"loss": self.delta},
            receipt=self.receipt(message, sha256),
        )

    def receipt(self, message: OrderMessage, sha256: str) -> ReceiptReference:
        members: dict[str, Any] = {
            "action": "train",
            "grant": sha256_hex(self.name.encode()),
            "plan": message.plan,
            "round": message.round,
            "input": message.input.sha256,
            "examples": self.examples,
            **self.receipt_says,
        }
        before = self.hub.receipts(f"{self.name}.example")
        if before and before[-1].predicate["round"] < message.round:
            members["previous"] = before[-1].id
        home = self.hub.labs[self.name].home
        record = self.hub.post(home.sign("receipt", [("update.safetensors", sha256)], members).decode())
        return ReceiptReference(id=record.id, bundle=record.bundle)

    def refuse(self, code: str, *, again: bool = False) -> OrderReply:
        note = RefusalNote(code=code, message="because", statement=None, again=again)
        return OrderReply(dataset=self.dataset, refusal=note)


class ScriptedExchange:
    """Nodes that answer as their sites' scripts say; None keeps silent."""

    def __init__(self, sites: Sequence[ScriptedSite]) -> None:
        self.sites = {site.node: site for site in sites}
        self.answers: dict[str, Delivery] = {}
        self.sent = 0

    def send(self, texts: Mapping[str, str]) -> dict[str, str]:
        found = {}
        for node, text in texts.items():
            self.sent += 1
            name = found[node] = f"message-{self.sent}"
            said = self.sites[node].do(text)
            if isinstance(said, OrderReply):
                self.answers[name] = Delivery(name, said.model_dump_json())
            elif isinstance(said, str):
                self.answers[name] = (
                    Delivery(name, None, said) if said.startswith("problem") else Delivery(name, said)
                )
        return found

    def collect(self, messages: Sequence[str], *, wait_s: float) -> list[Delivery]:
        found = [self.answers.pop(name) for name in messages if name in self.answers]
        if not found:
            time.sleep(min(wait_s, 0.01))
        return found

    def connected(self) -> dict[str, str]:
        return {node: site.connected for node, site in self.sites.items() if site.connected is not None}


class Stage:
    """A hub, three sites and a coordinator between them."""

    def __init__(self, folder: Path, *, beside: bool = False, **config: Any) -> None:
        self.folder = folder
        self.hub = RoundHub.start(folder / "hub")
        self.hub.beside = beside
        self.sites: dict[str, ScriptedSite] = {}
        (folder / "site").mkdir()
        for number, name in enumerate(("lab-a", "lab-b", "lab-c"), 1):
            data = folder / name
            data.mkdir()
            (data / "train.csv").write_text(name)
            self.hub.add_lab(name, data).node_id = str(number)
            self.sites[name] = ScriptedSite(self.hub, name, str(number), folder / "site")
        base = folder / "base.safetensors"
        write_tensors(base, BASE)
        self.plan = self.hub.submit(base, **{"rounds": 2, "minimum": 2, **config})
        self.exchange = ScriptedExchange(list(self.sites.values()))
        self.work = folder / "work"
        self.work.mkdir()

    def run(self, *, attempt: int = 1) -> Any:
        """One attempt; what the hub was told at its end."""
        Coordinator(LocalClient(self.hub, None), self.exchange, self.plan, attempt, self.work).run()  # type: ignore[arg-type]
        return self.hub.ended

    def result(self, name: str = "w") -> list[float]:
        """A tensor of the last aggregate."""
        path = self.hub.file(self.hub.rounds[-1].aggregate, self.folder / "aggregate.safetensors")
        with TensorFile(path) as file:
            return [float(value) for value in file.array(name)]

    def folded(self, number: int = 1) -> list[str]:
        """Institutions whose receipts round ``number`` lists, in that order."""
        issuers = {one.id: one.issuer for one in self.hub.statements}
        return [issuers[receipt] for receipt in self.hub.rounds[number - 1].receipts]
