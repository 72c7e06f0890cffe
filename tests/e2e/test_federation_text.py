"""Federated LoRA on the real MiniLM encoder between real processes: hub, SuperLink, three lab agents, an owner.

The base model travels as an ordinary version under a grant, the adapters by rounds; what ``run finish`` signs
loads with stock ``peft``. The texts are Python's own language reference (``tests/small_bases``).
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.home import Home
from federation.recipes.base_files import base_files
from federation.tensors import layout_of
from federation.training import read_model_folder
from hub.cli import dispatch
from hub.demo.alliance import LABS, Alliance, institution
from storage.encoding import sha256_hex
from storage.errors import Exit
from tests import small_bases
from tests.bench.bench_text import minilm

BASE, MODEL = "owner.example/minilm", "owner.example/topics"
ADAPTERS = "adapter_model.safetensors"
RUN_LIMIT_S = 240


class TextAlliance(Alliance):
    """Labs that hold texts, each mainly of one topic."""

    def describe_data(self) -> None:
        for lab, own in zip(LABS, small_bases.LABELS, strict=True):
            rows = [row for row in small_bases.labelled(24) if row[1] == own]
            others = [row for row in small_bases.labelled(28)[24:] if row[1] != own][::6]
            small_bases.write(self.data(lab) / "train.csv", rows[:16] + others)
            small_bases.write(self.data(lab) / "heldout.csv", rows[16:] + others[:2])
            terms = ["--description", "Paragraphs of the Python language reference.", "--license", "PSF-2.0"]
            self.run(lab, "data", "describe", str(self.data(lab)), f"{institution(lab)}/texts", *terms)


@pytest.fixture
def alliance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextAlliance]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = TextAlliance(tmp_path / "alliance", lambda argv, terminal: dispatch(argv, terminal))
    try:
        made.up()
        yield made
    finally:
        made.down()


def share_base(alliance: TextAlliance) -> Path:
    """MiniLM as a version that every lab pulls under a grant and names at its site; the owner's folder."""
    folder = alliance.folder / "work" / "minilm"
    folder.mkdir(parents=True)
    for name in base_files(minilm()):
        shutil.copyfile(minilm() / name, folder / name)
    alliance.run("owner", "model", "push", str(folder), BASE, "--license", "Apache-2.0")
    for lab in LABS:
        alliance.run("owner", "grant", "issue", f"{BASE}@1", "--to", institution(lab), "--action", "pull")
        place = alliance.folder / "bases" / lab
        place.parent.mkdir(exist_ok=True)
        alliance.run(lab, "model", "pull", f"{BASE}@1", str(place))
        named = alliance.run(lab, "site", "base", str(place)).data
        assert named["files"] == base_files(folder)
    return folder


def submit(alliance: TextAlliance, base: Path) -> str:
    """Untaught adapters as a version, and a plan from them that every lab consents to."""
    folder, draft = alliance.folder / "work" / "adapters", alliance.folder / "work" / "draft"
    settings = {
        "labels": json.dumps(small_bases.LABELS),
        "targets": '["query", "value"]',
        "maxTokens": "32",
        "learningRate": "0.002",
        "batch": "4",
    }
    chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    new = ["model", "new", str(folder), "--recipe", "text-classification", "--base", str(base)]
    alliance.run("owner", *new, *chosen)
    alliance.run("owner", "model", "push", str(folder), MODEL, "--tag", "base")
    terms = ["--model", f"{MODEL}:base", "--rounds", "2", "--deadline", "200", "--approvals", "1"]
    sites = [part for lab in LABS for part in ("--participant", f"{institution(lab)}/texts")]
    alliance.run("owner", "plan", "new", str(draft), *terms, *sites)
    plan = str(alliance.run("owner", "plan", "submit", str(draft)).data["id"])
    for lab in LABS:
        alliance.run(lab, "site", "approve", plan)
    return plan


def stock_predictions(base: Path, released: Path, rows: list[tuple[str, str]]) -> list[str]:
    """What transformers and peft alone say of texts."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(small_bases.LABELS))
    model = PeftModel.from_pretrained(plain, released).eval()
    texts = [text for text, _ in rows]
    with torch.inference_mode():
        read = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
        places = model(**read).logits.argmax(1)
    return [small_bases.LABELS[place] for place in places]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own call
def test_labs_train_adapters_on_a_base_they_pulled_and_the_release_loads_with_stock_peft(
    alliance: TextAlliance,
) -> None:
    base = share_base(alliance)
    plan = submit(alliance, base)
    alliance.run("owner", "run", "start", plan)
    with Home.open(alliance.home("owner")).client() as client:
        end = time.monotonic() + RUN_LIMIT_S
        while (run := client.run(plan)).state not in ("finished", "stopped"):
            assert time.monotonic() < end, [(each.kind, each.data) for each in client.events(plan)[-12:]]
            time.sleep(0.5)
        events = client.events(plan)
        assert run.state == "finished", [(each.kind, each.data) for each in events[-12:]]
        assert [each.round for each in run.rounds] == [1, 2]
        assert "site.refused" not in {each.kind for each in events}
    released = alliance.folder / "released"
    made = alliance.run("owner", "run", "finish", plan, "--out", str(released)).data
    assert (made["name"], made["version"]) == (MODEL, 2)
    first = alliance.folder / "work" / "adapters"
    assert layout_of(released / ADAPTERS).differences(layout_of(first / ADAPTERS)) == []
    assert (released / ADAPTERS).read_bytes() != (first / ADAPTERS).read_bytes()
    assert os.path.getsize(released / ADAPTERS) < os.path.getsize(base / "model.safetensors") / 100

    rows = small_bases.labelled(24)
    said = stock_predictions(base, released, rows)
    right = sum(label == answer for (_, label), answer in zip(rows, said, strict=True))
    assert right / len(rows) > 0.4  # naming one label always: a third

    # The signed files name the base: the recipe's by every file, peft's by the weights.
    recipe, parameters = read_model_folder(released)
    assert (recipe, parameters["base"]) == ("text-classification", base_files(base))
    peft_says = json.loads((released / "adapter_config.json").read_text())
    assert peft_says["base_model_name_or_path"] == f"sha256:{base_files(base)['model.safetensors']}"

    # A lab whose base is another one by a byte refuses, by name.
    place = alliance.folder / "bases" / "lab-a"
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "classifier_dropout": 0.5}))
    refused = alliance.run("lab-a", "evaluate", f"{MODEL}@2", expect=None)
    assert refused.exit is not Exit.DONE and refused.error["code"] == "E_BASE_DIGEST"
    assert sha256_hex((place / "config.json").read_bytes()) in refused.error["message"]
