"""`PPOConfig`: every choice of `PPOTrainer`, with the papers' defaults where there are any."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from alignlab.align.losses import KLEstimator
from alignlab.core.config import require
from alignlab.lm.lora import LoraConfig
from alignlab.train.config import Precision
from alignlab.train.schedule import Schedule


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation of a language model against a reward (Schulman et al. 2017; Ziegler et al. 2019)."""

    steps: int = 50
    """Rollout batches; each gives `epochs * batch_size / minibatch_size` optimiser steps."""
    batch_size: int = 32
    """Responses per rollout batch."""
    minibatch_size: int = 16
    """Responses per optimiser step."""
    microbatch_size: int = 8
    """Responses per forward and backward pass; smaller takes less memory and changes nothing else."""
    epochs: int = 2
    """Passes over a rollout batch."""
    max_tokens: int = 64
    """Longest response, in tokens."""
    stop: tuple[str, ...] = ()
    """A response ends before the first of these strings."""
    learning_rate: float = 1e-4
    """AdamW's, for the policy."""
    value_learning_rate: float = 1e-3
    """AdamW's, for the value head, a linear probe that must keep up with the policy."""
    warmup_steps: int = 0
    """Rollout batches over which the learning rates rise linearly."""
    schedule: Schedule = "constant"
    """Shape of the learning rates after the warm-up."""
    grad_clip: float = 1.0
    """Largest gradient norm, of the policy and of the value head each."""
    gamma: float = 1.0
    """Discount; 1 values a late token as much as an early one."""
    lam: float = 0.95
    """lambda of generalised advantage estimation."""
    clip: float = 0.2
    """Policy ratios are clipped to [1 - clip, 1 + clip]."""
    value_clip: float | None = 0.2
    """Largest move of a value per rollout batch before its error is clipped; None leaves it free."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    entropy_coefficient: float = 0.0
    """Weight of the exact entropy bonus; 0 does not compute it."""
    detach_value: bool = True
    """The value loss trains the value head alone; False lets it reach the trunk."""
    kl_coefficient: float = 0.05
    """beta: reward lost per nat of KL to the reference."""
    kl_target: float | None = None
    """Nats of KL per response that beta is steered to (Ziegler et al. 2019); None keeps beta fixed."""
    kl_gain: float = 0.1
    """K_beta of the controller."""
    kl_estimator: KLEstimator = "k1"
    """Estimator of the KL penalty in the reward (Schulman 2020)."""
    max_policy_kl: float | None = 0.1
    """Nats per token from the rollout's policy at which the batch's remaining updates are dropped; None never does."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and deviation 1 over the batch's tokens."""
    advantage_clip: float | None = None
    """Advantages, whitened before where asked for, are clipped to [-c, c]; None leaves them free."""
    reward_clip: float | None = None
    """Scores are clipped to [-c, c] before anything else."""
    missing_end_penalty: float = 0.0
    """Taken from the score of a response that ran into `max_tokens` without ending."""
    on_equal_rewards: Literal["raise", "skip"] = "raise"
    """What to do with a batch whose scores are all equal: stop with an error, or log it and go on."""
    reward_time_limit: float | None = None
    """Seconds for one call of the reward, which then runs in a thread of its own; none waits for ever."""
    reward_tokenizer: Literal["same", "any"] = "same"
    """`same` stops where a reward model reads the texts with another tokenizer than the policy's."""
    max_mismatch: float = 0.1
    """Largest mean absolute difference (nats per token) between the sampler's and the trainer's log-probabilities:
    rounding in bf16 makes a few hundredths, in fp32 nothing to speak of.
    """
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """Adapter put on a policy that has none; None trains every parameter that asks for a gradient."""
    precision: Precision = "fp32"
    """bf16 runs the passes under autocast."""
    checkpoint_every: int = 10
    """Rollout batches between checkpoints."""
    seed: int = 0
    """Order of prompts, samples and minibatches."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))
        positive = (
            "steps",
            "batch_size",
            "minibatch_size",
            "microbatch_size",
            "epochs",
            "max_tokens",
            "checkpoint_every",
        )
        for name in positive:
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        require(
            self.minibatch_size <= self.batch_size,
            "minibatch_size",
            self.minibatch_size,
            f"a whole number up to batch_size ({self.batch_size})",
        )
        for name in ("learning_rate", "value_learning_rate", "grad_clip", "clip", "max_mismatch"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in (
            "warmup_steps",
            "value_coefficient",
            "entropy_coefficient",
            "kl_coefficient",
            "missing_end_penalty",
        ):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive number")
        for name in ("value_clip", "kl_target", "max_policy_kl", "advantage_clip", "reward_clip", "reward_time_limit"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "none or a positive number")
        for name in ("gamma", "lam"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number from 0 to 1")
        require(0 < self.kl_gain <= 1, "kl_gain", self.kl_gain, "a number above 0 and up to 1")
        choices = {
            "kl_estimator": get_args(KLEstimator),
            "on_equal_rewards": ("raise", "skip"),
            "reward_tokenizer": ("same", "any"),
            "precision": get_args(Precision),
            "schedule": get_args(Schedule),
        }
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), " or ".join(allowed))
