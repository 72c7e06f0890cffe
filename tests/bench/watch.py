"""What the processes that a benchmark has started need: peak memory and CPU time, by class."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class Watch:
    """Samples every descendant of this process, by class: high-water mark of memory, and CPU time spent."""

    def __init__(self, classes: Mapping[str, str]) -> None:
        self.peaks: dict[str, float] = {}
        self._spent: dict[int, tuple[str, float]] = {}
        self._classes = classes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.2):
            for path in Path("/proc").glob("[0-9]*"):
                try:
                    words = (path / "cmdline").read_text(errors="replace")
                    name = next((name for word, name in self._classes.items() if word in words), None)
                    if name is None or not _descends(int(path.name)):
                        continue
                    lines = (path / "status").read_text().splitlines()
                    words = (path / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                self._spent[int(path.name)] = (name, (int(words[11]) + int(words[12])) / TICKS)
                peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
                self.peaks[name] = max(self.peaks.get(name, 0.0), round(peak * 1024 / 1e6, 1))

    def spent(self) -> dict[str, float]:
        """CPU seconds since each process began, added up by class."""
        total: dict[str, float] = {}
        for name, seconds in list(self._spent.values()):
            total[name] = total.get(name, 0.0) + seconds
        return total


def per_round(before: Mapping[str, float], after: Mapping[str, float], rounds: int) -> dict[str, float]:
    """CPU seconds of each class between two looks, for one of ``rounds`` rounds."""
    return {name: round((after[name] - before.get(name, 0.0)) / max(1, rounds), 3) for name in after}


def _descends(pid: int) -> bool:
    """Whether this process is an ancestor; detached children of flwr are found by their session's folder."""
    own = os.getpid()
    while pid > 1:
        if pid == own:
            return True
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pid = int(stat[1])
    return False
