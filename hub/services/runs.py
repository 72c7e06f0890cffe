"""Runs as their owner, their participants and their watchers see them. One plan has exactly one run.

``start``, ``cancel`` and ``resume`` only write what shall be; the supervisor makes it so and starts Flower
runs, which are attempts at the run. Every stop says why and what to do next, in ``reason``. The
coordinator's side is ``services.rounds``."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, cast

from sqlalchemy import BindParameter, Select, Text, bindparam, event, func
from sqlalchemy import cast as as_type
from sqlalchemy import select as rows_of
from sqlmodel import Session, SQLModel, col, select

from federation import wire
from federation.wire import RunState, WeightsLocation
from hub.access import Actor, Thing, decide, may
from hub.context import Hub
from hub.errors import conflict, not_found
from hub.glances import Glance, ask, session_of
from hub.services import events, faults, plans, uploads
from hub.services.events import Kind
from hub.services.lookup import LOG_ROWS
from hub.tables import (
    AttemptRow,
    BlobRow,
    PlanRow,
    RoundRow,
    RunRow,
    StatementRow,
    StatementSubjectRow,
    UploadRow,
)
from storage.encoding import format_time, is_digest
from storage.errors import Refused, Unchecked
from storage.evidence import Entry, Evidence
from storage.training_record import valid_consent

_TABLES = SQLModel.metadata.tables

# --- steering -------------------------------------------------------------------------------------------


def start(hub: Hub, session: Session, actor: Actor, request: wire.RunStart) -> wire.Run:
    """Start the one run of a plan; a repeat answers with the run that is there.

    Raises:
        Refused: ``E_CONSENT`` (too few, says who is missing), ``E_PLAN`` (over), ``E_SITE`` (no agent).
        Unchecked: ``E_CONTROL``, this hub runs no SuperLink.
    """
    row, entry, _plan = plans.load(hub, session, request.plan)
    _check_steers(actor, row)
    run = session.get(RunRow, request.plan, with_for_update=True)
    if run is not None:
        return describe(hub, session, run)
    count = _check_possible(hub, session, entry)
    now = hub.ledger.now()
    run = RunRow(plan=row.id, state="starting", started_at=now)
    session.add(run)
    session.flush()
    data = {"participants": count, "rounds": entry.says["rounds"], "by": actor.name}
    events.append(session, row.id, Kind.RUN_STARTED, data, at=now)
    _call_supervisor(hub, session)
    return describe(hub, session, run)


def resume(hub: Hub, session: Session, actor: Actor, plan_id: str) -> wire.Run:
    """Go on with a stopped run from its last aggregate.

    Raises:
        Refused: ``E_RUN`` (finished or cancelled), and those of ``start``.
    """
    row, entry, _plan = plans.load(hub, session, plan_id)
    _check_steers(actor, row)
    run = _locked(session, plan_id)
    if run.active:
        return describe(hub, session, run)
    if run.state != "stopped":
        raise conflict(
            "E_RUN", f"run {plan_id}: is {run.state} and cannot go on", "Submit a new plan to train again."
        )
    count = _check_possible(hub, session, entry)
    run.state, run.reason, run.ended_at = "starting", None, None
    run.failures, run.next_attempt_at = 0, 0
    session.add(run)
    data = {"participants": count, "rounds": entry.says["rounds"], "by": actor.name, "resumed": 1}
    events.append(session, plan_id, Kind.RUN_STARTED, data, at=hub.ledger.now())
    _call_supervisor(hub, session)
    return describe(hub, session, run)


def _call_supervisor(hub: Hub, session: Session) -> None:
    """Have it look as soon as this transaction stands; of another process, it looks in its own time."""
    event.listen(session, "after_commit", lambda _session: hub.bell.ring(), once=True)


def cancel(hub: Hub, session: Session, actor: Actor, plan_id: str) -> wire.Run:
    """End a run for good; its rounds and its last aggregate stay.

    Raises:
        Refused: ``E_RUN``, it is finished.
    """
    row, _entry, _plan = plans.load(hub, session, plan_id)
    _check_steers(actor, row)
    run = _locked(session, plan_id)
    if run.state == "finished":
        raise conflict("E_RUN", f"run {plan_id}: is finished", "Its last aggregate can be made a version.")
    if run.state != "cancelled":
        close(
            hub, session, run, "cancelled", f"cancelled by {actor.name}. To train again, submit a new plan."
        )
    return describe(hub, session, run)


def _check_steers(actor: Actor, row: PlanRow) -> None:
    thing = Thing(f"run {row.id}", row.issuer, frozenset(row.participants))
    decide(actor, "read run", thing)
    decide(actor, "steer run", thing)


def _check_possible(hub: Hub, session: Session, entry: Entry) -> int:
    """How many participants take part; refuses a run that could not begin."""
    if hub.settings.superlink == "off":
        raise Unchecked("E_CONTROL", "this hub runs no SuperLink", "The operator sets FEDHUB_SUPERLINK.")
    with hub.ledger.evidence(session) as evidence:
        said = plans.check_startable(session, entry, evidence, now=hub.ledger.now())
    agreed = [one for one in said if one.consent is not None]
    sites = plans.online_sites(session, [one.institution for one in agreed])
    without = sorted({one.institution for one in agreed} - set(sites))
    if len(agreed) - len(without) < entry.says["minParticipants"]:
        raise Refused(
            "E_SITE",
            f"plan {entry.id}: no lab agent is registered for {', '.join(without)}",
            "Each of them starts one with: fedhub site up",
            status=409,
        )
    return len(agreed)


def _locked(session: Session, plan_id: str) -> RunRow:
    run = session.get(RunRow, plan_id, with_for_update=True) if is_digest(plan_id) else None
    if run is None:
        raise not_found("run", plan_id, "Start it with: fedhub run start")
    return run


def close(hub: Hub, session: Session, run: RunRow, state: RunState, reason: str | None) -> None:
    """End a run in the caller's transaction, which holds its row."""
    now = hub.ledger.now()
    run.state, run.reason, run.ended_at = state, reason, now
    session.add(run)
    attempt = session.get(AttemptRow, (run.plan, run.attempt))
    if attempt is not None and attempt.state != "ended":
        attempt.state = "leaving"
        session.add(attempt)
    data = {"state": state, "reason": None if reason is None else reason[: events.MAX_TEXT]}
    events.append(session, run.plan, Kind.RUN_ENDED, data, at=now)
    _call_supervisor(hub, session)


# --- reading --------------------------------------------------------------------------------------------


def show(
    hub: Hub,
    session: Session,
    actor: Actor,
    plan_id: str,
    *,
    newest: int | None = None,
    before: int | None = None,
) -> wire.Run:
    """The run of a plan, with its rounds and what each site measured; see ``describe``."""
    return describe(hub, session, readable(session, actor, plan_id), newest=newest, before=before)


def readable(session: Session, actor: Actor, plan_id: str) -> RunRow:
    """The run's row, if the actor may read it."""
    run = session.get(RunRow, plan_id) if is_digest(plan_id) else None
    plan = session.get(PlanRow, plan_id) if run is not None else None
    if run is None or plan is None:
        raise not_found("run", plan_id)
    decide(actor, "read run", _thing(plan))
    return run


def _thing(plan: PlanRow) -> Thing:
    return Thing(f"run {plan.id}", plan.issuer, frozenset(plan.participants))


def page(
    hub: Hub, session: Session, actor: Actor, *, cursor: str | None = None, newest: int | None = None
) -> tuple[list[wire.Run], str | None]:
    """The runs that concern the actor, newest first, with the cursor of the next page; see ``describe``."""
    decide(actor, "list assets", Thing("runs"))
    query = select(RunRow, PlanRow).join(PlanRow).order_by(col(RunRow.started_at).desc(), col(RunRow.plan))
    size = hub.settings.page_size
    found: list[RunRow] = []
    passed = cursor is None
    for run, plan in session.exec(query):
        if not may(actor, "read run", _thing(plan)):
            continue
        if passed and len(found) == size:
            return [describe(hub, session, each, newest=newest) for each in found], found[-1].plan
        if passed:
            found.append(run)
        passed = passed or run.plan == cursor
    return [describe(hub, session, each, newest=newest) for each in found], None


def describe(
    hub: Hub, session: Session, run: RunRow, *, newest: int | None = None, before: int | None = None
) -> wire.Run:
    """A run as clients and pages see it.

    Args:
        newest: at most so many rounds, the last ones, and no more than a page of a list; None: a page. The
            others are not read.
        before: only rounds before this one.
    """
    session.flush()
    query = select(RoundRow).where(RoundRow.plan == run.plan).order_by(col(RoundRow.round).desc())
    earlier = query if before is None else query.where(RoundRow.round < before)
    most = hub.settings.page_size
    most = most if newest is None else min(newest, most)
    rounds = [_round(row) for row in session.exec(earlier.limit(most))][::-1]
    last = session.exec(select(func.max(RoundRow.round)).where(RoundRow.plan == run.plan)).one() or 0
    with hub.ledger.evidence(session) as evidence:
        plan = evidence.get(run.plan)
        refusals = [
            wire.SiteRefusal(
                institution=entry.institution,
                round=entry.says["round"],
                code=entry.says["code"],
                statement=entry.id,
            )
            for entry in evidence.find("refusal", plan=run.plan)
        ]
    return wire.Run(
        plan=run.plan,
        state=cast(RunState, run.state),
        reason=run.reason,
        attempt=run.attempt,
        rounds_planned=plan.says["rounds"] if plan is not None else last,
        rounds_closed=last,
        rounds=rounds,
        refusals=refusals,
        started_at=format_time(run.started_at),
        ended_at=None if run.ended_at is None else format_time(run.ended_at),
        deadline=deadline(session, run, last + 1),
        error=faults.error(session, run),
        faults=faults.of_sites(session, run.plan, refusals),
    )


def _round(row: RoundRow) -> wire.Round:
    return wire.Round(
        round=row.round,
        statement=row.statement,
        aggregate=row.aggregate,
        size=row.size,
        seconds=row.seconds,
        receipts=row.receipts,
        sites=row.sites,
        metrics=row.metrics,
    )


def deadline(session: Session, run: RunRow, number: int) -> str | None:
    """Until when the round in flight stays open, or None when none is."""
    opened = events.newest(session, run.plan, Kind.ROUND_OPENED) if run.state == "running" else None
    if opened is None or opened.data["round"] != number or opened.data["attempt"] != run.attempt:
        return None
    return str(opened.data["deadline"])


def participation(session: Session) -> dict[str, int]:
    """How many closed rounds each institution took part in: what it contributed."""
    counts: dict[str, int] = defaultdict(int)
    for sites in session.exec(select(RoundRow.sites)):
        for institution in sites:
            counts[institution] += 1
    return dict(counts)


# --- weights --------------------------------------------------------------------------------------------


def _weights_of_run() -> Select[Any]:
    """All that decides where weights of a run lie, but what the log says; each site asks in each round."""
    plan, run, round_, blob = (_TABLES[name] for name in ("plan", "run", "round", "blob"))
    wanted: BindParameter[str] = bindparam("sha256")
    closed = rows_of(round_.c.plan).where(round_.c.plan == plan.c.id, round_.c.aggregate == wanted)
    parts = as_type(blob.c.parts, Text).label("parts")  # as text, whatever a driver makes of JSON
    return (
        rows_of(plan.c.issuer, plan.c.weights, LOG_ROWS.label("log_rows"))
        .add_columns(closed.limit(1).scalar_subquery().label("aggregate_of"))
        .add_columns(blob.c.size, blob.c.key, parts)
        .join_from(plan, run, run.c.plan == plan.c.id)
        .outerjoin(blob, blob.c.sha256 == wanted)
        .where(plan.c.id == bindparam("plan"))
    )


_WEIGHTS = _weights_of_run()


def weights(hub: Hub, source: Session | Glance, actor: Actor, plan_id: str, sha256: str) -> WeightsLocation:
    """Where a run's weights can be read now: the base weights and every aggregate; for owner, auditors and
    operator also updates of closed rounds, where the plan keeps them.

    A participant reads them while its consent stands, so that who took it back gets nothing further.

    Raises:
        Unchecked: ``E_NOT_FOUND``, also for those who may not read them.
    """
    rows = ask(source, _WEIGHTS, {"plan": plan_id, "sha256": sha256}) if is_digest(plan_id) else ()
    if not rows:
        raise not_found("run", plan_id)
    row = rows[0]
    parties = _consenting(hub, source, plan_id, actor, log_rows=row.log_rows)
    thing = Thing(f"weights {sha256}", row.issuer, parties)
    audits = (
        may(actor, "audit updates", Thing(thing.name, row.issuer))
        and plans.load(hub, session_of(source), plan_id)[2].config.keep_updates
    )
    if not audits:
        decide(actor, "read weights", thing)
    shared = sha256 == row.weights or row.aggregate_of is not None
    if not shared and not (audits and _counts(session_of(source), plan_id, sha256)):
        raise not_found("weights", sha256, f"They are no base weights or aggregate of run {plan_id}.")
    if row.key is None:
        raise not_found("weights", sha256)
    return _location(hub, actor, sha256, row.size, row.key, json.loads(row.parts or "null"))


def updates(hub: Hub, actor: Actor, plan_id: str, digests: Sequence[str]) -> wire.Updates:
    """Where updates of a run's sites can be read now, each with the receipts that are logged about it.

    What is not in the store is left out. A larger update need not wait for the hub's own reading: the
    coordinator checks what it reads.
    """
    decide(actor, "coordinate", Thing(f"run {plan_id}"))
    uploads.settle_sent(hub, plan_id, digests)
    with hub.database.session_scope(write=False) as session:
        query = select(UploadRow).where(UploadRow.plan == plan_id, col(UploadRow.sha256).in_(digests))
        sent = session.exec(query.where(col(UploadRow.state).in_(("checking", "stored")))).all()
        stored = [row.sha256 for row in sent if row.state == "stored"]
        files: dict[str, BlobRow | UploadRow] = {row.sha256: row for row in sent}
        files |= {
            row.sha256: row for row in session.exec(select(BlobRow).where(col(BlobRow.sha256).in_(stored)))
        }
        receipts = _receipts(session, plan_id, files)
        found = [
            _location(hub, actor, sha256, file.size, file.key, file.parts).model_copy(
                update={"receipts": receipts[sha256], "file": _file_of(hub, file)}
            )
            for sha256, file in files.items()
        ]
    return wire.Updates(updates=found)


def _file_of(hub: Hub, file: BlobRow | UploadRow) -> str | None:
    """Where a checked file lies, if the store is a folder; what nobody has hashed yet is to be fetched."""
    return str(hub.folder.path(file.key)) if hub.folder and isinstance(file, BlobRow) else None


def _receipts(session: Session, plan_id: str, digests: Iterable[str]) -> dict[str, list[str]]:
    """Ids of the logged receipts of a plan's sites, by the bytes that they are about."""
    query = (
        select(StatementSubjectRow.digest, StatementRow.id)
        .join(StatementSubjectRow, col(StatementSubjectRow.statement) == StatementRow.id)
        .where(
            col(StatementSubjectRow.digest).in_(list(digests)),
            StatementRow.kind == "receipt",
            StatementRow.plan == plan_id,
        )
    )
    found: dict[str, list[str]] = defaultdict(list)
    for digest, receipt in session.exec(query):
        found[digest].append(receipt)
    return found


def _counts(session: Session, plan_id: str, sha256: str) -> bool:
    """Whether a closed round counts an update with these bytes."""
    receipts = set(_receipts(session, plan_id, [sha256])[sha256])
    rounds = session.exec(select(RoundRow.receipts).where(RoundRow.plan == plan_id)) if receipts else ()
    return any(receipts & set(listed) for listed in rounds)


def _consenting(
    hub: Hub, source: Session | Glance, plan_id: str, actor: Actor, *, log_rows: int
) -> frozenset[str]:
    """The actor's institution, if it takes part and its consent stands: nobody else is asked about."""
    institution = actor.institution
    if institution is None:
        return frozenset()
    with hub.ledger.evidence(source, rows=log_rows) as evidence:
        plan = evidence.get(plan_id)
        if plan is not None and _consents(evidence, plan, institution, hub.ledger.now()):
            return frozenset({institution})
    return frozenset()


def _consents(evidence: Evidence, plan: Entry, institution: str, now: int) -> bool:
    return any(
        valid_consent(evidence, plan, institution, one["dataset"], now=now, action=action) is not None
        for one in plan.says["participants"]
        if one["institution"] == institution
        for action in ("train", "evaluate")
    )


def locate(hub: Hub, session: Session, sha256: str, actor: Actor) -> WeightsLocation:
    """The signed address of a checked blob, at the store's address for this actor."""
    blob = session.get(BlobRow, sha256)
    if blob is None:
        raise not_found("weights", sha256)
    return _location(hub, actor, sha256, blob.size, blob.key, blob.parts)


def _location(
    hub: Hub, actor: Actor, sha256: str, size: int, key: str, parts: list[str] | None
) -> WeightsLocation:
    store = hub.coordinator_store if actor.by == "coordinator" else hub.store
    url = store.signed_url(key, expires_s=hub.settings.weights_url_s)
    return WeightsLocation(sha256=sha256, size=size, url=url, parts=parts)
