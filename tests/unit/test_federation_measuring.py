"""What a site measures on real rows: columns, its own model, and what the smallest cohort keeps at home."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation import training
from federation.figures import read_columns, read_report
from federation.harmonising import join
from federation.home import Home
from federation.measuring import measure_benefit, measure_columns
from federation.plan import PlanSite, TrainingPlan, make_config, read_config
from federation.recipes.rows import read_rows
from federation.site_policy import SitePolicy, read_policy, write_policy
from storage.errors import Rejected, Unchecked
from storage.kinds import Subject
from storage.statements import Statement
from tests.clinics import CLINICS, COLUMNS, PARAMETERS, federated, scalings, write_clinics

RECIPE = "tabular-classification"
DATASETS = {name: f"{number:064x}" for number, name in enumerate(CLINICS, 1)}


def plan_of(rounds: int = 4, parameters: dict[str, Any] = PARAMETERS, **options: Any) -> TrainingPlan:
    asked = {"harmonise": True, "count_labels": True, "report": True, "smallest_cohort": 10, **options}
    config = read_config(make_config(RECIPE, parameters, quorum=2, **asked))
    sites = tuple(PlanSite(f"{name}.example", dataset) for name, dataset in DATASETS.items())
    ends: dict[str, Any] = {"epsilon": None, "delta": None, "base": "b" * 64, "code": "c" * 64}
    return TrainingPlan("a" * 64, "owner.example", rounds, 2, 1, 2**40, sites=sites, config=config, **ends)


def order(dataset: str, number: int, statistics: str | None = None) -> Statement:
    subjects = [Subject("model.safetensors", "d" * 64)]
    subjects += [Subject("statistics.json", statistics)] if statistics else []
    says = {"site": dataset, "round": number, "input": "d" * 64, "action": "evaluate"}
    return Statement("e" * 64, "order", tuple(subjects), says, b"")


@pytest.fixture(scope="module")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_clinics(tmp_path_factory.mktemp("clinics"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from federation.recipes.loop import repeatable
    from federation.recipes.tabular_classification import build

    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    with repeatable(3):
        training.save_weights(build(PARAMETERS), path)
    return path


def test_what_sites_tell_gives_mean_and_spread_of_all_their_rows(clinics: dict[str, Path]) -> None:
    plan = plan_of()
    told = [measure_columns(plan, DATASETS[name], data, 10) for name, data in clinics.items()]
    parts = [(f"{place:064x}", read_columns(one.figures)) for place, one in enumerate(told, 1)]
    assert plan.config.harmonise is not None
    made = join(plan.id, plan.config.harmonise, 10, parts)
    rows = [read_rows(data / "train.csv", COLUMNS, 2) for data in clinics.values()]
    whole = np.concatenate([one.features for one in rows]).astype(np.float64)
    assert [float(one.center or "nan") for one in made.columns] == pytest.approx(whole.mean(0), rel=1e-9)
    assert [float(one.scale or "nan") for one in made.columns] == pytest.approx(whole.std(0), rel=1e-9)
    assert made.labels == (None, None), "8 malignant cases in one clinic are too few to tell"
    assert [one.examples for one in told] == [len(one) for one in rows]


def test_blank_cells_are_counted_and_stand_for_the_center(clinics: dict[str, Path], tmp_path: Path) -> None:
    lines = (clinics["lab-a"] / "train.csv").read_text().splitlines()
    for number in range(1, 16):
        cells = lines[number].split(",")
        cells[2] = ""  # texture
        cells[3] = cells[3] if number > 3 else ""  # perimeter
        lines[number] = ",".join(cells)
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    told = read_columns(measure_columns(plan_of(), DATASETS["lab-a"], tmp_path, 10).figures)
    rows = len(lines) - 1
    texture, perimeter = told.columns["texture"], told.columns["perimeter"]
    assert texture is not None and (texture.count, texture.missing) == (rows - 15, 15)
    assert perimeter is not None and (perimeter.count, perimeter.missing) == (rows, 0), (
        "3 blanks are not told"
    )
    parameters = {**PARAMETERS, "center": ["7"] * len(COLUMNS)}
    from federation.recipes.tabular_classification import inputs

    read = read_rows(tmp_path / "train.csv", COLUMNS, 2, blanks=True)
    assert float(inputs(parameters, read.features)[0, 1]) == 0.0
    with pytest.raises(Rejected, match="texture should be a number"):
        read_rows(tmp_path / "train.csv", COLUMNS, 2)


def test_a_site_with_three_rows_tells_nothing(clinics: dict[str, Path], tmp_path: Path, base: Path) -> None:
    for part in ("train", "heldout"):
        lines = (clinics["lab-a"] / f"{part}.csv").read_text().splitlines()[:4]
        (tmp_path / f"{part}.csv").write_text("\n".join(lines) + "\n")
    plan = plan_of()
    columns = measure_columns(plan, DATASETS["lab-a"], tmp_path, 10)
    assert columns.examples == 0 and set(read_columns(columns.figures).columns.values()) == {None}
    assert read_columns(columns.figures).labels == (None, None)
    told = measure_benefit(
        plan, order(DATASETS["lab-a"], 4), PARAMETERS, tmp_path, 10, weights=base, base=base
    )
    assert (told.examples, told.metrics) == (0, {})
    assert json.loads(told.figures)["measured"] == {} and json.loads(told.figures)["rows"] == 0


def test_joint_scaling_lifts_the_federated_model_on_real_rows(
    clinics: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    """Breast cancer cases over clinics whose patients differ: against raw columns, and against each clinic scaling
    by itself.
    """
    raw, alone, alike = (
        federated(clinics, base, tmp_path, parameters, rounds=6)
        for parameters in scalings(clinics, PARAMETERS).values()
    )
    assert alike.accuracy > 0.9 and alike.auc > 0.97
    assert alike.accuracy > raw.accuracy + 0.2 and alike.accuracy > alone.accuracy + 0.15


def test_the_own_model_saw_as_much_and_is_measured_on_the_same_rows(
    clinics: dict[str, Path], base: Path
) -> None:
    plan, data = plan_of(), clinics["lab-b"]
    told = measure_benefit(plan, order(DATASETS["lab-b"], 4), PARAMETERS, data, 10, weights=base, base=base)
    again = measure_benefit(plan, order(DATASETS["lab-b"], 4), PARAMETERS, data, 10, weights=base, base=base)
    assert told == again
    figures = read_report(told.figures)
    shared = training.evaluate(RECIPE, PARAMETERS, base, data)
    assert figures.measured["federated"] == f"{shared['accuracy']:.4f}"
    assert figures.measured["majority"] == f"{shared['majority']:.4f}" and figures.rows == shared["examples"]
    assert float(figures.measured["local"]) > float(figures.measured["federated"]), (
        "an untrained shared model"
    )


# --- the site's own minimum ---------------------------------------------------------------------------------


class OneHome:
    """As much of a home as a policy needs."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"


def test_a_site_keeps_its_own_minimum_and_an_unreadable_one_lets_nothing_out(tmp_path: Path) -> None:
    home: Home = OneHome(tmp_path)  # type: ignore[assignment]
    assert read_policy(home) == SitePolicy(1)
    write_policy(home, SitePolicy(25))
    assert read_policy(home).smallest_cohort == 25
    for text in ("", "{}", '{"smallestCohort":0}', '{"smallestCohort":5,"more":1}', '{"smallestCohort": 5}'):
        (home.site / "policy.json").write_text(text)
        with pytest.raises(Unchecked, match="E_POLICY"):
            read_policy(home)
