"""The benefit report: what a run brought each site, from the figures that stand beside its signed receipts.

Pure but for ``check_report``, by which an owner, a lab or an auditor believes the hub nothing: every receipt
is checked under this home's own pins, every figure against the digest in it, every word made again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from federation import wire
from federation.deciding import read_signed
from federation.evaluation import interval, verdict
from federation.figures import FIGURES_FILE, ReportFigures, read_report
from federation.home import Home
from federation.plan import TrainingPlan
from storage.encoding import read_json, sha256_hex
from storage.errors import Refused, Rejected, Unchecked
from storage.statements import Statement

if TYPE_CHECKING:
    from federation.client import HubClient

REPORT_BYTES = 8 << 20


def site_benefit(institution: str, dataset: str, receipt: str, raw: bytes) -> wire.SiteBenefit:
    """One row of the report.

    Raises:
        Rejected: ``E_FIGURES``.
    """
    found = read_report(raw)
    row = wire.SiteBenefit(
        institution=institution,
        dataset=dataset,
        verdict="too few rows",
        rows=found.rows,
        receipt=receipt,
        figures=raw.decode(),
    )
    if not found.rows:
        return row
    shares = {name: float(text) for name, text in found.measured.items()}
    said = verdict(shares["federated"], shares["local"], shares["majority"], found.rows)
    measured = {name: _measured(share, found.rows) for name, share in shares.items()}
    return row.model_copy(update={"verdict": said, **measured})


def nothing_told(institution: str, dataset: str) -> wire.SiteBenefit:
    """The row of a site that measured nothing."""
    return wire.SiteBenefit(institution=institution, dataset=dataset, verdict="nothing told")


def _measured(share: float, rows: int) -> wire.Measured:
    low, high = interval(share, rows)
    return wire.Measured(share=share, low=round(low, 6), high=round(high, 6))


def is_told(receipt: Statement, plan: str, rounds: int, dataset: str, figures: ReportFigures) -> bool:
    """Whether a receipt and figures speak of the same: plan, dataset, last round and its aggregate."""
    says = receipt.predicate
    signed = (says["action"], says.get("plan"), says.get("round"), says.get("input"), says.get("examples"))
    told = ("evaluate", figures.plan, figures.round, figures.input, figures.rows)
    return signed == told and (receipt.subject, figures.plan, figures.round) == (dataset, plan, rounds)


def read_saved(path: Path) -> wire.BenefitReport:
    """A report that ``fedhub run report --json`` printed.

    Raises:
        Unchecked: ``E_INPUT``: it cannot be read, or is none.
    """
    try:
        value = read_json(path.read_bytes(), code="E_INPUT", limit=REPORT_BYTES)
        members = {name: value[name] for name in value if name in wire.BenefitReport.model_fields}
        return wire.BenefitReport.model_validate_json(json.dumps(members))
    except (OSError, Rejected, ValueError, TypeError) as error:
        hint = "save one with: fedhub --json run report PLAN"
        raise Unchecked("E_INPUT", f"{path}: no benefit report that can be read", hint) from error


def check_report(
    home: Home, client: "HubClient", plan: TrainingPlan, report: wire.BenefitReport
) -> dict[str, str]:
    """Make every row again from its signed receipt.

    Returns:
        Dataset -> "checked", or why it could not be: this home does not pin the site's institution.
    Raises:
        Rejected: ``E_REPORT``: a row is not what the receipt's figures give; those of ``read_signed``.
    """
    found = {}
    sites = {site.dataset: site.institution for site in plan.sites}
    if report.plan != plan.id:
        raise Rejected("E_REPORT", f"the report is about plan {report.plan}, not {plan.id}")
    for row in _rows(plan.id, sites, report):
        if row.receipt is None:
            found[row.dataset] = "nothing to check"
            continue
        bundle = client.statement(row.receipt).bundle
        try:
            receipt = read_signed(home, client, bundle, kind="receipt", issuer=row.institution)
        except Refused as error:
            found[row.dataset] = f"not checked: {error.message}"
            continue
        _check_row(receipt, plan.rounds, report, row)
        found[row.dataset] = "checked"
    return found


def check_with_statements(statements: Mapping[str, Statement], report: wire.BenefitReport) -> int:
    """Make every row again from statements that were verified before, such as those of a pack.

    Returns:
        How many rows have a receipt.
    Raises:
        Rejected: ``E_REPORT``: plan or receipt is not among them, or a row is not what the receipt's figures
            give.
    """
    plan = statements.get(report.plan)
    if plan is None or plan.kind != "plan":
        raise Rejected("E_REPORT", f"the report is about plan {report.plan}, which is not here")
    sites = {one["dataset"]: one["institution"] for one in plan.predicate["participants"]}
    told = [row for row in _rows(plan.id, sites, report) if row.receipt is not None]
    for row in told:
        receipt = statements.get(row.receipt or "")
        if receipt is None or receipt.kind != "receipt" or receipt.issuer != row.institution:
            raise _differs(row, f"receipt {row.receipt} is not here, or not of {row.institution}")
        _check_row(receipt, plan.predicate["rounds"], report, row)
    return len(told)


def _rows(plan: str, sites: Mapping[str, str], report: wire.BenefitReport) -> Sequence[wire.SiteBenefit]:
    """The rows of a report, one for each site of the plan; those without a receipt claim nothing."""
    if {row.dataset: row.institution for row in report.sites} != sites or len(report.sites) != len(sites):
        raise Rejected("E_REPORT", f"the report is not about the sites of plan {plan}")
    for row in report.sites:
        silent = row.receipt is None or row.figures is None
        if silent and row != nothing_told(row.institution, row.dataset):
            raise _differs(row, "figures without a receipt")
    return report.sites


def _check_row(receipt: Statement, rounds: int, report: wire.BenefitReport, row: wire.SiteBenefit) -> None:
    """One row against its receipt, whose signature holds."""
    raw = (row.figures or "").encode()
    named = [subject.digest for subject in receipt.subjects[1:] if subject.name == FIGURES_FILE]
    if receipt.id != row.receipt or named != [sha256_hex(raw)]:
        raise _differs(row, f"receipt {row.receipt} names other figures")
    figures = read_report(raw)
    same = (figures.input, figures.statistics) == (report.aggregate, report.statistics)
    told = is_told(receipt, report.plan, rounds, row.dataset, figures)
    if not same or report.round != rounds or not told:
        raise _differs(row, f"receipt {row.receipt} is about other rows or weights")
    if row != site_benefit(row.institution, row.dataset, receipt.id, raw):
        raise _differs(row, f"the figures of receipt {row.receipt} say otherwise")


def _differs(row: wire.SiteBenefit, why: str) -> Rejected:
    return Rejected(
        "E_REPORT", f"the report on {row.institution} does not hold: {why}", "keep it as evidence"
    )
