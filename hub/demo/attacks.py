"""What the auditor does, and what somebody tries who wants the auditor deceived.

``verify_offline`` runs ``fedhub verify`` in a process that cannot open a socket. ``ALTERATIONS`` are five
ways to change a pack; each must end in a refusal that names the step and the rule.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from federation.lifeline import plain_environment
from storage.encoding import b64, unb64
from storage.signing import open_envelope
from storage.statements import read_statement

# Runs `fedhub` with every use of a socket refused by the interpreter itself, whatever library asks for it.
WITHOUT_SOCKETS = """
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        raise PermissionError("this process may not open sockets")
sys.addaudithook(refuse)
from hub.cli import main
sys.exit(main(sys.argv[1:]))
"""
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Verdict:
    """The answer of one ``fedhub verify``."""

    exit: int
    data: dict[str, Any]

    @property
    def steps(self) -> list[str]:
        """Each step with its outcome, as ``V1 ok``."""
        return [f"{step['step']} {step['outcome']}" for step in self.data.get("steps", [])]

    @property
    def error(self) -> str:
        """Step and error name of a refusal, empty when there was none."""
        found = self.data.get("error") or {}
        return f"{found.get('step')} {found.get('code')}: {found.get('message')}" if found else ""


def verify_offline(*args: str) -> Verdict:
    """Run ``fedhub verify`` without sockets and, where the system allows it, in an empty network."""
    command = [*_empty_network(), sys.executable, "-P", "-c", WITHOUT_SOCKETS, "verify", *args, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=plain_environment(), timeout=TIMEOUT_S, check=False
    )
    try:
        data = json.loads(done.stdout or done.stderr)
    except ValueError:
        data = {
            "error": {"step": "-", "code": "E_CRASH", "message": (done.stderr or done.stdout).strip()[-300:]}
        }
    return Verdict(done.returncode, data)


def network_note() -> str:
    """How the auditor's process is kept from the network, in words."""
    space = " and an empty network namespace" if _empty_network() else ""
    return f"sockets refused by the interpreter{space}"


@cache
def _empty_network() -> Sequence[str]:
    for attempt in (["unshare", "-n"], ["unshare", "-rn"]):
        try:
            if (
                subprocess.run(
                    [*attempt, "true"], capture_output=True, timeout=TIMEOUT_S, check=False
                ).returncode
                == 0
            ):
                return attempt
        except OSError:
            return []
    return []


def altered(pack: Path, place: Path, alter: Callable[[Path], None]) -> Path:
    """A copy of the pack at ``place``, altered."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pack, place)
    alter(place)
    return place


# --- five ways to lie -------------------------------------------------------------------------------------


def _claim_more_entries(pack: Path) -> None:
    path = pack / "checkpoint"
    lines = path.read_text().split("\n")
    lines[1] = str(int(lines[1]) + 1)
    path.write_text("\n".join(lines))


def _swap_a_ring(pack: Path) -> None:
    rings = sorted(path for path in (pack / "keyrings").iterdir() if path.is_dir())
    first, second = rings[0] / "1.root.json", rings[1] / "1.root.json"
    first.write_bytes(second.read_bytes())


def _raise_a_metric(pack: Path) -> None:
    path = statement_of(pack, "test-result")
    bundle = json.loads(path.read_text())
    payload = json.loads(unb64(bundle["dsseEnvelope"]["payload"], "E_DEMO"))
    payload["predicate"]["passedTests"] = ["accuracy>=0.99 (1.0000) n=1000"]
    bundle["dsseEnvelope"]["payload"] = b64(json.dumps(payload).encode())
    raw = json.dumps(bundle).encode()
    renamed = path.with_name(f"{open_envelope(raw).id}.sigstore.json")
    path.unlink()
    renamed.write_bytes(raw)


def _swap_log_proofs(pack: Path) -> None:
    first, second = sorted((pack / "proofs").iterdir())[:2]
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def _withhold_a_receipt(pack: Path) -> None:
    _remove(statement_of(pack, "receipt", action="train"))


ALTERATIONS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("the log's head claims one more entry", _claim_more_entries),
    ("one institution's key ring is replaced by another's", _swap_a_ring),
    ("a lab's measured accuracy is raised", _raise_a_metric),
    ("two log proofs are exchanged", _swap_log_proofs),
    ("the receipt of one lab's round is withheld", _withhold_a_receipt),
)


def statement_of(pack: Path, kind: str, **members: str) -> Path:
    """The first statement of a kind whose predicate has these members."""
    for path in sorted((pack / "statements").iterdir()):
        statement = read_statement(open_envelope(path.read_bytes()))
        if statement.kind == kind and members.items() <= statement.predicate.items():
            return path
    raise FileNotFoundError(f"the pack holds no {kind}")


def _remove(path: Path) -> None:
    path.unlink()
    name = path.name.removesuffix(".sigstore.json")
    (path.parent.parent / "proofs" / f"{name}.tlog-proof").unlink()


def oms_of(pack: Path, asset_id: str) -> str:
    """File name of the OMS bundle of one version."""
    for path in (pack / "statements").iterdir():
        statement = read_statement(open_envelope(path.read_bytes()))
        if statement.kind == "asset" and statement.subject == asset_id:
            return f"{statement.predicate['oms']}.sigstore.json"
    raise FileNotFoundError(f"the pack holds no asset statement of {asset_id}")
