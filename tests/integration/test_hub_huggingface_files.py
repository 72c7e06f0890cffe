"""Reading files as stock clients do: names of bytes, ranges, addresses, drafts, grants, receipts and warnings."""

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator

import jwt
import pytest
from sqlmodel import select

from federation import wire
from federation.home import Home
from federation.signing_drafts import share_draft, sign_draft
from hub import cli
from hub.access import ANONYMOUS
from hub.services import downloads
from hub.services.commits import FoundCommit
from hub.services.downloads import Bearer
from hub.services.revisions import Repo
from hub.tables import InstitutionRow, PersonalTokenRow
from hub.terminal import Terminal
from storage.encoding import format_time, sha256_hex
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.manifests import check_oms, read_manifest
from storage.signing import open_envelope
from storage.statements import read_statement
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, open_alliance, weights
from tests.stock_http import Stock, git_blob

DAY = 86_400
BIG = os.urandom(1 << 20) + b"and one more"


@pytest.fixture(scope="module", params=ENGINES)
def alliance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AllianceInProcess]:
    with open_alliance(tmp_path_factory.mktemp("files"), request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def owner(alliance: AllianceInProcess) -> Stock:
    return Stock.of(alliance, OWNER)


@pytest.fixture
def firm(alliance: AllianceInProcess) -> Stock:
    return Stock.of(alliance, FIRM, "read")


_numbers = iter(range(1000))


@pytest.fixture
def repo() -> str:
    return f"{OWNER}/f{next(_numbers)}"


@pytest.fixture
def version(alliance: AllianceInProcess, repo: str) -> wire.ModelVersion:
    return alliance.push({"config.json": b'{"a": 1}', "big.bin": BIG, "sub/ü #.txt": b"text"}, repo)


def home(alliance: AllianceInProcess, name: str = OWNER) -> Home:
    return alliance.homes[name]


def receipts(alliance: AllianceInProcess, asset_id: str) -> int:
    with alliance.client(alliance.operator) as client:
        return len(list(client.all_statements(kind="receipt", subject=asset_id)))


# --- small and large --------------------------------------------------------------------------------------


def test_head_of_a_small_file_tells_commit_name_and_exact_size(
    owner: Stock, repo: str, version: wire.ModelVersion
) -> None:
    answer = owner.resolve(repo, "main", "config.json", method="HEAD", **{"Accept-Encoding": "identity"})
    assert answer.status_code == 200 and answer.content == b""
    assert answer.headers["etag"] == f'"{git_blob(b"""{"a": 1}""")}"'
    assert answer.headers["content-length"] == "8"
    assert answer.headers["x-repo-commit"] == owner.api(repo).json()["sha"]
    assert answer.headers["x-manifest-sha256"] == version.asset_id
    assert "x-xet-hash" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "status", "body", "told"),
    [
        ("bytes=0-2", 206, b'{"a', "bytes 0-2/8"),
        ("bytes=6-", 206, b"1}", "bytes 6-7/8"),
        ("bytes=-1", 206, b"}", "bytes 7-7/8"),
        ("bytes=0-99", 206, b'{"a": 1}', "bytes 0-7/8"),
        ("bytes=8-", 416, b"", "bytes */8"),
        ("bytes=0-1,3-4", 200, b'{"a": 1}', None),
        ("lines=1", 200, b'{"a": 1}', None),
    ],
)
def test_small_file_is_read_by_ranges(
    owner: Stock,
    repo: str,
    version: wire.ModelVersion,
    asked: str,
    status: int,
    body: bytes,
    told: str | None,
) -> None:
    answer = owner.resolve(repo, "v1", "config.json", Range=asked)
    assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, body, told)


def test_large_file_lies_at_an_address_of_another_origin(
    owner: Stock, repo: str, version: wire.ModelVersion
) -> None:
    for method in ("HEAD", "GET"):
        answer = owner.resolve(repo, "main", "big.bin", method=method)
        assert answer.status_code == 302
        assert answer.headers["x-linked-etag"] == f'"{hashlib.sha256(BIG).hexdigest()}"'
        assert answer.headers["x-linked-size"] == str(len(BIG))
        location = answer.headers["location"]
        assert not location.startswith("http://hub.test/")
    assert owner.follow(location).content == BIG
    part = owner.follow(location, Range="bytes=1048576-")
    assert (part.status_code, part.content) == (206, b"and one more")
    assert part.headers["content-range"] == f"bytes 1048576-{len(BIG) - 1}/{len(BIG)}"


def test_missing_file_is_told_with_the_commit_so_that_clients_remember(
    owner: Stock, repo: str, version: wire.ModelVersion
) -> None:
    for path in ("gone.json", "sub", "", "sub/"):
        answer = owner.resolve(repo, "main", path, method="GET")
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "EntryNotFound"), path
        assert len(answer.headers["x-repo-commit"]) == 40
    assert owner.resolve(repo, "never", "config.json").headers["x-error-code"] == "RevisionNotFound"


def test_awkward_names_and_revisions_arrive_encoded(
    owner: Stock, repo: str, version: wire.ModelVersion
) -> None:
    assert owner.resolve(repo, "refs/heads/main", "sub/ü #.txt").content == b"text"
    assert owner.get(f"/{repo}/resolve/main/%FF").status_code == 422


def test_no_answer_is_compressed(alliance: AllianceInProcess, owner: Stock, repo: str) -> None:
    text = b'{"a": 1}' * 1000  # long and dull enough for any compression to begin
    alliance.push({"config.json": text}, repo)
    for method in ("HEAD", "GET"):
        answer = owner.resolve(repo, "main", "config.json", method=method, **{"Accept-Encoding": "gzip"})
        assert "content-encoding" not in answer.headers
        assert answer.headers["content-length"] == str(len(text))


# --- proofs -----------------------------------------------------------------------------------------------


def test_version_shows_the_files_that_prove_it(owner: Stock, repo: str, version: wire.ModelVersion) -> None:
    manifest = read_manifest(owner.resolve(repo, "main", "fedhub/manifest.json").content)
    assert manifest.asset_id == version.asset_id
    signature = read_statement(open_envelope(owner.resolve(repo, "main", "model.sig").content))
    check_oms(signature, manifest)
    asset = read_statement(open_envelope(owner.resolve(repo, "main", "fedhub/asset.sigstore.json").content))
    assert (asset.id, asset.subject) == (version.statement, version.asset_id)
    listed = {one["path"]: one for one in owner.api(repo, "/tree/main?recursive=1").json()}
    for path in ("model.sig", "fedhub/manifest.json", "fedhub/asset.sigstore.json"):
        content = owner.resolve(repo, "main", path).content
        assert (listed[path]["oid"], listed[path]["size"]) == (git_blob(content), len(content))


def test_draft_and_shared_data_set_show_no_proofs(
    alliance: AllianceInProcess, owner: Stock, repo: str
) -> None:
    owner.create(repo)
    owner.commit(repo, {"a.txt": b"1"})
    assert owner.resolve(repo, "main", "model.sig").status_code == 404
    rows = f"{repo}-rows"
    owner.create(rows, "dataset")
    owner.commit(rows, {"a.csv": b"a\n1\n"}, kind="dataset")
    made = share(alliance, rows)
    assert made.version == 1
    info = owner.api(rows, kind="dataset").json()
    assert [one["rfilename"] for one in info["siblings"]] == ["a.csv"]


# --- drafts and versions ----------------------------------------------------------------------------------


def test_draft_is_for_its_own_institution_with_a_warning(
    owner: Stock, firm: Stock, repo: str, alliance: AllianceInProcess
) -> None:
    owner.create(repo)
    made = owner.commit(repo, {"a.txt": b"1"}).json()["commitOid"]
    own = owner.resolve(repo, "main", "a.txt")
    assert own.content == b"1" and own.headers["x-hf-warning"].startswith("unsigned; ")
    for revision in ("main", made):
        refused = firm.resolve(repo, revision, "a.txt")
        assert (refused.status_code, refused.headers["x-error-code"]) == (403, "GatedRepo")
    for tail in (f"/tree/{made}", f"/revision/{made}", f"/commits/{made}"):
        assert firm.api(repo, tail).headers["x-error-code"] == "GatedRepo"
    assert firm.api(repo).json()["siblings"] == []  # the repository is no secret, its draft is
    # Not even to somebody for whom everything is public: drafts have no signature to lean on.
    with alliance.as_(OWNER) as client:
        client.set_visibility(repo, "public")
    assert firm.resolve(repo, made, "a.txt").status_code == 403
    nobody = Stock(alliance, None).resolve(repo, made, "a.txt")
    assert (nobody.status_code, nobody.headers["x-error-code"]) == (401, "GatedRepo")


def test_others_stay_at_the_newest_version_while_drafts_pile_up(
    alliance: AllianceInProcess, owner: Stock, firm: Stock, repo: str
) -> None:
    version = alliance.push({"a.txt": b"signed"}, repo)
    alliance.grant_pull(version.asset_id)
    signed = owner.api(repo).json()["sha"]
    draft = owner.commit(repo, {"a.txt": b"draft"}).json()["commitOid"]
    owner.http.post(f"/api/models/{repo}/tag/main", json={"tag": "try"})
    assert owner.resolve(repo, "main", "a.txt").content == b"draft"
    assert firm.resolve(repo, "main", "a.txt").content == b"signed"
    assert (owner.api(repo).json()["sha"], firm.api(repo).json()["sha"]) == (draft, signed)
    refs = firm.api(repo, "/refs").json()
    assert refs["branches"][0]["targetCommit"] == signed
    assert [ref["name"] for ref in refs["tags"]] == ["v1"]
    assert draft not in [one["id"] for one in firm.api(repo, "/commits/main").json()]


def test_signing_makes_the_version_and_leaves_the_draft_as_it_was(
    alliance: AllianceInProcess, owner: Stock, repo: str, tmp_path: os.PathLike[str]
) -> None:
    owner.create(repo)
    draft = owner.commit(repo, {"a/b.txt": b"1", "m.safetensors": weights(3)}).json()["commitOid"]
    folder = write(alliance, {"a/b.txt": b"1", "m.safetensors": weights(3), ".gitattributes": b"*"})
    with alliance.as_(OWNER) as client:
        version = sign_draft(home(alliance), client, repo, "main", files=folder, tags=["stable"])
        again = sign_draft(home(alliance), client, repo, draft, files=folder)
    assert (version.version, again.version, version.tags) == (1, 1, ["stable"])
    main = owner.api(repo).json()["sha"]
    assert main != draft
    assert owner.resolve(repo, draft, "model.sig").status_code == 404
    assert owner.resolve(repo, "main", "model.sig").status_code == 200
    assert "x-hf-warning" not in owner.resolve(repo, "main", "a/b.txt").headers
    assert [one["title"] for one in owner.api(repo, "/commits/main").json()] == [
        "Version 1",
        "a commit",
        "initial commit",
    ]
    assert owner.api(repo, "/revision/stable").json()["sha"] == main


def test_signing_a_branch_moves_that_branch_alone(
    alliance: AllianceInProcess, owner: Stock, repo: str
) -> None:
    alliance.push({"a.txt": b"1"}, repo)
    main = owner.api(repo).json()["sha"]
    owner.http.post(f"/api/models/{repo}/branch/round-12", json={})
    owner.commit(repo, {"a.txt": b"2"}, branch="round-12")
    with alliance.as_(OWNER) as client:
        assert sign_draft(home(alliance), client, repo, "round-12", files=None).version == 2
    assert owner.api(repo).json()["sha"] == main
    assert (
        owner.api(repo, "/revision/round-12").json()["sha"] == owner.api(repo, "/revision/v2").json()["sha"]
    )
    # Pushed by our own tool the next version goes to main.
    alliance.push({"a.txt": b"3"}, repo)
    assert owner.api(repo, "/revision/v3").json()["sha"] == owner.api(repo).json()["sha"] != main


def test_commands_sign_share_and_open(
    alliance: AllianceInProcess, owner: Stock, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Home, "client", lambda self, role="targets": alliance.client(self, role))

    def fedhub(*words: str) -> tuple[int, str]:
        terminal = Terminal(None, out=io.StringIO(), err=io.StringIO())
        code = cli.dispatch(["--json", "--home", str(alliance.homes[OWNER].path), *words], terminal)
        return int(code), terminal.out.getvalue() + terminal.err.getvalue()  # type: ignore[attr-defined]

    owner.create(repo)
    owner.commit(repo, {"a.txt": b"1"})
    folder = str(write(alliance, {"a.txt": b"1"}))
    for words in ((), ("--files", folder, "--trust-hub")):
        code, said = fedhub("model", "sign", f"{repo}@main", *words)
        assert code == 2 and "--trust-hub" in said
    code, said = fedhub(
        "model", "sign", f"{repo}@main", "--files", folder, "--tag", "stable", "--license", "MIT"
    )
    assert code == 0 and json.loads(said)["version"] == 1 and json.loads(said)["license"] == "MIT"
    assert json.loads(fedhub("model", "sign", repo, "--trust-hub")[1])["version"] == 1
    assert fedhub("model", "visibility", repo, "public")[0] == 0
    assert Stock(alliance, None).resolve(repo, "stable", "a.txt").content == b"1"
    rows = f"{repo}-rows"
    owner.create(rows, "dataset")
    owner.commit(rows, {"a.csv": b"a\n1\n"}, kind="dataset")
    folder = str(write(alliance, {"a.csv": b"a\n1\n"}))
    words = ("--files", folder, "--description", "rows", "--license", "CC0-1.0")
    code, said = fedhub("data", "share", f"{rows}@main", *words)
    assert code == 0 and json.loads(said)["version"] == 1
    assert fedhub("data", "visibility", rows, "public")[0] == 0
    assert Stock(alliance, None).resolve(rows, "v1", "a.csv", kind="dataset").status_code == 200


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"a.txt": b"2"}, "differs"),
        ({"b.txt": b"x"}, "is not in the draft"),
        ({"a.txt": None}, "not in the folder"),
    ],
)
def test_draft_that_is_not_the_signers_folder_is_not_signed(
    alliance: AllianceInProcess, owner: Stock, repo: str, change: dict[str, bytes | None], word: str
) -> None:
    owner.create(repo)
    owner.commit(repo, {"a.txt": b"1"})
    files = {name: data for name, data in ({"a.txt": b"1"} | change).items() if data is not None}
    folder = write(alliance, files or {".gitignore": b""})
    with alliance.as_(OWNER) as client, pytest.raises(Rejected) as refused:
        sign_draft(home(alliance), client, repo, "main", files=folder)
    assert refused.value.code == "E_DRAFT" and word in refused.value.message


def test_nothing_to_sign_is_said(alliance: AllianceInProcess, owner: Stock, repo: str) -> None:
    owner.create(repo)
    with alliance.as_(OWNER) as client:
        with pytest.raises(Unchecked) as unknown:
            sign_draft(home(alliance), client, repo, "main", files=None)
        assert unknown.value.code == "E_DRAFT"
        with pytest.raises(Unchecked) as unknown:
            sign_draft(home(alliance), client, repo, "never", files=None)
        assert unknown.value.code == "E_REVISION"
    owner.commit(repo, {"a.txt": b"1"})
    with alliance.as_(LABS[0]) as client:
        with pytest.raises(Refused) as refused:
            sign_draft(home(alliance, LABS[0]), client, repo, "main", files=None)
        assert refused.value.code == "E_ISSUER"
        with pytest.raises(Refused) as refused:
            client.revision("model", repo, "main")
        assert refused.value.code == "E_GATED"


# --- grants -----------------------------------------------------------------------------------------------


def test_files_of_a_gated_version_need_a_grant_its_names_do_not(
    alliance: AllianceInProcess, firm: Stock, repo: str, version: wire.ModelVersion
) -> None:
    assert len(firm.api(repo).json()["siblings"]) == 6
    for path in ("config.json", "big.bin", "model.sig"):
        refused = firm.resolve(repo, "main", path, method="HEAD")
        assert (refused.status_code, refused.headers["x-error-code"]) == (403, "GatedRepo")
        assert "fedhub grant issue" in refused.headers["x-error-message"]
    alliance.grant_pull(version.asset_id)
    assert firm.resolve(repo, "main", "config.json").content == b'{"a": 1}'
    assert firm.api(repo, "/auth-check").status_code == 200


def test_pull_under_a_grant_leaves_one_receipt_in_the_log(
    alliance: AllianceInProcess, firm: Stock, owner: Stock, repo: str, version: wire.ModelVersion
) -> None:
    owner.resolve(repo, "main", "config.json")
    assert receipts(alliance, version.asset_id) == 0  # its own files need no grant
    alliance.grant_pull(version.asset_id)
    firm.resolve(repo, "main", "config.json", method="HEAD")
    assert receipts(alliance, version.asset_id) == 0  # nothing was read
    for path in ("config.json", "big.bin", "sub/ü #.txt"):
        firm.resolve(repo, "main", path)
    assert receipts(alliance, version.asset_id) == 1  # many files, one pull


def test_revoked_grant_stops_the_next_range(
    alliance: AllianceInProcess, firm: Stock, repo: str, version: wire.ModelVersion
) -> None:
    grant = alliance.grant_pull(version.asset_id)
    location = firm.resolve(repo, "main", "big.bin", method="HEAD").headers["location"]
    assert firm.follow(location, Range="bytes=0-9").content == BIG[:10]
    alliance.say(OWNER, "revocation", [("statement", grant)], {"target": "statement", "reason": "withdrawn"})
    alliance.renew_status(alliance.homes[OWNER])
    refused = firm.follow(location, Range="bytes=10-19")
    assert refused.status_code == 403 and "E_REVOKED" in refused.text
    assert firm.resolve(repo, "main", "config.json").headers["x-error-code"] == "GatedRepo"


def test_address_ends_with_its_token_and_its_time_and_is_nobodys_to_change(
    alliance: AllianceInProcess, owner: Stock, repo: str, version: wire.ModelVersion
) -> None:
    caller = Stock.of(alliance, OWNER, "read")
    location = caller.resolve(repo, "main", "big.bin", method="HEAD").headers["location"]
    assert caller.follow(location).status_code == 200
    capability = location.rpartition("/")[2]
    claims = jwt.decode(capability, options={"verify_signature": False})
    assert 290 <= claims["exp"] - time.time() < 400  # grows with the file's size
    forged = jwt.encode(claims | {"by": LABS[0]}, b"x" * 32, algorithm="HS256")
    for bad in (forged, capability[:-2], jwt.encode(claims, None, algorithm="none"), "x"):
        assert caller.downloads.get(f"/f/{bad}").status_code == 403
    over = jwt.encode(
        claims | {"exp": int(time.time()) - 1}, alliance.hub.keys.derive("file address"), "HS256"
    )
    assert caller.downloads.get(f"/f/{over}").status_code == 403
    other = jwt.encode(claims | {"sha256": "0" * 64}, alliance.hub.keys.derive("file address"), "HS256")
    assert caller.downloads.get(f"/f/{other}").status_code == 404
    for state, status in (("suspended", 403), ("approved", 200)):
        with alliance.hub.database.session_scope() as session:
            session.get_one(InstitutionRow, OWNER).state = state
        assert caller.follow(location).status_code == status
    with alliance.hub.database.session_scope() as session:
        found = session.exec(select(PersonalTokenRow).where(PersonalTokenRow.digest == claims["token"])).one()
        found.revoked_at = int(time.time())
    assert caller.follow(location).status_code == 403
    assert caller.resolve(repo, "main", "config.json").status_code == 401


def test_private_repository_opens_to_who_holds_a_grant(
    alliance: AllianceInProcess, owner: Stock, firm: Stock, repo: str, version: wire.ModelVersion
) -> None:
    owner.http.put(f"/api/models/{repo}/settings", json={"private": True})
    assert firm.api(repo).status_code == 404
    assert firm.resolve(repo, "main", "config.json").headers["x-error-code"] == "RepoNotFound"
    alliance.grant_pull(version.asset_id)
    assert firm.api(repo).json()["private"] is True
    assert firm.resolve(repo, "main", "config.json").status_code == 200


def test_public_version_is_for_everybody_without_a_receipt(
    alliance: AllianceInProcess, owner: Stock, firm: Stock, repo: str, version: wire.ModelVersion
) -> None:
    with alliance.as_(OWNER) as client:
        client.set_visibility(repo, "public")
    nobody = Stock(alliance, None)
    for caller in (firm, nobody):
        assert caller.resolve(repo, "main", "config.json").content == b'{"a": 1}'
        location = caller.resolve(repo, "main", "big.bin").headers["location"]
        assert caller.follow(location).content == BIG
    assert repo in [one["id"] for one in nobody.get("/api/models").json()]
    assert receipts(alliance, version.asset_id) == 0
    with alliance.as_(OWNER) as client:
        client.set_visibility(repo, "gated")
    assert nobody.follow(location).status_code in (401, 403)  # decided anew
    assert nobody.resolve(repo, "main", "config.json").status_code == 401


@pytest.mark.parametrize(("days", "words"), [(3, "ends in 3 days"), (8, "")])
def test_client_is_warned_when_its_grant_ends_soon(
    alliance: AllianceInProcess, firm: Stock, repo: str, version: wire.ModelVersion, days: int, words: str
) -> None:
    alliance.grant_pull(version.asset_id, expires=format_time(int(time.time()) + days * DAY + 60))
    for method, path in (("GET", "config.json"), ("HEAD", "config.json"), ("HEAD", "big.bin")):
        warning = firm.resolve(repo, "main", path, method=method).headers.get("x-hf-warning", "")
        assert warning.startswith("grant; ") == bool(words) and words in warning, (method, path)


def test_address_lasts_as_long_as_a_slow_link_takes_for_the_file(
    alliance: AllianceInProcess, repo: str, version: wire.ModelVersion
) -> None:
    hub = alliance.hub
    row = FoundCommit("a" * 40, version.asset_id, version.statement, 1, 0)
    for size, life_s in ((1, 300), (7_000_000_000, 7300), (50_000_000_000, 50_300), (10**12, DAY)):
        file = downloads.StoredFile("big.bin", "0" * 64, size)
        where = downloads.address(hub, Bearer(ANONYMOUS), Repo("model", repo, OWNER, "gated", 0), row, file)
        claims = jwt.decode(where.rpartition("/")[2], options={"verify_signature": False})
        assert abs(claims["exp"] - hub.ledger.now() - life_s) < 60


def test_withdrawn_version_is_not_served_to_others(
    alliance: AllianceInProcess, firm: Stock, repo: str, version: wire.ModelVersion
) -> None:
    alliance.grant_pull(version.asset_id)
    assert firm.resolve(repo, "main", "config.json").status_code == 200
    alliance.say(
        OWNER,
        "revocation",
        [("statement", version.statement)],
        {"target": "statement", "reason": "withdrawn"},
    )
    alliance.renew_status(alliance.homes[OWNER])
    assert firm.resolve(repo, "main", "config.json").headers["x-error-code"] == "GatedRepo"


def test_grant_for_one_version_shows_no_other(
    alliance: AllianceInProcess, firm: Stock, repo: str, version: wire.ModelVersion
) -> None:
    alliance.grant_pull(version.asset_id)
    alliance.push({"config.json": b"2"}, repo)
    assert firm.resolve(repo, "v1", "config.json").status_code == 200
    assert firm.resolve(repo, "main", "config.json").status_code == 403


# --- shared data sets -------------------------------------------------------------------------------------


def write(alliance: AllianceInProcess, files: dict[str, bytes]) -> "os.PathLike[str]":
    folder = alliance.folder / f"write-{next(_numbers)}"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def share(alliance: AllianceInProcess, name: str, files: dict[str, bytes] | None = None) -> wire.Revision:
    folder = write(alliance, files or {"a.csv": b"a\n1\n"})
    owner = name.partition("/")[0]
    with alliance.as_(owner) as client:
        return share_draft(
            home(alliance, owner),
            client,
            name,
            "main",
            files=folder,
            description="rows",
            license_id="CC0-1.0",
        )


def test_shared_data_set_is_granted_like_a_model_and_stays_apart(
    alliance: AllianceInProcess, owner: Stock, firm: Stock, repo: str
) -> None:
    owner.create(repo, "dataset")
    owner.commit(repo, {"a.csv": b"a\n1\n"}, kind="dataset")
    assert firm.resolve(repo, "main", "a.csv", kind="dataset").status_code == 403
    made = share(alliance, repo)
    assert share(alliance, repo).revision == made.revision  # a repeat
    assert firm.resolve(repo, "v1", "a.csv", kind="dataset").status_code == 403
    alliance.grant_pull(made.asset_id or "")
    assert firm.resolve(repo, "v1", "a.csv", kind="dataset").content == b"a\n1\n"
    assert receipts(alliance, made.asset_id or "") == 1
    with alliance.as_(FIRM) as client:
        assert repo not in [one.name for one in client.datasets()]  # those are the ones that stay on-site
    owner.commit(repo, {"a.csv": b"a\n2\n"}, kind="dataset")
    second = share(alliance, repo, {"a.csv": b"a\n2\n"})
    assert second.version == 2
    assert {ref["name"] for ref in owner.api(repo, "/refs", kind="dataset").json()["tags"]} == {"v1", "v2"}


def test_shared_data_set_is_opened_with_the_key_alone(
    alliance: AllianceInProcess, owner: Stock, repo: str
) -> None:
    owner.create(repo, "dataset")
    owner.commit(repo, {"a.csv": b"a\n1\n"}, kind="dataset")
    share(alliance, repo)
    nobody = Stock(alliance, None)
    assert nobody.resolve(repo, "v1", "a.csv", kind="dataset").status_code == 401
    where = f"/api/v1/shared-datasets/{repo}/visibility"
    assert owner.http.put(where, json={"visibility": "public"}).status_code == 403
    with alliance.as_(OWNER) as client:
        client.set_dataset_visibility(repo, "public")
    assert nobody.resolve(repo, "v1", "a.csv", kind="dataset").content == b"a\n1\n"


def test_data_set_that_stays_on_site_is_never_shared_by_its_name(alliance: AllianceInProcess) -> None:
    lab = Stock.of(alliance, LABS[0])
    alliance.describe(LABS[0], "rows")
    lab.create(f"{LABS[0]}/rows", "dataset")
    lab.commit(f"{LABS[0]}/rows", {"a.csv": b"a\n1\n"}, kind="dataset")
    with pytest.raises(FedhubError) as refused:
        share(alliance, f"{LABS[0]}/rows")
    assert refused.value.code in ("E_NAME", "E_VERSION_CHAIN")


def test_only_a_draft_can_be_shared(alliance: AllianceInProcess, owner: Stock, repo: str) -> None:
    owner.create(repo, "dataset")
    owner.commit(repo, {"a.csv": b"a\n1\n"}, kind="dataset")
    with alliance.as_(OWNER) as client:
        draft = client.revision("dataset", repo, "main")
        raw = json.dumps({"x": 1}).encode()
        members = {"type": "dataset", "name": repo, "version": 1}
        subjects = [("manifest.json", draft.asset_id or ""), ("croissant.json", sha256_hex(raw + b" "))]
        post = wire.SharePost(
            manifest=draft.manifest or "",
            asset=home(alliance).sign("asset", subjects, members).decode(),
            croissant="e30=",
        )
        with pytest.raises(FedhubError) as refused:
            client.share_dataset(repo, post)
        assert refused.value.code == "E_SUBJECT"
    assert (
        owner.http.post(f"/api/v1/shared-datasets/{repo}/versions", json=post.model_dump()).status_code == 422
    )
