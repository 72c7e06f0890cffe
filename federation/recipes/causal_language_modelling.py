"""Recipe ``causal-language-modelling``: which token follows, by LoRA adapters on a frozen language model.

Letters: N texts, B pieces of a batch, T tokens, V size of the vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from federation.recipes.adapters import TextLearner, commonest
from federation.recipes.texts import Texts
from storage.errors import Rejected


class Modelling(TextLearner):
    """Texts in pieces of at most ``maxTokens`` tokens; all tokens but a piece's first are to be foretold."""

    task = "CAUSAL_LM"
    auto = transformers.AutoModelForCausalLM

    def pieces(self, data: Texts) -> tuple[list[list[int]], Tensor]:
        """Each text cut into pieces; one of a single token has nothing to foretell and is left out."""
        cut = [
            ids[start : start + self._most]
            for ids in self.tokens(data)
            for start in range(0, len(ids), self._most)
        ]
        found = [piece for piece in cut if len(piece) > 1]
        if not found:
            raise Rejected("E_DATA", f"{data.name}: no text has two tokens", "correct the file")
        return found, torch.zeros(len(found), dtype=torch.int64)

    def losses(self, model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, int, int]:
        """Cross-entropy per token; how many tokens are foretold rightly, of how many."""
        scores = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        told, counts = ids[:, 1:], mask[:, 1:].bool()
        wanted, given = told[counts], scores[counts]
        return nn.functional.cross_entropy(given, wanted), int((given.argmax(1) == wanted).sum()), len(wanted)

    def told(self, right: int, loss: float, count: int) -> dict[str, float | int]:
        """Share of tokens right, mean loss per token, its exponential, and how many tokens they are of."""
        perplexity = math.exp(min(loss, 700.0))  # beyond, a float has no such number
        return {"accuracy": right / count, "loss": loss, "perplexity": perplexity, "tokens": count}

    def majority(self, seen: Texts, data: Texts) -> float:
        """Share of tokens that are the one that is commonest in ``seen``."""
        following = self._following(data)
        return int((following == commonest(self._following(seen))).sum()) / len(following)

    def _following(self, data: Texts) -> "np.ndarray[Any, np.dtype[np.int64]]":
        return np.concatenate([np.array(piece[1:], np.int64) for piece in self.pieces(data)[0]])


def learner(parameters: Mapping[str, Any], bases: Sequence[Path]) -> Modelling:
    """How this recipe learns.

    Args:
        bases: folders in which the base model may lie.
    """
    return Modelling(parameters, bases)
