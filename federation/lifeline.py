"""Child processes that never outlive their parent, and what a child may know of its parent's surroundings.

Linux sends a signal to a process whose parent has died, however that happened (``PR_SET_PDEATHSIG``). On
other systems a child notices only when it next looks; nothing here pretends otherwise.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1

# What a child needs to find its programs, its language and the machine's certificates; no secret has such a
# name.
_PLAIN = ("PATH", "HOME", "LANG", "LANGUAGE", "TMPDIR", "TZ", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PLAIN_PREFIXES = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "COVERAGE_")


def die_with(parent: int, how: int = signal.SIGKILL) -> None:
    """Have this process receive signal ``how`` when the process ``parent`` dies.

    Args:
        parent: process id of the caller's parent, told by the parent itself: had it died before this call,
            its death would otherwise go unseen.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, how, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), how)


def python_command(module: str, *arguments: str) -> list[str]:
    """How to start a module of ours with this interpreter; the current folder is not searched for code."""
    return [sys.executable, "-P", "-m", module, *arguments]


def plain_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The surroundings without anything that could be a secret, so that a child can leak none."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _PLAIN or name.startswith(_PLAIN_PREFIXES)
    }
    return {**kept, **code_path(), **(extra or {})}


def code_path() -> dict[str, str]:
    """``PYTHONPATH`` for a checkout that is not installed, empty for an installed package."""
    root = Path(__file__).resolve().parents[1]
    return {} if root.name == "site-packages" else {"PYTHONPATH": str(root)}
