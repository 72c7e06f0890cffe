"""The hub's log lines: one JSON object each, on standard error, without secrets.

Nothing here knows what a secret is: it is the callers' rule to log names, ids, routes and statuses, never
headers, bodies, queries or tokens. JSON itself keeps texts from outside on one line.
"""

import json
import logging
import sys
import time
from typing import Any

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """Time, level, logger, message, then whatever ``extra`` the caller gave."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "log": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _OWN})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json(level: str) -> None:
    """Send every logger's lines of at least ``level`` to standard error as JSON."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [out]
    root.setLevel(level)
    for quiet in ("httpx", "httpcore", "urllib3", "uvicorn.access", "flwr"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
