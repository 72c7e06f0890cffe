"""Over lines that are slow, cut, silent or used again, a fetch keeps its word, on both of its ways."""

import contextlib
import errno
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

import federation.fetching
import federation.origins
from federation import splicing
from federation.fetching import fetch
from federation.flower.tls import make_fleet_tls
from federation.origins import Peers
from federation.splicing import can_splice
from storage.errors import Refused, Rejected, Unchecked
from tests.transfers import LARGE, PART, SMALL, OddServer, parts_of, ranged, sha, use_small_parts

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux splices")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_parts(monkeypatch)


class Line:
    """A server of bare sockets: ``answer`` is given each request's range (or None), its number and the connection.

    A connection ends when ``answer`` returns False.
    """

    def __init__(self, answer: Callable[[socket.socket, str | None, int], bool]) -> None:
        self._answer, self._listener = answer, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.connections = self.requests = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as asked, contextlib.suppress(OSError):
            while True:
                wanted = None
                while (line := asked.readline()) != b"\r\n":
                    if not line:
                        return
                    if line.lower().startswith(b"range:"):
                        wanted = line[6:].strip().decode()
                with self._lock:
                    self.requests += 1
                    number = self.requests
                if not self._answer(connection, wanted, number):
                    return


def head_of(wanted: str | None, size: int, more: str = "") -> bytes:
    status = "206 Partial Content" if wanted else "200 OK"
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{more}\r\n".encode()


def whole(connection: socket.socket, wanted: str | None, _number: int) -> bool:
    """The answer as it should be, in one packet as far as that goes."""
    body = ranged(LARGE, wanted)[2]
    connection.sendall(head_of(wanted, len(body)) + body)
    return True


def reset(connection: socket.socket) -> None:
    """End the connection by a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def gone(connection: socket.socket, within_s: float = 20) -> bool:
    """Whether the other side hangs up within this time."""
    connection.settimeout(within_s)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def open_ends() -> list[str]:
    """What this process holds open of pipes and files that are arriving."""
    held = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            held.append(os.readlink(link))
    return sorted(name for name in held if name.startswith("pipe:") or ".partial" in name)


# --- on both ways -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
def test_parts_come_one_after_another_over_one_connection(tmp_path: Path) -> None:
    with Line(whole) as line:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE), streams=1)
    assert (tmp_path / "p").read_bytes() == LARGE
    assert (line.requests, line.connections) == (4, 1)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("head", [0, 1, 1000, 8000, 100_000])
def test_body_may_begin_in_the_packet_of_its_headers(tmp_path: Path, head: int) -> None:
    def split(connection: socket.socket, wanted: str | None, number: int) -> bool:
        body = ranged(LARGE, wanted)[2]
        connection.sendall(head_of(wanted, len(body)) + body[:head])
        time.sleep(0.02)
        connection.sendall(body[head:])
        return True

    with Line(split) as line:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE), streams=1)
    assert (tmp_path / "p").read_bytes() == LARGE
    assert line.connections == 1


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, (4 << 20) - 1, 4 << 20, (4 << 20) + 1])
def test_file_of_any_size_comes(tmp_path: Path, size: int) -> None:
    data, seen = LARGE[:size], list[int]()
    with OddServer(lambda path, asked, n: (200, {}, data)) as server:
        fetch(server.url, tmp_path / "p", sha(data), size, progress=lambda done, total: seen.append(done))
    assert (tmp_path / "p").read_bytes() == data
    assert seen == sorted(seen) and seen[-1:] == ([size] if size else seen[-1:])


@pytest.mark.usefixtures("way")
def test_connection_that_closes_after_each_answer_brings_all(tmp_path: Path) -> None:
    def closing(connection: socket.socket, wanted: str | None, number: int) -> bool:
        body = ranged(LARGE, wanted)[2]
        connection.sendall(head_of(wanted, len(body), "Connection: close\r\n") + body)
        return False

    with Line(closing) as line:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE), streams=1)
    assert (tmp_path / "p").read_bytes() == LARGE
    assert (line.requests, line.connections) == (4, 4)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("end", [lambda connection: None, reset], ids=["closed", "reset"])
@pytest.mark.parametrize("cut", [0, 10, PART - 1])
def test_answer_that_is_cut_is_asked_for_again_and_counted_once(
    tmp_path: Path, end: Callable[[socket.socket], None], cut: int
) -> None:
    seen: list[int] = []

    def cutting(connection: socket.socket, wanted: str | None, number: int) -> bool:
        if number != 2:
            return whole(connection, wanted, number)
        body = ranged(LARGE, wanted)[2]
        connection.sendall(head_of(wanted, len(body)) + body[:cut])
        time.sleep(0.1)
        end(connection)
        return False

    with Line(cutting) as line:
        fetch(
            line.url,
            tmp_path / "p",
            sha(LARGE),
            len(LARGE),
            parts_of(LARGE),
            streams=1,
            progress=lambda done, total: seen.append(done),
        )
    assert (tmp_path / "p").read_bytes() == LARGE
    assert (line.requests, line.connections) == (5, 2)
    assert max(seen) == seen[-1] == len(LARGE)


@pytest.mark.usefixtures("way")
def test_bytes_after_an_answer_are_no_part_of_the_next(tmp_path: Path) -> None:
    def chatty(connection: socket.socket, wanted: str | None, number: int) -> bool:
        whole(connection, wanted, number)
        if number == 1:
            connection.sendall(
                b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5242880\r\n\r\n" + LARGE[:10]
            )
        return number > 1

    with Line(chatty) as line:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE), streams=1)
    assert (tmp_path / "p").read_bytes() == LARGE


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("sent", [0, 1000])
def test_silence_is_an_error_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    monkeypatch.setattr(federation.origins, "SILENCE_S", 0.2)
    monkeypatch.setattr(splicing, "SILENCE_S", 0.2)
    monkeypatch.setattr(splicing, "LOOK_S", 0.05)
    monkeypatch.setattr(federation.fetching, "ATTEMPTS", 2)

    def silent(connection: socket.socket, wanted: str | None, number: int) -> bool:
        connection.sendall(head_of(wanted, len(SMALL)) + SMALL[:sent])
        hung_up.append(gone(connection))
        return False

    hung_up: list[bool] = []
    with (
        Line(silent) as line,
        pytest.raises(Unchecked, match=r"E_STORE_UNREACHABLE: p from .*TimeoutError"),
    ):
        fetch(line.url, tmp_path / "p", sha(SMALL), len(SMALL))
    assert hung_up == [True, True]
    assert list(tmp_path.iterdir()) == []


@linux
@pytest.mark.usefixtures("way")
def test_nothing_stays_open_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federation.fetching, "ATTEMPTS", 2)
    before = open_ends()

    def cut(connection: socket.socket, wanted: str | None, number: int) -> bool:
        connection.sendall(head_of(wanted, len(SMALL)) + SMALL[:1000])
        return False

    def forged(connection: socket.socket, wanted: str | None, number: int) -> bool:
        connection.sendall(head_of(wanted, len(SMALL)) + SMALL[1:] + b"x")
        return True

    def full(done: int, _total: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Line(whole) as line:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
        with pytest.raises(Unchecked, match="E_DISK_FULL"):
            fetch(line.url, tmp_path / "q", sha(LARGE), len(LARGE), parts_of(LARGE), progress=full)
    with Line(cut) as line, pytest.raises(Unchecked, match="ended after"):
        fetch(line.url, tmp_path / "q", sha(SMALL), len(SMALL))
    with Line(forged) as line, pytest.raises(Rejected, match="E_DIGEST"):
        fetch(line.url, tmp_path / "q", sha(SMALL), len(SMALL))
    assert open_ends() == before


# --- inside the kernel --------------------------------------------------------------------------------------------


@linux
def test_plain_answer_is_never_in_our_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(federation.fetching, "_copy_body")
    with Line(whole) as line:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
    assert (tmp_path / "p").read_bytes() == LARGE


@linux
def test_slow_line_shows_how_far_it_is_before_a_window_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splicing, "LOOK_S", 0.01)
    seen: list[int] = []
    data = LARGE[:60]

    def trickling(connection: socket.socket, wanted: str | None, number: int) -> bool:
        connection.sendall(head_of(wanted, len(data)))
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.005)
        return True

    with Line(trickling) as line:
        fetch(line.url, tmp_path / "p", sha(data), 60, progress=lambda done, total: seen.append(done))
    assert (tmp_path / "p").read_bytes() == data
    assert seen == sorted(seen) and seen[-1] == 60
    assert len(set(seen)) > 3


@linux
def test_byte_now_and_then_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splicing, "LOOK_S", 0.1)
    monkeypatch.setattr(splicing, "SILENCE_S", 1.0)

    def seldom(connection: socket.socket, wanted: str | None, number: int) -> bool:
        connection.sendall(head_of(wanted, 12))
        for byte in SMALL[:12]:
            time.sleep(0.15)
            connection.sendall(bytes([byte]))
        return True

    with Line(seldom) as line:
        fetch(line.url, tmp_path / "p", sha(SMALL[:12]), 12)
    assert line.requests == 1


@linux
def test_disk_that_is_full_for_what_came_with_the_headers_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.delattr(federation.fetching, "_copy_body")
    with Line(whole) as line, pytest.raises(Unchecked, match=r"E_DISK_FULL: no room for the") as error:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
    assert "make room" in error.value.hint
    assert list(tmp_path.iterdir()) == []


@linux
def test_disk_that_takes_little_at_a_time_gets_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.splice

    def little(source: int, target: int, count: int, offset_dst: int | None = None) -> int:
        return plain(source, target, count if offset_dst is None else min(count, 5000), offset_dst=offset_dst)

    monkeypatch.setattr(os, "splice", little)
    monkeypatch.delattr(federation.fetching, "_copy_body")
    with Line(whole) as line:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
    assert (tmp_path / "p").read_bytes() == LARGE


@linux
def test_other_streams_stop_also_where_nothing_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splicing, "LOOK_S", 0.05)
    hung_up: list[bool] = []
    waiting = threading.Event()

    def half(connection: socket.socket, wanted: str | None, number: int) -> bool:
        if wanted and wanted.startswith("bytes=0-"):
            connection.sendall(head_of(wanted, PART) + LARGE[:10])
            waiting.set()
            hung_up.append(gone(connection))
            return False
        waiting.wait(20)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return True

    before = open_ends()
    with Line(half) as line, pytest.raises(Refused, match="answered 404"):
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE), streams=2)
    assert hung_up == [True]
    assert open_ends() == before


@linux
@pytest.mark.parametrize("flags", [os.O_RDWR | os.O_APPEND, os.O_RDONLY], ids=["append", "read"])
def test_file_that_takes_nothing_from_a_pipe_is_found_before_anything_comes(
    tmp_path: Path, flags: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"as it was")
    for file_flags, works in ((flags, False), (os.O_RDWR, True)):
        file = os.open(path, file_flags)
        try:
            assert can_splice(file) is works
        finally:
            os.close(file)
        assert path.read_bytes() == b"as it was"


@linux
def test_where_the_system_refuses_to_splice_the_file_comes_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_given: object, **_options: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "splice", refuse)
    with Line(whole) as line:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
    assert (tmp_path / "p").read_bytes() == LARGE


@linux
def test_pipe_that_may_not_grow_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splicing.fcntl, "F_SETPIPE_SZ", 0x7FFF)  # the kernel knows no such call
    monkeypatch.delattr(federation.fetching, "_copy_body")
    with Line(whole) as line:
        fetch(line.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
    assert (tmp_path / "p").read_bytes() == LARGE


@linux
def test_line_that_is_encrypted_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_fleet_tls(tmp_path / "tls", ["127.0.0.1"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    client = ssl.create_default_context(cafile=str(files.ca))

    class Encrypted(Line):
        def _serve(self, connection: socket.socket) -> None:
            super()._serve(server.wrap_socket(connection, server_side=True))

    monkeypatch.setattr(ssl, "create_default_context", lambda: client)
    with Encrypted(whole) as line:
        url = line.url.replace("http:", "https:")
        fetch(url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
        peers = Peers()
        try:
            assert peers.get(url, {}).plain is None
        finally:
            peers.close()
    assert (tmp_path / "p").read_bytes() == LARGE
