"""Plain HTTP with object stores and download origins: connections, proxies, redirects.

Made for large bodies: ``http.client`` reads straight into the caller's buffer, which general clients do not.
No credential of ours is ever sent from here: an order carries its own signature in its headers, a read URL in
its query, and stores refuse a request that bears a second one. Redirects are followed by hand, a few, never
from https to http. Used by ``federation.sending``, ``federation.fetching`` and ``federation.splicing``.
"""

import base64
import contextlib
import http.client
import io
import json
import socket
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from storage import aws_chunked
from storage.errors import Refused, Unchecked, shown

CONNECT_S = 10.0
SEND_BYTES = 256 << 10  # at a time: so often is it told how far we are
SILENCE_S = 60.0  # without a single byte
MAX_REDIRECTS = 3
MAX_PROBLEM_BYTES = 64 << 10
REDIRECTS = (301, 302, 303, 307, 308)
LOOPBACK = ("127.0.0.1", "::1", "localhost")

_FAILURES = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class Broken(Exception):
    """An exchange failed in a way that may pass: try again. Never leaves the modules that use this one.

    Attributes:
        origin: scheme and host of the server with which it failed.
    """

    def __init__(self, url: str, what: str) -> None:
        self.origin = origin_of(url)
        super().__init__(f"{self.origin}: {what}")


@dataclass(frozen=True)
class Answer:
    """An answer whose body has not been read, the address that gave it, and whether a redirect led there."""

    response: http.client.HTTPResponse
    url: str
    redirected: bool
    plain: socket.socket | None  # that brings it, where nothing encrypts it


class Peers:
    """Open connections of one thread, one for each origin."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._open: dict[tuple[str, str], http.client.HTTPConnection] = {}
        self._buffer: memoryview | None = None
        self._response: http.client.HTTPResponse | None = None  # the last one: it may hold a socket by itself

    def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        """Ask for ``url``, following redirects by hand.

        Raises:
            Broken: no connection, or it broke before the answer came.
            Unchecked: ``E_REDIRECT``; the redirects lead nowhere that we go.
        """
        for hop in range(MAX_REDIRECTS + 1):
            response, sock = self._ask(url, {"Accept-Encoding": "identity", **headers})
            if response.status not in REDIRECTS:
                return Answer(response, url, hop > 0, None if isinstance(sock, ssl.SSLSocket) else sock)
            target = urljoin(url, response.getheader("Location") or "")
            response.read(MAX_PROBLEM_BYTES)
            if response.will_close or not response.isclosed():
                response.close()
                self.drop(url)
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise Unchecked("E_REDIRECT", f"{origin_of(url)} leads from https to {origin_of(target)}")
            url = target
        raise Unchecked("E_REDIRECT", f"{origin_of(url)}: more than {MAX_REDIRECTS} redirects")

    def put(
        self,
        url: str,
        headers: Mapping[str, str],
        path: Path,
        offset: int,
        size: int,
        gone: Callable[[int], None],
        *,
        trailer: Callable[[], str] | None = None,
    ) -> http.client.HTTPResponse:
        """Send ``size`` bytes of a file from ``offset`` on; the answer's small body has been read.

        Args:
            gone: told how many bytes went, as they go; what it raises ends the connection.
            trailer: waits for the digest of these bytes: they go in chunks, and it after them.
        Raises:
            Broken: no connection, or it broke before an answer came.
            OSError: of the file.
        """
        connection = self._connection(url)
        try:
            with path.open("rb", buffering=0) as file:
                length = size if trailer is None else aws_chunked.chunked_length(size)
                self._start(connection, "PUT", url, {**headers, "Content-Length": str(length)})
                with contextlib.suppress(ConnectionError):  # it may have answered before it hung up
                    if trailer is None:
                        self._send(connection.sock, file, offset, size, gone)
                    else:
                        self._send_chunks(connection.sock, file, offset, size, gone)
                        connection.sock.sendall(aws_chunked.end_of_body(trailer()))
            response = connection.getresponse()
            response.read(MAX_PROBLEM_BYTES)
        except _FAILURES as error:
            self.drop(url)
            raise Broken(url, f"{type(error).__name__}: {error}") from error
        except BaseException:  # half a request is on this connection
            self.drop(url)
            raise
        response.close()
        if response.will_close:
            self.drop(url)
        return response

    def _send(
        self, sock: socket.socket, file: io.FileIO, offset: int, size: int, gone: Callable[[int], None]
    ) -> None:
        """Send a range of a file: from the kernel straight to the socket where nothing encrypts it."""
        self._buffer = self._buffer or memoryview(bytearray(SEND_BYTES))
        file.seek(offset)
        while size:
            if isinstance(sock, ssl.SSLSocket):
                count = file.readinto(self._buffer[: min(size, SEND_BYTES)])
                sock.sendall(self._buffer[:count])
            else:
                count = sock.sendfile(file, offset, min(size, SEND_BYTES))
            if not count:
                raise http.client.HTTPException("the file became shorter while it was sent")
            offset, size = offset + count, size - count
            gone(count)

    def _send_chunks(
        self, sock: socket.socket, file: io.FileIO, offset: int, size: int, gone: Callable[[int], None]
    ) -> None:
        for before, length in aws_chunked.chunks(size):
            sock.sendall(before)
            self._send(sock, file, offset, length, gone)
            sock.sendall(aws_chunked.END)
            offset += length

    def _ask(self, url: str, headers: Mapping[str, str]) -> tuple[http.client.HTTPResponse, socket.socket]:
        connection = self._connection(url)
        try:
            self._start(connection, "GET", url, headers)
            sock = connection.sock  # an answer after which it closes has it to itself
            self._response = connection.getresponse()
            return self._response, sock
        except _FAILURES as error:
            self.drop(url)
            raise Broken(url, f"{type(error).__name__}: {error}") from error

    def _start(
        self, connection: http.client.HTTPConnection, method: str, url: str, headers: Mapping[str, str]
    ) -> None:
        split = urlsplit(url)
        target = (split.path or "/") + (f"?{split.query}" if split.query else "")
        lines, proxy = dict(headers), _proxy_for(split)
        if proxy is not None and split.scheme == "http":
            target = f"http://{split.netloc}{target}"
            lines |= _proxy_login(proxy)
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": split.netloc, **lines}.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.sock.settimeout(SILENCE_S)

    def _connection(self, url: str) -> http.client.HTTPConnection:
        split = urlsplit(url)
        key = (split.scheme, split.netloc)
        if key not in self._open:
            self._open[key] = self._connect(split)
        return self._open[key]

    def _connect(self, split: SplitResult) -> http.client.HTTPConnection:
        if split.scheme not in ("http", "https") or not split.hostname or "@" in split.netloc:
            raise Unchecked("E_REDIRECT", f"{origin_of(split.geturl())} is no http(s) address")
        proxy = _proxy_for(split)
        host, port = (proxy.hostname or "", proxy.port) if proxy else (split.hostname, split.port)
        connection: http.client.HTTPConnection
        if split.scheme == "https":
            self._context = self._context or ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=self._context)
            if proxy:
                connection.set_tunnel(split.hostname, split.port or 443, _proxy_login(proxy))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=CONNECT_S)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            raise Broken(split.geturl(), f"{type(error).__name__}: {error}") from error
        return connection

    def drop(self, url: str) -> None:
        """Close the connection to this URL's origin."""
        split = urlsplit(url)
        connection = self._open.pop((split.scheme, split.netloc), None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close every connection, also under an answer that is being read."""
        if self._response is not None:
            self._response.close()
            self._response = None
        for connection in self._open.values():
            connection.close()
        self._open.clear()


def origin_of(url: str) -> str:
    """Scheme and host of a URL: what may be shown, since its path and query may be secrets."""
    split = urlsplit(url)
    return shown(f"{split.scheme}://{split.netloc.rpartition('@')[2]}").strip("'")


def refusal_of(answer: Answer) -> Refused:
    """The error that an answer states, by its problem document where it has one."""
    response = answer.response
    raw = response.read(MAX_PROBLEM_BYTES)
    code, detail, hint = "E_DOWNLOAD", f"{origin_of(answer.url)} answered {response.status}", ""
    if response.getheader("Content-Type", "").startswith("application/problem+json"):
        try:
            problem = json.loads(raw)
            code, detail, hint = (str(problem.get(name, "")) for name in ("code", "detail", "hint"))
        except (ValueError, AttributeError):
            detail += " with a broken explanation"
    if not code.startswith("E_") or len(code) > 64 or not code.isascii():
        code = "E_DOWNLOAD"
    return Refused(code, detail[:2000], hint[:2000], status=response.status)


def _proxy_for(split: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for this address, if any; never for this machine's own."""
    host = split.hostname or ""
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(split.scheme)
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None


def _proxy_login(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
