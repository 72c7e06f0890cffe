"""``make demo`` once, whole, on real processes; then everything it claims is checked by other means."""

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.lifeline import plain_environment
from hub.demo import digits
from hub.demo.journey import ROUNDS
from storage.signing import open_envelope
from storage.statements import Statement, read_statement

pytestmark = [pytest.mark.timeout(600)]

MEMBERS = {
    "seconds_per_round",
    "accuracy",
    "benefit",
    "refused",
    "model",
    "pack",
    "trust",
    "model_dir",
    "oms_bundle",
    "owner_key_pem",
    "log_base",
    "log_key",
    "peak_rss_mb",
}
PATHS = ("pack", "trust", "model_dir", "oms_bundle", "owner_key_pem", "log_base")


@dataclass(frozen=True)
class Demo:
    """What one demo left."""

    folder: Path
    report: dict[str, Any]
    stderr: str

    def path(self, member: str) -> Path:
        return self.folder / str(self.report[member])

    def statements(self, kind: str) -> list[Statement]:
        found = [
            read_statement(open_envelope(path.read_bytes()))
            for path in (self.path("pack") / "statements").iterdir()
        ]
        return [each for each in found if each.kind == kind]


def fedhub(*argv: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-m", "hub", *argv],
        capture_output=True,
        text=True,
        env=plain_environment(),
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo") / "alliance"
    done = subprocess.run(
        # "-o setup": this Python has everything already
        [
            "make",
            "-s",
            "-o",
            "setup",
            "demo",
            f"BIN={Path(sys.executable).parent}",
            f"DEMO_DIR={folder} --json",
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env=plain_environment(),
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == json.loads((folder / "report.json").read_text())
    yield Demo(folder, told, done.stderr)


def test_the_report_has_exactly_its_members_and_its_paths_lead_somewhere(demo: Demo) -> None:
    assert set(demo.report) == MEMBERS
    for member in PATHS:
        assert not Path(demo.report[member]).is_absolute(), member
        assert demo.path(member).exists(), member
    assert set(demo.report["model"]) == {"name", "version", "asset_id"}
    assert demo.stderr == ""


def test_federation_beats_every_lab_alone_on_the_same_rows(demo: Demo) -> None:
    found = demo.report["accuracy"]
    assert set(found) == {"local", "pooled", "federated", "majority", "n"}
    assert set(found["local"]) == {f"{lab}.example" for lab in digits.LABS}
    assert found["n"] == sum(
        len(parts["heldout"]) for name, parts in digits.split().items() if name != "public"
    )
    assert max(found["local"].values()) < found["federated"] <= found["pooled"] + 0.02
    assert found["majority"] < min(found["local"].values())


def test_the_benefit_report_is_the_labs_signed_word_and_claims_no_gain_that_is_none(demo: Demo) -> None:
    found = demo.report["benefit"]
    assert set(found["checked"].values()) == {"checked"}
    held_out = {
        f"{name}.example": len(parts["heldout"]) for name, parts in digits.split().items() if name != "public"
    }
    for row in found["sites"]:
        assert row["rows"] == held_out[row["institution"]]
        federated, alone = row["federated"], max(row["local"], row["majority"], key=lambda one: one["share"])
        apart = federated["low"] > alone["high"], federated["high"] < alone["low"]
        assert row["verdict"] == {(1, 0): "gain", (0, 0): "no clear difference", (0, 1): "loss"}[apart]


def test_the_reported_accuracy_is_that_of_the_pulled_model(demo: Demo) -> None:
    import numpy as np

    from federation import training

    rows = [
        row for lab in digits.LABS for row in digits.read_rows(demo.folder / "data" / lab / "heldout.csv")
    ]
    features = np.array([row[1:] for row in rows], dtype=np.float32)
    said = training.predict(demo.path("model_dir"), features).labels
    right = float((said == np.array([row[0] for row in rows])).mean())
    assert right == pytest.approx(demo.report["accuracy"]["federated"], abs=1e-9)


def test_every_round_was_timed_and_receipted_by_all_three_labs(demo: Demo) -> None:
    assert len(demo.report["seconds_per_round"]) == ROUNDS
    assert all(0 < seconds < 60 for seconds in demo.report["seconds_per_round"])
    rounds = sorted(demo.statements("round"), key=lambda each: each.predicate["round"])
    assert [each.predicate["round"] for each in rounds] == list(range(1, ROUNDS + 1))
    receipts = {each.id: each for each in demo.statements("receipt")}
    for each in rounds:
        signers = {receipts[receipt].issuer for receipt in each.predicate["receipts"]}
        assert signers == {f"{lab}.example" for lab in digits.LABS}
    held = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in demo.path("model_dir").iterdir()
    }
    assert held["model.safetensors"] == rounds[-1].subject


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("a run of a plan that nobody consented to", "E_CONSENT"),
        ("orders of a hostile hub, at lab-a.example", "E_CONSENT"),
        ("orders of a hostile hub, at lab-b.example", "E_CONSENT"),
        ("orders of a hostile hub, at lab-c.example", "E_CONSENT"),
        ("a release with one approval of two", "E_APPROVALS"),
        ("a pull without a grant", "E_GRANT_MISSING"),
        ("a pull after one byte of the store was flipped", "model.safetensors"),
        ("a pack in which the log's head claims one more entry", "V2 E_CHECKPOINT_SIG"),
        ("a pack in which one institution's key ring is replaced by another's", "V5 E_KEYRING_PIN"),
        ("a pack in which a lab's measured accuracy is raised", "V7 E_SIGNATURE"),
        ("a pack in which two log proofs are exchanged", "V8 E_NOT_LOGGED"),
        ("a pack in which the receipt of one lab's round is withheld", "V14 "),
    ],
)
def test_what_must_be_refused_was_refused_with_its_reason(demo: Demo, what: str, error: str) -> None:
    (found,) = (each for each in demo.report["refused"] if each["what"] == what)
    assert set(found) == {"what", "error"}
    assert error in found["error"]


def test_nothing_else_was_refused(demo: Demo) -> None:
    assert len(demo.report["refused"]) == 12


def test_the_pack_verifies_and_every_step_was_taken(demo: Demo, tmp_path: Path) -> None:
    use = (demo.folder / "audit" / "use.json").read_text()
    args = ["--trust", str(demo.path("trust")), "--files", str(demo.path("model_dir")), "--use", use]
    args += ["--state", str(tmp_path / "state.json"), "--require", "APPROVED", "--json"]
    done = fedhub("verify", str(demo.path("pack")), *args)
    assert done.returncode == 0, done.stdout
    steps = json.loads(done.stdout)["steps"]
    assert [step["step"] for step in steps] == [f"V{number}" for number in range(1, 16)]
    assert {step["step"] for step in steps if step["outcome"] != "ok"} == {
        "V3",
        "V4",
    }  # no witness, nothing saved
    again = fedhub("verify", str(demo.path("pack")), *args)
    outcomes = {step["step"]: step["outcome"] for step in json.loads(again.stdout)["steps"]}
    assert outcomes["V4"] == "ok" and outcomes["V3"] == "not checked"


def test_stock_model_signing_accepts_the_model(demo: Demo) -> None:
    args = ["--signature", str(demo.path("oms_bundle")), "--public_key", str(demo.path("owner_key_pem"))]
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(demo.path("model_dir")), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stock_model_signing_refuses_the_model_when_a_byte_changes(demo: Demo, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(demo.path("model_dir"), model)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    args = ["--signature", str(demo.path("oms_bundle")), "--public_key", str(demo.path("owner_key_pem"))]
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(model), *args]
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode != 0


def test_the_published_description_of_a_dataset_is_valid_croissant_and_tells_no_digest(demo: Demo) -> None:
    script = "import sys, mlcroissant; d = mlcroissant.Dataset(jsonld=sys.argv[1]); print(len(d.metadata.record_sets))"
    for lab in digits.LABS:
        (place,) = (demo.folder / "homes" / lab / "site" / "datasets").iterdir()
        path = place / "croissant.json"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, str(path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) >= 1
        for csv_file in (demo.folder / "data" / lab).iterdir():
            assert hashlib.sha256(csv_file.read_bytes()).hexdigest() not in path.read_text()


# --- the log, read without a line of ours -----------------------------------------------------------------------


def entries_of(log: Path, size: int) -> list[bytes]:
    found: list[bytes] = []
    for tile in range((size + 255) // 256):
        assert tile < 1000
        width = min(256, size - 256 * tile)
        name = f"{tile:03d}" if width == 256 else f"{tile:03d}.p/{width}"
        raw = (log / "tile" / "entries" / name).read_bytes()
        while raw:
            length = int.from_bytes(raw[:2], "big")
            found.append(raw[2 : 2 + length])
            raw = raw[2 + length :]
    return found


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + tree_root(leaves[:split]) + tree_root(leaves[split:])).digest()


def test_the_logs_head_is_signed_over_exactly_its_entries(demo: Demo) -> None:
    log = demo.path("log_base")
    text, _, signatures = (log / "checkpoint").read_text().partition("\n\n")
    origin, size, root = text.split("\n")[:3]
    entries = entries_of(log, int(size))
    assert len(entries) == int(size)
    assert base64.b64decode(root) == tree_root(entries)
    name, _key_id, key = demo.report["log_key"].split("+", 2)
    raw = base64.b64decode(key)
    assert (origin, name, raw[0]) == ("hub.example", "hub.example", 1)
    line = next(line for line in signatures.split("\n") if line.startswith(f"— {name} "))
    signature = base64.b64decode(line.split(" ")[2])[4:]
    Ed25519PublicKey.from_public_bytes(raw[1:]).verify(signature, text.encode() + b"\n")


def test_the_log_shows_digests_and_keys_and_no_content(demo: Demo) -> None:
    raw = b"".join(path.read_bytes() for path in demo.path("log_base").rglob("*") if path.is_file())
    for word in (b"firm.example", b"accuracy", b"grantee"):
        assert word not in raw


# --- what stays where it is ---------------------------------------------------------------------------------------


def test_no_row_is_anywhere_in_the_hubs_folder(demo: Demo) -> None:
    rows = [
        line.encode()
        for lab in digits.LABS
        for part in ("train", "heldout")
        for line in (demo.folder / "data" / lab / f"{part}.csv").read_text().splitlines()[1:]
    ]
    files = [path for name in ("hub", "logs", "audit", "firm") for path in (demo.folder / name).rglob("*")]
    for path in files:
        if path.is_file():
            raw = path.read_bytes()
            assert not any(row in raw for row in rows), path


def test_keys_are_private_and_lie_in_their_homes_only(demo: Demo) -> None:
    for path in demo.folder.rglob("*"):
        if not path.is_file() or path.suffix == ".csv":
            continue
        if b"PRIVATE KEY-----" in path.read_bytes():
            assert path.relative_to(demo.folder).parts[0] in ("homes", "hub"), path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_logs_hold_no_token_and_no_key(demo: Demo) -> None:
    tokens = json.loads((demo.folder / "sandbox.json").read_text())["tokens"].values()
    assert stat.S_IMODE((demo.folder / "sandbox.json").stat().st_mode) == 0o600
    secrets = [*tokens, *((demo.folder / "hub" / "keys").glob("*.token"))]
    texts = [each if isinstance(each, str) else each.read_text().strip() for each in secrets]
    for path in (demo.folder / "logs").iterdir():
        text = path.read_text()
        assert not any(secret in text for secret in texts), path
        assert "Traceback" not in text, path


def test_each_lab_kept_the_orders_that_it_refused(demo: Demo) -> None:
    for lab in digits.LABS:
        done = fedhub("--home", str(demo.folder / "homes" / lab), "--json", "site", "ledger")
        entries = json.loads(done.stdout)["entries"]
        refused = [each for each in entries if each["refused"]]
        assert [each["refused"] for each in refused] == ["E_CONSENT"]
        assert len({each["plan"] for each in entries}) == 2
        done_here = [each["action"] for each in entries if each["receipt"]]
        assert done_here == ["train"] * ROUNDS + ["evaluate"], "the rounds, and then the benefit report"


def test_peak_memory_is_told_for_every_class_of_process(demo: Demo) -> None:
    found = demo.report["peak_rss_mb"]
    assert set(found) == {"hub", "superlink", "coordinator", "agent", "blob_server"}
    assert all(5 < peak < 2000 for peak in found.values())
    assert found["coordinator"] < found["agent"], "the coordinator needs no torch"


def test_no_process_of_the_demo_is_left(demo: Demo) -> None:
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(demo.folder) in line:
            left.append(line)
    assert left == []


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = fedhub("demo", "--dir", str(tmp_path))
    assert done.returncode == 1
    assert "holds something else" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
