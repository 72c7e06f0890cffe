"""Files come down checked from servers that misbehave, through the kernel and through our own memory."""

import errno
import http.server
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from federation.fetching import fetch, fetch_bytes
from federation.partials import Partial
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from tests.small_disks import small_disk
from tests.transfers import (
    LARGE,
    PART,
    SMALL,
    Odd,
    OddServer,
    Reply,
    partial_of,
    parts_of,
    ranged,
    sha,
    use_small_parts,
)

pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_parts(monkeypatch)


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


@pytest.mark.parametrize(
    ("way", "call"),
    [
        ("copied", "posix_fallocate"),
        ("copied", "pwrite"),
        ("spliced", "posix_fallocate"),
        ("spliced", "splice"),
    ],
    indirect=["way"],
)
def test_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, call: str
) -> None:
    def full(*arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("federation.fetching.can_splice", lambda file: way == "spliced")
    monkeypatch.setattr("federation.splicing._empty" if call == "splice" else f"os.{call}", full)
    with (
        OddServer(lambda path, asked, n: ranged(LARGE, asked)) as server,
        pytest.raises(Unchecked, match=rf"E_DISK_FULL: no room for the {len(LARGE)} bytes of .*/p") as error,
    ):
        fetch(server.url, tmp_path / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
    assert "make room" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_disk_that_is_full_only_when_the_bytes_come_is_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system cannot take the room before."""
    monkeypatch.setattr(os, "posix_fallocate", None)
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", kib=PART // 1024) as disk:
        with (
            OddServer(lambda path, asked, n: ranged(LARGE, asked)) as server,
            pytest.raises(Unchecked, match="E_DISK_FULL"),
        ):
            fetch(server.url, disk / "p", sha(LARGE), len(LARGE), parts_of(LARGE))
        assert list(disk.iterdir()) == []


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
