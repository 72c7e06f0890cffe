"""Stock MLflow and OCI clients, in pinned versions and processes of their own, against a hub on real ports."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from federation import wire
from hub.api.app import create_download_app
from storage.encoding import sha256_hex
from storage.manifests import build_manifest, check_oms
from storage.signing import check_signature, open_envelope
from storage.statements import read_statement
from tests.alliances import ENGINES, FIRM, LABS, OWNER, AllianceInProcess, open_alliance, weights
from tests.live_hubs import Watched, serving
from tests.servers import free_port
from tests.stock_environments import oras_program, python_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CLIENTS = Path(__file__).parent / "stock_clients"
RUN_S = 120
BIG = random.Random(3).randbytes(3 << 20)  # the same each time: one in thousands looks like a pickle
FILES = {
    "README.md": b"# Served\n",
    "config.json": b'{"a": 1}',
    "model.safetensors": weights(1, 2, 3),
    "sub/deep/big.bin": BIG,
    "sub/empty.txt": b"",
}
DIGESTS = {path: sha256_hex(data) for path, data in FILES.items()}
PROOFS = {"model.sig", "fedhub/manifest.json", "fedhub/asset.sigstore.json"}
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
WRONG = "fhp_" + "w" * 43


@dataclass
class Live:
    """A hub on real ports; its download origin has another host name, as one behind a real name has."""

    alliance: AllianceInProcess
    address: str  # host:port
    downloads: Watched
    folder: Path
    versions: dict[str, wire.ModelVersion] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    runs: int = 0

    def token(self, name: str) -> str:
        if name not in self.tokens:
            with self.alliance.as_(name) as client:
                self.tokens[name] = client.create_token("stock", ["read"]).token
        return self.tokens[name]

    def place(self) -> Path:
        """A fresh folder."""
        self.runs += 1
        made = self.folder / f"run-{self.runs}"
        made.mkdir()
        return made

    def call(self, command: list[str], home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A client's process, with nothing of this one's environment."""
        given = {"PATH": os.environ["PATH"], "HOME": str(home), "NO_PROXY": "*", **variables}
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=RUN_S, cwd=home)

    def mlflow(self, *asked: tuple[str | None, str, list[str]]) -> list[dict[str, Any]]:
        """What a process sees of (token, model, URIs), one after the other."""
        home = self.place()
        variables = {"MLFLOW_TRACKING_URI": f"http://{self.address}", "MLFLOW_DISABLE_TELEMETRY": "true"}
        script = [str(python_of("mlflow")), str(CLIENTS / "mlflow_client.py")]
        done = self.call([*script, str(home / "got"), json.dumps(asked)], home, **variables)
        assert done.returncode == 0, done.stderr[-3000:]
        said: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return said

    def oras(self, *arguments: str, token: str | None) -> subprocess.CompletedProcess[str]:
        home = self.place()
        logins = [] if token is None else ["--username", "anybody", "--password", token]
        options = ["--plain-http", "--registry-config", str(home / "none.json"), *logins]
        return self.call([oras_program(), *arguments, *options], home)

    def pull(self, name: str, reference: str, *, token: str | None) -> tuple[Path, str]:
        """A folder with what ``oras pull`` brought, and what it said when it failed."""
        place = self.place()
        target = f"{self.address}/{OWNER}/{name}{reference}"
        done = self.oras("pull", target, "--output", str(place), token=token)
        return place, "" if done.returncode == 0 else done.stderr

    def oras_json(self, *arguments: str) -> Any:
        done = self.oras(*arguments, token=self.token(FIRM))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module", params=ENGINES)
def live(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Live]:
    folder, port, downloads = tmp_path_factory.mktemp("live"), free_port(), free_port()
    address = f"localhost:{port}"
    given: dict[str, Any] = {"public_url": f"http://{address}", "port": port}
    given |= {"download_url": f"http://127.0.0.1:{downloads}", "download_port": downloads}
    with open_alliance(folder / "hub", request.param, **given) as alliance:
        origin = Watched(create_download_app(alliance.settings, hub=alliance.hub))
        with serving(alliance.app, port), serving(origin, downloads):
            live = Live(alliance, address, origin, folder)
            for name in ("gated", "open", "hidden", "over", "withdrawn"):
                tags = ["stable"] if name == "gated" else []
                live.versions[name] = alliance.push(FILES, f"{OWNER}/{name}", tags=tags)
            alliance.grant_pull(live.versions["gated"].asset_id)
            alliance.grant_pull(live.versions["withdrawn"].asset_id)
            over = alliance.grant_pull(live.versions["over"].asset_id)
            for ended in (over, live.versions["withdrawn"].statement):
                said = {"target": "statement", "reason": "withdrawn"}
                alliance.say(OWNER, "revocation", [("statement", ended)], said)
            alliance.renew_status(alliance.homes[OWNER])
            with alliance.as_(OWNER) as client:
                client.set_visibility(f"{OWNER}/open", "public")
                client.set_visibility(f"{OWNER}/hidden", "private")
            yield live


def files_in(folder: Path) -> dict[str, str]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): sha256_hex(path.read_bytes()) for path in found}


def receipts(live: Live, name: str) -> int:
    with live.alliance.client(live.alliance.operator) as client:
        asset_id = live.versions[name].asset_id
        return len(list(client.all_statements(kind="receipt", subject=asset_id)))


# --- MLflow -----------------------------------------------------------------------------------------------


def test_mlflow_finds_and_downloads_a_granted_version_and_its_token_stays_with_the_hub(live: Live) -> None:
    name = f"{OWNER}.gated"
    uris = [
        f"models:/{name}/1",
        f"models:/{name}@stable",
        f"models:/{name}/latest",
        f"models:/{OWNER}--gated/1/sub",
    ]
    before, downloads = live.downloads.with_credentials, len(live.downloads.seen)
    (seen,) = live.mlflow((live.token(FIRM), name, uris))
    assert seen["version"] == "3.17.2"
    model = seen["model"]
    assert isinstance(model, dict), model
    assert (model["name"], model["aliases"], model["searched"]) == (name, {"stable": "1"}, [name])
    assert model["versions"] == model["latest"] == [model["same"]] == [1]
    assert model["tags"]["fedhub.asset"] == live.versions["gated"].asset_id
    for uri in uris[:3]:
        got = seen["fetched"][uri]
        assert {path: digest for path, digest in got.items() if path not in PROOFS} == DIGESTS, got
        assert set(got) >= PROOFS and got["fedhub/manifest.json"] == live.versions["gated"].asset_id
    assert seen["fetched"][uris[3]] == {
        path[4:]: DIGESTS[path] for path in DIGESTS if path.startswith("sub/")
    }
    assert receipts(live, "gated") >= 1
    assert len(live.downloads.seen) > downloads and live.downloads.with_credentials == before


def test_mlflow_says_by_its_own_errors_who_may_not_read(live: Live) -> None:
    uris = {
        name: f"models:/{OWNER}.{name}/1" for name in ("gated", "open", "hidden", "over", "withdrawn", "no")
    }
    firm, lab, nobody, wrong = live.mlflow(
        (live.token(FIRM), f"{OWNER}.hidden", list(uris.values())),
        (live.token(LABS[0]), f"{OWNER}.gated", [uris["gated"]]),
        (None, f"{OWNER}.gated", [uris["open"], uris["gated"]]),
        (WRONG, f"{OWNER}.open", [uris["open"]]),
    )
    assert firm["model"][0] == "RESOURCE_DOES_NOT_EXIST"
    assert {p: d for p, d in firm["fetched"][uris["open"]].items() if p not in PROOFS} == DIGESTS
    for name in ("over", "withdrawn"):
        assert "PERMISSION_DENIED" in str(firm["fetched"][uris[name]]) or "403" in str(
            firm["fetched"][uris[name]]
        )
    for name in ("hidden", "no"):
        assert firm["fetched"][uris[name]][0] == "RESOURCE_DOES_NOT_EXIST"
    assert lab["model"]["versions"] == [1]
    assert "403" in str(lab["fetched"][uris["gated"]]) or "PERMISSION_DENIED" in str(
        lab["fetched"][uris["gated"]]
    )
    assert nobody["model"][0] == "UNAUTHENTICATED"
    assert set(nobody["fetched"][uris["open"]]) == {*DIGESTS, *PROOFS}
    assert nobody["fetched"][uris["gated"]][0] == "UNAUTHENTICATED"
    assert wrong["model"][0] == wrong["fetched"][uris["open"]][0] == "UNAUTHENTICATED"


# --- OCI --------------------------------------------------------------------------------------------------


def test_oras_pulls_by_tag_and_by_digest_and_its_token_stays_with_the_hub(live: Live) -> None:
    before, downloads = live.downloads.with_credentials, len(live.downloads.seen)
    token, target = live.token(FIRM), f"{live.address}/{OWNER}/gated"
    described = live.oras_json("manifest", "fetch", "--descriptor", f"{target}:stable")
    for reference in (":stable", ":v1", f"@{described['digest']}"):
        folder, error = live.pull("gated", reference, token=token)
        assert not error and files_in(folder) == DIGESTS
    tags = live.oras("repo", "tags", target, token=token)
    assert tags.stdout.split() == ["stable", "v1"]
    assert receipts(live, "gated") >= 1
    assert len(live.downloads.seen) > downloads and live.downloads.with_credentials == before


def test_bundles_found_by_referrers_prove_what_oras_pulled(live: Live) -> None:
    token, target = live.token(FIRM), f"{live.address}/{OWNER}/gated"
    folder, error = live.pull("gated", ":stable", token=token)
    assert not error
    found = live.oras_json("discover", "--format", "json", "--artifact-type", BUNDLE, f"{target}:stable")
    kinds = {one["annotations"]["dev.fedhub.statement.kind"]: one["digest"] for one in found["referrers"]}
    assert set(kinds) == {"oms", "asset"}
    manifest = build_manifest(folder, f"{OWNER}/gated")
    statements = {}
    for kind, digest in kinds.items():
        place, error = live.pull("gated", f"@{digest}", token=token)
        assert not error
        envelope = open_envelope((place / f"{kind}.sigstore.json").read_bytes())
        ring = live.alliance.homes[OWNER].ring.versions
        keys = max(ring.items())[1].roles["targets"]
        check_signature(keys[envelope.hint], envelope)
        statements[kind] = read_statement(envelope)
    assert statements["asset"].subject == manifest.asset_id == live.versions["gated"].asset_id
    assert statements["asset"].predicate["oms"] == statements["oms"].id
    check_oms(statements["oms"], manifest)


@pytest.mark.parametrize(
    ("name", "by", "words"),
    [
        ("open", None, ""),
        ("open", FIRM, ""),
        ("gated", None, "unauthorized"),
        ("gated", LABS[0], "grant"),
        ("over", FIRM, "denied"),
        ("withdrawn", FIRM, "denied"),
        ("hidden", FIRM, "not found"),
        ("hidden", OWNER, ""),
        ("missing", FIRM, "not found"),
        ("gated", "wrong", "unauthorized"),
    ],
)
def test_oras_gets_what_its_holder_may_read_and_is_told_the_rest(
    live: Live, name: str, by: str | None, words: str
) -> None:
    token = WRONG if by == "wrong" else None if by is None else live.token(by)
    folder, error = live.pull(name, ":v1", token=token)
    if words:
        assert words in error and files_in(folder) == {}
    else:
        assert not error and files_in(folder) == DIGESTS


def test_oras_library_pulls_with_a_password_and_as_nobody(live: Live) -> None:
    def pull(name: str, *token: str) -> dict[str, Any]:
        home, target = live.place(), f"{live.address}/{OWNER}/{name}:v1"
        script = [str(python_of("oras")), str(CLIENTS / "oras_client.py"), str(home / "got"), target]
        done = live.call([*script, *token], home)
        assert done.returncode == 0, done.stderr[-2000:]
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said

    assert pull("gated", live.token(FIRM)) == {"files": DIGESTS, "tags": ["stable", "v1"]}
    assert pull("open")["files"] == DIGESTS
