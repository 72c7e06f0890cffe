"""Whatever a stock client sends: an answer or a refusal with its code, never a 500, and no half commit."""

import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.api.huggingface.uploads import LINE_BYTES
from tests.alliances import ENGINES, OWNER, open_alliance
from tests.hubs import ENDPOINT
from tests.stock_http import Stock
from tests.xet_bytes import chunk, shard, xorb

REPO = f"{OWNER}/fuzzed"
DATA = bytes(range(200))
SLOWLY = settings(max_examples=25)


@pytest.fixture(scope="module", params=ENGINES)
def owner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    folder = tmp_path_factory.mktemp("fuzzed")
    members = (OWNER,)
    with open_alliance(folder, request.param, members=members, superlink="external") as alliance:
        stock = Stock.of(alliance, OWNER)
        stock.create(REPO)
        assert stock.commit(REPO, {"data.bin.txt": DATA}).status_code == 200
        yield stock


def _checked(answer: httpx.Response) -> httpx.Response:
    """An answer that is no failure of the hub; a refusal names its rule."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        said = answer.json()
        assert said.get("code", "").startswith("E_") and (said.get("error") or said.get("detail")), (
            answer.text
        )
        assert "Traceback" not in answer.text
    return answer


# --- commits ------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(
    ["", "a.txt", "a/b.txt", "..", "/x", ".git/x", "a\0b", "\ud800", "é", "x" * 2000, "fedhub/manifest.json"]
) | st.text(max_size=20)
VALUES = (
    TEXTS
    | st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 10**30, 1.5, float("inf"), [], [[[]]], {}, {"a": 1}])
)
MEMBERS = (
    "path",
    "content",
    "encoding",
    "algo",
    "oid",
    "size",
    "summary",
    "description",
    "parentCommit",
    "x",
)
OIDS = st.sampled_from(["ab" * 32, "AB" * 32, "ab", "ab" * 33])
CONTENTS = st.binary(max_size=20).map(lambda data: base64.b64encode(data).decode())
KEYS = st.sampled_from(["header", "file", "lfsFile", "deletedFile", "deletedFolder"])
OPERATIONS = st.fixed_dictionaries(
    {
        "key": KEYS | VALUES,
        "value": st.dictionaries(st.sampled_from(MEMBERS), VALUES, max_size=5)
        | st.fixed_dictionaries({"path": TEXTS, "content": CONTENTS, "encoding": VALUES})
        | st.fixed_dictionaries({"path": TEXTS, "oid": OIDS, "size": VALUES, "algo": VALUES})
        | VALUES,
    }
).map(lambda value: json.dumps(value).encode())
LINES = (
    OPERATIONS | st.binary(max_size=30) | st.sampled_from([b"[" * 5000, b'{"key":' * 2000, b"{}", b"null"])
)


def _head(owner: Stock) -> str:
    branches = owner.api(REPO, "/refs").json()["branches"]
    return str(branches[0]["targetCommit"])


@SLOWLY
@given(lines=st.lists(LINES, max_size=5))
def test_a_commit_is_made_whole_or_refused_by_name(owner: Stock, lines: list[bytes]) -> None:
    before = _head(owner)
    answer = _checked(owner.commit_raw(REPO, b"\n".join(lines)))
    assert _head(owner) == (answer.json()["commitOid"] if answer.status_code == 200 else before)
    assert owner.resolve(REPO, _head(owner), "data.bin.txt").status_code in (200, 404)


def test_a_line_without_an_end_is_refused_while_it_arrives(owner: Stock) -> None:
    piece, sent = b"x" * (1 << 20), 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"key": "file", "value": {"path": "a", "content": "'
        while sent < 10 * LINE_BYTES:
            sent += len(piece)
            yield piece

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(owner.alliance.app)
        headers = {"Authorization": owner.http.headers["authorization"]}
        async with httpx.AsyncClient(transport=transport, base_url=ENDPOINT, headers=headers) as client:
            return await client.post(f"/api/models/{REPO}/commit/main", content=endless())

    answer = _checked(anyio.run(post))
    assert answer.status_code == 413 and answer.json()["code"] == "E_LIMIT"
    assert sent <= LINE_BYTES + 4 * len(piece)


# --- what goes where ----------------------------------------------------------------------------------------

SIZES = st.integers(-2, 100) | st.sampled_from([2**31, 2**63, 2**64, 10**40, 1.5, "1", None, True])
OBJECTS = st.lists(st.fixed_dictionaries({"oid": OIDS | VALUES, "size": SIZES}) | VALUES, max_size=4)
BATCHES = (
    st.fixed_dictionaries(
        {
            "operation": st.just("upload") | VALUES,
            "objects": OBJECTS | VALUES,
            "transfers": st.lists(TEXTS, max_size=3) | st.just(["multipart"]) | VALUES,
        }
    )
    | VALUES
)


@SLOWLY
@given(body=BATCHES)
def test_an_lfs_batch_is_answered_or_refused_by_name(owner: Stock, body: Any) -> None:
    raw = json.dumps(body).encode()
    answer = owner.http.post(
        f"/{REPO}.git/info/lfs/objects/batch", content=raw, headers={"Content-Type": "application/json"}
    )
    if _checked(answer).status_code == 200:
        for each in answer.json()["objects"]:
            assert "error" in each or 0 <= each["size"] <= owner.alliance.settings.upload_limit


@SLOWLY
@given(
    body=st.fixed_dictionaries(
        {"files": OBJECTS | st.lists(st.fixed_dictionaries({"path": TEXTS, "size": SIZES}))}
    )
)
def test_a_preupload_is_answered_or_refused_by_name(owner: Stock, body: Any) -> None:
    raw = json.dumps(body).encode()
    _checked(
        owner.http.post(
            f"/api/models/{REPO}/preupload/main", content=raw, headers={"Content-Type": "application/json"}
        )
    )


@SLOWLY
@given(paths=st.lists(TEXTS.filter(lambda text: text.isprintable()), max_size=4), raw=st.binary(max_size=60))
def test_paths_are_answered_or_refused_by_name(owner: Stock, paths: list[str], raw: bytes) -> None:
    where = f"/api/models/{REPO}/paths-info/main"
    assert _checked(owner.http.post(where, data={"paths": paths})).status_code == 200
    for kind in ("application/x-www-form-urlencoded", "application/json"):
        _checked(owner.http.post(where, content=raw, headers={"Content-Type": kind}))


@SLOWLY
@given(raw=st.text(max_size=12), revision=st.text(max_size=12) | st.sampled_from(["main", "refs/heads/main"]))
def test_any_path_and_revision_is_found_or_refused_by_name(owner: Stock, raw: str, revision: str) -> None:
    try:
        answer = owner.resolve(REPO, revision or "main", raw or "x")
    except UnicodeEncodeError:
        return  # no client can spell it
    assert answer.status_code < 500, (raw, revision)


@pytest.mark.parametrize(
    "path",
    [
        "/api/models/a%00/b",
        f"/api/models/{REPO}/revision/x%00y",
        f"/{REPO}/resolve/main/a%00b",
        f"/{REPO}/resolve/m%00/ab",
        "/api/models?search=%00&author=%00&cursor=%00",
        "/api/v1/models/a%00/b",
        "/api/v1/models?search=%00&tag=%00&owner=%00",
        "/api/v1/datasets?kept=hub&search=%00&owner=%00",
        "/api/v1/statements?issuer=%00",
        "/api/v1/institutions/a%00",
    ],
)
def test_a_nul_in_an_address_is_no_failure_of_the_hub(owner: Stock, path: str) -> None:
    """PostgreSQL refuses a text with one, SQLite does not."""
    _checked(owner.get(path))


def test_a_nul_in_a_body_is_no_failure_of_the_hub(owner: Stock) -> None:
    for key, value in (
        ("header", {"summary": "a\0b"}),
        ("header", {"summary": "a", "description": "\0"}),
        ("header", {"summary": "a", "parentCommit": "abcde\0"}),
        ("file", {"path": "a\0", "content": ""}),
        ("deletedFile", {"path": "\0"}),
    ):
        answer = owner.commit_raw(REPO, json.dumps({"key": key, "value": value}).encode())
        assert _checked(answer).status_code in (400, 422), value
    files = [{"path": "a\0b", "size": 1}]
    _checked(owner.http.post(f"/api/models/{REPO}/preupload/main", json={"files": files}))
    _checked(owner.http.post("/api/lfs/a%00b"))


# --- ranges -------------------------------------------------------------------------------------------------

RANGES = st.text("bytes=-, 0123456789", max_size=24) | st.builds(
    "bytes={}-{}".format, st.integers(0, 400) | st.just(""), st.integers(0, 400) | st.just("")
)


@settings(max_examples=60)
@given(text=RANGES | st.sampled_from(["bytes=0-" + "9" * 400, "bytes=-0", "bytes=5-2", "bytes=0-1,3-4"]))
def test_a_range_is_a_slice_of_the_file_or_none(owner: Stock, text: str) -> None:
    commit = _head(owner)
    answer = owner.resolve(REPO, commit, "data.bin.txt", Range=text)
    assert answer.status_code in (200, 206, 416), text
    if answer.status_code == 206:
        span, _, size = answer.headers["content-range"].removeprefix("bytes ").partition("/")
        start, end = map(int, span.split("-"))
        assert 0 <= start <= end < int(size) == len(DATA)
        assert answer.content == DATA[start : end + 1]
    elif answer.status_code == 200:
        assert answer.content == DATA
    else:
        assert answer.headers["content-range"] == f"bytes */{len(DATA)}" and answer.content == b""
    backwards = re.fullmatch("bytes=([0-9]{1,15})-([0-9]{1,15})", text)
    if backwards and int(backwards[1]) > int(backwards[2]):
        assert answer.status_code == 200, "RFC 9110, section 14.1.1: to be ignored"


# --- Xet ----------------------------------------------------------------------------------------------------

NAME, SOUND = xorb(chunk(b"abc"), chunk(b"defg", 1))
RUNS = st.lists(
    st.tuples(
        st.sampled_from([NAME, "0" * 64]), st.integers(0, 9) | st.just(2**32 - 1), *[st.integers(0, 3)] * 2
    ),
    max_size=3,
)
SHARDS = st.binary(max_size=300) | st.lists(
    st.tuples(OIDS.filter(lambda oid: len(oid) == 64), RUNS), max_size=3
).map(lambda files: shard(*files))


@SLOWLY
@given(name=st.sampled_from([NAME, "x", "0" * 64, "Z" * 64]), body=st.binary(max_size=100), made=SHARDS)
def test_xorbs_and_shards_are_taken_or_refused_by_name(
    owner: Stock, name: str, body: bytes, made: bytes
) -> None:
    token = owner.api(REPO, "/xet-write-token/main").json()["accessToken"]
    headers = {"Authorization": f"Bearer {token}"}
    _checked(owner.http.post(f"/xet/v1/xorbs/default/{NAME}", content=SOUND, headers=headers))
    _checked(owner.http.post(f"/xet/v1/xorbs/default/{name}", content=body, headers=headers))
    _checked(owner.http.post("/xet/v1/shards", content=made, headers=headers))
