"""A lab evaluates a finished version on its own held-out rows, and signs what it measured.

The weights are those of the run's last aggregate, which the version's manifest and the operator's round
statement both name. Using the rows is a use of the consent, so an ``evaluate`` receipt is logged before the
result is. The metrics leave the site as two numbers and a count; rows never do. Where the plan names an app,
the app measures, confined as in a round.
"""

import fcntl
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation import fetching
from federation.app_process import AppPolicy
from federation.app_training import AppRunner
from federation.consents import Consent, check_plan_allowed, find_consent
from federation.deciding import read_checked_plan, read_signed
from federation.home import Home, LocalDataset
from federation.ledger import SiteLedger
from federation.plan import TrainingPlan
from federation.site_bases import base_folders
from federation.site_policy import read_policy
from storage.errors import Refused, Rejected, Unchecked
from storage.manifests import build_manifest, read_manifest
from storage.signing import open_envelope
from storage.statements import Statement, read_statement

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient

METRIC = "accuracy"
APP_FOLDER = "evaluations"  # below the site's; the agent's own apps have another


@dataclass(frozen=True)
class Evaluation:
    """What one lab measured and signed.

    Attributes:
        majority: accuracy of naming the commonest label; None where an app measured, which cannot say so.
        loss: None where an app told none.
        passed: what the logged result says.
        repeated: whether another result was logged before: there is one per version and consent.
    """

    institution: str
    dataset: str
    accuracy: float
    majority: float | None
    loss: float | None
    examples: int
    passed: bool
    repeated: bool
    receipt: str
    statement: str


def evaluate_version(
    home: Home,
    client: "HubClient",
    version: "wire.ModelVersion",
    *,
    now: int,
    at_least: str | None = None,
) -> list[Evaluation]:
    """Evaluate ``version`` on each of this home's datasets that took part in its plan.

    Args:
        client: logged in with the site's snapshot key.
        at_least: the accuracy that counts as passed; what naming the commonest label reaches, when None.
    Raises:
        Refused: no plan, no dataset of this home in it, or no consent to evaluate.
        Rejected: weights, plan or data are not what was signed; an app did not do its part (``E_APP_…``).
        Unchecked: ``E_USAGE``: the plan names an app, and ``at_least`` is None.
    """
    if version.plan is None:
        message = f"{version.name}@{version.version} was not made by a plan's run"
        raise Refused("E_PLAN", message, "a lab's consent covers the versions of its plan only")
    plan, _shown = read_checked_plan(home, client, version.plan)
    own = [site.dataset for site in plan.sites if site.institution == home.institution]
    if not own:
        raise Refused("E_PLAN", f"plan {plan.id} does not name {home.institution}", "participants evaluate")
    if plan.config.app is not None and at_least is None:
        message = f"plan {plan.id} names an app, which does not say what guessing reaches"
        raise Unchecked("E_USAGE", message, "say which accuracy passes, such as --at-least 0.90")
    last = _last_round(home, client, plan)
    _check_weights(version, plan, last)
    done = []
    for asset_id in own:
        consent = find_consent(home, plan.id, asset_id, "evaluate", now=now)
        check_plan_allowed(home, consent, plan, last.predicate["round"], now=now)
        dataset = home.dataset(asset_id)
        _check_data(dataset)
        weights = _fetch_weights(home, client, plan, last.subject)
        if plan.config.app is None:
            found = _measure(home, client, plan, last, weights, dataset)
        else:
            found = _ask_app(home, client, plan, last, weights, dataset)
        _check_cohort(home, plan, int(found["examples"]))
        receipt = _receipt(home, client, consent, last, int(found["examples"]))
        done.append(_sign_result(home, client, version, plan, consent, found, receipt, at_least))
    return done


def _last_round(home: Home, client: "HubClient", plan: TrainingPlan) -> Statement:
    rounds = [
        read_signed(home, client, each.bundle, kind="round", issuer=home.trust.operator)
        for each in client.all_statements(kind="round", plan=plan.id)
    ]
    own = [each for each in rounds if each.predicate["plan"] == plan.id]
    if not own:
        raise Refused("E_ROUND_CHAIN", f"the run of plan {plan.id} has closed no round", "fedhub run show")
    return max(own, key=lambda each: int(each.predicate["round"]))


def _check_weights(version: "wire.ModelVersion", plan: TrainingPlan, last: Statement) -> None:
    held = next((file.sha256 for file in version.files if file.name == plan.config.weights), None)
    if held != last.subject:
        message = f"{version.name}@{version.version} does not hold the last aggregate of plan {plan.id}"
        raise Rejected("E_LINK", message, "ask the owner: fedhub run finish makes the version")


def _check_data(dataset: LocalDataset) -> None:
    manifest = read_manifest(dataset.manifest)
    again = build_manifest(dataset.folder, dataset.name, salt=manifest.salt)
    if again.asset_id != dataset.asset_id:
        message = f"dataset {dataset.name}: its folder is not what its manifest {dataset.asset_id} says"
        raise Rejected("E_DATASET_CHANGED", message, "describe it as a new version: fedhub data describe")


def _fetch_weights(home: Home, client: "HubClient", plan: TrainingPlan, digest: str) -> Path:
    where = client.weights(plan.id, digest)
    folder = home.site / "inputs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"evaluate-{digest}.safetensors"
    if not path.exists():
        fetching.fetch(where.url, path, digest, where.size, tuple(where.parts) if where.parts else None)
    return path


def _measure(
    home: Home,
    client: "HubClient",
    plan: TrainingPlan,
    last: Statement,
    weights: Path,
    dataset: LocalDataset,
) -> dict[str, float | int]:
    from federation import training
    from federation.measuring import JointScaling

    try:
        return training.evaluate(
            plan.config.recipe,
            JointScaling(client).parameters(plan, last),
            weights,
            dataset.folder,
            bases=base_folders(home),
        )
    finally:
        weights.unlink()


def _ask_app(
    home: Home,
    client: "HubClient",
    plan: TrainingPlan,
    last: Statement,
    weights: Path,
    dataset: LocalDataset,
) -> dict[str, float | int]:
    """What the plan's app measures in a child of its own, one command at a time; the agent's goes on.

    Raises:
        Rejected: as ``AppRunner``; ``E_APP_REPLY``: it tells no accuracy.
    """
    folder = home.site / APP_FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    runner = AppRunner(home, client, APP_FOLDER)
    with (folder / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            runner.prepare(plan)
            found = runner.evaluate(
                plan,
                weights,
                dataset.folder,
                last.predicate["round"],
                seconds=min(plan.expires - time.time(), AppPolicy.of_surroundings().seconds),
            )
        finally:
            runner.close()
            weights.unlink()
    if not 0 <= found.get(METRIC, -1) <= 1:
        rule = f"the app's reply: expected a metric {METRIC} from 0 to 1"
        raise Rejected("E_APP_REPLY", rule, "its evaluation has to tell one")
    return found


def _check_cohort(home: Home, plan: TrainingPlan, rows: int) -> None:
    """Nothing is told about fewer rows than the smallest cohort, the plan's or the site's own.

    Raises:
        Refused: ``E_COHORT``.
    """
    cohort = max(plan.config.smallest_cohort, read_policy(home).smallest_cohort)
    if rows < cohort:
        raise Refused(
            "E_COHORT",
            f"plan {plan.id}: this site holds out fewer rows than {cohort}, the smallest cohort",
            "nothing was told; hold out more rows in a new version of the dataset",
        )


def _receipt(home: Home, client: "HubClient", consent: Consent, last: Statement, examples: int) -> str:
    """The logged receipt of this use; one that was logged before stands, since a round is receipted once."""
    number = last.predicate["round"]
    before: list[tuple[int, str]] = []
    for statement, raw in home.statements("receipt"):
        said = statement.predicate
        same = (said.get("plan"), said["action"], statement.subject)
        if same == (consent.plan, "evaluate", consent.dataset):
            if said["round"] == number:
                return client.post_statement(raw).id
            before.append((said["round"], statement.id))
    with SiteLedger(home.site / "ledger.db") as ledger:
        told = ledger.last_answer(consent.plan, consent.dataset, "evaluate", logged=True)
    if told is not None and told.receipt_id is not None:
        if told.round == number:
            return told.receipt_id
        before.append((told.round, told.receipt_id))
    members: dict[str, Any] = {
        "action": "evaluate",
        "grant": consent.id,
        "plan": consent.plan,
        "round": number,
        "input": last.subject,
        "examples": examples,
    }
    if before:
        members["previous"] = max(before)[1]
    bundle = home.sign("receipt", [("manifest.json", consent.dataset)], members)
    record = client.post_statement(bundle)
    home.keep(record.bundle.encode())
    return read_statement(open_envelope(record.bundle.encode())).id


def _sign_result(
    home: Home,
    client: "HubClient",
    version: "wire.ModelVersion",
    plan: TrainingPlan,
    consent: Consent,
    found: dict[str, float | int],
    receipt: str,
    at_least: str | None,
) -> Evaluation:
    accuracy, count = float(found[METRIC]), int(found["examples"])
    majority, loss = found.get("majority"), found.get("loss")
    bar = at_least or f"{found['majority']:.4f}"
    passed = Decimal(f"{accuracy:.4f}") >= Decimal(bar)
    test = f"{METRIC}>={bar} ({accuracy:.4f}) n={count}"
    digests = (("config", plan.config.digest), ("dataset", consent.dataset), ("consent", consent.id))
    predicate = {
        "result": "PASSED" if passed else "FAILED",
        "configuration": [{"name": name, "digest": {"sha256": digest}} for name, digest in digests],
        "passedTests": [test] if passed else [],
        "failedTests": [] if passed else [test],
    }
    bundle = home.sign("test-result", [("manifest.json", version.asset_id)], predicate)
    record = client.post_statement(bundle)
    home.keep(record.bundle.encode())
    logged = read_statement(open_envelope(record.bundle.encode()))
    return Evaluation(
        institution=home.institution,
        dataset=consent.dataset,
        accuracy=accuracy,
        majority=None if plan.config.app is not None or majority is None else float(majority),
        loss=None if loss is None else float(loss),
        examples=count,
        passed=logged.predicate["result"] == "PASSED",
        repeated=record.id != open_envelope(bundle).id,
        receipt=receipt,
        statement=record.id,
    )
