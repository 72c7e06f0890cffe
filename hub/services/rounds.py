"""The coordinator's side of a run: its work, the hub's signed orders, and closed rounds.

The coordinator decides nothing that an auditor leans on. The hub signs the orders; it checks every receipt
of a reported round against the log, and only then signs the round statement, in the same transaction as the
round's row. So a round counts exactly once, whatever dies when: a repeated report gets the first answer,
and a report of an attempt that was given up is refused. The next attempt begins after the last round in the
log.

Read ``work``, ``orders``, ``report``, ``end``.
"""

import math
from collections.abc import Mapping, Sequence

from sqlmodel import Session, col, select

from federation import wire
from federation.plan import TrainingPlan
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.errors import bad_field, conflict, not_found
from hub.services import events, plans, run_updates, runs, statements, uploads, uploads_waiting
from hub.services.events import Kind
from hub.services.plans import Answer
from hub.tables import AttemptRow, PlanRow, RoundRow, RunRow, SiteRow, StatementRow, UploadRow
from storage.encoding import b64, format_time, is_digest, parse_time
from storage.evidence import Entry
from storage.kinds import STATISTICS
from storage.training_record import NEEDED_ACTION

DEADLINE_SLACK_S = 60
MAX_METRICS = 64
REASON_LIMIT = 2000


# --- work -----------------------------------------------------------------------------------------------


def work(hub: Hub, session: Session, actor: Actor, plan_id: str) -> wire.Work:
    """All that the newest attempt needs to start, or to go on after the last closed round."""
    _check_coordinator(actor, plan_id)
    row, entry, plan = plans.load(hub, session, plan_id)
    run = _active(session, plan_id)
    _check_stays(session, run)
    if run.state == "starting":
        run.state = "running"
        session.add(run)
    _heard(hub, session, run)
    last = last_round(session, plan_id)
    said = _agreed(hub, session, entry, "train")
    return wire.Work(
        plan=plan_id,
        attempt=run.attempt,
        next_round=1 if last is None else last.round + 1,
        rounds=plan.rounds,
        min_participants=plan.min_participants,
        config=b64(plan.config.raw),
        input=runs.locate(hub, session, row.weights if last is None else last.aggregate, actor),
        sites=_sites(session, said),
        state={
            slot: runs.locate(hub, session, file["sha256"], actor)
            for slot, file in ((last.state if last is not None else None) or {}).items()
        },
        statistics=run.statistics,
    )


def last_round(session: Session, plan_id: str) -> RoundRow | None:
    """The last closed round, or None."""
    query = select(RoundRow).where(RoundRow.plan == plan_id).order_by(col(RoundRow.round).desc())
    return session.exec(query.limit(1)).first()


def _agreed(hub: Hub, session: Session, entry: Entry, action: str) -> list[Answer]:
    with hub.ledger.evidence(session) as evidence:
        said = plans.answers(session, entry, evidence, now=hub.ledger.now(), action=NEEDED_ACTION[action])
    return [one for one in said if one.consent is not None]


def _sites(session: Session, said: Sequence[Answer]) -> list[wire.WorkSite]:
    """The node of each participant that has one: a connected one before others, the one seen last first."""
    nodes: dict[str, SiteRow] = {}
    query = select(SiteRow).where(col(SiteRow.institution).in_([one.institution for one in said]))
    for site in session.exec(query):
        known = nodes.get(site.institution)
        if site.node_id is not None and (known is None or _recency(site) > _recency(known)):
            nodes[site.institution] = site
    return [
        wire.WorkSite(
            institution=one.institution,
            dataset=one.dataset,
            node_id=nodes[one.institution].node_id or "",
        )
        for one in said
        if one.institution in nodes
    ]


def _recency(site: SiteRow) -> tuple[bool, int, int]:
    return site.online, site.last_seen or 0, site.created_at


# --- who may report -------------------------------------------------------------------------------------


def _check_coordinator(actor: Actor, plan_id: str) -> None:
    decide(actor, "coordinate", Thing(f"run {plan_id}"))


def _locked(session: Session, plan_id: str) -> RunRow:
    run = session.get(RunRow, plan_id, with_for_update=True) if is_digest(plan_id) else None
    if run is None:
        raise not_found("run", plan_id)
    return run


def _active(session: Session, plan_id: str) -> RunRow:
    run = _locked(session, plan_id)
    if not run.active:
        raise conflict("E_RUN", f"run {plan_id}: is {run.state}", "This attempt is over.")
    return run


def _current(session: Session, plan_id: str, attempt: int) -> RunRow:
    """The active run, locked, if ``attempt`` is its newest and not on its way out."""
    run = _active(session, plan_id)
    _check_attempt(run, attempt)
    _check_stays(session, run)
    return run


def current(hub: Hub, session: Session, actor: Actor, plan_id: str, attempt: int) -> RunRow:
    """The active run, locked, for its coordinator, which lives.

    Raises:
        Refused: ``E_ACCESS``, ``E_RUN``, ``E_ATTEMPT``.
    """
    _check_coordinator(actor, plan_id)
    run = _current(session, plan_id, attempt)
    _heard(hub, session, run)
    return run


def _check_stays(session: Session, run: RunRow) -> None:
    attempt = session.get(AttemptRow, (run.plan, run.attempt))
    if attempt is not None and attempt.state in ("leaving", "ended"):
        raise conflict(
            "E_ATTEMPT",
            f"run {run.plan}: attempt {run.attempt} is over, the next one begins soon",
            "This coordinator must end.",
        )


def _check_attempt(run: RunRow, attempt: int) -> None:
    if attempt != run.attempt:
        raise conflict(
            "E_ATTEMPT",
            f"run {run.plan}: attempt {attempt} was given up, attempt {run.attempt} goes on",
            "This coordinator must end.",
        )


def _heard(hub: Hub, session: Session, run: RunRow) -> AttemptRow | None:
    attempt = session.get(AttemptRow, (run.plan, run.attempt))
    if attempt is not None:
        attempt.heard_at = hub.ledger.now()
        if attempt.state == "starting":
            attempt.state = "running"
        session.add(attempt)
    return attempt


# --- orders ---------------------------------------------------------------------------------------------


def orders(
    hub: Hub, session: Session, actor: Actor, plan_id: str, request: wire.OrdersRequest
) -> wire.Orders:
    """The hub's signed order to each consenting site, for one round; opens the round.

    A site whose consent does not reach this round gets none.

    Raises:
        Refused: ``E_ATTEMPT``, ``E_ROUND`` (not the next round, or another input), ``E_PLAN`` (over).
    """
    _check_coordinator(actor, plan_id)
    row, entry, plan = plans.load(hub, session, plan_id)
    run = _current(session, plan_id, request.attempt)
    _heard(hub, session, run)
    now = hub.ledger.now()
    if now >= plan.expires:
        raise conflict("E_PLAN", f"plan {plan_id}: expired {format_time(plan.expires)}")
    _check_order(session, row, plan, request)
    _check_deadline(plan, request.deadline, now)
    scaled_by = _scaled_by(run, plan, request.action)
    signed = {}
    for one in _agreed(hub, session, entry, request.action):
        assert one.consent is not None
        if request.round > one.consent.says["conditions"].get("maxRounds", plan.rounds):
            continue
        members = {
            "plan": plan_id,
            "site": one.dataset,
            "action": request.action,
            "round": request.round,
            "input": request.input,
            "deadline": request.deadline,
        }
        subject = [(plan.config.weights.rpartition("/")[2], request.input)]
        if request.action != "statistics":
            subject += scaled_by
        signed[one.dataset] = hub.operator.sign("order", subject, members, now=now).decode()
    data = {
        "round": request.round,
        "attempt": run.attempt,
        "action": request.action,
        "sites": len(signed),
        "deadline": request.deadline,
    }
    if request.action == "train":
        events.append(session, plan_id, Kind.ROUND_OPENED, data, at=now)
    return wire.Orders(orders=signed)


def _scaled_by(run: RunRow, plan: TrainingPlan, action: str) -> list[tuple[str, str]]:
    """The joint statistics as a further subject, where the plan has them: they come before the rounds."""
    asked = plan.config.harmonise is not None
    if (not asked and action == "statistics") or (asked and action != "statistics" and not run.statistics):
        raise conflict(
            "E_STATISTICS",
            f"run {run.plan}: joint statistics are {'not made yet' if asked else 'none of its plan'}",
            "Ask for the work again.",
        )
    return [] if run.statistics is None else [(STATISTICS, run.statistics)]


def _check_order(session: Session, row: PlanRow, plan: TrainingPlan, request: wire.OrdersRequest) -> None:
    last = last_round(session, row.id)
    number, source = (1, row.weights) if last is None else (last.round + 1, last.aggregate)
    if request.action == "train":
        if (request.round, request.input) != (number, source) or number > plan.rounds:
            raise conflict(
                "E_ROUND",
                f"run {row.id}: round {request.round} from {request.input} was asked for,"
                f" the next is round {number} of {plan.rounds} from {source}",
                "Ask for the work again.",
            )
        return
    known = session.exec(
        select(RoundRow.round).where(RoundRow.plan == row.id, RoundRow.aggregate == request.input)
    ).first()
    if request.round > plan.rounds or (request.input != row.weights and known is None):
        raise conflict("E_ROUND", f"run {row.id}: {request.input} are no weights of this run")


def _check_deadline(plan: TrainingPlan, text: str, now: int) -> None:
    deadline = parse_time(text, "E_FIELD")
    latest = now + plan.config.round_deadline_s + DEADLINE_SLACK_S
    if not now < deadline <= latest:
        raise bad_field(
            "deadline", f"must lie after now and by {format_time(latest)}, as the plan says; found {text}"
        )


# --- closing a round ------------------------------------------------------------------------------------


def report(hub: Hub, actor: Actor, plan_id: str, told: wire.RoundReport) -> wire.StatementRecord:
    """Close a round: check its receipts, sign and log the round statement; a repeat gets the first answer.

    Raises:
        Refused: ``E_ATTEMPT``, ``E_ROUND``, ``E_AGGREGATE`` (it, or the server optimiser's state, was not
            uploaded or is not what was announced).
        Rejected: a receipt does not stand (``E_PARTICIPANTS`` and the other errors of V14).
    """
    _check_coordinator(actor, plan_id)
    _check_figures(told)
    made = wire.StoredFile(sha256=told.aggregate, size=told.size)
    _check_stored(hub, plan_id, "aggregate", made)
    for slot, file in told.state.items():
        _check_stored(hub, plan_id, f"state {slot!r}", file)
    with hub.database.session_scope() as session:
        row, _entry, plan = plans.load(hub, session, plan_id)
        run = _current(session, plan_id, told.attempt)
        _heard(hub, session, run)
        known = session.get(RoundRow, (plan_id, told.round))
        if known is not None:
            return _same(session, known, told)
        before = last_round(session, plan_id)
        statement = _sign(hub, session, row, plan, told, _scaled_by(run, plan, "train"))
        closed = _close(hub, session, run, told, statement)
        spent = _states(before) - _states(closed)
        if not plan.config.keep_updates:
            spent |= _updates(hub, session, closed)
        record = statements.record_of(statement)
    if spent:
        run_updates.drop(hub, plan_id, spent)
    return record


def _states(closed: RoundRow | None) -> set[str]:
    """Digests of what a server optimiser remembers after a round."""
    return {file["sha256"] for file in ((closed.state if closed is not None else None) or {}).values()}


def _check_figures(told: wire.RoundReport) -> None:
    if any(not name.isidentifier() or len(name) > 40 for name in told.state):
        raise bad_field("state", "names of slots are short words")
    figures: list[Mapping[str, events.Value]] = [told.metrics, *told.sites.values()]
    if len(told.sites) > len(told.receipts) or any(len(one) > MAX_METRICS for one in figures):
        raise bad_field("sites", f"one entry for each receipt, of at most {MAX_METRICS} metrics")
    for one in figures:
        for name, value in one.items():
            if len(name) > 100 or (isinstance(value, str) and len(value) > events.MAX_TEXT):
                raise bad_field("metrics", f"{name[:100]!r}: too long")
            if isinstance(value, float) and not math.isfinite(value):
                raise bad_field("metrics", f"{name!r}: must be a finite number")
    if not math.isfinite(told.seconds) or told.seconds < 0:
        raise bad_field("seconds", "must be a finite number, at least 0")


def _check_stored(hub: Hub, plan_id: str, what: str, file: wire.StoredFile) -> None:
    """Make sure that what the coordinator made is a checked blob; a large one is read now, if not before."""
    with hub.database.session_scope(write=False) as session:
        found = session.exec(
            select(UploadRow).where(
                UploadRow.plan == plan_id,
                UploadRow.uploader == uploads.COORDINATOR_NAME,
                UploadRow.sha256 == file.sha256,
            )
        ).all()
    order = ("stored", "checking", "open", "refused")
    upload = min(found, key=lambda row: order.index(row.state), default=None)
    if upload is not None and upload.state == "open" and uploads.came_whole(hub, upload):
        upload = uploads.settle(hub, upload.id, checked_by="store")
    if upload is not None and upload.state == "checking":
        upload = uploads_waiting.check_whole(hub, upload.id)
    if upload is None or upload.state != "stored" or upload.size != file.size:
        state = "not announced" if upload is None else f"{upload.state}, {upload.size} bytes"
        raise conflict(
            "E_AGGREGATE",
            f"{what} {file.sha256} of {file.size} bytes is not in the store: its upload is {state}",
            "Upload it for this plan and complete the upload, then report again.",
        )


def _same(session: Session, known: RoundRow, told: wire.RoundReport) -> wire.StatementRecord:
    if (known.aggregate, known.input, known.receipts) != (told.aggregate, told.input, told.receipts):
        raise conflict(
            "E_ROUND",
            f"round {told.round} is closed with aggregate {known.aggregate}",
            "Ask for the work again.",
        )
    return statements.record_of(session.get_one(StatementRow, known.statement))


def _sign(
    hub: Hub,
    session: Session,
    row: PlanRow,
    plan: TrainingPlan,
    told: wire.RoundReport,
    scaled_by: list[tuple[str, str]],
) -> StatementRow:
    last = last_round(session, row.id)
    number, source = (1, row.weights) if last is None else (last.round + 1, last.aggregate)
    if (told.round, told.input) != (number, source):
        raise conflict(
            "E_ROUND",
            f"run {row.id}: round {told.round} from {told.input} was reported,"
            f" the next is round {number} from {source}",
            "Ask for the work again.",
        )
    members: dict[str, object] = {
        "plan": row.id,
        "round": told.round,
        "input": told.input,
        "receipts": told.receipts,
    }
    if last is not None:
        members["previous"] = last.statement
    subject = [(plan.config.weights.rpartition("/")[2], told.aggregate), *scaled_by]
    bundle = hub.operator.sign("round", subject, members, now=hub.ledger.now())
    statement = statements.admit(session, hub.ledger, bundle)
    with hub.ledger.evidence(session) as evidence:
        entry = evidence.get(statement.id)
    if entry is None or (entry.subject, entry.says["receipts"]) != (told.aggregate, told.receipts):
        # The log holds this round already, and its row was lost: nothing but a restored database does that.
        raise conflict("E_ROUND", f"round {told.round} of run {row.id} is in the log with another aggregate")
    return statement


def _close(
    hub: Hub, session: Session, run: RunRow, told: wire.RoundReport, statement: StatementRow
) -> RoundRow:
    now = hub.ledger.now()
    closed = RoundRow(
        plan=run.plan,
        round=told.round,
        statement=statement.id,
        input=told.input,
        aggregate=told.aggregate,
        size=told.size,
        seconds=told.seconds,
        receipts=told.receipts,
        sites=told.sites,
        metrics=told.metrics,
        closed_at=now,
        state={slot: file.model_dump() for slot, file in told.state.items()} or None,
    )
    session.add(closed)
    run.failures = 0
    session.add(run)
    data: dict[str, events.Value] = {
        "round": told.round,
        "attempt": run.attempt,
        "sites": len(told.receipts),
        "seconds": round(told.seconds, 3),
        "statement": statement.id,
    }
    data |= {f"metric.{name}": value for name, value in sorted(told.metrics.items())[:32]}
    events.append(session, run.plan, Kind.ROUND_CLOSED, data, at=now)
    return closed


def _updates(hub: Hub, session: Session, closed: RoundRow) -> set[str]:
    """Digests of the updates that a round's receipts are about."""
    with hub.ledger.evidence(session) as evidence:
        found = [evidence.get(receipt) for receipt in closed.receipts]
    return {entry.subject for entry in found if entry is not None} - {closed.aggregate}


# --- events and the end ---------------------------------------------------------------------------------


def tell(hub: Hub, session: Session, actor: Actor, plan_id: str, told: Sequence[wire.EventReport]) -> None:
    """Keep what the coordinator saw, in order, or only that it lives (``coordinator.alive``).

    Raises:
        Refused: ``E_ATTEMPT``, ``E_FIELD`` (a kind that a coordinator does not report).
    """
    _check_coordinator(actor, plan_id)
    for number in {one.attempt for one in told}:
        attempt = _heard(hub, session, _current(session, plan_id, number))
        if attempt is not None and any(one.kind == events.ALIVE for one in told):
            attempt.beats = True
    for one in told:
        _check_told(one)
    kept = [(Kind(one.kind), one.data) for one in told if one.kind != events.ALIVE]
    events.append_all(session, plan_id, kept, at=hub.ledger.now())


def _check_told(told: wire.EventReport) -> None:
    if told.kind == events.ALIVE:
        return
    if told.kind not in events.REPORTED:
        kinds = ", ".join(sorted(kind.value for kind in events.REPORTED))
        raise bad_field("kind", f"a coordinator reports {kinds} and {events.ALIVE}; found {told.kind[:40]!r}")
    events.check_data(told.data)


def end(hub: Hub, session: Session, actor: Actor, plan_id: str, told: wire.RunEnd) -> wire.Run:
    """The attempt is over and so is the run: all rounds are closed, or it stops and says why.

    Raises:
        Refused: ``E_ATTEMPT``, ``E_ROUND`` (finished before its last round).
    """
    _check_coordinator(actor, plan_id)
    _row, _entry, plan = plans.load(hub, session, plan_id)
    run = _locked(session, plan_id)
    _check_attempt(run, told.attempt)
    if not run.active:
        return runs.describe(hub, session, run)  # a repeat, or the owner was faster
    _check_stays(session, run)
    _heard(hub, session, run)
    last = last_round(session, plan_id)
    closed = 0 if last is None else last.round
    if told.state == "finished" and closed < plan.rounds:
        raise conflict("E_ROUND", f"run {plan_id}: {closed} of {plan.rounds} rounds are closed")
    reason = None
    if told.state == "stopped":
        kept = f"The aggregate of round {closed} is kept." if closed else "No round was closed."
        why = (told.reason or "the coordinator gave no reason")[:REASON_LIMIT]
        reason = f"{why}\n{kept} Go on with: fedhub run resume {plan_id[:12]}"
    runs.close(hub, session, run, told.state, reason)
    return runs.describe(hub, session, run)
