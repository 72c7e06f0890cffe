"""A run of a lab's own code between real processes: built by ``flwr build``, named by digest, run confined."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from federation.app_terms import AppTerms
from federation.ledger import SiteLedger
from federation.tensors import TensorFile, write_tensors
from tests.e2e.test_federation_rounds import Play, wait_for
from tests.flower_apps import bundle_of

pytestmark = pytest.mark.slow


class AppPlay(Play):
    """All processes of one run of an app, which the hub's store holds as it was built, or otherwise."""

    def __init__(self, folder: Path, *, tampered: bool = False, rounds: int = 3) -> None:
        fab = bundle_of(folder / "app-of-the-owner")
        stored = folder / "app.fab"
        stored.write_bytes(fab if not tampered else fab[:-1] + b"\x01")
        terms = AppTerms(hashlib.sha256(fab).hexdigest(), len(fab), {"rate": "0.5"})
        super().__init__(folder, rounds=rounds, app=terms)
        kept = self.hub.keep(stored)
        if tampered:
            self.hub.objects[terms.sha256] = self.hub.objects[kept]

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


def test_a_tampered_app_is_refused_at_every_site_with_a_signed_refusal(folder: Path) -> None:
    one = AppPlay(folder, tampered=True)
    try:
        one.up()
        ended = one.wait_ended()
        assert ended.state == "stopped"
        wait_for(  # the run stops at the first: without both there is no quorum
            lambda: (
                {record.issuer for record in one.hub.statements if record.kind == "refusal"}
                == {"lab-a.example", "lab-b.example"}
            ),
            "both refusals",
        )
        for lab in one.hub.labs.values():
            with SiteLedger(lab.home.site / "ledger.db") as ledger:
                assert {each.code for each in ledger.refusals()} == {"E_DIGEST"}
        assert one.hub.receipts() == []
        wait_for(lambda: not app_processes(folder), "no process of an app")
    finally:
        one.close()
