"""Files go up by orders and come down checked, over every store; then over servers that misbehave."""

import errno
import hashlib
import http.server
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import federation.fetching
import federation.sending
import federation.streams
import storage.manifests
from federation.fetching import fetch, fetch_bytes
from federation.partials import Partial
from federation.sending import send_file
from federation.wire import Upload
from storage.blobs import BlobStore, Order
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from tests.memory_store import MemoryStore
from tests.servers import StoreHub, StoreMaker, running_store, store_names

PART = 5 << 20  # S3 refuses smaller parts but the last
SMALL = os.urandom(300_000)
LARGE = os.urandom(3 * PART + 12_345)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parts_of(data: bytes) -> list[str]:
    return [sha(data[start : start + PART]) for start in range(0, len(data), PART)]


def partial_of(folder: Path, data: bytes) -> Path:
    """Where the file fills until it is whole."""
    return folder / f".{sha(data)[:32]}.partial"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 5 MiB, and no patience to speak of."""
    monkeypatch.setattr(storage.manifests, "PART_BYTES", PART)
    monkeypatch.setattr(federation.fetching, "PART_BYTES", PART)
    monkeypatch.setattr(federation.sending, "PART_BYTES", PART)
    monkeypatch.setattr(federation.streams, "LONGEST_WAIT_S", 0.02)


@pytest.fixture(scope="module", params=store_names())
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreMaker]:
    with running_store(request.param, tmp_path_factory.mktemp("store")) as maker:
        yield maker


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
    monkeypatch.setattr(federation.sending, "QUICK_S", 3600)
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
    monkeypatch.setattr(federation.sending, "QUICK_S", 0)
    monkeypatch.setattr(federation.sending, "LOOK_S", 0)
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


def test_hub_and_store_are_told_apart_when_one_of_them_does_not_answer(tmp_path: Path) -> None:
    with OddServer(lambda path, asked, n: (503, {}, b"no")) as store:
        to_store = (302, {"Location": store.url + "/secret-signature"}, b"")
        with OddServer(lambda path, asked, n: to_store) as door:
            with pytest.raises(Unchecked, match=rf"E_STORE_UNREACHABLE: p from {store.url}: answered 503"):
                fetch(door.url + "/d", tmp_path / "p", sha(SMALL), len(SMALL), by_hub=True)
            with pytest.raises(Unchecked, match=rf"E_STORE_UNREACHABLE: {store.url}: answered 503"):
                fetch_bytes(door.url + "/d", 1)
        with pytest.raises(Unchecked, match=rf"E_HUB_UNREACHABLE: p from {store.url}: answered 503"):
            fetch(store.url, tmp_path / "p", sha(SMALL), len(SMALL), by_hub=True)
        with pytest.raises(Unchecked, match=rf"E_HUB_UNREACHABLE: {store.url}: answered 503"):
            fetch_bytes(store.url, 1)


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


def test_object_of_another_size_is_refused(hub: StoreHub, tmp_path: Path) -> None:
    for stored in (SMALL + b"x", SMALL[:-1]):
        hub.store.put(hub.key, stored)
        url = hub.store.signed_url(hub.key, expires_s=60)
        with pytest.raises(Rejected, match=r"E_SIZE"):
            fetch(url, tmp_path / "place", sha(SMALL), len(SMALL))
        assert list(tmp_path.iterdir()) == []


# --- servers that misbehave ---------------------------------------------------------------------------------------


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers as the test's ``answer`` says: (status, headers, body); a cut body is announced longer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append((self.path, dict(self.headers)))
        status, headers, body = server.answer(self.path, self.headers.get("Range"), len(server.seen))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if int(headers.get("Content-Length", len(body))) != len(body):
            self.close_connection = True

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


Reply = tuple[int, dict[str, str], bytes]


class Listening(http.server.ThreadingHTTPServer):
    """A server with what its answers need."""

    seen: list[tuple[str, dict[str, str]]]
    answer: Callable[[str, str | None, int], Reply]


class OddServer:
    """Runs ``Odd`` for the length of a ``with`` block."""

    def __init__(self, answer: Callable[[str, str | None, int], Reply]) -> None:
        self._server = Listening(("127.0.0.1", 0), Odd)
        self._server.seen, self._server.answer = [], answer
        self.seen = self._server.seen
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> "OddServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def ranged(data: bytes, asked: str | None) -> Reply:
    if asked is None:
        return 200, {}, data
    start, end = (int(text) for text in asked.removeprefix("bytes=").split("-"))
    return 206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1]


def test_redirects_are_followed_anew_for_every_part_and_bear_no_credential(tmp_path: Path) -> None:
    with (
        OddServer(lambda path, asked, n: ranged(LARGE, asked)) as store,
        OddServer(
            lambda path, asked, n: (307, {"Location": f"{store.url}/x?signature={n}"}, b"see there")
        ) as door,
    ):
        fetch(f"{door.url}/d/capability", tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
    assert (tmp_path / "p").read_bytes() == LARGE
    assert len(door.seen) == len(store.seen) == 4
    assert len({path for path, _ in store.seen}) == 4
    for _, headers in [*door.seen, *store.seen]:
        assert not {name.lower() for name in headers} & {"authorization", "cookie", "proxy-authorization"}


def test_signed_url_that_died_on_the_way_is_asked_for_again(tmp_path: Path) -> None:
    with (
        OddServer(lambda path, asked, n: (403, {}, b"expired") if n == 1 else ranged(SMALL, asked)) as store,
        OddServer(lambda path, asked, n: (307, {"Location": f"{store.url}/{n}"}, b"")) as door,
    ):
        fetch(door.url + "/d", tmp_path / "p", sha(SMALL), len(SMALL))
    assert [path for path, _ in store.seen] == ["/1", "/2"]


def test_refusal_of_the_download_origin_is_told_with_its_code(tmp_path: Path) -> None:
    body = b'{"type":"about:blank","status":403,"code":"E_REVOKED","detail":"grant 12 was revoked","hint":"ask the owner"}'
    answer = (403, {"Content-Type": "application/problem+json"}, body)
    with (
        OddServer(lambda path, asked, n: answer) as door,
        pytest.raises(Refused, match=r"E_REVOKED: grant 12 was revoked") as error,
    ):
        fetch(door.url + "/d", tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
    assert (error.value.status, error.value.hint) == (403, "ask the owner")
    assert partial_of(tmp_path, LARGE).stat().st_size == len(LARGE)  # kept for a repeat


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (
            (200, {"Content-Length": "300000"}, SMALL[:1000]),
            r"E_STORE_UNREACHABLE.*ended after 1000 of 300000",
        ),
        ((500, {}, b"no"), r"E_STORE_UNREACHABLE.*answered 500"),
        ((404, {}, b"no"), r"E_DOWNLOAD.*answered 404"),
        ((206, {}, SMALL), r"E_DOWNLOAD.*answered 206"),
        ((200, {}, SMALL + SMALL), r"E_SIZE.*600000 bytes come"),
        ((302, {"Location": "/again"}, b""), r"E_REDIRECT.*more than 3"),
        ((302, {"Location": "ftp://x/y"}, b""), r"E_REDIRECT.*no http"),
        ((302, {"Location": "file:///etc/passwd"}, b""), r"E_REDIRECT.*no http"),
        ((302, {"Location": "http://user:pw@127.0.0.1:9/y"}, b""), r"E_REDIRECT.*no http"),
        ((403, {"Content-Type": "application/problem+json"}, b"[1]"), r"E_DOWNLOAD.*broken explanation"),
        (
            (403, {"Content-Type": "application/problem+json"}, b'{"code":"\\u001b[31m","detail":"x"}'),
            r"E_DOWNLOAD: x",
        ),
    ],
)
def test_odd_answer_is_an_error_that_says_what_came(tmp_path: Path, answer: Reply, match: str) -> None:
    with OddServer(lambda path, asked, n: answer) as server, pytest.raises(FedhubError, match=match) as error:
        fetch(server.url + "/secret-capability", tmp_path / "p", sha(SMALL), len(SMALL))
    assert "secret-capability" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_answer_without_a_length_is_read_to_the_announced_size_and_no_further(tmp_path: Path) -> None:
    def chunked(body: bytes) -> Reply:
        return (
            200,
            {"Transfer-Encoding": "chunked", "Content-Length": ""},
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        )

    class Chunked(Odd):
        def do_GET(self) -> None:
            server: Any = self.server
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(chunked(server.body)[2])

    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Chunked)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        server.body = SMALL
        fetch(url, tmp_path / "p", sha(SMALL), len(SMALL))
        assert (tmp_path / "p").read_bytes() == SMALL
        server.body = SMALL + b"x"
        with pytest.raises(Rejected, match=r"E_SIZE.*more than the 300000"):
            fetch(url, tmp_path / "q", sha(SMALL), len(SMALL))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_range_that_is_ignored_is_an_error_and_nothing_is_believed(tmp_path: Path) -> None:
    with (
        OddServer(lambda path, asked, n: (200, {}, LARGE)) as server,
        pytest.raises(Refused, match=r"answered 200"),
    ):
        fetch(server.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))


def test_broken_connections_are_tried_again_and_only_missing_parts_asked_for(tmp_path: Path) -> None:
    def flaky(path: str, asked: str | None, n: int) -> Reply:
        status, headers, body = ranged(LARGE, asked)
        if n <= 3:
            return status, headers | {"Content-Length": str(len(body))}, body[: len(body) // 2]
        return status, headers, body

    with OddServer(flaky) as server:
        fetch(server.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE), streams=2)
    assert (tmp_path / "p").read_bytes() == LARGE
    assert len(server.seen) == 3 + 4


def test_repeat_reads_only_the_parts_that_are_missing_or_damaged_meanwhile(tmp_path: Path) -> None:
    place = tmp_path / "p"
    with (
        OddServer(
            lambda path, asked, n: (
                ranged(LARGE, asked)
                if asked and asked.startswith(("bytes=0-", "bytes=5242880-"))
                else (404, {}, b"")
            )
        ) as server,
        pytest.raises(Refused),
    ):
        fetch(server.url, place, sha(LARGE), len(LARGE), parts_of(LARGE), streams=1)
    with partial_of(tmp_path, LARGE).open("r+b") as file:
        file.seek(9)
        file.write(b"spoiled")
    with OddServer(lambda path, asked, n: ranged(LARGE, asked)) as server:
        fetch(server.url, place, sha(LARGE), len(LARGE), parts_of(LARGE), streams=1)
    assert [headers["Range"].split("=")[1].split("-")[0] for _, headers in server.seen] == [
        "0",
        str(2 * PART),
        str(3 * PART),
    ]
    assert place.read_bytes() == LARGE


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("size", [10, len(LARGE) + 10])
def test_file_fetched_over_another_holds_nothing_of_it(tmp_path: Path, data: bytes, size: int) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"\xff" * size)
    parts = parts_of(data) if data is LARGE else None
    with OddServer(lambda path, asked, n: ranged(data, asked) if asked else (200, {}, data)) as server:
        fetch(server.url, tmp_path / "p", sha(data), len(data), parts, over=old)
        fetch(server.url, tmp_path / "p", sha(data), len(data), parts, over=tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert (tmp_path / "p").read_bytes() == data


def test_fetch_that_goes_on_leaves_the_file_that_it_might_have_written_over(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"\xff" * len(LARGE))
    partial_of(tmp_path, LARGE).write_bytes(LARGE[:PART])
    with OddServer(lambda path, asked, n: ranged(LARGE, asked)) as server:
        fetch(server.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE), over=old)
    assert (tmp_path / "p").read_bytes() == LARGE
    assert old.read_bytes() == b"\xff" * len(LARGE)


def test_journal_of_another_file_is_not_believed(tmp_path: Path) -> None:
    place = tmp_path / "p"
    for text in (
        "",
        "garbage",
        '{"sha256": "x", "size": 1}\n1\n2\n',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ):
        partial_of(tmp_path, LARGE).write_bytes(bytes(len(LARGE)))
        partial_of(tmp_path, LARGE).with_suffix(".journal").write_text(text)
        with OddServer(lambda path, asked, n: ranged(LARGE, asked)) as server:
            fetch(server.url, place, sha(LARGE), len(LARGE), parts_of(LARGE))
        assert place.read_bytes() == LARGE
        assert len(server.seen) == 4


def test_parts_that_somebody_made_up_for_other_bytes_do_not_pass_for_the_file(tmp_path: Path) -> None:
    """Outside a manifest the hub says what the parts are: the digest of the whole decides."""
    forged = LARGE[:-1] + bytes([LARGE[-1] ^ 1])
    with OddServer(lambda path, asked, n: ranged(forged, asked)) as server:
        with pytest.raises(Rejected, match=rf"E_DIGEST: p: the whole has digest {sha(forged)}"):
            fetch(server.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(forged))
        assert list(tmp_path.iterdir()) == []
        fetch(server.url, tmp_path / "p", sha(forged), len(forged), parts_of(forged))


def test_same_file_is_fetched_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        Partial(tmp_path / "p", sha(SMALL), len(SMALL)),
        pytest.raises(Unchecked, match=r"E_BUSY.*/p is being"),
    ):
        fetch("http://127.0.0.1:9/", tmp_path / "p", sha(SMALL), len(SMALL))
    assert partial_of(tmp_path, SMALL).exists()


def test_parts_that_do_not_fit_the_size_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"E_SIZE.*are not 3 parts"):
        fetch("http://127.0.0.1:9/", tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE)[:3])


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with (
        OddServer(lambda path, asked, n: ranged(LARGE, asked)) as server,
        pytest.raises(Unchecked, match=rf"E_DISK_FULL: no room for the {len(LARGE)} bytes of .*/p") as error,
    ):
        fetch(server.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
    assert "make room" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_proxy_of_the_environment_is_used_for_others_and_never_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OddServer(lambda path, asked, n: ranged(SMALL, asked)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//user:p%40ss@"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        fetch("http://store.example/a?b=c", tmp_path / "p", sha(SMALL), len(SMALL))
        assert proxy.seen[0][0] == "http://store.example/a?b=c"
        assert proxy.seen[0][1]["Proxy-Authorization"] == "Basic dXNlcjpwQHNz"
        with OddServer(lambda path, asked, n: ranged(SMALL, asked)) as local:
            fetch(local.url + "/x", tmp_path / "p", sha(SMALL), len(SMALL))
        assert len(proxy.seen) == 1
        assert "Proxy-Authorization" not in local.seen[0][1]


def test_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match=r"E_STORE_UNREACHABLE.*http://127\.0\.0\.1:9.*Refused"):
        fetch("http://127.0.0.1:9/secret", tmp_path / "p", sha(SMALL), len(SMALL))
