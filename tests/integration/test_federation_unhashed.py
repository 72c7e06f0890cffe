"""A file is sent while it is hashed; whatever goes wrong with that, it is then sent by its digest."""

import threading
from pathlib import Path

import pytest

import federation.sending
import federation.streams
import federation.unhashed
import storage.manifests
from federation.sending import send_file
from federation.unhashed import sent_unhashed
from federation.wire import UnhashedUpload, Upload
from storage.blobs import Order
from storage.errors import Refused, Rejected, Unchecked
from tests.servers import StoreHub, StoreMaker
from tests.transfers import LARGE, PART, sha, use_small_parts

BY_SIZE = [-1]  # as ``StoreHub.given`` notes it


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_parts(monkeypatch)
    monkeypatch.setattr(federation.streams, "QUICK_S", 3600)


@pytest.fixture
def hub(make: StoreMaker, request: pytest.FixtureRequest) -> StoreHub:
    """A hub that takes files before their digests, whatever its store."""
    hub = StoreHub(make(), f"blobs/{sha(request.node.name.encode())[:16]}.n")
    hub.unhashed = True
    return hub


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(LARGE)
    return path


def test_file_is_sent_once_while_it_is_hashed(hub: StoreHub, path: Path) -> None:
    seen: list[tuple[int, int]] = []
    upload = send_file(hub, path, progress=lambda done, total: seen.append((done, total)))
    assert (upload.state, hub.given) == ("stored", [BY_SIZE])
    assert hub.store.get(hub.key) == LARGE
    assert seen == sorted(seen) and seen[-1] == (len(LARGE), len(LARGE)) and len(seen) > 4


@pytest.mark.parametrize("size", [0, 1, PART])
def test_file_of_no_more_than_a_part_is_hashed_first(hub: StoreHub, tmp_path: Path, size: int) -> None:
    path = tmp_path / "small"
    path.write_bytes(LARGE[:size])
    assert send_file(hub, path).state == "stored"
    assert BY_SIZE not in hub.given


def test_hub_that_wants_the_digest_first_gets_it(hub: StoreHub, path: Path) -> None:
    hub.unhashed = False
    assert send_file(hub, path).state == "stored"
    assert BY_SIZE not in hub.given


def test_file_that_is_hashed_already_is_announced_so(hub: StoreHub, path: Path) -> None:
    assert send_file(hub, path, hashed=storage.manifests.hash_file(path)).state == "stored"
    assert BY_SIZE not in hub.given


def test_line_that_turns_out_slow_is_given_up(
    hub: StoreHub, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QUICK_S", "LOOK_S"):
        monkeypatch.setattr(federation.streams, name, 0)
    hub.one_stream = False
    seen: list[int] = []
    assert send_file(hub, path, progress=lambda done, total: seen.append(done)).state == "stored"
    assert 0 in seen[1:], "what went for nothing is taken back"
    assert hub.given[:2] == [BY_SIZE, [1, 2, 3, 4]]
    assert hub.store.get(hub.key) == LARGE


@pytest.mark.parametrize("wrong", ["expired", "nobody listens"])
def test_order_that_the_store_does_not_take_is_given_up(hub: StoreHub, path: Path, wrong: str) -> None:
    right = hub.spoil

    def once(_number: int, order: Order) -> Order:
        hub.spoil = right
        url = order.url.split("?")[0] if wrong == "expired" else "http://127.0.0.1:9/nobody"
        return Order(order.method, url, {}, order.expires, order.trailer)

    hub.spoil = once
    assert send_file(hub, path).state == "stored"
    assert hub.given[0] == BY_SIZE and len(hub.given) > 1
    assert hub.store.get(hub.key) == LARGE


def test_file_that_changes_while_it_is_sent_is_not_called_what_it_was(hub: StoreHub, path: Path) -> None:
    other = bytes([LARGE[0] ^ 1]) + LARGE[1:]
    with sent_unhashed(hub, path) as end:
        assert end(sha(other)) is None  # as if it had been hashed before, and then changed
    assert hub.store.size(hub.key) is None


@pytest.mark.parametrize("code", ["E_DIGEST", "E_NOT_FOUND", "E_INCOMPLETE"])
def test_hub_that_lost_it_or_found_other_bytes_gets_it_by_digest(
    hub: StoreHub, path: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says_no(upload_id: str, sha256: str) -> Upload:
        hub.store.delete(hub.key)
        raise Refused(code, "no", status=409)

    monkeypatch.setattr(hub, "unhashed_complete", says_no)
    assert send_file(hub, path).state == "stored"
    assert hub.given[0] == BY_SIZE and len(hub.given) > 1


def test_other_errors_of_the_hub_are_told(hub: StoreHub, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int) -> UnhashedUpload:
        raise Unchecked("E_HUB_FULL", "no room")

    monkeypatch.setattr(hub, "upload_unhashed", full)
    with pytest.raises(Unchecked, match="E_HUB_FULL"):
        send_file(hub, path)


def test_link_is_neither_followed_nor_sent(hub: StoreHub, path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(Rejected, match="E_PATH"):
        send_file(hub, link)
    assert hub.given == []


def test_sending_ends_when_hashing_fails(hub: StoreHub, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_path: Path) -> None:
        raise Unchecked("E_INPUT", "the disk is broken")

    monkeypatch.setattr(federation.sending, "hash_file", fails)
    with pytest.raises(Unchecked, match="the disk is broken"):
        send_file(hub, path)
    assert hub.given == [BY_SIZE]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("transfer")] == []
