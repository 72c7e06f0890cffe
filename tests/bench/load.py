"""A cheap load generator: GET and HEAD requests over a few keep-alive connections, as fast as they are answered.

``python tests/bench/load.py`` reads one JSON object from standard input, ``{"host", "port", "requests": [text…],
"seconds", "connections", "status"}``, and prints one: requests answered, seconds, and milliseconds at the 50th and
99th percentile. Raw sockets and ``select``, because an HTTP client would cost more than the server. An answer with
another status than those wanted ends it.
"""

import json
import re
import selectors
import socket
import sys
import time
from itertools import cycle

_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)", re.IGNORECASE)


class Line:
    """One connection with one request under way."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.held, self.sent_at, self.head = b"", 0.0, False

    def send(self, request: bytes) -> None:
        """Begin the next exchange."""
        self.held, self.sent_at, self.head = b"", time.perf_counter(), request.startswith(b"HEAD")
        self.socket.sendall(request)

    def answered(self) -> bytes | None:
        """The whole answer once it is there."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise SystemExit("the server closed the connection")
        self.held += data
        end = self.held.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(self.held, 0, end)
        body = 0 if self.head or length is None else int(length[1])
        return self.held if len(self.held) >= end + 4 + body else None


def main() -> None:
    asked = json.load(sys.stdin)
    requests = cycle([text.encode() for text in asked["requests"]])
    wanted = tuple(f"HTTP/1.1 {status} ".encode() for status in asked["status"])
    with selectors.DefaultSelector() as ready:
        for _ in range(asked["connections"]):
            line = Line(asked["host"], asked["port"])
            ready.register(line.socket, selectors.EVENT_READ, line)
            line.send(next(requests))
        took: list[float] = []
        began = time.perf_counter()
        while time.perf_counter() - began < asked["seconds"] or not took:
            for key, _events in ready.select(1.0):
                line = key.data
                answer = line.answered()
                if answer is None:
                    continue
                if not answer.startswith(wanted):
                    raise SystemExit(answer[:600].decode("latin-1"))
                took.append(time.perf_counter() - line.sent_at)
                line.send(next(requests))
        seconds = time.perf_counter() - began
    took.sort()
    said = {"requests": len(took), "seconds": seconds}
    said |= {f"p{p}_ms": took[min(len(took) - 1, len(took) * p // 100)] * 1000 for p in (50, 99)}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
