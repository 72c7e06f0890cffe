"""A run of a lab's own code between real processes: built by ``flwr build``, named by digest, run confined."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from federation.app_terms import AppTerms
from federation.tensors import TensorFile, write_tensors
from tests.e2e.test_federation_rounds import Play
from tests.flower_apps import bundle_of

pytestmark = pytest.mark.slow


class AppPlay(Play):
    """All processes of one run of an app."""

    def __init__(self, folder: Path, *, rounds: int = 3) -> None:
        fab = bundle_of(folder / "app-of-the-owner")
        stored = folder / "app.fab"
        stored.write_bytes(fab)
        terms = AppTerms(hashlib.sha256(fab).hexdigest(), len(fab), {"rate": "0.5"})
        super().__init__(folder, rounds=rounds, app=terms)
        self.hub.keep(stored)

    def _rows(self, folder: Path, seed: int) -> Path:
        folder.mkdir()
        (folder / "train.csv").write_text("1\n3\n" if seed == 0 else "5\n7\n")
        return folder

    def _weights(self, parameters: object) -> Path:
        path = self.folder / "base.safetensors"
        write_tensors(path, {"w": np.zeros(4, np.float32), "n": np.zeros(1, np.int64)})
        return path


def app_processes(folder: Path) -> list[int]:
    """Process ids of the apps' processes that work below this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text().split("\0")
            place = (path / "cwd").resolve(strict=True)
        except OSError:
            continue
        if "federation.flower.app_child" in words and place.is_relative_to(folder):
            found.append(int(path.name))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "app-of-the-owner").mkdir()
    yield tmp_path


def test_two_agents_finish_a_run_of_an_app_that_flwr_built(folder: Path) -> None:
    one = AppPlay(folder, rounds=3)
    try:
        one.up()
        ended = one.wait_ended()
        assert (ended.state, ended.reason) == ("finished", None), one.hub.events
        one.check_done_once()
        last = one.hub.file(one.hub.rounds[-1].aggregate, folder / "last.safetensors")
        with TensorFile(last) as file:
            # Each round each site adds half the mean of its numbers: 1 at lab a, 3 at lab b; the mean is 2.
            assert file.array("w").tolist() == [6.0] * 4
        metrics = one.hub.rounds[-1].sites
        assert {told["calls"] for told in metrics.values()} == {3}, "one warm process per site"
        assert not any(
            "labapp.server" in line or "ServerApp ran" in line for line in one.control.logs(one.run)
        )
        children = app_processes(folder)
        assert len(children) == 2
    finally:
        one.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in children), "they end with their agents"
