"""What only our own server can be asked: strict HTTP, patience, full disks, its process."""

import errno
import hashlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import storage.blob_server
import storage.blobs
import storage.http1
from storage.blob_server import BlobServer, main
from storage.blobs import FolderStore, Order, store_secret
from storage.errors import Refused, Unchecked
from tests.servers import free_port

SECRET = b"s" * 32
DATA = os.urandom(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BlobServer]:
    with BlobServer(tmp_path, "127.0.0.1", 0, SECRET) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def store(server: BlobServer, tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path, f"http://127.0.0.1:{server.port}", SECRET)


def head_of(order: Order, size: int, extra: str = "") -> bytes:
    path = "/" + order.url.split("/", 3)[3]
    lines = "".join(f"{name}: {value}\r\n" for name, value in order.headers.items())
    return f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{lines}{extra}\r\n".encode()


def talk(server: BlobServer, *pieces: bytes, timeout: float = 10) -> bytes:
    """Everything that the server answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as raw:
        for piece in pieces:
            raw.sendall(piece)
        answer = b""
        while data := raw.recv(1 << 16):
            answer += data
        return answer


def test_requests_follow_one_another_on_one_connection(server: BlobServer, store: FolderStore) -> None:
    order = store.order("a/b", SHA, len(DATA))
    get = "/" + store.signed_url("a/b", expires_s=60).split("/", 3)[3]
    answer = talk(
        server,
        head_of(order, len(DATA)) + DATA + head_of(order, len(DATA)) + DATA,
        f"HEAD {get} HTTP/1.1\r\n\r\nGET {get} HTTP/1.1\r\nRange: bytes=1-3\r\nConnection: close\r\n\r\n".encode(),
    )
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.endswith(b"\r\n\r\n" + DATA[1:4])
    assert f"Content-Length: {len(DATA)}\r\n".encode() in answer


def test_large_body_is_stored_to_the_last_byte_and_refused_for_a_single_other_one(
    server: BlobServer, store: FolderStore
) -> None:
    size = storage.blob_server.ALONE_BYTES + storage.blobs.CHUNK_BYTES + 12_345
    data = os.urandom(size)
    order = store.order("a/large", hashlib.sha256(data).hexdigest(), size)
    close = "Connection: close\r\n"
    for place in (0, size // 2, size - 1):
        spoiled = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        assert talk(server, head_of(order, size, close), spoiled).startswith(b"HTTP/1.1 400 ")
        assert store.size("a/large") is None
    assert talk(server, head_of(order, size, close), data).startswith(b"HTTP/1.1 200 ")
    assert store.get("a/large") == data


def test_body_that_will_last_goes_to_the_disk_while_it_comes_and_no_other_does(
    server: BlobServer, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    plain = os.fdatasync

    def flush(file: int) -> None:
        flushed.append(os.fstat(file).st_size)
        plain(file)

    monkeypatch.setattr(os, "fdatasync", flush)
    monkeypatch.setattr(storage.blob_server, "EARLY_BYTES", 1 << 20)
    size = storage.blob_server.ALONE_BYTES + (4 << 20) + 12_345
    data, close = os.urandom(size), "Connection: close\r\n"
    for key, lasting in (("gone-soon", False), ("kept", True)):
        assert flushed == []
        order = store.order(key, hashlib.sha256(data).hexdigest(), size, lasting=lasting)
        assert talk(server, head_of(order, size, close), data).startswith(b"HTTP/1.1 200 ")
        assert store.get(key) == data
    assert flushed and flushed[0] < size


def test_disk_that_fills_while_a_lasting_body_comes_is_said_and_leaves_nothing(
    server: BlobServer, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    monkeypatch.setattr(storage.blob_server, "EARLY_BYTES", 1 << 20)
    size = storage.blob_server.ALONE_BYTES + (4 << 20)
    data = os.urandom(size)
    order = store.order("a", hashlib.sha256(data).hexdigest(), size, lasting=True)
    assert talk(server, head_of(order, size), data).startswith(b"HTTP/1.1 507")
    assert store.size("a") is None
    assert not list((store.path("x").parent / ".incoming").iterdir())


def test_client_that_waits_before_its_body_is_told_to_go_on(server: BlobServer, store: FolderStore) -> None:
    head = head_of(
        store.order("a", SHA, len(DATA)), len(DATA), "Expect: 100-continue\r\nConnection: close\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(head)
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(DATA)
        assert raw.recv(100).startswith(b"HTTP/1.1 200 OK")
    assert store.get("a") == DATA


def test_client_that_waits_is_refused_before_it_sends_anything(
    server: BlobServer, store: FolderStore
) -> None:
    head = head_of(store.order("a", SHA, len(DATA)), len(DATA), "Expect: 100-continue\r\n")
    assert talk(server, head.replace(b"PUT /a ", b"PUT /b ")).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nA: 1\r\nA: 1\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nA: 1\r\n b\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nA : 1\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nA: 1\nB: 2\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nA: \0\r\n\r\n", 400),
        (b"PUT /a HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello", 400),
        (b"PUT /a HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
        (b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 501),
        (b"GET /a HTTP/1.1\r\n" + b"".join(b"A%d: 1\r\n" % n for n in range(70)) + b"\r\n", 431),
        (b"GET /a HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /../a HTTP/1.1\r\n\r\n", 404),
        (b"GET /%2e%2e/a HTTP/1.1\r\n\r\n", 404),
        (b"GET /.secret HTTP/1.1\r\n\r\n", 404),
        (b"GET /a HTTP/1.1\r\n\r\n", 403),
        (b"PUT /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 403),
        (b"DELETE /a HTTP/1.1\r\n\r\n", 405),
        (b"POST /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 405),
        (b"GET /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 405),
    ],
)
def test_odd_request_is_refused_and_the_connection_closed(
    server: BlobServer, request_bytes: bytes, status: int
) -> None:
    answer = talk(server, request_bytes)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    problem = json.loads(answer.split(b"\r\n\r\n", 1)[1])
    assert problem["status"] == status
    assert problem["code"].startswith("E_")


def test_put_without_a_length_is_refused(server: BlobServer, store: FolderStore) -> None:
    head = head_of(store.order("a", SHA, len(DATA)), 1).replace(b"Content-Length: 1\r\n", b"")
    answer = talk(server, head)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"names 300000 bytes, None are announced" in answer


def test_refusal_reaches_a_client_that_is_still_sending(server: BlobServer, store: FolderStore) -> None:
    order = store.order("a", SHA, len(DATA))
    big = b"x" * (8 << 20)
    assert talk(server, head_of(order, len(big)), big).startswith(b"HTTP/1.1 400")


def test_slow_head_silent_peer_and_dripping_body_are_given_up(
    server: BlobServer, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in [
        ("HEAD_S", 0.3),
        ("IDLE_S", 0.3),
        ("BODY_GRACE_S", 0.3),
        ("SLOWEST_BYTES_PER_S", 1e9),
    ]:
        monkeypatch.setattr(storage.http1, name, value)
    assert talk(server, timeout=30) == b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        for _ in range(80):
            try:
                raw.sendall(b"G")
            except ConnectionError:
                break
            time.sleep(0.1)
        else:
            raise AssertionError("a head of one byte per 0.1 s was waited for")
    head = head_of(store.order("a", SHA, len(DATA)), len(DATA))
    assert talk(server, head, DATA[:1000], timeout=30) == b""
    deadline = time.monotonic() + 60
    while list((server.store.path("x").parent / ".incoming").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not list((server.store.path("x").parent / ".incoming").iterdir())
    assert store.size("a") is None


def test_more_connections_than_places_are_closed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.blob_server, "MAX_CONNECTIONS", 2)
    with BlobServer(tmp_path, "127.0.0.1", 0, SECRET) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address) as one, socket.create_connection(address) as two:
            for raw in (one, two):
                raw.sendall(b"GET /a HTTP/1.1\r\n")
            time.sleep(0.2)
            with socket.create_connection(address, timeout=5) as third:
                assert third.recv(1) == b""
        deadline, answer = time.monotonic() + 60, b""
        while not answer and time.monotonic() < deadline:
            try:
                answer = talk(server, b"GET /a HTTP/1.1\r\n\r\n")
            except ConnectionError:
                time.sleep(0.02)
        assert answer.startswith(b"HTTP/1.1 403")
        server.shutdown()
        thread.join()


def test_full_disk_is_said_and_leaves_nothing(
    server: BlobServer, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(connection: object, stream: object, size: int, lasting: bool) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.blob_server, "_receive", full)
    answer = talk(server, head_of(store.order("a", SHA, len(DATA)), len(DATA)), DATA)
    assert answer.startswith(b"HTTP/1.1 507")
    assert b"E_HUB_FULL" in answer and b"X-Error-Message: the store has no room" in answer
    assert store.size("a") is None
    assert not list((store.path("x").parent / ".incoming").iterdir())


def test_object_is_brought_to_the_disk_after_the_answer_unless_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: queue.Queue[str] = queue.Queue()
    disk_has_time = threading.Event()

    def sync(stream: BinaryIO) -> None:
        disk_has_time.wait(timeout=60)
        synced.put(Path(stream.name).name)

    monkeypatch.setattr(storage.blob_server, "SYNC_AFTER_S", 0)
    monkeypatch.setattr(storage.blobs, "sync_file", sync)
    with BlobServer(tmp_path, "127.0.0.1", 0, SECRET) as server:
        store = FolderStore(tmp_path, server.url, SECRET)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for key in ("first", "gone", "kept"):
            talk(server, head_of(store.order(key, SHA, len(DATA)), len(DATA), "Connection: close\r\n") + DATA)
        assert synced.empty()
        store.delete("gone")
        disk_has_time.set()
        assert [synced.get(timeout=60), synced.get(timeout=60)] == ["first", "kept"]
        server.shutdown()
        thread.join()


def test_closed_server_brings_nothing_more_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(storage.blob_server, "SYNC_AFTER_S", 0.5)
    monkeypatch.setattr(storage.blobs, "sync_file", lambda stream: synced.put(stream.name))
    with BlobServer(tmp_path, "127.0.0.1", 0, SECRET) as server:
        server.store.path("late").write_bytes(b"x")
        server.later.add("late")
    with pytest.raises(queue.Empty):
        synced.get(timeout=1)


def test_file_left_by_a_crash_is_swept_at_the_next_start_and_a_fresh_one_is_not(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, "http://x", SECRET)
    stale, fresh = store.new_incoming(), store.new_incoming()
    stale.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(stale, (1, 1))
    BlobServer(tmp_path, "127.0.0.1", 0, SECRET).server_close()
    assert (stale.exists(), fresh.exists()) == (False, True)


def test_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    secret = store_secret(tmp_path)
    assert len(secret) == 64
    assert store_secret(tmp_path) == secret
    assert (tmp_path / ".secret").stat().st_mode & 0o777 == 0o600
    (tmp_path / ".secret").chmod(0o644)
    with pytest.raises(Unchecked, match=r"E_INPUT.*0600"):
        store_secret(tmp_path)


def test_store_with_another_secret_signs_for_nobody(server: BlobServer, tmp_path: Path) -> None:
    stranger = FolderStore(tmp_path, "http://x", b"t" * 32)
    assert talk(server, head_of(stranger.order("a", SHA, len(DATA)), len(DATA)), DATA).startswith(
        b"HTTP/1.1 403"
    )


# --- the process --------------------------------------------------------------------------------------------------


def test_port_in_use_ends_with_status_2_and_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = signal.getsignal(signal.SIGTERM)
        assert main(["--root", str(tmp_path), "--port", str(port)]) == 2
        signal.signal(signal.SIGTERM, before)
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_server_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-m', 'storage.blob_server', '--root', sys.argv[1], '--port', sys.argv[2],"
        " '--parent-pid', str(os.getpid())], stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(port)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    with parent:
        child = int(parent.stdout.readline())
        socket.create_connection(("127.0.0.1", port)).close()
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{child}/cmdline").exists():
        if not Path(f"/proc/{child}/cmdline").read_bytes():  # a zombie that nobody reaps has gone too
            break
        time.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_server_stops_on_sigterm_with_status_0(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "storage.blob_server", "--root", str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    with process:
        assert json.loads(process.stdout.readline())["listening"].startswith("http://127.0.0.1:")
        process.terminate()
        assert process.wait(10) == 0


def test_server_listens_on_ipv6_too(tmp_path: Path) -> None:
    try:
        server = BlobServer(tmp_path, "::1", 0, SECRET)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")
    with server:
        assert server.url == f"http://[::1]:{server.port}"
        socket.create_connection(("::1", server.port)).close()


def test_parts_that_vanish_while_they_are_joined_leave_no_object(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process dropped the upload at this moment; or joined it, and then the object is there."""
    upload = store.begin_parts("k")
    part = store.upload_folder("k", upload) / f"1.{SHA}"
    part.write_bytes(DATA)
    stored = store.stored_parts

    def dropped(key: str, upload_id: str) -> dict[int, str]:
        found = stored(key, upload_id)
        store.abort_parts(key, upload_id)
        return found

    monkeypatch.setattr(store, "stored_parts", dropped)
    with pytest.raises(Unchecked, match=r"E_NO_UPLOAD"):
        store.complete_parts("k", upload, {1: SHA})
    assert store.size("k") is None
    assert not list((tmp_path / ".incoming").iterdir())


def test_part_that_a_crash_damaged_is_dropped_and_asked_for_again(store: FolderStore) -> None:
    upload = store.begin_parts("k")
    part = store.upload_folder("k", upload) / f"1.{SHA}"
    part.write_bytes(bytes(len(DATA)))
    part.with_name("boot").write_text("the machine ran at another time then")
    with pytest.raises(Refused, match=r"E_PARTS: part 1 was damaged"):
        store.complete_parts("k", upload, {1: SHA})
    assert (store.size("k"), store.stored_parts("k", upload)) == (None, {})
    part.write_bytes(DATA)
    store.complete_parts("k", upload, {1: SHA})
    assert store.get("k") == DATA


def test_parts_are_joined_in_order_whatever_their_sizes_are(store: FolderStore) -> None:
    upload = store.begin_parts("k")
    pieces = {1: b"a" * (5 << 20), 2: b"b" * (6 << 20), 3: b"c"}
    for number, data in pieces.items():
        store.put_part("k", upload, number, data)
    store.complete_parts("k", upload, store.stored_parts("k", upload))
    assert store.get("k") == b"".join(pieces.values())
    store.sync("k")
