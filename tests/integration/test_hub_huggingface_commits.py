"""Drafts: what goes where, uploads that are hashed before they count, commits, trees, branches and tags."""

import base64
import hashlib
import json
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from hub.api.huggingface import uploads as stock_uploads
from hub.services import plain_uploads, registry
from hub.services.revisions import commit_id
from hub.tables import BlobRow, PlainUploadRow, UploadRow
from storage.encoding import canonical, sha256_hex
from storage.manifests import read_manifest
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, open_alliance, weights
from tests.stock_http import Stock, git_blob, path_of, put

PART = 5 << 20


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("commits"), request.param, plain_part_bytes=PART) as opened:
        yield opened


@pytest.fixture(scope="module")
def owner(alliance: AllianceInProcess) -> Stock:
    return Stock.of(alliance, OWNER)


@pytest.fixture(scope="module")
def lab(alliance: AllianceInProcess) -> Stock:
    return Stock.of(alliance, LABS[0])


_numbers = iter(range(1000))


@pytest.fixture
def repo(owner: Stock) -> str:
    name = f"{OWNER}/r{next(_numbers)}"
    assert owner.create(name).status_code == 200
    return name


def paths(owner: Stock, repo: str, revision: str = "main", **asked: Any) -> list[str]:
    listed = owner.api(repo, f"/tree/{revision}", params={"recursive": "true", **asked}).json()
    return [one["path"] for one in listed if one["type"] == "file"]


# --- commit ids -------------------------------------------------------------------------------------------


def test_commit_id_stands_for_parent_manifest_and_signature(
    alliance: AllianceInProcess, owner: Stock, repo: str
) -> None:
    first = owner.api(repo).json()["sha"]
    assert first == sha256_hex(canonical({"repo": f"models/{repo}"}))[:40]
    made = owner.commit(repo, {"a.txt": b"a"}).json()["commitOid"]
    with alliance.as_(OWNER) as client:
        draft = client.revision("model", repo, made)
    assert draft.asset_id is not None and draft.version is None
    expected = canonical({"repo": f"models/{repo}", "parent": first, "manifest": draft.asset_id})
    assert made == sha256_hex(expected)[:40] == commit_id("model", repo, first, draft.asset_id, None)


def test_going_back_to_earlier_files_is_another_commit(owner: Stock, repo: str) -> None:
    ids = [owner.commit(repo, {"a.txt": text}).json()["commitOid"] for text in (b"1", b"2", b"1")]
    assert len(set(ids)) == 3
    assert [one["id"] for one in owner.api(repo, "/commits/main").json()][:3] == ids[::-1]


def test_commit_without_a_change_is_the_head(owner: Stock, repo: str) -> None:
    made = owner.commit(repo, {"a.txt": b"1"}).json()["commitOid"]
    assert owner.commit(repo, {"a.txt": b"1"}).json()["commitOid"] == made


def test_answer_names_the_commit_by_an_address_of_this_hub(owner: Stock, repo: str) -> None:
    answer = owner.commit(repo, {"a.txt": b"1"}).json()
    assert answer["success"] is True
    assert answer["commitUrl"] == f"http://hub.test/{repo}/commit/{answer['commitOid']}"
    name = f"{OWNER}/rows"
    owner.create(name, "dataset")
    answer = owner.commit(name, {"a.csv": b"a\n1\n"}, kind="dataset").json()
    assert answer["commitUrl"] == f"http://hub.test/datasets/{name}/commit/{answer['commitOid']}"


def test_stale_parent_is_412_and_a_short_one_of_the_head_is_good(owner: Stock, repo: str) -> None:
    old = owner.api(repo).json()["sha"]
    made = owner.commit(repo, {"a.txt": b"1"}, parent=old).json()["commitOid"]
    stale = owner.commit(repo, {"a.txt": b"2"}, parent=old)
    assert stale.status_code == 412
    assert owner.commit(repo, {"a.txt": b"2"}, parent=made[:7]).status_code == 200


def test_of_two_commits_at_the_same_moment_none_is_lost(
    owner: Stock, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two with the same parent is told so; one that names no parent is made again on the new head."""
    look_at, others = registry.check_formats, iter([b"other 1", b"other 2"])

    def as_another_commits(*arguments: Any) -> dict[str, str]:
        monkeypatch.setattr(registry, "check_formats", look_at)
        assert owner.commit(repo, {"other.txt": next(others)}).status_code == 200
        return look_at(*arguments)

    head = owner.api(repo).json()["sha"]
    for parent, status in ((head, 412), (None, 200)):
        monkeypatch.setattr(registry, "check_formats", as_another_commits)
        assert owner.commit(repo, {"mine.txt": b"mine"}, parent=parent).status_code == status
    assert paths(owner, repo) == ["mine.txt", "other.txt"]
    assert owner.resolve(repo, "main", "other.txt").content == b"other 2"


def test_deleting_the_last_file_leaves_a_commit_without_any(owner: Stock, repo: str) -> None:
    owner.commit(repo, {"a/b.txt": b"1", "a/c.txt": b"2", "ab.txt": b"3"})
    assert owner.commit(repo, delete_folders=("a/",)).status_code == 200
    assert paths(owner, repo) == ["ab.txt"]
    missing = owner.commit(repo, delete=("gone.txt",))
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")
    assert owner.commit(repo, delete=("ab.txt",)).status_code == 200
    assert owner.api(repo).json()["siblings"] == []


def test_only_branches_take_commits(owner: Stock, repo: str) -> None:
    owner.http.post(f"/api/models/{repo}/tag/main", json={"tag": "t1"})
    for branch in ("t1", "never", "v1"):
        answer = owner.commit(repo, {"a.txt": b"1"}, branch=branch)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
    assert owner.http.post(f"/api/models/{repo}/commit/main?create_pr=1", content=b"").status_code == 403


@pytest.mark.parametrize(
    "body",
    [
        b"not json\n",
        b'{"key":"file"}\n',
        b'{"key":"file","value":{"path":1,"content":"","encoding":"base64"}}\n',
        b'{"key":"file","value":{"path":"a","content":"?","encoding":"base64"}}\n',
        b'{"key":"file","value":{"path":"a","content":"","encoding":"utf-8"}}\n',
        b'{"key":"lfsFile","value":{"path":"a","algo":"md5","oid":"00","size":1}}\n',
        b'{"key":"lfsFile","value":{"path":"a","algo":"sha256","oid":"%s","size":-1}}\n' % (b"0" * 64),
        b'{"key":"symlink","value":{"path":"a"}}\n',
        b'{"key":"file","key":"x","value":{}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_line_that_is_no_operation_is_refused_and_nothing_changes(
    owner: Stock, repo: str, body: bytes
) -> None:
    before = owner.api(repo).json()["sha"]
    assert owner.commit_raw(repo, body).status_code == 422
    assert owner.api(repo).json()["sha"] == before


@pytest.mark.parametrize(
    "path", ["../a", "/a", "a//b", "a/.git/config", "a\\b", "a.", "a:b", "x" * 300, "", "e\u0301"]
)
def test_path_that_is_not_plain_everywhere_is_refused(owner: Stock, repo: str, path: str) -> None:
    answer = owner.commit(repo, {path: b"1"})
    assert answer.status_code == 422 and "rename" in answer.json()["error"]


def test_names_that_differ_in_case_only_are_refused(owner: Stock, repo: str) -> None:
    assert owner.commit(repo, {"a.txt": b"1"}).status_code == 200
    assert owner.commit(repo, {"A.txt": b"1"}).status_code == 422


def test_what_the_hub_makes_and_what_git_needs_is_left_out_with_a_word(owner: Stock, repo: str) -> None:
    files = {"a.txt": b"1", ".gitattributes": b"*", "model.sig": b"x", "fedhub/manifest.json": b"{}"}
    answer = owner.commit(repo, files)
    assert answer.status_code == 200 and ".gitattributes" in answer.headers["x-hf-warning"]
    assert paths(owner, repo) == ["a.txt"]
    asked = {"files": [{"path": path, "size": 1, "sample": ""} for path in files]}
    advice = owner.http.post(f"/api/models/{repo}/preupload/main", json=asked).json()["files"]
    assert [one["shouldIgnore"] for one in advice] == [False, True, True, True]


def test_pickle_is_refused_by_content_whatever_its_name(owner: Stock, repo: str) -> None:
    for name in ("weights.safetensors", "notes.txt"):
        answer = owner.commit(repo, {name: pickle.dumps({"a": os.getcwd})})
        assert answer.status_code == 422
        assert "pickle" in answer.json()["error"] and "safetensors" in answer.json()["error"]
    large = owner.upload(repo, pickle.dumps([0] * 10) + bytes(1 << 20))
    assert owner.commit(repo, large={"model.bin": large}).status_code == 422
    assert owner.api(repo).json()["siblings"] == []


def test_others_cannot_commit(lab: Stock, repo: str, alliance: AllianceInProcess) -> None:
    assert lab.commit(repo, {"a.txt": b"1"}).status_code == 403
    assert lab.http.post(f"/api/models/{repo}/preupload/main", json={"files": []}).status_code == 403
    assert lab.batch(repo, ("0" * 64, 1)).status_code == 403
    assert Stock(alliance, None).commit(repo, {"a.txt": b"1"}).status_code == 401
    assert Stock.of(alliance, OWNER, "read").commit(repo, {"a.txt": b"1"}).status_code == 403


def test_commit_over_the_limit_is_refused_while_it_arrives(
    alliance: AllianceInProcess, repo: str, owner: Stock
) -> None:
    line = json.dumps({"key": "file", "value": {"path": "a", "content": "A" * (17 << 20)}}).encode()
    assert owner.commit_raw(repo, line).status_code == 413


def test_what_a_client_sends_is_limited_in_number_and_size_and_the_answer_says_to_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock_uploads, "OPERATIONS_MOST", 4)
    limits = {"version_files": 3, "uploads_open": 2, "commit_limit": 1 << 20, "institution_bytes": 1 << 20}
    with open_alliance(tmp_path, members=(OWNER,), **limits) as small:
        stock, repo = Stock.of(small, OWNER), f"{OWNER}/small"
        stock.create(repo)

        def told(answer: httpx.Response, status: int, number: int) -> None:
            assert answer.status_code == status and str(number) in answer.text.replace(",", "")

        assert stock.commit(repo, {f"{n}.txt": b"1" for n in range(3)}).status_code == 200
        told(stock.commit(repo, {"3.txt": b"1"}), 413, 3)
        told(stock.commit(repo, {"0.txt": b"2"}, delete=("1.txt", "1.txt", "1.txt")), 413, 4)
        told(stock.commit(repo, {f"{n}.txt": bytes(400_000) for n in range(2)}), 413, 1 << 20)
        files = [{"path": f"{n}", "size": 1} for n in range(1001)]
        told(stock.http.post(f"/api/models/{repo}/preupload/main", json={"files": files}), 413, 1000)
        told(stock.batch(repo, ("f" * 64, 1 << 20)), 413, 1 << 20)  # with what is there, over the quota
        assert stock.batch(repo, ("a" * 64, 5), ("b" * 64, 5), ("a" * 64, 5)).status_code == 200
        told(stock.batch(repo, ("c" * 64, 5)), 429, 2)
        assert paths(stock, repo) == ["0.txt", "1.txt", "2.txt"]


# --- what goes where --------------------------------------------------------------------------------------


def test_advice_goes_by_size_and_kind_and_names_what_is_there(owner: Stock, repo: str) -> None:
    tensor = weights(1, 2)
    owner.commit(repo, {"config.json": b"{}", "m.safetensors": tensor})
    sizes = {
        "config.json": 2,
        "m.safetensors": 9,
        "new.safetensors": 0,
        "big.txt": (1 << 20) + 1,
        "b.txt": 1 << 20,
    }
    asked = {
        "files": [{"path": path, "size": size, "sample": "AA=="} for path, size in sizes.items()],
        "gitIgnore": "",
    }
    advice = owner.http.post(f"/api/models/{repo}/preupload/main", json=asked).json()["files"]
    assert {one["path"]: one["uploadMode"] for one in advice} == {
        "config.json": "regular",
        "m.safetensors": "lfs",
        "new.safetensors": "regular",  # empty files are always sent along
        "big.txt": "lfs",
        "b.txt": "regular",
    }
    oids = {one["path"]: one.get("oid") for one in advice}
    assert oids["config.json"] == git_blob(b"{}")
    assert oids["m.safetensors"] == hashlib.sha256(tensor).hexdigest()
    assert oids["b.txt"] is None
    assert owner.http.post(f"/api/models/{repo}/preupload/never", json=asked).status_code == 404


def test_large_file_goes_up_in_one_piece_or_in_parts(
    owner: Stock, repo: str, alliance: AllianceInProcess
) -> None:
    small, large = os.urandom(1000), os.urandom(2 * PART + 5)
    objects = [(hashlib.sha256(data).hexdigest(), len(data)) for data in (small, large)]
    answer = owner.batch(repo, *objects)
    assert answer.headers["content-type"].startswith("application/vnd.git-lfs+json")
    one, many = answer.json()["objects"]
    assert one["actions"]["upload"]["header"] == {}
    assert sorted(many["actions"]["upload"]["header"]) == ["1", "2", "3", "chunk_size"]
    for data, answered in ((small, one), (large, many)):
        owner.send(answered, data)
        assert owner.http.post(path_of(answered["actions"]["verify"]["href"]), json={}).status_code == 200
    owner.commit(repo, large={"small.bin": objects[0], "large.bin": objects[1]})
    for data, path in ((small, "small.bin"), (large, "large.bin")):
        assert (
            owner.follow(owner.resolve(repo, "main", path, method="HEAD").headers["location"]).content == data
        )
    # What is there needs no upload; neither does it in another repository of the same institution.
    assert "actions" not in owner.batch(repo, objects[0]).json()["objects"][0]


@pytest.mark.parametrize(
    ("size", "count"), [(PART - 1, 1), (PART, 1), (PART + 1, 2), (2 * PART, 2), (3 * PART, 3)]
)
def test_parts_are_as_many_as_the_client_counts(owner: Stock, repo: str, size: int, count: int) -> None:
    (answer,) = owner.batch(repo, (os.urandom(32).hex(), size)).json()["objects"]
    header = answer["actions"]["upload"]["header"]
    if count == 1:
        assert header == {}
    else:
        numbers = {str(number) for number in range(1, count + 1)}
        assert set(header) == {"chunk_size", *numbers} and header["chunk_size"] == str(PART)


def test_client_that_knows_no_parts_sends_the_whole(owner: Stock, repo: str) -> None:
    data = os.urandom(PART + 1)
    (answer,) = owner.batch(repo, (hashlib.sha256(data).hexdigest(), len(data)), transfers=("basic",)).json()[
        "objects"
    ]
    assert answer["actions"]["upload"]["header"] == {}
    owner.send(answer, data)
    assert owner.http.post(path_of(answer["actions"]["verify"]["href"]), json={}).status_code == 200


def test_other_bytes_than_announced_are_dropped(owner: Stock, repo: str, alliance: AllianceInProcess) -> None:
    data = os.urandom(500)
    oid = hashlib.sha256(data).hexdigest()
    (answer,) = owner.batch(repo, (oid, 500)).json()["objects"]
    upload, done = answer["actions"]["upload"]["href"], path_of(answer["actions"]["verify"]["href"])
    assert owner.http.post(done, json={}).status_code == 409  # nothing is there yet
    assert put(upload, data[:-1]) in (200, 400)  # S3 does not hold a part to its length
    assert put(upload, bytes(500)) == 200  # the store cannot know better
    refused = owner.http.post(done, json={"oid": oid, "size": 500})
    assert refused.status_code == 422
    assert owner.commit(repo, large={"a.bin": (oid, 500)}).status_code == 400
    with alliance.hub.database.session_scope(write=False) as session:
        assert session.get(BlobRow, oid) is None
    owner.upload(repo, data)
    assert owner.commit(repo, large={"a.bin": (oid, 500)}).status_code == 200


@pytest.mark.parametrize("size", [900, PART + 3], ids=["whole", "parts"])
def test_wrong_bytes_under_the_digest_of_anothers_file_touch_neither_it_nor_its_name(
    alliance: AllianceInProcess, owner: Stock, lab: Stock, repo: str, size: int
) -> None:
    data, places = os.urandom(size), list[str]()
    large = owner.upload(repo, data)
    assert owner.commit(repo, large={"a.bin": large}).status_code == 200
    theirs = f"{LABS[0]}/poison-{size}"
    lab.create(theirs)
    for wrong in (bytes(size), data[:-1] + b"!"):
        (answer,) = lab.batch(theirs, large).json()["objects"]
        upload, done = answer["actions"]["upload"], path_of(answer["actions"]["verify"]["href"])
        chunk = int(upload["header"].get("chunk_size", size))
        urls = [upload["header"][str(n)] for n in (1, 2)] if size > PART else [upload["href"]]
        for number, url in enumerate(urls):
            assert put(url, wrong[number * chunk : (number + 1) * chunk]) == 200
        assert lab.http.post(done, json={}).status_code == 422
        assert lab.commit(theirs, large={"a.bin": large}).status_code == 400
        places.append(done)
        location = owner.resolve(repo, "main", "a.bin", method="HEAD").headers["location"]
        assert owner.follow(location).content == data
    # All that completing needs is the address: nobody can work it out, not from the digest, not from an earlier one.
    assert len(set(places)) == 2 and not any(large[0] in place for place in places)


def test_empty_file_needs_no_upload(owner: Stock, repo: str) -> None:
    empty = hashlib.sha256(b"").hexdigest(), 0
    (answer,) = owner.batch(repo, empty).json()["objects"]
    assert "actions" not in answer and "error" not in answer
    assert owner.commit(repo, large={"weights.bin": empty}).status_code == 200
    answered = owner.resolve(repo, "main", "weights.bin")  # small whatever its ending
    assert (answered.status_code, answered.content) == (200, b"")
    assert answered.headers["etag"] == f'"{git_blob(b"")}"'


def test_address_of_an_upload_is_dead_once_it_was_checked(
    owner: Stock, repo: str, alliance: AllianceInProcess
) -> None:
    data = os.urandom(700)
    oid = hashlib.sha256(data).hexdigest()
    (answer,) = owner.batch(repo, (oid, 700)).json()["objects"]
    owner.send(answer, data)
    done = path_of(answer["actions"]["verify"]["href"])
    assert owner.http.post(done, json={}).status_code == 200
    assert put(answer["actions"]["upload"]["href"], bytes(700)) == 404
    assert owner.http.post(done, json={}).status_code == 200  # a repeat
    with alliance.hub.database.session_scope(write=False) as session:
        assert alliance.store.get(session.get_one(BlobRow, oid).key) == data


def test_digest_of_anothers_file_is_not_enough(
    alliance: AllianceInProcess, owner: Stock, lab: Stock, repo: str
) -> None:
    data = os.urandom(900)
    oid, size = owner.upload(repo, data)
    owner.commit(repo, large={"a.bin": (oid, size)})
    theirs = f"{LABS[0]}/grab"
    lab.create(theirs)
    assert lab.commit(theirs, large={"a.bin": (oid, size)}).status_code == 400
    (answer,) = lab.batch(theirs, (oid, size)).json()["objects"]
    assert "actions" in answer  # as if it were new
    lab.send(answer, data)
    assert lab.http.post(path_of(answer["actions"]["verify"]["href"]), json={}).status_code == 200
    assert lab.commit(theirs, large={"a.bin": (oid, size)}).status_code == 200
    with alliance.hub.database.session_scope(write=False) as session:
        assert len(session.exec(select(UploadRow).where(UploadRow.sha256 == oid)).all()) == 2
    assert len(list(alliance.store.list(f"blobs/sha256/{oid[:2]}/{oid}"))) == 1


def test_file_that_may_be_read_may_be_copied_without_sending_it(
    alliance: AllianceInProcess, owner: Stock
) -> None:
    version = alliance.push({"m.safetensors": weights(8, 8, 8)}, f"{OWNER}/given")
    file = next(one for one in version.files)
    firm = Stock.of(alliance, FIRM)
    firm.create(f"{FIRM}/copy")
    assert firm.commit(f"{FIRM}/copy", large={"m.safetensors": (file.sha256, file.size)}).status_code == 400
    alliance.grant_pull(version.asset_id)
    assert firm.commit(f"{FIRM}/copy", large={"m.safetensors": (file.sha256, file.size)}).status_code == 200


def test_copy_names_no_size_and_copies_what_its_caller_may_read(
    alliance: AllianceInProcess, owner: Stock, lab: Stock, repo: str
) -> None:
    data = os.urandom(800)
    oid, _size = owner.upload(repo, data)
    line = {"key": "lfsFile", "value": {"path": "copy.bin", "algo": "sha256", "oid": oid}}
    theirs = f"{LABS[0]}/copies"
    lab.create(theirs)
    assert lab.commit_raw(theirs, json.dumps(line).encode()).status_code == 400
    assert owner.commit_raw(repo, json.dumps(line).encode()).status_code == 200
    location = owner.resolve(repo, "main", "copy.bin", method="HEAD").headers["location"]
    assert owner.follow(location).content == data


def test_file_that_no_client_could_download_is_refused(owner: Stock, repo: str) -> None:
    (answer,) = owner.batch(repo, ("0" * 64, 50_000_000_001)).json()["objects"]
    assert answer["error"]["code"] == 422 and "shards" in answer["error"]["message"]
    (answer,) = owner.batch(repo, ("nonsense", 5)).json()["objects"]
    assert answer["error"]["code"] == 422
    assert owner.batch(repo, *[("0" * 64, 1)] * 1001).status_code == 413


def test_unfinished_upload_is_dropped_in_the_end(
    alliance: AllianceInProcess, owner: Stock, repo: str
) -> None:
    data = os.urandom(10)
    (answer,) = owner.batch(repo, (hashlib.sha256(data).hexdigest(), 10)).json()["objects"]
    owner.send(answer, data)
    upload_id = answer["actions"]["verify"]["href"].rpartition("/")[2]
    with alliance.hub.database.session_scope() as session:
        session.get_one(PlainUploadRow, upload_id).expires_at = int(time.time()) - 1
    assert plain_uploads.expire(alliance.hub) == 1
    assert owner.http.post(path_of(answer["actions"]["verify"]["href"]), json={}).status_code == 404
    assert put(answer["actions"]["upload"]["href"], data) == 404


@pytest.mark.parametrize("ended", ["dropped", "joined"])
def test_upload_whose_parts_the_store_has_ended_by_itself_is_begun_anew(
    alliance: AllianceInProcess, owner: Stock, repo: str, ended: str
) -> None:
    data = os.urandom(700)
    asked = (hashlib.sha256(data).hexdigest(), len(data))
    (first,) = owner.batch(repo, asked).json()["objects"]
    owner.send(first, data)
    verify = path_of(first["actions"]["verify"]["href"])
    with alliance.hub.database.session_scope(write=False) as session:
        row = session.get_one(PlainUploadRow, verify.rpartition("/")[2])
    if ended == "dropped":
        alliance.store.abort_parts(row.key, row.multipart)
        assert owner.http.post(verify, json={}).status_code == 409
    else:  # by a hub that was killed before it looked at the whole
        etags = alliance.store.stored_parts(row.key, row.multipart)
        alliance.store.complete_parts(row.key, row.multipart, etags)
    (again,) = owner.batch(repo, asked).json()["objects"]
    assert again["actions"]["verify"] == first["actions"]["verify"]
    owner.send(again, data)
    assert owner.http.post(verify, json={}).status_code == 200
    assert row.key not in {key for key, *_ in alliance.store.unfinished()}


def test_upload_of_a_stock_client_cannot_be_completed_as_one_that_the_store_checked(
    alliance: AllianceInProcess, owner: Stock, repo: str
) -> None:
    data = os.urandom(64)
    oid = hashlib.sha256(data).hexdigest()
    (answer,) = owner.batch(repo, (oid, 64)).json()["objects"]
    assert put(answer["actions"]["upload"]["href"], bytes(64)) == 200
    upload_id = answer["actions"]["verify"]["href"].rpartition("/")[2]
    assert owner.http.post(f"/api/v1/uploads/{upload_id}/complete", json={"etags": {}}).status_code == 404


def test_file_of_several_parts_has_them_in_the_draft(
    alliance: AllianceInProcess, owner: Stock, repo: str
) -> None:
    data = os.urandom(1 << 20) * 33
    oid, size = owner.upload(repo, data)
    owner.commit(repo, large={"large.bin": (oid, size)})
    with alliance.as_(OWNER) as client:
        draft = client.revision("model", repo, "main")
    manifest = read_manifest(base64.b64decode(draft.manifest or ""))
    (entry,) = manifest.files
    assert entry.parts == (
        hashlib.sha256(data[: 32 << 20]).hexdigest(),
        hashlib.sha256(data[32 << 20 :]).hexdigest(),
    )


@pytest.mark.parametrize("path", ["data/CON", "Lpt1.json", "\u202etxt.exe", "y" * 241])
def test_name_that_not_every_machine_can_hold_is_refused_and_an_older_one_can_still_be_taken_away(
    owner: Stock, repo: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    refused = owner.commit(repo, {"ok.txt": b"1", path: b"x"})
    assert refused.status_code == 422 and "expected a name that" in refused.json()["error"]
    assert paths(owner, repo) == []
    with monkeypatch.context() as before_the_rule:
        before_the_rule.setattr("hub.services.drafts.check_portable", list)
        assert owner.commit(repo, {path: b"x"}).status_code == 200
    assert owner.commit(repo, {"ok.txt": b"1"}).status_code == 200
    assert owner.commit(repo, delete=(path,)).status_code == 200
    assert paths(owner, repo) == ["ok.txt"]


# --- trees ------------------------------------------------------------------------------------------------

AWKWARD = "a b/ü #1 100%.txt"


@pytest.fixture(scope="module")
def tree(owner: Stock) -> str:
    name = f"{OWNER}/tree"
    owner.create(name)
    files = {AWKWARD: b"awkward", "a b/deep/x.txt": b"x", "empty.txt": b"", "README.md": b"# hi"}
    assert owner.commit(name, files).status_code == 200
    large = owner.upload(name, os.urandom(2 << 20))
    assert owner.commit(name, large={"big.dat": large}).status_code == 200
    return name


def test_tree_lists_a_folder_or_everything(owner: Stock, tree: str) -> None:
    flat = {one["path"]: one for one in owner.api(tree, "/tree/main").json()}
    assert sorted(flat) == ["README.md", "a b", "big.dat", "empty.txt"]
    assert flat["a b"]["type"] == "directory" and len(flat["a b"]["oid"]) == 40
    assert flat["README.md"]["oid"] == git_blob(b"# hi") and "lfs" not in flat["README.md"]
    assert flat["empty.txt"]["oid"] == git_blob(b"")
    big = flat["big.dat"]
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{big['lfs']['oid']}\nsize {big['size']}\n"
    )
    assert big["oid"] == git_blob(pointer.encode())
    assert paths(owner, tree) == ["README.md", "a b/deep/x.txt", AWKWARD, "big.dat", "empty.txt"]
    below = owner.api(tree, "/tree/main/a%20b").json()
    assert [one["path"] for one in below] == ["a b/deep", AWKWARD]
    missing = owner.api(tree, "/tree/main/nowhere")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")
    assert owner.api(tree, "/tree/never").headers["x-error-code"] == "RevisionNotFound"
    assert owner.api(tree, "/tree/refs%2Fheads%2Fmain/a%20b/deep").json()[0]["path"] == "a b/deep/x.txt"


def test_tree_is_paged_by_absolute_links(owner: Stock, tree: str) -> None:
    seen, url = [], f"/api/models/{tree}/tree/main?recursive=True&limit=2"
    while url:
        answer = owner.get(url)
        assert len(answer.json()) <= 2
        seen += [one["path"] for one in answer.json()]
        url = answer.links.get("next", {}).get("url", "").removeprefix("http://hub.test")
    assert len(seen) == len(set(seen)) == 7


def test_paths_that_are_not_there_are_left_out(owner: Stock, tree: str) -> None:
    where = f"/api/models/{tree}/paths-info/main"
    asked = [AWKWARD, "a b", "gone", "big.dat/"]
    for options in ({"data": {"paths": asked, "expand": "True"}}, {"json": {"paths": asked}}):
        found = owner.http.post(where, **options).json()  # type: ignore[arg-type]
        assert [one["path"] for one in found] == [AWKWARD, "a b", "big.dat"]
    assert owner.http.post(where, json={"paths": [1]}).status_code == 422


# --- branches and tags ------------------------------------------------------------------------------------


def test_tags_are_made_once_and_branches_move(owner: Stock, lab: Stock, repo: str) -> None:
    first = owner.commit(repo, {"a.txt": b"1"}).json()["commitOid"]
    tag, branch = f"/api/models/{repo}/tag", f"/api/models/{repo}/branch"
    assert lab.http.post(f"{tag}/main", json={"tag": "t"}).status_code == 403
    assert owner.http.post(f"{tag}/{first}", json={"tag": "first", "message": "m"}).status_code == 200
    assert owner.http.post(f"{tag}/main", json={"tag": "first"}).status_code == 409
    assert owner.http.delete(f"{tag}/first").status_code == 403
    assert owner.http.post(f"{branch}/round%2F12", json={"startingPoint": first}).status_code == 200
    assert owner.http.post(f"{branch}/other").status_code == 200
    assert owner.http.post(f"{branch}/other", json={}).status_code == 409
    assert owner.http.post(f"{branch}/first", json={}).status_code == 409  # a tag has this name
    second = owner.commit(repo, {"a.txt": b"2"}, branch="round/12").json()["commitOid"]
    refs = owner.api(repo, "/refs", params={"include_prs": "1"}).json()
    assert {ref["name"]: ref["targetCommit"] for ref in refs["branches"]} == {
        "main": first,
        "other": first,
        "round/12": second,
    }
    assert refs["tags"] == [{"name": "first", "ref": "refs/tags/first", "targetCommit": first}]
    assert refs["pullRequests"] == [] and refs["converts"] == []
    assert paths(owner, repo, "round%2F12") == ["a.txt"]
    assert owner.http.delete(f"{branch}/other").status_code == 200
    assert owner.http.delete(f"{branch}/main").status_code == 403
    assert owner.http.post(f"/api/models/{repo}/super-squash/main", json={}).status_code == 403


@pytest.mark.parametrize("name", ["12", "abcdef0", "0" * 40, "a..b", "refs/heads/x", "main", "a b", "-a", ""])
def test_name_that_could_mean_something_else_is_refused(owner: Stock, repo: str, name: str) -> None:
    answer = owner.http.post(f"/api/models/{repo}/tag/main", json={"tag": name})
    assert answer.status_code in (409, 422)
