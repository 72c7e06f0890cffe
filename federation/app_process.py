"""The warm child process of one app and one dataset, as the agent sees it: started, asked, watched, ended.

The child (``federation.flower.app_child``) gets no key, no token and nothing of the agent's surroundings; it
shuts itself in before it loads the app. Here it is watched from outside besides: its time, its memory, what
it writes. Whatever it answers is a claim: lines are bounded, faults come from a closed list, and no text of
the app's reaches a message, since a text could hold rows. What it printed last is kept at the site.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.app_bundle import AppBundle, run_config, unpack
from federation.app_terms import AppTerms
from federation.confinement import NEEDED, abilities, system_paths
from federation.lifeline import plain_environment, python_command
from storage.errors import Rejected, Unchecked, shown

START_S = 120.0  # to load an app with its libraries
LINE_BYTES = 1 << 16
TAIL_BYTES = 1 << 15
MOST_ENTRIES = 10_000  # files and folders that an app may make
TICK_S = 0.1
DISK_TICK_S = 0.5
OUTPUT_FILE = "last-output.txt"
_MIB = 1 << 20

# Why an app's reply cannot be used, by what the child tells.
UNFIT = {
    "content": "it answered without content",
    "arrays": "expected one ArrayRecord in its reply",
    "types": "an array of its reply has a type that does not travel",
    "examples": "expected a whole number num-examples in a MetricRecord",
    "metrics": "its metrics should be at most 32 single numbers",
}
MODES = ("confined", "never", "trusted")


@dataclass(frozen=True)
class AppPolicy:
    """What a site lets apps do and use.

    Attributes:
        mode: "confined": only shut in; "never": no app at all; "trusted": also where the machine cannot shut
            them in.
        memory, disk: bytes of one app. seconds: of one message, at most.
    """

    mode: str = "confined"
    memory: int = 4096 * _MIB
    disk: int = 8192 * _MIB
    seconds: float = 3600.0

    @classmethod
    def of_surroundings(cls) -> "AppPolicy":
        """From ``FEDHUB_APPS``, ``FEDHUB_APP_MEMORY_MB``, ``FEDHUB_APP_DISK_MB``, ``FEDHUB_APP_SECONDS``.

        Raises:
            Unchecked: ``E_SETTINGS``.
        """
        mode = os.environ.get("FEDHUB_APPS") or cls.mode
        if mode not in MODES:
            raise Unchecked("E_SETTINGS", f"FEDHUB_APPS: expected {', '.join(MODES)}, found {shown(mode)}")
        return cls(
            mode,
            _whole("FEDHUB_APP_MEMORY_MB", cls.memory // _MIB) * _MIB,
            _whole("FEDHUB_APP_DISK_MB", cls.disk // _MIB) * _MIB,
            float(_whole("FEDHUB_APP_SECONDS", int(cls.seconds))),
        )

    def check(self) -> None:
        """Return only when this site runs apps, as it should.

        Raises:
            Unchecked: ``E_APP_PROTECTION``.
        """
        if self.mode == "never":
            raise Unchecked("E_APP_PROTECTION", "this site runs no app (FEDHUB_APPS=never)")
        missing = [each for each in NEEDED if each not in abilities()]
        if missing and self.mode != "trusted":
            raise Unchecked(
                "E_APP_PROTECTION",
                f"this machine cannot keep an app from {', '.join(missing)}",
                "run the agent on Linux 5.13 or later, or trust the code: FEDHUB_APPS=trusted",
            )

    def __str__(self) -> str:
        if self.mode == "never":
            return "apps are not run here"
        able = [*abilities(), "memory", "time", "disk"]
        return f"apps are kept from: {', '.join(able)} (FEDHUB_APPS={self.mode})"


def _whole(name: str, default: int) -> int:
    text = os.environ.get(name)
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 9 or int(text) == 0:
        raise Unchecked("E_SETTINGS", f"{name}: expected a whole number above 0, found {shown(text)}")
    return int(text)


class AppProcess:
    """One child; unusable after any fault."""

    def __init__(
        self, folder: Path, home: Path, bundle: AppBundle, terms: AppTerms, data: Path, policy: AppPolicy
    ) -> None:
        """Unpack the bundle afresh and start the child.

        Args:
            folder: of the site's apps; the child gets a new one below it.
            home: the institution's, which must lie apart from all that an app can read.
            data: the dataset's folder, which the app can read.
        Raises:
            Unchecked: ``E_APP_PROTECTION``. Rejected: ``E_APP``, ``E_APP_FAILED``, ``E_APP_TIME``.
        """
        policy.check()
        check_apart(home, data)
        self.key = (terms, data)
        self._policy = policy
        self._folder = folder
        self._place = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
        self.work = self._place / "work"
        self.work.mkdir(mode=0o700)
        unpack(bundle, self._place / "code")
        self._tail = bytearray()
        self._lines = b""
        self._process = self._start()
        self._reader = threading.Thread(target=self._drain, name="app-output", daemon=True)
        self._reader.start()
        setup = {
            "code": str(self._place / "code"),
            "work": str(self.work),
            "data": str(data.resolve()),
            "client": bundle.client,
            "settings": run_config(bundle, terms.parameters),
            "memory": policy.memory,
            "disk": policy.disk,
        }
        self._exchange(setup, time.monotonic() + START_S)

    @property
    def usable(self) -> bool:
        return self._process.poll() is None

    def ask(self, order: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Have the app handle one message.

        Raises:
            Rejected: ``E_APP_TIME``, ``E_APP_MEMORY``, ``E_APP_DISK``, ``E_APP_FAILED``, ``E_APP_REPLY``; the
                child is gone then.
        """
        return self._exchange(order, time.monotonic() + min(seconds, self._policy.seconds))

    def close(self) -> None:
        """End the child and remove its folder."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        shutil.rmtree(self._place, ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        own = {name: str(self.work) for name in ("HOME", "TMPDIR")}
        surroundings = plain_environment({**own, "USER": "app", "LOGNAME": "app", "HF_HUB_OFFLINE": "1"})
        surroundings["PYTHONDONTWRITEBYTECODE"] = "1"
        return subprocess.Popen(
            python_command("federation.flower.app_child", str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=surroundings,
            cwd=self.work,
            start_new_session=True,
            bufsize=0,
        )

    def _drain(self) -> None:
        """Keep the end of what the app prints, however much it is."""
        assert self._process.stderr is not None
        while chunk := self._process.stderr.read(TAIL_BYTES):
            self._tail += chunk
            del self._tail[:-TAIL_BYTES]

    def _exchange(self, told: dict[str, Any], deadline: float) -> dict[str, Any]:
        try:
            return self._checked(self._converse(told, deadline))
        except Rejected:
            self.close()
            self._keep_output()
            raise

    def _converse(self, told: dict[str, Any], deadline: float) -> bytes:
        """Send one line, and watch until one comes back."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its last words say why
            self._process.stdin.write(json.dumps(told).encode() + b"\n")
        look_at_disk = 0.0
        while b"\n" not in self._lines:
            ready, _, _ = select.select([self._process.stdout], [], [], TICK_S)
            if ready:
                chunk = os.read(self._process.stdout.fileno(), LINE_BYTES)
                if not chunk:
                    raise self._ended()
                self._lines += chunk
                if len(self._lines) > LINE_BYTES:
                    raise Rejected("E_APP_REPLY", "the app's reply: a line is too long")
            now = time.monotonic()
            if now > deadline:
                raise Rejected("E_APP_TIME", "the app did not answer in time", "its owner makes it faster")
            self._check_memory()
            if now > look_at_disk:
                self._check_disk()
                look_at_disk = now + DISK_TICK_S
        line, _, self._lines = self._lines.partition(b"\n")
        return line

    def _checked(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Rejected("E_APP_REPLY", "the app's reply: not JSON") from error
        if not isinstance(answer, dict):
            raise Rejected("E_APP_REPLY", "the app's reply: expected an object")
        if "protection" in answer:
            raise Rejected("E_APP_PROTECTION", "the app's process could not shut itself in")
        if "unfit" in answer:
            raise Rejected("E_APP_REPLY", f"the app's reply: {UNFIT.get(str(answer['unfit']), 'unfit')}")
        if "fault" in answer:
            raise self._fault(answer)
        return answer

    def _fault(self, answer: dict[str, Any]) -> Rejected:
        kind, missing = str(answer["fault"]), answer.get("missing")
        if kind == "MemoryError":
            return self._too_much_memory()
        if kind == "ModuleNotFoundError" and missing is not None:
            named = str(missing) if str(missing).isidentifier() else shown(missing)
            hint = f"the site decides whether to install it: pip install {named}"
            return Rejected("E_APP_FAILED", f"the app needs the module {named[:60]}", hint)
        named = kind if kind.isidentifier() and kind.isascii() and len(kind) <= 60 else "an exception"
        return Rejected("E_APP_FAILED", f"the app raised {named}", self._see())

    def _ended(self) -> Rejected:
        status = self._process.wait()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return Rejected("E_APP_FAILED", f"the app's process ended with {how}", self._see())

    def _see(self) -> str:
        return f"what it printed is kept at the site, in {self._folder / OUTPUT_FILE}"

    def _keep_output(self) -> None:
        path = self._folder / OUTPUT_FILE
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(self._tail)

    def _too_much_memory(self) -> Rejected:
        most = self._policy.memory // _MIB
        hint = "the site may allow more: FEDHUB_APP_MEMORY_MB"
        return Rejected("E_APP_MEMORY", f"the app needs more than {most} MiB of memory", hint)

    def _check_memory(self) -> None:
        """What the process holds now; pages that it shares with files count too."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text("ascii", "replace")
        except OSError:
            return  # over, or no Linux: the process's own limit holds
        used = sum(
            int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))
        )
        if used << 10 > self._policy.memory:
            raise self._too_much_memory()

    def _check_disk(self) -> None:
        used, entries = 0, 0
        for place, _, names in os.walk(self.work):
            entries += 1 + len(names)
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    used += os.stat(os.path.join(place, name), follow_symlinks=False).st_blocks * 512
            if entries > MOST_ENTRIES or used > self._policy.disk:
                most = f"{self._policy.disk // _MIB} MiB or {MOST_ENTRIES} files"
                hint = "the site may allow more: FEDHUB_APP_DISK_MB"
                raise Rejected("E_APP_DISK", f"the app writes more than {most}", hint)


def check_apart(home: Path, data: Path) -> None:
    """An app must not be able to read the home through what it may read anyway.

    Raises:
        Unchecked: ``E_APP_PROTECTION``.
    """
    keys = home.resolve()
    for path in (*system_paths(), data):
        if keys.is_relative_to(path.resolve()):
            raise Unchecked(
                "E_APP_PROTECTION",
                f"the home {home} lies below {path}, which apps can read",
                "move the home, or the dataset, to a folder of its own",
            )


def sweep(folder: Path) -> None:
    """Remove what children left behind whose agent was killed."""
    for left in folder.glob("run-*"):
        shutil.rmtree(left, ignore_errors=True)


def describe_apps() -> str:
    """One line for those who start a site: how apps are run here."""
    return str(AppPolicy.of_surroundings())
