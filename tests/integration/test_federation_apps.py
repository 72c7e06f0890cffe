"""A lab's own code at a site: real bundles by ``flwr build``, a real confined process, real homes and orders.

Each hostile app does one thing that it must not be able to do, and the site says so by name.
"""

import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from federation import app_training
from federation.agent import Agent
from federation.app_bundle import read_bundle
from federation.app_process import OUTPUT_FILE, AppPolicy, AppProcess, check_apart
from federation.app_terms import AppTerms
from federation.confinement import NEEDED, abilities
from federation.home import Home
from federation.ledger import SiteLedger
from federation.messages import InputReference, OrderMessage, OrderReply
from federation.tensors import TensorFile, write_tensors
from federation.version_evaluation import _ask_app
from federation.wire import OrdersRequest
from storage.encoding import format_time, sha256_hex
from storage.errors import Rejected, Unchecked
from storage.signing import check_signature, open_envelope
from storage.statements import read_statement
from tests.flower_apps import CLIENT_HEAD, GOOD, build, bundle_of, train_body
from tests.round_hub import LocalClient, RoundHub

confined = pytest.mark.skipif(abilities() != NEEDED, reason="this machine cannot shut a process in")
MIB = 1 << 20


class Site:
    """Lab a of an alliance of two with a plan of an app, its agent, and what the hub would send it."""

    def __init__(self, folder: Path, app: bytes, **plan: Any) -> None:
        self.folder = folder
        self.hub = RoundHub.start(folder / "hub")
        for name in ("lab-a", "lab-b"):
            data = folder / name
            data.mkdir(parents=True)
            (data / "train.csv").write_text("1\n2\n3\n")
            self.hub.add_lab(name, data)
        write_tensors(folder / "base.safetensors", {"w": np.zeros(4, np.float32), "n": np.zeros(1, np.int64)})
        terms = AppTerms(sha256_hex(app), len(app), plan.pop("parameters", {}))
        (folder / "app.fab").write_bytes(app)
        self.hub.keep(folder / "app.fab")
        self.plan = self.hub.submit(
            folder / "base.safetensors", minimum=2, app=terms, rounds=plan.pop("rounds", 4), **plan
        )
        self.hub.consent("lab-a")
        self.ledger = SiteLedger(self.home.site / "ledger.db")
        self.agent = Agent(self.home, LocalClient(self.hub, self.home.institution), self.ledger)  # type: ignore[arg-type]

    @property
    def home(self) -> Home:
        return self.hub.labs["lab-a"].home

    def do(self, number: int = 1, *, action: str = "train", seconds: int = 60) -> OrderReply:
        request = OrdersRequest(
            attempt=1,
            round=number,
            action=action,  # type: ignore[arg-type]
            input=self.hub.input,
            deadline=format_time(int(time.time()) + seconds),
        )
        order = self.hub.order(self.hub.labs["lab-a"].dataset, request)
        size = self.hub.objects[self.hub.input].size
        message = OrderMessage(
            plan=self.plan,
            round=number,
            action=action,  # type: ignore[arg-type]
            input=InputReference(sha256=self.hub.input, size=size),
            deadline=request.deadline,
            order=order.decode(),
        )
        return self.agent.perform(message)

    def update(self, reply: OrderReply) -> dict[str, np.ndarray[Any, Any]]:
        assert reply.update is not None, reply.refusal
        path = self.hub.file(reply.update.sha256, self.folder / "update.safetensors")
        with TensorFile(path) as file:
            return {spec.name: file.array(spec.name) for spec in file.layout.tensors}

    def refused(self, **order: Any) -> tuple[str, str]:
        """Code and message of a refusal that this site has signed and logged."""
        reply = self.do(**order)
        assert reply.refusal is not None and reply.update is None and reply.receipt is None, reply
        assert reply.refusal.statement is not None
        envelope = open_envelope(reply.refusal.statement.encode())
        check_signature(self.home.ring.newest.roles["snapshot"][envelope.hint], envelope)
        statement = read_statement(envelope)
        assert (statement.kind, statement.predicate["code"]) == ("refusal", reply.refusal.code)
        assert any(one.id == statement.id for one in self.hub.statements)
        return reply.refusal.code, reply.refusal.message

    def close(self) -> None:
        self.agent.close()
        self.ledger.close()
        self.hub.stop()
        assert list((self.home.site / "apps").glob("run-*")) == []


@pytest.fixture(scope="module")
def fab(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bundle_of(tmp_path_factory.mktemp("good"))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def site(app: bytes, **plan: Any) -> Site:
        made.append(Site(tmp_path / str(len(made)), app, **plan))
        return made[-1]

    yield site
    for one in made:
        one.close()


@pytest.fixture
def hostile(tmp_path: Path, make: Callable[..., Site], fab: bytes) -> Callable[..., Site]:
    """A site whose plan names an app that trains by the lines given; packed as flwr packs, without its wait."""

    def site(lines: str, **plan: Any) -> Site:
        return make(with_client(fab, CLIENT_HEAD + train_body(lines)), **plan)

    return site


def with_client(fab: bytes, client: str) -> bytes:
    """The bundle with another ClientApp, and a list that says so."""
    entries = entries_of(fab)
    entries["labapp/client.py"] = client.encode()
    return packed(entries)


def entries_of(fab: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(fab)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(entries: dict[str, bytes], *, listed: bool = True) -> bytes:
    if listed:
        files = {name: data for name, data in entries.items() if name != ".info/CONTENT"}
        lines = [f"{name},{sha256_hex(data)},{len(data) * 8}" for name, data in files.items()]
        entries = {**files, ".info/CONTENT": "\n".join(lines).encode()}
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0)), data)
    return out.getvalue()


# --- doing it -----------------------------------------------------------------------------------------------


def test_an_app_trains_in_a_warm_process_and_its_update_is_the_change(
    make: Callable[..., Site], fab: bytes
) -> None:
    site = make(fab, parameters={"rate": "0.25", "steps": 2})
    first = site.do(1)
    moved = site.update(first)
    assert moved["w"].tolist() == [1.0] * 4  # 0.25 x 2 x the mean of 1, 2, 3
    assert moved["n"].tolist() == [1], "a whole number travels whole"
    assert (first.examples, first.metrics) == (4, {"loss": 1.0, "calls": 1, "round": 1})
    again = site.do(2)
    assert again.metrics["calls"] == 2, "the process that trained round 1 trains round 2"
    assert [one.predicate["examples"] for one in site.hub.receipts()] == [4, 4]


@pytest.mark.slow
def test_an_app_evaluates_and_says_what_it_measured(make: Callable[..., Site], fab: bytes) -> None:
    reply = make(fab).do(1, action="evaluate")
    assert (reply.examples, reply.metrics, reply.update) == (4, {"accuracy": 0.75}, None)


@pytest.mark.slow
def test_a_version_is_measured_beside_the_agents_own_child_and_needs_an_accuracy(
    make: Callable[..., Site], fab: bytes
) -> None:
    site = make(fab)
    site.do(1)
    warm = site.agent._apps._child
    assert measured(site) == {"accuracy": 0.75, "examples": 4}
    assert site.do(2).metrics["calls"] == 2 and site.agent._apps._child is warm, "the agent's child goes on"
    silent = make(with_client(fab, CLIENT_HEAD + GOOD.replace("accuracy=0.75", "loss=0.75")))
    with pytest.raises(
        Rejected, match="E_APP_REPLY: the app's reply: expected a metric accuracy from 0 to 1"
    ):
        measured(silent)


def measured(site: Site) -> dict[str, float | int]:
    """What ``fedhub evaluate`` has the site's app measure."""
    weights = site.folder / "of-the-version.safetensors"
    shutil.copy(site.folder / "base.safetensors", weights)
    plan, last = site.agent._plan(site.plan), SimpleNamespace(predicate={"round": 1})
    (dataset,) = site.home.datasets()
    found = _ask_app(site.home, site.agent._client, plan, last, weights, dataset)  # type: ignore[arg-type]
    assert not weights.exists()
    return found


@pytest.mark.slow
def test_an_apps_update_is_compressed_as_the_plan_says(make: Callable[..., Site], fab: bytes) -> None:
    site = make(fab, compression="fp16")
    assert site.update(site.do(1))["w"].dtype == np.float16


@pytest.mark.slow
def test_a_dead_child_is_replaced_in_the_next_round(make: Callable[..., Site], fab: bytes) -> None:
    site = make(fab)
    site.do(1)
    child = site.agent._apps._child
    assert child is not None
    os.kill(child._process.pid, 9)
    child._process.wait()
    assert site.do(2).metrics["calls"] == 1


# --- what is named is what runs -----------------------------------------------------------------------------


def test_a_bundle_with_another_digest_is_refused(make: Callable[..., Site], fab: bytes) -> None:
    site = make(fab)
    other = with_client(fab, CLIENT_HEAD + GOOD + "\n# changed\n")
    known = site.hub.objects[sha256_hex(fab)]
    site.hub.store.put(known.key, other[: known.size].ljust(known.size, b"\0"))
    assert site.refused()[0] == "E_DIGEST"
    assert site.hub.receipts() == []


@pytest.mark.slow
def test_a_bundle_tampered_with_on_the_sites_own_disk_is_refused(
    make: Callable[..., Site], fab: bytes
) -> None:
    site = make(fab)
    site.home.site.joinpath("apps").mkdir(parents=True)
    (site.home.site / "apps" / f"{sha256_hex(fab)}.fab").write_bytes(
        with_client(fab, CLIENT_HEAD + GOOD + "#")
    )
    code, message = site.refused()
    assert code == "E_APP" and "the plan names" in message
    assert site.do(2).refusal is None, "the next order brings the true one"


def test_an_entry_that_the_list_does_not_name_is_refused(make: Callable[..., Site], fab: bytes) -> None:
    site = make(packed({**entries_of(fab), "labapp/numpy.py": b"evil = 1"}, listed=False))
    code, message = site.refused()
    assert code == "E_APP" and "'labapp/numpy.py' is not listed" in message


def test_a_consent_to_another_digest_allows_nothing(make: Callable[..., Site], fab: bytes) -> None:
    site = make(fab)
    for path in (site.home.path / "statements").iterdir():
        path.unlink()
    assert site.refused()[0] == "E_CONSENT"
    site.hub.consent("lab-a", conditions={"code": "ab" * 32})
    code, message = site.refused(number=2)
    assert code == "E_CONSENT" and "is for code abab" in message


def test_a_parameter_that_the_app_does_not_have_is_refused(make: Callable[..., Site], fab: bytes) -> None:
    code, message = make(fab, parameters={"speed": 3}).refused()
    assert code == "E_APP" and "'speed'" in message


# --- what an app cannot do ----------------------------------------------------------------------------------


def test_an_endless_loop_ends_with_the_order(hostile: Callable[..., Site]) -> None:
    code, _ = hostile("while True: pass").refused(seconds=6)
    assert code == "E_APP_TIME"


def limited(monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
    policy = AppPolicy(**limits)
    monkeypatch.setattr(app_training.AppPolicy, "of_surroundings", classmethod(lambda cls: policy))


def test_a_memory_hog_is_stopped_by_name(
    hostile: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, memory=600 * MIB)
    code, message = hostile("hold = [bytearray(1 << 26) for _ in range(64)]").refused()
    assert code == "E_APP_MEMORY" and "600 MiB" in message


@pytest.mark.slow
def test_a_hog_of_shared_memory_is_stopped_too(
    hostile: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, memory=600 * MIB)
    lines = """
import mmap, time
hold = []
while True:
    hold.append(mmap.mmap(-1, 1 << 26))
    hold[-1].write(b"x" * (1 << 26))
    time.sleep(0.05)
"""
    assert hostile(lines).refused()[0] == "E_APP_MEMORY"


def test_a_file_hog_is_stopped_by_name(hostile: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, disk=32 * MIB)
    lines = """
import time
for number in range(1000):
    Path(f"hog{number}").write_bytes(b"x" * (1 << 23))
    time.sleep(0.05)
"""
    assert hostile(lines).refused()[0] == "E_APP_DISK"


@pytest.mark.slow
def test_one_file_too_large_cannot_be_written(
    hostile: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, disk=8 * MIB)
    code, message = hostile('Path("hog").write_bytes(b"x" * (1 << 25))').refused()
    assert (code, "OSError" in message) in (("E_APP_FAILED", True), ("E_APP_DISK", False))


PROBE = """
import ctypes, socket, subprocess, threading, signal
failed = {}
def attempt(name, call):
    try:
        call()
        failed[name] = 0
    except (OSError, subprocess.SubprocessError):
        failed[name] = 1
data = Path(context.node_config["data"])
home = Path("HOME")
attempt("key", lambda: (home / "keys" / "snapshot.pem").read_bytes())
attempt("home", lambda: list(home.iterdir()))
attempt("ledger", lambda: (home / "site" / "ledger.db").read_bytes())
attempt("parent", lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes())
attempt("passwords", lambda: Path("/etc/shadow").read_bytes())
attempt("write_data", lambda: (data / "train.csv").write_text("9"))
attempt("write_code", lambda: Path(__file__).with_name("more.py").write_text("x"))
attempt("make_key_readable", lambda: os.chmod(home / "keys" / "snapshot.pem", 0o644))
attempt("truncate", lambda: os.open(data / "train.csv", os.O_RDONLY | os.O_TRUNC))
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", PORT), 1))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
attempt("fork", lambda: os._exit(0) if os.fork() == 0 else None)
attempt("exec", lambda: subprocess.run(["/bin/true"], check=True))
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("outside", lambda: Path("/tmp/fedhub-app-probe").write_text("x"))
import resource
def raise_limit():
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100_000, 100_000))
    except ValueError as error:
        raise OSError from error
attempt("limit", raise_limit)
attempt("link", lambda: os.link(home / "keys" / "snapshot.pem", "stolen"))
worker = threading.Thread(target=lambda: failed.update(thread=0))
worker.start(); worker.join()
names = [name for name in os.environ if "FEDHUB" in name or "TOKEN" in name or "SECRET" in name]
failed["secrets"] = len(names)
failed["told"] = int(any(str(home) == value for value in os.environ.values()))
failed["descriptors"] = len([n for n in os.listdir("/proc/self/fd") if int(n) > 2])
return answer(message, arrays, **failed)
"""


@confined
def test_an_app_reads_no_key_writes_no_data_and_reaches_no_network(
    make: Callable[..., Site], fab: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDHUB_SOME_TOKEN", "secret")
    site = make(fab)
    lines = PROBE.replace("HOME", str(site.home.path)).replace("PORT", str(site.hub.blobs.port))
    probe = with_client(fab, CLIENT_HEAD + train_body(lines))
    # The same home and dataset, asked by a process of the probing app.
    terms = AppTerms(sha256_hex(probe), len(probe), {})
    apps = site.home.site / "apps"
    apps.mkdir(parents=True)
    child = AppProcess(apps, site.home.path, read_bundle(probe), terms, site.folder / "lab-a", AppPolicy())
    try:
        (child.work / "input.safetensors").write_bytes((site.folder / "base.safetensors").read_bytes())
        order = {"action": "train", "round": 1, "input": "input.safetensors", "output": "out.safetensors"}
        found = child.ask(order, 30)["metrics"]
    finally:
        child.close()
    could = sorted(name for name, failed in found.items() if failed == 0)
    assert could == ["secrets", "thread", "told"], found
    assert (site.folder / "lab-a" / "train.csv").read_text() == "1\n2\n3\n"
    assert found["descriptors"] <= 6, found


@pytest.mark.slow
def test_an_app_that_prints_a_lot_is_no_trouble_and_tells_the_hub_nothing(
    hostile: Callable[..., Site],
) -> None:
    site = hostile('print("row 1,2,3 " * 2_000_000); import sys; sys.stderr.write("x" * 5_000_000)')
    assert site.do().refusal is None


def test_an_exception_is_told_by_its_type_and_its_text_stays_at_the_site(
    hostile: Callable[..., Site],
) -> None:
    site = hostile('raise KeyError("patient 17")')
    code, message = site.refused()
    assert code == "E_APP_FAILED" and "KeyError" in message and "patient" not in message
    kept = site.home.site / "apps" / OUTPUT_FILE
    assert "patient 17" in kept.read_text() and kept.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_missing_module_is_named(hostile: Callable[..., Site]) -> None:
    code, message = hostile("import no_such_library").refused()
    assert code == "E_APP_FAILED" and "no_such_library" in message


@pytest.mark.slow
def test_an_app_that_ends_its_process_is_refused(hostile: Callable[..., Site]) -> None:
    code, message = hostile("os._exit(3)").refused()
    assert code == "E_APP_FAILED" and "status 3" in message


@pytest.mark.slow
def test_an_app_that_cannot_be_loaded_is_refused(make: Callable[..., Site], fab: bytes) -> None:
    code, message = make(with_client(fab, "app = 3\n")).refused()
    assert code == "E_APP_FAILED" and "TypeError" in message


REPLIES = {
    "wrong shape": ('arrays["w"] = np.zeros(5, np.float32)', "E_APP_REPLY"),
    "wrong type": ('arrays["w"] = np.zeros(4, np.float64)', "E_APP_REPLY"),
    "a tensor too many": ('arrays["x"] = np.zeros(1, np.float32)', "E_APP_REPLY"),
    "a tensor too few": ('del arrays["w"]', "E_APP_REPLY"),
    "not a number": ('arrays["w"] = np.full(4, np.nan, np.float32)', "E_NOT_FINITE"),
    "infinite": ('arrays["w"] = np.full(4, np.inf, np.float32)', "E_NOT_FINITE"),
    "texts": ('arrays["w"] = np.array(["a"] * 4)', "E_APP_REPLY"),
    "no arrays": ("return answer(message, None)", "E_APP_REPLY"),
    "nothing": ("return None", "E_APP_REPLY"),
    "no examples": (
        'return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)',
        "E_APP_REPLY",
    ),
    "a list of numbers": ("return answer(message, arrays, rows=[1, 2, 3])", "E_APP_REPLY"),
    "a metric that is no number": ("return answer(message, arrays, loss=float('nan'))", "E_APP_REPLY"),
    "a metric with a strange name": ('return answer(message, arrays, **{"a b": 1})', "E_APP_REPLY"),
    "too many metrics": (
        'return answer(message, arrays, **{f"m{n}": n for n in range(33)})',
        "E_APP_REPLY",
    ),
    "negative examples": ('return answer(message, arrays, **{"num-examples": -1})', "E_APP_REPLY"),
}


def test_an_update_of_another_shape_is_refused(hostile: Callable[..., Site]) -> None:
    lines, code = REPLIES["wrong shape"]
    assert hostile(lines).refused() == (
        code,
        "the app's reply: tensor 'w': expected F32 [4], found F32 [5]; "
        "its tensors must be those that it was sent",
    )


@pytest.mark.slow
def test_a_reply_that_is_no_update_is_refused_by_name(make: Callable[..., Site], fab: bytes) -> None:
    """One app with another fault in each round; a process that was at fault is followed by a new one."""
    lines = ['fault = message.content["config"]["server-round"]']
    for number, (body, _) in enumerate(REPLIES.values(), 1):
        lines += [f"if fault == {number}:", *(f"    {line}" for line in body.split("\n"))]
    site = make(with_client(fab, CLIENT_HEAD + train_body("\n".join(lines))), rounds=40)
    found = {name: site.refused(number=number)[0] for number, name in enumerate(REPLIES, 1)}
    assert found == {name: code for name, (_, code) in REPLIES.items()}


@pytest.mark.slow
def test_a_link_in_place_of_the_update_leads_nowhere(hostile: Callable[..., Site]) -> None:
    """The app rules its own process: in place of the update it writes a link to a file of the site's."""
    site = hostile("""
import __main__
other = Path(context.node_config["data"]) / "train.csv"
__main__._write = lambda content, path: os.symlink(other, path)
""")
    code, message = site.refused()
    assert code == "E_APP_REPLY" and "no file of its own" in message


def test_a_machine_that_cannot_shut_an_app_in_refuses_it(
    make: Callable[..., Site], fab: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federation.app_process.abilities", lambda: ("network", "processes"))
    code, message = make(fab).refused()
    assert code == "E_APP_PROTECTION" and "keep an app from files" in message


def test_a_site_may_run_no_apps_at_all(
    make: Callable[..., Site], fab: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDHUB_APPS", "never")
    assert make(fab).refused()[0] == "E_APP_PROTECTION"
    monkeypatch.setenv("FEDHUB_APPS", "sometimes")
    with pytest.raises(Unchecked, match="expected confined, never, trusted"):
        AppPolicy.of_surroundings()


def test_a_home_below_what_apps_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match="which apps can read"):
        check_apart(tmp_path / "data" / "home", tmp_path / "data")


@pytest.mark.slow
def test_flwr_build_packs_what_is_read_here(tmp_path: Path, fab: bytes) -> None:
    again = build(tmp_path, {"labapp/client.py": CLIENT_HEAD + GOOD})
    assert again == fab, "the same files give the same bytes"
    bundle = read_bundle(fab)
    assert [each.name for each in bundle.files][-1] == "pyproject.toml"
    assert dict(bundle.settings) == {"rate": 0.5, "steps": 1, "loud": False, "mode": "mean"}
