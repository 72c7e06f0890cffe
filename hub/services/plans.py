"""Training plans: taken in with the two files they name, consented to by grants, declined with a reason.

A consent is a grant with ``conditions.plan``, found in the log; the hub counts consents and cannot make
one. What the hub requires of a plan beyond its signature: recipe and config are the plan's subjects and
agree with it, the base version is here and the issuer's to use, and every participant owns the data set
that is named for it.

Read ``submit``, ``check_startable``, ``read``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from sqlmodel import Session, col, select

from federation import wire
from federation.plan import TrainingPlan, read_plan
from hub.access import Actor, Thing, decide, may, sees_all
from hub.context import Hub
from hub.errors import bad_field, conflict, not_found
from hub.services import apps, statements
from hub.services.pulls import decide_pull
from hub.tables import (
    AttachmentRow,
    DeclineRow,
    InstitutionRow,
    ModelRow,
    PlanRow,
    RunRow,
    SiteRow,
    StatementRow,
    VersionFileRow,
    VersionRow,
)
from storage.admission import check_pull
from storage.encoding import b64, format_time, is_digest, parse_time, unb64
from storage.errors import Refused
from storage.evidence import Entry, Evidence
from storage.keys_in_force import check_not_revoked, revocation_of
from storage.signing import open_envelope
from storage.statements import read_statement
from storage.training_record import consents_to


@dataclass(frozen=True)
class Answer:
    """A participant's word on a plan.

    Attributes:
        consent: the consent that is valid now, or None.
        declined: the reason of a no that no later consent took back, or None.
    """

    institution: str
    dataset: str
    consent: Entry | None
    declined: str | None

    def __str__(self) -> str:
        if self.consent is not None:
            return f"{self.institution} (consents)"
        return (
            f"{self.institution} (declined: {self.declined})"
            if self.declined
            else f"{self.institution} (no answer)"
        )


# --- taking in ------------------------------------------------------------------------------------------


def submit(hub: Hub, session: Session, actor: Actor, post: wire.PlanPost) -> wire.Plan:
    """Log a signed plan with its recipe and config; a repeat answers with the plan that is there.

    Raises:
        Rejected: ``E_PLAN``, ``E_CONFIG``, ``E_RECIPE``, or a rule of the log.
        Refused: ``E_ACCESS``, ``E_LIMIT``, ``E_BASE`` (the base version), ``E_DATASET`` (a participant's),
            ``E_APP_MISSING`` (its app was not uploaded).
    """
    raw = post.bundle.encode()
    statement = read_statement(open_envelope(raw))
    if statement.kind != "plan":
        raise bad_field("bundle", f"expected a plan, found {statement.kind}")
    decide(actor, "submit plan", Thing(f"plan {statement.id}", statement.issuer))
    known = session.get(PlanRow, statement.id)
    if known is not None:
        return _describe(hub, session, known)
    recipe, config = unb64(post.recipe, "E_FIELD"), unb64(post.config, "E_FIELD")
    plan = read_plan(statement, recipe, config)
    files = {"config.json": config}
    _check_participants(hub, session, plan)
    weights = _check_base(hub, session, plan)
    if plan.config.app is None:
        files[statement.subjects[0].name] = recipe
    else:
        apps.check_app(hub, session, plan.issuer, plan.config.app)
    statements.admit(session, hub.ledger, raw, files)
    row = PlanRow(
        id=plan.id,
        issuer=plan.issuer,
        recipe=plan.code,
        config=plan.config.digest,
        base_asset=plan.base,
        weights=weights.sha256,
        participants=sorted({site.institution for site in plan.sites}),
        expires_at=plan.expires,
        created_at=hub.ledger.now(),
    )
    session.add(row)
    session.flush()
    return _describe(hub, session, row)


def _check_participants(hub: Hub, session: Session, plan: TrainingPlan) -> None:
    if len(plan.sites) > hub.settings.plan_participants:
        raise Refused(
            "E_LIMIT",
            f"plan {plan.id}: at most {hub.settings.plan_participants} participants, found {len(plan.sites)}",
            status=413,
            field="participants",
        )
    if plan.expires <= hub.ledger.now():
        raise conflict("E_PLAN", f"plan {plan.id}: expired {format_time(plan.expires)}", "Sign a new plan.")
    with hub.ledger.evidence(session) as evidence:
        for site in plan.sites:
            member = session.get(InstitutionRow, site.institution)
            if member is None or member.state != "approved":
                raise _no_dataset(site.institution, site.dataset, "the institution is no approved member")
            assets = evidence.find("asset", subject=site.dataset)
            if not assets or assets[-1].says["type"] != "dataset":
                raise _no_dataset(site.institution, site.dataset, "no such data set was published")
            if assets[-1].institution != site.institution:
                raise _no_dataset(
                    site.institution, site.dataset, f"the data set is {assets[-1].institution}'s"
                )
            if all(revocation_of(evidence, asset) for asset in assets):
                raise _no_dataset(site.institution, site.dataset, "its owner has withdrawn the data set")


def _no_dataset(institution: str, dataset: str, found: str) -> Refused:
    return Refused(
        "E_DATASET",
        f"participant {institution} with data set {dataset}: {found}",
        "Data sets are listed by: fedhub data list",
        status=422,
        field="participants",
    )


def _check_base(hub: Hub, session: Session, plan: TrainingPlan) -> VersionFileRow:
    version = session.exec(select(VersionRow).where(VersionRow.asset_id == plan.base)).first()
    model = None if version is None else session.get(ModelRow, version.name)
    if version is None or model is None:
        raise Refused(
            "E_BASE",
            f"plan {plan.id}: the base version {plan.base} is not in this hub",
            "Push it first: fedhub model push",
            status=422,
            field="base",
        )
    decide_pull(hub, session, model, version, plan.issuer)
    weights = session.get(VersionFileRow, (plan.base, plan.config.weights))
    if weights is None:
        raise Refused(
            "E_BASE",
            f"plan {plan.id}: {version.name}@{version.version} has no file {plan.config.weights!r},"
            " which config.json names as the weights that travel",
            status=422,
            field="config",
        )
    return weights


# --- consents -------------------------------------------------------------------------------------------


def load(hub: Hub, session: Session, plan_id: str) -> tuple[PlanRow, Entry, TrainingPlan]:
    """A plan's row, its entry in the log, and what statement, recipe and config say together."""
    row = session.get(PlanRow, plan_id) if is_digest(plan_id) else None
    if row is None:
        raise not_found("plan", plan_id)
    with hub.ledger.evidence(session) as evidence:
        entry = _entry(evidence, plan_id)
    config = session.get_one(AttachmentRow, row.config)
    return row, entry, read_plan(entry.statement, _recipe(session, row), config.data)


def _recipe(session: Session, row: PlanRow) -> bytes:
    """A plan's ``recipe.json``; empty when its code is an app, which lies in the store."""
    found = session.get(AttachmentRow, row.recipe)
    return b"" if found is None else found.data


def _entry(evidence: Evidence, plan_id: str) -> Entry:
    entry = evidence.get(plan_id)
    if entry is None:
        raise not_found("plan", plan_id)
    return entry


def answers(
    session: Session, plan: Entry, evidence: Evidence, *, now: int, action: str = "train"
) -> list[Answer]:
    """What each participant says now, in the plan's order."""
    declined = declines(session, plan.id)
    return [
        Answer(institution, dataset, consent, None if consent else declined.get(institution))
        for (institution, dataset), consent in consents_to(evidence, plan, now=now, action=action).items()
    ]


def check_startable(session: Session, plan: Entry, evidence: Evidence, *, now: int) -> list[Answer]:
    """The answers to a plan that may be run now.

    Raises:
        Refused: ``E_PLAN`` (over), ``E_CONSENT`` (too few consents; says who is missing).
        Rejected: ``E_REVOKED``, or the base version is no longer the issuer's to use (V11, V13).
    """
    expires = parse_time(plan.says["expires"])
    if now >= expires:
        raise conflict("E_PLAN", f"plan {plan.id}: expired {plan.says['expires']}", "Submit a new plan.")
    check_not_revoked(evidence, plan)
    _check_base_granted(session, plan, evidence, now=now)
    said = answers(session, plan, evidence, now=now)
    agreed = [one for one in said if one.consent is not None]
    if len(agreed) < plan.says["minParticipants"]:
        missing = ", ".join(str(one) for one in said if one.consent is None)
        raise Refused(
            "E_CONSENT",
            f"plan {plan.id}: {len(agreed)} of the {plan.says['minParticipants']} participants that it needs"
            f" consent; missing: {missing}",
            f"Each of them decides with: fedhub site approve {plan.id[:12]}",
            status=409,
        )
    return said


def _check_base_granted(session: Session, plan: Entry, evidence: Evidence, *, now: int) -> None:
    """The labs get the base weights by this plan: its owner must still grant them to the plan's issuer."""
    base = plan.statement.subjects[1].digest
    query = select(ModelRow).join(VersionRow).where(VersionRow.asset_id == base)
    model = session.exec(query).first()
    if model is not None and model.visibility != "public":
        check_pull(evidence, grantee=plan.institution, asset_id=base, name=model.name, duo=[], now=now)


def declines(session: Session, plan: str) -> dict[str, str]:
    """Who said no to a plan, and why."""
    return {
        row.institution: row.reason for row in session.exec(select(DeclineRow).where(DeclineRow.plan == plan))
    }


def decline(hub: Hub, session: Session, actor: Actor, plan_id: str, request: wire.Decline) -> wire.Plan:
    """Say no to a plan for the caller's institution; a later consent takes it back."""
    row = find(session, actor, plan_id)
    decide(actor, "decline plan", _thing(row))
    institution = actor.institution or ""
    if institution not in row.participants:
        raise Refused("E_ACCESS", f"plan {plan_id}: {institution} is not one of its participants")
    known = session.get(DeclineRow, (plan_id, institution))
    if known is None:
        known = DeclineRow(plan=plan_id, institution=institution, reason="", declined_at=hub.ledger.now())
    known.reason = request.reason
    known.declined_at = hub.ledger.now()
    session.add(known)
    session.flush()
    return _describe(hub, session, row)


# --- reading --------------------------------------------------------------------------------------------


def find(session: Session, actor: Actor, plan_id: str) -> PlanRow:
    """The plan's row, if the actor may read it."""
    row = session.get(PlanRow, plan_id) if is_digest(plan_id) else None
    if row is None:
        raise not_found("plan", plan_id)
    decide(actor, "read plan", _thing(row))
    return row


def _thing(row: PlanRow) -> Thing:
    return Thing(f"plan {row.id}", row.issuer, frozenset(row.participants))


def read(hub: Hub, session: Session, actor: Actor, plan_id: str) -> wire.Plan:
    """One plan with its consents."""
    return _describe(hub, session, find(session, actor, plan_id))


def page(
    hub: Hub, session: Session, actor: Actor, *, cursor: str | None = None
) -> tuple[list[wire.Plan], str | None]:
    """The plans that concern the actor, in log order, with the cursor of the next page."""
    decide(actor, "list assets", Thing("plans"))
    after = -1 if cursor is None else statements.read_cursor(cursor)
    query = (
        select(PlanRow, StatementRow.log_index)
        .join(StatementRow, col(StatementRow.id) == PlanRow.id)
        .where(col(StatementRow.log_index) > after)
        .order_by(col(StatementRow.log_index))
    )
    size = hub.settings.page_size
    found: list[tuple[PlanRow, int]] = []
    for row, index in session.exec(query):
        if not (sees_all(actor) or may(actor, "read plan", _thing(row))):
            continue
        if len(found) == size:
            return [_describe(hub, session, plan) for plan, _ in found], str(found[-1][1])
        found.append((row, index))
    return [_describe(hub, session, plan) for plan, _ in found], None


def _describe(hub: Hub, session: Session, row: PlanRow) -> wire.Plan:
    with hub.ledger.evidence(session) as evidence:
        entry = _entry(evidence, row.id)
        said = answers(session, entry, evidence, now=hub.ledger.now())
    online = online_sites(session, row.participants)
    run = session.get(RunRow, row.id)
    statement = session.get_one(StatementRow, row.id)
    return wire.Plan(
        id=row.id,
        issuer=row.issuer,
        bundle=statement.bundle.decode(),
        recipe=b64(_recipe(session, row)),
        config=b64(session.get_one(AttachmentRow, row.config).data),
        base_asset=row.base_asset,
        rounds=entry.says["rounds"],
        min_participants=entry.says["minParticipants"],
        approvals=entry.says["approvals"],
        expires=format_time(row.expires_at),
        participants=[
            wire.Participant(
                institution=one.institution,
                dataset=one.dataset,
                consent=None if one.consent is None else one.consent.id,
                declined=one.declined,
                site_online=online.get(one.institution, False),
            )
            for one in said
        ],
        run=None if run is None else cast(wire.RunState, run.state),
    )


def online_sites(session: Session, institutions: list[str]) -> Mapping[str, bool]:
    """Of these institutions, those with a site, and whether one of its sites is connected."""
    found: dict[str, bool] = {}
    for site in session.exec(select(SiteRow).where(col(SiteRow.institution).in_(institutions))):
        found[site.institution] = found.get(site.institution, False) or site.online
    return found
