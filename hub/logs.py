"""The hub's log lines: one JSON object each, on standard error, without secrets.

Nothing here knows what a secret is: it is the callers' rule to log names, ids, routes and statuses, never
headers, bodies, queries or tokens. JSON itself keeps texts from outside on one line.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_text = json.JSONEncoder(ensure_ascii=False, default=str).encode
_root = logging.getLogger()


class JsonLines(logging.Formatter):
    """Time, level, logger, message, then whatever ``extra`` the caller gave."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line = _begun(record.created, record.levelname, record.name, record.getMessage())
        line.update({name: value for name, value in vars(record).items() if name not in _OWN})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return _text(line)


class JsonHandler(logging.StreamHandler[Any]):
    """Writes such lines to standard error."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(JsonLines())

    def write(self, level: str, log: str, message: str, members: Mapping[str, Any]) -> None:
        """One line without a ``LogRecord``."""
        text = _text(_begun(time.time(), level, log, message) | dict(members))
        self.acquire()
        try:
            self.stream.write(f"{text}\n")
            self.stream.flush()
        finally:
            self.release()


def _begun(at: float, level: str, log: str, message: str) -> dict[str, Any]:
    second = int(at)
    moment = f"{_second(second)}.{int((at - second) * 1000):03d}Z"
    return {"at": moment, "level": level, "log": log, "message": message}


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def note(log: logging.Logger, message: str, members: Mapping[str, Any]) -> None:
    """``log.info(message, extra=members)``, cheaper where its line goes to ``JsonHandler`` alone.

    For what every request writes: ``logging`` looks up caller, thread and process, which no line says.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    out = _root.handlers
    if len(out) == 1 and isinstance(out[0], JsonHandler) and not log.handlers:
        try:
            out[0].write("INFO", log.name, message, members)
            return
        except (OSError, ValueError):
            pass  # standard error is gone: logging has its own way with that
    log.info("%s", message, extra=dict(members))


def log_as_json(level: str) -> None:
    """Send every logger's lines of at least ``level`` to standard error as JSON."""
    _root.handlers[:] = [JsonHandler()]
    _root.setLevel(level)
    for quiet in ("httpx", "httpcore", "urllib3", "uvicorn.access", "flwr"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
