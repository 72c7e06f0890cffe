"""Real servers for tests: an S3 server and PostgreSQL, in folders and on ports of their own, stopped at the end.

``python -m tests.servers COMMAND…`` starts every server that is installed, says which, and runs the command with
their addresses in ``FEDHUB_TEST_S3_URL``, ``FEDHUB_TEST_S3_ACCESS_KEY``, ``FEDHUB_TEST_S3_SECRET_KEY`` and
``FEDHUB_TEST_DATABASE_URL``. ``FEDHUB_TEST_S3_URL`` may hold several addresses, separated by spaces: the same tests
run on each. A variable that is set already is left alone. Each server is also a context manager here.

S3 servers looked for, on PATH and in Go's ``bin``: ``versitygw``
(``go install github.com/versity/versitygw/cmd/versitygw@v1.8.0``), ``minio``, ``silo``. PostgreSQL: on PATH or in
``/usr/lib/postgresql/*/bin``; as root it runs as the user ``postgres`` (or ``nobody``).
"""

import contextlib
import datetime
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

import storage.manifests
from federation.wire import UnhashedUpload, Upload, UploadOrder
from storage.blobs import BlobStore, FolderStore, Order, store_secret
from storage.errors import Refused, Rejected

START_S = 60.0
S3_PROGRAMS = ("versitygw", "minio", "silo")


@dataclass(frozen=True)
class S3Server:
    """A running S3 server."""

    url: str  # http://host:port
    access: str
    secret: str


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_program(name: str) -> Path | None:
    """The program on PATH, or where Go and Debian's PostgreSQL put theirs."""
    found = shutil.which(name)
    if found:
        return Path(found)
    go = os.environ.get("GOBIN") or Path(os.environ.get("GOPATH", Path.home() / "go")) / "bin"
    for folder in (Path(go), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)):
        if os.access(folder / name, os.X_OK):
            return folder / name
    return None


def _wait(process: subprocess.Popen[bytes], port: int, what: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{what} did not start on port {port}:\n{log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def _running(command: list[str], port: int, folder: Path, **options: object) -> Iterator[None]:
    """The command as a process that is stopped by its own id at the end."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, **options)  # type: ignore[call-overload]
    try:
        _wait(process, port, command[0], log)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def s3_server(
    program: str = "versitygw", *, access: str = "tester", secret: str | None = None
) -> Iterator[S3Server]:
    """An S3 server over an empty folder.

    Raises:
        FileNotFoundError: the program is not installed.
    """
    path = find_program(program)
    if path is None:
        raise FileNotFoundError(program)
    port, secret = free_port(), secret or secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix=f"{program}-") as name:
        folder = Path(name)
        (folder / "data").mkdir()
        if program == "versitygw":
            keys = {"ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret}
            arguments = [
                "--quiet",
                "--keep-alive",
                "--port",
                f"127.0.0.1:{port}",
                "posix",
                str(folder / "data"),
            ]
        else:
            keys = {"MINIO_ROOT_USER": access, "MINIO_ROOT_PASSWORD": secret, "MINIO_BROWSER": "off"}
            arguments = ["server", "--address", f"127.0.0.1:{port}", str(folder / "data")]
        with _running([str(path), *arguments], port, folder, env=os.environ | keys):
            yield S3Server(f"http://127.0.0.1:{port}", access, secret)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """An empty PostgreSQL database, as a SQLAlchemy URL for psycopg.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    initdb, server = find_program("initdb"), find_program("postgres")
    if initdb is None or server is None:
        raise FileNotFoundError("postgres")
    user, port, password = _unprivileged(), free_port(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        identity: dict[str, object] = {}
        if user is not None:
            for path in (folder, folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
            identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        subprocess.run(
            [
                str(initdb),
                "--pgdata",
                str(folder / "data"),
                "--username",
                "fedhub",
                "--auth",
                "scram-sha-256",
                "--pwfile",
                str(folder / "password"),
                "--encoding",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ],
            check=True,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            **identity,  # type: ignore[call-overload]
        )
        command = [
            str(server),
            "-D",
            str(folder / "data"),
            "-p",
            str(port),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"unix_socket_directories={folder}",
            "-c",
            "fsync=off",
            "-c",
            "max_connections=200",
        ]
        with _running(command, port, folder, **identity):
            yield f"postgresql+psycopg://fedhub:{password}@127.0.0.1:{port}/postgres"


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as, since it refuses root; None when we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL refuses to run as root, and there is neither user postgres nor nobody")


# --- stores -------------------------------------------------------------------------------------------------


class StoreMaker(Protocol):
    """Opens the store of one test with its clock moved by some seconds."""

    def __call__(self, moved_s: float = 0) -> BlobStore: ...


def store_names() -> list[object]:
    """``folder``, and every S3 address that ``FEDHUB_TEST_S3_URL`` names (``s3`` where it names none).

    Those on S3 bear the mark ``engines``.
    """
    servers = os.environ.get("FEDHUB_TEST_S3_URL", "").split() or ["s3"]
    return ["folder", *(pytest.param(server, marks=pytest.mark.engines) for server in servers)]


@contextlib.contextmanager
def running_store(name: str, folder: Path) -> Iterator[StoreMaker]:
    """The store of this name, empty: ``folder`` behind a blob server of its own, or a new bucket."""
    if name == "folder":
        with blob_server(folder / "store") as url:
            secret = store_secret(folder / "store")
            yield lambda moved_s=0: FolderStore(
                folder / "store", url, secret, clock=lambda: time.time() + moved_s
            )
        return
    if name == "s3":
        pytest.skip(
            "FEDHUB_TEST_S3_URL is not set: no S3 server to test on (python -m tests.servers starts one)"
        )
    from storage.blobs_minio import MinioStore

    access, secret_key = os.environ["FEDHUB_TEST_S3_ACCESS_KEY"], os.environ["FEDHUB_TEST_S3_SECRET_KEY"]
    bucket = f"test-{secrets.token_hex(8)}"

    def make(moved_s: float = 0) -> MinioStore:
        moved = datetime.timedelta(seconds=moved_s)
        clock = lambda: datetime.datetime.now(datetime.UTC) + moved  # noqa: E731
        return MinioStore(name, name, bucket, access, secret_key, clock=clock)

    store = make()
    store.check_bucket()
    yield make


@contextlib.contextmanager
def blob_server(root: Path, *arguments: str) -> Iterator[str]:
    """A blob server over this folder as a process of its own; yields its URL."""
    command = [sys.executable, "-m", "storage.blob_server", "--root", str(root), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["listening"])
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()  # type: ignore[union-attr]


class StoreHub:
    """As much of a hub as uploads need, straight over a store."""

    def __init__(self, store: BlobStore, key: str) -> None:
        self.store, self.key = store, key
        self.there = False
        self.one_stream = store.one_stream
        self.unhashed = False  # whether it takes files before their digests
        self.unhashed_parts: str | None = None
        self.unhashed_size = 0
        self.announced: tuple[str, int, list[str] | None] = ("", 0, None)  # at last
        self.parts: list[str] | None = None  # of upload "u"; upload "w" is that of the whole
        self.upload_id: str | None = None
        self.given: list[list[int]] = []
        self.checks = 2  # how often the hub still says "checking"
        self.spoil: Callable[[int, Order], Order] = lambda number, order: order

    def upload(
        self, sha256: str, size: int, *, parts: Sequence[str] | None = None, plan: str | None = None
    ) -> Upload:
        self.announced = (sha256, size, list(parts) if parts else None)
        if self.there:
            return Upload(id="u", state="stored")
        if parts:
            self.parts = list(parts)
            self.upload_id = self.upload_id or self.store.begin_parts(self.key)
        return self.upload_orders("u" if parts else "w")

    def upload_unhashed(self, size: int) -> UnhashedUpload | None:
        if not self.unhashed:
            return None
        order, self.unhashed_parts = self.store.unhashed_order(self.key, size)
        self.unhashed_size = size
        self.given.append([-1])
        return UnhashedUpload(id="n", order=self._wired(0, order))

    def unhashed_complete(self, upload_id: str, sha256: str) -> Upload:
        if not self.store.take_unhashed(self.key, self.unhashed_parts, sha256, self.unhashed_size):
            raise Rejected("E_DIGEST", "the store holds other bytes")
        return Upload(id=upload_id, state="stored")

    def _wired(self, number: int, order: Order) -> UploadOrder:
        order = self.spoil(number, order)
        return UploadOrder(
            part=number,
            method="PUT",
            url=order.url,
            headers=order.headers,
            expires=order.expires,
            trailer=order.trailer,
        )

    def upload_orders(self, upload_id: str, etags: Mapping[int, str] | None = None) -> Upload:
        sha256, size, _ = self.announced
        parts = self.parts if upload_id == "u" else None
        if self.store.size(self.key) is not None:
            self.checks -= 1
            return Upload(id=upload_id, state="checking" if self.checks > 0 and parts else "stored")
        if parts is None or self.upload_id is None:
            orders, done = {0: self.store.order(self.key, sha256, size, lasting=True)}, []
        else:
            done = sorted(self.store.stored_parts(self.key, self.upload_id))
            lengths = {
                n: min(storage.manifests.PART_BYTES, size - (n - 1) * storage.manifests.PART_BYTES)
                for n in range(1, len(parts) + 1)
            }
            orders = {
                n: self.store.part_order(self.key, self.upload_id, n, parts[n - 1], lengths[n])
                for n in lengths
                if n not in done
            }
        self.given.append(sorted(orders))
        wired = [self._wired(number, order) for number, order in orders.items()]
        return Upload(id=upload_id, state="open", one_stream=self.one_stream, orders=wired, done_parts=done)

    def upload_complete(self, upload_id: str, etags: Mapping[int, str] | None = None) -> Upload:
        parts = self.parts if upload_id == "u" else None
        if self.upload_id is not None and parts:
            self.store.complete_parts(
                self.key, self.upload_id, self.store.stored_parts(self.key, self.upload_id)
            )
        if self.store.size(self.key) is None:
            raise Refused("E_INCOMPLETE", "the store holds no bytes of it", status=409)
        return Upload(id=upload_id, state="checking" if parts else "stored")


# --- all of them --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def all_servers() -> Iterator[dict[str, str]]:
    """Every installed server, as environment variables; prints which run and which are missing."""
    with contextlib.ExitStack() as stack:
        found: dict[str, str] = {}
        if "FEDHUB_TEST_S3_URL" not in os.environ:
            urls, secret = [], secrets.token_hex(16)
            for program in S3_PROGRAMS:
                try:
                    server = stack.enter_context(s3_server(program, secret=secret))
                except FileNotFoundError:
                    print(f"tests.servers: {program}: not installed, tests on it are skipped", flush=True)
                    continue
                print(f"tests.servers: {program}: running at {server.url}", flush=True)
                urls.append(server.url)
                found |= {
                    "FEDHUB_TEST_S3_ACCESS_KEY": server.access,
                    "FEDHUB_TEST_S3_SECRET_KEY": server.secret,
                }
            if urls:
                found["FEDHUB_TEST_S3_URL"] = " ".join(urls)
        if "FEDHUB_TEST_DATABASE_URL" not in os.environ:
            try:
                found["FEDHUB_TEST_DATABASE_URL"] = stack.enter_context(postgres())
                print("tests.servers: postgres: running", flush=True)
            except FileNotFoundError:
                print("tests.servers: postgres: not installed, tests on it are skipped", flush=True)
        yield found


def main(command: list[str]) -> int:
    """Run the command beside all servers; returns its exit status."""
    with all_servers() as found:
        return subprocess.run(command, env=os.environ | found, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
