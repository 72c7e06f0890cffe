"""Whole rounds of real training in one process: sites, updates and aggregation as in a run, without a hub.

``Federation`` splits scikit-learn's digits over any number of sites; ``train`` runs rounds with a plan's
strategy and compression and may have some sites lie. Same arguments, same bytes. Used by tests of what
strategies are worth under attack, and by the script that makes the tables in docs/rounds.md.

Letters: S sites.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from federation import training
from federation.aggregation import SiteUpdate, aggregate, site_weight
from federation.compression import Feedback, UpdateFile, write_update
from federation.plan import make_config, read_config
from federation.strategies import make_strategy
from federation.tensors import Array, layout_of
from hub.demo import digits
from tests.updates import as_changed

RECIPE = "image-classification"
PARAMETERS: dict[str, Any] = {
    "channels": 1,
    "height": 8,
    "width": 8,
    "filters": 0,
    "hidden": 32,
    "classes": 10,
    "pixelMax": 16,
    "epochs": 4,
    "batch": 16,
    "learningRate": "0.2",
    "momentum": "0",
    "proximalMu": "0",
}
Lie = Callable[[dict[str, Array]], dict[str, Array]]


def inverted(changes: dict[str, Array]) -> dict[str, Array]:
    """The change the other way round, and more of it."""
    return {name: -4 * change for name, change in changes.items()}


def scaled(changes: dict[str, Array]) -> dict[str, Array]:
    """A change so large that it drowns all others."""
    return {name: 100 * change for name, change in changes.items()}


def noise(changes: dict[str, Array]) -> dict[str, Array]:
    """Nothing that was learnt at all."""
    random = np.random.default_rng(5)
    return {name: random.normal(size=change.shape).astype(change.dtype) for name, change in changes.items()}


@dataclass(frozen=True)
class Learnt:
    """What rounds came to: share right on the held-out rows of all sites, and bytes of one update."""

    accuracy: float
    update_bytes: int
    digest: str


class Federation:
    """S sites with digits, a quarter of each site's rows held out; every digit is known everywhere."""

    def __init__(self, folder: Path, sites: int = 8) -> None:
        self.folder = folder
        self.names = [f"site-{number}" for number in range(sites)]
        rows = [row for place in digits.split().values() for part in place.values() for row in part]
        order = np.random.default_rng(1).permutation(len(rows))
        shuffled = [rows[place] for place in order]
        held_out = []
        for number, name in enumerate(self.names):
            own = shuffled[number::sites]
            cut = len(own) // 4
            held_out += own[:cut]
            _write(folder / name / "train.csv", own[cut:])
            _write(folder / name / "heldout.csv", own[:cut])
        _write(folder / "all" / "train.csv", held_out)
        _write(folder / "all" / "heldout.csv", held_out)
        self.base = folder / "base.safetensors"
        self._make_base()

    def _make_base(self) -> None:
        from federation.recipes.image_classification import build
        from federation.recipes.loop import repeatable

        with repeatable(3):
            training.save_weights(build(PARAMETERS), self.base)

    def train(
        self,
        *,
        rounds: int = 6,
        strategy: str = "FedAvg",
        strategy_parameters: Mapping[str, Any] | None = None,
        compression: str = "none",
        parameters: Mapping[str, Any] | None = None,
        feedback: bool = True,
        liars: Mapping[str, Lie] | None = None,
    ) -> Learnt:
        """Rounds from the base weights; ``liars`` alter the changes of the sites they name."""
        config = read_config(
            make_config(
                RECIPE,
                {**PARAMETERS, **(parameters or {})},
                quorum=len(self.names),
                strategy=strategy,
                strategy_parameters=strategy_parameters,
                compression=compression,
            )
        )
        made = make_strategy(config.strategy, config.strategy_parameters)
        weights, size, digest = self.base, 0, ""
        for number in range(1, rounds + 1):
            updates = []
            for name in self.names:
                update, result = self._update(config, weights, name, number, rounds, feedback)
                if liars and name in liars:
                    _lie(update, weights, config.compression, liars[name])
                size = result.size
                weight = site_weight(name, result.examples, config.weighting, config.max_examples)
                updates.append(SiteUpdate(name, update, weight))
            out = self.folder / f"round-{number % 2}.safetensors"
            state, after = self.folder / f"state-{number - 1}", self.folder / f"state-{number}"
            after.mkdir(exist_ok=True)
            digest = aggregate(
                made,
                weights,
                updates,
                out,
                compression=config.compression,
                round_number=number,
                state=state if made.step.slots and number > 1 else None,
                next_state=after,
            ).sha256
            weights = out
        found = training.evaluate(RECIPE, config.parameters, weights, self.folder / "all")
        return Learnt(float(found["accuracy"]), size, digest)

    def _update(
        self, config: Any, weights: Path, name: str, number: int, rounds: int, feedback: bool
    ) -> tuple[Path, training.TrainResult]:
        own = self.folder / name
        before, after = own / f"residual-{number - 1}", own / f"residual-{number}"
        keeps = feedback and config.compression != "none"
        out = own / "update.safetensors"
        result = training.train(
            config.recipe,
            config.parameters,
            weights,
            own,
            out,
            config.seed,
            number,
            site=name,
            feedback=Feedback(
                config.compression,
                before if keeps and number > 1 else None,
                after if keeps and number < rounds else None,
            ),
        )
        return out, result


def _lie(path: Path, weights: Path, compression: str, lie: Lie) -> None:
    layout = layout_of(weights)
    with UpdateFile(path, layout, compression) as file:
        changes = {spec.name: file.array(spec.name) for spec in layout.tensors}
    write_update(path, as_changed(lie(changes)), layout, Feedback(compression))


def _write(path: Path, rows: Sequence[Sequence[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(digits.HEADER)
        writer.writerows(rows)
