"""Tiny base models made here, with random weights, and real English to train on: Python's own language reference.

The text is ``pydoc_data.topics``, which every Python has (PSF licence); what is made up is only the models,
so that tests of the text recipes take a second. They learn something, but know nothing.
"""

import csv
import pydoc_data.topics
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from federation.recipes.base_files import base_files

LABELS = ("classes", "strings", "debugging")
_SOURCES = {"classes": "specialnames", "strings": "string-methods", "debugging": "debugger"}
WIDTH = 32


def paragraphs(topic: str) -> list[str]:
    """The paragraphs of a topic of the language reference, 8 to 60 words each."""
    found = pydoc_data.topics.topics[topic]
    texts = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", found)]
    return [text for text in texts if 8 <= len(text.split()) <= 60]


def labelled(count: int, labels: Sequence[str] = LABELS) -> list[tuple[str, str]]:
    """``count`` texts of each label, in turn."""
    return [(text, label) for label in labels for text in paragraphs(_SOURCES[label])[:count]]


def write(path: Path, rows: Sequence[tuple[str, ...]], header: Sequence[str] = ("text", "label")) -> Path:
    """A CSV file of a dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def encoder(folder: Path) -> Path:
    """A BERT of two layers."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    size = _tokenizer(folder)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def decoder(folder: Path) -> Path:
    """A GPT-2 of two layers."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True, exist_ok=True)
    size = _tokenizer(folder)
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=size, n_positions=64, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> int:
    """Word pieces learnt from the texts themselves; answers the size of the vocabulary."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    made = BertWordPieceTokenizer()
    texts = [text for topic in _SOURCES.values() for text in paragraphs(topic)]
    made.train_from_iterator(texts, vocab_size=800, show_progress=False)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, **names).save_pretrained(folder)
    return int(made.get_vocab_size())


def parameters(base: Path, **changed: Any) -> dict[str, Any]:
    """Of ``text-classification`` on a base; ``changed`` on top."""
    from federation.recipes.catalogue import RECIPES

    usual = RECIPES["text-classification"].usual
    own = {"base": base_files(base), "labels": list(LABELS), "targets": ["query", "value"], "maxTokens": 32}
    return {**usual, **own, **changed}


def language_parameters(base: Path, **changed: Any) -> dict[str, Any]:
    """Of ``causal-language-modelling`` on a base; ``changed`` on top."""
    from federation.recipes.catalogue import RECIPES

    usual = RECIPES["causal-language-modelling"].usual
    return {**usual, "base": base_files(base), "targets": ["c_attn"], "maxTokens": 32, **changed}
