"""Many small files travel together, and nothing that travels so is believed unchecked."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from federation import publishing, pulling, small_files, wire
from federation.publishing import push_version
from federation.small_files import SMALL_BYTES, fetch_small, groups, send_small
from hub.tables import InstitutionRow
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.manifests import FileEntry, build_manifest
from tests.alliances import ENGINES, FIRM, OWNER, AllianceInProcess, open_alliance

COUNT = 200


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("small"), request.param, superlink="external") as opened:
        yield opened


def entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(name, hashlib.sha256(data).hexdigest(), len(data))


def many(folder: Path, count: int = COUNT) -> Path:
    for number in range(count):
        path = folder / f"{number % 7}" / f"{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{folder.name} {number}\n".encode() * (number % 50))  # some are empty
    return folder


def code_of(call: Any, /, *arguments: Any, **options: Any) -> str:
    with pytest.raises(FedhubError) as caught:
        call(*arguments, **options)
    return caught.value.code


class Counting(httpx.BaseTransport):
    """Counts what goes through."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner
        self.asked: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.path}")
        return self.inner.handle_request(request)


def read_through(alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the client's downloads go straight into the download origin; returns what it asks for."""
    asked: list[str] = []

    def fetch_bytes(url: str, size: int) -> bytes:
        asked.append(url)
        with alliance.http(downloads=True) as http:
            answer = http.get(url.removeprefix(alliance.settings.downloads))
        if answer.status_code != 200:
            raise Refused(answer.json()["code"], answer.json()["detail"], status=answer.status_code)
        return answer.content

    monkeypatch.setattr(small_files, "fetch_bytes", fetch_bytes)
    return asked


def test_two_hundred_small_files_are_pushed_and_pulled_in_a_handful_of_requests(
    alliance: AllianceInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = many(tmp_path / "many"), read_through(alliance, monkeypatch)
    transport = Counting(alliance.transport)
    monkeypatch.setattr(alliance, "transport", transport)
    moved: list[int] = []
    with alliance.as_(OWNER) as owner:
        version = push_version(alliance.homes[OWNER], owner, folder, f"{OWNER}/many", moved=moved.append)
        pushed = [one for one in transport.asked if "/token" not in one]
        assert len(pushed) <= 4, pushed  # find the model, the files, the version
        assert sum(moved) == sum(file.size for file in version.files)
        pull = owner.pull(version.asset_id)
        manifest = build_manifest(folder, version.name)
        pulling.fetch_files(owner, pull, manifest, tmp_path / "got", moved=moved.append)
    assert len(asked) == 1
    assert build_manifest(tmp_path / "got", version.name).asset_id == version.asset_id
    assert len(version.files) == COUNT


def test_files_of_the_newest_version_are_not_told_of_again(
    alliance: AllianceInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, moved = many(tmp_path / "kept", 9), list[int]()
    home, name = alliance.homes[OWNER], f"{OWNER}/kept"
    transport = Counting(alliance.transport)
    monkeypatch.setattr(alliance, "transport", transport)
    with alliance.as_(OWNER) as owner:
        first = push_version(home, owner, folder, name)
        transport.asked.clear()
        assert push_version(home, owner, folder, name, moved=moved.append) == first
        assert [one for one in transport.asked if not one.startswith("GET") and "/token" not in one] == []
        assert sum(moved) == sum(file.size for file in first.files)
        (folder / "0" / "000.txt").rename(folder / "0" / "renamed.txt")
        assert push_version(home, owner, folder, name).version == 2
        assert not [one for one in transport.asked if "small-files" in one or "uploads" in one]


def test_a_push_that_is_refused_hashes_no_further(
    alliance: AllianceInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.bin").write_bytes(b"a" * (SMALL_BYTES + 1))
    begun, ended = Event(), list[bool]()

    def read_entries(folder: Path, stop: Event) -> Iterator[FileEntry]:
        yield entry("a.bin", (folder / "a.bin").read_bytes())
        begun.set()
        ended.append(stop.wait(30))  # a file that takes long
        raise Unchecked("E_INTERRUPTED", "")

    monkeypatch.setattr(publishing, "read_entries", read_entries)

    def upload(*_arguments: object, **_options: object) -> wire.Upload:
        assert begun.wait(30)
        raise Refused("E_LIMIT", "")

    with alliance.as_(OWNER) as owner:
        monkeypatch.setattr(owner, "upload", upload)
        assert code_of(push_version, alliance.homes[OWNER], owner, tmp_path, f"{OWNER}/big") == "E_LIMIT"
    assert ended == [True]


@pytest.mark.parametrize("name", [f"{OWNER}/", f"{OWNER}/a b", f"{OWNER}/../x", "bare"])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(
    alliance: AllianceInProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with alliance.as_(OWNER) as owner:
        transport = Counting(alliance.transport)
        monkeypatch.setattr(alliance, "transport", transport)
        code = code_of(push_version, alliance.homes[OWNER], owner, many(tmp_path, 2), name)
    assert code in ("E_USAGE", "E_MALFORMED") and transport.asked == []


def test_a_pull_that_was_cut_asks_only_for_groups_with_something_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {f"{number}.txt": bytes([number]) * SMALL_BYTES for number in range(200)}
    files = [entry(name, each) for name, each in data.items()]
    asked: list[str] = []

    def fetch_bytes(url: str, size: int) -> bytes:
        asked.append(url)
        group = groups(files, small_files.DOWN_BYTES, small_files.DOWN_FILES)[int(url)]
        return b"".join(data[one.name] for one in group)

    monkeypatch.setattr(small_files, "fetch_bytes", fetch_bytes)
    fetch_small(files, str, tmp_path, None)
    assert asked == ["0", "1"]
    (tmp_path / "199.txt").unlink()
    fetch_small(files, str, tmp_path, None)
    assert asked == ["0", "1", "1"]
    assert (tmp_path / "199.txt").read_bytes() == data["199.txt"]


def test_a_file_with_other_bytes_is_named_and_nothing_of_its_group_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_files, "fetch_bytes", lambda _url, _size: b"goodevil")
    with pytest.raises(Rejected, match=r"E_DIGEST: b\.txt"):
        fetch_small([entry("a.txt", b"good"), entry("b.txt", b"fine")], str, tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"now")
    for announced in (b"was", b"longer", b""):
        assert code_of(send_small, None, tmp_path, [entry("a.txt", announced)], None) == "E_FILE_CHANGED"
    assert code_of(send_small, None, tmp_path, [entry("gone.txt", b"x")], None) == "E_INPUT"


def test_a_hub_that_takes_no_large_requests_gets_the_files_one_by_one(tmp_path: Path) -> None:
    class Narrow:
        def upload_small(self, files: object) -> None:
            raise Refused("E_LIMIT", "the body is over 65536 bytes", status=413)

    (tmp_path / "a.txt").write_bytes(b"a")
    assert send_small(Narrow(), tmp_path, [entry("a.txt", b"a")], None) == set()


def test_groups_hold_the_small_files_in_order_within_the_limits() -> None:
    files = [FileEntry(str(n), "", size) for n, size in enumerate((5, SMALL_BYTES + 1, 6, 0, 4, 1))]
    assert [[one.name for one in group] for group in groups(files, 11, 3)] == [["0", "2", "3"], ["4", "5"]]
    assert groups([FileEntry("large", "", SMALL_BYTES + 1)], 11, 3) == []


def post(alliance: AllianceInProcess, *files: tuple[str, bytes], who: str = OWNER) -> None:
    with alliance.as_(who) as client:
        client.upload_small(
            [wire.SmallFile(sha256=sha256, data=base64.b64encode(data).decode()) for sha256, data in files]
        )


def test_the_hub_hashes_each_file_and_takes_all_or_none(alliance: AllianceInProcess) -> None:
    good, bad = entry("g", b"good small"), entry("b", b"bad small")
    call = lambda: post(alliance, (good.sha256, b"good small"), (bad.sha256, b"other"))  # noqa: E731
    assert code_of(call) == "E_DIGEST"
    with alliance.as_(OWNER) as owner:
        assert owner.upload(good.sha256, good.size).state == "open"
    large = entry("l", bytes(SMALL_BYTES + 1))
    assert code_of(lambda: post(alliance, (large.sha256, bytes(SMALL_BYTES + 1)))) == "E_LIMIT"


def test_a_small_file_is_its_senders_to_use_and_no_others(alliance: AllianceInProcess) -> None:
    file = entry("s", b"a small secret")
    post(alliance, (file.sha256, b"a small secret"))
    post(alliance, (file.sha256, b"a small secret"))  # a repeat
    with alliance.as_(OWNER) as owner, alliance.as_(FIRM) as firm:
        assert owner.upload(file.sha256, file.size).state == "stored"
        assert firm.upload(file.sha256, file.size).state == "open"
    post(alliance, (file.sha256, b"a small secret"), who=FIRM)
    with alliance.as_(FIRM) as firm:
        assert firm.upload(file.sha256, file.size).state == "stored"


def test_visitors_send_nothing(alliance: AllianceInProcess) -> None:
    with alliance.client() as nobody:
        file = entry("v", b"visitor")
        assert (
            code_of(nobody.upload_small, [wire.SmallFile(sha256=file.sha256, data="dmlzaXRvcg==")])
            == "E_LOGIN"
        )


def test_a_group_is_decided_anew_each_time_it_is_asked_for(
    alliance: AllianceInProcess, tmp_path: Path
) -> None:
    with alliance.as_(OWNER) as owner:
        version = push_version(alliance.homes[OWNER], owner, many(tmp_path / "anew", 9), f"{OWNER}/anew")
        small = owner.pull(version.asset_id).small
    assert small is not None
    path = small.removeprefix(alliance.settings.downloads)
    with alliance.http(downloads=True) as http:
        assert http.get(f"{path}/0").status_code == 200
        assert http.get(f"{path}/1").json()["code"] == "E_NOT_FOUND"
        assert http.get(f"/d/{'x' * 43}/small/0").json()["code"] == "E_CAPABILITY"
        assert http.get(f"{path}/-1").status_code == 422
        _suspend(alliance, OWNER, "suspended")
        try:
            assert http.get(f"{path}/0").status_code == 403
        finally:
            _suspend(alliance, OWNER, "approved")


def _suspend(alliance: AllianceInProcess, name: str, state: str) -> None:
    with alliance.hub.database.session_scope() as session:
        session.get_one(InstitutionRow, name).state = state
