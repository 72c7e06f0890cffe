"""Peak memory of an aggregation depends neither on the model's size nor on the number of sites."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from federation import aggregation
from federation.tensors import Layout, TensorSpec, TensorWriter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads VmHWM from /proc/self/status"),
]

ROOT = Path(aggregation.__file__).parent.parent
ALLOWED_KB = 16 * 1024
PROGRAM = """
import sys
from pathlib import Path
from federation.aggregation import SiteUpdate, aggregate
from federation.strategies import make_strategy
import json
name, parameters, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
updates = [SiteUpdate(path.name, path, 1) for path in sorted(folder.glob("u*"))]
aggregate(make_strategy(name, parameters), folder / "start", updates, folder / "out", next_state=folder)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

STRATEGIES = {
    "FedAvg": {},
    "FedAdam": {"eta": "0.1", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"},
    "FedTrimmedAvg": {"beta": "0.2"},
    "Bulyan": {"malicious": 0},
}


def model(folder: Path, megabytes: int, sites: int) -> Path:
    """A start file of one large tensor and some small ones, and the same file as every site's update."""
    folder.mkdir()
    large = TensorSpec("large", "F32", (megabytes * 250_000 - 4_000,))
    layout = Layout((large, *(TensorSpec(f"small{n}", "F32", (1000,)) for n in range(4))))
    random = np.random.default_rng(1)
    with TensorWriter(folder / "start", layout) as writer:
        for spec in layout.tensors:
            for begin in range(0, spec.count, 1 << 20):
                writer.write(random.standard_normal(min(1 << 20, spec.count - begin), dtype=np.float32))
        writer.finish()
    for site in range(sites):
        os.link(folder / "start", folder / f"u{site:02d}")
    return folder


def peak_kb(folder: Path, strategy: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, strategy, json.dumps(STRATEGIES[strategy]), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )
    return int(run.stdout)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_peak_memory_is_flat_in_model_size_and_sites(tmp_path: Path, strategy: str) -> None:
    small = peak_kb(model(tmp_path / "small", 2, 3), strategy)
    large = peak_kb(model(tmp_path / "large", 200, 3), strategy)
    many = peak_kb(model(tmp_path / "many", 8, 32), strategy)
    print(f"{strategy}: peak {small} kB at 2 MB, {large} kB at 200 MB, {many} kB with 32 sites of 8 MB")
    assert large < small + ALLOWED_KB
    assert many < small + ALLOWED_KB
