"""Seconds of an offline verification: the whole command with start-up, and where its time goes.

``python tests/bench/bench_verify.py [--rounds 2,20,200] [--repeat 5]``. Packs of made-up alliances of three labs,
with every option an auditor can give. Best of ``--repeat``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from storage.encoding import format_time
from storage.pack import zip_pack
from storage.verify import STEPS, examine
from tests.simulators import NOW, Story, tell_story, write_files

ROOT = Path(__file__).parents[2]


def best(repeat: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def command(place: Path, story: Story) -> list[str]:
    """``fedhub verify`` with everything it takes."""
    return [
        *(sys.executable, "-m", "hub", "verify", str(place / "pack"), "--trust", str(place / "trust.json")),
        *("--files", str(place / "files"), "--use", json.dumps(story.use), "--require", "APPROVED"),
        *("--state", str(place / "state.json"), "--at", format_time(NOW)),
    ]


def measure(rounds: int, repeat: int) -> list[str]:
    """One row of the table."""
    story = tell_story(rounds=rounds, witnesses=3)
    evidence, trust = story.alliance.evidence(), story.alliance.trust()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = story.alliance.export(story.model.asset_id)
        write_files(place / "pack", files)
        story.write_model(place / "files")
        (place / "trust.json").write_text(json.dumps(story.alliance.trust_document()))
        line = command(place, story)

        def run() -> None:
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

        whole = best(repeat, run)
        options = {"now": NOW, "files": place / "files", "use": story.use, "require": "APPROVED"}
        inside = best(repeat, lambda: examine(place / "pack", trust, **options))
        export = best(repeat, lambda: zip_pack(story.alliance.export(story.model.asset_id)))
    size = sum(len(raw) for raw in files.values())
    return [
        str(evidence.size),
        f"{size / 1e3:,.0f} kB",
        f"{whole:.3f} s",
        f"{inside:.3f} s",
        f"{inside / evidence.size * 1e3:.2f} ms",
        f"{export:.3f} s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", default="2,20,200")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"start-up alone (fedhub --version): {best(options.repeat, start_up):.3f} s; {len(STEPS)} steps")
    heads = ["statements", "pack", "fedhub verify", "inside", "each", "hub chooses and zips"]
    rows = [heads, *(measure(int(rounds), options.repeat) for rounds in options.rounds.split(","))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def start_up() -> None:
    subprocess.run([sys.executable, "-m", "hub", "--version"], cwd=ROOT, capture_output=True, check=True)


if __name__ == "__main__":
    main()
