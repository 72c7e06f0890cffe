"""Environments of stock clients: real libraries in pinned versions, made once and kept in a folder.

The folder is ``FEDHUB_TEST_ENVS``, else ``~/.cache/fedhub-test-envs``. Torch is never installed again: the libraries'
environment reads this project's own by a path file. ``python_of`` skips the test when nothing can be installed here.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

HUB_CLIENTS = {"0.36": "0.36.2", "1.10": "1.10.2", "newest": "2.4.0"}
ENVIRONMENTS: dict[str, list[str]] = {
    **{f"hub-{name}": [f"huggingface_hub=={version}"] for name, version in HUB_CLIENTS.items()},
    "mlflow": ["mlflow-skinny==3.17.2"],
    "oras": ["oras==0.2.42"],
    "libraries": ["transformers==5.24.0", "datasets==5.2.0", "huggingface_hub==2.4.0", "pandas"],
}
# They ask for torch, which this project has: installed without what they ask for.
WITHOUT_DEPENDENCIES = {"libraries": ["peft==0.21.2", "accelerate", "psutil"]}
INSTALL_S = 600
_OWN = Path(torch.__file__).parents[1]
ORAS = "oras.land/oras/cmd/oras@v1.3.0"  # go install


def folder() -> Path:
    """Where environments are kept."""
    return Path(os.environ.get("FEDHUB_TEST_ENVS") or Path.home() / ".cache" / "fedhub-test-envs")


def python_of(name: str) -> Path:
    """The Python of an environment, which is made when it is not there."""
    asked = {
        "packages": ENVIRONMENTS[name],
        "bare": WITHOUT_DEPENDENCIES.get(name, []),
        "torch": str(_OWN) if name in WITHOUT_DEPENDENCIES else "",
        "python": sys.version,
    }
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    place = folder() / f"{name}-{digest}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / ".made").exists():
            _make(place, name)
    return place / "bin" / "python"


def oras_program() -> str:
    """The ``oras`` command, on PATH or in Go's ``bin``."""
    found = shutil.which("oras") or shutil.which(str(Path.home() / "go" / "bin" / "oras"))
    if found is None:
        pytest.skip(f"no oras command here: go install {ORAS}")
    return found


def _make(place: Path, name: str) -> None:
    venv.EnvBuilder(clear=True, with_pip=False, symlinks=True).create(place)
    _install(place, ENVIRONMENTS[name])
    if name in WITHOUT_DEPENDENCIES:
        _install(place, ["--no-deps", *WITHOUT_DEPENDENCIES[name]])
        (packages,) = place.glob("lib/python*/site-packages")
        (packages / "zz_torch_of_the_project.pth").write_text(f"{_OWN}\n")  # after the environment's own
    (place / ".made").touch()


def _install(place: Path, packages: list[str]) -> None:
    uv = Path(sys.executable).parent / "uv"
    command = [
        str(uv) if uv.exists() else "uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        str(place / "bin" / "python"),
    ]
    try:
        done = subprocess.run([*command, *packages], capture_output=True, text=True, timeout=INSTALL_S)
    except FileNotFoundError:
        pytest.skip("uv is not installed: no environment of stock clients can be made")
    if done.returncode:
        pytest.skip(f"stock clients cannot be installed here: {done.stderr.strip()[-300:]}")
