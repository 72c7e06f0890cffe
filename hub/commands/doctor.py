"""``fedhub hub doctor``: what a hub stands on, part by part; what is wrong, and what to do about it.

It only looks: nothing is founded, migrated or repaired. The object store is tried out with small objects,
which are removed again.
"""

import hashlib
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.terminal import Terminal
from storage.errors import Exit, FedhubError, Unchecked

if TYPE_CHECKING:
    from sqlmodel import Session

    from hub.database import Database
    from hub.keys import HubKeys
    from hub.settings import Settings
    from storage.blobs import BlobStore

LOW_DISK_BYTES = 1 << 30
ROOM = "make room where the store lies, and see that this user may write there"
CLOCK_S = 60  # statements are taken within 10 minutes, S3 requests within 15: a minute is a warning in time
PACKAGES = ("cryptography", "fastapi", "flwr", "sqlmodel", "minio", "uvicorn")
Found = dict[str, Any]


def diagnose(terminal: Terminal, settings: "Settings") -> Exit:
    """Look at every part and answer."""
    findings = [*_parts(), *_disk(settings)]
    keys = _keys(settings, findings)
    running = is_running(settings)
    findings += _ports(settings, running)
    store = _store(settings, keys, findings, running=running)
    findings += _database(settings, keys, store)
    broken = [each for each in findings if not each["ok"]]
    lines = []
    for each in findings:
        lines.append(f"{'ok    ' if each['ok'] else 'BROKEN'}  {each['what']}: {each['seen']}")
        if each["todo"]:
            lines.append(f"        -> {each['todo']}")
    return terminal.done(
        {"ok": not broken, "findings": findings},
        *lines,
        "All is well." if not broken else f"{len(broken)} of {len(findings)} checks failed.",
        exit_code=Exit.REFUSED if broken else Exit.DONE,
    )


def _found(what: str, ok: bool, seen: str, todo: str = "") -> Found:
    return {"what": what, "ok": ok, "seen": seen, "todo": "" if ok else todo}


def _failed(what: str, error: FedhubError) -> Found:
    return _found(what, False, f"{error.code}: {error.message}", error.hint)


# --- program, disk, keys, ports -----------------------------------------------------------------------------


def _parts() -> list[Found]:
    from importlib.metadata import PackageNotFoundError, version

    python = sys.version.split()[0]
    findings = [_found("Python", sys.version_info >= (3, 11), python, "install Python 3.11 or newer")]
    for name in PACKAGES:
        try:
            findings.append(_found(name, True, version(name)))
        except PackageNotFoundError:
            findings.append(_found(name, False, "not installed", "pip install 'fedhub[hub]'"))
    return findings


def _disk(settings: "Settings") -> Iterator[Found]:
    from sqlalchemy.engine import make_url

    from storage.stores import folder_of

    folders = {"data folder": settings.data_dir}
    url = make_url(settings.database)
    if url.drivername.startswith("sqlite") and url.database:
        folders["database"] = Path(url.database).parent
    store = folder_of(settings.store)
    if store is not None:
        folders["object store"] = store
    for what, folder in folders.items():
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        todo = f"make room, or move the {what}: uploads and statements fail when the disk is full"
        yield _found(
            f"disk of the {what}", free >= LOW_DISK_BYTES, f"{free >> 20:,} MiB free at {there}", todo
        )


def _keys(settings: "Settings", findings: list[Found]) -> "HubKeys | None":
    """The keys of a hub that has been founded; what is wrong with them or the operator's home is noted."""
    from federation.home import Home
    from hub.keys import keys_of

    folder = settings.data_dir / "keys"
    if not (folder / "log.key").exists():
        findings.append(_found("keys", True, f"none in {folder}; made at the first start"))
        return None
    try:
        keys = keys_of(settings)
    except FedhubError as error:
        findings.append(_failed("keys", error))
        return None
    findings.append(_found("keys", True, f"of log {keys.log.name}, readable by their owner alone"))
    home = settings.operator_folder
    if not (home / "home.json").exists():
        todo = "set FEDHUB_OPERATOR_HOME to the folder with its keys, or bring it back from a backup"
        findings.append(_found("operator's home", False, f"nothing at {home}", todo))
        return keys
    try:
        findings.append(_found("operator's home", True, f"{Home.open(home).institution} at {home}"))
    except FedhubError as error:
        findings.append(_failed("operator's home", error))
    return keys


def is_running(settings: "Settings") -> bool:
    """Whether a hub answers at our port."""
    import http.client
    import json

    host = "127.0.0.1" if settings.listen in ("0.0.0.0", "::") else settings.listen  # noqa: S104 - compared
    connection = http.client.HTTPConnection(host, settings.port, timeout=3)
    try:
        connection.request("GET", "/healthz")
        answer = json.loads(connection.getresponse().read(1 << 16))
        return isinstance(answer, dict) and answer.get("status") == "ok"
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _ports(settings: "Settings", running: bool) -> Iterator[Found]:
    from hub.serve import bind, check_free

    if running:
        yield _found("ports", True, f"a hub is running on port {settings.port}")
        return
    own = [(settings.port, "FEDHUB_PORT"), (settings.download_port, "FEDHUB_DOWNLOAD_PORT")]
    tries: list[Callable[[], None]] = [
        *(lambda port=port, name=name: bind(settings.listen, port, name).close() for port, name in own),
        lambda: check_free(settings),
    ]
    good = True
    for attempt in tries:
        try:
            attempt()
        except Unchecked as error:
            good = False
            yield _failed("ports", error)
    if good:
        yield _found("ports", True, f"free on {settings.listen}")


# --- object store -------------------------------------------------------------------------------------------


def _store(
    settings: "Settings", keys: "HubKeys | None", findings: list[Found], *, running: bool
) -> "BlobStore | None":
    """The store, if it can be opened; the promises it was tried with are noted."""
    from hub.services.store_check import WHAT_TO_DO, check_store
    from storage.stores import folder_of

    folder = folder_of(settings.store)
    if keys is None and folder is not None:
        findings.append(_found("object store", True, f"folder {folder}, made at the first start"))
        return None
    try:
        with _served(settings, keys, folder, running=running) as address:
            store = _open(settings, keys, address)
            for each in check_store(store, settings.store, int(time.time())):
                ok = each.kept or not each.vital
                seen = each.seen if each.kept or each.vital else f"{each.seen} (slower, not unsafe)"
                findings.append(_found(f"object store: {each.promise}", ok, seen, WHAT_TO_DO[each.promise]))
    except FedhubError as error:
        findings.append(_failed("object store", error))
        return None
    findings.append(_public_address(settings))
    return store


def _open(settings: "Settings", keys: "HubKeys | None", address: str | None) -> "BlobStore":
    from storage.stores import open_store

    access, secret = settings.store_access_key, settings.store_secret_key
    return open_store(
        settings.store,
        address,
        access=None if access is None else access.get_secret_value(),
        secret=secret.get_secret_value() if secret is not None else keys.blob_secret if keys else None,
        make=keys is None,  # as the first start would
    )


@contextmanager
def _served(
    settings: "Settings", keys: "HubKeys | None", folder: Path | None, *, running: bool
) -> Iterator[str | None]:
    """Where a folder answers, by a server of its own while no hub runs; None for other stores."""
    from hub.api.app import store_secret_of
    from storage.blob_server import BlobServer

    if folder is None or keys is None:
        yield None
    elif running:
        yield settings.model_copy(update={"store_public_url": None}).store_public
    else:
        with BlobServer(folder, "127.0.0.1", 0, store_secret_of(settings, keys).encode()) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield server.url
            server.shutdown()
            thread.join()


def _public_address(settings: "Settings") -> Found:
    """Whether clients' address of the store can be resolved and reached from here; often it need not."""
    from urllib.parse import urlsplit

    address = urlsplit(settings.store_public)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=3):
            seen = f"{settings.store_public} answers"
    except OSError as error:
        reason = error.strerror or type(error).__name__
        seen = f"{settings.store_public} cannot be reached from here ({reason}); clients must"
    own = urlsplit(settings.public).hostname or ""
    if f".{address.hostname}".endswith(f".{own}"):
        # net/http compares host names alone, and counts those below as the same.
        seen += f"; it is {own} or below: OCI clients in Go send their token on, which S3 servers refuse"
    return _found("object store's public address", True, seen)


# --- database, log, clock -----------------------------------------------------------------------------------


def _database(settings: "Settings", keys: "HubKeys | None", store: "BlobStore | None") -> Iterator[Found]:
    from sqlalchemy.exc import DBAPIError

    from hub.database import MEND, Database, reason

    kind, url = settings.database.partition(":")[0], settings.database
    if kind.startswith("sqlite") and not Path(url.removeprefix("sqlite:///")).exists():
        yield _found("database", True, "SQLite, made at the first start")
        return
    try:
        database = Database(url, busy_s=settings.database_busy_s, pool=2)
    except FedhubError as error:
        yield _failed("database", error)
        return
    try:
        yield from _tables(database, kind)
        with database.session_scope(write=False) as session:
            yield from _clocks(session, database, store)
            if keys is not None and store is not None:
                yield _log(session, keys, store)
    except DBAPIError as error:
        yield _found("database", False, f"{kind} does not answer: {reason(error)}", MEND)
    except OSError as error:
        yield _found("clock beside the object store's", False, f"cannot be asked: {error.strerror}", ROOM)
    finally:
        database.close()


def _tables(database: "Database", kind: str) -> Iterator[Found]:
    from sqlalchemy import text

    from hub.database import NEWER

    known, newest = database.revisions()
    if known is None:
        yield _found("database", True, f"{kind} without tables; they are made at the first start")
    elif known == newest:
        yield _found("database", True, f"{kind}, tables of revision {known}")
    else:
        seen = f"{kind} has tables of revision {known}, this program wants {newest}"
        if database.knows(known):
            yield _found("database", True, f"{seen}; the next start brings them up to date")
        else:
            yield _found("database", False, seen, NEWER)
    if database.is_sqlite:
        with database.session_scope(write=False) as session:
            said = str(session.connection().execute(text("PRAGMA quick_check(1)")).scalar())
        todo = "stop the hub and bring the database back: fedhub hub restore"
        yield _found("database file", said == "ok", said, todo)


def _clocks(session: "Session", database: "Database", store: "BlobStore | None") -> Iterator[Found]:
    """This machine's clock beside every other one at hand."""
    from sqlalchemy import text

    others: dict[str, float] = {}
    if not database.is_sqlite:
        answer = session.connection().execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar()
        others["database"] = float(str(answer))
    if store is not None:
        name = hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:16]
        key = f"probe/{name}/clock"
        store.put(key, b"now")
        written = store.written_at(key)
        store.delete(key)
        if written is not None:
            others["object store"] = written
    for what, other in others.items():
        apart = time.time() - other
        todo = "set both clocks by NTP: statements more than 10 minutes off are refused"
        yield _found(f"clock beside the {what}'s", abs(apart) <= CLOCK_S, f"{apart:+.0f} s apart", todo)


def _log(session: "Session", keys: "HubKeys", store: "BlobStore") -> Found:
    """Whether the published log is one that these rows lead to: what a start checks, without its repair."""
    from sqlalchemy import inspect
    from sqlmodel import col, select

    from hub.tables import LogHeadRow, LogSequenceRow, StatementRow
    from storage.checkpoint import parse_checkpoint
    from storage.translog import check_start

    if not inspect(session.connection()).has_table("log_head"):
        return _found("log", True, "none yet")
    row, size = session.exec(select(LogHeadRow)).one(), session.exec(select(LogSequenceRow.next_index)).one()

    def leaves(start: int, stop: int) -> Sequence[bytes]:
        index = col(StatementRow.log_index)
        return session.exec(
            select(StatementRow.leaf).where(index >= start, index < stop).order_by(index)
        ).all()

    try:
        head = parse_checkpoint(row.note.encode()) if row.size else None
        check_start(store, keys.log.public, leaves, head, size)
    except FedhubError as error:
        return _failed("log", error)
    return _found("log", True, f"{size} entries, {row.size} of them published")
