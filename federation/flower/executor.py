"""Starts a process for the ServerApp of each run, and for nothing else that flwr could start.

``TaskStarter`` lives in SuperLink's process and claims tasks there; ``main`` is the process it starts. Only
bundles whose digest is allowed get one: ours, and those the operator names, which are kept from all files but
their own (``federation.confinement``): SuperLink's user can read the coordinator's token. The task's token
travels by a pipe, never on a command line; the child sees no secret of its parent's surroundings and dies
with it. To load flwr takes seconds, so while no run goes on a process of our coordinator waits for the next.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from federation.confinement import Bounds, abilities, confine, system_paths
from federation.flower.allowed_apps import read_allowed
from federation.flower.quiet import QUIET, keep_quiet
from federation.lifeline import die_with, plain_environment, python_command
from storage.errors import Unchecked

POLL_S = 0.1
STOP_S = 3.0
SPARE_AFTER_S = 2.0  # without a run; whoever starts many in a row needs the processor for those
FOREIGN_BYTES = 16 << 30  # of memory, and of one file, that a foreign ServerApp may use
APP = Path(__file__).with_name("app")


@dataclass(frozen=True)
class Bundle:
    """A Flower app bundle and its SHA-256."""

    content: bytes
    digest: str


@cache
def coordinator_bundle() -> Bundle:
    """Our coordinator as Flower wants it, built from the files installed here."""
    files = {
        str(path.relative_to(APP).as_posix()): path.read_bytes()
        for path in sorted(APP.rglob("*"))
        if path.is_file() and path.suffix in ("", ".py", ".toml")
    }
    return build_bundle(files)


def build_bundle(files: Mapping[str, bytes]) -> Bundle:
    """A Flower app bundle of these files, by their paths; the same files always give the same bytes here."""
    keep_quiet()
    from flwr.cli.build import build_fab_from_files

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # flwr's own, about its use of pathspec
        content, _ = build_fab_from_files(dict(files))
    return Bundle(content, hashlib.sha256(content).hexdigest())


class TaskStarter:
    """Claims ServerApp tasks from SuperLink's state and starts their processes."""

    def __init__(
        self, factory: Any, address: str, *, allowed: frozenset[str] | set[str], folder: Path
    ) -> None:
        """
        Args:
            factory: of SuperLink's state.
            address: host:port of the Runtime API.
            allowed: digests of bundles that may run.
            folder: below it the coordinator keeps its work.
        """
        self._factory = factory
        self._address = address
        self._allowed = allowed
        self._folder = folder
        self._running: dict[int, subprocess.Popen[bytes]] = {}  # by task
        self._spare: subprocess.Popen[bytes] | None = None  # a coordinator that waits for its task
        self._spare_at = 0.0
        self._ended = threading.Event()
        # Linux takes the thread that starts a child for its parent: it must outlive the children.
        self._thread = threading.Thread(target=self._run, name="task-starter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask every running ServerApp to end, then make it."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _end_all(self) -> None:
        processes = [*self._running.values(), *([self._spare] if self._spare else [])]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _run(self) -> None:
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType
        from flwr.superlink.servicer.runtime import runtime_handlers

        wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        self._spare_at = time.monotonic() + SPARE_AFTER_S
        try:
            while not self._ended.wait(POLL_S):
                state = self._factory.state()
                answer = runtime_handlers.acquire_task(wanted, state)
                self._bury(state)
                if answer.token:
                    self._launch(state, answer.task, answer.token)
                self._keep_spare()
        finally:
            self._end_all()

    def _bury(self, state: Any) -> None:
        """Fail the tasks whose processes are gone, now and not when Flower misses their heartbeats (60 s)."""
        from flwr.common.constant import SubStatus

        for task, process in list(self._running.items()):
            status = process.poll()
            if status is not None:
                del self._running[task]
                # A ServerApp that ended well has said so itself, and then this changes nothing.
                state.finish_task(task, SubStatus.FAILED, f"its process ended with status {status}")

    def _launch(self, state: Any, task: Any, token: str) -> None:
        from flwr.common.constant import SubStatus

        run = state.get_run_info(run_ids=[task.run_id])[0]
        foreign = run.fab_hash != coordinator_bundle().digest
        if run.fab_hash not in self._allowed | read_allowed(self._folder):
            reason = f"E_APP_NOT_ALLOWED: the operator does not allow the app bundle {run.fab_hash}"
            state.activate_task(task.task_id)
            state.finish_task(task.task_id, SubStatus.FAILED, reason)
            return
        process = self._open("foreign") if foreign else self._take_spare() or self._open("coordinator")
        self._running[task.task_id] = process
        assert process.stdin is not None
        try:
            process.stdin.write(token.encode() + b"\n")
            process.stdin.close()
        except BrokenPipeError:  # it died at once, and is buried at the next look
            pass

    def _open(self, whose: str) -> subprocess.Popen[bytes]:
        """A process that waits for the token of its task."""
        work = self._folder / whose
        work.mkdir(exist_ok=True, mode=0o700)
        own = {"FLWR_HOME": os.environ["FLWR_HOME"], "FEDHUB_COORDINATOR_WORK": str(work)}
        if whose == "foreign":
            own = dict.fromkeys(("FLWR_HOME", "HOME", "TMPDIR"), str(work))
        return subprocess.Popen(
            python_command("federation.flower.executor", self._address, str(os.getpid()), whose),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # its output goes to SuperLink, which serves it as the run's log
            env=plain_environment({**QUIET, **own}),
            cwd=work,
        )

    def _keep_spare(self) -> None:
        """Have a coordinator wait, once nothing has run for a while."""
        now = time.monotonic()
        if self._running:
            self._spare_at = now + SPARE_AFTER_S
        elif now >= self._spare_at and (self._spare is None or self._spare.poll() is not None):
            self._spare_at = now + SPARE_AFTER_S  # one that dies at once is not begun again at once
            self._spare = self._open("coordinator")

    def _take_spare(self) -> subprocess.Popen[bytes] | None:
        """The coordinator that waits, if it still does."""
        spare, self._spare = self._spare, None
        return spare if spare is not None and spare.poll() is None else None


def main() -> None:
    """One ServerApp: ``python -m federation.flower.executor ADDRESS PARENT WHOSE``, token on stdin."""
    address, parent, whose = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    die_with(parent)
    if whose == "foreign":
        _confine(Path.cwd())
    keep_quiet()
    from queue import Queue

    from flwr.supercore.logger import mirror_output_to_queue, restore_output
    from flwr.superlink.runtime import run_serverapp

    if whose == "coordinator":
        import federation.client
        import federation.flower.coordinator  # noqa: F401 - what its bundle would load only now
    token = sys.stdin.readline().strip()
    if not token:  # no task any more
        return
    lines: Queue[str | None] = Queue()
    mirror_output_to_queue(lines)
    try:
        run_serverapp(
            runtime_api_address=address,
            log_queue=lines,
            token=token,
            insecure=True,
            certificates=None,
            # A confined process may not even ask whether another lives; the system ends it with its parent.
            parent_pid=None if whose == "foreign" else parent,
            runtime_dependency_install=False,
        )
    finally:
        restore_output()


def _confine(work: Path) -> None:
    """Leave a foreign ServerApp nothing but its own folder and its connection to SuperLink."""
    if "files" not in abilities():
        raise Unchecked(
            "E_APP_PROTECTION", "this machine cannot keep an app from files", "use Linux 5.13 or later"
        )
    readable = (*system_paths(), Path("/etc/hosts"), Path("/etc/resolv.conf"), Path("/etc/nsswitch.conf"))
    write = (work, Path(os.devnull))
    confine(Bounds(readable, write, memory=FOREIGN_BYTES, file_size=FOREIGN_BYTES, network=True))
    # Modes and times cannot be set any more, and flwr copies them as it installs a bundle.
    shutil.copystat = lambda *_paths, **_options: None


if __name__ == "__main__":
    main()
