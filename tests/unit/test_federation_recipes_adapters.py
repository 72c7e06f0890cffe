"""LoRA on frozen bases: tiny BERT and GPT-2 models with random weights, made here, and real English (``small_bases``).

What is shown of them is how they learn and travel, not what they know.
"""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation import training
from federation.aggregation import SiteUpdate, aggregate
from federation.plan import check_parameters, make_config, read_config
from federation.recipes import base_files
from federation.recipes.texts import read_texts
from federation.strategies import make_strategy
from federation.tensors import layout_of
from storage.encoding import sha256_hex
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from tests import small_bases

CLASSES, LANGUAGE = "text-classification", "causal-language-modelling"
ADAPTERS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bert``, ``gpt``; ``<base>-model`` with untaught adapters; ``one`` and ``two`` with texts of two sites."""
    folder = tmp_path_factory.mktemp("texts")
    rows = small_bases.labelled(24)
    for number, site in enumerate(("one", "two")):
        own = rows[number::2]
        small_bases.write(folder / site / "train.csv", own[4:])
        small_bases.write(folder / site / "heldout.csv", own[:4] + own[-4:])
        small_bases.write(folder / f"{site}-plain" / "train.csv", [(text,) for text, _ in own], ("text",))
        small_bases.write(folder / f"{site}-plain" / "heldout.csv", [(own[0][0],), (own[1][0],)], ("text",))
    small_bases.encoder(folder / "bert")
    small_bases.decoder(folder / "gpt")
    for recipe, base in ((CLASSES, "bert"), (LANGUAGE, "gpt")):
        (folder / f"{base}-model").mkdir()
        training.make_model(
            recipe, chosen(folder, recipe), folder / f"{base}-model", 1, bases=[folder / base]
        )
    return folder


def base_of(folder: Path, recipe: str) -> Path:
    return folder / ("bert" if recipe == CLASSES else "gpt")


def chosen(folder: Path, recipe: str, **changed: Any) -> dict[str, Any]:
    make = small_bases.parameters if recipe == CLASSES else small_bases.language_parameters
    return make(base_of(folder, recipe), **{"learningRate": "0.01", "epochs": 2, **changed})


def site_of(folder: Path, recipe: str, site: str) -> Path:
    return folder / (site if recipe == CLASSES else f"{site}-plain")


def start_of(folder: Path, recipe: str) -> Path:
    return folder / f"{base_of(folder, recipe).name}-model" / ADAPTERS


def train(folder: Path, recipe: str, out: Path, *, site: str = "one", **changed: Any) -> training.TrainResult:
    return training.train(
        recipe,
        chosen(folder, recipe, **changed),
        start_of(folder, recipe),
        site_of(folder, recipe, site),
        out,
        1,
        1,
        site=site,
        bases=[folder, base_of(folder, recipe)],
    )


def federate(folder: Path, recipe: str, out: Path, rounds: int = 2) -> Path:
    """Rounds over both sites as a run makes them: the same training, the same aggregation."""
    config = read_config(make_config(recipe, chosen(folder, recipe), quorum=2))
    assert config.weights == ADAPTERS
    weights = start_of(folder, recipe)
    strategy = make_strategy(config.strategy, config.strategy_parameters)
    for number in range(1, rounds + 1):
        updates = []
        for site in ("one", "two"):
            path = out / f"{site}.safetensors"
            data, bases = site_of(folder, recipe, site), [base_of(folder, recipe)]
            done = training.train(
                recipe, config.parameters, weights, data, path, 1, number, site=site, bases=bases
            )
            updates.append(SiteUpdate(site, path, done.examples))
        weights, before = out / f"round-{number}.safetensors", weights
        aggregate(strategy, before, updates, weights, round_number=number)
    return weights


# --- learning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [CLASSES, LANGUAGE])
def test_only_adapters_and_head_travel_as_float32_and_the_same_seed_gives_the_same_bytes(
    made: Path, tmp_path: Path, recipe: str
) -> None:
    first = train(made, recipe, tmp_path / "first")
    again = train(made, recipe, tmp_path / "again")
    other = train(made, recipe, tmp_path / "other", site="two")
    assert first.sha256 == again.sha256 != other.sha256
    layout = layout_of(tmp_path / "first")
    assert layout.differences(layout_of(start_of(made, recipe))) == []
    heads = {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    names = {spec.name for spec in layout.tensors}
    assert {name for name in names if ".lora_" not in name} == (heads if recipe == CLASSES else set())
    assert {spec.dtype for spec in layout.tensors} == {"F32"} and len(names) > 3
    whole = (base_of(made, recipe) / "model.safetensors").stat().st_size
    assert first.size < whole / 4


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own call
@pytest.mark.parametrize("recipe", [CLASSES, LANGUAGE])
def test_a_federated_loss_falls_and_the_result_loads_with_stock_peft(
    made: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    bases, data = [base_of(made, recipe)], site_of(made, recipe, "one")
    plan = chosen(made, recipe)
    before = training.evaluate(recipe, plan, start_of(made, recipe), data, file="train.csv", bases=bases)
    weights = federate(made, recipe, tmp_path)
    after = training.evaluate(recipe, plan, weights, data, file="train.csv", bases=bases)
    assert after["loss"] < before["loss"] and after["examples"] == before["examples"]
    if recipe == LANGUAGE:
        assert after["perplexity"] == pytest.approx(np.exp(after["loss"])) and after["tokens"] > 500
    # As ``run finish`` makes the released folder: the base version's files, with the last aggregate in place.
    released = tmp_path / "released"
    shutil.copytree(start_of(made, recipe).parent, released)
    shutil.copyfile(weights, released / ADAPTERS)
    ours = training.evaluate(recipe, plan, released / ADAPTERS, data, bases=bases)["accuracy"]
    assert stock_accuracy(recipe, bases[0], released, data) == pytest.approx(ours)


def _no_network(*told: Any) -> None:
    raise AssertionError(f"something is asked of the network: {told[1:]}")


def stock_accuracy(recipe: str, base: Path, released: Path, data: Path) -> float:
    """Accuracy on held-out texts by transformers and peft alone, one text at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = read_texts(data / "heldout.csv", small_bases.LABELS if recipe == CLASSES else None)
    if recipe == CLASSES:
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(small_bases.LABELS))
    else:
        plain = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(plain, released).eval()
    right = count = 0
    with torch.inference_mode():
        for text, label in zip(texts.texts, texts.labels, strict=True):
            if recipe == CLASSES:
                scores = model(**tokenizer(text, truncation=True, max_length=32, return_tensors="pt")).logits
                right, count = right + int(scores.argmax() == label), count + 1
                continue
            ids = tokenizer(text, return_tensors="pt").input_ids[0]
            for piece in (piece for piece in torch.split(ids, 32) if len(piece) > 1):
                told = model(input_ids=piece[None]).logits[0, :-1].argmax(1)
                right, count = right + int((told == piece[1:]).sum()), count + len(piece) - 1
    return right / count


def test_a_model_folder_is_whole_and_names_its_base_by_digest(made: Path) -> None:
    folder = made / "bert-model"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", ADAPTERS, "config.json"]
    says = json.loads((folder / "adapter_config.json").read_text())
    weights = sha256_hex((made / "bert" / "model.safetensors").read_bytes())
    assert says["base_model_name_or_path"] == f"sha256:{weights}" and says["r"] == 8
    recipe, parameters = training.read_model_folder(folder)
    assert (recipe, parameters["base"]["model.safetensors"]) == (CLASSES, weights)


def test_a_proximal_term_holds_a_site_nearer_to_what_it_received(made: Path, tmp_path: Path) -> None:
    from federation.tensors import TensorFile

    moved = {}
    for mu in ("0", "100"):
        train(made, CLASSES, tmp_path / mu, proximalMu=mu, epochs=4)
        with TensorFile(tmp_path / mu) as file:
            names = [spec.name for spec in file.layout.tensors]
            moved[mu] = sum(float(np.square(file.array(name)).sum()) for name in names)
    assert moved["100"] < moved["0"]


# --- refusing -----------------------------------------------------------------------------------------------


def _other_bytes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "code"), [(_other_bytes, "E_BASE_DIGEST"), (_no_weights, "E_BASE_MISSING")]
)
def test_another_base_than_the_plans_is_refused_before_a_text_is_read(
    made: Path, tmp_path: Path, change: Callable[[Path], None], code: str
) -> None:
    shutil.copytree(made / "bert", tmp_path / "bert")
    change(tmp_path / "bert")
    with pytest.raises((Refused, Rejected)) as caught:
        training.train(
            CLASSES, chosen(made, CLASSES), start_of(made, CLASSES), tmp_path, tmp_path / "out", 1, 1,
            bases=[tmp_path / "bert"],
        )  # fmt: skip
    assert caught.value.code == code and "fedhub site base" in caught.value.hint


def test_a_changed_base_is_noticed_in_the_same_process(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "bert", tmp_path / "bert")
    pinned = base_files.base_files(tmp_path / "bert")
    assert base_files.find_base(pinned, [tmp_path / "bert"]) == tmp_path / "bert"
    _other_bytes(tmp_path / "bert")
    with pytest.raises(Rejected, match=r"config\.json: the plan names"):
        base_files.find_base(pinned, [tmp_path / "bert"])


@pytest.mark.parametrize(
    ("changed", "code", "rule"),
    [
        ({"targets": ["query", "q_proj"]}, "E_TARGETS", "'q_proj' names no linear layers"),
        ({"targets": ["embeddings"]}, "E_TARGETS", "layers that can have an adapter|names no linear layers"),
        ({"maxTokens": 65}, "E_CONFIG", "the base model takes 64 tokens"),
        ({"longText": "refuse", "maxTokens": 8}, "E_DATA", r"a text has \d+ tokens, the plan takes 8"),
        ({"labels": ["classes", "strings"]}, "E_DATA", "should be one of the 2 labels"),
        ({"rank": 4}, "E_LAYOUT", r"expected F32 \[4, 32\], found F32 \[8, 32\]"),
    ],
)
def test_what_does_not_fit_the_base_or_the_plan_is_refused_by_name(
    made: Path, tmp_path: Path, changed: dict[str, Any], code: str, rule: str
) -> None:
    with pytest.raises(Rejected, match=rule) as caught:
        train(made, CLASSES, tmp_path / "out", **changed)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "base",
    [
        {},
        {"config.json": "0" * 64, "tokenizer.json": "0" * 64, "pytorch_model.bin": "0" * 64},
        {"config.json": "0" * 64, "tokenizer.json": "0" * 64, "../model.safetensors": "0" * 64},
        {"config.json": "0" * 64, "tokenizer.json": "0" * 64, "model.safetensors": "0" * 63},
        {"config.json": "0" * 64, "modeling.py": "0" * 64, "model.safetensors": "0" * 64},
    ],
)
def test_a_plan_can_pin_nothing_but_a_whole_base_of_safe_files(made: Path, base: dict[str, str]) -> None:
    with pytest.raises(Rejected, match=r"parameters\.base: expected an object of 3 to 64 file names"):
        check_parameters(CLASSES, chosen(made, CLASSES) | {"base": base})


def test_a_base_that_lacks_tensors_is_not_filled_with_chance(made: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "bert"
    shutil.copytree(made / "bert", folder)
    tensors = load_file(folder / "model.safetensors")
    dropped = next(name for name in tensors if "pooler" in name)
    save_file(
        {name: array for name, array in tensors.items() if name != dropped},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (tmp_path / "model").mkdir()
    with pytest.raises(Rejected, match=r"asks for 1 tensors that its weights lack") as caught:
        training.make_model(CLASSES, small_bases.parameters(folder), tmp_path / "model", 1, bases=[folder])
    assert caught.value.code == "E_BASE_MODEL"


def test_code_and_pickles_in_the_bases_folder_are_never_seen(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(made / "bert", folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit(9)\n")
    with base_files.only(base_files.base_files(folder), folder) as shown:
        assert {path.name for path in shown.iterdir()} == {path.name for path in (made / "bert").iterdir()}


def test_a_folder_that_is_no_base_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Rejected, match=r"lacks tokenizer\.json, a \.safetensors file"):
        base_files.base_files(tmp_path)


def test_without_peft_the_recipe_says_what_to_install(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("federation.recipes.")]:
        if name.endswith((".text_classification", ".adapters")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Lacking("peft"), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    with pytest.raises(Unchecked, match="text-classification needs peft, which is not installed") as caught:
        train(made, CLASSES, tmp_path / "out")
    assert caught.value.code == "E_EXTRA" and caught.value.hint == "pip install 'fedhub[text]'"


class _Lacking:
    """Says of one package that it is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_rows_of_numbers_are_trained_without_the_libraries_of_text_models() -> None:
    program = (
        "import sys, federation.training, federation.recipes.tabular_classification\n"
        "print([name for name in ('transformers', 'peft') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_rows_of_numbers_are_not_asked_of_a_text_model(made: Path) -> None:
    with pytest.raises(FedhubError):
        training.predict(made / "bert-model", np.zeros((1, 4), np.float32))
