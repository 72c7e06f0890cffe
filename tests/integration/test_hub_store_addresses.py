"""One S3 store with two names: the coordinator is sent to the inner one, everybody else to the public one."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from federation.wire import Upload, UploadRequest
from hub.access import COORDINATOR, Actor
from hub.services import runs, uploads, uploads_waiting
from storage.manifests import PART_BYTES
from tests.alliances import OWNER
from tests.hubs import HubInProcess, running_hub

SERVERS = os.environ.get("FEDHUB_TEST_S3_URL", "").split()
OWNER_ACTOR = Actor(OWNER, "owner", "access", frozenset({"read", "write"}), "targets")

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not SERVERS, reason="FEDHUB_TEST_S3_URL is not set: no S3 server"),
]


@pytest.fixture(scope="module", params=SERVERS)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubInProcess]:
    """A hub that knows its store as 127.0.0.1, and its clients as localhost."""
    port = urlsplit(request.param).port
    with running_hub(
        tmp_path_factory.mktemp("hub"),
        store_url=f"s3+http://127.0.0.1:{port}/test-{secrets.token_hex(8)}",
        store_public_url=f"http://localhost:{port}",
        store_access_key=os.environ["FEDHUB_TEST_S3_ACCESS_KEY"],
        store_secret_key=os.environ["FEDHUB_TEST_S3_SECRET_KEY"],
    ) as opened:
        opened.enrol(OWNER, "owner")
        yield opened


def hosts(upload: Upload) -> set[str | None]:
    return {urlsplit(order.url).hostname for order in upload.orders}


def send(upload: Upload, data: bytes) -> None:
    with httpx.Client(trust_env=False) as http:
        for order in upload.orders:
            start = max(0, order.part - 1) * PART_BYTES
            piece = data if order.part == 0 else data[start : start + PART_BYTES]
            assert http.put(order.url, headers=order.headers, content=piece, timeout=60).status_code == 200


@pytest.mark.parametrize(("actor", "host"), [(COORDINATOR, "127.0.0.1"), (OWNER_ACTOR, "localhost")])
@pytest.mark.parametrize("size", [1000, PART_BYTES + 5], ids=["whole", "parts"])
def test_each_side_is_given_orders_and_addresses_that_it_can_use(
    hub: HubInProcess, monkeypatch: pytest.MonkeyPatch, actor: Actor, host: str, size: int
) -> None:
    monkeypatch.setattr(uploads, "_check_may_upload", lambda *_: None)  # no run is needed for this
    data = os.urandom(1000) + bytes(size - 1000)
    parts = [hashlib.sha256(data[at : at + PART_BYTES]).hexdigest() for at in range(0, size, PART_BYTES)]
    sha256 = hashlib.sha256(data).hexdigest()
    request = UploadRequest(sha256=sha256, size=size, parts=parts if len(parts) > 1 else None)
    upload = uploads.announce(hub.hub, actor, request)
    assert hosts(upload) == {host}
    again = uploads.fresh_orders(hub.hub, actor, upload.id)
    assert hosts(again) == {host}
    send(again, data)
    uploads.complete(hub.hub, actor, upload.id)
    uploads_waiting.check_waiting(hub.hub)
    with hub.hub.database.session_scope(write=False) as session:
        located = runs.locate(hub.hub, session, sha256, actor)
    assert urlsplit(located.url).hostname == host
    assert httpx.get(located.url, trust_env=False).content == data


def test_a_signature_for_one_name_does_not_fit_the_other(hub: HubInProcess) -> None:
    hub.hub.store.put("k", b"content")
    url = hub.hub.coordinator_store.signed_url("k", expires_s=30)
    assert httpx.get(url, trust_env=False).content == b"content"
    assert httpx.get(url.replace("127.0.0.1", "localhost"), trust_env=False).status_code == 403
