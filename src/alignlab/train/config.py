"""`TrainConfig`: everything about an optimisation except the model, the loss and the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from alignlab.core.config import require
from alignlab.train.schedule import Schedule

Precision = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and how precisely to train."""

    steps: int = 100
    """Updates of the weights."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises to its peak."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after the warm-up."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end as a fraction of the peak."""
    decay_fraction: float = 0.2
    """Part of the steps in which the `wsd` schedule decays."""
    optimizer: OptimizerName = "adamw"
    """`muon` orthogonalises the momentum of hidden matrices and leaves the other parameters to AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.999
    """Decay of AdamW's mean of squared gradients."""
    momentum: float = 0.95
    """Decay of Muon's mean of gradients."""
    grad_clip: float = 1.0
    """Largest gradient norm, over all parameters together; 0 turns clipping off."""
    accumulate: int = 1
    """Micro-batches per update."""
    precision: Precision = "fp32"
    """`bf16` and `fp16` run matrix products in that type (autocast), `fp16` with a loss scale; `fp32` computes in the
    types the weights have."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights; 0 keeps none."""
    z_loss: float = 0.0
    """Weight of the squared log-partition added to a language-modelling loss; 0 adds nothing."""
    spike_factor: float = 0.0
    """How many robust deviations above its running median a loss may lie before training rewinds; 0 never does."""
    max_rewinds: int = 3
    """Rewinds to one and the same checkpoint before training gives up."""
    gradient_checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again."""
    compile: bool = False
    """Run the model through `torch.compile`."""
    checkpoint_every: int = 0
    """Updates between checkpoints; 0 writes only the last one."""
    log_every: int = 1
    """Updates between logged metrics; the last update is always logged."""
    validate_every: int = 0
    """Updates between validations; 0 validates only after the last one."""
    seed: int = 0
    """Seed of dropout and of anything else random inside the loss."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "max_rewinds"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        for name in ("warmup_steps", "checkpoint_every", "validate_every"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive whole number")
        for name in ("learning_rate", "weight_decay", "grad_clip", "z_loss", "spike_factor"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), name, value, "0 or a positive number")
        for name in ("beta1", "beta2", "momentum", "ema_decay"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number from 0 to below 1")
        for name in ("min_lr_ratio", "decay_fraction"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number from 0 to 1")
        for name, kind in (("schedule", Schedule), ("precision", Precision), ("optimizer", OptimizerName)):
            require(getattr(self, name) in get_args(kind), name, getattr(self, name), ", ".join(get_args(kind)))
