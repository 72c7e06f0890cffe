"""Stock ``model_signing`` beside ours: it accepts our signatures, refuses what we refuse, and signs what we sign."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.manifests import build_manifest, check_oms, oms_payload
from storage.signing import (
    check_signature,
    new_private_key,
    open_envelope,
    public_pem,
    sign,
    write_private_key,
)
from storage.statements import read_statement

NAME = "owner.example/digits"


class Model:
    """A model folder with its key, its bundle and the stock tool."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "model"
        self.bundle, self.key_file, self.pem = (
            folder / "bundle.json",
            folder / "key.pem",
            folder / "public.pem",
        )
        for name, content in {
            "model.safetensors": os.urandom(5000),
            "config.json": b"{}",
            "a/b.txt": b"1",
            "a-b.txt": b"2",
            "a.b.txt": b"3",
            "empty": b"",
            "数据/é.csv": b"x",
        }.items():
            path = self.files / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.key = new_private_key()
        write_private_key(self.key_file, self.key)
        self.pem.write_text(public_pem(self.key.public_key()))

    def sign(self) -> None:
        self.bundle.write_bytes(sign(self.key, oms_payload(build_manifest(self.files, NAME), NAME)))

    def stock(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "model_signing", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def stock_verifies(self) -> bool:
        done = self.stock(
            *(
                "verify",
                "key",
                str(self.files),
                "--signature",
                str(self.bundle),
                "--public_key",
                str(self.pem),
            )
        )
        assert done.returncode in (0, 1), done.stderr
        return done.returncode == 0 and "Verification succeeded" in done.stdout


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


def test_stock_model_signing_accepts_our_signature(model: Model) -> None:
    model.sign()
    assert model.stock_verifies()


def test_stock_model_signing_refuses_a_changed_file(model: Model) -> None:
    model.sign()
    (model.files / "config.json").write_text("[]")
    assert not model.stock_verifies()


def test_stock_model_signing_refuses_an_added_file(model: Model) -> None:
    model.sign()
    (model.files / "extra").write_text("x")
    assert not model.stock_verifies()


def test_bundle_of_the_stock_signer_holds_under_our_rules(model: Model) -> None:
    done = model.stock(
        *(
            "sign",
            "key",
            str(model.files),
            "--signature",
            str(model.bundle),
            "--private_key",
            str(model.key_file),
        )
    )
    assert done.returncode == 0, done.stderr
    envelope = open_envelope(model.bundle.read_bytes())
    check_signature(model.key.public_key(), envelope)
    stock = read_statement(envelope)
    made = build_manifest(model.files, NAME)
    check_oms(stock, made)
    ours = json.loads(oms_payload(made, NAME))
    assert stock.predicate["resources"] == ours["predicate"]["resources"]
    assert stock.subject == ours["subject"][0]["digest"]["sha256"]
