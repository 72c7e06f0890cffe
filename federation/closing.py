"""A round's end at the coordinator: updates folded in, aggregate and server state stored, the round reported.

The memory of a server optimiser (``strategies.Step``) is no model and nobody's to release, but without it a
run could not go on where another machine left it. So after every round but the last it goes into the store
beside the aggregate, and the round's report names it by digest; a later attempt fetches it from there.
Nobody has to believe it: who recomputes the rounds makes it again.
"""

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.aggregation import AggregationResult, SiteUpdate, aggregate
from federation.evaluation import mean_metrics
from federation.messages import OrderReply
from federation.plan import Config
from federation.strategies import Strategy
from federation.tensors import FileDigest
from federation.wire import RoundReport, StoredFile, Work

if TYPE_CHECKING:
    from federation.coordination import Coordinator


class Stopped(Exception):
    """The run cannot go on: the code of the cause, and what exactly, for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True)
class Taken:
    """A site's reply and its checked update, which the aggregation takes into account.

    Attributes:
        name: how people call the site. receipt: id of the logged receipt.
    """

    name: str
    update: SiteUpdate
    reply: OrderReply
    receipt: str


class ServerState:
    """What a server optimiser remembers from round to round: a file for each slot, here and in the store.

    Args:
        work: where the last closed round left it, if there is one.
    Raises:
        Stopped: the round before left none, so that going on would give other weights.
    """

    def __init__(self, run: "Coordinator", strategy: Strategy, work: Work) -> None:
        self._run = run
        self._slots = strategy.step.slots
        self._coming: list[Future[Path]] = []
        closed = work.next_round - 1
        if not self._slots or not closed or closed == work.rounds:
            return
        missing = [slot for slot in self._slots if slot not in work.state]
        if missing:
            raise Stopped(
                "E_SERVER_STATE",
                f"{strategy.name} cannot go on after round {closed}: its state ({', '.join(missing)}) is "
                "not in the store. Submit a new plan to train again.",
            )
        folder = self._folder(closed)
        self._coming = [
            run.fetchers.submit(run.fetch, work.state[slot], folder / _file(slot)) for slot in self._slots
        ]

    def _folder(self, number: int) -> Path:
        return self._run.space("state", str(number))

    def before(self, number: int) -> Path | None:
        """Folder of the state that round ``number`` begins with; waits until it is there."""
        for coming in self._coming:
            coming.result()
        self._coming = []
        return self._folder(number - 1) if self._slots and number > 1 else None

    def after(self, number: int) -> Path | None:
        """Folder for the state that round ``number`` ends with."""
        return self._folder(number) if self._slots else None

    def store(self, number: int, made: Mapping[str, FileDigest]) -> dict[str, StoredFile]:
        """Bring the state of round ``number`` into the store, for its report."""
        for slot, file in made.items():
            path = self._folder(number) / _file(slot)
            self._run.put(path, file.sha256, file.size, settled=True)
        return {slot: StoredFile(sha256=file.sha256, size=file.size) for slot, file in made.items()}

    def forget(self, number: int) -> None:
        """Give back the disk of the state before round ``number``, which is closed."""
        if self._slots:
            shutil.rmtree(self._folder(number - 1), ignore_errors=True)


def _file(slot: str) -> str:
    return f"{slot}.safetensors"


class Closing:
    """Closes the rounds of one attempt.

    Raises:
        Stopped: see ``ServerState``.
    """

    def __init__(self, run: "Coordinator", work: Work, config: Config, strategy: Strategy) -> None:
        self._run = run
        self._rounds = work.rounds
        self._config = config
        self._strategy = strategy
        self._state = ServerState(run, strategy, work)

    def close(
        self, number: int, start: Path, start_digest: str, taken: Sequence[Taken], out: Path, *, began: float
    ) -> AggregationResult:
        """Fold in, upload, report.

        Args:
            start: the weights that the round began with. out: where the new ones go.
            taken: in the plan's order. A strategy that picks sites (Krum) has all of them in the report: all
                of them decided who was picked.
            began: when the round did, by the coordinator's clock.
        Raises:
            UpdateRejected: one site's update is at fault. Rejected: the sum is, or the hub refuses the round.
        """
        told = self._run.fetchers.submit(self._run.telling.send)  # what led to this round stands before it
        result = aggregate(
            self._strategy,
            start,
            [one.update for one in taken],
            out,
            compression=self._config.compression,
            round_number=number,
            state=self._state.before(number),
            next_state=self._state.after(number),
        )
        # The hub looks itself whether it has come, before it signs the round.
        self._run.put(out, result.sha256, result.size, settled=False)
        kept = self._state.store(number, result.state) if number < self._rounds else {}
        picked = set(result.folded)
        report = RoundReport(
            attempt=self._run.attempt,
            round=number,
            input=start_digest,
            aggregate=result.sha256,
            size=result.size,
            receipts=[one.receipt for one in taken],
            seconds=round(self._run.clock() - began, 3),
            sites={one.name: _figures(one, self._strategy, picked) for one in taken},
            metrics=mean_metrics([(one.reply.examples, one.reply.metrics) for one in taken]),
            state=kept,
        )
        told.result()
        self._run.client.report_round(self._run.plan, report)
        self._state.forget(number)
        return result


def _figures(one: Taken, strategy: Strategy, picked: set[str]) -> dict[str, float | int | str]:
    """What a report says of one site; whether it was picked, where a strategy picks."""
    figures: dict[str, float | int | str] = {**one.reply.metrics, "examples": one.reply.examples}
    if strategy.select is not None:
        figures["picked"] = int(one.update.site in picked)
    return figures
