"""What a coordinator tells: in order, gathered, kept while the hub is away, dropped when it is refused."""

import threading
import time
from typing import Any, cast

import pytest

from federation import telling
from federation.telling import Telling
from federation.wire import EventReport
from storage.errors import Refused, Unchecked


class Ear:
    """The hub's side: takes what it is told, or raises ``error``."""

    def __init__(self) -> None:
        self.requests: list[list[EventReport]] = []
        self.error: Exception | None = None
        self.heard = threading.Event()

    def report_events(self, plan: str, *reports: EventReport) -> None:
        if self.error is not None:
            raise self.error
        self.requests.append(list(reports))
        self.heard.set()

    @property
    def told(self) -> list[int]:
        return [cast(int, one.data["n"]) for request in self.requests for one in request if "n" in one.data]


def teller(ear: Ear) -> Telling:
    return Telling(cast(Any, ear), "p" * 64, 1)


def test_events_of_many_sites_arrive_in_order_in_few_requests() -> None:
    ear = Ear()
    with teller(ear) as one:
        for n in range(600):
            one.tell("site.replied", {"n": n})
        one.send()
    assert ear.told == list(range(600))
    assert len(ear.requests) <= 5


def test_a_single_event_need_not_wait_for_company() -> None:
    ear = Ear()
    with teller(ear) as one:
        one.tell("site.replied", {"n": 1})
        assert ear.heard.wait(10)


def test_events_wait_while_the_hub_is_away() -> None:
    ear = Ear()
    ear.error = Unchecked("E_HUB_UNREACHABLE", "away")
    one = teller(ear)
    one.tell("site.replied", {"n": 1})
    with pytest.raises(Unchecked):
        one.send()
    ear.error = None
    one.tell("site.replied", {"n": 2})
    one.send()
    assert ear.told == [1, 2]


def test_what_the_hub_refuses_is_not_told_again() -> None:
    ear = Ear()
    ear.error = Refused("E_ATTEMPT", "another goes on", status=409)
    one = teller(ear)
    one.tell("site.replied", {"n": 1})
    with pytest.raises(Refused):
        one.send()
    ear.error = None
    one.send()
    assert ear.requests == []


def test_a_silent_coordinator_is_heard_until_its_work_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "ALIVE_S", 0.01)
    monkeypatch.setattr(telling, "PAUSE_S", 0.01)
    ear = Ear()
    ear.error = Unchecked("E_HUB_UNREACHABLE", "away")  # which the thread outlives
    with teller(ear) as one:
        time.sleep(0.05)
        ear.error = None
        assert ear.heard.wait(10)
    assert {report.kind for request in ear.requests for report in request} == {"coordinator.alive"}
    one._thread.join(10)
    count = len(ear.requests)
    time.sleep(0.05)
    assert len(ear.requests) == count


def test_long_texts_are_cut_to_what_the_hub_takes() -> None:
    ear = Ear()
    one = teller(ear)
    one.tell("site.left-out", {"message": "x" * 2000, "n": 1})
    one.send()
    assert len(cast(str, ear.requests[0][0].data["message"])) == 500
