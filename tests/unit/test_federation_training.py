"""A site's training repeats itself to the byte, writes deltas only, and its results hold no rows."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation import training
from federation.aggregation import SiteUpdate, aggregate, check_update
from federation.strategies import make_strategy
from federation.tensors import TensorFile, layout_of, write_tensors
from federation.training import evaluate, predict, round_seed, train, train_alone, train_base
from storage.errors import FedhubError, Rejected, Unchecked

RECIPE = "image-classification"
IMAGE: dict[str, Any] = {
    "classes": 3,
    "height": 4,
    "width": 4,
    "channels": 1,
    "filters": 2,
    "hidden": 8,
    "pixelMax": 16,
    "epochs": 2,
    "batch": 8,
    "learningRate": "0.1",
    "momentum": "0.5",
    "proximalMu": "0",
}
# Each step multiplies the distance from the received weights by ten thousand.
WILD = {**IMAGE, "learningRate": "10", "proximalMu": "1000"}
TABULAR: dict[str, Any] = {
    "columns": ["a", "b"],
    "center": ["10", "-0.5"],
    "scale": ["2", "1"],
    "classes": 2,
    "hidden": 0,
    "epochs": 20,
    "batch": 8,
    "learningRate": "0.5",
    "momentum": "0",
    "proximalMu": "0",
}


def write_rows(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of small pictures: each class is bright in rows of its own."""
    random = np.random.default_rng(5)
    header = ["label", *(f"p{number:02d}" for number in range(16))]
    for name, count in (("train.csv", 48), ("heldout.csv", 24)):
        rows = []
        for number in range(count):
            label = number % 3
            picture = random.integers(0, 6, (4, 4))
            picture[label] += 10
            rows.append([label, *picture.reshape(-1).tolist()])
        write_rows(tmp_path / "site" / name, header, rows)
    return tmp_path / "site"


@pytest.fixture
def base(tmp_path: Path, site: Path) -> Path:
    (tmp_path / "base").mkdir()
    train_base(RECIPE, IMAGE, site, tmp_path / "base", 1, epochs=1)
    return tmp_path / "base"


def test_an_update_is_what_training_moved_and_fits_the_weights(
    base: Path, site: Path, tmp_path: Path
) -> None:
    weights = base / "model.safetensors"
    result = train(RECIPE, IMAGE, weights, site, tmp_path / "update", 1, 1)
    check_update("a", tmp_path / "update", layout_of(weights), size=result.size)
    assert result.examples == 48 and set(result.metrics) == {"loss", "input_accuracy", "input_loss"}
    aggregate(
        make_strategy("FedAvg", {}), weights, [SiteUpdate("a", tmp_path / "update", 48)], tmp_path / "next"
    )
    before = evaluate(RECIPE, IMAGE, weights, site)
    after = evaluate(RECIPE, IMAGE, tmp_path / "next", site)
    assert after["loss"] < before["loss"]
    assert after["examples"] == 24 and after["majority"] == pytest.approx(1 / 3)


def test_the_same_seed_round_and_site_give_the_same_bytes_and_others_do_not(
    base: Path, site: Path, tmp_path: Path
) -> None:
    def digest(seed: int, number: int, name: str) -> str:
        weights = base / "model.safetensors"
        return train(RECIPE, IMAGE, weights, site, tmp_path / "u", seed, number, site=name).sha256

    assert digest(1, 1, "a") == digest(1, 1, "a")
    assert len({digest(1, 1, "a"), digest(2, 1, "a"), digest(1, 2, "a"), digest(1, 1, "b")}) == 4


def test_training_repeats_itself_in_another_process(base: Path, site: Path, tmp_path: Path) -> None:
    weights = base / "model.safetensors"
    here = train(RECIPE, IMAGE, weights, site, tmp_path / "u", 1, 1).sha256
    program = (
        "import sys; from pathlib import Path; from federation.training import train\n"
        f"print(train({RECIPE!r}, {IMAGE!r}, *map(Path, sys.argv[1:4]), 1, 1).sha256)"
    )
    root = str(Path(training.__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", program, weights, site, tmp_path / "v"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": root, "OMP_NUM_THREADS": "2"},
    )
    assert run.stdout.strip() == here


def test_training_leaves_torchs_settings_and_random_state_as_they_were(
    base: Path, site: Path, tmp_path: Path
) -> None:
    import torch

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    train(RECIPE, IMAGE, base / "model.safetensors", site, tmp_path / "u", 1, 1)
    with pytest.raises(Rejected):
        train(
            RECIPE,
            WILD,
            base / "model.safetensors",
            site,
            tmp_path / "u",
            1,
            1,
        )
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_proximal_term_keeps_the_update_shorter(base: Path, site: Path, tmp_path: Path) -> None:
    def length(mu: str) -> float:
        train(RECIPE, {**IMAGE, "proximalMu": mu}, base / "model.safetensors", site, tmp_path / "u", 1, 1)
        with TensorFile(tmp_path / "u") as file:
            return sum(float(np.square(file.read(spec.name)).sum()) for spec in file.layout.tensors)

    assert length("5") < length("0.5") < length("0")


def test_training_that_diverges_is_refused_and_writes_nothing(base: Path, site: Path, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="training diverged: tensor") as caught:
        train(RECIPE, WILD, base / "model.safetensors", site, tmp_path / "u", 1, 1)
    assert caught.value.code == "E_NOT_FINITE"
    assert not (tmp_path / "u").exists() and not (tmp_path / "u.part").exists()


def test_weights_of_another_model_are_refused(site: Path, tmp_path: Path) -> None:
    write_tensors(tmp_path / "other", {"w": np.array([1], np.float32)})
    for call in (
        lambda: train(RECIPE, IMAGE, tmp_path / "other", site, tmp_path / "u", 1, 1),
        lambda: evaluate(RECIPE, IMAGE, tmp_path / "other", site),
    ):
        with pytest.raises(Rejected, match="is missing") as caught:
            call()
        assert caught.value.code == "E_LAYOUT"


def test_rows_of_another_width_are_refused_by_file_and_line(base: Path, site: Path, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"train\.csv line 1: 9 columns are missing, such as p16"):
        train(
            RECIPE, {**IMAGE, "height": 5, "width": 5}, base / "model.safetensors", site, tmp_path / "u", 1, 1
        )


def test_missing_rows_weights_and_folders_are_unchecked(base: Path, site: Path, tmp_path: Path) -> None:
    (site / "heldout.csv").unlink()
    cases: list[tuple[Any, str]] = [
        (lambda: evaluate(RECIPE, IMAGE, base / "model.safetensors", site), "E_DATA_MISSING"),
        (lambda: train(RECIPE, IMAGE, tmp_path / "no", site, tmp_path / "u", 1, 1), "E_TENSORS_MISSING"),
        (lambda: predict(tmp_path / "no", np.zeros((1, 16))), "E_MODEL_MISSING"),
    ]
    for call, code in cases:
        with pytest.raises(Unchecked) as caught:
            call()
        assert caught.value.code == code


def test_unknown_recipes_and_parameters_are_refused_before_data_is_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for recipe, parameters, code in (("x", IMAGE, "E_RECIPE"), (RECIPE, {**IMAGE, "epochs": 0}, "E_CONFIG")):
        with pytest.raises(FedhubError) as caught:
            train(recipe, parameters, nowhere, nowhere, nowhere, 1, 1)
        assert caught.value.code == code


def test_a_pulled_folder_predicts_what_was_trained(base: Path, site: Path, tmp_path: Path) -> None:
    train_alone(RECIPE, IMAGE, site, tmp_path / "trained", 1, epochs=30, start=base / "model.safetensors")
    folder = tmp_path / "pulled"
    folder.mkdir()
    shutil.copy(base / "config.json", folder / "config.json")
    shutil.copy(tmp_path / "trained", folder / "model.safetensors")
    with (site / "heldout.csv").open(newline="") as file:
        rows = [[int(cell) for cell in line] for line in list(csv.reader(file))[1:]]
    said = predict(folder, np.array(rows)[:, 1:])
    assert said.labels.tolist() == [row[0] for row in rows]
    assert said.probabilities.shape == (24, 3)
    np.testing.assert_allclose(said.probabilities.sum(1), 1, rtol=1e-5)
    other = predict(folder, np.array(rows)[:, 1:], weights=base / "model.safetensors")
    assert not np.array_equal(other.probabilities, said.probabilities)


@pytest.mark.parametrize("rows", [np.zeros((2, 15)), np.zeros(16), np.full((1, 16), np.nan)])
def test_rows_that_a_model_cannot_take_are_refused(base: Path, rows: Any) -> None:
    with pytest.raises(Rejected, match=r"rows should be finite numbers of shape \(N, 16\)"):
        predict(base, rows)


def test_a_model_folder_of_another_maker_is_refused(base: Path) -> None:
    (base / "config.json").write_text('{"model_type":"bert"}')
    with pytest.raises(Rejected) as caught:
        predict(base, np.zeros((1, 16)))
    assert caught.value.code == "E_MODEL_CONFIG"


def test_weights_we_write_are_read_by_stock_torch_clients(base: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(base / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in state.items()}["0.weight"] == (2, 1, 3, 3)


def test_tabular_rows_are_scaled_as_the_plan_says_and_learned(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    for name, count in (("train.csv", 80), ("heldout.csv", 40)):
        rows = []
        for _ in range(count):
            a, b = 10 + 2 * random.standard_normal(), -0.5 + random.standard_normal()
            rows.append([f"{a:.4f}", int((a - 10) / 2 + b + 0.5 > 0), f"{b:.4f}"])
        write_rows(tmp_path / "site" / name, ["a", "label", "b"], rows)
    (tmp_path / "base").mkdir()
    train_base("tabular-classification", TABULAR, tmp_path / "site", tmp_path / "base", 1)
    found = evaluate(
        "tabular-classification", TABULAR, tmp_path / "base" / "model.safetensors", tmp_path / "site"
    )
    assert found["accuracy"] >= 0.9
    assert predict(tmp_path / "base", np.array([[16, 3], [4, -4]])).labels.tolist() == [1, 0]


def test_seeds_differ_by_plan_round_and_site_and_fit_torch() -> None:
    seeds = {
        round_seed(seed, number, site) for seed in (0, 1) for number in (1, 11) for site in ("", "1", "a")
    }
    assert len(seeds) == 12 and all(0 <= seed < 1 << 63 for seed in seeds)


def test_naming_the_module_does_not_load_torch() -> None:
    root = str(Path(training.__file__).parent.parent)
    program = "import sys, federation.training; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": root}
    )
    assert run.stdout.strip() == "False"
