"""Whole commands against a whole hub: ``fedhub model pull`` and ``push`` beside ``hf download``, start-up included."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.test_hub_serve import hub_process
from tests.e2e.test_model_transfers import OWNER, Alliance

SHARDS = 8
SMALL_FILES, SMALL_BYTES = 200, 4096
# What a process needed at its peak, by its own word: the kernel's word to a parent counts the parent's memory too.
MEASURED = """
import sys
from pathlib import Path
from hub.cli import main
code = main(sys.argv[1:])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0], "torch" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


@dataclass(frozen=True)
class Command:
    """What one command took; where there are several, the quickest."""

    name: str
    mib: float
    seconds: float
    requests: int  # that reached the hub and its download origin; bytes come from the store besides
    peak_mib: float | None  # of its process

    def row(self) -> str:
        peak = "" if self.peak_mib is None else f"{self.peak_mib:7.0f}"
        return (
            f"{self.name:58}  {self.seconds:7.2f} {self.mib / self.seconds:7.0f} {self.requests:9} {peak:>9}"
        )


class Bench:
    """A hub process over a folder store, its owner's home and token."""

    def __init__(self, folder: Path, alliance: Alliance, repeat: int) -> None:
        self.folder, self.alliance, self.repeat = folder, alliance, repeat
        self.token = alliance.run(OWNER, "token", "new", "bench", "--scope", "read")["token"]
        self.count = 0

    def requests(self) -> int:
        """How many the hub has logged."""
        return self.alliance.hub.log.read_text().count('"fedhub.requests"')

    def best(self, name: str, mib: float, work: Callable[[Path], float | None]) -> Command:
        """Run it several times, each with a path of its own where nothing stands."""
        found = []
        for _ in range(self.repeat):
            self.count += 1
            target = self.folder / f"target-{self.count}"
            before, began = self.requests(), time.perf_counter()
            peak = work(target)
            found.append(Command(name, mib, time.perf_counter() - began, self.requests() - before, peak))
            subprocess.run(["rm", "-rf", str(target)], check=True)
        return min(found, key=lambda one: one.seconds)

    def fedhub(self, *arguments: str) -> float:
        """A command as the owner in a process of its own; its peak memory in MiB."""
        home = str(self.alliance.home(OWNER))
        command = [sys.executable, "-P", "-c", MEASURED, "--home", home, "--json", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        peak, torch = done.stderr.split()[-2:]
        assert torch == "False", "torch was imported to move files"
        return int(peak) / 1024

    def hf(self, repo: str, target: Path) -> None:
        """``hf download``, which checks nothing, into a cache of its own."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(target),
            "HF_HOME": str(target / "hf"),
            "HF_ENDPOINT": self.alliance.endpoint,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
        }
        program = str(Path(sys.executable).parent / "hf")
        command = [program, "download", repo, "--revision", "v1", "--local-dir", str(target / "files")]
        subprocess.run(command, env=environment, check=True, capture_output=True)


@contextmanager
def bench_hub(folder: Path, repeat: int) -> Iterator[Bench]:
    """A hub for this bench in an empty folder."""
    with hub_process(folder, REQUESTS_PER_MINUTE="0") as hub:
        yield Bench(folder, Alliance(folder, hub), repeat)


def large(bench: Bench, source: Path, shards: int) -> list[Command]:
    """A model in so many files: pushed, pulled, downloaded."""
    what = "a file" if shards == 1 else f"{shards} files"
    model = bench.folder / f"large-{shards}"
    model.mkdir()
    size = source.stat().st_size // shards
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with source.open("rb") as given:
        for number in range(shards):
            with (model / f"model-{number}.safetensors").open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                for _ in range(size >> 20):
                    file.write(given.read(1 << 20))
    mib = size * shards / (1 << 20)

    def push(target: Path) -> float:
        for shard in model.iterdir():  # other bytes: what the hub has is not sent again
            with shard.open("r+b") as file:
                file.seek(-64, os.SEEK_END)
                file.write(os.urandom(64))
        return bench.fedhub("model", "push", str(model), f"{OWNER}/{target.name}")

    rows = [bench.best(f"fedhub model push, {what}", mib, push)]
    repo = f"{OWNER}/target-{bench.count}"
    rows.append(_pull(bench, f"{repo}@1", mib, what))
    rows.append(bench.best(f"hf download, nothing checked, {what}", mib, lambda to: bench.hf(repo, to)))
    return rows


def small(bench: Bench) -> list[Command]:
    """Many small files: pulled, downloaded."""
    model, repo = bench.folder / "small", f"{OWNER}/small"
    model.mkdir()
    for number in range(SMALL_FILES):
        (model / f"{number:03d}.txt").write_bytes(os.urandom(SMALL_BYTES).hex().encode()[:SMALL_BYTES])
    bench.alliance.run(OWNER, "model", "push", str(model), repo)
    mib, what = SMALL_FILES * SMALL_BYTES / (1 << 20), f"{SMALL_FILES} files of {SMALL_BYTES >> 10} KiB"
    return [
        _pull(bench, f"{repo}@1", mib, what),
        bench.best(f"hf download, nothing checked, {what}", mib, lambda to: bench.hf(repo, to)),
    ]


def _pull(bench: Bench, reference: str, mib: float, what: str) -> Command:
    return bench.best(
        f"fedhub model pull, all verified, {what}",
        mib,
        lambda to: bench.fedhub("model", "pull", reference, str(to)),
    )


def measure_hub(folder: Path, source: Path, repeat: int) -> None:
    """Print the table of whole commands."""
    with bench_hub(folder, repeat) as bench:
        rows = large(bench, source, 1) + large(bench, source, SHARDS) + small(bench)
    print(
        f"\n{'Whole commands, start-up included, by a hub process':58}  seconds   MiB/s  requests  peak MiB"
    )
    for row in rows:
        print(row.row())
