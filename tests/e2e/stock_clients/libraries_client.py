"""Run by the libraries' own Python: transformers, peft and datasets against the hub in ``HF_ENDPOINT``.

``python libraries_client.py SCENARIO FOLDER [NAME=VALUE…]`` prints one JSON object. Models are made here, tiny and from
fixed seeds.
"""

import json
import sys
from pathlib import Path


def tiny_model():
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertModel(BertConfig(vocab_size=32, max_position_embeddings=16, **shape))


def fingerprint(model) -> float:
    return round(float(sum(value.double().abs().sum() for value in model.state_dict().values())), 6)


def loaded(repo: str, revision: str) -> list:
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_pretrained(repo, revision=revision)
    return [fingerprint(model), AutoConfig.from_pretrained(repo, revision=revision).hidden_size]


def models_up(folder: Path, base: str, adapter: str) -> dict:
    """A model made here and a LoRA adapter of what the hub gives back of it, each pushed by its library's own call."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    model = tiny_model()
    commit = model.push_to_hub(base).oid
    draft = loaded(base, commit)
    torch.manual_seed(1)
    tuned = get_peft_model(
        AutoModel.from_pretrained(base), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    )
    tuned.push_to_hub(adapter)
    return {"base": fingerprint(model), "draft": draft, "adapter": fingerprint(tuned)}


def models_down(folder: Path, base: str, adapter: str) -> dict:
    """Both versions, the base by every name that it has."""
    from peft import PeftModel
    from transformers import AutoModel

    found = [loaded(base, revision) for revision in ("main", "v1", "v1-0")]
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter, revision="v1")
    return {"base": found, "adapter": fingerprint(model)}


def rows_up(folder: Path, repo: str, kind: str) -> dict:
    """A data set of this kind with two splits."""
    import pandas
    from huggingface_hub import HfApi

    data = folder / "rows" / "data"
    data.mkdir(parents=True)
    for split, count in (("train", 30), ("test", 10)):
        frame = pandas.DataFrame({"a": range(count), "b": [f"row {number}" for number in range(count)]})
        frame.to_parquet(data / f"{split}-00000-of-00001.parquet") if kind == "parquet" else frame.to_csv(
            data / f"{split}.csv", index=False
        )
    (folder / "rows" / "README.md").write_text("# rows\n")
    api = HfApi()
    api.create_repo(repo, repo_type="dataset")
    return {"commit": api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder / "rows").oid}


def rows_down(folder: Path, repo: str, revision: str) -> dict:
    from datasets import load_dataset

    found = load_dataset(repo, revision=revision)
    streamed = load_dataset(repo, revision=revision, split="test", streaming=True)
    return {
        "splits": {name: split.num_rows for name, split in found.items()},
        "sum": sum(found["train"]["a"]),
        "first": next(iter(streamed))["b"],
    }


if __name__ == "__main__":
    scenario, where, *rest = sys.argv[1:]
    print(json.dumps(globals()[scenario](Path(where), **dict(item.split("=", 1) for item in rest))))
