"""A plan's files say everything and nothing else; every wrong field is named, and code is known by its digest."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federation import plan as plan_module
from federation.plan import (
    TrainingPlan,
    build_recipe,
    check_parameters,
    check_recipe,
    make_config,
    make_model_config,
    read_config,
    read_model_config,
    read_plan,
)
from federation.recipes.catalogue import RECIPES
from federation.strategy_terms import least_sites
from storage.encoding import canonical, read_json, sha256_hex
from storage.errors import Rejected, Unchecked
from storage.signing import new_private_key, open_envelope, sign
from storage.statements import Statement, compose, read_statement

IMAGE: dict[str, Any] = {
    "classes": 10,
    "height": 8,
    "width": 8,
    "channels": 1,
    "filters": 0,
    "hidden": 16,
    "pixelMax": 16,
    "epochs": 1,
    "batch": 8,
    "learningRate": "0.1",
    "momentum": "0",
    "proximalMu": "0",
}
TABULAR: dict[str, Any] = {
    "columns": ["age", "chol"],
    "center": ["54.4", "-1"],
    "scale": ["9", "51.8"],
    "classes": 2,
    "hidden": 0,
    "epochs": 1,
    "batch": 8,
    "learningRate": "0.1",
    "momentum": "0",
    "proximalMu": "0",
}
LABS = ("lab-a.example", "lab-b.example", "lab-c.example")


def image_config(**changes: Any) -> bytes:
    return make_config("image-classification", IMAGE, **({"quorum": 2} | changes))


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A config whose members ``change`` has altered, canonical again."""
    value = read_json(image_config())
    change(value)
    return canonical(value)


def plan_statement(recipe: bytes, config: bytes, **changes: Any) -> Statement:
    members = {
        "rounds": 5,
        "minParticipants": 2,
        "approvals": 2,
        "strategy": "FedAvg",
        "participants": [{"institution": lab, "dataset": sha256_hex(lab.encode())} for lab in LABS],
        "expires": "2026-12-24T22:00:00Z",
        **changes,
    }
    subjects = [
        ("recipe.json", sha256_hex(recipe)),
        ("manifest.json", "ab" * 32),
        ("config.json", sha256_hex(config)),
    ]
    payload = compose("plan", subjects, members, issuer="owner.example", hub="hub.example")
    return read_statement(open_envelope(sign(new_private_key(), payload)))


def image_plan(**changes: Any) -> TrainingPlan:
    recipe, config = build_recipe("image-classification"), image_config()
    return read_plan(plan_statement(recipe, config, **changes), recipe, config)


# --- config.json ------------------------------------------------------------------------------------------


def test_a_config_is_canonical_and_reads_as_it_was_made() -> None:
    raw = image_config(seed=9, weighting="equal", bad_update="stop", round_deadline_s=30, keep_updates=False)
    config = read_config(raw)
    assert canonical(read_json(raw)) == raw == config.raw
    assert config.digest == sha256_hex(raw)
    assert (config.recipe, config.recipe_version, config.parameters) == ("image-classification", "1", IMAGE)
    assert (config.strategy, config.seed, config.weighting) == ("FedAvg", 9, "equal")
    assert (config.bad_update, config.round_deadline_s, config.keep_updates) == ("stop", 30, False)


def test_every_wrong_field_is_named_at_once() -> None:
    def change(value: dict[str, Any]) -> None:
        value["seed"] = -1
        value["quorum"] = True
        value["sed"] = 1
        del value["badUpdate"]
        value["recipe"]["parameters"]["epochs"] = 0
        value["recipe"]["parameters"]["learningRate"] = "1e-3"
        value["strategy"]["name"] = "FedBest"

    with pytest.raises(Rejected) as caught:
        read_config(changed(change))
    assert caught.value.code == "E_CONFIG"
    assert "config.json: 7 fields are wrong" in caught.value.message
    for field in (
        "badUpdate: missing",
        "sed: unknown field",
        "seed: expected an integer from 0",
        "quorum: expected an integer from 1",
        "recipe.parameters.epochs: expected an integer from 1 to 1000, found 0",
        "recipe.parameters.learningRate: expected a decimal as text",
        "strategy.name: expected one of FedAvg",
    ):
        assert field in caught.value.message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("type", "https://fedhub.dev/config/v2"),
        ("recipe", []),
        ("recipe.name", "Image Classification"),
        ("recipe.name", ["image-classification"]),
        ("recipe.version", "two"),
        ("recipe.version", 1),
        ("recipe.parameters", None),
        ("recipe.parameters.hidden", "16"),
        ("recipe.parameters.learningRate", 1),
        ("recipe.parameters.learningRate", "0"),
        ("recipe.parameters.learningRate", "00.1"),
        ("recipe.parameters.learningRate", "٣"),
        ("recipe.parameters.momentum", "1"),
        ("recipe.parameters.more", 1),
        ("recipe.more", 1),
        ("strategy", "FedAvg"),
        ("strategy.parameters.beta", "0.1"),
        ("seed", "1"),
        ("weighting", "rows"),
        ("maxExamples", 0),
        ("compression", "zip"),
        ("quorum", 0),
        ("roundDeadline", 0),
        ("keepUpdates", 1),
        ("badUpdate", "ignore"),
        ("weights", "model.bin"),
        ("weights", "../model.safetensors"),
        ("weights", 3),
    ],
)
def test_a_field_outside_its_rule_is_refused_by_name(path: str, value: object) -> None:
    *parents, last = path.split(".")

    def change(config: dict[str, Any]) -> None:
        for parent in parents:
            config = config[parent]
        config[last] = value

    with pytest.raises(Rejected, match=path.replace(".", r"\.")) as caught:
        read_config(changed(change))
    assert caught.value.code == "E_CONFIG" and "1 field is wrong" in caught.value.message


@pytest.mark.parametrize(("name", "version"), [("image-classification", "2"), ("speech-by-owl", "1")])
def test_a_plan_of_another_recipe_or_version_is_read_and_not_run(name: str, version: str) -> None:
    """Old plans and plans of other releases stay readable; what such a recipe takes nobody here can say."""

    def change(value: dict[str, Any]) -> None:
        value["recipe"] = {"name": name, "version": version, "parameters": {"owls": [1]}}

    config = read_config(changed(change))
    assert (config.recipe, config.recipe_version) == (name, version)
    assert config.parameters == {"owls": [1]}
    with pytest.raises(Rejected) as caught:
        check_recipe(config, "ab" * 32)
    assert caught.value.code == "E_RECIPE"


def test_code_of_this_version_with_parameters_that_it_does_not_take_is_not_run() -> None:
    config = replace(read_config(image_config()), parameters={**IMAGE, "epochs": 0})
    with pytest.raises(Rejected, match=r"parameters\.epochs: expected an integer from 1"):
        check_recipe(config, sha256_hex(build_recipe("image-classification")))


def test_a_draft_needs_a_recipe_that_is_installed() -> None:
    with pytest.raises(Rejected, match="no recipe 'speech-by-owl' is installed"):
        make_config("speech-by-owl", {}, quorum=1)


def test_values_as_people_type_them_become_what_their_rules_want() -> None:
    typed = {name: value if isinstance(value, str) else str(value) for name, value in IMAGE.items()}
    raw = make_config(
        "image-classification",
        {**typed, "learningRate": "1"},
        quorum=5,
        strategy="MultiKrum",
        strategy_parameters={"malicious": "1", "select": "3"},
    )
    config = read_config(raw)
    assert config.parameters == {**IMAGE, "learningRate": "1"}
    assert config.strategy_parameters == {"malicious": 1, "select": 3}


@pytest.mark.parametrize(
    ("strategy", "given", "weighting", "quorum", "written"),
    [
        ("FedAdam", {}, "examples", 2, {"eta": "0.1", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"}),
        (
            "FedYogi",
            {"eta": "1"},
            "examples",
            2,
            {"eta": "1", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"},
        ),
        ("FedAdagrad", {}, "examples", 2, {"eta": "0.1", "tau": "0.001"}),
        ("FedAvgM", {}, "examples", 2, {"serverLearningRate": "1", "serverMomentum": "0.9"}),
        ("FedTrimmedAvg", {}, "equal", 2, {"beta": "0.2"}),
        ("FedMedian", {}, "equal", 2, {}),
        ("Bulyan", {"malicious": "1"}, "equal", 7, {"malicious": 1}),
        ("Krum", {"malicious": "1"}, "examples", 5, {"malicious": 1}),
    ],
)
def test_a_draft_writes_out_what_its_author_leaves_to_the_strategy(
    strategy: str, given: dict[str, Any], weighting: str, quorum: int, written: dict[str, Any]
) -> None:
    config = read_config(image_config(strategy=strategy, strategy_parameters=given, quorum=quorum))
    assert (config.strategy, config.weighting, config.strategy_parameters) == (strategy, weighting, written)


@pytest.mark.parametrize("strategy", ["Krum", "MultiKrum", "Bulyan"])
def test_how_many_sites_may_lie_is_nobodys_default(strategy: str) -> None:
    with pytest.raises(Rejected, match=r"strategy\.parameters\.malicious: missing"):
        image_config(strategy=strategy, quorum=9)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"a":1,"a":2}', b"\xff", b'{ "type":1}', b"1" * 5000])
def test_bytes_that_are_no_config_are_refused(raw: bytes) -> None:
    with pytest.raises(Rejected):
        read_config(raw)


def test_a_number_that_json_readers_disagree_on_is_refused() -> None:
    with pytest.raises(Rejected, match="2\\*\\*53") as caught:
        image_config(seed=1 << 53)
    assert caught.value.code == "E_CONFIG"


def test_spelling_a_config_otherwise_is_refused() -> None:
    with pytest.raises(Rejected, match="canonical"):
        read_config(image_config() + b"\n")


@pytest.mark.parametrize(
    ("strategy", "parameters", "quorum", "weighting", "rule"),
    [
        ("Krum", {"malicious": 1}, 4, "examples", "quorum: Krum with these parameters needs at least 5"),
        ("MultiKrum", {"malicious": 1, "select": 9}, 9, "examples", "needs at least 10"),
        ("Bulyan", {"malicious": 1}, 6, "equal", "needs at least 7"),
        ("FedMedian", {}, 3, "examples", "weighting: FedMedian counts every site once"),
        ("FedProx", {}, 3, "examples", "recipe.parameters.proximalMu: FedProx needs"),
        ("FedTrimmedAvg", {"beta": "0.5"}, 3, "equal", "strategy.parameters.beta"),
        ("FedAdam", {"tau": "2"}, 3, "equal", "strategy.parameters.tau: expected a decimal as text above 0"),
        ("Krum", {"malicious": "few"}, 9, "equal", "strategy.parameters.malicious: expected an integer"),
    ],
)
def test_a_strategy_that_could_not_keep_its_promise_is_refused(
    strategy: str, parameters: dict[str, Any], quorum: int, weighting: str, rule: str
) -> None:
    with pytest.raises(Rejected, match=rule):
        image_config(strategy=strategy, strategy_parameters=parameters, quorum=quorum, weighting=weighting)


def test_strategies_without_hostile_sites_in_mind_need_one_update() -> None:
    assert least_sites("FedAvg", {}) == 1


# --- recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_the_files_installed_here_with_digest_and_size(name: str) -> None:
    recipe = read_json(build_recipe(name))
    assert canonical(recipe) == build_recipe(name)
    assert set(recipe) == {"name", "version", "files"} and recipe["name"] == name
    names = [file["name"] for file in recipe["files"]]
    assert names == sorted(names) and f"recipes/{RECIPES[name].module}.py" in names and "training.py" in names
    root = Path(plan_module.__file__).parent
    for file in recipe["files"]:
        data = (root / file["name"]).read_bytes()
        assert (file["sha256"], file["size"]) == (sha256_hex(data), len(data))


def test_a_recipe_lists_every_module_of_ours_that_its_training_imports() -> None:
    """What decides the result must be in the digest; what only reads plans and raises errors need not."""
    program = (
        "import sys, federation.training, federation.recipes.image_classification\n"
        "print(*(n for n in sys.modules if n.startswith('federation.')))"
    )
    root = Path(plan_module.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={"PYTHONPATH": str(root)},
    )
    loaded = {name.removeprefix("federation.").replace(".", "/") + ".py" for name in run.stdout.split()}
    aside = {
        "plan.py",
        "app_terms.py",
        "strategy_terms.py",
        "fields.py",
        "figures.py",
        "harmonising.py",
        "errors.py",
        "recipes.py",
    }
    aside |= {"recipes/catalogue.py", "recipes/base_files.py"}
    assert loaded - aside == set(RECIPES["image-classification"].files)


def test_code_with_another_digest_than_the_plan_names_is_refused() -> None:
    config = read_config(image_config())
    check_recipe(config, sha256_hex(build_recipe("image-classification")))
    with pytest.raises(Rejected, match="the plan names code abab") as caught:
        check_recipe(config, "ab" * 32)
    assert caught.value.code == "E_RECIPE" and "install" in caught.value.hint


def copy_sources(folder: Path) -> None:
    root = Path(plan_module.__file__).parent
    for file in RECIPES["image-classification"].files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes((root / file).read_bytes())


def test_one_changed_byte_of_source_is_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_sources(tmp_path)
    before = build_recipe("image-classification")
    monkeypatch.setattr(plan_module, "_HERE", tmp_path)
    assert build_recipe("image-classification") == before
    with (tmp_path / "training.py").open("ab") as source:
        source.write(b"\n")
    with pytest.raises(Rejected, match="image-classification: the plan names code"):
        check_recipe(read_config(image_config()), sha256_hex(before))
    (tmp_path / "training.py").unlink()
    with pytest.raises(Unchecked, match=r"federation/training.py cannot be read") as caught:
        build_recipe("image-classification")
    assert caught.value.code == "E_RECIPE_SOURCE"


def test_source_that_was_exchanged_under_its_old_size_and_time_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_sources(tmp_path)
    monkeypatch.setattr(plan_module, "_HERE", tmp_path)
    before, source = build_recipe("image-classification"), tmp_path / "training.py"
    told = source.stat()
    source.write_bytes(b"#" + source.read_bytes()[1:])
    os.utime(source, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert build_recipe("image-classification") != before


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(Rejected, match="no recipe 'x' is installed here") as caught:
        build_recipe("x")
    assert "image-classification" in caught.value.hint


def test_parameters_are_checked_alone_and_together() -> None:
    check_parameters("image-classification", IMAGE)
    check_parameters("tabular-classification", TABULAR)
    for recipe, parameters, rule in (
        ("image-classification", {**IMAGE, "height": 512, "width": 512}, "at most 65536, found 262144"),
        ("tabular-classification", {**TABULAR, "scale": ["1"]}, "scale: expected one value for each of 2"),
        (
            "tabular-classification",
            {**TABULAR, "columns": ["a", "a"]},
            "columns: expected a list without repeats",
        ),
        (
            "tabular-classification",
            {**TABULAR, "columns": ["a b", "c"]},
            "columns: expected a list whose every",
        ),
        (
            "tabular-classification",
            {**TABULAR, "scale": ["0", "1"]},
            "scale: expected a list whose every value",
        ),
        ("tabular-classification", {**TABULAR, "columns": []}, "columns: expected a list of 1 to 1024"),
    ):
        with pytest.raises(Rejected, match=rule):
            check_parameters(recipe, parameters)


def test_a_models_config_names_its_recipe_and_nothing_else() -> None:
    raw = make_model_config("tabular-classification", TABULAR)
    assert read_model_config(raw) == ("tabular-classification", TABULAR)
    with pytest.raises(Rejected, match=r"recipe.parameters.classes: expected") as caught:
        make_model_config("tabular-classification", {**TABULAR, "classes": 1})
    assert caught.value.code == "E_MODEL_CONFIG"
    for raw in (b'{"architectures":["BertModel"]}', b"[]", image_config()):
        with pytest.raises(Rejected) as caught:
            read_model_config(raw)
        assert caught.value.code == "E_MODEL_CONFIG"


# --- the plan -------------------------------------------------------------------------------------------------


def test_a_plan_is_one_object_of_statement_recipe_and_config() -> None:
    plan = image_plan(epsilon="8", delta="0.00001")
    assert plan.issuer == "owner.example" and plan.base == "ab" * 32
    assert plan.code == sha256_hex(build_recipe("image-classification"))
    assert [site.institution for site in plan.sites] == list(LABS)
    assert plan.site(sha256_hex(b"lab-b.example")) == plan.sites[1] and plan.site("cd" * 32) is None
    assert (plan.rounds, plan.min_participants, plan.approvals, plan.config.quorum) == (5, 2, 2, 2)
    assert (str(plan.epsilon), str(plan.delta)) == ("8", "0.00001")
    assert image_plan().epsilon is None and plan.expires == 1_798_149_600


def test_bytes_that_the_plan_does_not_name_are_refused() -> None:
    recipe, config = build_recipe("image-classification"), image_config()
    statement = plan_statement(recipe, config)
    with pytest.raises(Rejected, match=r"config.json should be") as caught:
        read_plan(statement, recipe, image_config(seed=2))
    assert caught.value.code == "E_PLAN"
    with pytest.raises(Rejected, match=r"recipe.json should be"):
        read_plan(statement, recipe + b" ", config)


def test_a_plan_that_disagrees_with_its_files_is_refused_with_every_reason() -> None:
    recipe, config = build_recipe("tabular-classification"), image_config(quorum=4)
    same = [{"institution": lab, "dataset": "aa" * 32} for lab in LABS[:2]]
    with pytest.raises(Rejected) as caught:
        read_plan(plan_statement(recipe, config, strategy="FedAdam", participants=same), recipe, config)
    for reason in (
        "recipe.json is 'tabular-classification'",
        "strategy is 'FedAdam'",
        "quorum 4 should be from minParticipants 2 to 2",
        "a dataset takes part twice",
    ):
        assert reason in caught.value.message


def test_a_quorum_below_the_promised_participants_is_refused() -> None:
    recipe, config = build_recipe("image-classification"), image_config(quorum=1)
    with pytest.raises(Rejected, match="quorum 1 should be from minParticipants 2 to 3"):
        read_plan(plan_statement(recipe, config), recipe, config)


def test_a_statement_of_another_kind_or_shape_is_no_plan() -> None:
    recipe, config = build_recipe("image-classification"), image_config()
    statement = plan_statement(recipe, config)
    with pytest.raises(Rejected, match="expected a plan, found grant"):
        read_plan(replace(statement, kind="grant"), recipe, config)
    with pytest.raises(Rejected, match="expected 3 subjects, found 1"):
        read_plan(replace(statement, subjects=statement.subjects[:1]), recipe, config)


def test_reading_plans_needs_neither_numpy_nor_torch_nor_flwr() -> None:
    root = Path(plan_module.__file__).parent.parent
    program = (
        "import sys, federation.plan; print(*(n for n in ('numpy', 'torch', 'flwr') if n in sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(root)},
    )
    assert run.stdout.strip() == ""
