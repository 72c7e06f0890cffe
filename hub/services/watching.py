"""What a watched run's page needs beside its newest rounds: sums over all of them, and points for curves.

A page asks at each event, so a look reads no more in the thousandth round than in the hundredth.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_
from sqlmodel import Session, col, select

from federation import wire
from hub.services import events
from hub.services.events import Kind
from hub.tables import RoundRow, StatementSubjectRow, UploadRow

DRAWN_ROUNDS = 100  # in a curve; of more, each so many-th is drawn
DRAWN_SITES = 16  # lines beside the common one; of more, none is drawn

Point = tuple[int, str | None, Mapping[str, Any]]


@dataclass(frozen=True)
class Sums:
    """Over all closed rounds of a run.

    Attributes:
        rounds: how many there are.
        mean_s: what a round took, seconds.
        longest_s: what the longest one took, seconds.
        size_bytes: of all aggregates.
    """

    rounds: int
    mean_s: float
    longest_s: float
    size_bytes: int

    @property
    def step(self) -> int:
        """Each so many-th round is drawn."""
        return -(-self.rounds // DRAWN_ROUNDS) or 1


def sums(session: Session, plan: str) -> Sums:
    """Sums over a run's closed rounds, added up by the database."""
    found = session.exec(
        select(
            func.count(), func.avg(RoundRow.seconds), func.max(RoundRow.seconds), func.sum(RoundRow.size)
        ).where(RoundRow.plan == plan)
    ).one()
    count, mean, longest, size = found
    return Sums(count, float(mean or 0), float(longest or 0), int(size or 0))


def points(session: Session, plan: str, over: Sums, sites: int) -> list[Point]:
    """What was measured in the rounds that are drawn: (round, site or None for all together, figures).

    Args:
        sites: how many take part.
    """
    rounds = (
        select(RoundRow.round, RoundRow.metrics)
        if sites > DRAWN_SITES
        else select(RoundRow.round, RoundRow.metrics, RoundRow.sites)
    )
    drawn = or_(col(RoundRow.round) % over.step == 0, col(RoundRow.round).in_((1, over.rounds)))
    found: list[Point] = []
    for number, metrics, *named in session.exec(
        rounds.where(RoundRow.plan == plan, drawn).order_by(col(RoundRow.round))
    ):
        found.append((number, None, metrics))
        found += [(number, name, figures) for each in named for name, figures in sorted(each.items())]
    return found


def in_flight(session: Session, plan: str, number: int) -> list[wire.Event]:
    """What happened since this round was opened last; nothing when another one was."""
    opened = events.newest(session, plan, Kind.ROUND_OPENED)
    if opened is None or opened.data.get("round") != number:
        return []
    return events.read(session, plan, after=opened.id)


def update_bytes(session: Session, run: wire.Run) -> dict[int, int]:
    """Bytes of the updates that went into each of these rounds and are still there, by round."""
    receipts = {receipt: each.round for each in run.rounds for receipt in each.receipts}
    query = (
        select(StatementSubjectRow.statement, StatementSubjectRow.digest, UploadRow.size)
        .join(UploadRow, col(UploadRow.sha256) == StatementSubjectRow.digest)
        .where(
            col(StatementSubjectRow.statement).in_(list(receipts)),
            UploadRow.plan == run.plan,
            UploadRow.state == "stored",
        )
        .distinct()
    )
    found: dict[int, int] = defaultdict(int)
    for receipt, _digest, size in session.exec(query):
        found[receipts[receipt]] += size
    return dict(found)
