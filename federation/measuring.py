"""What a site measures on its own rows: columns for a joint scaling, and what a run brought it.

Rows are read from the dataset's folder, used, and forgotten; what leaves is ``figures.json``, in which
nothing is about fewer rows than the smallest cohort (``federation.figures``).

Letters: N rows, F columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from federation import fetching, training
from federation.deciding import read_signed
from federation.figures import (
    Column,
    ColumnFigures,
    ReportFigures,
    told_column,
    told_labels,
    write_columns,
    write_report,
)
from federation.harmonising import STATISTICS_FILE, Statistics, read_statistics, rescaled, scaling
from federation.home import Home
from federation.plan import TrainingPlan
from federation.recipes.rows import Rows, read_rows
from storage.encoding import sha256_hex
from storage.errors import Misuse, Refused, Rejected
from storage.manifests import hash_file
from storage.statements import Statement

if TYPE_CHECKING:
    from federation.client import HubClient


@dataclass(frozen=True)
class Told:
    """Figures as they leave a site.

    Attributes:
        examples: rows that they are about; 0 when there are fewer than the smallest cohort.
        figures: ``figures.json``. metrics: the same for the run's events, as numbers.
    """

    examples: int
    figures: bytes
    metrics: dict[str, float | int]


class JointScaling:
    """The joint statistics that orders name, fetched from the home's own hub by their digest."""

    def __init__(self, client: "HubClient") -> None:
        self._client = client
        self._known: dict[str, Statistics] = {}

    def parameters(self, plan: TrainingPlan, order: Statement) -> Mapping[str, Any]:
        """The recipe's parameters for an order: the plan's own, or scaled as the order says.

        Raises:
            Refused, Rejected: ``E_STATISTICS``: the plan asks for joint statistics and the order names none,
                or the other way round; the hub answers with others.
        """
        named = statistics_of_order(order)
        if (named is None) != (plan.config.harmonise is None):
            raise Refused(
                "E_STATISTICS",
                f"order {order.id} {'names no' if named is None else 'names'} joint statistics, "
                f"plan {plan.id} asks for {'none' if named else 'them'}",
            )
        if named is None:
            return plan.config.parameters
        if named not in self._known:
            self._known[named] = self._fetch(plan, named)
        return self._known[named].scaled(plan.config.parameters)

    def _fetch(self, plan: TrainingPlan, named: str) -> Statistics:
        raw = self._client.statistics(plan.id).document.encode()
        if sha256_hex(raw) != named:
            raise Rejected(
                "E_STATISTICS",
                f"plan {plan.id}: {STATISTICS_FILE} should be {named}, the hub has {sha256_hex(raw)}",
            )
        found = read_statistics(raw)
        asked = plan.config.harmonise
        if (
            asked is None
            or found.plan != plan.id
            or tuple(one.name for one in found.columns) != asked.columns
        ):
            raise Rejected(
                "E_STATISTICS", f"{STATISTICS_FILE} {named} is not about the columns of plan {plan.id}"
            )
        return found


def statistics_of_order(order: Statement) -> str | None:
    """Digest of the joint statistics that an order names, or None."""
    named = [subject.digest for subject in order.subjects[1:] if subject.name == STATISTICS_FILE]
    return named[0] if named else None


def measure_columns(plan: TrainingPlan, dataset: str, data: Path, cohort: int) -> Told:
    """Count, sum and spread of the plan's columns over the rows that are trained on.

    Args:
        dataset: asset id. data: its folder, with ``train.csv``.
        cohort: the larger of the plan's and the site's smallest.
    Raises:
        Rejected: ``E_DATA``. Unchecked: ``E_DATA_MISSING``.
    """
    asked, parameters = plan.config.harmonise, plan.config.parameters
    if asked is None:
        raise Misuse("E_STATISTICS", f"plan {plan.id} asks for no joint statistics")
    rows = read_rows(data / training.TRAIN_FILE, parameters["columns"], parameters["classes"], blanks=True)
    labels = np.bincount(rows.labels, minlength=parameters["classes"]).tolist() if asked.labels else None
    figures = ColumnFigures(
        plan=plan.id,
        dataset=dataset,
        cohort=cohort,
        columns=_columns(rows, parameters, asked.columns, cohort),
        labels=None if labels is None else told_labels(labels, cohort),
    )
    return Told(len(rows) if len(rows) >= cohort else 0, write_columns(figures), {})


def _columns(
    rows: Rows, parameters: Mapping[str, Any], names: tuple[str, ...], cohort: int
) -> dict[str, Column | None]:
    place = {name: number for number, name in enumerate(parameters["columns"])}
    return {name: _column(name, rows.features[:, place[name]], cohort) for name in names}


def _column(name: str, cells: NDArray[np.float32], cohort: int) -> Column | None:
    """One column as it may be told: two passes, so that a small spread around a large mean is not lost.

    Args:
        cells: shape (N,), NaN where a value is missing.
    """
    values = cells[~np.isnan(cells)].astype(np.float64)
    if not len(values):
        return None
    mean = float(values.mean())
    squares = float(np.square(values - mean).sum())
    return told_column(name, len(values), len(cells) - len(values), mean, squares, cohort)


def fetch_base(home: Home, client: "HubClient", plan: TrainingPlan, folder: Path) -> Path:
    """The weights that round 1 began with, as the operator's round statement says.

    Raises:
        Refused: ``E_ROUND_CHAIN``: the hub shows no statement of round 1.
    """
    for record in client.all_statements(kind="round", plan=plan.id):
        if record.kind != "round":
            continue
        first = read_signed(home, client, record.bundle, kind="round", issuer=home.trust.operator)
        if (first.predicate["plan"], first.predicate["round"]) == (plan.id, 1):
            digest = str(first.predicate["input"])
            path = folder / f"{digest}.safetensors"
            if not path.exists() or hash_file(path)[0] != digest:
                found = client.weights(plan.id, digest)
                parts = None if found.parts is None else tuple(found.parts)
                fetching.fetch(found.url, path, digest, found.size, parts)
            return path
    raise Refused("E_ROUND_CHAIN", f"the hub shows no statement of round 1 of plan {plan.id}")


def measure_benefit(
    plan: TrainingPlan,
    order: Statement,
    parameters: Mapping[str, Any],
    data: Path,
    cohort: int,
    *,
    weights: Path,
    base: Path,
    bases: Sequence[Path] = (),
) -> Told:
    """How the run's model does on this site's held-out rows, beside what the site has without the others.

    The site's own model begins at the same base weights, passes over the site's own rows as often as the run
    did, and scales them by the site's own statistics where the plan has a joint scaling.

    Args:
        order: to evaluate ``weights``. parameters: of the recipe, scaled for the shared model.
        data: folder with ``train.csv`` and ``heldout.csv``.
        base: weights that round 1 began with. bases: folders in which a frozen base model may lie.
    Raises:
        As ``training.train``.
    """
    config, says = plan.config, order.predicate
    shared = training.evaluate(config.recipe, parameters, weights, data, bases=bases)
    rows = int(shared["examples"])
    measured: dict[str, float] = {}
    if rows >= cohort:
        local = _own_model(plan, says["site"], data, base, bases)
        measured = {"federated": shared["accuracy"], "local": local, "majority": shared["majority"]}
    figures = ReportFigures(
        plan=plan.id,
        dataset=says["site"],
        cohort=cohort,
        round=says["round"],
        input=says["input"],
        rows=rows if measured else 0,
        measured={name: f"{share:.4f}" for name, share in measured.items()},
        statistics=statistics_of_order(order),
    )
    metrics: dict[str, float | int] = {name: float(text) for name, text in figures.measured.items()}
    return Told(figures.rows, write_report(figures), metrics)


def _own_model(plan: TrainingPlan, site: str, data: Path, base: Path, bases: Sequence[Path]) -> float:
    """Accuracy of a model that saw this site's rows only."""
    config, parameters = plan.config, plan.config.parameters
    if config.harmonise is not None:
        rows = read_rows(
            data / training.TRAIN_FILE, parameters["columns"], parameters["classes"], blanks=True
        )
        own = _columns(rows, parameters, config.harmonise.columns, 1)
        parameters = rescaled(
            parameters, [scaling(name, [one] if one else [], least=1) for name, one in own.items()]
        )
    with TemporaryDirectory(prefix="fedhub-own-") as folder:
        path = Path(folder) / training.WEIGHTS_FILE
        epochs = plan.rounds * int(parameters["epochs"])
        training.train_alone(
            config.recipe, parameters, data, path, config.seed, epochs=epochs, start=base, bases=bases
        )
        return float(training.evaluate(config.recipe, parameters, path, data, bases=bases)["accuracy"])
