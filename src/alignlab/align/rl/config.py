"""Choices of GRPO, RLOO and REINFORCE: what all three share, then each method's own, with the papers' defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from alignlab.align.losses import KLEstimator
from alignlab.align.rl.objectives import Aggregate, RatioLevel, Scale
from alignlab.core.config import require
from alignlab.lm.lora import LoraConfig
from alignlab.train.config import Precision
from alignlab.train.schedule import Schedule


@dataclass(frozen=True)
class RLConfig:
    """What every method without a value function asks for."""

    steps: int = 50
    """Rollout batches."""
    prompts_per_step: int = 4
    """Prompts of a rollout batch."""
    group_size: int = 8
    """Answers to each prompt."""
    minibatch_size: int = 32
    """Responses per optimiser step."""
    microbatch_size: int = 8
    """Responses per forward and backward pass; smaller takes less memory and changes nothing else."""
    epochs: int = 1
    """Passes over a rollout batch."""
    max_tokens: int = 64
    """Longest response, in tokens."""
    stop: tuple[str, ...] = ()
    """A response ends before the first of these strings."""
    learning_rate: float = 1e-4
    """AdamW's."""
    warmup_steps: int = 0
    """Rollout batches over which the learning rate rises linearly."""
    schedule: Schedule = "constant"
    """Shape of the learning rate after the warm-up."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    kl_coefficient: float = 0.05
    """beta: reward lost per nat of KL to the reference; 0 needs no reference."""
    max_policy_kl: float | None = 0.1
    """Nats per token from the rollout's policy at which the batch's remaining updates are dropped; None never does."""
    reward_clip: float | None = None
    """Scores are clipped to [-c, c] before anything else."""
    missing_end_penalty: float = 0.0
    """Taken from the score of a response that ran into `max_tokens` without ending."""
    overlong_buffer: int | None = None
    """Soft punishment of length (DAPO): over the last so many tokens before `max_tokens` the score falls by 1."""
    on_truncated: Literal["keep", "mask"] = "keep"
    """`mask` leaves responses that did not end out of the loss (DAPO's overlong filtering)."""
    equal_groups: Literal["drop", "resample", "keep", "raise"] = "drop"
    """A group whose scores are all equal teaches nothing: leave it out, draw another prompt (DAPO's dynamic sampling),
    keep it (only the KL term pulls) or stop with an error.
    """
    max_resamples: int = 4
    """With `resample`: most further draws per rollout batch."""
    on_equal_rewards: Literal["raise", "skip"] = "raise"
    """What to do with a batch in which no group is left: stop with an error, or log it and go on."""
    reward_time_limit: float | None = 60.0
    """Seconds for one call of the reward; none waits for ever."""
    reward_tokenizer: Literal["same", "any"] = "same"
    """`same` stops where a reward model reads the texts with another tokenizer than the policy's."""
    max_mismatch: float = 0.1
    """Largest mean absolute difference (nats per token) between the sampler's and the trainer's log-probabilities."""
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
        positive = ("steps", "prompts_per_step", "group_size", "minibatch_size", "microbatch_size", "epochs")
        for name in (*positive, "max_tokens", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        for name in ("learning_rate", "grad_clip", "max_mismatch"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("warmup_steps", "kl_coefficient", "missing_end_penalty", "max_resamples"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive number")
        for name in ("max_policy_kl", "reward_clip", "reward_time_limit"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "none or a positive number")
        buffer, most = self.overlong_buffer, self.max_tokens
        fits = buffer is None or 1 <= buffer <= most
        require(fits, "overlong_buffer", buffer, f"none or a whole number from 1 to max_tokens ({most})")
        choices = {
            "on_truncated": ("keep", "mask"),
            "equal_groups": ("drop", "resample", "keep", "raise"),
            "on_equal_rewards": ("raise", "skip"),
            "reward_tokenizer": ("same", "any"),
            "precision": get_args(Precision),
            "schedule": get_args(Schedule),
        }
        self.check_choices(choices)

    def check_choices(self, choices: dict[str, tuple[str, ...]]) -> None:
        """ConfigError for a field that is none of its choices."""
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), " or ".join(allowed))


@dataclass(frozen=True)
class GRPOConfig(RLConfig):
    """Group relative policy optimisation (Shao et al. 2024) and its published corrections, as switches.

    As first published: `scale="group", aggregate="sequence"`. Dr. GRPO: `scale="none", aggregate="constant"`. DAPO:
    `aggregate="token", clip_high=0.28, equal_groups="resample", overlong_buffer=..., kl_coefficient=0`. GSPO:
    `level="sequence", aggregate="sequence"` and clips of 3e-4 and 4e-4.
    """

    clip_low: float = 0.2
    """Ratios are clipped at 1 - clip_low."""
    clip_high: float = 0.2
    """Ratios are clipped at 1 + clip_high."""
    scale: Scale = "group"
    """What advantages are divided by: the group's deviation, the batch's, or nothing."""
    aggregate: Aggregate = "sequence"
    """How tokens are weighted: each response the same, each token the same, or a constant divisor."""
    level: RatioLevel = "token"
    """Ratio of each token, or of the whole response (GSPO)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL penalty stands; in the reward it is k1 summed over the response."""
    kl_estimator: KLEstimator = "k3"
    """Estimator of the KL term of the loss; see `objectives.kl_loss` for what each one's gradient means."""
    kl_ratio: bool = False
    """Multiply the KL term by the token's ratio, which makes k1 and k3 pull towards KL(policy || reference)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group_size >= 2, "group_size", self.group_size, "a whole number of at least 2")
        require(0 < self.clip_low < 1, "clip_low", self.clip_low, "a number between 0 and 1")
        require(self.clip_high > 0, "clip_high", self.clip_high, "a positive number")
        choices = {
            "scale": get_args(Scale),
            "aggregate": get_args(Aggregate),
            "level": get_args(RatioLevel),
            "kl_in": ("loss", "reward"),
            "kl_estimator": get_args(KLEstimator),
        }
        self.check_choices(choices)


@dataclass(frozen=True)
class RLOOConfig(RLConfig):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): a response is one action, the group its baseline."""

    clip_low: float = 0.2
    """The response's ratio is clipped at 1 - clip_low."""
    clip_high: float = 0.2
    """The response's ratio is clipped at 1 + clip_high."""
    normalise_advantages: bool = False
    """Scale advantages to mean 0 and deviation 1 over the batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.group_size >= 2, "group_size", self.group_size, "a whole number of at least 2")
        require(0 < self.clip_low < 1, "clip_low", self.clip_low, "a number between 0 and 1")
        require(self.clip_high > 0, "clip_high", self.clip_high, "a positive number")


@dataclass(frozen=True)
class ReinforceConfig(RLConfig):
    """REINFORCE (Williams 1992) with reward-to-go per token and a baseline; one answer a prompt is enough."""

    prompts_per_step: int = 32
    """Prompts of a rollout batch."""
    group_size: int = 1
    """Answers to each prompt."""
    baseline: Literal["none", "batch", "running"] = "running"
    """Taken from every return: nothing, the mean of the batch's other responses, or a running mean of the batches."""
    baseline_decay: float = 0.9
    """Weight of the past in the running mean."""
    gamma: float = 1.0
    """Discount per token."""
    whiten_advantages: bool = False
    """Scale advantages to mean 0 and deviation 1 over the batch's tokens (REINFORCE++, Hu 2025)."""
    aggregate: Aggregate = "constant"
    """How tokens are weighted; `constant` keeps the direction of the policy gradient."""
    kl_estimator: KLEstimator = "k1"
    """Estimator of the KL penalty in the reward of each token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "baseline_decay"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number from 0 to 1")
        require(self.epochs == 1, "epochs", self.epochs, "1: REINFORCE has no ratio that corrects for a second pass")
        batch = self.prompts_per_step * self.group_size
        whole = self.minibatch_size >= batch
        require(whole, "minibatch_size", self.minibatch_size, f"at least the {batch} responses of a rollout batch")
        choices = {
            "baseline": ("none", "batch", "running"),
            "aggregate": get_args(Aggregate),
            "kl_estimator": get_args(KLEstimator),
        }
        self.check_choices(choices)
