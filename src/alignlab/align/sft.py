"""Supervised fine-tuning: the likelihood of the assistant's tokens, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from alignlab.align.adapters import ensure_lora
from alignlab.align.conversations import Conversation, lay_conversation
from alignlab.align.neftune import with_neftune
from alignlab.align.pairs import encode_response
from alignlab.core.config import require
from alignlab.core.errors import DataError, ModelError
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
    """Tokens per row, at most the model's context; short examples share one, a longer prompt loses its start, and a
    longer conversation is divided between turns."""
    batch_size: int = 4
    """Rows per micro-batch."""
    neftune_alpha: float = 0.0
    """Noise on the embeddings while training (NEFTune; the paper tries 5, 10 and 15); 0 adds none."""
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """Adapter put on a model that has none; none trains every parameter that asks for a gradient."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""

    def __post_init__(self) -> None:
        require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "none or a positive number")
        require(self.row_length >= 2, "row_length", self.row_length, "a whole number of at least 2")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "a positive whole number")
        require(self.neftune_alpha >= 0, "neftune_alpha", self.neftune_alpha, "0 (off) or a positive number")
        clash = "0 where the training is compiled: the compiled embedding would go without its noise"
        require(not (self.neftune_alpha and self.train.compile), "neftune_alpha", self.neftune_alpha, clash)


@dataclass(frozen=True)
class Encoded:
    """The examples as sequences of tokens, and what it took to make them."""

    sequences: list[Example]
    """What is laid into rows: a sequence for each example or part of one."""
    divided: int
    """Conversations longer than a row, which are in several parts."""
    cut: int
    """Sequences that lost the start of a prompt or the end of an answer because one exchange is longer than a row."""

    def account(self) -> dict[str, int]:
        """The counts, with how many tokens there are and how many of them are learned."""
        learned = sum(sum(sequence.loss_mask) for sequence in self.sequences)
        tokens = sum(len(sequence.tokens) for sequence in self.sequences)
        return {
            "sequences": len(self.sequences), "tokens": tokens, "learned_tokens": learned,
            "divided": self.divided, "cut": self.cut,
        }  # fmt: skip

    def shortened(self, length: int) -> str:
        """A sentence about what did not fit into rows of `length` tokens; empty where everything did."""
        parts = []
        if self.divided:
            parts.append(f"{self.divided} conversations are divided between turns")
        if self.cut:
            parts.append(f"{self.cut} single exchanges lost the start of their prompt or the end of their answer")
        return f"longer than a row of {length} tokens: {'; '.join(parts)}; longer rows keep them whole" if parts else ""


def sft(
    lm: LanguageModel,
    examples: Sequence[SFTExample | Conversation],
    config: SFTConfig | None = None,
    *,
    run: Run | None = None,
    name: str = "sft",
    progress: Progress | None = None,
) -> TrainResult:
    """Fine-tune `lm` in place; with a `run`, logged and resumed under `name`, with an event `examples` that says how
    many sequences and tokens there are and what did not fit.

    Raises DataError for an empty list of examples.
    """
    config = config or SFTConfig()
    if not examples:
        raise DataError("supervised fine-tuning got an empty list of examples, at least one is needed")
    length = min(config.row_length, lm.model.config.n_ctx)
    encoded = encode_examples(lm, examples, length)
    if run is not None:
        run.event("examples", training=name, examples=len(examples), **encoded.account())
    if progress is not None and encoded.shortened(length):
        progress.say(encoded.shortened(length))
    rows = pack(encoded.sequences, length)
    batch_at = batches(rows, config.batch_size, seed=config.train.seed)
    ensure_lora(lm.model, config.lora)
    train = with_epochs(config.train, config.epochs, batch_at.per_epoch)
    loss = with_neftune(language_model_loss, config.neftune_alpha)
    return Trainer(lm.model, loss, train, run=run, name=name, progress=progress).fit(batch_at)


def encode_examples(lm: LanguageModel, examples: Sequence[SFTExample | Conversation], length: int) -> Encoded:
    """All examples as sequences of at most `length` tokens; see `encode_example` and `lay_conversation`.

    Raises DataError or ModelError naming the example that its chat template refuses.
    """
    sequences: list[Example] = []
    divided = cut = 0
    for number, example in enumerate(examples):
        try:
            if isinstance(example, SFTExample):
                whole = encode_example(lm, example, None)
                cut += len(whole.tokens) > length
                sequences.append(whole if len(whole.tokens) <= length else encode_example(lm, example, length))
            else:
                laid = lay_conversation(lm.tokenizer, example, length)
                sequences += laid.rows
                divided += laid.windows > 1
                cut += laid.cut
        except ModelError as error:
            raise ModelError(f"example {number + 1} of {len(examples)}: {error}") from None
    return Encoded(sequences, divided, cut)


def encode_example(lm: LanguageModel, example: SFTExample, length: int | None) -> Example:
    """Tokens of prompt, response and end of turn; the loss counts the last two."""
    tokens, loss_mask = encode_response(lm.tokenizer, example.prompt, example.response, max_length=length)
    return Example(tokens, loss_mask)


def with_epochs(train: TrainConfig, epochs: float | None, per_epoch: int) -> TrainConfig:
    """The configuration with its `steps` set to that many passes over `per_epoch` micro-batches (at least one step)."""
    if epochs is None:
        return train
    return replace(train, steps=max(1, math.ceil(epochs * per_epoch / train.accumulate)))
