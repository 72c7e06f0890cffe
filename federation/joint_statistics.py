"""An owner or auditor makes a run's joint statistics again, and a version carries them for those who use it.

Nothing the hub says is believed: each site's figures are those that its receipt names, the receipt is signed
under this home's own pins, and the sum must give the bytes whose digest the round statements name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.deciding import read_signed
from federation.figures import FIGURES_FILE, ColumnFigures, read_columns
from federation.harmonising import STATISTICS_FILE, Statistics, join
from federation.home import Home, write_atomically
from federation.plan import TrainingPlan, make_model_config, read_model_config
from storage.encoding import sha256_hex
from storage.errors import Rejected, Unchecked

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient

MODEL_CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class CheckedStatistics:
    """Joint statistics that were made again from signed figures."""

    document: Statistics
    institutions: tuple[str, ...]

    def keep_with(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        """Put them into a model folder: ``statistics.json``, and the scaling into ``config.json``, so
        that the model takes columns as they come.

        Args:
            parameters: of the recipe, as the plan has them.
        Raises:
            Unchecked: ``E_MODEL_CONFIG``: the folder has no ``config.json``.
        """
        path = folder / MODEL_CONFIG_FILE
        try:
            recipe, known = read_model_config(path.read_bytes())
        except OSError as error:
            raise Unchecked("E_MODEL_CONFIG", f"{path}: cannot be read ({error.strerror})") from error
        joint = self.document.scaled(parameters)
        scaled = {**known, **{name: joint[name] for name in ("columns", "center", "scale")}}
        write_atomically(path, make_model_config(recipe, scaled))
        write_atomically(folder / STATISTICS_FILE, self.document.raw)


def check_statistics(home: Home, client: "HubClient", plan: TrainingPlan, named: str) -> CheckedStatistics:
    """The joint statistics with the digest ``named``, made again from the sites' signed figures.

    Raises:
        Rejected: ``E_STATISTICS``: they are not the sum of what the sites signed; those of ``read_signed``.
        Refused: this home does not pin a site's institution.
        Unchecked: this caller may not see what each site told.
    """
    asked = plan.config.harmonise
    if asked is None:
        raise Rejected(
            "E_STATISTICS", f"plan {plan.id} asks for no joint statistics, its rounds name {named}"
        )
    told = client.statistics(plan.id)
    if not told.figures:
        message = f"plan {plan.id}: what each site told is for its owner, auditors and the operator"
        raise Unchecked("E_NOT_FOUND", message)
    parts = {each.dataset: (each.receipt, _checked(home, client, plan, each)) for each in told.figures}
    ordered = [parts[site.dataset] for site in plan.sites if site.dataset in parts]
    made = join(plan.id, asked, plan.config.smallest_cohort, ordered)
    if sha256_hex(made.raw) != named or len(ordered) < plan.min_participants:
        raise Rejected(
            "E_STATISTICS",
            f"plan {plan.id}: the figures that {len(ordered)} sites signed give {sha256_hex(made.raw)}, the "
            f"rounds name {named}",
            "nothing was signed; ask the operator, keep the evidence",
        )
    institutions = tuple(site.institution for site in plan.sites if site.dataset in parts)
    return CheckedStatistics(made, institutions)


def _checked(home: Home, client: "HubClient", plan: TrainingPlan, told: "wire.SiteFigures") -> ColumnFigures:
    """What a site told, as its receipt names it."""
    owners = {site.dataset: site.institution for site in plan.sites}
    bundle = client.statement(told.receipt).bundle
    issuer = owners.get(told.dataset, told.institution)
    receipt = read_signed(home, client, bundle, kind="receipt", issuer=issuer)
    says = receipt.predicate
    named = {subject.name: subject.digest for subject in receipt.subjects[1:]}
    figures = read_columns(told.figures.encode())
    found = (receipt.id, says["action"], says.get("plan"), receipt.subject, named.get(FIGURES_FILE))
    wanted = (told.receipt, "statistics", plan.id, told.dataset, sha256_hex(told.figures.encode()))
    if found != wanted or figures.dataset != told.dataset or told.dataset not in owners:
        raise Rejected(
            "E_STATISTICS", f"receipt {told.receipt} is not about what {issuer} is said to have told"
        )
    return figures
