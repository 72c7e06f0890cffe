"""However a body falls into packets, it comes whole to its place, and nothing beside it is touched."""

import hashlib
import socket
import sys
import tempfile
import threading
from http.client import HTTPResponse
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import splicing
from federation.origins import Answer
from federation.splicing import splice_body

WINDOW = 8192
BYTES = bytes(i * 7 % 251 for i in range(4 * WINDOW))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux splices")

sizes = st.one_of(
    st.integers(1, 3 * WINDOW),
    st.integers(-2, 2).map(lambda off: WINDOW + off),
    st.integers(-2, 2).map(lambda off: 2 * WINDOW + off),
)


@settings(max_examples=120)
@given(sizes, st.integers(0, 5000), st.lists(st.integers(1, WINDOW), max_size=6), st.integers(1, WINDOW))
def test_body_comes_to_its_place_and_its_digest_is_that_of_the_bytes(
    size: int, offset: int, packets: list[int], lot: int
) -> None:
    body = BYTES[:size]
    with (
        mock.patch.multiple(splicing, WINDOW_BYTES=WINDOW, LOT_BYTES=lot, PIPE_BYTES=4096),
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
        tempfile.TemporaryFile(buffering=0) as file,
    ):
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        file.write(b"\xff" * (offset + size + 5000))

        def send() -> None:
            left = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body
            for packet in [*packets, len(left)]:
                far.sendall(left[:packet])
                left = left[packet:]

        sender = threading.Thread(target=send)
        sender.start()
        near.settimeout(10)
        digest, response = hashlib.sha256(), HTTPResponse(near)
        response.begin()
        answer = Answer(response, "http://store", False, near)
        counts = list(splice_body(answer, file.fileno(), offset, size, digest.update))
        sender.join()
        assert response.isclosed()
        assert near.gettimeout() == splicing.SILENCE_S
        far.sendall(b"next")
        assert near.recv(4) == b"next", "the socket waits for any byte again"
        assert sum(counts) == size and digest.digest() == hashlib.sha256(body).digest()
        file.seek(0)
        assert file.read() == b"\xff" * offset + body + b"\xff" * 5000
