"""A hub in memory, as far as one run needs it: orders, uploads, receipts, rounds. Labs and owner are real
homes.

``RoundHub`` keeps what it is told and signs with the operator's own key; ``LocalClient`` is the client of one
member or of the coordinator without HTTP, and ``serve`` puts the same behind a port for real processes. Bytes
go through the product's folder store and blob server. Tests change its attributes to play a hub that lies or
fails.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from federation import wire
from federation.app_terms import APP_FILE, AppTerms
from federation.figures import read_columns
from federation.harmonising import join
from federation.home import Home, Place
from federation.plan import build_recipe, make_config, read_config
from storage.blob_server import BlobServer
from storage.blobs import FolderStore
from storage.checkpoint import LogKey
from storage.encoding import b64, format_time, sha256_hex, unb64
from storage.errors import FedhubError, Refused, Unchecked
from storage.manifests import build_manifest, hash_file, new_salt
from storage.signing import check_signature, open_envelope
from storage.statements import KINDS, read_statement

HUB = "hub.example"
OPERATOR, OWNER = "operator.example", "owner.example"
LOG_KEY = LogKey.generate(HUB).vkey
SECRET = b"blob secret of a test"
DAY_S = 86_400
PARAMETERS = {
    "channels": 1,
    "height": 4,
    "width": 4,
    "filters": 0,
    "hidden": 8,
    "classes": 3,
    "pixelMax": 16,
    "epochs": 1,
    "batch": 16,
    "learningRate": "0.1",
    "momentum": "0",
    "proximalMu": "0",
}


@dataclass
class Stored:
    """An object of the store: where it lies and what it is."""

    key: str
    size: int
    parts: list[str] | None


@dataclass
class Sent:
    """An upload under way."""

    upload_id: str
    request: wire.UploadRequest
    key: str
    multipart: str | None
    stored: bool = False


@dataclass
class Member:
    """A lab of the alliance: its home and, once registered, its node."""

    home: Home
    dataset: str
    node_id: str = ""


@dataclass
class RoundHub:
    """See the module; ``start`` makes one."""

    folder: Path
    store: FolderStore
    blobs: BlobServer
    operator: Home
    owner: Home
    labs: dict[str, Member] = field(default_factory=dict)
    plan: wire.Plan | None = None
    input: str = ""
    rounds_planned: int = 0
    attempt: int = 1
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, Sent] = field(default_factory=dict)
    statements: list[wire.StatementRecord] = field(default_factory=list)
    rounds: list[wire.RoundReport] = field(default_factory=list)
    events: list[wire.EventReport] = field(default_factory=list)
    ended: wire.RunEnd | None = None
    registered: dict[str, str] = field(default_factory=dict)  # institution -> PEM
    files: dict[str, bytes] = field(default_factory=dict)  # digest -> what came with a statement
    statistics: bytes | None = None
    allow: Callable[[str], bool] = lambda dataset: True  # which sites get orders
    beside: bool = False  # whether the coordinator hears where files lie
    lock: threading.RLock = field(default_factory=threading.RLock)

    # --- setting up -----------------------------------------------------------------------------------------

    @classmethod
    def start(
        cls, folder: Path, *, endpoint: str = "http://127.0.0.1:1", fleet: str = "127.0.0.1:1", ca: str = ""
    ) -> "RoundHub":
        root = folder / "store"
        root.mkdir(parents=True)
        blobs = BlobServer(root, "127.0.0.1", 0, SECRET)
        threading.Thread(target=blobs.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        store = FolderStore(root, f"http://127.0.0.1:{blobs.port}", SECRET)
        place = Place(HUB, endpoint, fleet, ca, OPERATOR, "", LOG_KEY)
        operator = Home.create(folder / "operator", OPERATOR, "operator", place)
        place = Place(HUB, endpoint, fleet, ca, OPERATOR, operator.ring.pin, LOG_KEY)
        owner = Home.create(folder / "owner", OWNER, "owner", place)
        return cls(folder, store, blobs, operator, owner)

    def stop(self) -> None:
        self.blobs.shutdown()
        self.blobs.server_close()

    def add_lab(self, name: str, data: Path, *, endpoint: str = "", fleet: str = "", ca: str = "") -> Member:
        """A lab whose dataset lies in ``data``."""
        known = self.operator
        place = Place(
            HUB, endpoint or known.endpoint, fleet or known.fleet, ca, OPERATOR, known.ring.pin, LOG_KEY
        )
        home = Home.create(self.folder / name, f"{name}.example", "lab", place)
        home.pin(OWNER, self.owner.ring.pin)
        manifest = build_manifest(data, f"{name}.example/data", salt=new_salt())
        home.add_dataset(manifest.name, data, manifest.raw, b"{}")
        member = self.labs[name] = Member(home, manifest.asset_id)
        return member

    def submit(
        self,
        weights: Path,
        *,
        rounds: int = 2,
        minimum: int = 1,
        recipe: str = "image-classification",
        parameters: Mapping[str, Any] = PARAMETERS,
        terms: Mapping[str, Any] | None = None,
        app: AppTerms | None = None,
        **config: Any,
    ) -> str:
        """A plan over all labs that starts from these weights; its id. An app stands in for the recipe."""
        settings = {"quorum": minimum, "round_deadline_s": 60, **config}
        recipe_raw = build_recipe(recipe) if app is None else b""
        config_raw = make_config(recipe, parameters, app=app, **settings)
        self.input = self.keep(weights)
        pairs = sorted((lab.home.institution, lab.dataset) for lab in self.labs.values())
        members = {
            "rounds": rounds,
            "minParticipants": minimum,
            "approvals": 1,
            "strategy": settings.get("strategy", "FedAvg"),
            "participants": [{"institution": owner, "dataset": dataset} for owner, dataset in pairs],
            "expires": format_time(int(time.time()) + DAY_S),
            **(terms or {}),
        }
        subjects = [
            ("recipe.json", sha256_hex(recipe_raw)) if app is None else (APP_FILE, app.sha256),
            ("manifest.json", sha256_hex(b"base")),
            ("config.json", sha256_hex(config_raw)),
        ]
        bundle = self.owner.sign("plan", subjects, members)
        plan_id = open_envelope(bundle).id
        self.rounds_planned = rounds
        self.plan = wire.Plan(
            id=plan_id,
            issuer=OWNER,
            bundle=bundle.decode(),
            recipe=b64(recipe_raw),
            config=b64(config_raw),
            base_asset=sha256_hex(b"base"),
            rounds=rounds,
            min_participants=minimum,
            approvals=1,
            expires=str(members["expires"]),
            participants=[wire.Participant(institution=owner, dataset=dataset) for owner, dataset in pairs],
        )
        return plan_id

    def consent(self, name: str, **changes: Any) -> str:
        """Have a lab consent to the plan, in its own home; ``changes`` replace members of the grant."""
        assert self.plan is not None
        lab = self.labs[name]
        now = int(time.time())
        conditions = {
            "code": read_statement(open_envelope(self.plan.bundle.encode())).subject,
            "plan": self.plan.id,
            "maxRounds": self.plan.rounds,
            "minParticipants": 1,
        }
        members = {
            "grantee": OWNER,
            "actions": ["evaluate", "train"],
            "conditions": {**conditions, **changes.pop("conditions", {})},
            "notBefore": format_time(now - 60),
            "expires": format_time(now + DAY_S),
            "depth": 0,
            **changes,
        }
        return lab.home.keep(lab.home.sign("grant", [("manifest.json", lab.dataset)], members))

    def keep(self, path: Path) -> str:
        """Put a file into the store as the hub's own."""
        sha256, size, parts = hash_file(path)
        key = f"blobs/sha256/{sha256[:2]}/{sha256}.own"
        self.store.put(key, path.read_bytes())
        self.objects[sha256] = Stored(key, size, None if parts is None else list(parts))
        return sha256

    def file(self, sha256: str, path: Path) -> Path:
        """A stored object as a file."""
        self.updates([sha256])
        path.write_bytes(self.store.get(self.objects[sha256].key))
        return path

    def client(self, name: str | None = None) -> "LocalClient":
        """A member's client, or the coordinator's."""
        return LocalClient(self, None if name is None else f"{name}.example")

    def told(self, kind: str) -> list[dict[str, Any]]:
        """What the coordinator reported of one kind."""
        return [dict(event.data) for event in self.events if event.kind == kind]

    def receipts(self, institution: str | None = None) -> list[Any]:
        """The logged receipts, as statements."""
        found = [
            one for one in self.statements if one.kind == "receipt" and institution in (None, one.issuer)
        ]
        return [read_statement(open_envelope(one.bundle.encode())) for one in found]

    # --- what a hub answers ---------------------------------------------------------------------------------

    def homes(self) -> dict[str, Home]:
        own = {OPERATOR: self.operator, OWNER: self.owner}
        return {**own, **{lab.home.institution: lab.home for lab in self.labs.values()}}

    def post(self, bundle: str) -> wire.StatementRecord:
        envelope = open_envelope(bundle.encode())
        statement = read_statement(envelope)
        ring = self.homes()[statement.issuer].ring
        check_signature(ring.newest.roles[KINDS[statement.kind].role][envelope.hint], envelope)
        with self.lock:
            if abs(statement.issued_at - time.time()) > 600:
                raise Refused("E_TIME", "issued more than 10 minutes ago", status=422)
            for known in self.statements:
                if known.id == statement.id or _same_use(known, statement):
                    return known
            if statement.kind == "receipt":
                self._check_chain(statement)
            record = wire.StatementRecord(
                id=statement.id,
                index=len(self.statements),
                kind=statement.kind,
                issuer=statement.issuer,
                bundle=bundle,
            )
            self.statements.append(record)
            return record

    def _check_chain(self, statement: Any) -> None:
        says = statement.predicate
        before = [
            one
            for one in self.receipts(statement.issuer)
            if (one.predicate["plan"], one.predicate["action"]) == (says["plan"], says["action"])
        ]
        expected = before[-1].id if before else None
        if says.get("previous") != expected:
            raise Refused("E_RECEIPT_CHAIN", f"previous should be {expected}", status=422)

    def upload(self, request: wire.UploadRequest) -> wire.Upload:
        upload_id = f"{len(self.uploads):032x}"
        key = f"blobs/sha256/{request.sha256[:2]}/{request.sha256}.{upload_id}"
        multipart = self.store.begin_parts(key) if request.parts else None
        sent = self.uploads[upload_id] = Sent(
            upload_id, request, key, multipart, request.sha256 in self.objects
        )
        return self._upload(sent)

    def _upload(self, sent: Sent) -> wire.Upload:
        if sent.stored:
            return wire.Upload(id=sent.upload_id, state="stored")
        request = sent.request
        if sent.multipart is None:
            found = [(0, self.store.order(sent.key, request.sha256, request.size))]
        else:
            sizes = [min(1 << 25, request.size - (1 << 25) * i) for i in range(len(request.parts or []))]
            found = [
                (number, self.store.part_order(sent.key, sent.multipart, number, digest, size))
                for number, (digest, size) in enumerate(zip(request.parts or [], sizes, strict=True), 1)
            ]
        orders = [
            wire.UploadOrder(part=part, method="PUT", url=one.url, headers=one.headers, expires=one.expires)
            for part, one in found
        ]
        return wire.Upload(id=sent.upload_id, state="open", orders=orders)

    def complete(self, upload_id: str, etags: dict[int, str]) -> wire.Upload:
        sent = self.uploads[upload_id]
        if not sent.stored:
            if sent.multipart is not None:
                self.store.complete_parts(sent.key, sent.multipart, etags)
            self.store.take(upload_id, sent.key, sent.request.sha256)
            if self.store.size(sent.key) != sent.request.size:
                raise Refused("E_UPLOAD", "not all bytes are in the store", status=409)
            self.objects.setdefault(
                sent.request.sha256, Stored(sent.key, sent.request.size, sent.request.parts)
            )
            sent.stored = True
        return self._upload(sent)

    def weights(self, sha256: str) -> wire.WeightsLocation:
        found = self.objects.get(sha256)
        if found is None:
            raise Unchecked("E_NOT_FOUND", f"no weights {sha256}")
        url = self.store.signed_url(found.key, expires_s=300)
        receipts = [one.id for one in self.receipts() if one.subject == sha256]
        return wire.WeightsLocation(
            sha256=sha256, size=found.size, url=url, parts=found.parts, receipts=receipts
        )

    def updates(self, digests: Sequence[str]) -> dict[str, wire.WeightsLocation]:
        for upload_id, sent in list(self.uploads.items()):
            if sent.request.sha256 in digests and self.store.size(sent.key) == sent.request.size:
                self.complete(upload_id, {})
        return {one: self._place_of(self.weights(one)) for one in digests if one in self.objects}

    def _place_of(self, location: wire.WeightsLocation) -> wire.WeightsLocation:
        file = str(self.store.path(self.objects[location.sha256].key)) if self.beside else None
        return location.model_copy(update={"file": file})

    def work(self) -> wire.Work:
        assert self.plan is not None
        labs = sorted(self.labs.values(), key=lambda lab: (lab.home.institution, lab.dataset))
        return wire.Work(
            plan=self.plan.id,
            attempt=self.attempt,
            next_round=len(self.rounds) + 1,
            rounds=self.rounds_planned,
            min_participants=self.plan.min_participants,
            config=self.plan.config,
            input=self.weights(self.rounds[-1].aggregate if self.rounds else self.input),
            sites=[
                wire.WorkSite(institution=lab.home.institution, dataset=lab.dataset, node_id=lab.node_id)
                for lab in labs
            ],
            state={
                slot: self.weights(file.sha256)
                for slot, file in (self.rounds[-1].state if self.rounds else {}).items()
            },
            statistics=None if self.statistics is None else sha256_hex(self.statistics),
        )

    def join_statistics(self, report: wire.StatisticsReport) -> wire.JointStatistics:
        assert self.plan is not None
        self.check_attempt(report.attempt)
        if self.statistics is None:
            config = read_config(unb64(self.plan.config))
            told = {one.id: one for one in self.receipts()}
            parts = [(one, read_columns(self.files[told[one].subjects[1].digest])) for one in report.receipts]
            assert config.harmonise is not None
            self.statistics = join(self.plan.id, config.harmonise, config.smallest_cohort, parts).raw
        return self.joint_statistics()

    def joint_statistics(self) -> wire.JointStatistics:
        if self.statistics is None:
            raise Unchecked("E_NOT_FOUND", "no statistics")
        return wire.JointStatistics(sha256=sha256_hex(self.statistics), document=self.statistics.decode())

    def _scaled_by(self) -> list[tuple[str, str]]:
        return [] if self.statistics is None else [("statistics.json", sha256_hex(self.statistics))]

    def orders(self, request: wire.OrdersRequest) -> wire.Orders:
        assert self.plan is not None
        self.check_attempt(request.attempt)
        return wire.Orders(
            orders={
                lab.dataset: self.order(lab.dataset, request).decode()
                for lab in self.labs.values()
                if self.allow(lab.dataset)
            }
        )

    def order(self, dataset: str, request: wire.OrdersRequest, **changes: Any) -> bytes:
        """A signed order; ``changes`` replace its members."""
        assert self.plan is not None
        members = {
            "plan": self.plan.id,
            "site": dataset,
            "action": request.action,
            "round": request.round,
            "input": request.input,
            "deadline": request.deadline,
            **changes,
        }
        subjects = [("model.safetensors", str(members["input"]))]
        subjects += self._scaled_by() if members["action"] != "statistics" else []
        return self.operator.sign("order", subjects, members)

    def check_attempt(self, attempt: int) -> None:
        if attempt != self.attempt:
            raise Refused("E_ATTEMPT", f"attempt {attempt} was given up", status=409)

    def report_round(self, report: wire.RoundReport) -> wire.StatementRecord:
        assert self.plan is not None
        self.check_attempt(report.attempt)
        for upload_id, sent in list(self.uploads.items()):
            if sent.request.sha256 == report.aggregate:
                self.complete(upload_id, {})
        known = {one.id for one in self.statements}
        missing = [one for one in report.receipts if one not in known]
        source = self.rounds[-1].aggregate if self.rounds else self.input
        if missing or report.aggregate not in self.objects or report.input != source:
            raise Refused("E_ROUND", f"round {report.round} does not stand: {missing}", status=409)
        members = {
            "plan": self.plan.id,
            "round": report.round,
            "input": report.input,
            "receipts": report.receipts,
        }
        rounds = [one for one in self.statements if one.kind == "round"]
        members |= {"previous": rounds[-1].id} if rounds else {}
        subjects = [("model.safetensors", report.aggregate), *self._scaled_by()]
        bundle = self.operator.sign("round", subjects, members)
        record = self.post(bundle.decode())
        self.rounds.append(report)
        return record


def _same_use(known: wire.StatementRecord, statement: Any) -> bool:
    """Two receipts of one institution for the same round: the first one stands."""
    if statement.kind != "receipt" or known.kind != "receipt" or known.issuer != statement.issuer:
        return False
    before = read_statement(open_envelope(known.bundle.encode())).predicate
    names = ("plan", "action", "round")
    return all(before.get(name) == statement.predicate.get(name) for name in names)


class LocalClient:
    """The methods of ``HubClient`` that agent and coordinator use, straight into a ``RoundHub``."""

    def __init__(self, hub: RoundHub, institution: str | None) -> None:
        self.hub = hub
        self.member = institution

    def hub_info(self) -> wire.HubInfo:
        known = self.hub.operator
        return wire.HubInfo(
            origin=HUB,
            operator=OPERATOR,
            operator_pin=known.ring.pin,
            log_key=LOG_KEY,
            version="0",
            fleet=known.fleet,
            fleet_ca=(known.path / "fleet-ca.pem").read_text(),
            log_base="",
        )

    def keyring(self, name: str) -> list[str]:
        ring = self.hub.homes()[name].ring
        return [b64(ring.versions[number].raw) for number in sorted(ring.versions)]

    def post_statement(
        self,
        bundle: bytes | str,
        attachments: Mapping[str, bytes] | None = None,
        *,
        announces: wire.UploadRequest | None = None,
    ) -> wire.StatementRecord:
        self.hub.files |= {sha256_hex(data): data for data in (attachments or {}).values()}
        record = self.hub.post(bundle if isinstance(bundle, str) else bundle.decode())
        upload = None if announces is None else self.hub.upload(announces)
        return record.model_copy(update={"upload": upload})

    def statistics(self, plan_id: str) -> wire.JointStatistics:
        return self.hub.joint_statistics()

    def join_statistics(self, plan_id: str, report: wire.StatisticsReport) -> wire.JointStatistics:
        return self.hub.join_statistics(report)

    def all_statements(self, **wanted: str | None) -> Iterator[wire.StatementRecord]:
        for record in list(self.hub.statements):
            if wanted.get("kind") in (None, record.kind) and wanted.get("issuer") in (None, record.issuer):
                yield record

    def plan(self, plan_id: str) -> wire.Plan:
        assert self.hub.plan is not None
        if self.hub.plan.id != plan_id:
            raise Unchecked("E_NOT_FOUND", f"no plan {plan_id}")
        return self.hub.plan

    def upload(
        self, sha256: str, size: int, *, parts: Sequence[str] | None = None, plan: str | None = None
    ) -> wire.Upload:
        kept = None if parts is None else list(parts)
        upload = self.hub.upload(wire.UploadRequest(sha256=sha256, size=size, parts=kept, plan=plan))
        beside = self.member is None and self.hub.beside and upload.state == "open"
        file = str(self.hub.store.beside(upload.id)) if beside else None
        return upload.model_copy(update={"file": file})

    def upload_orders(self, upload_id: str, etags: Mapping[int, str] | None = None) -> wire.Upload:
        return self.hub._upload(self.hub.uploads[upload_id])

    def upload_complete(self, upload_id: str, etags: Mapping[int, str] | None = None) -> wire.Upload:
        return self.hub.complete(upload_id, dict(etags or {}))

    def weights(self, plan_id: str, sha256: str) -> wire.WeightsLocation:
        return self.hub.weights(sha256)

    def updates(self, plan_id: str, digests: Sequence[str]) -> dict[str, wire.WeightsLocation]:
        return self.hub.updates(digests)

    def app(self, sha256: str) -> wire.WeightsLocation:
        return self.hub.weights(sha256)

    def work(self, plan_id: str) -> wire.Work:
        return self.hub.work()

    def orders(self, plan_id: str, request: wire.OrdersRequest) -> wire.Orders:
        return self.hub.orders(request)

    def report_round(self, plan_id: str, report: wire.RoundReport) -> wire.StatementRecord:
        return self.hub.report_round(report)

    def report_events(self, plan_id: str, *reports: wire.EventReport) -> None:
        self.hub.events.extend(reports)

    def end_run(self, plan_id: str, end: wire.RunEnd) -> None:
        self.hub.ended = end

    def register_site(self, name: str, public_key: str) -> wire.Site:
        assert self.member is not None
        self.hub.registered[self.member] = public_key
        hint = sha256_hex(public_key.encode())
        return wire.Site(institution=self.member, name=name, key_hint=hint, online=False)


# --- behind a port ------------------------------------------------------------------------------------------


@contextmanager
def serve(hub: RoundHub, *, port: int = 0) -> Iterator[str]:
    """The hub at an address, for real processes; whoever logs in is believed to be who it says."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _answering(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answering(hub: RoundHub) -> type[BaseHTTPRequestHandler]:
    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 1 << 16

        def do_GET(self) -> None:
            self._answer("GET", b"")

        def do_POST(self) -> None:
            self._answer("POST", self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        def _answer(self, method: str, body: bytes) -> None:
            target = urlsplit(self.path)
            path, query = target.path.removeprefix("/api/v1/"), dict(parse_qsl(target.query))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            member = token.removeprefix("member:") if token.startswith("member:") else None
            try:
                status, said = 200, _dispatch(hub, LocalClient(hub, member), method, path, query, body)
            except FedhubError as error:
                status = error.status if isinstance(error, Refused) else 404
                said = {
                    "type": "about:blank",
                    "title": error.code,
                    "status": status,
                    "detail": error.message,
                    "code": error.code,
                }
            raw = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Answering


def _dispatch(
    hub: RoundHub, client: LocalClient, method: str, path: str, query: Mapping[str, str], body: bytes
) -> Any:
    if path == "token":
        assertion = parse_qs(body.decode())["client_assertion"][0]
        claims = json.loads(base64.urlsafe_b64decode(assertion.split(".")[1] + "=="))
        return {"access_token": f"member:{claims['sub']}", "token_type": "Bearer", "expires_in": 300}
    said = json.loads(body) if body else {}
    parts = path.split("/")
    found: Any = None
    match method, parts:
        case "GET", ["hub"]:
            found = client.hub_info()
        case "GET", ["institutions", name, "keyring"]:
            return {"roots": client.keyring(name)}
        case "POST", ["statements"]:
            files = {name: unb64(text) for name, text in said.get("attachments", {}).items()}
            found = client.post_statement(
                said["bundle"], files, announces=wire.StatementPost.model_validate(said).announces
            )
        case "GET", ["statements"]:
            return {
                "items": [one.model_dump(mode="json") for one in client.all_statements(**query)],
                "next": None,
            }
        case "POST", ["sites"]:
            found = client.register_site(said["name"], said["public_key"])
        case "POST", ["uploads"]:
            found = hub.upload(wire.UploadRequest.model_validate(said))
        case "POST", ["uploads", upload_id, "orders"]:
            found = client.upload_orders(upload_id)
        case "POST", ["uploads", upload_id, "complete"]:
            found = client.upload_complete(upload_id, wire.UploadParts.model_validate(said).etags)
        case "GET", ["plans", plan_id]:
            found = client.plan(plan_id)
        case "GET", ["runs", _, "work"]:
            found = hub.work()
        case "GET", ["runs", _, "weights", sha256] | ["apps", sha256]:
            found = hub.weights(sha256)
        case "POST", ["runs", _, "updates"]:
            asked = wire.UpdatesRequest.model_validate(said)
            found = wire.Updates(updates=list(hub.updates(asked.digests).values()))
        case "POST", ["runs", _, "orders"]:
            found = hub.orders(wire.OrdersRequest.model_validate(said))
        case "GET", ["runs", _, "statistics"]:
            found = hub.joint_statistics()
        case "POST", ["runs", _, "statistics"]:
            found = hub.join_statistics(wire.StatisticsReport.model_validate(said))
        case "POST", ["runs", _, "rounds"]:
            found = hub.report_round(wire.RoundReport.model_validate(said))
        case "POST", ["runs", _, "events"]:
            hub.events.extend(wire.EventReports.model_validate(said).reports)
            return {}
        case "POST", ["runs", plan_id, "end"]:
            hub.ended = wire.RunEnd.model_validate(said)
            found = wire.Run(
                plan=plan_id,
                state=hub.ended.state,
                reason=hub.ended.reason,
                attempt=hub.attempt,
                rounds_planned=hub.rounds_planned,
                rounds_closed=len(hub.rounds),
                rounds=[],
                refusals=[],
                started_at=format_time(int(time.time())),
            )
    if found is None:
        raise Unchecked("E_NOT_FOUND", f"{method} {path}")
    return found.model_dump(mode="json")
