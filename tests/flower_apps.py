"""Flower apps as a lab writes them, and their bundles as ``flwr build`` makes them: good ones and hostile ones.

``bundle_of`` runs the real command in a folder of its own. The good app trains one float tensor ``w`` and
counts in ``n``: it moves ``w`` by the mean of the numbers in the dataset's ``train.csv`` times ``rate``.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from federation.flower.quiet import QUIET
from federation.lifeline import plain_environment

PYPROJECT = """
[project]
name = "{name}"
version = "1.0.0"
description = "An app of a test"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.42"]
[tool.flwr.app]
publisher = "somebody"
fab-format-version = 1
flwr-version-target = "1.42.0"
[tool.flwr.app.components]
serverapp = "labapp.server:app"
clientapp = "labapp.client:app"
[tool.flwr.app.config]
rate = 0.5
steps = 1
loud = false
mode = "mean"
"""
SERVER = """
import os
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    raise SystemExit("a lab's ServerApp ran")
"""
CLIENT_HEAD = """
import os
import numpy as np
from pathlib import Path
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
def answer(message, arrays, **metrics):
    content = {"metrics": MetricRecord({"num-examples": 4, **metrics})}
    if arrays is not None:
        content["arrays"] = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    return Message(RecordDict(content), reply_to=message)
def received(message):
    return {name: array.numpy() for name, array in message.content["arrays"].items()}
"""
GOOD = """
rows = []
@app.train()
def train(message, context):
    rows.append(1)
    data = Path(context.node_config["data"])
    numbers = np.loadtxt(data / "train.csv", dtype=np.float32)
    arrays = received(message)
    moved = context.run_config["rate"] * context.run_config["steps"] * numbers.mean()
    arrays["w"] = (arrays["w"] + moved).astype(np.float32)
    arrays["n"] = arrays["n"] + 1
    return answer(message, arrays, loss=float(np.abs(arrays["w"]).mean()),
                  calls=len(rows), round=message.content["config"]["server-round"])
@app.evaluate()
def evaluate(message, context):
    return answer(message, None, accuracy=0.75)
"""


def train_body(lines: str) -> str:
    """An app whose training is these lines; ``arrays`` are what it received and, in the end, what it sends."""
    body = "\n".join(f"    {line}" for line in lines.strip("\n").split("\n"))
    return f"""
@app.train()
def train(message, context):
    arrays = received(message)
{body}
    return answer(message, arrays)
"""


def bundle_of(folder: Path, client: str = GOOD, *, name: str = "labapp") -> bytes:
    """The FAB of an app with this ClientApp, by ``flwr build``."""
    return build(folder, {"labapp/client.py": CLIENT_HEAD + client}, name=name)


def build(folder: Path, files: Mapping[str, str], *, name: str = "labapp") -> bytes:
    """The FAB of these files, beside a pyproject, a licence and a ServerApp that must never run."""
    place = folder / name
    project = {
        "pyproject.toml": PYPROJECT.format(name=name),
        "LICENSE": "Apache-2.0",
        "labapp/__init__.py": "",
        "labapp/server.py": SERVER,
        **files,
    }
    for path, text in project.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    out = folder / "built"
    out.mkdir(exist_ok=True)
    for old in out.glob("*.fab"):
        old.unlink()
    surroundings = plain_environment({**QUIET, "FLWR_HOME": str(folder / "flower")})
    command = [str(Path(sys.executable).with_name("flwr")), "build", "--app", str(place)]
    done = subprocess.run(
        command, cwd=out, env=surroundings, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (fab,) = out.glob("*.fab")
    return fab.read_bytes()
