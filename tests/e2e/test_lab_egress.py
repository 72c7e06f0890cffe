"""What a lab's process opens and sends while it trains: everything it writes to a socket is read by the test.

The agent runs as always, but under a watch that notes each file it opens, each address it connects to, and each
byte it sends, before TLS hides it.
"""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from federation import training
from federation.home import Home
from federation.lifeline import plain_environment
from hub.cli import dispatch
from hub.demo import digits
from hub.demo.alliance import Alliance, wait_until
from hub.demo.journey import PARAMETERS, RECIPE
from storage.errors import Exit

QUIET = {"PYTHONDONTWRITEBYTECODE": "1"}  # else the interpreter writes beside the code it reads
pytestmark = [pytest.mark.timeout(400)]

WATCHED_NODE = """
import json, os, socket, ssl, sys
notes = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sent = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
EVENTS = ("open", "socket.bind", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.fork",
          "os.posix_spawn", "os.system", "os.rename", "os.remove", "shutil.copyfile")
def watch(event, arguments):
    if event in EVENTS:
        told = [str(each) for each in arguments]
        os.write(notes, json.dumps([event, told]).encode() + b"\\n")
sys.addaudithook(watch)

def keep(data):
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(sent, view):]

def tapped(kind, name):
    plain = getattr(kind, name)
    def call(self, data, *rest, **named):
        keep(data)
        return plain(self, data, *rest, **named)
    setattr(kind, name, call)

for name in ("send", "sendall", "sendto"):
    tapped(socket.socket, name)
tapped(ssl.SSLSocket, "send")
tapped(ssl.SSLSocket, "write")
tapped(ssl.SSLObject, "write")
plain_file, plain_msg = socket.socket.sendfile, socket.socket.sendmsg
def send_file(self, file, offset=0, count=None):
    keep(os.pread(file.fileno(), count or 1 << 30, offset))
    return plain_file(self, file, offset, count)
def send_message(self, buffers, *rest):
    for each in buffers:
        keep(each)
    return plain_msg(self, buffers, *rest)
socket.socket.sendfile, socket.socket.sendmsg = send_file, send_message

from federation.flower.node import main
sys.exit(main(sys.argv[3:]))
"""


@dataclass(frozen=True)
class Watched:
    """What the watch saw of one agent during one run."""

    alliance: Alliance
    notes: list[tuple[str, list[str]]]
    sent: bytes
    run: dict[str, Any]
    listening: list[str]

    def told(self, event: str) -> list[list[str]]:
        return [arguments for name, arguments in self.notes if name == event]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("egress")
    alliance = Alliance(folder / "alliance", dispatch)
    try:
        alliance.start_hub()
        for name in ("owner", "lab-a"):
            alliance.enrol(name)
        for name, other in (("owner", "lab-a"), ("lab-a", "owner")):
            pin = Home.open(alliance.home(other)).ring.pin
            alliance.run(name, "institution", "trust", f"{other}.example", "--pin", pin)
        yield watch_a_run(alliance, folder)
    finally:
        alliance.down()


def watch_a_run(alliance: Alliance, folder: Path) -> Watched:
    digits.write_split(alliance.folder / "data")
    alliance.run("lab-a", "data", "describe", str(alliance.data("lab-a")), "lab-a.example/digits")
    alliance.run("lab-a", "site", "init")
    base = folder / "base"
    base.mkdir()
    training.train_base(RECIPE, PARAMETERS, alliance.data("public"), base, 1)
    alliance.run("owner", "model", "push", str(base), "owner.example/digits", "--tag", "base")
    notes, sent = folder / "notes.jsonl", folder / "sent.bin"
    command = [sys.executable, "-P", "-c", WATCHED_NODE, str(notes), str(sent)]
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [*command, "--home", str(alliance.home("lab-a"))],
            stdout=log,
            stderr=log,
            env=plain_environment(QUIET),
        )
    try:
        run = run_a_plan(alliance, folder)
        listening = listening_of(agent.pid)
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(60)
    events = [json.loads(line) for line in notes.read_text().splitlines()]
    return Watched(alliance, [(name, told) for name, told in events], sent.read_bytes(), run, listening)


def listening_of(pid: int) -> list[str]:
    """The listening TCP sockets of a process, as the kernel lists them."""
    own = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
    ]
    return [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own]


def run_a_plan(alliance: Alliance, folder: Path) -> dict[str, Any]:
    draft = str(folder / "draft")
    args = ["--model", "owner.example/digits:base", "--participant", "lab-a.example/digits"]
    alliance.run("owner", "plan", "new", draft, *args, "--rounds", "2", "--approvals", "1")
    plan = alliance.run("owner", "plan", "submit", draft).data["id"]
    alliance.run("lab-a", "site", "approve", plan)

    def online() -> bool:
        return bool(alliance.run("lab-a", "site", "status").data["sites"][0]["online"])

    wait_until(online, "the watched agent's connection", 90)
    alliance.run("owner", "run", "start", plan)
    found: dict[str, Any] = alliance.run("owner", "run", "watch", plan, "--timeout", "120").data["run"]
    return found


def test_the_watched_run_was_a_real_one(watched: Watched) -> None:
    assert watched.run["state"] == "finished"
    assert [len(each["receipts"]) for each in watched.run["rounds"]] == [1, 1]


def test_the_watch_sees_what_is_sent(watched: Watched) -> None:
    assert b"POST /api/v1/statements" in watched.sent, "receipts"
    assert b'"dtype":"F32"' in watched.sent, "the update, a safetensors file"
    assert b"/v1/fleet/" in watched.sent, "Flower's own calls, before TLS"


def spellings(row: list[int]) -> Iterator[bytes]:
    """The pixels of a row in every form in which they could travel unnoticed by their text alone."""
    pixels = np.array(row[1:])
    for separator in (",", ", ", " ", ";"):
        yield separator.join(str(pixel) for pixel in row[1:]).encode()
    yield pixels.astype(np.uint8).tobytes()
    yield pixels.astype("<f4").tobytes()
    yield pixels.astype("<f8").tobytes()
    yield pixels.astype("<i8").tobytes()
    yield (pixels.astype("<f4") / 16).tobytes()


def test_no_row_leaves_the_site_in_any_spelling(watched: Watched) -> None:
    sent = b"\0\0\0\0".join([watched.sent, *decoded(watched.sent)])
    for part in ("train", "heldout"):
        for row in digits.read_rows(watched.alliance.data("lab-a") / f"{part}.csv"):
            for spelling in spellings(row):
                assert spelling not in sent, f"a row of {part}.csv was sent"


def decoded(sent: bytes) -> Iterator[bytes]:
    """Long runs of base64 in what was sent, decoded, and unpacked where they are packed."""
    for run in re.findall(rb"[A-Za-z0-9+/_-]{32,}", sent):
        plain = run.replace(b"-", b"+").replace(b"_", b"/")
        for start in range(4):  # what stands before it may look like base64 too
            clean = plain[start:] + b"A" * (-len(plain[start:]) % 4)
            raw = base64.b64decode(clean)
            yield raw
            try:
                yield zlib.decompressobj().decompress(raw)
            except zlib.error:
                continue


def test_the_search_finds_a_row_that_is_hidden_in_base64() -> None:
    row = digits.split()["lab-a"]["train"][0]
    for spelling in spellings(row):
        for packed in (spelling, zlib.compress(spelling)):
            sent = b'POST / {"reason":"' + base64.urlsafe_b64encode(packed).rstrip(b"=") + b'"}'
            assert any(spelling in text for text in decoded(sent))


def test_neither_file_digests_nor_the_salt_leave_the_site(watched: Watched) -> None:
    (dataset,) = Home.open(watched.alliance.home("lab-a")).datasets()
    manifest = json.loads(dataset.manifest)
    for secret in (manifest["salt"], *(entry["sha256"] for entry in manifest["files"])):
        assert secret.encode() not in watched.sent
        assert bytes.fromhex(secret) not in watched.sent
    assert hashlib.sha256(dataset.manifest).hexdigest() == dataset.asset_id


def test_private_keys_do_not_leave_the_site(watched: Watched) -> None:
    for path in (watched.alliance.home("lab-a") / "keys").iterdir():
        body = b"".join(path.read_bytes().split(b"\n")[1:-2])
        assert body not in watched.sent.replace(b"\\n", b"").replace(b"\n", b"")
        assert base64.b64decode(body)[-48:] not in watched.sent


def test_the_process_connects_to_its_hub_only_and_opens_no_port(watched: Watched) -> None:
    info = watched.alliance.hub_info
    ports = json.loads((watched.alliance.folder / "sandbox.json").read_text())["ports"]
    known = {urlsplit(info["endpoint"]).port, int(info["fleet"].rpartition(":")[2])}
    known |= {ports["download_port"], ports["blob_port"]}
    reached = {arguments[1] for arguments in watched.told("socket.connect")}
    assert reached
    assert reached <= {f"('127.0.0.1', {port})" for port in known}
    assert watched.listening == []
    # A library asks once whether the machine has IPv6, by binding no port in particular.
    assert {arguments[1] for arguments in watched.told("socket.bind")} <= {"('::1', 0)"}
    assert {arguments[0] for arguments in watched.told("socket.getaddrinfo")} <= {"127.0.0.1", "b'127.0.0.1'"}


def test_the_process_starts_no_program_of_its_own(watched: Watched) -> None:
    started = [
        told[0] for name in ("subprocess.Popen", "os.exec", "os.posix_spawn") for told in watched.told(name)
    ]
    assert set(started) <= {"/sbin/ldconfig"}, "ctypes asks the system where its libraries are"
    assert watched.told("os.system") == []


def test_the_data_are_only_read_and_everything_is_written_below_the_home(watched: Watched) -> None:
    data, home = str(watched.alliance.data("lab-a")), str(watched.alliance.home("lab-a"))
    opened = [(path, mode, int(flags)) for path, mode, flags in watched.told("open") if flags != "None"]
    assert any(path == f"{data}/train.csv" for path, _mode, _flags in opened)
    for path, mode, flags in opened:
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if path.startswith(data):
            assert not writes, (path, mode)
        elif writes and path.startswith("/") and not path.startswith(("/dev/", "/proc/")):
            assert path.startswith(home), (path, mode)


# --- the finished version, at the same lab ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def version(watched: Watched) -> str:
    made = watched.alliance.run("owner", "run", "finish", watched.run["plan"]).data
    return f"{made['name']}@{made['version']}"


def test_an_evaluation_is_receipted_once_and_says_the_same_again(watched: Watched, version: str) -> None:
    lab = watched.alliance
    first, again = (lab.run("lab-a", "evaluate", version).data["evaluations"][0] for _ in range(2))
    assert again == first
    assert first["examples"] == len(digits.read_rows(lab.data("lab-a") / "heldout.csv"))
    assert 0 <= first["majority"] < first["accuracy"] <= 1
    receipts = lab.run("lab-a", "audit", "log", "--kind", "receipt", "--plan", watched.run["plan"]).data[
        "statements"
    ]
    assert len(receipts) == 3, "two rounds and one evaluation"


def test_a_bar_that_is_raised_afterwards_changes_no_logged_result(watched: Watched, version: str) -> None:
    answer = watched.alliance.run("lab-a", "evaluate", version, "--at-least", "1.1")
    assert answer.data["evaluations"][0]["passed"] is True
    assert "logged before" in answer.text
    wrong = watched.alliance.run("lab-a", "evaluate", version, "--at-least", "high", expect=None)
    assert wrong.exit is not Exit.DONE


def test_rows_that_are_not_those_described_are_not_evaluated(watched: Watched, version: str) -> None:
    path = watched.alliance.data("lab-a") / "heldout.csv"
    before = path.read_text()
    path.write_text(before.replace("\n3,", "\n8,", 1))
    try:
        answer = watched.alliance.run("lab-a", "evaluate", version, expect=Exit.REFUSED)
    finally:
        path.write_text(before)
    assert answer.error["code"] == "E_DATASET_CHANGED"


def test_an_owner_without_rows_cannot_evaluate(watched: Watched, version: str) -> None:
    answer = watched.alliance.run("owner", "evaluate", version, expect=Exit.REFUSED)
    assert answer.error["code"] == "E_PLAN"
