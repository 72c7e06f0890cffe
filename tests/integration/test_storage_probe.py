"""The probe finds nothing to blame in good stores, and names what a bad one does."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.blobs import FolderStore, Order, store_secret
from storage.probe import PROMISES, probe
from tests.servers import blob_server, running_store, store_names


@pytest.mark.parametrize("name", store_names())
def test_good_store_keeps_every_promise_and_is_left_clean(name: str, tmp_path: Path) -> None:
    with running_store(name, tmp_path) as make:
        findings = probe(make())
        assert [(finding.promise, finding.seen) for finding in findings if not finding.kept] == []
        assert len(findings) == len(PROMISES)
        assert list(make().list("")) == []


class Careless(FolderStore):
    """A folder store that breaks one promise after another."""

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        super().put(key, data)

    def order(self, key: str, sha256: str, size: int) -> Order:
        super().put(key, b"stump")
        return super().order(key, sha256, size)

    def take_unhashed(self, key: str, upload_id: str | None, sha256: str, size: int) -> bool:
        super().put(key, b"other bytes")
        return True

    def signed_url(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        return super().signed_url(key, expires_s=3600, filename=filename)


@pytest.fixture
def careless(tmp_path: Path) -> Iterator[Careless]:
    with blob_server(tmp_path) as url:
        yield Careless(tmp_path, url, store_secret(tmp_path))


def test_bad_store_is_told_what_it_breaks(careless: Careless) -> None:
    broken = {finding.promise: finding.seen for finding in probe(careless) if not finding.kept}
    assert broken == {
        "an order refuses other bytes": "status 400, 400, 400",
        "a cut upload is never visible": "a stump of 5 bytes",
        "bytes sent before their digest are hashed by the store, and stay as they are": "status closed, 200, 200",
        "a key is written once where the hub says so": "overwritten",
        "a signed URL stops working in time": "status 200",
    }


def test_store_that_is_away_breaks_every_promise_and_says_so(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, "http://127.0.0.1:9", b"s" * 32)
    findings = {finding.promise: finding for finding in probe(store)}
    assert not findings["a signed URL reads"].kept
    assert re.search("refused", findings["a signed URL reads"].seen)
