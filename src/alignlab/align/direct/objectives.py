"""One table: what each method that learns from pairs minimises, and whether it is held to a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from alignlab.align.direct.losses import PreferenceLoss, orpo_loss, robust_dpo_loss, simpo_loss
from alignlab.align.direct.scoring import PairScores
from alignlab.align.losses import PreferenceLossKind, dpo_loss
from alignlab.core.config import require
from alignlab.lm.lora import LoraConfig
from alignlab.train.config import TrainConfig

Method = Literal["dpo", "robust-dpo", "length-dpo", "ipo", "kto", "orpo", "simpo"]


@dataclass(frozen=True)
class DirectConfig:
    """Learning from preferences without a reward model."""

    method: Method = "dpo"
    """What is minimised: see `OBJECTIVES`; `kto` takes each response by itself as good or bad."""
    beta: float | None = None
    """Tie to the reference (dpo, ipo, kto), scale of the reward (simpo) or weight of the odds (orpo); none takes the
    method's own."""
    margin: float = 1.0
    """SimPO's gamma: by how much the scaled reward of the chosen side must lead, in nats of log-odds."""
    label_smoothing: float = 0.0
    """Probability that a label is flipped, on top of each pair's own `probability`: conservative, where the method is
    not robust-dpo."""
    good_weight: float | None = None
    """KTO's weight of good examples; none for both weights lets both kinds count the same in all."""
    bad_weight: float | None = None
    """KTO's weight of bad examples."""
    epochs: float | None = 1.0
    """Passes over the pairs, which set `train.steps`; none leaves `train.steps` as it is."""
    batch_size: int = 8
    """Pairs (KTO: responses) per micro-batch."""
    max_length: int = 512
    """Tokens of prompt and response, at most the model's context; a longer one loses the start of its prompt."""
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    """Adapter put on a model that has none; none trains every parameter that asks for a gradient."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""

    def __post_init__(self) -> None:
        require(self.method in get_args(Method), "method", self.method, ", ".join(get_args(Method)))
        require(self.beta is None or self.beta > 0, "beta", self.beta, "none or a positive number")
        require(self.margin >= 0, "margin", self.margin, "0 or a positive number")
        smoothing = self.label_smoothing
        require(0 <= smoothing < 0.5, "label_smoothing", smoothing, "a number from 0 to below 0.5")
        require(smoothing == 0 or self.method != "kto", "label_smoothing", smoothing, "0 for kto, which has no pairs")
        for name in ("good_weight", "bad_weight"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "none or a positive number")
        both = (self.good_weight is None) == (self.bad_weight is None)
        require(both, "bad_weight", self.bad_weight, "given together with good_weight")
        require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "none or a positive number")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "a positive whole number")
        least = 2 if self.method == "kto" else 1
        require(self.batch_size >= least, "batch_size", self.batch_size, "at least 2 for kto: its baseline is a mean")
        require(self.max_length >= 2, "max_length", self.max_length, "a whole number of at least 2")

    @property
    def strength(self) -> float:
        """`beta`, or the method's own."""
        return DEFAULT_BETA[self.method] if self.beta is None else self.beta


@dataclass(frozen=True)
class PreferenceObjective:
    """A method that learns from pairs."""

    loss: Callable[[PairScores, DirectConfig], PreferenceLoss]
    """Mean loss of a batch from its log-probabilities, which are means where the method is `per_token`."""
    needs_reference: bool
    """Whether it is held to where the training starts."""
    per_token: bool = False
    """Whether log-probabilities are averaged over a response's tokens, so that a reward has no length."""


DEFAULT_BETA: dict[str, float] = {
    "dpo": 0.1,
    "robust-dpo": 0.1,
    "length-dpo": 2.0,
    "ipo": 0.1,
    "kto": 0.1,
    "orpo": 0.1,
    "simpo": 2.0,
}
"""The papers' own, but for length-normalised DPO: a mean over tokens is as many times smaller as a response is long."""


def _logistic(kind: PreferenceLossKind) -> Callable[[PairScores, DirectConfig], PreferenceLoss]:
    def loss(s: PairScores, config: DirectConfig) -> PreferenceLoss:
        sides = (s.chosen, s.rejected, s.reference_chosen, s.reference_rejected)
        return PreferenceLoss(*dpo_loss(*sides, beta=config.strength, label_smoothing=flipped(s, config), kind=kind))

    return loss


def _robust(scores: PairScores, config: DirectConfig) -> PreferenceLoss:
    sides = (scores.chosen, scores.rejected, scores.reference_chosen, scores.reference_rejected)
    rate = config.label_smoothing
    return robust_dpo_loss(*sides, beta=config.strength, flip_rate=rate, label_probability=scores.probability)


def _orpo(scores: PairScores, config: DirectConfig) -> PreferenceLoss:
    nll = -(scores.chosen * scores.chosen_tokens).sum() / scores.chosen_tokens.sum()
    flip = flipped(scores, config)
    return orpo_loss(scores.chosen, scores.rejected, nll, weight=config.strength, label_smoothing=flip)


def _simpo(scores: PairScores, config: DirectConfig) -> PreferenceLoss:
    how = {"beta": config.strength, "margin": config.margin, "label_smoothing": flipped(scores, config)}
    return simpo_loss(scores.chosen, scores.rejected, **how)  # type: ignore[arg-type]


def flipped(scores: PairScores, config: DirectConfig) -> Float[Tensor, " batch"]:
    """Probability that each label is the wrong way round."""
    e = config.label_smoothing
    return 1 - (scores.probability * (1 - 2 * e) + e)


OBJECTIVES: dict[str, PreferenceObjective] = {
    "dpo": PreferenceObjective(_logistic("sigmoid"), needs_reference=True),
    "robust-dpo": PreferenceObjective(_robust, needs_reference=True),
    "length-dpo": PreferenceObjective(_logistic("sigmoid"), needs_reference=True, per_token=True),
    "ipo": PreferenceObjective(_logistic("ipo"), needs_reference=True, per_token=True),
    "orpo": PreferenceObjective(_orpo, needs_reference=False, per_token=True),
    "simpo": PreferenceObjective(_simpo, needs_reference=False, per_token=True),
}
"""Every method that learns from pairs as pairs; `kto` has a loop of its own (`direct.kto`)."""
