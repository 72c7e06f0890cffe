"""An alliance on a hub in process: an owner with a model, three labs with data, a firm, and a SuperLink that is only a list.

``open_alliance`` stands on ``tests.hubs`` and a real blob server, so that bytes go up by orders and come down by
signed addresses as they do everywhere else. ``FakeControl`` is SuperLink for the supervisor: tests start, kill and
forget its runs.
"""

import base64
import hashlib
import json
import os
import secrets
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from federation import wire
from federation.client import HubClient
from federation.home import Home
from federation.joining import post_status
from federation.plan import build_recipe, make_config
from federation.publishing import push_version
from federation.sending import send_file
from hub.keys import open_keys
from hub.supervisor import Supervisor
from storage.blobs import BlobStore
from storage.encoding import format_time, sha256_hex
from storage.errors import Unchecked
from storage.signing import public_pem
from tests.databases import DATABASES, database_url
from tests.hubs import ORIGIN, HubInProcess
from tests.servers import blob_server

S3_SERVERS = os.environ.get("FEDHUB_TEST_S3_URL", "").split()
# What ``open_alliance`` can stand on: SQLite and a folder; PostgreSQL, once with each S3 server.
ENGINES = [
    *DATABASES,
    *(
        pytest.param(f"postgresql on {server}", marks=pytest.mark.engines)
        for server in S3_SERVERS[1:]
        if len(DATABASES) > 1
    ),
]
OWNER, FIRM = "owner.example", "firm.example"
LABS = ("lab-a.example", "lab-b.example", "lab-c.example")
MODEL = f"{OWNER}/digits"
ROLES = {OWNER: "owner", FIRM: "firm", **dict.fromkeys(LABS, "lab")}
RECIPE = "image-classification"
PARAMETERS = {
    "classes": 10,
    "hidden": 0,
    "epochs": 1,
    "batch": 16,
    "learningRate": "0.1",
    "momentum": "0",
    "proximalMu": "0",
    "height": 8,
    "width": 8,
    "channels": 1,
    "filters": 0,
    "pixelMax": 16,
}
DAY = 86_400


def weights(*values: float) -> bytes:
    """A safetensors file with one tensor."""
    body = struct.pack(f"<{len(values)}f", *values)
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(body)]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + body


BASE = weights(1, 2)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- SuperLink ----------------------------------------------------------------------------------------------


@dataclass
class FakeRun:
    """One Flower run of the fake."""

    config: dict[str, str | int]
    state: str = "running"
    outcome: str = ""
    details: str = ""


@dataclass
class FakeNode:
    """One node of the fake."""

    id: str
    public_key: str
    online: bool = True


@dataclass
class FakeControl:
    """SuperLink as the supervisor sees it; tests write to its fields."""

    runs: dict[str, FakeRun] = field(default_factory=dict)
    nodes: dict[str, FakeNode] = field(default_factory=dict)
    away: bool = False
    refuses_start: Exception | None = None
    starts: int = 0

    def _answer(self) -> None:
        if self.away:
            raise Unchecked("E_SUPERLINK_AWAY", "SuperLink at test cannot be reached")

    def start_run(self, config: Mapping[str, str | int]) -> str:
        self._answer()
        if self.refuses_start is not None:
            raise self.refuses_start
        self.starts += 1
        run_id = str(10_000_000_000_000_000_000 + self.starts)
        self.runs[run_id] = FakeRun(dict(config))
        return run_id

    def status(self, run_id: str) -> FakeRun | None:
        self._answer()
        return self.runs.get(run_id)

    def stop(self, run_id: str) -> None:
        self._answer()
        run = self.runs.get(run_id)
        if run is not None and run.state != "finished":
            run.state, run.outcome = "finished", "stopped"

    def register_node(self, public_key_pem: str, name: str) -> str:
        self._answer()
        known = self.nodes.get(public_key_pem)
        if known is None:
            known = FakeNode(str(secrets.randbits(63)), public_key_pem)
            self.nodes[public_key_pem] = known
        return known.id

    def list_nodes(self) -> list[FakeNode]:
        self._answer()
        return list(self.nodes.values())

    # --- what tests do to it ---

    @property
    def newest(self) -> FakeRun:
        """The run that was started last."""
        return list(self.runs.values())[-1]

    def crash(self, details: str = "exit -9") -> None:
        """The newest run's coordinator dies."""
        self.newest.state, self.newest.outcome, self.newest.details = "finished", "failed", details

    def restart(self) -> None:
        """SuperLink forgets everything."""
        self.runs.clear()
        self.nodes.clear()


# --- the alliance -------------------------------------------------------------------------------------------


class AllianceInProcess(HubInProcess):
    """A hub whose members have joined, with status lists; homes by short name in ``homes``."""

    def __init__(
        self, folder: Path, *, members: tuple[str, ...] = (OWNER, *LABS, FIRM), **given: Any
    ) -> None:
        self.control = FakeControl()
        super().__init__(folder, nodes=self.control, **given)
        self.homes = {name: self.enrol(name, ROLES[name]) for name in members}
        for home in [self.operator, *self.homes.values()]:
            self.renew_status(home)

    @property
    def store(self) -> BlobStore:
        return self.hub.store

    def as_(self, name: str, role: str = "targets") -> HubClient:
        """A client of one member."""
        return self.client(self.homes[name], role)

    def renew_status(self, home: Home) -> None:
        with self.client(home, "snapshot") as client:
            post_status(home, client, next_update=int(time.time()) + DAY - 60)

    def say(self, name: str, kind: str, subjects: list[tuple[str, str]], members: dict[str, Any]) -> str:
        """Have a member sign and log a statement; its id."""
        home = self.homes[name]
        with self.client(home) as client:
            return client.post_statement(home.sign(kind, subjects, members)).id

    # --- models and data ---

    def push(self, files: Mapping[str, bytes], name: str = MODEL, **options: Any) -> wire.ModelVersion:
        """Push a folder with these files as the next version."""
        folder = self.folder / f"push-{secrets.token_hex(4)}"
        for file, data in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        home = self.homes[name.partition("/")[0]]
        with self.client(home) as client:
            return push_version(home, client, folder, name, **options)

    def describe(self, name: str, path: str = "digits") -> str:
        """Publish a data set of a lab; its asset id."""
        asset_id, croissant = secrets.token_hex(32), json.dumps({"name": name}).encode()
        subjects = [("manifest.json", asset_id), ("croissant.json", sha256_hex(croissant))]
        members = {"type": "dataset", "name": f"{name}/{path}", "version": 1}
        home = self.homes[name]
        bundle = home.sign("asset", subjects, members)
        with self.client(home) as client:
            client.post_statement(bundle, {"croissant.json": croissant})
        return asset_id

    def grant_pull(self, asset_id: str, grantee: str = FIRM, **members: Any) -> str:
        """The owner lets an institution pull; the grant's id."""
        now = int(time.time())
        said = {
            "grantee": grantee,
            "actions": ["pull"],
            "conditions": {},
            "notBefore": format_time(now - 60),
            "expires": format_time(now + 30 * DAY),
            "depth": 0,
            **members,
        }
        return self.say(OWNER, "grant", [("manifest.json", asset_id)], said)

    # --- plans and runs ---

    def register_site(self, name: str) -> str:
        """Register a lab's node, connected; its node id."""
        home = self.homes[name]
        pem = public_pem(home.key("node").public_key())
        with self.client(home, "snapshot") as client:
            client.register_site("main", pem)
        return self.control.nodes[pem].id

    def submit(
        self,
        base: wire.ModelVersion,
        datasets: Mapping[str, str],
        *,
        rounds: int = 2,
        least: int = 2,
        quorum: int | None = None,
        keep_updates: bool = False,
        expires_s: int = 10 * DAY,
        **changes: Any,
    ) -> wire.Plan:
        """Sign and submit a plan over these data sets (institution -> asset id)."""
        recipe = build_recipe(RECIPE)
        config = make_config(
            RECIPE,
            PARAMETERS,
            quorum=least if quorum is None else quorum,
            round_deadline_s=60,
            keep_updates=keep_updates,
        )
        members: dict[str, Any] = {
            "rounds": rounds,
            "minParticipants": least,
            "approvals": 1,
            "strategy": "FedAvg",
            "participants": [
                {"institution": name, "dataset": dataset} for name, dataset in sorted(datasets.items())
            ],
            "expires": format_time(int(time.time()) + expires_s),
        }
        members |= changes.pop("members", {})
        subjects = changes.pop("subjects", None) or [
            ("recipe.json", sha256_hex(recipe)),
            ("manifest.json", base.asset_id),
            ("config.json", sha256_hex(config)),
        ]
        bundle = self.homes[OWNER].sign("plan", subjects, members)
        with self.as_(OWNER) as client:
            return client.submit_plan(bundle, changes.pop("recipe", recipe), changes.pop("config", config))

    def consent(self, name: str, plan: wire.Plan, **conditions: Any) -> str:
        """A lab signs its consent to a plan; the grant's id."""
        terms = next(one for one in plan.participants if one.institution == name)
        code = sha256_hex(base64.b64decode(plan.recipe))
        now = int(time.time())
        members = {
            "grantee": plan.issuer,
            "actions": ["evaluate", "train"],
            "conditions": {
                "code": code,
                "plan": plan.id,
                "maxRounds": plan.rounds,
                "minParticipants": 1,
                **conditions,
            },
            "notBefore": format_time(now - 60),
            "expires": format_time(now + 30 * DAY),
            "depth": 0,
        }
        return self.say(name, "grant", [("manifest.json", terms.dataset)], members)

    def train(
        self,
        name: str,
        plan: wire.Plan,
        consent: str,
        number: int,
        source: str,
        previous: str | None = None,
        scaled: Sequence[tuple[str, str]] = (),
    ) -> tuple[str, str]:
        """A lab uploads an update of its own and logs its receipt; digest of the update, id of the receipt."""
        data = weights(float(number), float(LABS.index(name)), secrets.randbelow(1000) / 7)
        with self.as_(name, "snapshot") as client:
            assert self.send(client, data, plan=plan.id).state == "stored"
        members = {
            "action": "train",
            "grant": consent,
            "plan": plan.id,
            "round": number,
            "input": source,
            "examples": 10,
        }
        if previous is not None:
            members["previous"] = previous
        receipt = self.say(name, "receipt", [("update.safetensors", digest(data)), *scaled], members)
        return digest(data), receipt

    def send(self, client: HubClient, data: bytes, *, plan: str | None = None) -> wire.Upload:
        """Bring bytes into the store as this client."""
        path = self.folder / f"send-{secrets.token_hex(4)}"
        path.write_bytes(data)
        return send_file(client, path, plan=plan)


# --- runs ---------------------------------------------------------------------------------------------------


@dataclass
class Journey:
    """One plan with consents, as far as a test has taken it; the test is coordinator and labs."""

    alliance: AllianceInProcess
    plan: wire.Plan
    consents: dict[str, str] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)  # lab -> its receipt before
    attempt: int = 1

    @property
    def id(self) -> str:
        return self.plan.id

    def supervise(self) -> Supervisor:
        """A supervisor that has looked once."""
        supervisor = Supervisor(self.alliance.hub, self.alliance.control)
        supervisor.look()
        return supervisor

    def work(self) -> wire.Work:
        with self.alliance.coordinator() as coordinator:
            return coordinator.work(self.id)

    def orders(self, number: int, source: str, **changes: Any) -> wire.Orders:
        request = {
            "attempt": self.attempt,
            "round": number,
            "action": "train",
            "input": source,
            "deadline": format_time(int(time.time()) + 30),
            **changes,
        }
        with self.alliance.coordinator() as coordinator:
            return coordinator.orders(self.id, wire.OrdersRequest(**request))

    def reports(
        self,
        number: int,
        source: str,
        labs: tuple[str, ...] = LABS,
        scaled: Sequence[tuple[str, str]] = (),
        **changes: Any,
    ) -> wire.RoundReport:
        """Let labs train and the coordinator upload an aggregate; the report that would close the round.

        Args:
            scaled: further subjects of the receipts.
        """
        receipts = []
        for lab in labs:
            _, receipt = self.alliance.train(
                lab, self.plan, self.consents[lab], number, source, self.last.get(lab), scaled
            )
            self.last[lab] = receipt
            receipts.append(receipt)
        aggregate = weights(100 + number, time.time() % 1000)
        with self.alliance.coordinator() as coordinator:
            self.alliance.send(coordinator, aggregate, plan=self.id)
        told = {
            "attempt": self.attempt,
            "round": number,
            "input": source,
            "aggregate": digest(aggregate),
            "size": len(aggregate),
            "receipts": receipts,
            "seconds": 1.5,
            "sites": {lab: {"accuracy": 0.5, "examples": 10} for lab in labs},
            "metrics": {"accuracy": 0.5},
        }
        return wire.RoundReport(**(told | changes))

    def report(self, told: wire.RoundReport) -> wire.StatementRecord:
        with self.alliance.coordinator() as coordinator:
            return coordinator.report_round(self.id, told)

    def run(self, name: str = OWNER) -> wire.Run:
        with self.alliance.as_(name) as client:
            return client.run(self.id)

    def end(self, state: str, reason: str | None = None) -> wire.Run:
        with self.alliance.coordinator() as coordinator:
            return coordinator.end_run(self.id, wire.RunEnd(attempt=self.attempt, state=state, reason=reason))

    def kinds(self) -> list[str]:
        with self.alliance.as_(OWNER) as owner:
            return [event.kind for event in owner.events(self.id)]


class Setting:
    """An alliance whose labs have data and connected agents."""

    def __init__(self, alliance: AllianceInProcess, base: str = MODEL) -> None:
        self.alliance = alliance
        self.base = alliance.push({"model.safetensors": BASE}, base)
        self.datasets = {lab: alliance.describe(lab, base.partition("/")[2]) for lab in LABS}
        self.nodes = {lab: alliance.register_site(lab) for lab in LABS}

    def plan(self, labs: tuple[str, ...] = LABS, **changes: Any) -> Journey:
        """A plan to which these labs have consented."""
        journey = Journey(self.alliance, self.alliance.submit(self.base, self.datasets, **changes))
        for lab in labs:
            journey.consents[lab] = self.alliance.consent(lab, journey.plan)
        return journey

    def running(self, **changes: Any) -> Journey:
        """A run whose first attempt has asked for its work."""
        journey = self.plan(**changes)
        with self.alliance.as_(OWNER) as owner:
            owner.start_run(journey.id)
        journey.supervise().release()
        journey.work()
        return journey


@contextmanager
def open_alliance(folder: Path, kind: str = "sqlite", **given: Any) -> Iterator[AllianceInProcess]:
    """An alliance on real parts, closed at the end.

    Args:
        kind: one of ``ENGINES``: ``sqlite`` with a folder store and a blob server of its own; ``postgresql`` with an
            empty schema of the server that ``FEDHUB_TEST_DATABASE_URL`` names, and a new bucket of the first S3
            server, if there is one, or of the server that ``on`` names.
    """
    with database_url(kind, folder) as database, _store(folder, kind) as store:
        alliance = AllianceInProcess(folder, database_url=database, **store, **given)
        try:
            yield alliance
        finally:
            alliance.close()


@contextmanager
def _store(folder: Path, kind: str) -> Iterator[dict[str, str]]:
    if kind != "sqlite" and S3_SERVERS:
        server = kind.partition(" on ")[2] or S3_SERVERS[0]
        yield {
            "store_url": f"s3+{server}/test-{secrets.token_hex(8)}",
            "store_access_key": os.environ["FEDHUB_TEST_S3_ACCESS_KEY"],
            "store_secret_key": os.environ["FEDHUB_TEST_S3_SECRET_KEY"],
        }
        return
    keys = open_keys(folder / "hub" / "keys", ORIGIN)
    root = folder / "hub" / "store"
    root.mkdir(parents=True)
    with blob_server(root, "--secret-file", str(keys.folder / "blob.secret")) as url:
        yield {"store_public_url": url}
