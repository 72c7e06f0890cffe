"""Whatever a peer sends as a request's head: a request, a refusal, or a closed connection, and soon."""

import contextlib
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import Refused
from storage.http1 import Connection, Cut

PIECES = [
    b"GET /a HTTP/1.1",
    b"PUT /x?y HTTP/1.0",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b":",
    b"Content-Length: 5",
    b"A: b",
    b"\x00",
    b"\xff",
    b"Transfer-Encoding: chunked",
    b"x" * 5000,
]


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=20).map(b"".join))
def test_head_is_read_or_refused(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.suppress(Refused, Cut):
        theirs.sendall(raw)
        theirs.shutdown(socket.SHUT_WR)
        request = Connection(ours).read_request()
        if request is not None:
            assert request.path.startswith("/")
            assert all("\r" not in value and "\n" not in value for value in request.headers.values())
            assert request.length() is None or (request.length() or 0) >= 0
