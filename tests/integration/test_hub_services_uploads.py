"""Bytes on their way in: orders, what counts as stored, and who may know that a blob is there."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlmodel import select

from federation.client import HubClient
from federation.sending import send_file
from federation.stock_names import LARGEST_BYTES
from federation.wire import Upload
from hub.background import Housekeeper
from hub.services import uploads_waiting
from hub.tables import BlobRow, UploadRow
from storage.blobs import ORDER_BYTES, FolderStore
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.manifests import PART_BYTES, hash_file
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, digest, open_alliance, weights


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("uploads"), request.param, superlink="external") as opened:
        yield opened


@pytest.fixture
def owner(alliance: AllianceInProcess) -> Iterator[HubClient]:
    with alliance.as_(OWNER) as client:
        yield client


def blob(alliance: AllianceInProcess, sha256: str) -> BlobRow | None:
    with alliance.hub.database.session_scope(write=False) as session:
        return session.get(BlobRow, sha256)


def rows(alliance: AllianceInProcess, sha256: str) -> list[UploadRow]:
    with alliance.hub.database.session_scope(write=False) as session:
        return list(session.exec(select(UploadRow).where(UploadRow.sha256 == sha256)))


def put(url: str, headers: dict[str, str], data: bytes) -> int:
    return httpx.put(url, headers=headers, content=data, trust_env=False).status_code


def refused(code: str, call: object, *arguments: object, **options: object) -> FedhubError:
    with pytest.raises(FedhubError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    assert caught.value.code == code, caught.value
    return caught.value


def test_sent_file_is_a_blob_that_the_store_checked(alliance: AllianceInProcess, owner: HubClient) -> None:
    data = os.urandom(1000)
    assert alliance.send(owner, data).state == "stored"
    found = blob(alliance, digest(data))
    assert found is not None and (found.checked_by, found.size) == ("store", 1000)
    assert alliance.store.get(found.key) == data
    assert found.key.startswith(f"blobs/sha256/{digest(data)[:2]}/{digest(data)}.")


def test_other_bytes_than_announced_do_not_fit_the_order(
    owner: HubClient, alliance: AllianceInProcess
) -> None:
    data = os.urandom(100)
    upload = owner.upload(digest(data), 100)
    order = upload.orders[0]
    assert (order.part, upload.state) == (0, "open")
    assert put(order.url, order.headers, bytes(100)) in (400, 403)
    assert refused("E_INCOMPLETE", owner.upload_complete, upload.id).hint
    assert put(order.url, order.headers, data) == 200
    assert owner.upload_complete(upload.id).state == "stored"
    assert owner.upload_complete(upload.id).state == "stored"


def test_second_upload_of_the_same_bytes_leaves_one_object(alliance: AllianceInProcess) -> None:
    data = os.urandom(300)
    for name in (OWNER, LABS[0]):
        with alliance.as_(name) as client:
            assert alliance.send(client, data).state == "stored"
    assert len(list(alliance.store.list(f"blobs/sha256/{digest(data)[:2]}/{digest(data)}"))) == 1
    assert len(rows(alliance, digest(data))) == 2


def test_blob_of_another_is_announced_as_if_it_were_new(
    alliance: AllianceInProcess, owner: HubClient
) -> None:
    data = os.urandom(300)
    alliance.send(owner, data)
    assert owner.upload(digest(data), 300).state == "stored"
    with alliance.as_(FIRM) as firm:
        assert firm.upload(digest(data), 300).state == "open"


def test_file_of_a_public_version_need_not_be_sent_again(alliance: AllianceInProcess) -> None:
    data = weights(4, 5)
    alliance.push({"model.safetensors": data}, f"{OWNER}/open")
    with alliance.as_(FIRM) as firm, alliance.as_(OWNER) as owner:
        assert firm.upload(digest(data), len(data)).state == "open"
        assert owner.set_visibility(f"{OWNER}/open", "public").visibility == "public"
        assert firm.upload(digest(data), len(data)).state == "stored"


def test_upload_of_another_institution_is_unknown(alliance: AllianceInProcess, owner: HubClient) -> None:
    upload = owner.upload(digest(b"mine"), 4)
    with alliance.as_(LABS[0]) as lab:
        refused("E_NOT_FOUND", lab.upload_orders, upload.id)
        refused("E_NOT_FOUND", lab.upload_complete, upload.id)


def test_announcing_again_goes_on_with_the_same_upload(owner: HubClient) -> None:
    first, again = owner.upload(digest(b"slow"), 4), owner.upload(digest(b"slow"), 4)
    assert (again.id, len(again.orders)) == (first.id, 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.bin"
    with path.open("wb") as file:
        for number in range(2):
            file.write(bytes([number]) * PART_BYTES)
        file.write(b"tail")
    return path


def test_file_of_parts_is_stored_once_the_hub_has_read_the_whole(
    alliance: AllianceInProcess, owner: HubClient, large: Path
) -> None:
    sha256, size, parts = hash_file(large)
    upload = owner.upload(sha256, size, parts=parts)
    assert [order.part for order in upload.orders] == [1, 2, 3]
    body = large.read_bytes()
    for order in upload.orders[:2]:
        start = (order.part - 1) * PART_BYTES
        assert put(order.url, order.headers, body[start : start + PART_BYTES]) == 200
    resumed = owner.upload(sha256, size, parts=parts)
    assert (resumed.id, resumed.done_parts) == (upload.id, [1, 2])
    assert [order.part for order in resumed.orders] == [3]
    assert "parts 3 " in refused("E_INCOMPLETE", owner.upload_complete, upload.id).message
    assert put(resumed.orders[0].url, resumed.orders[0].headers, b"tail") == 200
    assert owner.upload_complete(upload.id).state == "checking"
    assert blob(alliance, sha256) is None
    assert uploads_waiting.check_waiting(alliance.hub) == 1
    found = blob(alliance, sha256)
    assert found is not None and found.checked_by == "hub" and found.parts == list(parts or ())
    assert owner.upload_complete(upload.id).state == "stored"


def test_parts_of_another_whole_are_refused_and_dropped(
    alliance: AllianceInProcess, owner: HubClient, large: Path
) -> None:
    _sha256, size, parts = hash_file(large)
    claimed = digest(b"something else")
    upload = owner.upload(claimed, size, parts=parts)
    body = large.read_bytes()
    for order in upload.orders:
        start = (order.part - 1) * PART_BYTES
        assert put(order.url, order.headers, body[start : start + PART_BYTES]) == 200
    owner.upload_complete(upload.id)
    Housekeeper(alliance.hub).look()
    error = refused("E_DIGEST", owner.upload_complete, upload.id)
    assert isinstance(error, Rejected) and claimed in error.message
    assert blob(alliance, claimed) is None
    assert not list(alliance.store.list(f"blobs/sha256/{claimed[:2]}/{claimed}"))


@pytest.mark.parametrize("asked", ["complete", "orders", "announce"])
def test_crash_between_joining_the_parts_and_noting_it_is_made_good(
    alliance: AllianceInProcess, owner: HubClient, large: Path, asked: str
) -> None:
    _sha256, size, parts = hash_file(large)
    claimed = digest(f"joined, then {asked}".encode())
    upload = owner.upload(claimed, size, parts=parts)
    body = large.read_bytes()
    for order in upload.orders:
        start = (order.part - 1) * PART_BYTES
        assert put(order.url, order.headers, body[start : start + PART_BYTES]) == 200
    row = rows(alliance, claimed)[0]
    assert row.multipart is not None
    alliance.store.complete_parts(row.key, row.multipart, alliance.store.stored_parts(row.key, row.multipart))
    again = {
        "complete": lambda: owner.upload_complete(upload.id),
        "orders": lambda: owner.upload_orders(upload.id),
        "announce": lambda: owner.upload(claimed, size, parts=parts),
    }[asked]()
    assert (again.id, again.state) == (upload.id, "checking")
    uploads_waiting.check_whole(alliance.hub, upload.id)


def test_large_file_goes_up_with_the_products_own_client(alliance: AllianceInProcess, large: Path) -> None:
    done = threading.Event()

    def keep_house() -> None:
        while not done.wait(0.05):
            uploads_waiting.check_waiting(alliance.hub)

    thread = threading.Thread(target=keep_house)
    thread.start()
    try:
        with alliance.as_(LABS[1]) as lab:
            assert send_file(lab, large).state == "stored"
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (10, ["0" * 64]),
        (ORDER_BYTES + 1, None),
        (PART_BYTES + 1, ["0" * 64]),
        (PART_BYTES + 1, ["0" * 64] * 3),
    ],
)
def test_parts_that_do_not_fit_the_size_are_refused(
    owner: HubClient, size: int, parts: list[str] | None
) -> None:
    error = refused("E_FIELD", owner.upload, "0" * 64, size, parts=parts)
    assert isinstance(error, Refused) and error.field == "parts"


def test_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    limits = {"superlink": "external", "upload_limit": 1 << 20}
    with open_alliance(tmp_path, members=(OWNER,), **limits) as small, small.as_(OWNER) as owner:
        error = refused("E_LIMIT", owner.upload, "0" * 64, (1 << 20) + 1)
        pushed = refused("E_LIMIT", small.push, {"large.safetensors": bytes((1 << 20) + 1)})
    assert str(1 << 20) in error.message
    assert pushed.message.startswith("large.safetensors: size")


def test_file_that_no_stock_client_could_download_is_refused_before_any_byte(owner: HubClient) -> None:
    error = refused("E_LIMIT", owner.upload, "0" * 64, LARGEST_BYTES + 1, parts=["0" * 64])
    assert str(LARGEST_BYTES) in error.message and "shards" in error.hint


def test_upload_for_a_plan_without_a_run_is_refused(alliance: AllianceInProcess, owner: HubClient) -> None:
    refused("E_ACCESS", owner.upload, "0" * 64, 10, plan="1" * 64)
    with alliance.coordinator() as coordinator:
        refused("E_RUN", coordinator.upload, "0" * 64, 10, plan="1" * 64)


def test_visitor_cannot_upload(alliance: AllianceInProcess) -> None:
    with alliance.http() as visitor:
        answer = visitor.post("/api/v1/uploads", json={"sha256": "0" * 64, "size": 10})
    assert (answer.status_code, answer.json()["code"]) == (401, "E_LOGIN")


def test_unfinished_upload_expires_and_its_parts_with_it(
    alliance: AllianceInProcess, owner: HubClient, large: Path
) -> None:
    _sha256, size, parts = hash_file(large)
    with alliance.as_(LABS[2]) as lab:
        upload = lab.upload("5" * 64, size, parts=parts)
        single = lab.upload(digest(b"forgotten"), 9)
        assert put(single.orders[0].url, single.orders[0].headers, b"forgotten") == 200
        kept = alliance.send(lab, b"finished")
    with alliance.hub.database.session_scope() as session:
        for row in session.exec(select(UploadRow).where(UploadRow.uploader == LABS[2])):
            row.expires_at = 1
            session.add(row)
    assert uploads_waiting.expire(alliance.hub) == 2
    with alliance.as_(LABS[2]) as lab:
        for gone in (upload, single):
            error = refused("E_NOT_FOUND", lab.upload_orders, gone.id)
            assert isinstance(error, Unchecked)
        assert lab.upload_complete(kept.id).state == "stored"
    assert not list(alliance.store.list(f"blobs/sha256/{digest(b'forgotten')[:2]}/{digest(b'forgotten')}"))
    if isinstance(alliance.store, FolderStore):
        assert not list((alliance.folder / "hub" / "store" / ".parts").iterdir())


def test_more_unfinished_uploads_than_the_limit_are_refused(tmp_path: Path) -> None:
    limits = {"superlink": "external", "uploads_open": 2}
    with open_alliance(tmp_path, members=(OWNER,), **limits) as small, small.as_(OWNER) as owner:
        owner.upload("0" * 64, 5)
        assert small.send(owner, b"finished ones do not count").state == "stored"
        owner.upload("1" * 64, 5)
        error = refused("E_LIMIT", owner.upload, "9" * 64, 5)
        assert isinstance(error, Refused) and error.status == 429


def test_file_sent_whole_leaves_nothing_of_the_parts_that_were_begun(
    alliance: AllianceInProcess, owner: HubClient, tmp_path: Path
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(PART_BYTES) + b"another")
    sha256, size, parts = hash_file(path)
    begun = owner.upload(sha256, size, parts=parts)
    assert [order.part for order in begun.orders] == [1, 2]
    whole = owner.upload(sha256, size)
    order = whole.orders[0]
    assert put(order.url, order.headers, path.read_bytes()) == 200
    assert owner.upload_complete(whole.id).state == "stored"
    refused("E_NOT_FOUND", owner.upload_orders, begun.id)
    with alliance.hub.database.session_scope(write=False) as session:
        row = session.get(UploadRow, begun.id)
    assert row is None
    assert list(alliance.hub.store.unfinished()) == []


def test_file_sent_in_parts_leaves_nothing_of_the_whole_that_was_given_up(
    alliance: AllianceInProcess, owner: HubClient, tmp_path: Path
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(PART_BYTES) + b"given up")
    sha256, size, _parts = hash_file(path)
    whole = owner.upload(sha256, size)
    begun = send_parts(owner, path)
    assert owner.upload_complete(begun.id).state == "checking"
    uploads_waiting.check_whole(alliance.hub, begun.id)
    assert [row.id for row in rows(alliance, sha256)] == [begun.id]
    refused("E_NOT_FOUND", owner.upload_complete, whole.id)
    assert owner.upload(sha256, size).state == "stored"


def send_parts(owner: HubClient, path: Path) -> Upload:
    """All parts of a file, which nobody has said to be there yet."""
    sha256, size, parts = hash_file(path)
    upload, body = owner.upload(sha256, size, parts=parts), path.read_bytes()
    for order in upload.orders:
        start = (order.part - 1) * PART_BYTES
        assert put(order.url, order.headers, body[start : start + PART_BYTES]) == 200
    return upload


def test_parts_that_another_process_joins_between_two_looks_at_the_store_are_not_missed(
    alliance: AllianceInProcess, owner: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(PART_BYTES) + b"joined by another")
    upload = send_parts(owner, path)
    store = alliance.hub.store
    listed = store.stored_parts

    def join_first(key: str, upload_id: str) -> dict[int, str]:
        monkeypatch.setattr(store, "stored_parts", listed)
        there = listed(key, upload_id)
        store.complete_parts(key, upload_id, there)
        return {2: there[2]}  # a store that is removing them

    monkeypatch.setattr(store, "stored_parts", join_first)
    assert owner.upload_complete(upload.id).state == "checking"
    assert uploads_waiting.check_whole(alliance.hub, upload.id).state == "stored"


@pytest.mark.parametrize("found_by", ["announce", "orders", "complete"])
def test_parts_that_the_store_has_dropped_by_a_rule_of_its_own_are_begun_anew(
    alliance: AllianceInProcess, owner: HubClient, tmp_path: Path, found_by: str
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(PART_BYTES) + f"dropped, {found_by}".encode())
    upload = send_parts(owner, path)
    sha256, size, parts = hash_file(path)
    (row,) = rows(alliance, sha256)
    assert row.multipart is not None
    alliance.hub.store.abort_parts(row.key, row.multipart)
    if found_by == "complete":
        refused("E_INCOMPLETE", owner.upload_complete, upload.id)
    if found_by == "announce":
        again = owner.upload(sha256, size, parts=parts)
    else:
        again = owner.upload_orders(upload.id)
    assert (again.id, again.done_parts, [order.part for order in again.orders]) == (upload.id, [], [1, 2])
    send_parts(owner, path)
    assert owner.upload_complete(upload.id).state == "checking"
    assert uploads_waiting.check_whole(alliance.hub, upload.id).state == "stored"
    assert list(alliance.hub.store.unfinished()) == []
