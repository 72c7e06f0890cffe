"""``fedhub app`` without a hub: what a bundle holds, and what the operator allows."""

import io
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from federation.flower.allowed_apps import note_run, noted_runs, read_allowed, set_allowed
from hub import cli
from hub.commands.apps import node_pem
from hub.terminal import Terminal
from storage.encoding import sha256_hex
from storage.errors import Exit, Unchecked
from storage.signing import public_pem
from tests.unit.test_federation_app_bundle import FILES, pack


def call(*argv: str) -> tuple[Exit, dict[str, object], dict[str, str]]:
    terminal = Terminal(None, json=True, out=io.StringIO(), err=io.StringIO())
    done = cli.dispatch(list(argv), terminal)
    return done, terminal.answer, terminal.problem


@pytest.fixture
def fab(tmp_path: Path) -> Path:
    path = tmp_path / "my.fab"
    path.write_bytes(pack())
    return path


def test_show_tells_what_is_in_a_bundle_and_lays_its_files_out(tmp_path: Path, fab: Path) -> None:
    done, told, _ = call("app", "show", str(fab), "--out", str(tmp_path / "code"))
    assert done is Exit.DONE
    assert told["sha256"] == sha256_hex(fab.read_bytes())
    assert sorted(each["name"] for each in told["files"]) == sorted(FILES)  # type: ignore[attr-defined]
    assert (tmp_path / "code" / "a" / "client.py").read_bytes() == FILES["a/client.py"]
    done, _, problem = call("app", "show", str(fab), "--out", str(tmp_path / "code"))
    assert (done, problem["code"]) == (Exit.FAILED, "E_TARGET")


def test_show_refuses_a_bundle_that_its_list_does_not_name_whole(tmp_path: Path, fab: Path) -> None:
    fab.write_bytes(pack(more=b"x"))
    done, _, problem = call("app", "show", str(fab), "--out", str(tmp_path / "code"))
    assert (done, problem["code"]) == (Exit.REFUSED, "E_APP")
    assert not (tmp_path / "code").exists()


def test_the_operator_allows_whole_digests_and_takes_them_back(
    tmp_path: Path, fab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDHUB_DATA_DIR", str(tmp_path / "hub"))
    assert call("app", "allow", str(fab))[2]["code"] == "E_NO_HUB"
    (tmp_path / "hub" / "keys").mkdir(parents=True)
    (tmp_path / "hub" / "keys" / "log.key").touch()
    (tmp_path / "hub" / "superlink").mkdir()
    digest = sha256_hex(fab.read_bytes())
    assert call("app", "run", str(fab))[2]["code"] == "E_APP_NOT_ALLOWED"
    assert call("app", "allow", digest[:12])[2]["code"] == "E_USAGE"
    assert call("app", "allow", str(fab))[1]["allowed"] == [digest]
    assert call("app", "runs")[1] == {"allowed": [digest], "runs": []}
    assert call("app", "allow", digest, "--withdraw")[1]["allowed"] == []


def test_a_list_of_allowed_apps_that_is_not_ours_allows_nothing(tmp_path: Path) -> None:
    assert read_allowed(tmp_path) == frozenset()
    set_allowed(tmp_path, "ab" * 32, True)
    assert read_allowed(tmp_path) == {"ab" * 32}
    with (tmp_path / "allowed-apps").open("a") as file:
        file.write("*\n")
    assert read_allowed(tmp_path) == frozenset()
    with pytest.raises(Unchecked, match="no digest"):
        set_allowed(tmp_path, "*", True)


def test_unsigned_runs_are_remembered_as_what_they_are(tmp_path: Path) -> None:
    note_run(tmp_path, {"run": "1", "app": "ab" * 32, "at": 1, "signed": False})
    assert json.dumps(noted_runs(tmp_path)).count('"signed": false') == 1


def test_a_nodes_public_key_is_taken_in_both_spellings_and_nothing_else_is(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    pem = public_pem(key.public_key()).encode()
    spellings = {
        "pem": pem,
        "ssh": key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        + b" somebody@somewhere\n",
    }
    for name, raw in spellings.items():
        (tmp_path / name).write_bytes(raw)
        assert node_pem(tmp_path / name) == pem.decode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    bad = {
        "is a private key": private,
        "is no public key": b"ecdsa-sha2-nistp384 AAAA",
        "expected a key on an elliptic curve": other.public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        ),
    }
    for rule, raw in bad.items():
        (tmp_path / "bad").write_bytes(raw)
        with pytest.raises(Unchecked, match=rule):
            node_pem(tmp_path / "bad")
    with pytest.raises(Unchecked, match="cannot be read"):
        node_pem(tmp_path / "none")
