"""``fedhub model push`` and ``pull`` against a real hub: what is cut goes on, what is there is not sent or fetched again."""

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

import federation.fetching
import federation.sending
import federation.streams
from federation.lifeline import plain_environment
from federation.small_files import SMALL_BYTES
from federation.stock_names import LARGEST_BYTES, git_oid
from hub.cli import dispatch
from hub.terminal import Terminal
from storage.errors import Exit
from storage.manifests import PART_BYTES
from tests.e2e.test_hub_serve import HubProcess, hub_process
from tests.stock_environments import HUB_CLIENTS, python_of

ROOT = Path(__file__).parents[2]
OWNER, FIRM = "owner.example", "firm.example"
NAME = f"{OWNER}/m"
ROLES = {OWNER: "owner", FIRM: "firm"}


class Alliance:
    """A hub process, an owner and a firm, all used by their commands."""

    def __init__(self, folder: Path, hub: HubProcess) -> None:
        self.folder, self.hub = folder, hub
        self.endpoint: str = hub.ready()["endpoint"]
        pins = {"operator.example": self.run("operator", "institution", "show")["pin"]}
        for name, role in ROLES.items():
            code = self.run("operator", "hub", "invite", name, role)["code"]
            made = self.run(name, "institution", "create", name, "--invitation", code)
            pins[name] = made["pin"]
            self.run("operator", "institution", "approve", name, "--pin", made["pin"])
            self.run(name, "institution", "status")
        self.run(FIRM, "institution", "trust", OWNER, "--pin", pins[OWNER])

    def home(self, name: str) -> Path:
        return self.folder / "operator" if name == "operator" else self.folder / "homes" / name

    def call(self, name: str, *arguments: str) -> tuple[Exit, Terminal]:
        terminal = Terminal(self.home(name), json=True, out=io.StringIO(), err=io.StringIO())
        return dispatch(list(arguments), terminal), terminal

    def run(self, name: str, *arguments: str) -> dict[str, Any]:
        code, terminal = self.call(name, *arguments)
        assert code is Exit.DONE, terminal.problem
        return terminal.answer

    def problem(self, name: str, *arguments: str) -> dict[str, str]:
        code, terminal = self.call(name, *arguments)
        assert code is not Exit.DONE
        return terminal.problem

    def killed(self, name: str, function: str, after: int, *arguments: str) -> None:
        """Run a command in a process that is killed as it calls ``module:name`` for the nth time."""
        done = subprocess.run(
            [sys.executable, "-c", KILLED, function, str(after), "--home", str(self.home(name)), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == -signal.SIGKILL, done.stdout.decode() + done.stderr.decode()


KILLED = """
import importlib, os, signal, sys
(module, name), after = sys.argv[1].split(":"), int(sys.argv[2])
place = importlib.import_module(module)
*way, name = name.split(".")
for one in way:
    place = getattr(place, one)
original, calls = getattr(place, name), []
def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == after:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
setattr(place, name, killed)
import federation.streams
federation.streams.QUICK_S = federation.streams.LOOK_S = 0  # a line on which a file goes in parts
from hub.cli import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alliance]:
    folder = tmp_path_factory.mktemp("transfers")
    with hub_process(folder) as hub:
        yield Alliance(folder, hub)


def tensors(size: int, seed: bytes = b"") -> bytes:
    """A safetensors file of ``size`` bytes of one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    body = hashlib.shake_128(seed).digest(size)
    return len(header).to_bytes(8, "little") + header + body


def folder_of(path: Path, **files: bytes) -> Path:
    for name, data in files.items():
        file = path / name.replace("__", ".").replace("_in_", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def counted(monkeypatch: pytest.MonkeyPatch, place: ModuleType, name: str) -> list[int]:
    """One entry for each call of a module's function."""
    calls: list[int] = []
    original: Callable[..., Any] = getattr(place, name)

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, call)
    return calls


LARGE = tensors(2 * PART_BYTES + 1000, b"large")  # three parts


@pytest.fixture(scope="module")
def pushed(alliance: Alliance, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 of the model, granted to the firm."""
    files = {"model__safetensors": LARGE, "docs_in_README__md": b"# m", "config__json": b"{}"}
    folder = folder_of(tmp_path_factory.mktemp("model"), **files)
    assert alliance.run(OWNER, "model", "push", str(folder), NAME, "--tag", "base")["version"] == 1
    alliance.run(OWNER, "grant", "issue", f"{NAME}@1", "--to", FIRM, "--action", "pull")
    return folder


def same(one: Path, other: Path) -> bool:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return content(one) == content(other)


@pytest.mark.fault
def test_push_that_was_killed_sends_only_what_is_missing(
    alliance: Alliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{OWNER}/killed"
    folder = folder_of(tmp_path / "m", model__safetensors=tensors(6 * PART_BYTES, b"killed"), a__txt=b"a")
    # Whole, given up; then parts, four at a time: three are there at least when the seventh begins.
    alliance.killed(OWNER, "federation.sending:_send_one", 8, "model", "push", str(folder), name)
    assert alliance.problem(OWNER, "model", "show", name)["code"] == "E_NOT_FOUND"
    sent = counted(monkeypatch, federation.sending, "_send_one")
    assert alliance.run(OWNER, "model", "push", str(folder), name)["version"] == 1
    assert 0 < len(sent) <= 4  # of seven parts and the small file


def test_push_sends_nothing_that_the_hub_has(
    alliance: Alliance, pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = counted(monkeypatch, federation.sending, "_send_one")
    assert alliance.run(OWNER, "model", "push", str(pushed), NAME)["version"] == 1
    assert sent == []
    folder = folder_of(tmp_path / "next", model__safetensors=LARGE, config__json=b'{"n": 2}')
    assert alliance.run(OWNER, "model", "push", str(folder), f"{OWNER}/other")["version"] == 1
    assert sent == []  # the small file went along with a request


def test_push_of_files_that_are_a_version_already_gives_it_the_tags_and_never_another_licence(
    alliance: Alliance, tmp_path: Path
) -> None:
    name = f"{OWNER}/again"
    push = ("model", "push", str(folder_of(tmp_path, config__json=b"{}")), name)
    alliance.run(OWNER, *push, "--license", "MIT", "--tag", "one")
    again = alliance.run(OWNER, *push, "--license", "mit", "--tag", "one", "--tag", "two")
    assert (again["version"], again["tags"], again["license"]) == (1, ["one", "two"], "MIT")
    assert alliance.problem(OWNER, *push, "--tag", "main")["code"] == "E_FIELD"
    problem = alliance.problem(OWNER, *push, "--license", "Apache-2.0", "--tag", "three")
    assert problem["code"] == "E_LICENSE" and "MIT" in problem["message"]
    assert alliance.run(OWNER, "model", "show", f"{name}@1")["tags"] == ["one", "two"]


def test_folder_that_came_with_proofs_of_an_earlier_version_is_refused_before_anything_is_sent(
    alliance: Alliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("federation.publishing.push_version", lambda *given, **_options: asked.append(given))
    folder_of(tmp_path, config__json=b"{}", fedhub_in_manifest__json=b"{}")
    problem = alliance.problem(OWNER, "model", "push", str(tmp_path), f"{OWNER}/downloaded")
    assert problem["code"] == "E_PATH" and "model.sig" in problem["hint"]
    other = folder_of(tmp_path / "other", config__json=b"{}", COM1__txt=b"no file on Windows")
    problem = alliance.problem(OWNER, "model", "push", str(other), f"{OWNER}/downloaded")
    assert problem["code"] == "E_PATH" and "COM1.txt" in problem["message"]
    assert asked == []


def test_file_that_is_too_large_is_named_before_any_of_it_is_read(alliance: Alliance, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", config__json=b"{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)  # all of it a hole
    problem = alliance.problem(OWNER, "model", "push", str(folder), f"{OWNER}/large")
    assert problem["code"] == "E_LIMIT" and "model.safetensors" in problem["message"]
    assert "shards" in problem["hint"]


def test_grant_to_lean_on_may_be_named_by_the_beginning_that_commands_show(
    alliance: Alliance, pushed: Path, tmp_path: Path
) -> None:
    grant = alliance.run(FIRM, "grant", "list")["grants"][0]["id"]
    pull = ("model", "pull", f"{NAME}@1", str(tmp_path / "got"), "--grant")
    for other in ("", grant[:4], "0" * 12, grant + "0"):
        assert alliance.problem(FIRM, *pull, other)["code"] == "E_GRANT_MISSING"
    assert not (tmp_path / "got").exists()
    assert alliance.run(FIRM, *pull, grant[:12])["grant"] == grant


def test_grant_of_one_without_a_status_list_is_said_to_be_of_no_use_yet(
    alliance: Alliance, tmp_path: Path
) -> None:
    late = "late.example"
    code = alliance.run("operator", "hub", "invite", late, "owner")["code"]
    pin = alliance.run(late, "institution", "create", late, "--invitation", code)["pin"]
    alliance.run("operator", "institution", "approve", late, "--pin", pin)
    alliance.run(FIRM, "institution", "trust", late, "--pin", pin)
    folder = folder_of(tmp_path / "m", config__json=b"{}")
    alliance.run(late, "model", "push", str(folder), f"{late}/m")
    issued = alliance.run(late, "grant", "issue", f"{late}/m@1", "--to", FIRM)
    assert issued["status_until"] is None

    def state() -> str:
        listed = alliance.run(FIRM, "grant", "list")["grants"]
        return next(each["state"] for each in listed if each["id"] == issued["grant"])

    assert state() == "stale"
    pull = ("model", "pull", f"{late}/m@1", str(tmp_path / "got"))
    for command in (pull, ("grant", "verify", issued["grant"])):
        problem = alliance.problem(FIRM, *command)
        assert problem["code"] == "E_STATUS_MISSING" and late in problem["hint"]
    alliance.run(late, "institution", "status")
    assert state() == "valid"
    assert alliance.run(FIRM, *pull)["grant"] == issued["grant"]
    assert alliance.run(late, "grant", "issue", f"{late}/m@1", "--to", FIRM)["status_until"] is not None


def test_push_sends_all_files_before_it_waits_for_the_hub_to_check_one(
    alliance: Alliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation.streams, "QUICK_S", 0)  # a line on which a file goes in parts
    monkeypatch.setattr(federation.streams, "LOOK_S", 0)
    shards = {f"model-{n}__safetensors": tensors(PART_BYTES + n, b"%d" % n) for n in range(3)}
    folder = folder_of(tmp_path / "m", config__json=b"{}", z__txt=b"z" * SMALL_BYTES * 2, **shards)
    steps: list[str] = []
    for name in ("send_file", "wait_stored"):
        original = getattr(federation.sending, name)

        def step(*arguments: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            steps.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(federation.sending, name, step)
    assert alliance.run(OWNER, "model", "push", str(folder), f"{OWNER}/shards")["version"] == 1
    assert steps == ["send_file"] * 4 + ["wait_stored"] * 4
    alliance.run(OWNER, "model", "pull", f"{OWNER}/shards@1", str(tmp_path / "got"))
    assert same(folder, tmp_path / "got")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("function", "after", "fetched"),
    [
        ("federation.partials:Partial.note", 2, (1, 2, 3)),  # in the middle of the large file
        ("federation.pulling:check_pack", 1, (0,)),  # everything is there, nothing is checked as a whole
    ],
)
def test_pull_that_was_killed_goes_on_and_nothing_stands_there_before(
    alliance: Alliance,
    pushed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    after: int,
    fetched: tuple[int, ...],
) -> None:
    target = tmp_path / "model"
    alliance.killed(FIRM, function, after, "model", "pull", f"{NAME}@1", str(target))
    assert not target.exists() and [path.name[:7] for path in tmp_path.iterdir()] == [".model."]
    read = counted(monkeypatch, federation.fetching, "_read_piece")
    answer = alliance.run(FIRM, "model", "pull", f"{NAME}:base", str(target))
    assert answer["grant"] and len(read) in fetched
    assert same(target, pushed) and list(tmp_path.iterdir()) == [target]


def test_pull_does_not_trust_what_an_earlier_one_left(
    alliance: Alliance, pushed: Path, tmp_path: Path
) -> None:
    asset = alliance.run(FIRM, "model", "show", f"{NAME}@1")["asset_id"]
    target = tmp_path / "model"
    left = tmp_path / f".model.{asset[:16]}.pull" / "files"
    folder_of(left, config__json=b"[]", planted__py=b"import os")
    assert alliance.problem(FIRM, "model", "pull", f"{NAME}@1", str(target))["code"] == "E_SUBJECT"
    assert list(tmp_path.iterdir()) == []
    alliance.run(FIRM, "model", "pull", f"{NAME}@1", str(target))
    assert same(target, pushed)


def test_pull_that_is_refused_leaves_nothing(alliance: Alliance, pushed: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", config__json=b"{}")
    alliance.run(OWNER, "model", "push", str(folder), f"{OWNER}/ungranted")
    problem = alliance.problem(FIRM, "model", "pull", f"{OWNER}/ungranted@1", str(tmp_path / "got"))
    assert problem["code"].startswith("E_GRANT")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_public_version_is_pulled_with_its_evidence_by_a_member_without_a_grant(
    alliance: Alliance, tmp_path: Path
) -> None:
    name, folder = f"{OWNER}/open", folder_of(tmp_path / "m", config__json=b"{}")
    alliance.run(OWNER, "model", "push", str(folder), name)
    alliance.run(OWNER, "model", "visibility", name, "public")
    got = str(tmp_path / "got")
    assert alliance.run(FIRM, "model", "pull", f"{name}@1", got)["grant"] is None
    assert same(tmp_path / "got", folder)
    assert alliance.run(FIRM, "model", "pull", f"{name}@1", got, "--verify-only")["version"] == 1
    alliance.run(OWNER, "model", "visibility", name, "gated")
    problem = alliance.problem(FIRM, "model", "pull", f"{name}@1", got, "--verify-only")
    assert problem["code"] == "E_NOT_FOUND" and problem["message"].startswith("asset ")


def test_verify_only_names_what_differs_and_fetches_no_file(
    alliance: Alliance, pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = counted(monkeypatch, federation.fetching, "_read_piece")
    copy = tmp_path / "copy"
    shutil.copytree(pushed, copy)
    assert alliance.run(FIRM, "model", "pull", f"{NAME}@1", str(copy), "--verify-only")["version"] == 1
    (copy / "docs" / "README.md").write_bytes(b"# n")
    (copy / "added.txt").write_bytes(b"")
    problem = alliance.problem(FIRM, "model", "pull", f"{NAME}@1", str(copy), "--verify-only")
    assert problem["code"] == "E_SUBJECT"
    assert "README.md" in problem["message"] and "added.txt" in problem["message"]
    assert "config.json" not in problem["message"] and read == []


@pytest.mark.parametrize(
    "arguments",
    [(), ("x", "--into-hf-cache"), ("--verify-only", "--into-hf-cache"), ("x", "--revision", "r")],
    ids=["no place", "two places", "verify a cache", "a name without a cache"],
)
def test_places_that_contradict_each_other_are_refused(
    alliance: Alliance, arguments: tuple[str, ...]
) -> None:
    assert alliance.problem(FIRM, "model", "pull", f"{NAME}@1", *arguments)["code"] == "E_USAGE"


def test_cache_of_stock_clients_is_filled_as_they_read_it(
    alliance: Alliance, pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    pull = ("model", "pull", f"{NAME}@1", "--into-hf-cache", "--revision", "mine")
    answer = alliance.run(FIRM, *pull)
    repository = tmp_path / "hub" / "models--owner.example--m"
    snapshot = Path(answer["folder"])
    commit = snapshot.name
    assert snapshot == repository / "snapshots" / commit and len(commit) == 40
    refs = {path.name: path.read_text() for path in (repository / "refs").iterdir()}
    assert refs == dict.fromkeys(("v1", "base", "main", "mine"), commit)
    assert same(snapshot, pushed)
    etags = {git_oid(b"# m"), git_oid(b"{}"), hashlib.sha256(LARGE).hexdigest()}
    assert {path.name for path in (repository / "blobs").iterdir()} == etags
    link = os.readlink(snapshot / "docs" / "README.md")
    assert link == f"../../../blobs/{git_oid(b'# m')}"
    assert {path.name for path in repository.iterdir()} == {"blobs", "refs", "snapshots"}
    alliance.run(FIRM, *pull)  # again, over what is there
    assert same(snapshot, pushed)


SNAPSHOT = """
import sys, huggingface_hub as h
for revision in ("main", "v1", "base", None):
    print(h.snapshot_download(sys.argv[1], revision=revision, local_files_only=True))
print(h.hf_hub_download(sys.argv[1], "docs/README.md"))
print(len(h.scan_cache_dir().warnings))
"""
PRETRAINED = """
import sys
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], revision="v1")
print(type(model).__name__, sum(p.numel() for p in model.parameters()))
"""
TINY = """
import sys, torch
from transformers import BertConfig, BertModel
sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=11)
model = BertModel(BertConfig(**sizes))
model.save_pretrained(sys.argv[1])
print(type(model).__name__, sum(p.numel() for p in model.parameters()))
"""


def offline(environment: str, cache: Path, code: str, argument: str) -> list[str]:
    """What a stock client's Python prints, without any hub."""
    done = subprocess.run(
        [str(python_of(environment)), "-c", code, argument],
        env={**plain_environment(), "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("client", list(HUB_CLIENTS))
def test_stock_client_finds_every_name_offline(
    alliance: Alliance, pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = alliance.run(FIRM, "model", "pull", f"{NAME}@1", "--into-hf-cache")["folder"]
    *found, file, warnings = offline(f"hub-{client}", tmp_path, SNAPSHOT, NAME)
    assert found == [snapshot] * 4
    assert Path(file).read_bytes() == b"# m" and warnings == "0"


@pytest.mark.slow
def test_transformers_loads_a_pulled_model_offline(
    alliance: Alliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = offline("libraries", tmp_path, TINY, str(tmp_path / "bert"))
    name = f"{OWNER}/bert"
    alliance.run(OWNER, "model", "push", str(tmp_path / "bert"), name)
    alliance.run(OWNER, "grant", "issue", f"{name}@1", "--to", FIRM, "--action", "pull")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    alliance.run(FIRM, "model", "pull", f"{name}@1", "--into-hf-cache")
    assert offline("libraries", tmp_path / "cache", PRETRAINED, name)[-1] == made[-1]


def test_two_versions_are_compared_and_a_version_s_line_is_shown(alliance: Alliance, tmp_path: Path) -> None:
    name = f"{OWNER}/line"
    for number, size in enumerate((10, 20), start=1):
        folder = folder_of(tmp_path / str(number), model__safetensors=tensors(size), note__txt=b"%d" % number)
        alliance.run(OWNER, "model", "push", str(folder), name, "--license", "apache-2.0")
    found = alliance.run(OWNER, "model", "diff", f"{name}@1", f"{name}@2")
    assert found["files_changed"] == ["model.safetensors", "note.txt"]
    assert list(found["tensors_reshaped"]["w"]) == ["U8 [10]", "U8 [20]"]
    line = alliance.run(OWNER, "model", "lineage", f"{name}@2")["lineage"]
    assert [one["reference"] for one in line] == [f"{name}@2", f"{name}@1"]
    assert alliance.run(OWNER, "model", "show", f"{name}@2")["license"] == "Apache-2.0"


def test_a_shared_data_set_is_pulled_and_checked_and_a_changed_one_is_not_there(
    alliance: Alliance, tmp_path: Path
) -> None:
    name, rows = f"{OWNER}/rows", {"train.csv": b"a\n1\n2\n", "big.csv": b"a\n" + b"1\n" * 300_000}
    token = alliance.run(OWNER, "token", "new", "stock", "--scope", "write")["token"]
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=alliance.endpoint, headers=headers, trust_env=False) as owner:
        owner.post("/api/repos/create", json={"name": "rows", "organization": OWNER, "type": "dataset"})
        lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "rows"}}]
        for path, data in rows.items():
            value = {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"}
            lines.append({"key": "file", "value": value})
        body = b"\n".join(json.dumps(line).encode() for line in lines)
        assert owner.post(f"/api/datasets/{name}/commit/main", content=body).status_code == 200
    own = tmp_path / "own"
    own.mkdir()
    for path, data in rows.items():
        (own / path).write_bytes(data)
    words = ("--files", str(own), "--description", "Rows.", "--license", "CC0-1.0")
    made = alliance.run(OWNER, "data", "share", f"{name}@main", *words)
    target = tmp_path / "pulled"
    assert alliance.problem(FIRM, "data", "pull", name, str(target))["code"] == "E_GRANT_MISSING"
    alliance.run(OWNER, "grant", "issue", made["asset_id"], "--to", FIRM, "--action", "pull")
    assert alliance.run(FIRM, "data", "pull", f"{name}@1", str(target))["grant"]
    assert {path.name: path.read_bytes() for path in target.iterdir()} == rows
    assert alliance.problem(FIRM, "data", "pull", f"{name}@2", str(tmp_path / "no"))["code"] == "E_REVISION"
    (stored,) = (alliance.folder / "hub").rglob(f"{hashlib.sha256(rows['train.csv']).hexdigest()}.*")
    stored.write_bytes(b"a\n1\n3\n")
    assert "train.csv" in alliance.problem(FIRM, "data", "pull", name, str(tmp_path / "bad"))["message"]
    assert not (tmp_path / "bad").exists()
