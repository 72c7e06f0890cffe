"""The real Hugging Face libraries, in pinned versions and environments of their own, against a hub on real ports."""

import contextlib
import http.server
import json
import os
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation import wire
from federation.signing_drafts import share_draft, sign_draft
from hub.api.app import create_download_app
from storage.errors import Refused
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, open_alliance
from tests.servers import free_port
from tests.stock_environments import HUB_CLIENTS, python_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLIENTS = Path(__file__).parent / "stock_clients"
RUN_S = 300
CUT_BYTES = 11_000_000  # clients write pieces of 10 MB: less would leave them nothing to go on from


@dataclass
class Counted:
    """Requests that reached the hub, as ``METHOD path``."""

    app: Any
    seen: list[str] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.seen.append(f"{scope['method']} {scope['path']}")
        await self.app(scope, receive, send)


@dataclass
class Live:
    """A hub on real ports."""

    alliance: AllianceInProcess
    endpoint: str
    requests: list[str]
    folder: Path
    origin: "Origin"
    tokens: dict[str, str] = field(default_factory=dict)

    def token(self, name: str) -> str:
        """A personal token of a member: all that a stock client needs."""
        if name not in self.tokens:
            with self.alliance.as_(name) as client:
                self.tokens[name] = client.create_token("stock", ["read", "write"]).token
        return self.tokens[name]

    def run(
        self,
        environment: str,
        scenario: str,
        where: str,
        *,
        by: str | None = OWNER,
        token: str | None = None,
        variables: dict[str, str] | None = None,
        **options: str,
    ) -> dict[str, Any]:
        """One scenario in a fresh process of a stock client."""
        script = CLIENTS / ("libraries_client.py" if environment == "libraries" else "hub_client.py")
        folder = self.folder / where
        folder.mkdir(parents=True, exist_ok=True)
        given = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            **({} if by is None and token is None else {"HF_TOKEN": token or self.token(by or "")}),
            **(variables or {}),
        }
        done = subprocess.run(
            [
                str(python_of(environment)),
                str(script),
                scenario,
                str(folder),
                *(f"{k}={v}" for k, v in options.items()),
            ],
            env=given,
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said | {"stderr": done.stderr}

    def sign(self, repo: str, revision: str = "main", **options: Any) -> wire.ModelVersion:
        with self.alliance.as_(OWNER) as client:
            return sign_draft(self.alliance.homes[OWNER], client, repo, revision, files=None, **options)


class Origin(http.server.ThreadingHTTPServer):
    """The address of the download origin: passes requests on, or gives the bytes itself and stops early, once."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.target = target
        self.cut_next = False
        self.after_cut: Callable[[], None] = lambda: None
        self.ranges: list[str | None] = []
        self.answers: list[int] = []
        self.with_credentials = 0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any) -> None:
        return None


class _Visit(http.server.BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        asked, cut = self.headers.get("Range"), self.server.cut_next
        self.server.ranges.append(asked)
        self.server.with_credentials += "Authorization" in self.headers
        self.server.cut_next = False
        follow = [] if cut else [_NoRedirect()]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *follow)
        request = urllib.request.Request(
            self.server.target + self.path, headers={"Range": asked} if asked else {}
        )
        try:
            answer = opener.open(request)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
            self.server.answers.append(answer.status)
            self.send_response(answer.status)
            for name in ("Content-Length", "Content-Range", "Accept-Ranges", "Location", "Content-Type"):
                if answer.headers[name]:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
        self.wfile.write(body[:CUT_BYTES] if cut else body)
        if cut:
            self.server.after_cut()
        self.close_connection = True

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serving(app: Any, port: int) -> Iterator[None]:
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False, ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module", params=ENGINES)
def live(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Live]:
    folder, port, downloads = tmp_path_factory.mktemp("live"), free_port(), free_port()
    endpoint = f"http://127.0.0.1:{port}"
    origin = Origin(f"http://127.0.0.1:{downloads}")
    threading.Thread(target=origin.serve_forever, daemon=True).start()
    given: dict[str, Any] = {
        "public_url": endpoint,
        "download_url": f"http://127.0.0.1:{origin.server_port}",
    }
    given |= {"port": port, "download_port": downloads, "plain_part_bytes": 5 << 20}
    with open_alliance(folder / "hub", request.param, **given) as alliance:
        counted = Counted(alliance.app)
        with (
            serving(counted, port),
            serving(create_download_app(alliance.settings, hub=alliance.hub), downloads),
        ):
            yield Live(alliance, endpoint, counted.seen, folder, origin)
    origin.shutdown()
    origin.server_close()


@dataclass(frozen=True)
class Client:
    """One version of huggingface_hub, with Xet or without."""

    name: str
    xet: bool

    @property
    def environment(self) -> str:
        return f"hub-{self.name}"

    @property
    def variables(self) -> dict[str, str]:
        return {} if self.xet else {"HF_HUB_DISABLE_XET": "1"}

    def __str__(self) -> str:
        return f"{self.name}-{'xet' if self.xet else 'plain'}"


MATRIX = [Client(name, xet) for name in HUB_CLIENTS for xet in (True, False)]
FILES = ["README.md", "a folder/deep/er/empty.txt", "a folder/näme #1 100%.txt", "config.json", "large.dat"]


@pytest.mark.parametrize("client", MATRIX, ids=str)
def test_everything_that_a_person_does_with_a_repository_works(live: Live, client: Client) -> None:
    repo = f"{OWNER}/m-{str(client).replace('.', '-')}"
    before = len(live.requests)
    seen = live.run(client.environment, "push", str(client), variables=client.variables, repo=repo)
    assert seen["version"] == HUB_CLIENTS[client.name]
    assert (seen["whoami"], seen["url"]) == (OWNER, f"{live.endpoint}/{repo}")
    assert seen["again"][1] == 409
    oid = seen["oid"]
    assert len(oid) == 40 and seen["commit_url"] == f"{live.endpoint}/{repo}/commit/{oid}"
    assert seen["info"] == {"sha": oid, "files": FILES, "private": False}
    assert seen["large"][0] == 12 * ((1 << 20) + 1)
    assert repo in seen["listed"]
    assert seen["tree"] == sorted([*FILES, "a folder", "a folder/deep", "a folder/deep/er"])
    assert seen["flat"] == ["README.md", "a folder", "config.json", "large.dat"]
    assert seen["folder"] == ["a folder/deep", "a folder/näme #1 100%.txt"]
    assert "EntryNotFoundError" in seen["no folder"][0]
    assert seen["paths"] == ["a folder", "config.json"]
    assert seen["unchanged"] == oid
    assert (seen["branch again"][1], seen["stale"][1], seen["pull request"][1]) == (409, 412, 403)
    assert seen["round files"] == ["README.md", "config.json", "large.dat", "late.txt"]
    assert (seen["tag again"][1], seen["tag deleted"][1], seen["squash"][1]) == (409, 403, 403)
    assert (seen["branches"], seen["tags"]) == (["main", "round-12"], {"draft-1": oid})
    assert seen["log"][-2:] == ["first", "initial commit"] and len(seen["log"]) == 6
    for name in ("main", "tag", "commit"):
        assert (seen[f"down {name}"], seen[f"snapshot {name}"]) == (True, oid)
    assert seen["side file"] == "in time"
    assert (seen["exists"], seen["revisions"]) == ([True, False], [True, False])
    used_xet = any("/xet/v1/shards" in one for one in live.requests[before:])
    assert used_xet == (client.xet and client.name == "newest")  # the others ask the server, which says LFS
    if client.name != "0.36":
        assert "is a draft" in seen["stderr"]  # X-HF-Warning, printed


@pytest.fixture(scope="module")
def release(live: Live) -> tuple[str, wire.ModelVersion]:
    """A signed and tagged version of what a stock client pushed, granted to the firm."""
    repo = f"{OWNER}/release"
    live.run("hub-newest", "push", "release", repo=repo)
    version = live.sign(repo, tags=["stable"])
    live.alliance.grant_pull(version.asset_id)
    return repo, version


@pytest.mark.parametrize("name", HUB_CLIENTS)
def test_reader_with_a_grant_gets_the_signed_files_and_then_needs_nobody(
    live: Live, name: str, release: tuple[str, wire.ModelVersion]
) -> None:
    repo, version = release
    environment, where = f"hub-{name}", f"read-{name}"
    seen = live.run(environment, "read", where, by=FIRM, repo=repo, revision="stable")
    expected = {file.name: file.sha256 for file in version.files}
    proofs = {"model.sig", "fedhub/manifest.json", "fedhub/asset.sigstore.json"}
    assert {path: digest for path, digest in seen["files"].items() if path not in proofs} == expected
    assert proofs <= set(seen["files"])
    assert seen["files"]["fedhub/manifest.json"] == version.asset_id
    assert seen["no revision"] == ["RevisionNotFoundError", 404]
    assert "EntryNotFoundError" in seen["no file"][0]
    assert seen["no repository"] == ["RepositoryNotFoundError", 404]
    assert seen["auth check"] == ["nothing", 200]
    # A full commit id that is in the cache is not asked for again, online or not.
    before = len(live.requests)
    for variables in ({}, {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}):
        again = live.run(
            environment, "pinned", where, by=FIRM, variables=variables, repo=repo, revision=seen["snapshot"]
        )
        assert again["config"] == expected["config.json"]
    offline = live.run(
        environment, "cached", where, by=FIRM, variables={"HF_HUB_OFFLINE": "1"}, repo=repo, revision="stable"
    )
    assert (offline["snapshot"], offline["offline"]) == (seen["snapshot"], True)
    assert live.requests[before:] == []


@pytest.mark.parametrize("name", HUB_CLIENTS)
def test_who_may_not_read_is_told_so_by_the_right_exception(
    live: Live, name: str, release: tuple[str, wire.ModelVersion]
) -> None:
    repo, _version = release
    environment = f"hub-{name}"
    gated = live.run(environment, "refused", f"gated-{name}", by=LABS[0], repo=repo, revision="stable")
    assert gated["download"] == gated["large"] == ["GatedRepoError", 403]
    assert gated["info"] == ["nothing", 200]
    assert (gated["create"][1], gated["upload"][1]) == (403, 403)
    wrong = live.run(
        environment, "refused", f"wrong-{name}", token="fhp_" + "w" * 43, repo=repo, revision="stable"
    )
    assert wrong["whoami"][1] == 401 and wrong["info"][1] == 401
    assert wrong["download"][0] in ("HfHubHTTPError", "LocalEntryNotFoundError", "RepositoryNotFoundError")
    nobody = live.run(environment, "refused", f"nobody-{name}", by=None, repo=repo, revision="stable")
    assert nobody["download"] == ["RepositoryNotFoundError", 401]
    draft = live.run(environment, "refused", f"draft-{name}", by=FIRM, repo=repo, revision="draft-1")
    assert draft["download"] == ["GatedRepoError", 403]


def test_folder_that_a_client_sends_in_two_commits_is_one_version_of_all_its_files(live: Live) -> None:
    repo, count = f"{OWNER}/many", 260
    seen = live.run("hub-newest", "many", "many", repo=repo, count=str(count))
    assert seen["titles"] == ["many (part 2)", "many", "initial commit"]
    with live.alliance.as_(FIRM) as firm, pytest.raises(Refused):
        firm.revision("model", repo, seen["last but one"])  # half of it: a draft, which nobody else may read
    assert len(live.sign(repo).files) == count


def test_folder_that_a_stock_client_downloads_stands_stock_model_signing_and_a_changed_byte_does_not(
    live: Live, release: tuple[str, wire.ModelVersion]
) -> None:
    """By the words of the guide; the client leaves notes of its own in ``.cache``."""
    repo, _version = release
    model = Path(live.run("hub-newest", "local", "signed", by=FIRM, repo=repo, revision="stable")["folder"])
    pem = live.folder / "owner.pem"
    key = live.alliance.homes[OWNER].key("targets").public_key()
    pem.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(model), "--public_key", str(pem)]
    command += ["--signature", str(model / "model.sig")]
    for name in ("model.sig", "fedhub", ".cache"):
        command += ["--ignore-paths", str(model / name)]

    def verify() -> int:
        return subprocess.run(command, capture_output=True, check=False, timeout=RUN_S).returncode

    assert verify() == 0
    (model / "config.json").write_bytes(b"{}")
    assert verify() != 0


# --- a transfer that is cut -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HUB_CLIENTS)
def test_transfer_that_is_cut_goes_on_where_it_stopped(
    live: Live, name: str, release: tuple[str, wire.ModelVersion]
) -> None:
    repo, version = release
    live.origin.ranges.clear()
    live.origin.cut_next = True
    seen = live.run(
        f"hub-{name}", "fetch", f"cut-{name}", by=FIRM, repo=repo, revision="stable", file="large.dat"
    )
    assert not live.origin.cut_next
    assert seen.get("sha256") == next(file.sha256 for file in version.files if file.name == "large.dat"), seen
    assert any(asked and asked.startswith("bytes=") for asked in live.origin.ranges), live.origin.ranges
    assert live.origin.with_credentials == 0  # another port of the same host is another origin


@pytest.mark.parametrize("name", HUB_CLIENTS)
def test_transfer_that_is_cut_as_its_grant_is_revoked_goes_no_further(live: Live, name: str) -> None:
    repo, alliance = f"{OWNER}/stopped-{name.replace('.', '-')}", live.alliance
    version = alliance.push({"large.dat": random.Random(name).randbytes(CUT_BYTES + (1 << 20))}, repo)
    grant = alliance.grant_pull(version.asset_id)

    def revoke() -> None:
        said = {"target": "statement", "reason": "withdrawn"}
        alliance.say(OWNER, "revocation", [("statement", grant)], said)

    live.origin.answers.clear()
    live.origin.cut_next, live.origin.after_cut = True, revoke
    try:
        seen = live.run(
            f"hub-{name}", "fetch", f"stopped-{name}", by=FIRM, repo=repo, revision="v1", file="large.dat"
        )
    finally:
        live.origin.after_cut = lambda: None
    assert "sha256" not in seen and not live.origin.cut_next
    assert live.origin.answers[0] == 200 and set(live.origin.answers[1:]) <= {403}, live.origin.answers


# --- the libraries ----------------------------------------------------------------------------------------


def test_transformers_and_peft_load_what_was_pushed_and_signed(live: Live) -> None:
    base, adapter = f"{OWNER}/tiny", f"{OWNER}/tiny-lora"
    up = live.run("libraries", "models_up", "models-up", base=base, adapter=adapter)
    assert up["draft"] == [up["base"], 16]
    for signed in (live.sign(base, tags=["v1-0"]), live.sign(adapter)):
        live.alliance.grant_pull(signed.asset_id)
    down = live.run("libraries", "models_down", "models-down", by=FIRM, base=base, adapter=adapter)
    assert down["base"] == [[up["base"], 16]] * 3
    assert down["adapter"] == up["adapter"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_datasets_loads_a_shared_data_set(live: Live, kind: str) -> None:
    repo = f"{OWNER}/rows-{kind}"
    live.run("libraries", "rows_up", f"rows-{kind}", repo=repo, kind=kind)
    own = live.run("libraries", "rows_down", f"rows-own-{kind}", repo=repo, revision="main")
    with live.alliance.as_(OWNER) as client:
        made = share_draft(
            live.alliance.homes[OWNER],
            client,
            repo,
            "main",
            files=live.folder / f"rows-{kind}" / "rows",
            description="Rows for a test.",
            license_id="CC0-1.0",
        )
    live.alliance.grant_pull(made.asset_id or "")
    theirs = live.run("libraries", "rows_down", f"rows-firm-{kind}", by=FIRM, repo=repo, revision="v1")
    for seen in (own, theirs):
        assert (seen["splits"], seen["sum"], seen["first"]) == ({"train": 30, "test": 10}, 435, "row 0")


def test_command_line_downloads_uploads_and_says_who_it_is(
    live: Live, release: tuple[str, wire.ModelVersion]
) -> None:
    repo, _version = release
    hf = python_of("hub-newest").parent / "hf"
    if not hf.exists():
        pytest.skip("this version has no command line")
    home = live.folder / "cli"
    given = {
        "PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": live.endpoint,
        "HF_TOKEN": live.token(FIRM), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip

    def run(*words: str) -> str:
        done = subprocess.run([str(hf), *words], env=given, capture_output=True, text=True, timeout=RUN_S)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert FIRM in run("auth", "whoami")
    run("download", repo, "--revision", "stable", "--local-dir", str(home / "got"))
    assert (home / "got" / "model.sig").exists() and (home / "got" / "large.dat").stat().st_size > 12_000_000
    (home / "note.txt").write_text("from the command line")
    run("upload", f"{FIRM}/notes", str(home / "note.txt"), "note.txt")
