"""From rewards to advantages: KL penalty per token, advantage estimation, whitening, the KL controller."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignlab.align.losses import KLEstimator, kl_estimate, masked_mean, same_shape
from alignlab.core.config import require
from alignlab.core.errors import TrainingError


def gae(
    rewards: Float[Tensor, "batch pos"],
    values: Float[Tensor, "batch pos"],
    loss_mask: Bool[Tensor, "batch pos"],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): (advantages, returns = advantages + values).

    `A_t = d_t + gamma lam A_{t+1}`, `d_t = r_t + gamma V_{t+1} - V_t`, backwards in time and over the whole batch at
    once. True in the mask is a token of an episode; a False position has no value and ends the episode before it, so
    padding on either side needs no special care. Both results are 0 where the mask is False.
    """
    same_shape("gae", rewards=rewards, values=values, mask=loss_mask)
    inside = loss_mask.to(values.dtype)
    rewards = torch.where(loss_mask, rewards, torch.zeros_like(rewards))
    values = torch.where(loss_mask, values, torch.zeros_like(values))
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(following)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * inside[:, t]
        next_value = values[:, t]
        advantages[:, t] = following
    return advantages, advantages + values


def token_rewards(
    scores: Float[Tensor, " batch"],
    logprobs: Float[Tensor, "batch pos"],
    reference_logprobs: Float[Tensor, "batch pos"],
    loss_mask: Bool[Tensor, "batch pos"],
    *,
    kl_coefficient: float,
    estimator: KLEstimator = "k1",
) -> Float[Tensor, "batch pos"]:
    """Reward of each token: minus the KL penalty everywhere, plus the score on the last token of the response
    (Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2 without the pretraining term).
    """
    same_shape("token_rewards", logprobs=logprobs, reference_logprobs=reference_logprobs, mask=loss_mask)
    empty = (~loss_mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise TrainingError(f"responses {empty} of the batch have no token, the reward needs at least one to stand on")
    penalty = kl_coefficient * kl_estimate(logprobs, reference_logprobs, estimator)
    rewards = torch.where(loss_mask, -penalty, torch.zeros_like(penalty))
    positions = torch.arange(loss_mask.shape[1], device=loss_mask.device)
    last = torch.where(loss_mask, positions, torch.full_like(positions, -1)).max(dim=1).values
    return rewards.scatter_add(1, last[:, None], scores.to(rewards.dtype)[:, None])


def whiten(
    values: Float[Tensor, "*shape"],
    loss_mask: Bool[Tensor, "*shape"],
    *,
    shift_mean: bool = True,
    epsilon: float = 1e-8,
) -> Float[Tensor, "*shape"]:
    """Scale the masked values to standard deviation 1 (and mean 0 unless `shift_mean` is False); 0 where the mask is
    False.

    The variance is the population variance over the masked tokens. With a single token or equal values the result is 0
    (shifted): no information is made up.
    """
    mean = masked_mean(values, loss_mask)
    variance = masked_mean((values - mean) ** 2, loss_mask)
    scaled = (values - mean) * torch.rsqrt(variance + epsilon)
    if not shift_mean:
        scaled = scaled + mean
    return torch.where(loss_mask, scaled, torch.zeros_like(scaled))


def explained_variance(
    values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], loss_mask: Bool[Tensor, "*shape"]
) -> float:
    """`1 - Var(returns - values) / Var(returns)`: 1 is a perfect value head, 0 one no better than a constant; 0 by
    convention when the returns do not vary."""
    target, error = returns[loss_mask].double(), (returns - values)[loss_mask].double()
    variance = target.var(correction=0)
    return float(1 - error.var(correction=0) / variance) if variance > 0 else 0.0


@dataclass
class KLController:
    """The coefficient beta of the KL penalty: fixed, or steered to a target (Ziegler et al. 2019, section 2.2).

    `beta <- beta (1 + gain * clamp((KL - target) / target, -0.2, 0.2))` after each batch.
    """

    coefficient: float
    """beta; grows when the policy is further from the reference than the target."""
    target: float | None = None
    """KL per response in nats to steer to; None keeps beta fixed."""
    gain: float = 0.1
    """K_beta of the paper."""

    def __post_init__(self) -> None:
        require(self.coefficient >= 0, "coefficient", self.coefficient, "a number >= 0")
        require(self.target is None or self.target > 0, "target", self.target, "None or a number > 0")
        require(0 < self.gain <= 1, "gain", self.gain, "a number in (0, 1]")

    def update(self, kl: float) -> float:
        """Take the measured KL per response (nats) of a batch and give the coefficient for the next one."""
        if self.target is not None:
            error = min(max((kl - self.target) / self.target, -0.2), 0.2)
            self.coefficient *= 1 + self.gain * error
        return self.coefficient
