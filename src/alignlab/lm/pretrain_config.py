"""`PretrainConfig`: everything that `alignlab pretrain` can be told, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from alignlab.core.config import require
from alignlab.lm.config import GPTConfig
from alignlab.lm.depth import plan_for_depth
from alignlab.train.config import TrainConfig

VOCABULARY_STEP = 64
"""Vocabularies above 512 tokens are rounded up to a multiple of this: matrix units like round numbers."""


def default_training() -> TrainConfig:
    """What suits a small model: AdamW as in GPT-2's reproductions, with a short warm-up."""
    return TrainConfig(
        steps=1000,
        learning_rate=1e-3,
        warmup_steps=50,
        min_lr_ratio=0.1,
        weight_decay=0.1,
        beta2=0.99,
        checkpoint_every=100,
        log_every=10,
        validate_every=100,
    )


@dataclass(frozen=True)
class PretrainConfig:
    """Train a language model from scratch on a corpus that `alignlab tokenize` made."""

    data: Path = Path("corpus")
    """The tokenised corpus: a directory with train, validation and tokenizer."""
    name: str = "pretrained"
    """Name under which the model is registered."""
    depth: int = 0
    """Number of blocks; derives width, heads, batch, learning rate and steps where those are left alone. 0: no dial."""
    model: GPTConfig = field(default_factory=lambda: GPTConfig(d_model=128, n_layers=4, d_mlp=384))
    """The transformer; its vocabulary follows from the corpus, its context from `length`."""
    length: int = 256
    """Tokens of a row."""
    batch_size: int = 32
    """Rows of an update, over all processes."""
    micro_batch: int = 0
    """Rows that a process computes at a time; 0: all of its share."""
    documents: bool = False
    """Pack whole documents into rows that do not see each other, instead of cutting the text as one stream."""
    train: TrainConfig = field(default_factory=default_training)
    """Optimisation; `accumulate` follows from `micro_batch`."""
    validation_batches: int = 20
    """Batches of the validation set to measure on; 0: all of it."""
    noise_scale_every: int = 0
    """Updates between measurements of the gradient noise scale; 0: never. Needs two micro-batches an update."""
    statistics_every: int = 0
    """Updates between layer statistics; 0: never."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """auto (replicas under torchrun), ddp or fsdp."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    weights: Literal["last", "average"] = "last"
    """Which weights to keep: the last, or (with train.ema_decay) their average."""

    def __post_init__(self) -> None:
        require(self.length >= 2, "length", self.length, "a whole number from 2")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "a positive whole number")
        for name in ("depth", "micro_batch", "validation_batches", "noise_scale_every", "statistics_every"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive whole number")
        averages = self.weights == "last" or self.train.ema_decay > 0
        require(averages, "weights", self.weights, "last, unless train.ema_decay keeps an average")
        require(self.train.accumulate == 1, "train.accumulate", self.train.accumulate, "1; micro_batch decides it here")


def resolved(config: PretrainConfig, vocab_size: int) -> PretrainConfig:
    """The configuration with everything in it that follows from the corpus and from the depth."""
    rows = vocab_size if vocab_size <= 512 else -(-vocab_size // VOCABULARY_STEP) * VOCABULARY_STEP
    if not config.depth:
        return replace(config, model=replace(config.model, vocab_size=rows, n_ctx=config.length))
    plan, plain = plan_for_depth(config.depth, vocab_size=rows, n_ctx=config.length), PretrainConfig(config.data)
    batch_size, train, usual = config.batch_size, config.train, plain.train
    if batch_size == plain.batch_size:
        batch_size = max(1, round(plan.batch_tokens / config.length))
    if train.learning_rate == usual.learning_rate:
        train = replace(train, learning_rate=plan.learning_rate)
    if train.steps == usual.steps:
        train = replace(train, steps=plan.steps(batch_size * config.length))
    shape = plan.model
    if config.model != plain.model:  # choices stay, sizes follow the depth
        sizes = {
            name: getattr(shape, name) for name in ("vocab_size", "n_ctx", "d_model", "n_layers", "n_heads", "d_mlp")
        }
        shape = replace(config.model, **sizes, n_kv_heads=0, d_head=0, rotary_dim=0)
    return replace(config, model=shape, batch_size=batch_size, train=train)
