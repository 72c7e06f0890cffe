"""Files go up by orders and come down checked, over every store."""

import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import federation.sending
from federation.fetching import fetch
from federation.sending import send_file
from federation.wire import Upload
from storage.blobs import BlobStore, Order
from storage.errors import Refused, Rejected, Unchecked
from tests.memory_store import MemoryStore
from tests.servers import StoreHub, StoreMaker
from tests.transfers import LARGE, PART, SMALL, OddServer, partial_of, parts_of, sha, use_small_parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_parts(monkeypatch)


@pytest.fixture
def hub(make: StoreMaker, request: pytest.FixtureRequest) -> StoreHub:
    """A hub whose store takes parts side by side more quickly than one stream."""
    hub = StoreHub(make(), f"blobs/{sha(request.node.name.encode())[:16]}.t")
    hub.one_stream = False
    return hub


def file_of(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    return path


# --- up and down ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "data",
    [SMALL, LARGE, LARGE[: 2 * PART], LARGE[:PART], b""],
    ids=["small", "large", "two parts", "one part", "empty"],
)
def test_file_comes_back_as_it_went(hub: StoreHub, tmp_path: Path, data: bytes) -> None:
    seen: list[tuple[int, int]] = []
    upload = send_file(hub, file_of(tmp_path, data), progress=lambda done, total: seen.append((done, total)))
    assert upload.state == "stored"
    assert hub.store.size(hub.key) == len(data)
    assert seen[-1] == (len(data), len(data))

    seen.clear()
    place = tmp_path / ("f" * 255)  # as long as a name can be
    url = hub.store.signed_url(hub.key, expires_s=60)
    parts = parts_of(data) if len(data) > PART else None
    fetch(url, place, sha(data), len(data), parts, progress=lambda done, total: seen.append((done, total)))
    assert place.read_bytes() == data
    assert not data or seen[-1] == (len(data), len(data))
    fetch(url, place, sha(data), len(data), parts, parts_are_signed=True, durable=True)
    assert place.read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f" * 255, "weights.safetensors"]


def test_file_that_the_hub_has_is_not_sent(hub: StoreHub, tmp_path: Path) -> None:
    hub.there = True
    assert send_file(hub, file_of(tmp_path, LARGE)).state == "stored"
    assert hub.given == []


def test_expired_orders_are_renewed_for_the_parts_that_are_missing(
    hub: StoreHub, make: StoreMaker, tmp_path: Path
) -> None:
    stale = make(-3600)

    def expire_one(number: int, order: Order) -> Order:
        if number != 3 or len(hub.given) > 1 or hub.upload_id is None:
            return order
        return stale.part_order(hub.key, hub.upload_id, 3, parts_of(LARGE)[2], PART)

    hub.spoil = expire_one
    assert send_file(hub, file_of(tmp_path, LARGE)).state == "stored"
    assert hub.given[0] == [1, 2, 3, 4]
    assert 3 in hub.given[1]
    assert hub.store.get(hub.key) == LARGE


def test_store_without_room_is_told_as_that(
    hub: StoreHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federation.sending.ATTEMPTS", 2)
    with OddServer(lambda path, asked, n: (507, {}, b"")) as full:
        hub.spoil = lambda number, order: Order("PUT", full.url, order.headers, order.expires)
        with pytest.raises(Unchecked, match=r"E_HUB_FULL: .*answered 507") as caught:
            send_file(hub, file_of(tmp_path, SMALL))
    assert "no room" in caught.value.hint


def test_repeat_after_a_crash_sends_only_what_is_missing(hub: StoreHub, tmp_path: Path) -> None:
    def lose(number: int, order: Order) -> Order:
        return (
            Order("PUT", "http://127.0.0.1:9/nobody", order.headers, order.expires) if number > 2 else order
        )

    hub.spoil = lose
    with pytest.raises(Unchecked, match=r"E_STORE_UNREACHABLE.*weights\.safetensors.*127\.0\.0\.1:9"):
        send_file(hub, file_of(tmp_path, LARGE))
    assert hub.upload_id is not None
    stored = sorted(hub.store.stored_parts(hub.key, hub.upload_id))
    hub.given.clear()
    hub.spoil = lambda number, order: order
    assert send_file(hub, file_of(tmp_path, LARGE)).state == "stored"
    assert hub.given == [[n for n in (1, 2, 3, 4) if n not in stored]]
    assert hub.store.get(hub.key) == LARGE


def test_file_whose_digest_is_known_goes_whole_and_is_stored_without_another_reading(
    hub: StoreHub, tmp_path: Path
) -> None:
    known = (sha(LARGE), len(LARGE))
    assert send_file(hub, file_of(tmp_path, LARGE), known=known).state == "stored"
    assert hub.given == [[0]] and hub.announced == (*known, None)
    assert hub.store.get(hub.key) == LARGE


def test_file_goes_whole_where_one_stream_is_as_quick_as_several(
    hub: StoreHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation.streams, "QUICK_S", 3600)
    hub.one_stream = True
    seen: list[int] = []
    path = file_of(tmp_path, LARGE)
    assert send_file(hub, path, progress=lambda done, total: seen.append(done)).state == "stored"
    assert hub.given == [[1, 2, 3, 4], [0]] and hub.announced == (sha(LARGE), len(LARGE), None)
    assert hub.store.get(hub.key) == LARGE
    assert seen == sorted(seen) and len(seen) > 4 and seen[-1] == len(LARGE)


def test_line_that_turns_out_slow_is_given_up_and_the_file_goes_on_in_parts(
    hub: StoreHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation.streams, "QUICK_S", 0)
    monkeypatch.setattr(federation.streams, "LOOK_S", 0)
    hub.one_stream = True
    sent: list[int] = []
    plain = federation.sending._send_one

    def counted(peers: Any, path: Path, order: Any, *rest: Any) -> str:
        sent.append(order.part)
        return plain(peers, path, order, *rest)

    monkeypatch.setattr(federation.sending, "_send_one", counted)
    seen: list[int] = []
    path = file_of(tmp_path, LARGE)
    assert send_file(hub, path, progress=lambda done, total: seen.append(done)).state == "stored"
    assert sent[0] == 0 and sorted(sent) == [0, 1, 2, 3, 4]
    assert hub.store.get(hub.key) == LARGE
    assert 0 in seen[1:3], "what the whole had sent is taken back at once"
    assert min(seen) == 0 and max(seen) == seen[-1] == len(LARGE)


def test_repeat_goes_on_in_parts_also_where_one_stream_is_as_quick(hub: StoreHub, tmp_path: Path) -> None:
    begun = hub.upload(sha(LARGE), len(LARGE), parts=parts_of(LARGE))
    order = begun.orders[1]
    answer = urllib.request.urlopen(
        urllib.request.Request(order.url, LARGE[PART : 2 * PART], order.headers, method="PUT")
    )
    assert answer.status == 200
    hub.one_stream = True
    assert send_file(hub, file_of(tmp_path, LARGE)).state == "stored"
    assert hub.given == [[1, 2, 3, 4], [1, 3, 4]]
    assert hub.store.get(hub.key) == LARGE


class Overtaken(StoreHub):
    """A hub at which another process of the same institution ends the upload first, in one way or another."""

    def __init__(self, store: BlobStore, key: str, code: str) -> None:
        super().__init__(store, key)
        self.one_stream, self.code, self.told = False, code, 0
        self.announcements = 0

    def upload(self, *given: Any, **options: Any) -> Upload:
        self.announcements += 1
        return super().upload(*given, **options)

    def upload_orders(self, upload_id: str, etags: Mapping[int, str] | None = None) -> Upload:
        if self.code == "E_NOT_FOUND" and self.told == 1:
            self.told, self.there = 2, True
            raise Unchecked("E_NOT_FOUND", "upload: not found")
        return super().upload_orders(upload_id, etags)

    def upload_complete(self, upload_id: str, etags: Mapping[int, str] | None = None) -> Upload:
        if not self.told:
            self.told = 1
            if self.code == "E_NOT_FOUND":
                raise Unchecked("E_NOT_FOUND", "upload: not found")
            raise Refused("E_INCOMPLETE", "parts 1 are not in the store", status=409)
        return super().upload_complete(upload_id, etags)


@pytest.mark.parametrize(("code", "announcements"), [("E_INCOMPLETE", 1), ("E_NOT_FOUND", 2)])
def test_upload_that_another_process_ends_first_is_gone_on_with(
    make: StoreMaker, tmp_path: Path, code: str, announcements: int
) -> None:
    hub = Overtaken(make(), f"blobs/{sha(code.encode())[:16]}.t", code)
    assert send_file(hub, file_of(tmp_path, LARGE)).state == "stored"
    assert hub.announcements == announcements


def test_whole_that_another_process_ends_first_is_announced_anew(make: StoreMaker, tmp_path: Path) -> None:
    hub = Overtaken(make(), f"blobs/{sha(b'whole overtaken')[:16]}.t", "E_INCOMPLETE")
    hub.one_stream = True
    assert send_file(hub, file_of(tmp_path, LARGE)).state == "stored"


def test_hub_that_says_for_ever_that_bytes_are_missing_is_believed_at_last(
    hub: StoreHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_upload_id: str, _etags: Mapping[int, str] | None = None) -> Upload:
        raise Refused("E_INCOMPLETE", "parts 1 are not in the store", status=409)

    monkeypatch.setattr(hub, "upload_complete", never)
    with pytest.raises(Refused, match="E_INCOMPLETE"):
        send_file(hub, file_of(tmp_path, LARGE))


@pytest.mark.parametrize("there", [True, False], ids=["all of it", "its parts"])
def test_progress_ends_at_the_whole_where_nothing_is_left_to_send(
    hub: StoreHub, tmp_path: Path, there: bool
) -> None:
    path, seen = file_of(tmp_path, LARGE), list[tuple[int, int]]()
    hub.there = there
    if not there:
        for order in hub.upload(sha(LARGE), len(LARGE), parts=parts_of(LARGE)).orders:
            part = LARGE[(order.part - 1) * PART : order.part * PART]
            urllib.request.urlopen(urllib.request.Request(order.url, part, order.headers, method="PUT"))
    send_file(hub, path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1:] == [(len(LARGE), len(LARGE))]


def remove(path: Path) -> None:
    path.unlink()


def put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [remove, put_a_folder_there])
@pytest.mark.parametrize("one_stream", [True, False])
def test_file_that_is_gone_when_it_is_to_be_sent_is_named(
    hub: StoreHub, tmp_path: Path, spoil: Callable[[Path], None], one_stream: bool
) -> None:
    path, hub.one_stream = file_of(tmp_path, LARGE), one_stream

    def once(_number: int, order: Order) -> Order:
        if path.is_file():
            spoil(path)
        return order

    hub.spoil = once
    with pytest.raises(Unchecked, match=r"E_INPUT.*weights\.safetensors: cannot be read any more") as caught:
        send_file(hub, path)
    assert "send it again" in caught.value.hint
    assert hub.given == (
        [[1, 2, 3, 4], [0]] if one_stream else [[1, 2, 3, 4]]
    )  # and no order is asked for anew


def test_store_behind_a_proxy_that_takes_no_part_is_told_with_what_to_change(
    hub: StoreHub, tmp_path: Path
) -> None:
    hub.one_stream = True
    with OddServer(lambda path, asked, n: (413, {}, b"<html>")) as proxy:
        hub.spoil = lambda number, order: Order("PUT", proxy.url, order.headers, order.expires)
        with pytest.raises(Refused, match=r"E_STORE_REFUSED: weights\.safetensors: .*answered 413") as caught:
            send_file(hub, file_of(tmp_path, LARGE))
    assert "takes no body" in caught.value.hint and "32 MiB" in caught.value.hint


@pytest.mark.parametrize("status", [413, 503])
def test_file_that_cannot_go_whole_goes_in_parts(hub: StoreHub, tmp_path: Path, status: int) -> None:
    with OddServer(lambda path, asked, n: (status, {}, b"")) as server:
        hub.spoil = lambda number, order: (
            order if number else Order("PUT", f"{server.url}/k", order.headers, order.expires)
        )
        known = (sha(LARGE), len(LARGE))
        assert send_file(hub, file_of(tmp_path, LARGE), known=known).state == "stored"
    assert hub.given == [[0], [1, 2, 3, 4]]
    assert hub.store.get(hub.key) == LARGE


def test_file_that_changes_while_it_is_sent_is_not_stored(hub: StoreHub, tmp_path: Path) -> None:
    path = file_of(tmp_path, LARGE)

    def change(number: int, order: Order) -> Order:
        with path.open("r+b") as file:
            file.seek(PART + 7)
            file.write(bytes([LARGE[PART + 7] ^ 1]))
        return order

    hub.spoil = change
    with pytest.raises(Rejected, match=r"E_FILE_CHANGED.*weights\.safetensors changed"):
        send_file(hub, path)
    assert hub.store.size(hub.key) is None


def test_hub_that_checks_for_too_long_is_told_of(hub: StoreHub, tmp_path: Path) -> None:
    hub.checks = 10_000
    with pytest.raises(Unchecked, match=r"E_UPLOAD_CHECKING.*still checks upload u"):
        send_file(hub, file_of(tmp_path, LARGE), check_wait_s=0.1)
    hub.checks = 0
    assert send_file(hub, tmp_path / "weights.safetensors").state == "stored"


def test_store_that_never_takes_the_file_is_named_and_not_asked_twice(tmp_path: Path) -> None:
    with OddServer(lambda path, asked, n: (405, {}, b"no")) as server:
        hub = StoreHub(MemoryStore(), "k")
        hub.spoil = lambda number, order: Order("PUT", server.url + "/k", order.headers, order.expires)
        with pytest.raises(Refused, match=r"E_STORE_REFUSED: weights\.safetensors: .*answered 405"):
            send_file(hub, file_of(tmp_path, SMALL))
    assert len(server.seen) == 1
    assert not {name.lower() for name in server.seen[0][1]} & {"authorization", "cookie"}


@pytest.mark.usefixtures("way")
def test_flipped_byte_in_the_store_is_found_while_reading(hub: StoreHub, tmp_path: Path) -> None:
    for data in (SMALL, LARGE):
        broken = bytearray(data)
        broken[-5] ^= 1
        hub.store.put(hub.key, bytes(broken))
        url = hub.store.signed_url(hub.key, expires_s=60)
        parts = parts_of(data) if len(data) > PART else None
        with pytest.raises(Rejected, match=r"E_DIGEST.*place: part"):
            fetch(url, tmp_path / "place", sha(data), len(data), parts)
    hub.store.put(hub.key, LARGE)  # mended: only the bad part is read again
    seen: list[int] = []
    url = hub.store.signed_url(hub.key, expires_s=60)
    fetch(
        url,
        tmp_path / "place",
        sha(LARGE),
        len(LARGE),
        parts_of(LARGE),
        progress=lambda done, total: seen.append(done),
    )
    assert (tmp_path / "place").read_bytes() == LARGE
    assert not partial_of(tmp_path, LARGE).exists()


@pytest.mark.usefixtures("way")
def test_object_of_another_size_is_refused(hub: StoreHub, tmp_path: Path) -> None:
    for stored in (SMALL + b"x", SMALL[:-1]):
        hub.store.put(hub.key, stored)
        url = hub.store.signed_url(hub.key, expires_s=60)
        with pytest.raises(Rejected, match=r"E_SIZE"):
            fetch(url, tmp_path / "place", sha(SMALL), len(SMALL))
        assert list(tmp_path.iterdir()) == []
