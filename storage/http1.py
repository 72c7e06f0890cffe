"""As much of HTTP/1.1 as a door for large files needs, and strictly: one request at a time on one socket.

Bodies have a stated length or there are none; what could be read in two ways (doubled headers, folded lines,
transfer codings, bare LF) is refused. Times are limited as a whole, not per packet, so that a peer cannot
hold a thread by sending one byte a minute. Used by ``storage.blob_server`` only.
"""

import re
import socket
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import BinaryIO

from storage.errors import Refused

MAX_HEAD_BYTES = 16 << 10
MAX_HEADERS = 64
IDLE_S = 60.0  # between two requests
HEAD_S = 10.0  # from a request's first byte to the end of its headers
SLOWEST_BYTES_PER_S = 16 << 10  # bodies slower than this, after BODY_GRACE_S, are given up
BODY_GRACE_S = 60.0
FILE_STEP_BYTES = 8 << 20
LINGER_BYTES, LINGER_S = 40 << 20, 5.0  # read and dropped after a refusal, so that the peer sees the answer

_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,8000}) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,15}")


class Cut(ConnectionError):
    """The peer went away, or was too slow: there is nobody to answer."""


@dataclass(frozen=True)
class Request:
    """One request's head; header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    keep_alive: bool

    def length(self) -> int | None:
        """Bytes of the body as announced; None when the request announces none."""
        text = self.headers.get("content-length")
        return None if text is None else int(text)


class Connection:
    """One peer's socket with what has been received and not yet been read."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._held = bytearray()
        self._deadline = 0.0

    def read_request(self) -> Request | None:
        """The next request's head, or None when the peer is done.

        Raises:
            Refused: 400, 431 or 501; the connection cannot be used any further.
        """
        self._deadline = time.monotonic() + IDLE_S
        if not self._held and not self._receive_more():
            return None
        self._deadline = time.monotonic() + HEAD_S
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > MAX_HEAD_BYTES:
                raise Refused(
                    "E_HTTP", f"the request's head is longer than {MAX_HEAD_BYTES} bytes", status=431
                )
            if not self._receive_more():
                raise Cut("the peer left inside a request's head")
        if end > MAX_HEAD_BYTES:
            raise Refused("E_HTTP", f"the request's head is longer than {MAX_HEAD_BYTES} bytes", status=431)
        lines = bytes(self._held[:end]).split(b"\r\n")
        del self._held[: end + 4]
        return _parse(lines)

    def start_body(self, size: int) -> None:
        """Set the time by which a body of this size must have come or gone."""
        self._deadline = time.monotonic() + BODY_GRACE_S + size / SLOWEST_BYTES_PER_S

    def read_into(self, view: memoryview) -> int:
        """Fill as much of ``view`` as has come; raises ``Cut`` when nothing more comes."""
        if self._held:
            count = min(len(view), len(self._held))
            view[:count] = self._held[:count]
            del self._held[:count]
            return count
        self._arm()
        try:
            count = self.socket.recv_into(view)
        except TimeoutError:
            raise Cut("the peer sends too slowly") from None
        if not count:
            raise Cut("the peer left inside a body")
        return count

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"", *, more: bool = False) -> None:
        """Send an answer's head and a small body; ``more`` when the caller sends the body itself."""
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
        raw = "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
        self.socket.settimeout(HEAD_S)
        self.socket.sendall(raw, getattr(socket, "MSG_MORE", 0) if more else 0)

    def send_file(self, stream: BinaryIO, start: int, count: int) -> None:
        """Send ``count`` bytes of a file from ``start`` on, from the kernel straight to the socket."""
        self.start_body(count)
        while count:
            self._arm()
            sent = self.socket.sendfile(stream, start, min(count, FILE_STEP_BYTES))
            if not sent:
                raise Cut("the file became shorter while it was sent")
            start, count = start + sent, count - sent

    def go_on(self) -> None:
        """Tell a peer that waits with its body (``Expect: 100-continue``) to send it."""
        self.socket.settimeout(HEAD_S)
        self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def linger(self) -> None:
        """Drop what the peer is still sending, for a while: closing at once would lose our answer to it."""
        self._held.clear()
        self._deadline = time.monotonic() + LINGER_S
        scratch, left = memoryview(bytearray(1 << 18)), LINGER_BYTES
        try:
            self.socket.shutdown(socket.SHUT_WR)
            while left > 0:
                left -= self.read_into(scratch)
        except OSError:
            return

    def _receive_more(self) -> bool:
        self._arm()
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            raise Cut("the peer was silent for too long") from None
        self._held += data
        return bool(data)

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Cut("the peer took too long")
        self.socket.settimeout(left)


def _parse(lines: list[bytes]) -> Request:
    first = _REQUEST.fullmatch(lines[0])
    if first is None:
        raise Refused("E_HTTP", "the request line is not 'METHOD /path HTTP/1.1'", status=400)
    if len(lines) - 1 > MAX_HEADERS:
        raise Refused("E_HTTP", f"the request has more than {MAX_HEADERS} headers", status=431)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        match = _HEADER.fullmatch(line)
        name = match[1].decode().lower() if match else ""
        if match is None or name in headers:
            raise Refused("E_HTTP", "a header line is malformed or doubled", status=400)
        headers[name] = match[2].decode("latin-1")
    if "transfer-encoding" in headers:
        raise Refused("E_HTTP", "transfer codings are not accepted: send Content-Length", status=501)
    if not _LENGTH.fullmatch(headers.get("content-length", "0")):
        raise Refused("E_HTTP", "Content-Length is not a number", status=400)
    path, _, query = first[2].decode().partition("?")
    asked = headers.get("connection", "").lower()
    keep = "close" not in asked if first[3] == b"1" else "keep-alive" in asked
    return Request(first[1].decode(), path, query, headers, keep)
