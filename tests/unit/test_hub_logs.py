"""A line that is written without a record is the line that logging would have written."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from hub.logs import JsonHandler, note

MEMBERS = {"method": "GET", "route": "/a\n/ü", "status": 200, "ms": 0.4, "caller": "lab.example"}
LOG = logging.getLogger("fedhub.test_logs")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What goes to standard error where ``JsonHandler`` is all there is."""
    root, out = logging.getLogger(), JsonHandler()
    out.setStream(io.StringIO())
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [out]
    root.setLevel("INFO")
    yield out.stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_noted_line_is_the_one_that_logging_writes(written: io.StringIO) -> None:
    note(LOG, "GET /a 100% 200", MEMBERS)
    LOG.info("%s", "GET /a 100% 200", extra=MEMBERS)
    noted, logged = (json.loads(line) for line in written.getvalue().splitlines())
    assert noted.pop("at")[:19] <= logged.pop("at")[:19]
    assert noted == logged and list(noted) == list(logged)
    assert noted["level"] == "INFO" and noted["log"] == LOG.name and noted["route"] == "/a\n/ü"


def test_nothing_is_noted_below_the_level_that_is_set(written: io.StringIO) -> None:
    logging.getLogger().setLevel("WARNING")
    note(LOG, "said", MEMBERS)
    assert written.getvalue() == ""


def test_who_else_listens_hears_it_too(written: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger().addHandler(caplog.handler)
    note(LOG, "said 5 %", MEMBERS)
    assert caplog.messages == ["said 5 %"] and json.loads(written.getvalue())["message"] == "said 5 %"


def test_a_request_goes_on_when_standard_error_is_gone(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    written.close()
    note(LOG, "said", MEMBERS)
