"""Supervised fine-tuning: the likelihood of the assistant's tokens, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from alignlab.align.adapters import ensure_lora
from alignlab.align.pairs import encode_response
from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.data.packing import Example, batches, pack
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import LoraConfig
from alignlab.lm.types import Prompt
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss
from alignlab.train.trainer import Trainer, TrainResult


@dataclass(frozen=True)
class SFTExample:
    """A prompt and the response to learn."""

    prompt: Prompt
    """Raw text or messages, without the response."""
    response: str
    """What the model should say; the end-of-turn token is added."""


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on packed rows."""

    epochs: float | None = 1.0
    """Passes over the packed rows, which set `train.steps`; none leaves `train.steps` as it is."""
    row_length: int = 512
    """Tokens per row, at most the model's context; short examples share one, a longer one loses its prompt's start."""
    batch_size: int = 4
    """Rows per micro-batch."""
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """Adapter put on a model that has none; none trains every parameter that asks for a gradient."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""

    def __post_init__(self) -> None:
        require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "none or a positive number")
        require(self.row_length >= 2, "row_length", self.row_length, "a whole number of at least 2")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "a positive whole number")


def sft(
    lm: LanguageModel,
    examples: Sequence[SFTExample],
    config: SFTConfig | None = None,
    *,
    run: Run | None = None,
    name: str = "sft",
    progress: Progress | None = None,
) -> TrainResult:
    """Fine-tune `lm` in place; with a `run`, logged and resumed under `name`.

    Raises DataError for an empty list of examples.
    """
    config = config or SFTConfig()
    if not examples:
        raise DataError("supervised fine-tuning got an empty list of examples, at least one is needed")
    length = min(config.row_length, lm.model.config.n_ctx)
    rows = pack([encode_example(lm, example, length) for example in examples], length)
    batch_at = batches(rows, config.batch_size, seed=config.train.seed)
    ensure_lora(lm.model, config.lora)
    train = with_epochs(config.train, config.epochs, batch_at.per_epoch)
    return Trainer(lm.model, language_model_loss, train, run=run, name=name, progress=progress).fit(batch_at)


def encode_example(lm: LanguageModel, example: SFTExample, length: int) -> Example:
    """Tokens of prompt, response and end of turn; the loss counts the last two."""
    tokens, loss_mask = encode_response(lm.tokenizer, example.prompt, example.response, max_length=length)
    return Example(tokens, loss_mask)


def with_epochs(train: TrainConfig, epochs: float | None, per_epoch: int) -> TrainConfig:
    """The configuration with its `steps` set to that many passes over `per_epoch` micro-batches (at least one step)."""
    if epochs is None:
        return train
    return replace(train, steps=max(1, math.ceil(epochs * per_epoch / train.accumulate)))
