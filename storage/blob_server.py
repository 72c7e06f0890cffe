"""The folder store's door: a small HTTP server that lets bearers of orders write and bearers of URLs read.

It follows the rules that an S3 server follows for signed requests, so that the hub's clients need not know
which store stands behind: a PUT is visible only when every byte has come and has the digest that was
signed; otherwise the answer is 400 (other bytes), 403 (signature, expiry), 404 (unknown object or upload)
or 412 (exists, where ``If-None-Match: *`` asks). Objects go to the disk a few seconds after they have come,
or when the hub asks (``FolderStore.sync``): most updates of a run are gone by then. What an order calls
lasting goes there while it comes. It knows no accounts, lists nothing and deletes nothing: the hub does those
through ``FolderStore`` on the same folder.

Run as a process of its own: ``python -m storage.blob_server --root DIR``. It prints one JSON line once it
listens. Reading order: ``Visit.handle``, ``Visit._put``, ``Visit._get``, ``serve``.
"""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import queue
import re
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from storage.blobs import CHUNK_BYTES, FolderStore, is_key, no_blob, store_secret
from storage.early_sync import EARLY_BYTES, EarlySync
from storage.errors import FedhubError, Refused, Unchecked
from storage.http1 import Connection, Request
from storage.order_signing import LASTING, OrderSigner

MAX_CONNECTIONS = 256
SYNC_AFTER_S = 5.0  # an object is brought to the disk that long after it has come, unless it is gone by then
ALONE_BYTES = 8 << 20  # a body up to this size is not worth a second thread
STALE_S = 3600  # unfinished files older than this are left over from a crash
PARENT_CHECK_S = 0.5

_PART = re.compile(r"partNumber=([1-9][0-9]{0,3}|10000)&uploadId=([0-9a-f]{32})")
_RANGE = re.compile(r"bytes=(?:([0-9]{1,15})-([0-9]{0,15})|-([0-9]{1,15}))")


@dataclass(frozen=True)
class Place:
    """Where a PUT goes: an object, or a part of an upload; ``sha256`` where the signature names a digest."""

    size: int
    sha256: str | None
    upload_id: str | None
    number: int


class BlobServer(socketserver.ThreadingTCPServer):
    """Listens as soon as it is made; ``serve_forever`` answers, one thread a connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, root: Path, host: str, port: int, secret: bytes, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.store = FolderStore(root, "", secret)
        self.signer = OrderSigner(secret)
        self.later = LaterSync(self.store)
        self.clock = clock
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.store.sweep(time.time() - STALE_S)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Visit)

    def server_close(self) -> None:
        """Stop listening; nothing is brought to the disk any more."""
        self.later.close()
        super().server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        host = str(self.server_address[0])
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def port(self) -> int:
        """The port that it listens on, also where 0 was asked for."""
        return int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Admit no more connections than there are places; the rest are closed at once."""
        return self._places.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()


class LaterSync:
    """Brings objects to the disk in a thread of its own, some time after they have come, until closed."""

    def __init__(self, store: FolderStore) -> None:
        self._store = store
        self._waiting: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="sync", daemon=True).start()

    def add(self, key: str) -> None:
        self._waiting.put((time.monotonic() + SYNC_AFTER_S, key))

    def close(self) -> None:
        """What still waits is left to the system, as all of it is when the process is killed."""
        self._closed.set()
        self._waiting.put(None)

    def _run(self) -> None:
        while entry := self._waiting.get():
            due, key = entry
            if self._closed.wait(max(0.0, due - time.monotonic())):
                return
            try:
                self._store.sync(key)
            except Unchecked:  # deleted meanwhile
                continue
            except OSError as error:
                print(f"blob server: {key} could not be brought to the disk: {error}", file=sys.stderr)


class Visit(socketserver.BaseRequestHandler):
    """One connection: requests one after another until either side has had enough."""

    server: BlobServer

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self.request)
        try:
            while self._answer_one(connection):
                pass
        except (ConnectionError, TimeoutError):  # the peer left: there is nobody to tell
            return

    def _answer_one(self, connection: Connection) -> bool:
        """Answer the next request; false when the connection is done."""
        try:
            request = connection.read_request()
        except Refused as error:
            self._refuse(connection, error, error.status)
            return False
        if request is None:
            return False
        try:
            key = request.path[1:]
            if not is_key(key):
                raise no_blob(key[:80])
            if request.method == "PUT":
                self._put(connection, request, key)
            elif request.method in ("GET", "HEAD") and not request.length():
                self._get(connection, request, key)
            else:
                raise Refused("E_HTTP", f"{request.method} is not answered here", status=405)
        except FedhubError as error:
            self._refuse(connection, error, error.status if isinstance(error, Refused) else 404)
            return False
        return request.keep_alive

    def _refuse(self, connection: Connection, error: FedhubError, status: int) -> None:
        problem = {"type": "about:blank", "status": status, "code": error.code, "detail": error.message}
        body = json.dumps(problem).encode()
        headers = {
            "Content-Type": "application/problem+json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        if error.code == "E_RANGE":
            headers["Content-Range"] = error.hint
        if error.code == "E_HUB_FULL":
            headers["X-Error-Message"] = error.message  # stock Hugging Face clients show nothing else
        connection.answer(status, headers, body)
        connection.linger()

    # --- writing -------------------------------------------------------------------------------------

    def _put(self, connection: Connection, request: Request, key: str) -> None:
        place = self._place(request, key)
        length = request.length()
        if length != place.size:
            raise Refused(
                "E_SIZE", f"the order for {key} names {place.size} bytes, {length} are announced", status=400
            )
        store = self.server.store
        create_only = request.headers.get("if-none-match") == "*"
        folder = None if place.upload_id is None else store.upload_folder(key, place.upload_id)
        if create_only and folder is None and store.size(key) is not None:
            raise Refused("E_BLOB_EXISTS", f"the object {key} exists already", status=412)
        if request.headers.get("expect", "").lower() == "100-continue":
            connection.go_on()
        incoming = store.new_incoming()
        try:
            with incoming.open("xb", buffering=0) as stream:
                sha256 = _receive(connection, stream, place.size, LASTING in request.headers)
                if place.sha256 not in (None, sha256):
                    raise Refused(
                        "E_DIGEST",
                        f"the bytes sent for {key} do not have the digest that was signed",
                        status=400,
                    )
            if folder is not None:
                store.install_part(incoming, folder, place.number, sha256)
            else:
                self._install(incoming, key, create_only=create_only)
                self.server.later.add(key)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Refused(
                "E_HUB_FULL", f"the store has no room for the {place.size} bytes of {key}", status=507
            ) from error
        finally:
            incoming.unlink(missing_ok=True)
        connection.answer(200, {"ETag": f'"{sha256}"', "Content-Length": "0"})

    def _place(self, request: Request, key: str) -> "Place":
        """What this PUT is allowed to put, by an order in its headers or by a part's URL."""
        server, mark = self.server, f"?{request.query}" if request.query else ""
        now = int(server.clock())
        if "signature=" in request.query:
            upload_id, number, size = server.signer.check_part(key, request.query, now)
            return Place(size, None, upload_id, number)
        sha256, size = server.signer.check_order(key, mark, request.headers, now)
        part = _PART.fullmatch(request.query)
        if request.query and part is None:
            raise Refused("E_ORDER_SIGNATURE", f"the upload order for {key} names no part")
        return Place(size, sha256, part[2] if part else None, int(part[1]) if part else 0)

    def _install(self, incoming: Path, key: str, *, create_only: bool) -> None:
        store = self.server.store
        try:
            store.install(incoming, store.path(key), create_only=create_only)
        except Refused as error:
            raise Refused(error.code, error.message, status=412) from error

    # --- reading -------------------------------------------------------------------------------------

    def _get(self, connection: Connection, request: Request, key: str) -> None:
        filename = self.server.signer.check_read(key, request.query, int(self.server.clock()))
        with self.server.store.open(key) as stream:
            size = os.fstat(stream.fileno()).st_size
            window = _window(request.headers.get("range", ""), size, key)
            start, end = window or (0, size)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(end - start),
                "Accept-Ranges": "bytes",
                "Cache-Control": "private, no-store",
                "X-Content-Type-Options": "nosniff",
            }
            if window:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            if filename:
                headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
            body = request.method == "GET" and end > start
            connection.answer(206 if window else 200, headers, more=body)
            if body:
                connection.send_file(stream, start, end - start)


def _receive(connection: Connection, stream: Any, size: int, lasting: bool) -> str:
    """Write a body to ``stream``; returns its SHA-256."""
    connection.start_body(size)
    if size > ALONE_BYTES:
        return _receive_large(connection, stream, size, EARLY_BYTES if lasting else size)
    buffer, found, left = memoryview(bytearray(CHUNK_BYTES)), hashlib.sha256(), size
    while left:
        count = connection.read_into(buffer[: min(left, CHUNK_BYTES)])
        found.update(buffer[:count])
        stream.write(buffer[:count])
        left -= count
    return found.hexdigest()


def _receive_large(connection: Connection, stream: Any, size: int, early: int) -> str:
    """The same with a thread that hashes while the next bytes come: half the time where a core is idle."""
    buffer, other = memoryview(bytearray(CHUNK_BYTES)), memoryview(bytearray(CHUNK_BYTES))
    found, left, hashed = hashlib.sha256(), size, None
    with ThreadPoolExecutor(1, "hash") as pool, EarlySync(stream.fileno(), early) as disk:
        while left:
            count = connection.read_into(buffer[: min(left, CHUNK_BYTES)])
            if hashed is not None:
                hashed.result()  # of the other buffer, which is filled next
            hashed = pool.submit(found.update, buffer[:count])
            stream.write(buffer[:count])
            buffer, other, left = other, buffer, left - count
            disk.wrote(count)  # a full disk is told as if the write had met it
    return found.hexdigest()


def _window(text: str, size: int, key: str) -> tuple[int, int] | None:
    """First byte and end of a single range; None for the whole object, also for ranges of other kinds."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    if match[3]:
        start, end = max(0, size - int(match[3])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < int(match[1]):
            return None
    if start >= end:
        raise Refused("E_RANGE", f"{key} has {size} bytes, asked from {start}", f"bytes */{size}", status=416)
    return start, end


def serve(root: Path, host: str, port: int, secret: bytes, *, parent: int | None = None) -> None:
    """Answer until the process is told to stop, or until its parent is gone where ``parent`` names its id."""
    with BlobServer(root, host, port, secret) as server:
        if parent is not None:
            threading.Thread(target=_watch_parent, args=(parent, server), daemon=True).start()
        print(json.dumps({"listening": server.url}), flush=True)
        server.serve_forever()


def _watch_parent(parent: int, server: BlobServer) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    server.shutdown()


def main(arguments: list[str] | None = None) -> int:
    """Run the server from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="storage.blob_server", description="Serve a folder store by signed requests."
    )
    parser.add_argument("--root", type=Path, required=True, help="the store's folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument(
        "--secret-file", type=Path, help="file with the signing secret; default: .secret in the folder"
    )
    parser.add_argument("--parent-pid", type=int, help="stop when this process, our parent, is gone")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        secret = (
            options.secret_file.read_bytes().strip() if options.secret_file else store_secret(options.root)
        )
        with contextlib.suppress(KeyboardInterrupt):
            serve(options.root, options.host, options.port, secret, parent=options.parent_pid)
    except (OSError, Unchecked) as error:
        print(f"blob server on {options.host}:{options.port} for {options.root}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
