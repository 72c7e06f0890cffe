"""A hub whose disk has no byte left: it says so to everybody in their words, writes nothing by halves, and goes on."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from federation.home import Home
from federation.joining import post_status
from federation.wire import Problem
from hub.errors import no_room, status_of
from hub.services import catalogue
from storage.blobs_minio import MinioStore
from storage.errors import Unchecked
from tests.hubs import HubInProcess, running_hub
from tests.integration.test_federation_transfer import OddServer
from tests.small_disks import empty, fill, small_disk

LAB = "lab.example"
NEW = {"name": "m", "organization": LAB}


@dataclass(frozen=True)
class Full:
    """A hub on a disk that is full now."""

    hub: HubInProcess
    disk: Path
    lab: Home
    token: str


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Full]:
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, 4096), running_hub(tmp_path, data_dir=disk / "hub", open_pages=True) as hub:
        lab = hub.enrol(LAB)
        with hub.client(lab) as client:
            token = client.create_token("stock", ["read", "write"]).token
        fill(disk)
        yield Full(hub, disk, lab, token)


def test_a_command_is_told_that_the_hub_has_no_room_and_works_again_when_there_is(full: Full) -> None:
    with full.hub.client(full.lab) as client, full.hub.http() as http:
        with pytest.raises(Unchecked, match="E_HUB_FULL: the hub's database has no room"):
            client.whoami()
        assert http.get("/api/v1/hub").status_code == http.get("/").status_code == 200
        empty(full.disk)
        assert client.whoami().institution == LAB


def test_a_paper_that_the_hub_cannot_keep_is_not_in_its_log(full: Full) -> None:
    with full.hub.client(token=full.token) as client, full.hub.http(token=full.token) as http:
        before = list(client.all_statements())
        with pytest.raises(Unchecked, match="E_HUB_FULL") as caught:
            post_status(full.lab, client, next_update=int(time.time()) + 86_400)
        assert "operator" in caught.value.hint
        answer = http.post("/api/v1/uploads", json={"sha256": "a" * 64, "size": 1})
        told = Problem.model_validate_json(answer.content)
        assert (answer.status_code, told.code, told.owner) == (507, "E_HUB_FULL", "hub operator")
        assert "retry-after" not in answer.headers  # RFC 4918: not before somebody asks again
        assert list(client.all_statements()) == before
        empty(full.disk)
        post_status(full.lab, client, next_update=int(time.time()) + 86_400)
        assert [each.index for each in client.all_statements()] == list(range(len(before) + 1))


def test_a_stock_client_is_told_in_the_header_that_it_reads(full: Full) -> None:
    with full.hub.http(token=full.token) as http:
        told = http.post("/api/repos/create", json=NEW)
        assert (told.status_code, told.json()["code"]) == (507, "E_HUB_FULL")
        assert "no room" in told.headers["x-error-message"]
        assert http.get("/api/whoami-v2").json()["name"] == LAB  # who only reads, reads on
        empty(full.disk)
        assert (
            http.get("/api/models").json() == []
        )  # what the database has room for is not kept without the store
        assert http.post("/api/repos/create", json=NEW).status_code == 200


def test_a_file_for_which_there_is_no_room_leaves_nothing_and_is_told_on_a_page(
    full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = full.hub.hub.store
    with pytest.raises(OSError, match="No space left") as caught:
        store.put("a/b", bytes(5000))
    assert store.size("a/b") is None and not list(full.disk.rglob(".incoming/*"))

    def again(*_given: object, **_named: object) -> None:
        raise caught.value

    monkeypatch.setattr(catalogue, "find", again)
    with full.hub.http() as http:
        shown = http.get("/models")
        assert shown.status_code == 507 and shown.headers["content-type"].startswith("text/html")
        assert "has no room" in shown.text and "fedhub hub doctor" in shown.text


# --- what others than SQLite say ----------------------------------------------------------------------------


def test_what_postgresql_says_of_a_full_disk_is_told_so_and_nothing_else_is() -> None:
    full = OperationalError("INSERT", {}, psycopg.errors.DiskFull("could not extend file"))
    told = no_room(full)
    assert told is not None and (told.code, status_of(told)) == ("E_HUB_FULL", 507)
    assert "INSERT" not in str(told)
    assert no_room(OperationalError("INSERT", {}, psycopg.errors.AdminShutdown("stopped"))) is None
    assert no_room(PermissionError(13, "denied")) is None


@pytest.mark.parametrize("code", ["XMinioStorageFull", "InsufficientStorage"], ids=["MinIO", "Versity"])
def test_what_an_s3_server_says_of_a_full_disk_is_told_so(code: str) -> None:
    said = f"<Error><Code>{code}</Code><Message>no free drive</Message></Error>".encode()
    with OddServer(lambda path, asked, n: (507, {"Content-Type": "application/xml"}, said)) as server:
        store = MinioStore(server.url, server.url, "bucket", "access", "secret")
        with pytest.raises(Unchecked, match="E_HUB_FULL: the S3 store has no room for a/b"):
            store.put("a/b", b"x")
