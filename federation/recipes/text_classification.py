"""Recipe ``text-classification``: texts to the plan's labels, by LoRA adapters and a head on a frozen base.

Letters: N texts, B of a batch, T tokens, C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from federation.recipes.adapters import TextLearner, commonest
from federation.recipes.texts import Texts


class Classification(TextLearner):
    """Texts and their labels; the head is ``classifier`` or ``score``, as the base calls it."""

    task = "SEQ_CLS"
    auto = transformers.AutoModelForSequenceClassification
    head = ("classifier", "score")

    @property
    def labels(self) -> Sequence[str]:
        """The C classes, in the plan's order."""
        found: Sequence[str] = self._parameters["labels"]
        return found

    def pieces(self, data: Texts) -> tuple[list[list[int]], Tensor]:
        """One piece for each text, cut at ``maxTokens``, with the tokenizer's own last token kept."""
        found = self.tokenizer(
            list(data.texts),
            truncation=True,
            max_length=self._most,
            return_attention_mask=False,
            verbose=False,
        )
        return found["input_ids"], torch.from_numpy(data.labels)

    def losses(self, model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, int, int]:
        """Cross-entropy per text; how many texts are right, of how many."""
        scores = model(input_ids=ids, attention_mask=mask).logits
        return (
            nn.functional.cross_entropy(scores, labels),
            int((scores.argmax(1) == labels).sum()),
            len(labels),
        )

    def told(self, right: int, loss: float, count: int) -> dict[str, float | int]:
        """Share of texts right, and mean loss per text."""
        return {"accuracy": right / count, "loss": loss}

    def majority(self, seen: Texts, data: Texts) -> float:
        """Share of texts that have the label that is commonest in ``seen``."""
        return int((data.labels == commonest(seen.labels)).sum()) / len(data)


def learner(parameters: Mapping[str, Any], bases: Sequence[Path]) -> Classification:
    """How this recipe learns.

    Args:
        bases: folders in which the base model may lie.
    """
    return Classification(parameters, bases)
