"""A backup is one folder: the database as of one moment, the hub's keys, SuperLink's certificates, a note.

It is written beside its final name and renamed when it is whole. Objects are not in it: a folder store is
copied, and a bucket mirrored, by their own means *after* the database, so that the store is never the older
of the two. The operator's signing keys are in it only when asked for: a backup goes to more places than
they should.

SQLite is copied by its own online backup, PostgreSQL by ``pg_dump``, both while the hub runs.

Read ``write_backup`` and ``place_backup``; ``services.restoring`` does the rest.
"""

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import URL, make_url

from hub import __version__
from hub.database import Database
from hub.settings import Settings
from storage.encoding import format_time, read_json
from storage.errors import Unchecked

FORM = "https://fedhub.dev/backup/v1"
NOTE, SQLITE, POSTGRESQL = "backup.json", "fedhub.db", "database.pgdump"
KEYS, CERTIFICATES, OPERATOR = "keys", "superlink-tls", "operator"
PG_TIMEOUT_S = 24 * 3600


def write_backup(
    settings: Settings, folder: Path, *, now: int, with_operator: bool = False
) -> dict[str, Any]:
    """Write a new backup to ``folder``; returns its note.

    Raises:
        Unchecked: ``E_TARGET`` (it exists), ``E_BACKUP`` (a part cannot be copied), ``E_WRITE``.
    """
    if folder.exists():
        raise Unchecked("E_TARGET", f"{folder} is there already", "name a new folder for each backup")
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of one that was cut
        part.mkdir(parents=True, mode=0o700)
        note = {
            "type": FORM,
            "made": format_time(now),
            "fedhub": __version__,
            "origin": settings.origin,
            **_copy_database(settings, part),
        }
        _copy_private(settings.data_dir / "keys", part / KEYS)
        _copy_private(settings.superlink_dir / "tls", part / CERTIFICATES)
        if with_operator:
            _copy_private(settings.operator_folder, part / OPERATOR)
        (part / NOTE).write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")
        _sync(part)
        part.rename(folder)
    except OSError as error:
        raise Unchecked("E_WRITE", f"{error.filename or folder}: {error.strerror}", "make room") from error
    return note


def place_backup(settings: Settings, folder: Path, *, replace: bool = False) -> dict[str, Any]:
    """Put the parts of a backup where the settings say; the hub must not run. Returns the backup's note.

    A repeat after a crash does it all again.

    Args:
        replace: put the database there even if one is there.
    Raises:
        Unchecked: ``E_BACKUP`` (not one, or of another hub or engine), ``E_TARGET`` (a database is there).
    """
    note = read_note(folder)
    kind = "sqlite" if settings.database.startswith("sqlite") else "postgresql"
    if note["origin"] != settings.origin:
        raise Unchecked(
            "E_BACKUP", f"{folder} is of {note['origin']}, not of {settings.origin}", "set FEDHUB_ORIGIN"
        )
    if note["database"] != kind:
        raise Unchecked(
            "E_BACKUP",
            f"{folder} holds a {note['database']} database",
            "set FEDHUB_DATABASE_URL to such a one",
        )
    _place_keys(folder / KEYS, settings.data_dir / "keys")
    _place_missing(folder / CERTIFICATES, settings.superlink_dir / "tls")
    _place_missing(folder / OPERATOR, settings.operator_folder)
    if not replace and _holds_rows(settings):
        raise Unchecked(
            "E_TARGET",
            "the database of these settings holds a hub already",
            "add --replace to put the backup in its place, or leave DIR out to bring it up to the log",
        )
    if kind == "sqlite":
        _place_sqlite(settings, folder / SQLITE)
    else:
        _pg(
            settings,
            "pg_restore",
            *("--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction"),
            *(f"--schema={note['schema']}", f"--dbname={make_url(settings.database).database}"),
            str(folder / POSTGRESQL),
        )
    return note


def read_note(folder: Path) -> dict[str, Any]:
    """What a backup says of itself."""
    try:
        note = read_json((folder / NOTE).read_bytes(), code="E_BACKUP")
    except OSError as error:
        raise Unchecked(
            "E_BACKUP", f"{folder} is no backup: {error.strerror}", "see: fedhub hub backup"
        ) from error
    if not isinstance(note, dict) or note.get("type") != FORM:
        raise Unchecked("E_BACKUP", f"{folder} is a backup of another form", "use the version that wrote it")
    return note


# --- database -----------------------------------------------------------------------------------------------


def _copy_database(settings: Settings, folder: Path) -> dict[str, Any]:
    database = Database(settings.database, busy_s=settings.database_busy_s, pool=2)
    try:
        revision = database.revisions()[0]
        if revision is None:
            raise Unchecked("E_NO_HUB", "the database has no tables", "start the hub once: fedhub hub up")
        said: dict[str, Any] = {"database": "sqlite" if database.is_sqlite else "postgresql"}
        said |= {"revision": revision, "entries": _rows(database)}
        if database.is_sqlite:
            assert database.path is not None
            _copy_sqlite(database.path, folder / SQLITE)
        else:
            with database.engine.connect() as connection:
                said["schema"] = str(connection.execute(text("SELECT current_schema()")).scalar())
            name = str(make_url(settings.database).database)
            file = f"--file={folder / POSTGRESQL}"
            _pg(settings, "pg_dump", "--format=custom", f"--schema={said['schema']}", file, name)
        return said
    finally:
        database.close()


def _rows(database: Database) -> int:
    """Entries at least in the copy that begins now: appending goes on meanwhile."""
    with database.engine.connect() as connection:
        return int(str(connection.execute(text("SELECT next_index FROM log_sequence")).scalar()))


def _copy_sqlite(source: Path, target: Path) -> None:
    try:
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)
            said = new.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise Unchecked(
            "E_BACKUP", f"{source} cannot be copied: {error}", "see: fedhub hub doctor"
        ) from error
    target.chmod(0o600)
    if said != "ok":
        raise Unchecked("E_BACKUP", f"{source} is damaged: {said}", "restore an older backup")


def _place_sqlite(settings: Settings, source: Path) -> None:
    target = Path(str(make_url(settings.database).database))
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.restored")
    shutil.copyfile(source, fresh)
    _sync(fresh)
    for ending in ("-wal", "-shm"):  # of the database that goes: they would be taken for the new one's
        target.with_name(target.name + ending).unlink(missing_ok=True)
    fresh.replace(target)
    _sync(target.parent)


def _holds_rows(settings: Settings) -> bool:
    if (
        settings.database.startswith("sqlite")
        and not Path(str(make_url(settings.database).database)).exists()
    ):
        return False
    database = Database(settings.database, busy_s=settings.database_busy_s, pool=2)
    try:
        return database.revisions()[0] is not None
    finally:
        database.close()


def _pg(settings: Settings, program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs on the settings' database; the password goes by the environment."""
    path = find_program(program)
    if path is None:
        raise Unchecked(
            "E_BACKUP",
            f"{program} is not installed here",
            f"install PostgreSQL's client programs of the server's version; {program} does this part",
        )
    environment = {**os.environ, **_pg_environment(make_url(settings.database))}
    done = subprocess.run(
        [str(path), "--no-password", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PG_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Unchecked(
            "E_BACKUP", f"{program} failed: {last}", "its version must not be older than the server's"
        )


def find_program(name: str) -> Path | None:
    """The program on PATH, else where Debian puts PostgreSQL's, the newest."""
    found = shutil.which(name)
    if found:
        return Path(found)
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    return places[-1] if places else None


def _pg_environment(url: URL) -> Mapping[str, str]:
    given = {
        "PGHOST": url.host,
        "PGPORT": None if url.port is None else str(url.port),
        "PGUSER": url.username,
        "PGPASSWORD": None if url.password is None else str(url.password),
    }
    return {name: value for name, value in given.items() if value is not None}


# --- files --------------------------------------------------------------------------------------------------


def _copy_private(source: Path, target: Path) -> None:
    """Copy a folder of secrets: files 0600, folders 0700, whatever they were."""
    if not source.is_dir():
        return
    target.mkdir(mode=0o700)
    for path in sorted(source.iterdir()):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            continue
        if path.is_dir():
            _copy_private(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
            (target / path.name).chmod(0o600)


def _place_keys(source: Path, target: Path) -> None:
    """The hub's keys; a log key that is there must be the same."""
    log = target / "log.key"
    if log.exists() and log.read_bytes() != (source / "log.key").read_bytes():
        raise Unchecked(
            "E_BACKUP",
            f"{log} is another log's key than the backup's",
            "set FEDHUB_DATA_DIR to an empty folder",
        )
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in sorted(source.iterdir()):
        if not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
            (target / path.name).chmod(0o600)


def _place_missing(source: Path, target: Path) -> None:
    """A folder of the backup, where nothing stands in its place; whole or not at all."""
    if not source.is_dir() or target.exists():
        return
    fresh = target.with_name(f".{target.name}.restored")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    _copy_private(source, fresh)
    fresh.rename(target)


def _sync(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk."""
    for one in (*(path.rglob("*") if path.is_dir() else ()), path):
        handle = os.open(one, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
