"""Peak memory of each class of process, as Linux counted it, watched while the processes live."""

import os
import threading
from pathlib import Path

SAMPLE_S = 0.5

# A word that each class of process has on its command line; the first that fits counts.
CLASSES: tuple[tuple[str, str], ...] = (
    ("federation.flower.superlink", "superlink"),
    ("federation.flower.executor", "coordinator"),
    ("federation.flower.node", "agent"),
    ("storage.blob_server", "blob_server"),
    ("hub\0up", "hub"),
)


class MemoryWatch:
    """Samples ``VmHWM`` of all descendants of this process until it is stopped.

    The kernel's high-water mark only grows, so a sample is never too high, and too low only for what a
    process did in its last half second.
    """

    def __init__(self) -> None:
        self._peaks: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)

    def start(self) -> None:
        """Begin sampling; on systems without ``/proc`` nothing is found."""
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """End sampling; peak resident memory of each class in MB (10^6 bytes)."""
        self._stop.set()
        self._thread.join()
        return {name: round(peak * 1024 / 1e6, 1) for name, peak in sorted(self._peaks.items())}

    def _run(self) -> None:
        while True:
            self._sample()
            if self._stop.wait(SAMPLE_S):
                return

    def _sample(self) -> None:
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            parent = _field(entry, "PPid")
            if parent is not None:
                parents[int(entry.name)] = parent
        for pid in parents:
            if _descends(pid, os.getpid(), parents):
                name, peak = _class_of(pid), _field(Path("/proc") / str(pid), "VmHWM")
                if name is not None and peak is not None:
                    self._peaks[name] = max(peak, self._peaks.get(name, 0))


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != parents[pid]:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False


def _class_of(pid: int) -> str | None:
    try:
        line = (Path("/proc") / str(pid) / "cmdline").read_text(errors="replace")
    except OSError:
        return None
    return next((name for word, name in CLASSES if word in line), None)


def _field(entry: Path, name: str) -> int | None:
    """A number of ``/proc/<pid>/status``; None when the process is gone."""
    try:
        lines = (entry / "status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
