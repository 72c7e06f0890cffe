"""What transfers are tested with: bytes, small parts, and a server that answers as a test says."""

import hashlib
import http.server
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import federation.fetching
import federation.sending
import federation.streams
import federation.unhashed
import storage.manifests

PART = 5 << 20  # S3 refuses smaller parts but the last
SMALL = os.urandom(300_000)
LARGE = os.urandom(3 * PART + 12_345)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parts_of(data: bytes) -> list[str]:
    return [sha(data[start : start + PART]) for start in range(0, len(data), PART)]


def partial_of(folder: Path, data: bytes) -> Path:
    """Where the file fills until it is whole."""
    return folder / f".{sha(data)[:32]}.partial"


def use_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 5 MiB, and no patience to speak of."""
    monkeypatch.setattr(storage.manifests, "PART_BYTES", PART)
    monkeypatch.setattr(federation.fetching, "PART_BYTES", PART)
    monkeypatch.setattr(federation.sending, "PART_BYTES", PART)
    monkeypatch.setattr(federation.unhashed, "PART_BYTES", PART)
    monkeypatch.setattr(federation.streams, "LONGEST_WAIT_S", 0.02)


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers as the test's ``answer`` says: (status, headers, body); a cut body is announced longer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append((self.path, dict(self.headers)))
        status, headers, body = server.answer(self.path, self.headers.get("Range"), len(server.seen))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if int(headers.get("Content-Length", len(body))) != len(body):
            self.close_connection = True

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


Reply = tuple[int, dict[str, str], bytes]


class Listening(http.server.ThreadingHTTPServer):
    """A server with what its answers need."""

    seen: list[tuple[str, dict[str, str]]]
    answer: Callable[[str, str | None, int], Reply]


class OddServer:
    """Runs ``Odd`` for the length of a ``with`` block."""

    def __init__(self, answer: Callable[[str, str | None, int], Reply]) -> None:
        self._server = Listening(("127.0.0.1", 0), Odd)
        self._server.seen, self._server.answer = [], answer
        self.seen = self._server.seen
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> "OddServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def ranged(data: bytes, asked: str | None) -> Reply:
    if asked is None:
        return 200, {}, data
    start, end = (int(text) for text in asked.removeprefix("bytes=").split("-"))
    return 206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1]
