"""What a coordinator tells the hub while it works: in order, gathered, so that many sites cost few calls."""

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from federation.wire import MAX_EVENTS, EventReport
from storage.errors import FedhubError, Unchecked

if TYPE_CHECKING:
    from federation.client import HubClient

ALIVE_S = 3.0  # how often the hub hears that the coordinator lives
PAUSE_S = 0.2  # between two requests, in which events gather
ALIVE = "coordinator.alive"
Value = str | int | float | None


class Telling:
    """A context within which the hub hears of this attempt: its events, and that it lives.

    A thread of its own sends them; that the hub is away, or has given the attempt up, the work itself finds
    out.
    """

    def __init__(self, client: "HubClient", plan: str, attempt: int) -> None:
        self._client, self._plan, self._attempt = client, plan, attempt
        self._waiting: list[EventReport] = []
        self._sending = threading.Lock()  # who holds it takes from the front; anybody may append
        self._more, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="telling", daemon=True)

    def __enter__(self) -> "Telling":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._more.set()

    def tell(self, kind: str, data: Mapping[str, Value]) -> None:
        """An event for those who watch; texts are cut to what the hub takes."""
        short = {name: value[:500] if isinstance(value, str) else value for name, value in data.items()}
        self._waiting.append(EventReport(attempt=self._attempt, kind=kind, data=short))
        self._more.set()

    def send(self) -> None:
        """Send all that has gathered, now; what could not be sent waits for the next time.

        Raises:
            Refused: the hub does not take it, as when another attempt goes on: it is dropped.
            Unchecked: the hub cannot be reached.
        """
        with self._sending:
            while batch := self._waiting[:MAX_EVENTS]:
                try:
                    self._client.report_events(self._plan, *batch)
                except Unchecked:
                    raise
                except FedhubError:
                    del self._waiting[: len(batch)]
                    raise
                del self._waiting[: len(batch)]

    def _run(self) -> None:
        while not self._over.is_set():
            if not self._more.wait(ALIVE_S):
                self.tell(ALIVE, {})
            self._more.clear()
            try:
                self.send()
            except FedhubError:
                pass
            self._over.wait(PAUSE_S)
