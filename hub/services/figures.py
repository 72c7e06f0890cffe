"""What sites tell of their rows beside receipts: joined into one scaling, and laid side by side in a report.

The hub decides nothing here: it adds up what signed receipts name, and whoever holds the same figures gets
the same bytes. Read ``join_statistics``, ``statistics``, ``report``.
"""

from collections.abc import Iterator, Sequence

from sqlmodel import Session

from federation import wire
from federation.benefit import is_told, nothing_told, site_benefit
from federation.figures import FIGURES_FILE, read_columns, read_report
from federation.harmonising import STATISTICS_FILE, Harmonise, Statistics, join, read_statistics
from federation.plan import TrainingPlan
from hub.access import Actor, Thing, may
from hub.context import Hub
from hub.errors import bad_field, conflict, not_found
from hub.services import events, plans, rounds, runs
from hub.services.events import Kind
from hub.tables import AttachmentRow, PlanRow, RunRow
from storage.encoding import sha256_hex
from storage.errors import Rejected
from storage.evidence import Entry

# --- joint statistics ---------------------------------------------------------------------------------------


def join_statistics(
    hub: Hub, session: Session, actor: Actor, plan_id: str, told: wire.StatisticsReport
) -> wire.JointStatistics:
    """Join the figures of these receipts; once per run, a repeat answers with what there is.

    Raises:
        Refused: ``E_ATTEMPT``, ``E_STATISTICS`` (the plan asks for none, too few sites), ``E_FIELD``.
        Rejected: ``E_FIGURES``: what a site told is not what the plan asks for.
    """
    _row, _entry, plan = plans.load(hub, session, plan_id)
    run = rounds.current(hub, session, actor, plan_id, told.attempt)
    if run.statistics is not None:
        return joint(session, run.statistics)
    if plan.config.harmonise is None:
        raise conflict("E_STATISTICS", f"plan {plan_id} asks for no joint statistics")
    made = _join(hub, session, plan, plan.config.harmonise, told.receipts)
    digest = sha256_hex(made.raw)
    if session.get(AttachmentRow, digest) is None:
        session.add(AttachmentRow(sha256=digest, name=STATISTICS_FILE, data=made.raw))
    run.statistics = digest
    session.add(run)
    kept = [column.name for column in made.columns if column.kept]
    data: dict[str, events.Value] = {
        "statistics": digest,
        "sites": len(made.receipts),
        "columns": len(made.columns) - len(kept),
        "kept": ", ".join(kept)[: events.MAX_TEXT],
    }
    events.append(session, plan_id, Kind.HARMONISED, data, at=hub.ledger.now())
    session.flush()
    return joint(session, digest)


def _join(
    hub: Hub, session: Session, plan: TrainingPlan, asked: Harmonise, receipts: Sequence[str]
) -> Statistics:
    found = {entry.subject: entry for entry in _receipts(hub, session, plan.id, "statistics")}
    ordered = [found[site.dataset] for site in plan.sites if site.dataset in found]
    chosen = [entry for entry in ordered if entry.id in set(receipts)]
    if [entry.id for entry in chosen] != list(receipts):
        raise bad_field("receipts", "must be logged receipts of this plan's statistics, in the plan's order")
    if len(chosen) < plan.min_participants:
        raise conflict(
            "E_STATISTICS",
            f"plan {plan.id}: {len(chosen)} sites told statistics, it needs {plan.min_participants}",
        )
    parts = []
    for entry in chosen:
        figures = read_columns(_figures(session, entry))
        if figures.dataset != entry.subject:
            raise Rejected("E_FIGURES", f"{entry}: its figures are about dataset {figures.dataset}")
        parts.append((entry.id, figures))
    return join(plan.id, asked, plan.config.smallest_cohort, parts)


def _receipts(hub: Hub, session: Session, plan_id: str, action: str) -> Iterator[Entry]:
    """The logged receipts of a plan's sites for one action, with figures."""
    with hub.ledger.evidence(session) as evidence:
        for entry in evidence.find("receipt", plan=plan_id):
            if entry.says["action"] == action and len(entry.statement.subjects) > 1:
                yield entry


def _figures(session: Session, entry: Entry) -> bytes:
    row = session.get(AttachmentRow, entry.statement.subjects[1].digest)
    if row is None or row.name != FIGURES_FILE:
        raise Rejected("E_FIGURES", f"{entry}: its figures did not come with it", "the site sends them again")
    return row.data


def joint(session: Session, digest: str) -> wire.JointStatistics:
    """The joint statistics with this digest, for who may read the run."""
    raw = session.get_one(AttachmentRow, digest).data
    return wire.JointStatistics(sha256=digest, document=raw.decode())


def statistics(hub: Hub, session: Session, actor: Actor, plan_id: str) -> wire.JointStatistics:
    """The joint statistics of a run; for owner, auditors and operator with what each site told.

    Raises:
        Unchecked: ``E_NOT_FOUND``.
    """
    run = runs.readable(session, actor, plan_id)
    if run.statistics is None:
        raise not_found("statistics of run", plan_id)
    found = joint(session, run.statistics)
    issuer = session.get_one(PlanRow, plan_id).issuer
    if not may(actor, "audit updates", Thing(f"figures of {plan_id}", issuer)):
        return found
    named = set(read_statistics(found.document.encode()).receipts)
    told = [
        wire.SiteFigures(
            institution=entry.institution,
            dataset=entry.subject,
            receipt=entry.id,
            figures=_figures(session, entry).decode(),
        )
        for entry in _receipts(hub, session, plan_id, "statistics")
        if entry.id in named
    ]
    return found.model_copy(update={"figures": told})


# --- the report ---------------------------------------------------------------------------------------------


def report(hub: Hub, session: Session, actor: Actor, plan_id: str) -> wire.BenefitReport:
    """What a run brought each of its sites, as their receipts say.

    Raises:
        Unchecked: ``E_NOT_FOUND``: no such run, or its plan promises no report, or no round is closed.
    """
    run = runs.readable(session, actor, plan_id)
    found = read(hub, session, run)
    if found is None:
        raise not_found(
            "report of run", plan_id, "It is made after the last round, for plans that were drafted with one."
        )
    return found


def read(hub: Hub, session: Session, run: RunRow) -> wire.BenefitReport | None:
    """The report of a run as far as it is told; None before its last round, or when the plan has none."""
    _row, _entry, plan = plans.load(hub, session, run.plan)
    last = rounds.last_round(session, run.plan)
    if not plan.config.report or last is None or last.round < plan.rounds:
        return None
    told = {}
    for entry in _receipts(hub, session, run.plan, "evaluate"):
        try:
            raw = _figures(session, entry)
            figures = read_report(raw)
            same = (figures.input, figures.statistics) == (last.aggregate, run.statistics)
            if same and is_told(entry.statement, plan.id, plan.rounds, entry.subject, figures):
                told[entry.subject] = site_benefit(entry.institution, entry.subject, entry.id, raw)
        except Rejected:  # a site that tells nonsense has told nothing
            continue
    return wire.BenefitReport(
        plan=run.plan,
        round=last.round,
        aggregate=last.aggregate,
        smallest_cohort=plan.config.smallest_cohort,
        statistics=run.statistics,
        sites=[told.get(site.dataset) or nothing_told(site.institution, site.dataset) for site in plan.sites],
    )
