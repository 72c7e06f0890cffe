"""Large files that are sent while they are hashed: what the hub agrees to, and what becomes of the bytes."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import col, select

import federation.publishing
import federation.streams
import federation.unhashed
from federation.client import HubClient
from federation.origins import Peers
from federation.unhashed import sent_unhashed
from federation.wire import UnhashedUpload
from hub.services import garbage, unhashed_uploads
from hub.services.quotas import used_bytes
from hub.tables import BlobRow, UnhashedUploadRow, UploadRow
from storage.blobs import FolderStore
from storage.errors import FedhubError, Unchecked
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, digest, open_alliance, weights

LARGE = 1 << 20  # here: as long as a part
sizes = iter(range(LARGE + 1, 2 * LARGE))


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("unhashed"), request.param, superlink="external") as opened:
        if not opened.hub.store.one_stream:
            pytest.skip("this store takes several streams more quickly than one, so it is not asked for this")
        yield opened


@pytest.fixture
def owner(alliance: AllianceInProcess) -> Iterator[HubClient]:
    with alliance.as_(OWNER) as client:
        yield client


@pytest.fixture(autouse=True)
def small_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (unhashed_uploads, federation.unhashed, federation.publishing):
        monkeypatch.setattr(module, "PART_BYTES", LARGE)


@pytest.fixture
def data() -> bytes:
    """Bytes of a size that no other test has."""
    return os.urandom(next(sizes))


def begin(client: HubClient, size: int) -> UnhashedUpload:
    upload = client.upload_unhashed(size)
    assert upload is not None
    return upload


def put(upload: UnhashedUpload, data: bytes, folder: Path) -> int:
    """Send bytes as the product does; their true digest follows where the store wants one."""
    path, order = folder / "sent", upload.order
    path.write_bytes(data)
    trailer = (lambda: digest(data)) if order.trailer else None
    peers = Peers()
    try:
        return peers.put(
            order.url, order.headers, path, 0, len(data), lambda count: None, trailer=trailer
        ).status
    finally:
        peers.close()


def waiting(alliance: AllianceInProcess, upload: UnhashedUpload) -> UnhashedUploadRow | None:
    with alliance.hub.database.session_scope(write=False) as session:
        return session.get(UnhashedUploadRow, upload.id)


def refused(code: str, call: object, *arguments: object) -> FedhubError:
    with pytest.raises(FedhubError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.code == code, caught.value
    return caught.value


def objects_of(alliance: AllianceInProcess, upload: UnhashedUpload) -> list[str]:
    return [key for key in alliance.store.list("blobs/unhashed/") if key.endswith(upload.id)]


def test_file_is_a_blob_that_the_store_checked_once_its_digest_is_told(
    alliance: AllianceInProcess, owner: HubClient, data: bytes, tmp_path: Path
) -> None:
    upload = begin(owner, len(data))
    assert put(upload, data, tmp_path) == 200
    assert owner.unhashed_complete(upload.id, digest(data)).state == "stored"
    with alliance.hub.database.session_scope(write=False) as session:
        blob = session.get(BlobRow, digest(data))
    assert blob is not None and (blob.checked_by, blob.size) == ("store", len(data))
    assert alliance.store.get(blob.key) == data
    assert waiting(alliance, upload) is None
    assert list(alliance.store.unfinished()) == []
    assert owner.unhashed_complete(upload.id, digest(data)).state == "stored", "a repeat changes nothing"
    assert owner.upload(digest(data), len(data)).state == "stored"


def test_order_brings_nothing_more_once_the_file_has_its_digest(
    alliance: AllianceInProcess, owner: HubClient, data: bytes, tmp_path: Path
) -> None:
    upload = begin(owner, len(data))
    put(upload, data, tmp_path)
    owner.unhashed_complete(upload.id, digest(data))
    assert put(upload, data[::-1], tmp_path) in (404, 412)
    (key,) = objects_of(alliance, upload)
    assert alliance.store.get(key) == data


def test_other_digest_than_the_store_found_is_refused_and_the_bytes_go(
    alliance: AllianceInProcess, owner: HubClient, data: bytes, tmp_path: Path
) -> None:
    upload = begin(owner, len(data))
    put(upload, data, tmp_path)
    claimed = digest(data[::-1])
    assert (
        "announce it by its digest" in refused("E_DIGEST", owner.unhashed_complete, upload.id, claimed).hint
    )
    with alliance.hub.database.session_scope(write=False) as session:
        assert session.get(BlobRow, claimed) is None
        assert session.get(BlobRow, digest(data)) is None
    assert (waiting(alliance, upload), objects_of(alliance, upload)) == (None, [])
    refused("E_NOT_FOUND", owner.unhashed_complete, upload.id, digest(data))


def test_digest_told_before_the_bytes_have_come_is_refused_and_they_may_still_come(
    owner: HubClient, data: bytes, tmp_path: Path
) -> None:
    upload = begin(owner, len(data))
    refused("E_INCOMPLETE", owner.unhashed_complete, upload.id, digest(data))
    put(upload, data, tmp_path)
    assert owner.unhashed_complete(upload.id, digest(data)).state == "stored"


def test_upload_of_another_institution_is_unknown(
    alliance: AllianceInProcess, owner: HubClient, data: bytes, tmp_path: Path
) -> None:
    upload = begin(owner, len(data))
    put(upload, data, tmp_path)
    with alliance.as_(LABS[0]) as lab:
        refused("E_NOT_FOUND", lab.unhashed_complete, upload.id, digest(data))
        refused("E_NOT_FOUND", lab.unhashed_complete, upload.id, digest(data[::-1]))
    assert owner.unhashed_complete(upload.id, digest(data)).state == "stored"


def test_same_bytes_of_two_institutions_end_as_one_object(
    alliance: AllianceInProcess, owner: HubClient, data: bytes, tmp_path: Path
) -> None:
    with alliance.as_(FIRM) as firm:
        uploads = [(client, begin(client, len(data))) for client in (owner, firm)]
        for client, upload in uploads:
            put(upload, data, tmp_path)
            assert client.unhashed_complete(upload.id, digest(data)).state == "stored"
    assert [len(objects_of(alliance, upload)) for _, upload in uploads] == [1, 0]


def test_digest_is_wanted_first_where_the_caller_may_use_a_file_of_this_size(
    alliance: AllianceInProcess, owner: HubClient, data: bytes
) -> None:
    alliance.send(owner, data)
    assert owner.upload_unhashed(len(data)) is None
    with alliance.as_(FIRM) as firm:
        assert firm.upload_unhashed(len(data)) is not None, "what others have is not told"


def test_digest_is_wanted_first_where_a_file_of_this_size_has_begun(owner: HubClient, data: bytes) -> None:
    owner.upload(digest(data), len(data))
    assert owner.upload_unhashed(len(data)) is None


def test_digest_is_wanted_first_where_too_many_files_have_this_size(
    alliance: AllianceInProcess, owner: HubClient, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unhashed_uploads, "SAME_SIZE_MOST", 1)
    with alliance.as_(LABS[1]) as lab:
        alliance.send(lab, data)
        assert owner.upload_unhashed(len(data)) is not None
        alliance.send(lab, data[::-1])
    assert owner.upload_unhashed(len(data)) is None


@pytest.mark.parametrize("size", [0, 1, LARGE, 1 << 50])
def test_digest_is_wanted_first_of_a_file_that_goes_in_one_request_or_in_parts(
    owner: HubClient, size: int
) -> None:
    assert owner.upload_unhashed(size) is None


def test_store_that_takes_parts_more_quickly_is_not_asked(
    alliance: AllianceInProcess, owner: HubClient, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alliance.hub.store, "one_stream", False)
    assert owner.upload_unhashed(len(data)) is None


def test_visitor_cannot_announce(alliance: AllianceInProcess) -> None:
    with alliance.http() as visitor:
        answer = visitor.post("/api/v1/unhashed-uploads", json={"size": LARGE + 1})
    assert (answer.status_code, answer.json()["code"]) == (401, "E_LOGIN")


def test_what_nobody_names_in_time_goes_with_its_bytes(
    alliance: AllianceInProcess, owner: HubClient, data: bytes, tmp_path: Path
) -> None:
    late, fresh = begin(owner, len(data)), begin(owner, len(data) + LARGE)
    put(late, data, tmp_path)
    with alliance.hub.database.session_scope() as session:
        row = session.get_one(UnhashedUploadRow, late.id)
        row.expires_at = alliance.hub.ledger.now()
        session.add(row)
    assert garbage.expire(alliance.hub) == 1
    assert (waiting(alliance, late), objects_of(alliance, late)) == (None, [])
    assert waiting(alliance, fresh) is not None
    if isinstance(alliance.store, FolderStore):
        left = [folder.name for folder in (alliance.folder / "hub" / "store" / ".parts").iterdir()]
        assert len(left) == len({key for key, *_ in alliance.store.unfinished()})
    refused("E_NOT_FOUND", owner.unhashed_complete, late.id, digest(data))


def test_sweep_spares_what_is_on_its_way(
    alliance: AllianceInProcess, owner: HubClient, data: bytes, tmp_path: Path
) -> None:
    upload = begin(owner, len(data))
    put(upload, data, tmp_path)
    swept, later = garbage.Swept(), alliance.hub.ledger.now() + 365 * 86_400
    garbage.sweep_objects(alliance.hub, swept, later)
    garbage.sweep_parts(alliance.hub, swept, later)
    assert owner.unhashed_complete(upload.id, digest(data)).state == "stored"


def test_bytes_on_their_way_count_against_the_quota_and_too_many_are_announced_by_digest(
    tmp_path: Path,
) -> None:
    limits = {"superlink": "external", "institution_bytes": 3 * LARGE}
    with open_alliance(tmp_path, members=(OWNER,), **limits) as small, small.as_(OWNER) as owner:
        begin(owner, LARGE + 1)
        with small.hub.database.session_scope(write=False) as session:
            assert used_bytes(session, OWNER) == LARGE + 1
        assert owner.upload_unhashed(2 * LARGE) is None
        refused("E_QUOTA", owner.upload, "0" * 64, 2 * LARGE)
        assert list(small.store.unfinished()) and len(list(small.store.unfinished())) == 1


def test_file_that_was_cut_on_its_way_counts_once_when_it_is_announced_by_digest(tmp_path: Path) -> None:
    limits = {"superlink": "external", "institution_bytes": 3 * LARGE}
    with open_alliance(tmp_path, members=(OWNER,), **limits) as small, small.as_(OWNER) as owner:
        begin(owner, 2 * LARGE)  # and its sender was killed
        assert owner.upload_unhashed(2 * LARGE) is None
        assert owner.upload("0" * 64, 2 * LARGE).state == "open"
        refused("E_QUOTA", owner.upload, "1" * 64, 2 * LARGE)


def test_no_more_are_begun_than_unfinished_uploads_are_allowed(tmp_path: Path) -> None:
    limits = {"superlink": "external", "uploads_open": 2}
    with open_alliance(tmp_path, members=(OWNER,), **limits) as small, small.as_(OWNER) as owner:
        begin(owner, LARGE + 1)
        owner.upload("0" * 64, 5)
        assert owner.upload_unhashed(LARGE + 2) is None


def test_crash_between_the_digest_and_the_answer_is_mended_by_a_repeat(
    alliance: AllianceInProcess,
    owner: HubClient,
    data: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload = begin(owner, len(data))
    put(upload, data, tmp_path)

    def dies(*_: object) -> None:
        raise Unchecked("E_STORE", "the hub was killed here")

    with monkeypatch.context() as patch:
        patch.setattr(unhashed_uploads.uploads, "complete", dies)
        refused("E_STORE", owner.unhashed_complete, upload.id, digest(data))
    assert owner.unhashed_complete(upload.id, digest(data)).state == "stored"


def test_push_over_a_slow_line_tells_each_byte_once(
    alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QUICK_S", "LOOK_S"):
        monkeypatch.setattr(federation.streams, name, 0)
    data, moved = os.urandom(next(sizes)), list[int]()
    alliance.push({"a.bin": data}, f"{OWNER}/slow-line", moved=moved.append)
    assert sum(moved) == len(data) and min(moved) < 0


def test_push_sends_its_first_large_file_so_and_the_others_by_their_digests(
    alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = weights(3, 2) + os.urandom(LARGE), os.urandom(LARGE + 5)
    asked: list[Path] = []

    def noted(client: HubClient, path: Path, progress: object = None) -> object:
        asked.append(path)
        return sent_unhashed(client, path)

    monkeypatch.setattr(federation.publishing, "sent_unhashed", noted)
    files = {"README.md": b"# Ours", "a.bin": first, "b.bin": second}
    version = alliance.push(files, f"{OWNER}/two-files")
    assert [path.name for path in asked] == ["a.bin"]
    assert {file.name: file.sha256 for file in version.files} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    with alliance.hub.database.session_scope(write=False) as session:
        keys = session.exec(
            select(UploadRow.key).where(col(UploadRow.sha256).in_([digest(first), digest(second)]))
        ).all()
    assert sorted(key.startswith("blobs/unhashed/") for key in keys) == [False, True]
