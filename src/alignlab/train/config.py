"""`TrainConfig`: everything about an optimisation except the model, the loss and the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from alignlab.core.config import require
from alignlab.train.schedule import Schedule

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and how precisely to train."""

    steps: int = 100
    """Updates of the weights."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises to its peak."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after the warm-up."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end as a fraction of the peak."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.999
    """Decay of AdamW's mean of squared gradients."""
    grad_clip: float = 1.0
    """Largest gradient norm, over all parameters together; 0 turns clipping off."""
    accumulate: int = 1
    """Micro-batches per update."""
    precision: Precision = "fp32"
    """`bf16` runs matrix products in bfloat16 (autocast); `fp32` computes in the types the weights have."""
    checkpoint_every: int = 0
    """Updates between checkpoints; 0 writes only the last one."""
    log_every: int = 1
    """Updates between logged metrics; the last update is always logged."""
    seed: int = 0
    """Seed of dropout and of anything else random inside the loss."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        for name in ("warmup_steps", "checkpoint_every"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive whole number")
        for name in ("learning_rate", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), name, value, "0 or a positive number")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number from 0 to below 1")
        require(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", self.min_lr_ratio, "a number from 0 to 1")
        require(self.schedule in get_args(Schedule), "schedule", self.schedule, ", ".join(get_args(Schedule)))
        require(self.precision in get_args(Precision), "precision", self.precision, ", ".join(get_args(Precision)))
