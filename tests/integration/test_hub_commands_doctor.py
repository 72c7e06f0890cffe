"""``fedhub hub doctor`` names what is wrong with each part, and what to do."""

import contextlib
import errno
import io
import json
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.cli import dispatch
from hub.serve import settle_ports
from hub.settings import load_settings
from hub.terminal import Terminal
from storage.blobs import FolderStore
from storage.errors import Exit
from tests.databases import DATABASES, database_url
from tests.hubs import running_hub
from tests.servers import free_port

PORTS = ("port", "download_port", "blob_port", "fleet_port", "control_port")


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database_url(request.param, tmp_path) as address:
        yield address


@pytest.fixture
def founded(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a hub with two log entries that is not running; the environment names its settings."""
    settled = settle_ports(load_settings(**dict.fromkeys(PORTS, 0)))
    for name in PORTS:
        monkeypatch.setenv(f"FEDHUB_{name.upper()}", str(getattr(settled, name)))
    monkeypatch.setenv("FEDHUB_DATABASE_URL", url)
    monkeypatch.setenv("FEDHUB_DATA_DIR", str(tmp_path / "hub"))
    monkeypatch.setenv("FEDHUB_OPERATOR_HOME", str(tmp_path / "homes" / "operator"))
    with running_hub(tmp_path, database_url=url) as hub:
        hub.enrol("lab-a.example")
        hub.hub.ledger.publish()
    return tmp_path


def doctor() -> tuple[Exit, dict[str, dict[str, Any]]]:
    terminal = Terminal(None, json=True, out=io.StringIO(), err=io.StringIO())
    code = dispatch(["hub", "doctor"], terminal)
    assert terminal.answer, terminal.problem
    return code, {each["what"]: each for each in terminal.answer["findings"]}


def broken(findings: dict[str, dict[str, Any]]) -> set[str]:
    bad = [each for each in findings.values() if not each["ok"]]
    assert all(each["todo"] for each in bad), bad
    return {each["what"] for each in bad}


def test_a_healthy_hub_has_nothing_to_mend(founded: Path) -> None:
    code, findings = doctor()
    assert broken(findings) == set() and code is Exit.DONE
    assert findings["log"]["seen"] == "2 entries, 2 of them published"
    assert findings["ports"]["seen"].startswith("free")
    assert "clock beside the object store's" in findings
    left = [
        path.name
        for path in (founded / "hub" / "store").rglob("*")
        if path.is_file() and "probe" in str(path)
    ]
    assert left == ["passed.json"]


@pytest.mark.parametrize(("store", "told"), [("s3.hub.example", True), ("s3.example", False)])
def test_store_to_which_some_clients_would_send_their_token_is_told(
    founded: Path, monkeypatch: pytest.MonkeyPatch, store: str, told: bool
) -> None:
    monkeypatch.setenv("FEDHUB_PUBLIC_URL", "https://hub.example")
    monkeypatch.setenv("FEDHUB_STORE_PUBLIC_URL", f"https://{store}")
    _, findings = doctor()
    assert ("send their token on" in findings["object store's public address"]["seen"]) is told


def test_doctor_before_the_first_start_founds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in PORTS:
        monkeypatch.setenv(f"FEDHUB_{name.upper()}", str(free_port()))
    code, findings = doctor()
    assert (code, broken(findings)) == (Exit.DONE, set())
    assert list(tmp_path.rglob("*")) == []


def test_database_that_is_older_than_the_log_is_told(founded: Path, url: str) -> None:
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(founded / "fedhub.db")) as database, database:
            database.execute("UPDATE log_head SET size = 1")
            database.execute("UPDATE log_sequence SET next_index = 1")
    else:
        from sqlalchemy import create_engine, text

        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("UPDATE log_head SET size = 1"))
            connection.execute(text("UPDATE log_sequence SET next_index = 1"))
        engine.dispose()
    code, findings = doctor()
    assert broken(findings) == {"log"} and code is Exit.REFUSED
    assert "E_LOG_FORK" in findings["log"]["seen"]


def test_taken_port_is_told_by_its_setting(founded: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", load_settings().download_port))
        taken.listen()
        _code, findings = doctor()
    assert broken(findings) == {"ports"} and "FEDHUB_DOWNLOAD_PORT" in findings["ports"]["seen"]


def test_key_that_others_can_read_is_told(founded: Path) -> None:
    (founded / "hub" / "keys" / "token.secret").chmod(0o644)
    _code, findings = doctor()
    assert "keys" in broken(findings) and "chmod 600" in findings["keys"]["todo"]


def test_full_disk_is_told(founded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(founded)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1 << 20))
    _code, findings = doctor()
    assert {"disk of the data folder", "disk of the object store"} <= broken(findings)


def test_store_that_fills_up_while_it_is_looked_at_is_told(
    founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = FolderStore.put

    def full(store: FolderStore, key: str, data: bytes, **options: bool) -> None:
        if key.endswith("/clock"):
            raise OSError(errno.ENOSPC, "No space left on device")
        put(store, key, data, **options)

    monkeypatch.setattr(FolderStore, "put", full)
    _code, findings = doctor()
    assert broken(findings) == {"clock beside the object store's"}
    assert "No space left" in findings["clock beside the object store's"]["seen"]


def test_database_that_is_away_is_told_and_its_password_is_not(
    founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDHUB_DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:1/x")
    _code, findings = doctor()
    assert broken(findings) == {"database"} and "hunter2" not in json.dumps(findings)
    assert "refused" in findings["database"]["seen"]  # what the driver says, not the name of its error


def test_damaged_database_file_is_told(founded: Path, url: str) -> None:
    if not url.startswith("sqlite"):
        pytest.skip("PostgreSQL looks after its own files")
    path = founded / "fedhub.db"
    raw = bytearray(path.read_bytes())
    raw[-3 * 4096 :] = bytes(3 * 4096)
    path.write_bytes(raw)
    _code, findings = doctor()
    assert broken(findings) & {"database", "database file"}


def test_store_that_is_away_is_told(founded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHUB_STORE_URL", f"s3+http://127.0.0.1:{free_port()}/bucket")
    monkeypatch.setenv("FEDHUB_STORE_ACCESS_KEY", "a")
    monkeypatch.setenv("FEDHUB_STORE_SECRET_KEY", "hunter2")
    _code, findings = doctor()
    assert broken(findings) == {"object store"} and "hunter2" not in json.dumps(findings)


def test_store_that_breaks_a_promise_is_told_with_the_promise_and_what_to_do(
    founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FolderStore.put

    def overwrite(self: FolderStore, key: str, data: bytes, *, create_only: bool = False) -> None:
        original(self, key, data)

    monkeypatch.setattr(FolderStore, "put", overwrite)
    code, findings = doctor()
    promise = "object store: a key is written once where the hub says so"
    assert (code, broken(findings)) == (Exit.REFUSED, {promise})
    assert findings[promise]["seen"] == "overwritten" and "If-None-Match" in findings[promise]["todo"]


@pytest.mark.parametrize("apart", [-90, 90])
def test_clocks_that_run_apart_are_told_with_by_how_much(
    founded: Path, url: str, monkeypatch: pytest.MonkeyPatch, apart: int
) -> None:
    now = time.time
    monkeypatch.setattr(FolderStore, "written_at", lambda self, key: now() - apart)
    _code, findings = doctor()
    what = "clock beside the object store's"
    assert broken(findings) == {what}
    assert findings[what]["seen"] in (f"{apart:+d} s apart", f"{apart + 1:+d} s apart")
    assert "NTP" in findings[what]["todo"]
    assert ("clock beside the database's" in findings) is not url.startswith("sqlite")
