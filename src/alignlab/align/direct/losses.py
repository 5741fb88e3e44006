"""Losses that learn a policy from preferences directly: robust DPO, KTO, ORPO, SimPO (DPO and IPO: `align.losses`).

Log-probabilities are of whole responses, in nats: summed over the tokens, or averaged where a function says `mean`.
The rewards that come back are the implicit ones of each method and carry no gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from alignlab.align.losses import check_probability, same_shape
from alignlab.core.config import require
from alignlab.core.errors import TrainingError


class PreferenceLoss(NamedTuple):
    """The loss of a batch of pairs and what the policy makes of both sides."""

    loss: Tensor
    """Scalar with gradient."""
    chosen_rewards: Float[Tensor, " batch"]
    """Implicit rewards of the chosen responses."""
    rejected_rewards: Float[Tensor, " batch"]
    """Implicit rewards of the rejected ones."""


class RatedLoss(NamedTuple):
    """The loss of a batch of single responses, each good or bad."""

    loss: Tensor
    """Scalar with gradient."""
    rewards: Float[Tensor, " batch"]
    """Implicit rewards, `beta * log(policy / reference)`."""
    baseline: Float[Tensor, ""]
    """KL(policy || reference) that the rewards were held against, in nats."""


def robust_dpo_loss(
    policy_chosen: Float[Tensor, " batch"],
    policy_rejected: Float[Tensor, " batch"],
    reference_chosen: Float[Tensor, " batch"],
    reference_rejected: Float[Tensor, " batch"],
    *,
    beta: float = 0.1,
    flip_rate: float = 0.0,
    label_probability: Float[Tensor, " batch"] | float = 1.0,
) -> PreferenceLoss:
    """DPO whose expectation over labels that are flipped with probability e equals that of DPO on the true ones.

    `((1-e) l(d) - e l(-d)) / (1-2e)` with `l(d) = -log sigma(beta d)`: the robust loss of Ray Chowdhury et al. 2024. A
    label that is seen with probability p counts as p of this pair and 1-p of the flipped one. Unlike the conservative
    loss (`dpo_loss` with `label_smoothing`) it does not shrink the margin, and it has no lower bound. Raises
    ConfigError for a rate outside [0, 0.5).
    """
    sides = {"policy_rejected": policy_rejected, "reference_chosen": reference_chosen}
    same_shape("robust_dpo_loss", policy_chosen=policy_chosen, **sides, reference_rejected=reference_rejected)
    check_probability("label_probability", label_probability)
    require(0 <= flip_rate < 0.5, "flip_rate", flip_rate, "a number from 0 to below 0.5")
    chosen, rejected = beta * (policy_chosen - reference_chosen), beta * (policy_rejected - reference_rejected)
    margin = chosen - rejected
    share = (label_probability - flip_rate) / (1 - 2 * flip_rate)
    loss = -(share * F.logsigmoid(margin) + (1 - share) * F.logsigmoid(-margin)).mean()
    return PreferenceLoss(loss, chosen.detach(), rejected.detach())


def kto_baseline(
    policy_mismatched: Float[Tensor, " batch"], reference_mismatched: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """KTO's estimate of KL(policy || reference), which carries no gradient: `max(0, mean log(policy / reference))`.

    The responses stand after other prompts than their own (Ethayarajh et al. 2024, section 4.1), so it is biased, and
    cheap: nothing is sampled.
    """
    same_shape("kto_baseline", policy=policy_mismatched, reference=reference_mismatched)
    return (policy_mismatched - reference_mismatched).mean().clamp(min=0).detach()


def kto_loss(
    policy: Float[Tensor, " batch"],
    reference: Float[Tensor, " batch"],
    good: Bool[Tensor, " batch"],
    *,
    baseline: Float[Tensor, ""] | float = 0.0,
    beta: float = 0.1,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
) -> RatedLoss:
    """Kahneman-Tversky optimisation on responses that are each good or bad: eq. 8 of Ethayarajh et al. 2024.

    With `r = log(policy / reference)` and z the baseline (`kto_baseline`) a good response costs
    `w_good (1 - sigma(beta (r - z)))` and a bad one `w_bad (1 - sigma(beta (z - r)))`; the mean is over all of them.
    """
    same_shape("kto_loss", policy=policy, reference=reference, good=good)
    level = torch.as_tensor(baseline, dtype=policy.dtype, device=policy.device).detach()
    ratio = policy - reference
    # 1 - sigma(x) = sigma(-x), which keeps its digits where x is large.
    losses = torch.where(
        good, good_weight * torch.sigmoid(beta * (level - ratio)), bad_weight * torch.sigmoid(beta * (ratio - level))
    )
    return RatedLoss(losses.mean(), beta * ratio.detach(), level)


def balanced_weights(n_good: int, n_bad: int) -> tuple[float, float]:
    """Weights of good and bad examples, the larger one 1, under which both kinds count the same in all.

    The lower end of the range that eq. 9 of Ethayarajh et al. 2024 recommends. (1, 1) where there is only one kind.
    """
    most = max(n_good, n_bad)
    if min(n_good, n_bad) < 1:
        return 1.0, 1.0
    return (n_bad / most, 1.0) if n_good == most else (1.0, n_good / most)


def orpo_loss(
    chosen_mean: Float[Tensor, " batch"],
    rejected_mean: Float[Tensor, " batch"],
    chosen_nll: Float[Tensor, ""],
    *,
    weight: float = 0.1,
    label_smoothing: Float[Tensor, " batch"] | float = 0.0,
) -> PreferenceLoss:
    """Odds-ratio preference optimisation: `nll - weight * mean log sigma(log odds(chosen) - log odds(rejected))`.

    Eqs. 6 and 7 of Hong et al. 2024, where odds(y) = P / (1 - P) and P is the probability of a token of the response
    in the geometric mean, `exp(mean)`; `chosen_nll` is the mean negative log-likelihood of the chosen tokens. There is
    no reference. Rewards are `weight * mean`. A positive `label_smoothing` mixes the odds of the flipped pair in.
    """
    same_shape("orpo_loss", chosen_mean=chosen_mean, rejected_mean=rejected_mean)
    check_probability("label_smoothing", label_smoothing)
    odds = log_odds(chosen_mean) - log_odds(rejected_mean)
    mixed = F.logsigmoid(odds) * (1 - label_smoothing) + F.logsigmoid(-odds) * label_smoothing
    loss = chosen_nll - weight * mixed.mean()
    return PreferenceLoss(loss, weight * chosen_mean.detach(), weight * rejected_mean.detach())


def log_odds(log_probability: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`log(P / (1 - P))` from `log P <= 0`, exact near both ends.

    P = 1 has no finite odds: it counts as the largest number below 1 of the type, and has no gradient there. Raises
    TrainingError for a log-probability above 0 (by more than rounding).
    """
    finest = torch.finfo(log_probability.dtype).eps
    if bool((log_probability.detach() > 8 * finest).any()):
        most = float(log_probability.detach().max())
        raise TrainingError(f"log_odds got a log-probability of {most:.4g}, right are numbers up to 0")
    below = log_probability.clamp(max=-finest)
    near_one = below > -math.log(2)
    # Each branch sees only numbers it is exact for, so that neither sends a nan backwards.
    small = torch.where(near_one, below, torch.full_like(below, -0.5))
    large = torch.where(near_one, torch.full_like(below, -1.0), below)
    return below - torch.where(near_one, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def simpo_loss(
    chosen_mean: Float[Tensor, " batch"],
    rejected_mean: Float[Tensor, " batch"],
    *,
    beta: float = 2.0,
    margin: float = 1.0,
    label_smoothing: Float[Tensor, " batch"] | float = 0.0,
) -> PreferenceLoss:
    """Simple preference optimisation: `-log sigma(beta (chosen_mean - rejected_mean) - margin)`, eq. 6 of Meng et al.
    2024, whose gamma is `margin`.

    No reference: the reward is `beta` times the mean log-probability of a token. A positive `label_smoothing` mixes in
    the loss of the flipped pair.
    """
    same_shape("simpo_loss", chosen_mean=chosen_mean, rejected_mean=rejected_mean)
    check_probability("label_smoothing", label_smoothing)
    scaled = beta * (chosen_mean - rejected_mean) - margin
    # As in trl, smoothing flips the sign of all of it, the margin included.
    loss = -(F.logsigmoid(scaled) * (1 - label_smoothing) + F.logsigmoid(-scaled) * label_smoothing).mean()
    return PreferenceLoss(loss, beta * chosen_mean.detach(), beta * rejected_mean.detach())
