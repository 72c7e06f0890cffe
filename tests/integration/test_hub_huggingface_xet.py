"""Uploads by Xet become plain blobs, and only of bytes that their sender posted."""

import hashlib
import os
import time
from collections.abc import Iterator

import pytest
from sqlmodel import select

from hub.services import xet_ingest
from hub.tables import BlobRow, InstitutionRow, PersonalTokenRow, XorbRow
from storage.manifests import PART_BYTES
from tests.alliances import ENGINES, LABS, OWNER, AllianceInProcess, open_alliance
from tests.stock_http import Stock
from tests.xet_bytes import chunk, shard, xorb


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("xet"), request.param) as opened:
        yield opened


class XetClient(Stock):
    """A stock client that uploads by Xet."""

    repo = ""
    cas: dict[str, str]

    def start(self, repo: str) -> "XetClient":
        self.repo = repo
        self.create(repo)
        answer = self.api(repo, "/xet-write-token/main")
        assert answer.headers["x-xet-cas-url"] == answer.json()["casUrl"] == "http://hub.test/xet"
        assert answer.headers["x-xet-access-token"] == answer.json()["accessToken"]
        assert int(answer.headers["x-xet-token-expiration"]) == answer.json()["exp"] > time.time()
        self.cas = {"Authorization": f"Bearer {answer.json()['accessToken']}"}
        return self

    def post_xorb(self, name: str, body: bytes) -> bool:
        answer = self.http.post(f"/xet/v1/xorbs/default/{name}", content=body, headers=self.cas)
        assert answer.status_code == 200, answer.text
        inserted: bool = answer.json()["was_inserted"]
        return inserted

    def post_shard(self, body: bytes) -> int:
        return self.http.post("/xet/v1/shards", content=body, headers=self.cas).status_code


@pytest.fixture(scope="module")
def owner(alliance: AllianceInProcess) -> XetClient:
    client = XetClient.of(alliance, OWNER)
    assert isinstance(client, XetClient)
    return client.start(f"{OWNER}/x")


@pytest.fixture(scope="module")
def lab(alliance: AllianceInProcess) -> XetClient:
    client = XetClient.of(alliance, LABS[0])
    assert isinstance(client, XetClient)
    return client.start(f"{LABS[0]}/x")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_file_of_chunks_is_stored_as_a_plain_blob(alliance: AllianceInProcess, owner: XetClient) -> None:
    pieces = [os.urandom(1000), bytes(5000), b"abcd" * 300]
    name, body = xorb(chunk(pieces[0]), chunk(pieces[1], 1), chunk(pieces[2], 2))
    other, second = xorb(chunk(b"tail"))
    assert owner.post_xorb(name, body) and owner.post_xorb(other, second)
    assert not owner.post_xorb(name, body)
    data = b"".join(pieces) + b"tail"
    made = shard((digest(data), [(name, 7200, 0, 3), (other, 4, 0, 1)]))
    assert owner.post_shard(made) == 200
    assert owner.post_shard(made) == 200  # clients repeat them
    assert owner.commit(owner.repo, large={"data.bin": (digest(data), len(data))}).status_code == 200
    answer = owner.resolve(owner.repo, "main", "data.bin", method="HEAD")
    assert "x-xet-hash" not in answer.headers
    assert owner.follow(answer.headers["location"]).content == data


def test_large_file_is_put_together_in_parts(alliance: AllianceInProcess, owner: XetClient) -> None:
    piece = os.urandom(1 << 20)
    name, body = xorb(*[chunk(piece)] * 40)
    owner.post_xorb(name, body)
    data = piece * 40
    assert owner.post_shard(shard((digest(data), [(name, len(data), 0, 40)]))) == 200
    with alliance.hub.database.session_scope(write=False) as session:
        found = session.get_one(BlobRow, digest(data))
    assert found.parts == [digest(data[:PART_BYTES]), digest(data[PART_BYTES:])]
    assert b"".join(alliance.store.stream(found.key)) == data


def test_shard_with_another_digest_makes_nothing(alliance: AllianceInProcess, owner: XetClient) -> None:
    name, body = xorb(chunk(b"something"))
    owner.post_xorb(name, body)
    assert owner.post_shard(shard(("a" * 64, [(name, 9, 0, 1)]))) == 422
    assert owner.post_shard(shard((digest(b"something"), [(name, 3, 0, 1)]))) == 422  # longer than it says
    with alliance.hub.database.session_scope(write=False) as session:
        assert session.get(BlobRow, "a" * 64) is None
    assert not list(alliance.store.list("blobs/sha256/aa/" + "a" * 64))


def test_chunks_of_another_institution_are_out_of_reach(owner: XetClient, lab: XetClient) -> None:
    secret = os.urandom(64)
    name, body = xorb(chunk(secret))
    owner.post_xorb(name, body)
    stolen = shard((digest(secret), [(name, 64, 0, 1)]))
    assert lab.post_shard(stolen) == 422
    assert lab.commit(lab.repo, large={"a.bin": (digest(secret), 64)}).status_code == 400
    assert owner.post_shard(stolen) == 200  # it is the owner's file now, which nobody else is told
    assert lab.post_shard(stolen) == 422
    assert lab.commit(lab.repo, large={"a.bin": (digest(secret), 64)}).status_code == 400
    lab.post_xorb(name, body)  # who has the bytes may send them
    assert lab.post_shard(stolen) == 200


def test_token_is_for_writers_and_for_this_alone(
    alliance: AllianceInProcess, owner: XetClient, lab: XetClient
) -> None:
    assert lab.api(owner.repo, "/xet-write-token/main").status_code == 403
    assert Stock(alliance, None).api(owner.repo, "/xet-write-token/main").status_code == 401
    name, body = xorb(chunk(b"x"))
    for token in ("", "Bearer x", owner.http.headers["authorization"]):
        bare = alliance.http()
        answer = bare.post(f"/xet/v1/xorbs/default/{name}", content=body, headers={"Authorization": token})
        assert answer.status_code == 401
        assert bare.post("/xet/v1/shards", content=b"", headers={"Authorization": token}).status_code == 401
    assert alliance.http().get("/api/whoami-v2", headers=owner.cas).status_code == 401


def test_token_ends_after_its_hour_with_the_membership_and_with_the_token_that_asked_for_it(
    alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = XetClient.of(alliance, OWNER)
    assert isinstance(owner, XetClient)
    owner.start(f"{OWNER}/ends")
    name, body = xorb(chunk(os.urandom(10)))

    def status() -> int:
        return owner.http.post(f"/xet/v1/xorbs/default/{name}", content=body, headers=owner.cas).status_code

    assert status() == 200
    with monkeypatch.context() as later:
        later.setattr(type(alliance.hub.ledger), "now", lambda _ledger: int(time.time()) + xet_ingest.TOKEN_S)
        assert status() == 401
    for state, expected in (("suspended", 401), ("approved", 200)):
        with alliance.hub.database.session_scope() as session:
            session.get_one(InstitutionRow, OWNER).state = state
        assert status() == expected
    with alliance.hub.database.session_scope() as session:
        mine = digest(owner.http.headers["authorization"].removeprefix("Bearer ").encode())
        session.exec(select(PersonalTokenRow).where(PersonalTokenRow.digest == mine)).one().revoked_at = 1
    assert status() == 401
    assert owner.http.post("/xet/v1/shards", content=b"", headers=owner.cas).status_code == 401


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ([("a" * 64, 13)], "a file of"),  # over 50 GB: no stock client could download it
        ([(f"{number:x}" * 64, 12) for number in range(5)], "a shard of files"),
    ],
)
def test_shard_that_says_too_many_bytes_is_refused_before_any_is_read(
    owner: XetClient, files: list[tuple[str, int]], rule: str
) -> None:
    length = (1 << 32) - 1  # the longest run that the form can say
    body = shard(*[(sha256, [("f" * 64, length, 0, 1)] * runs) for sha256, runs in files])
    answer = owner.http.post("/xet/v1/shards", content=body, headers=owner.cas)
    assert answer.status_code == 413 and rule in answer.json()["error"]


def test_rest_of_the_protocol_is_404_so_that_clients_go_on(owner: XetClient) -> None:
    for method, path in (
        ("GET", f"/xet/v1/chunks/default/{'0' * 64}"),
        ("POST", f"/xet/v1/xorb-grants/default/{'0' * 64}"),
        ("POST", "/xet/v2/shards"),
    ):
        answer = owner.http.request(method, path, headers=owner.cas)
        assert (answer.status_code, isinstance(answer.json(), dict)) == (404, True)


def test_bodies_that_are_too_long_or_no_xorb_are_refused(owner: XetClient) -> None:
    name, _body = xorb(chunk(b"x"))
    post = owner.http.post
    assert (
        post(f"/xet/v1/xorbs/default/{name}", content=bytes(66 << 20), headers=owner.cas).status_code == 413
    )
    assert post(f"/xet/v1/xorbs/default/{name}", content=b"\7nonsense", headers=owner.cas).status_code == 422
    assert post("/xet/v1/xorbs/default/short", content=chunk(b"x"), headers=owner.cas).status_code == 422
    assert owner.post_shard(b"nonsense") == 422


def test_chunks_are_dropped_in_the_end(alliance: AllianceInProcess, owner: XetClient) -> None:
    name, body = xorb(chunk(os.urandom(100)))
    owner.post_xorb(name, body)
    with alliance.hub.database.session_scope() as session:
        row = session.get_one(XorbRow, (OWNER, name))
        row.expires_at, key = int(time.time()) - 1, row.key
    assert xet_ingest.expire(alliance.hub) == 1
    assert alliance.store.size(key) is None
    assert owner.post_xorb(name, body)
