"""What nothing needs goes; what anything needs stays, also when pushes and sweeps meet."""

import base64
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlmodel import Session, col, select

from federation.publishing import push_version
from federation.wire import SmallFile
from hub.background import Housekeeper
from hub.services import garbage, keeping, plain_uploads
from hub.services.garbage import Swept, sweep
from hub.tables import (
    BlobRow,
    ModelRow,
    PlainUploadRow,
    PlanRow,
    RevisionRow,
    RoundRow,
    RunRow,
    StatementRow,
    StatementSubjectRow,
    UploadRow,
    VersionFileRow,
    XorbRow,
)
from storage.errors import FedhubError, Refused
from storage.manifests import PART_BYTES
from tests.alliances import ENGINES, LABS, MODEL, OWNER, AllianceInProcess, digest, open_alliance, weights
from tests.stock_http import Stock
from tests.xet_bytes import chunk, xorb

YEAR = 365 * 86_400


@pytest.fixture(params=ENGINES)
def alliance(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path, request.param, superlink="external", unused_hours=1) as opened:
        yield opened


def later(alliance: AllianceInProcess) -> int:
    return alliance.hub.ledger.now() + YEAR


def objects(alliance: AllianceInProcess) -> set[str]:
    return {digest(alliance.store.get(key)) for key in alliance.store.list("blobs/")}


def send(alliance: AllianceInProcess, data: bytes) -> None:
    with alliance.as_(OWNER) as owner:
        assert alliance.send(owner, data).state == "stored"


def test_files_of_versions_stay_and_unused_uploads_go_after_their_time(alliance: AllianceInProcess) -> None:
    alliance.push({"model.safetensors": weights(1), "README.md": b"# m"})
    unused = os.urandom(100)
    send(alliance, unused)
    assert not any(sweep(alliance.hub).as_json().values())
    dry = sweep(alliance.hub, now=later(alliance), dry_run=True)
    assert (dry.blobs, dry.bytes) == (1, 100) and digest(unused) in objects(alliance)
    swept = sweep(alliance.hub, now=later(alliance))
    assert swept == dry
    assert objects(alliance) == {digest(weights(1)), digest(b"# m")}
    with alliance.hub.database.session_scope(write=False) as session:
        assert session.get(BlobRow, digest(unused)) is None
        assert not session.exec(select(UploadRow).where(UploadRow.sha256 == digest(unused))).all()
    assert not any(sweep(alliance.hub, now=later(alliance)).as_json().values())
    send(alliance, unused)  # and it may come again
    assert digest(unused) in objects(alliance)


def test_what_was_swept_cannot_be_published(
    alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sweep_first(*_: object) -> dict[str, str]:
        sweep(alliance.hub, now=later(alliance))
        return {}

    monkeypatch.setattr("hub.services.registry.check_formats", sweep_first)
    with pytest.raises(Refused, match="E_BLOB_MISSING"):
        alliance.push({"model.safetensors": weights(5)}, f"{OWNER}/late")
    monkeypatch.undo()
    made = alliance.push({"model.safetensors": weights(5)}, f"{OWNER}/late")
    sweep(alliance.hub, now=later(alliance))
    assert whole(alliance, made.asset_id)


@pytest.mark.parametrize("way", ["commit", "group"])
def test_small_file_of_anothers_that_is_swept_as_it_is_kept_is_there(
    alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    data, keep = f"common {way}".encode(), plain_uploads._keep_all
    stock, repo = Stock.of(alliance, LABS[0]), f"{LABS[0]}/{way}"

    def sweep_first(*arguments: Any) -> None:
        monkeypatch.setattr(plain_uploads, "_keep_all", keep)
        garbage.sweep_blobs(alliance.hub, Swept(), later(alliance))
        keep(*arguments)

    send(alliance, data)
    stock.create(repo)
    monkeypatch.setattr(plain_uploads, "_keep_all", sweep_first)
    if way == "group":
        with alliance.as_(LABS[0]) as lab:
            lab.upload_small([SmallFile(sha256=digest(data), data=base64.b64encode(data).decode())])
        assert plain_uploads._keep_all is keep
    assert stock.commit(repo, {"note.txt": data}).status_code == 200
    assert stock.resolve(repo, "main", "note.txt").content == data


def whole(alliance: AllianceInProcess, asset_id: str) -> bool:
    """Whether manifest, files, blobs and objects of a version are all there."""
    assert alliance.store.size(keeping.manifest_key(asset_id)) is not None
    with alliance.hub.database.session_scope(write=False) as session:
        files = session.exec(select(VersionFileRow).where(VersionFileRow.asset_id == asset_id)).all()
        assert files
        for file in files:
            blob = session.get(BlobRow, file.sha256)
            assert blob is not None and digest(alliance.store.get(blob.key)) == file.sha256, file.name
    return True


def test_stray_objects_and_parts_go_when_they_are_old(alliance: AllianceInProcess) -> None:
    send(alliance, b"kept")
    alliance.store.put("blobs/sha256/aa/stray", b"stray")
    alliance.store.put("assets/" + "a" * 64 + "/manifest.json", b"{}")
    alliance.store.begin_parts("blobs/sha256/bb/cut")
    with alliance.as_(OWNER) as owner:
        owner.upload("c" * 64, PART_BYTES + 1, parts=["d" * 64, "e" * 64])  # open: it is needed
    assert len(list(alliance.store.unfinished())) == 2
    assert not any(sweep(alliance.hub).as_json().values())
    swept = Swept()
    since = int(time.time()) + 5
    for part in (garbage.sweep_assets, garbage.sweep_objects, garbage.sweep_parts):
        part(alliance.hub, swept, since)
    assert swept == Swept(assets=1, objects=1, parts=1, bytes=5)
    assert objects(alliance) == {digest(b"kept")}
    assert [upload for _key, upload, _at in alliance.store.unfinished()] == [open_upload(alliance)]


def test_parts_that_came_when_their_upload_was_joined_already_go_when_they_are_old(
    alliance: AllianceInProcess,
) -> None:
    send(alliance, b"joined")
    with alliance.hub.database.session_scope(write=False) as session:
        kept = session.get(BlobRow, digest(b"joined"))
    assert kept is not None
    alliance.store.begin_parts(kept.key)  # as some stores keep one whose last parts came late
    swept = Swept()
    garbage.sweep_parts(alliance.hub, swept, later(alliance))
    assert (swept.parts, list(alliance.store.unfinished())) == (1, [])
    assert alliance.store.get(kept.key) == b"joined"


def open_upload(alliance: AllianceInProcess) -> str | None:
    with alliance.hub.database.session_scope(write=False) as session:
        return session.exec(select(UploadRow.multipart).where(UploadRow.state == "open")).one()


def test_files_of_a_draft_stay_until_it_is_dropped(alliance: AllianceInProcess, tmp_path: Path) -> None:
    """A draft is a revision without a version; a dropped repository leaves lists of files behind."""
    made = alliance.push({"model.safetensors": weights(3)}, MODEL)
    draft, gone = "1" * 64, "2" * 64
    for data in (b"draft", b"gone"):
        send(alliance, data)
    with alliance.hub.database.session_scope() as session:
        now = alliance.hub.ledger.now()
        session.add(ModelRow(name=f"{OWNER}/d", owner=OWNER, visibility="gated", created_at=now))
        session.add(
            RevisionRow(
                kind="model",
                name=f"{OWNER}/d",
                id="a" * 40,
                asset_id=draft,
                title="t",
                author=OWNER,
                created_at=now,
            )
        )
        for asset, data in ((draft, b"draft"), (gone, b"gone")):
            session.add(VersionFileRow(asset_id=asset, name="f", sha256=digest(data), size=len(data)))
    for asset in (draft, gone):
        alliance.store.put(keeping.manifest_key(asset), b"{}")
    swept = sweep(alliance.hub, now=later(alliance))
    assert (swept.assets, swept.blobs) == (1, 1)
    assert objects(alliance) == {digest(b"draft"), digest(weights(3))}
    assert whole(alliance, made.asset_id) and alliance.store.size(keeping.manifest_key(draft)) is not None


NEVER = "0" * 64
NEEDS = {
    "a plan's base": True,
    "a plan's app": True,
    "the aggregate of a round": True,
    "a round statement": True,
    "a provenance statement": True,
    "a release statement": True,
    "a receipt statement": False,
    "a running run": True,
    "a stopped run": True,
    "a cancelled run": False,
}


def lean(session: Session, need: str, sha256: str, number: int) -> None:
    """Have this, and nothing else, lean on a blob."""
    own = f"{number:064x}"
    if need.endswith("statement"):
        row = StatementRow(id=own, log_index=1000 + number, kind=need.split()[1], issuer=OWNER, hint=NEVER)
        row.audience, row.logged_at, row.bundle, row.leaf = "members", 1, b"", b""
        session.add(row)
        session.flush()
        session.add(StatementSubjectRow(statement=own, digest=sha256))
        return
    plan = PlanRow(id=own, issuer=OWNER, recipe=NEVER, config=NEVER, base_asset=NEVER, weights=NEVER)
    plan.participants, plan.expires_at, plan.created_at = [], 1, 1
    plan.weights = sha256 if need == "a plan's base" else NEVER
    plan.recipe = sha256 if need == "a plan's app" else NEVER
    session.add(plan)
    session.flush()
    state = need.split()[1] if need.endswith("run") else "cancelled"
    session.add(RunRow(plan=own, state=state, started_at=1))
    session.flush()
    if need.endswith("run"):
        session.exec(select(UploadRow).where(UploadRow.sha256 == sha256)).one().plan = own
    if need.endswith("round"):
        made = RoundRow(
            plan=own, round=1, statement=NEVER, input=NEVER, aggregate=sha256, size=5, seconds=1.0
        )
        made.receipts, made.sites, made.metrics, made.closed_at = [], {}, {}, 1
        session.add(made)


def test_each_thing_that_leans_on_bytes_keeps_them_by_itself(alliance: AllianceInProcess) -> None:
    for need in NEEDS:
        send(alliance, need.encode())
    with (
        alliance.hub.database.session_scope() as session
    ):  # no request after this: these papers are no papers
        for number, need in enumerate(NEEDS, start=1):
            lean(session, need, digest(need.encode()), number)
    sweep(alliance.hub, now=later(alliance))
    left = objects(alliance)
    assert [need for need in NEEDS if digest(need.encode()) in left] == [
        n for n, stays in NEEDS.items() if stays
    ]


@pytest.mark.parametrize("way", ["announced", "sent with others"])
def test_old_bytes_that_were_just_announced_again_stay_for_their_time(
    alliance: AllianceInProcess, way: str
) -> None:
    data = b"from long ago"

    def grow_old() -> None:
        with alliance.hub.database.session_scope() as session:
            session.get_one(BlobRow, digest(data)).created_at = 1
            for upload in session.exec(select(UploadRow).where(UploadRow.sha256 == digest(data))):
                upload.created_at = 1

    send(alliance, data)
    grow_old()
    with alliance.as_(OWNER) as owner:
        if way == "announced":
            assert owner.upload(digest(data), len(data)).state == "stored"
        else:
            owner.upload_small([SmallFile(sha256=digest(data), data=base64.b64encode(data).decode())])
    assert sweep(alliance.hub).blobs == 0
    grow_old()
    assert sweep(alliance.hub).blobs == 1


def test_bytes_of_unfinished_uploads_of_stock_clients_are_not_stray(alliance: AllianceInProcess) -> None:
    stock, repo, swept = Stock.of(alliance, OWNER), f"{OWNER}/half", Swept()
    stock.create(repo)
    half_sent(stock, repo)
    for sweep_part in (garbage.sweep_objects, garbage.sweep_parts):
        sweep_part(alliance.hub, swept, int(time.time()) + 5)
    assert swept == Swept() and len(list(alliance.store.unfinished())) == 1
    assert len(list(alliance.store.list("xet/"))) == 1


def half_sent(stock: Stock, repo: str) -> None:
    """An upload of each of a stock client's two kinds that nobody finished."""
    (answer,) = stock.batch(repo, ("b" * 64, 5)).json()["objects"]
    assert "actions" in answer
    token = stock.api(repo, "/xet-write-token/main").json()["accessToken"]
    name, body = xorb(chunk(b"half"))
    where, headers = f"/xet/v1/xorbs/default/{name}", {"Authorization": f"Bearer {token}"}
    assert stock.http.post(where, content=body, headers=headers).status_code == 200


def test_an_upload_that_is_settled_as_it_expires_keeps_its_bytes(
    alliance: AllianceInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hub.services import uploads_waiting

    data = os.urandom(50)
    with alliance.as_(OWNER) as owner:
        upload = owner.upload(digest(data), 50)
        alliance.store.put(upload.orders[0].url.partition("/blobs/")[2].join(("blobs/", "")), data)
        with alliance.hub.database.session_scope(write=False) as session:
            late = session.get_one(UploadRow, upload.id)
        owner.upload_complete(upload.id)  # between the sweep's look and its hand
    assert not uploads_waiting._expire_one(alliance.hub, late)
    assert digest(data) in objects(alliance)


def test_the_hub_drops_every_kind_of_upload_that_nobody_finished_in_time(alliance: AllianceInProcess) -> None:
    stock, repo = Stock.of(alliance, OWNER), f"{OWNER}/half"
    stock.create(repo)
    with alliance.as_(OWNER) as owner:
        owner.upload("a" * 64, PART_BYTES + 1, parts=["d" * 64, "e" * 64])
    half_sent(stock, repo)
    kinds = (UploadRow, PlainUploadRow, XorbRow)
    for ended, left in ((False, 3), (True, 0)):
        with alliance.hub.database.session_scope() as session:
            for row in (row for kind in kinds for row in session.exec(select(kind)) if ended):
                row.expires_at = 1
        keeper = Housekeeper(alliance.hub)
        keeper.look()
        keeper.release()
        with alliance.hub.database.session_scope(write=False) as session:
            assert sum(len(session.exec(select(kind)).all()) for kind in kinds) == left
        assert len(list(alliance.store.unfinished())) == max(0, left - 1)
        assert len(list(alliance.store.list("xet/"))) == min(1, left)


def test_the_hub_sweeps_by_itself_but_not_at_its_start(alliance: AllianceInProcess) -> None:
    alliance.store.put("blobs/sha256/aa/stray", b"stray")
    os_time = [0.0]
    keeper = Housekeeper(alliance.hub, clock=lambda: os_time[0])
    swept: list[object] = []
    original = garbage.sweep
    try:
        garbage.sweep = lambda hub: swept.append(hub) or Swept()  # type: ignore[assignment,func-returns-value]
        for at in (0.0, 100.0, 6 * 3600.0, 6 * 3600.0 + 5, 12 * 3600.0 + 5):
            os_time[0] = at
            keeper.look()
    finally:
        garbage.sweep = original
        keeper.release()
    assert len(swept) == 2


Pusher = Callable[[int, Random], Iterator[str]]


def pushes_and_sweeps(alliance: AllianceInProcess, push: Pusher) -> set[str]:
    """What three pushers made while two sweepers knew no grace for rows, so that only locks keep what pushes lean on."""
    stop, made, failures = threading.Event(), list[str](), list[BaseException]()

    def run(worker: int) -> None:
        try:
            made.extend(push(worker, Random(worker)))
        except BaseException as error:
            failures.append(error)

    def sweeps() -> None:
        try:
            while not stop.is_set():
                future, swept = later(alliance), Swept()
                garbage.sweep_blobs(alliance.hub, swept, future)
                garbage.sweep_assets(alliance.hub, swept, future)
                garbage.sweep_objects(alliance.hub, swept, alliance.hub.ledger.now() - 3600)
                stop.wait(0.1)
        except BaseException as error:
            failures.append(error)

    pushers = [threading.Thread(target=run, args=(worker,)) for worker in range(3)]
    sweepers = [threading.Thread(target=sweeps) for _ in range(2)]
    for thread in (*pushers, *sweepers):
        thread.start()
    for thread in pushers:
        thread.join()
    stop.set()
    for thread in sweepers:
        thread.join()
    assert not failures, failures
    assert made
    return set(made)


SHARED = [weights(float(number)) for number in range(4)]


def test_pushes_and_sweeps_at_the_same_time_never_lose_a_byte(
    alliance: AllianceInProcess, tmp_path: Path
) -> None:
    """Pushes share files and go back to earlier ones. A push may be told that its bytes were dropped; it may
    never succeed and lack one.
    """

    def push(worker: int, random: Random) -> Iterator[str]:
        home, folder = alliance.homes[OWNER], tmp_path / f"w{worker}"
        with alliance.as_(OWNER) as client:
            for step in range(4):
                target = folder / str(step)
                target.mkdir(parents=True)
                (target / "model.safetensors").write_bytes(random.choice(SHARED))
                (target / "note.txt").write_text(f"{random.randrange(3)}")
                for _ in range(30):
                    try:
                        version = push_version(home, client, target, f"{OWNER}/m{worker}")
                    except FedhubError as error:
                        if error.code not in ("E_BLOB_MISSING", "E_STORE_UNREACHABLE", "E_NOT_FOUND"):
                            raise
                        continue
                    yield version.asset_id
                    break

    assert all(whole(alliance, asset_id) for asset_id in pushes_and_sweeps(alliance, push))


def test_commits_of_stock_clients_and_sweeps_at_the_same_time_never_lose_a_byte(
    alliance: AllianceInProcess,
) -> None:
    """The same for drafts: bytes by LFS and within the commit."""

    def push(worker: int, random: Random) -> Iterator[str]:
        name = (OWNER, *LABS)[worker]
        stock, repo = Stock.of(alliance, name), f"{name}/d"
        assert stock.create(repo).status_code == 200
        for _ in range(5):
            for _ in range(30):
                large = stock.upload(repo, random.choice(SHARED))
                note = f"{worker} {random.randrange(3)}".encode()
                answer = stock.commit(repo, {"note.txt": note}, large={"model.safetensors": large})
                if answer.status_code == 200:
                    yield answer.json()["commitOid"]
                    break
                assert answer.json()["code"] == "E_BLOB_MISSING", answer.text

    commits = pushes_and_sweeps(alliance, push)
    with alliance.hub.database.session_scope(write=False) as session:
        made = session.exec(select(RevisionRow.asset_id).where(col(RevisionRow.id).in_(commits))).all()
    assert len(made) == len(commits) and all(whole(alliance, str(asset_id)) for asset_id in made)
