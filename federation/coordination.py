"""Runs the rounds of one plan and reports each to the hub.

No Flower here: ``Exchange`` carries texts to nodes and back (``federation.flower.coordinator``), so that
    tests can be the sites. What a coordinator says counts for nothing that an auditor leans on: orders,
    receipts and round statements are signed by others. It keeps no state that a crash could lose: the hub
    knows the last closed round, and the next attempt begins after it. One round is ``federation.round_desk``.
"""

import base64
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from federation import asking, fetching, sending
from federation.closing import Closing, Stopped
from federation.delivery import Exchange
from federation.messages import InputReference
from federation.plan import Config, read_config
from federation.round_desk import RoundDesk, Weights
from federation.strategies import Strategy, make_strategy
from federation.telling import Telling
from federation.wire import RunEnd, WeightsLocation, Work, WorkSite
from storage.blobs import ORDER_BYTES
from storage.errors import Refused, Unchecked

if TYPE_CHECKING:
    from federation.client import HubClient

FETCHERS = 4


class Coordinator:
    """One attempt at the run of a plan.

    Args:
        client: speaks to the hub with the coordinator's token.
        work_folder: existing folder; ``<plan>`` below it is this run's.
    """

    def __init__(
        self,
        client: "HubClient",
        exchange: Exchange,
        plan: str,
        attempt: int,
        work_folder: Path,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client = client
        self.exchange = exchange
        self.plan = plan
        self.attempt = attempt
        self.clock = clock
        self.folder = work_folder / plan
        self.gone: set[str] = set()  # datasets whose nodes were not connected in the round before
        self.late: dict[str, tuple[int, WorkSite]] = {}  # unanswered messages of rounds that are closed
        self.telling = Telling(client, plan, attempt)
        self.fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")

    def run(self) -> None:
        """Do what is left to do, and tell the hub how it ended.

        Raises:
            FedhubError: the hub cannot be reached or refuses this attempt; it starts another one.
        """
        work = self.client.work(self.plan)
        if work.attempt != self.attempt:
            raise Refused(
                "E_ATTEMPT",
                f"attempt {self.attempt} was given up, attempt {work.attempt} goes on",
                status=409,
            )
        config = read_config(base64.b64decode(work.config))
        strategy = make_strategy(config.strategy, config.strategy_parameters)
        with self.telling:
            self._work_off(work, config, strategy)

    def _work_off(self, work: Work, config: Config, strategy: Strategy) -> None:
        try:
            asking.harmonise(self, work, config)
            closing = Closing(self, work, config, strategy)
            weights = Weights(self, work.input)
            for number in range(work.next_round, work.rounds + 1):
                desk = RoundDesk(self, work, config, closing, number, weights)
                weights = desk.run()
            last = InputReference(sha256=weights.sha256, size=weights.size)
            asking.report(self, work, config, last)
            self.telling.send()
            self.client.end_run(self.plan, RunEnd(attempt=self.attempt, state="finished"))
            shutil.rmtree(self.folder, ignore_errors=True)
        except Stopped as stop:
            shutil.rmtree(self.space("updates"), ignore_errors=True)
            self.telling.send()
            self.client.end_run(self.plan, RunEnd(attempt=self.attempt, state="stopped", reason=str(stop)))
        finally:
            self.fetchers.shutdown(wait=False, cancel_futures=True)

    def space(self, *names: str) -> Path:
        """A folder of this run's."""
        folder = self.folder.joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def find(self, location: WeightsLocation) -> Path | None:
        """A file of a store that is a folder of this machine, where it lies.

        It was hashed as it came into the store, and nothing has carried it since. It is the store's: to be
        read, and never to be written over or moved.
        """
        path = None if location.file is None else Path(location.file)
        return path if path is not None and path.is_file() else None

    def put(self, path: Path, sha256: str, size: int, *, settled: bool) -> None:
        """Bring a file of this run's into the store; where that is a folder of this machine, as it is.

        The hub then reads it, and it is the store's too: it must not be written over. ``settled`` as in
        ``sending.send_file``.
        """
        announced = self.client.upload(sha256, size, plan=self.plan) if size <= ORDER_BYTES else None
        if announced and announced.file and _leave(path, Path(announced.file)):
            self.client.upload_complete(announced.id)
            return
        known = (sha256, size)
        sending.send_file(
            self.client, path, plan=self.plan, known=known, announced=announced, settled=settled
        )

    def fetch(self, location: WeightsLocation, path: Path, over: Path | None = None) -> Path:
        """A file of the store, checked against its digest while it streams; from the hub's newest address if
        need be. ``over`` is a file that is needed no more.
        """
        parts = None if location.parts is None else tuple(location.parts)
        try:
            fetching.fetch(location.url, path, location.sha256, location.size, parts, over=over)
        except Unchecked:
            fresh = self.client.weights(self.plan, location.sha256)
            fetching.fetch(fresh.url, path, location.sha256, location.size, parts, over=over)
        return path


def _leave(path: Path, place: Path) -> bool:
    """Give a file a second name; false where the place is on another machine, or in another file system."""
    try:
        place.unlink(missing_ok=True)  # of an attempt that ended there
        os.link(path, place)
    except OSError:
        return False
    return True
