"""What has to be said to flwr before it is imported: no calls home, no installing, a folder of its own.

flwr reads these variables while its modules load, so a later change has no effect.
"""

import os
import sys
import tempfile
from pathlib import Path

from storage.errors import Misuse

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# Doors of flwr that no service of ours opens.
_CLOSED = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API", "FLWR_ENABLE_EVENT_LOG")


def keep_quiet(folder: Path | None = None) -> None:
    """Set this process's surroundings for flwr.

    Args:
        folder: where flwr may keep files (``FLWR_HOME``); without one, a place that nothing is written to
            unless an earlier call or the surroundings named one.
    Raises:
        Misuse: flwr is imported already, with telemetry on.
    """
    if "flwr" in sys.modules and os.environ.get("FLWR_TELEMETRY_ENABLED") != "0":
        raise Misuse("E_FLOWER_LOUD", "flwr was imported before keep_quiet")
    os.environ.update(QUIET)
    for name in _CLOSED:
        os.environ.pop(name, None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ["FLWR_HOME"] = str(folder)
    else:
        nowhere = Path(tempfile.gettempdir(), f"fedhub-flower-{os.getuid()}")
        os.environ.setdefault("FLWR_HOME", str(nowhere))
