"""What happened in a run, in order: an append-only table that the run page, the CLI and watchers read.

Kinds are a closed set; each says whose word it is. Events carry figures and names, never data, addresses or
secrets. Ids grow in the order of commits within a run (whoever appends has locked the run's row), so
``after`` never skips one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from sqlalchemy import Subquery, union_all
from sqlmodel import Session, col, select

from federation.wire import Event
from hub.errors import bad_field
from hub.tables import EventRow
from storage.encoding import format_time

Value = str | int | float | None

MAX_MEMBERS = 64
MAX_TEXT = 500


class Kind(StrEnum):
    """Every kind of event, and who reports it."""

    RUN_STARTED = "run.started"  # hub: the owner started or resumed it
    ATTEMPT_STARTED = "attempt.started"  # hub: a Flower run was started for it
    ATTEMPT_ENDED = "attempt.ended"  # hub: it ended before the run did, and why
    WAITING = "run.waiting"  # hub: what the run waits for
    ROUND_OPENED = "round.opened"  # hub: orders are out, with the round's deadline
    SITE_REPLIED = "site.replied"  # coordinator: an update or a metric came in
    SITE_LATE = "site.late"  # coordinator: no reply by the deadline, or one after it
    SITE_LEFT_OUT = "site.left-out"  # coordinator: the update broke a rule
    SITE_REFUSED = "site.refused"  # hub: a site's signed refusal was logged
    SITE_UNREACHABLE = "site.unreachable"  # coordinator: Flower could not deliver the order
    ROUND_CLOSED = "round.closed"  # hub: the round statement is logged
    HARMONISED = "run.harmonised"  # hub: the joint statistics are made
    EVALUATED = "round.evaluated"  # coordinator: the sites were asked for the benefit report
    RUN_ENDED = "run.ended"  # hub: finished, stopped or cancelled, and why


# What a coordinator may report; the others are the hub's own word.
REPORTED = frozenset(
    {Kind.SITE_REPLIED, Kind.SITE_LATE, Kind.SITE_LEFT_OUT, Kind.SITE_UNREACHABLE, Kind.EVALUATED}
)

# Said by a coordinator at work and nothing to remember: it only shows that the attempt lives.
ALIVE = "coordinator.alive"


def append(session: Session, plan: str, kind: Kind, data: Mapping[str, Value], *, at: int) -> EventRow:
    """Add an event in the caller's transaction, which holds the run's row."""
    row = EventRow(plan=plan, at=at, kind=kind.value, data=dict(data))
    session.add(row)
    session.flush()
    return row


def append_all(
    session: Session, plan: str, told: Sequence[tuple[Kind, Mapping[str, Value]]], *, at: int
) -> None:
    """Add events in this order, as ``append``."""
    session.add_all([EventRow(plan=plan, at=at, kind=kind.value, data=dict(data)) for kind, data in told])
    session.flush()


def check_data(data: Mapping[str, Value]) -> None:
    """Bound what a coordinator tells.

    Raises:
        Refused: ``E_FIELD``, with the member that is too much.
    """
    if len(data) > MAX_MEMBERS:
        raise bad_field("data", f"at most {MAX_MEMBERS} members, found {len(data)}")
    for name, value in data.items():
        if len(name) > MAX_TEXT or (isinstance(value, str) and len(value) > MAX_TEXT):
            raise bad_field(f"data.{name[:40]}", f"names and texts have at most {MAX_TEXT} characters")
        if isinstance(value, float) and not math.isfinite(value):
            raise bad_field(f"data.{name}", "numbers must be finite")


def read(session: Session, plan: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
    """The run's events after ``after``, oldest first."""
    found = session.exec(
        select(EventRow)
        .where(EventRow.plan == plan, col(EventRow.id) > after)
        .order_by(col(EventRow.id))
        .limit(limit)
    )
    return [as_event(row) for row in found]


def last(session: Session, plan: str, count: int) -> list[Event]:
    """The newest events of a run, oldest first."""
    query = select(EventRow).where(EventRow.plan == plan).order_by(col(EventRow.id).desc()).limit(count)
    return [as_event(row) for row in session.exec(query)][::-1]


def of_kind(session: Session, plan: str, kind: Kind) -> list[Event]:
    """All events of one kind, oldest first."""
    found = session.exec(
        select(EventRow).where(EventRow.plan == plan, EventRow.kind == kind.value).order_by(col(EventRow.id))
    )
    return [as_event(row) for row in found]


def newest(session: Session, plan: str, kind: Kind) -> Event | None:
    """The last event of one kind, or None."""
    row = session.exec(
        select(EventRow)
        .where(EventRow.plan == plan, EventRow.kind == kind.value)
        .order_by(col(EventRow.id).desc())
        .limit(1)
    ).first()
    return None if row is None else as_event(row)


def newest_of(session: Session, plan: str, kinds: Iterable[Kind], count: int) -> Sequence[EventRow]:
    """The last events of any of these kinds, newest first; each kind by itself from the index."""
    ids = union_all(*(select(_last_ids(plan, kind, count).c.id) for kind in kinds))
    query = select(EventRow).where(col(EventRow.id).in_(ids)).order_by(col(EventRow.id).desc())
    return session.exec(query.limit(count)).all()


def _last_ids(plan: str, kind: Kind, count: int) -> Subquery:
    # Asked for as a range: for one value PostgreSQL leaves the kind out of the order, and walks back through
    # the events of all runs where it takes that kind for common.
    one = col(EventRow.kind).between(kind.value, kind.value)
    query = select(EventRow.id).where(EventRow.plan == plan, one)
    return query.order_by(col(EventRow.kind).desc(), col(EventRow.id).desc()).limit(count).subquery()


def as_event(row: EventRow) -> Event:
    """A row as clients see it."""
    return Event(id=row.id or 0, at=format_time(row.at), plan=row.plan, kind=row.kind, data=row.data)
