"""A hub starts on a store that keeps its promises, once tried, and on no other."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub.serve
from hub.services import store_check
from hub.services.store_check import GOOD_FOR_S, PASSED, WHAT_TO_DO, check_store, ensure_safe
from hub.settings import load_settings
from storage.blobs import BlobStore, FolderStore, store_secret
from storage.errors import Unchecked
from storage.probe import PROMISES, Finding, probe
from tests.servers import blob_server, running_store, store_names

ADDRESS = "file:///somewhere"


class Overwriting(FolderStore):
    """A folder store that knows no create-only writes, as some S3 servers do not."""

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        super().put(key, data)


@pytest.fixture
def overwriting(tmp_path: Path) -> Iterator[Overwriting]:
    with blob_server(tmp_path / "store") as url:
        yield Overwriting(tmp_path / "store", url, store_secret(tmp_path / "store"))


@pytest.mark.parametrize("name", store_names())
def test_a_good_store_is_tried_once_and_then_believed_for_a_week(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    found: list[list[Finding]] = []

    def counted(store: BlobStore, address: str, now: int) -> object:
        tries.append(now)
        return check_store(store, address, now)

    def probed_once(store: BlobStore) -> list[Finding]:  # seconds, since it waits for a URL to expire
        found.append(found[0] if found else probe(store))
        return found[0]

    monkeypatch.setattr(store_check, "check_store", counted)
    monkeypatch.setattr(store_check, "probe", probed_once)
    with running_store(name, tmp_path) as make:
        now = int(time.time())
        for at in (now, now + 60, now + GOOD_FOR_S - 1):
            ensure_safe(make(), ADDRESS, at)
        assert tries == [now]
        ensure_safe(make(), ADDRESS, now + GOOD_FOR_S)
        ensure_safe(make(), "file:///elsewhere", now + GOOD_FOR_S)
        assert len(tries) == 3
        assert list(make().list("")) == [PASSED]


def test_an_unsafe_store_is_refused_with_the_promise_and_what_to_do(
    overwriting: Overwriting, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = probe(overwriting)
    monkeypatch.setattr(store_check, "probe", lambda _store: findings)
    for _ in range(2):  # it is never noted as good
        with pytest.raises(
            Unchecked, match="'a key is written once where the hub says so' does not hold"
        ) as caught:
            ensure_safe(overwriting, ADDRESS, 1_000_000)
        assert caught.value.code == "E_STORE_UNSAFE" and "If-None-Match" in caught.value.hint
    assert overwriting.size(PASSED) is None


def test_a_damaged_note_is_no_pass(overwriting: Overwriting, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = probe(overwriting)
    monkeypatch.setattr(store_check, "probe", lambda _store: findings)
    for note in (b"{", b"[]", b'{"at": "x"}', b"\xff"):
        overwriting.put(PASSED, note)
        with pytest.raises(Unchecked, match="E_STORE_UNSAFE"):
            ensure_safe(overwriting, ADDRESS, 1_000_000)


def test_every_promise_has_something_to_do() -> None:
    assert set(WHAT_TO_DO) == {promise for promise, _attempt, _vital in PROMISES}


def test_a_hub_serves_nothing_on_an_unsafe_store(
    overwriting: Overwriting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = dict.fromkeys(("port", "download_port", "blob_port", "fleet_port", "control_port"), 0)
    settings = load_settings(
        data_dir=tmp_path / "hub", operator_home=tmp_path / "operator", superlink="off", **ports
    )
    monkeypatch.setattr(hub.serve, "near_store_of", lambda *_: overwriting)
    with pytest.raises(Unchecked, match="E_STORE_UNSAFE"):
        hub.serve.run_hub(settings, ready=lambda _hub: pytest.fail("it served"))
