"""The owner turns a finished run into a signed model version, on its own machine.

The chain of round statements is followed from the base version's weights to the last aggregate, each
signature checked against this home's own pins. Then the aggregate is fetched by digest, takes the place of
the weights file in the base version's folder, and OMS, ``asset`` and provenance are signed and pushed
together.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation import fetching
from federation.deciding import read_checked_plan, read_signed
from federation.harmonising import STATISTICS_FILE
from federation.home import Home
from federation.joint_statistics import check_statistics
from federation.plan import TrainingPlan
from federation.publishing import push_version
from federation.pulling import beside, fetch_files, manifest_of
from storage.errors import Refused, Rejected
from storage.manifests import Manifest
from storage.standard import BUILD_TYPE, BUILDER
from storage.statements import Statement

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient


@dataclass(frozen=True)
class Chain:
    """A run's rounds as checked: from the base version's weights to the last aggregate."""

    rounds: tuple[Statement, ...]
    receipts: tuple[str, ...]  # ids, as the rounds list them

    @property
    def aggregate(self) -> str:
        """Digest of the weights that the run ended with."""
        return self.rounds[-1].subject

    @property
    def statistics(self) -> str | None:
        """Digest of the joint statistics by which all rounds scaled their rows, or None."""
        named = self.rounds[-1].subjects[1:]
        return named[0].digest if named else None


def finish_run(
    home: Home,
    client: "HubClient",
    reference: str,
    *,
    name: str | None = None,
    license_id: str | None = None,
    tags: Sequence[str] = (),
    keep: Path | None = None,
) -> tuple["wire.ModelVersion", Chain]:
    """Make the run's last aggregate the next version of ``name`` (default: the base version's model).

    Args:
        reference: the plan's id, or how it starts.
        keep: a folder in which to leave the version's files.
    Raises:
        Refused: the plan is another institution's, or its run is still going on.
        Rejected: the chain of rounds does not hold; nothing was signed.
    """
    plan, _shown = read_checked_plan(home, client, reference)
    if plan.issuer != home.institution:
        raise Refused("E_PLAN", f"plan {plan.id} is {plan.issuer}'s", "the plan's owner finishes its run")
    run = client.run(plan.id, newest=0)
    if run.state in ("starting", "running"):
        hint = f"wait for it: fedhub run watch {plan.id[:12]}"
        raise Refused("E_RUN_STATE", f"the run of plan {plan.id} is {run.state}", hint, status=409)
    base = base_version(client, plan)
    with beside(keep or home.path / "finish") as place:
        manifest = manifest_of(client, base, plan.base)
        chain = check_chain(home, client, plan, manifest)
        files = place / "files"
        fetch_files(client, client.pull(plan.base), manifest, files)
        where = client.weights(plan.id, chain.aggregate)
        weights = files / plan.config.weights
        weights.unlink()
        fetching.fetch(where.url, weights, chain.aggregate, where.size, where.parts)
        if chain.statistics is not None:
            check_statistics(home, client, plan, chain.statistics).keep_with(files, plan.config.parameters)
        version = push_version(
            home,
            client,
            files,
            name or base.name,
            license_id=license_id or base.license,
            tags=tags,
            plan=plan.id,
            provenance=lambda made: _provenance(home, plan, chain, made),
        )
        if keep is not None:
            shutil.move(files, keep)
    return version, chain


def check_chain(home: Home, client: "HubClient", plan: TrainingPlan, base: Manifest) -> Chain:
    """Follow the run's round statements, every signature checked under this home's pins.

    Raises:
        Rejected: a round is missing, does not follow from the one before, or lists too few participants
            (E_ROUND_CHAIN, E_PARTICIPANTS); a receipt is of another plan, round or input (E_RECEIPT_CHAIN).
    """
    weights = next((entry.sha256 for entry in base.files if entry.name == plan.config.weights), None)
    if weights is None:
        message = f"the base version has no file {plan.config.weights}, which config.json names"
        raise Rejected("E_ROUND_CHAIN", message)
    operator = home.trust.operator
    records = client.all_statements(kind="round", plan=plan.id)
    rounds = [read_signed(home, client, each.bundle, kind="round", issuer=operator) for each in records]
    rounds.sort(key=lambda each: each.predicate["round"])
    if not rounds:
        raise Rejected("E_ROUND_CHAIN", f"the run of plan {plan.id} has closed no round")
    posted = {each.id: each for each in client.all_statements(kind="receipt", plan=plan.id)}
    receipts: list[str] = []
    previous: Statement | None = None
    for number, found in enumerate(rounds, start=1):
        said = found.predicate
        expected = previous.subject if previous else weights
        follows = said.get("previous") == (previous.id if previous else None)
        if previous and found.subjects[1:] != previous.subjects[1:]:
            raise Rejected(
                "E_ROUND_CHAIN", f"round statement {found.id} scales by other statistics than before"
            )
        if said["plan"] != plan.id or said["round"] != number or said["input"] != expected or not follows:
            message = f"round statement {found.id} does not continue round {number - 1} of plan {plan.id}"
            raise Rejected(
                "E_ROUND_CHAIN", message, "nothing was signed; ask the operator, keep the evidence"
            )
        _check_receipts(home, client, plan, found, posted)
        receipts += said["receipts"]
        previous = found
    return Chain(tuple(rounds), tuple(receipts))


def base_version(client: "HubClient", plan: TrainingPlan) -> "wire.ModelVersion":
    """The version that a plan starts from, as the hub names it; its asset id is the plan's word."""
    for listed in client.models(asset_id=plan.base):
        for version in client.model(listed.name).versions:
            if version.asset_id == plan.base:
                return version
    raise Rejected("E_LINK", f"the hub shows no version with the base asset {plan.base}")


def _check_receipts(
    home: Home,
    client: "HubClient",
    plan: TrainingPlan,
    found: Statement,
    posted: dict[str, "wire.StatementRecord"],
) -> None:
    number, listed = found.predicate["round"], found.predicate["receipts"]
    sites = set()
    owners = {site.institution for site in plan.sites}
    for receipt_id in listed:
        record = posted.get(receipt_id)
        if record is None:
            raise Rejected("E_ROUND_CHAIN", f"round {number} lists receipt {receipt_id}, which is not logged")
        if record.issuer not in owners:
            raise Rejected("E_RECEIPT_ISSUER", f"receipt {receipt_id} is {record.issuer}'s, no participant")
        receipt = read_signed(home, client, record.bundle, kind="receipt", issuer=record.issuer)
        said = receipt.predicate
        same = (said.get("plan"), said.get("round"), said.get("input"), said["action"])
        same_scaling = receipt.subjects[1:] == found.subjects[1:]
        wanted = (plan.id, number, found.predicate["input"], "train")
        if receipt.id != receipt_id or same != wanted or not same_scaling:
            message = f"receipt {receipt_id} is not of round {number} of plan {plan.id}"
            raise Rejected("E_RECEIPT_CHAIN", message)
        sites.add(said["grant"])
    if len(sites) != len(listed) or len(sites) < plan.min_participants:
        message = f"round {number} lists {len(sites)} participants, the plan promises {plan.min_participants}"
        raise Rejected("E_PARTICIPANTS", message)


def _provenance(home: Home, plan: TrainingPlan, chain: Chain, made: Manifest) -> bytes:
    named = [("receipt", each) for each in chain.receipts]
    named += [("round", each.id) for each in chain.rounds]
    named += [] if chain.statistics is None else [(STATISTICS_FILE, chain.statistics)]
    named += [("manifest.json", plan.base), ("recipe.json", plan.code)]
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"plan": plan.id},
            "resolvedDependencies": [{"name": name, "digest": {"sha256": digest}} for name, digest in named],
        },
        "runDetails": {"builder": {"id": BUILDER}},
    }
    return home.sign("provenance", [("manifest.json", made.asset_id)], predicate)
