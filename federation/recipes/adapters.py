"""LoRA adapters on a frozen base model, as the two text recipes train them by ``transformers`` and ``peft``.

The base is read from a folder at the site whose files have the plan's digests (``base_files``); nothing is
ever asked of a model hub, no code of a model's is run, and no weights but safetensors are read. What trains
and travels is the adapters and, for classes, the head, in float32 and under the names that ``peft`` gives
them, so that a released folder loads with ``PeftModel.from_pretrained``.

Letters: N texts, B of a batch, T tokens of the longest of them.
Source: LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1; AdamW, Loshchilov and Hutter 2017,
arXiv 1711.05101, algorithm 2.
"""

import json
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Before the import: both libraries read these once.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import peft
import transformers

from federation.recipes.base_files import CONFIG, find_base, only
from federation.recipes.texts import Texts, broken, read_texts
from storage.errors import Rejected

MEASURE_BATCH = 32  # texts
PEFT_CONFIG_FILE = "adapter_config.json"


class TextLearner(ABC):
    """What ``federation.training`` asks of a recipe, for one that puts adapters on a base model.

    Attributes:
        task: peft's name of the task. auto: the class of ``transformers`` that loads the base.
        head: modules that are trained whole, by the end of their names.
    """

    task: str
    auto: Any
    head: tuple[str, ...] = ()

    def __init__(self, parameters: Mapping[str, Any], bases: Sequence[Path]) -> None:
        self._parameters = parameters
        self._files: dict[str, str] = dict(parameters["base"])
        self._folder = find_base(self._files, bases)
        self._most = int(parameters["maxTokens"])
        with _quiet(), only(self._files, self._folder) as folder:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )

    @property
    def labels(self) -> Sequence[str] | None:
        """The classes, or None where texts have none."""
        return None

    def read(self, path: Path) -> Texts:
        """The texts of a file.

        Raises:
            Rejected: ``E_DATA``: a rule of the file's, or a text is too long and the plan refuses such.
        """
        texts = read_texts(path, self.labels)
        if self._parameters["longText"] == "refuse":
            for number, ids in enumerate(self.tokens(texts)):
                if len(ids) > self._most:
                    rule = f"a text has {len(ids)} tokens, the plan takes {self._most} (maxTokens)"
                    raise broken(texts.name, int(texts.lines[number]), rule)
        return texts

    def tokens(self, texts: Texts) -> list[list[int]]:
        """The token ids of each text, whole."""
        found: list[list[int]] = self.tokenizer(
            list(texts.texts), return_attention_mask=False, verbose=False
        )["input_ids"]
        return found

    def fresh(self) -> nn.Module:
        """The base with a fresh head and adapters that do nothing yet, from torch's global generator."""
        with _quiet():
            model = self._load()
            self._check_targets(model)
            configuration = peft.LoraConfig(
                task_type=self.task,
                r=self._parameters["rank"],
                lora_alpha=self._parameters["alpha"],
                lora_dropout=0.0,
                target_modules=list(self._parameters["targets"]),
                modules_to_save=list(self.head) or None,
                fan_in_fan_out=self._has_conv1d(model),
            )
            made: nn.Module = peft.get_peft_model(model, configuration)
        return made

    def blank(self) -> nn.Module:
        """As ``fresh``: the base is read either way."""
        return self.fresh()

    def travelling(self, model: nn.Module) -> dict[str, Tensor]:
        """Adapters and head under peft's names, not copied."""
        found: dict[str, Tensor] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        return found

    @torch.no_grad()
    def fill(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Give adapters and head their values."""
        for name, tensor in self.travelling(model).items():
            tensor.copy_(state[name])

    def beside(self, model: nn.Module) -> dict[str, bytes]:
        """``adapter_config.json``, always the same bytes; it names the base by the digest of its weights."""
        says = model.peft_config["default"].to_dict()  # type: ignore[index, union-attr]
        weights = next(name for name in sorted(self._files) if name.endswith(".safetensors"))
        says |= {
            "base_model_name_or_path": f"sha256:{self._files[weights]}",
            "inference_mode": True,
            "peft_type": "LORA",
            "target_modules": sorted(self._parameters["targets"]),
            "modules_to_save": sorted(self.head) or None,
        }
        return {PEFT_CONFIG_FILE: json.dumps(says, indent=2, sort_keys=True).encode() + b"\n"}

    def fit(self, model: nn.Module, data: Texts, epochs: int, generator: torch.Generator) -> float:
        """Train adapters and head by AdamW, its memory fresh; mean loss in the last epoch, nats.

        The proximal term is FedProx's, over what travels: Li et al. 2020, arXiv 1812.06127, equation 2.
        """
        pieces, labels = self.pieces(data)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        mu = float(self._parameters["proximalMu"])
        received = [weight.detach().clone() for weight in weights] if mu else []
        step = torch.optim.AdamW(
            weights,
            lr=float(self._parameters["learningRate"]),
            weight_decay=float(self._parameters["weightDecay"]),
            foreach=False,
        )
        model.train()
        total, count = 0.0, 0
        for _ in range(epochs):
            total, count = 0.0, 0
            order = torch.randperm(len(pieces), generator=generator)
            for rows in torch.split(order, int(self._parameters["batch"])):
                step.zero_grad()
                ids, mask = self.batch([pieces[row] for row in rows])
                loss, _, parts = self.losses(model, ids, mask, labels[rows])
                total, count = total + float(loss.detach()) * parts, count + parts
                if mu:
                    pairs = zip(weights, received, strict=True)
                    loss = loss + mu / 2 * torch.stack([(w - r).square().sum() for w, r in pairs]).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                step.step()
        step.zero_grad()
        return total / count

    def measure(self, model: nn.Module, data: Texts) -> dict[str, float | int]:
        """``accuracy`` and ``loss`` (mean, nats) over rows or tokens, see ``losses``."""
        pieces, labels = self.pieces(data)
        total, right, count = 0.0, 0, 0
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(pieces), MEASURE_BATCH):
                ids, mask = self.batch(pieces[start : start + MEASURE_BATCH])
                loss, good, parts = self.losses(model, ids, mask, labels[start : start + MEASURE_BATCH])
                total, right, count = total + float(loss) * parts, right + good, count + parts
        return self.told(right, total / count, count)

    def batch(self, pieces: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, each of shape (B, T)."""
        widest = max(map(len, pieces))
        ids = torch.full((len(pieces), widest), self.padding, dtype=torch.int64)
        mask = torch.zeros((len(pieces), widest), dtype=torch.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = torch.tensor(piece)
            mask[row, : len(piece)] = 1
        return ids, mask

    @property
    def padding(self) -> int:
        """The id that fills up a batch: never attended to."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return int(next((each for each in known if each is not None), 0))

    @abstractmethod
    def pieces(self, data: Texts) -> tuple[list[list[int]], Tensor]:
        """What goes through the model at a time, at most ``maxTokens`` ids each, and the label of each."""

    @abstractmethod
    def losses(self, model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, int, int]:
        """Mean loss of a batch in nats, how many parts of it are right, and how many there are."""

    @abstractmethod
    def told(self, right: int, loss: float, count: int) -> dict[str, float | int]:
        """The metrics."""

    @abstractmethod
    def majority(self, seen: Texts, data: Texts) -> float:
        """The accuracy that always saying what is commonest in ``seen`` has on ``data``."""

    def _load(self) -> nn.Module:
        """The base at the site, its weights in float32; a tensor that is missing may only be the head's."""
        configured: dict[str, Any] = {} if self.labels is None else {"num_labels": len(self.labels)}
        with only(self._files, self._folder) as folder:
            try:
                model, found = self.auto.from_pretrained(
                    folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                    **configured,
                )
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                message = f"base model in {self._folder}: cannot be loaded ({type(error).__name__})"
                raise Rejected("E_BASE_MODEL", message, "the plan's owner names another base") from error
        strange = [name for name in sorted(found["missing_keys"]) if not self._of_head(name)]
        if strange or found["mismatched_keys"]:
            raise Rejected(
                "E_BASE_MODEL",
                f"base model in {self._folder}: {CONFIG} asks for {len(strange)} tensors that its weights "
                f"lack{', such as ' + strange[0] if strange else ', or have otherwise'}",
                "the plan's owner names a base whose weights fit its configuration",
            )
        model.config.pad_token_id = self.padding
        limit = getattr(model.config, "max_position_embeddings", None)
        if isinstance(limit, int) and self._most > limit:
            raise Rejected(
                "E_CONFIG",
                f"maxTokens: the base model takes {limit} tokens, found {self._most}",
                "make a new plan",
            )
        loaded: nn.Module = model
        return loaded

    def _of_head(self, name: str) -> bool:
        return any(part in self.head for part in name.split("."))

    def _targeted(self, model: nn.Module, target: str) -> list[nn.Module]:
        return [
            module for name, module in model.named_modules() if name == target or name.endswith(f".{target}")
        ]

    def _check_targets(self, model: nn.Module) -> None:
        """Every target names layers that an adapter can sit on.

        Raises:
            Rejected: ``E_TARGETS``.
        """
        fitting = (nn.Linear, transformers.pytorch_utils.Conv1D)
        for target in self._parameters["targets"]:
            found = self._targeted(model, target)
            if not found or not all(isinstance(module, fitting) for module in found):
                known = sorted(
                    {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, fitting)}
                    - set(self.head)
                )
                raise Rejected(
                    "E_TARGETS",
                    f"targets: {target!r} names no linear layers of the base model",
                    f"layers that can have an adapter: {', '.join(known[:20])}",
                )

    def _has_conv1d(self, model: nn.Module) -> bool:
        """Whether the layers are GPT-2's, whose weights lie the other way round."""
        found = [module for target in self._parameters["targets"] for module in self._targeted(model, target)]
        return any(isinstance(module, transformers.pytorch_utils.Conv1D) for module in found)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice of the libraries'; their errors come as exceptions."""
    before, shown = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers.logging.set_verbosity(before)
            if shown:
                transformers.logging.enable_progress_bar()


def commonest(values: np.ndarray[Any, Any]) -> int:
    """The commonest of some integers from 0; the least of them where several are."""
    return int(np.bincount(values).argmax())
