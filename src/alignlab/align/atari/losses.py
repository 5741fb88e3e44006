"""The mathematics of deep Q-learning from demonstrations (Hester et al. 2018), as pure functions."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def n_step_returns(
    rewards: Float[Tensor, "batch n"], ends: Bool[Tensor, "batch n"], gamma: float
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """(sum of discounted rewards, discount of the value that follows) of n steps in a row.

    Nothing counts after a step at which the episode ended, and then no value follows: `R = sum_k gamma^k r_k`,
    discount `gamma^n`, or 0.
    """
    alive = torch.cumprod(1.0 - ends.to(rewards.dtype), dim=1)
    before = torch.cat([torch.ones_like(alive[:, :1]), alive[:, :-1]], dim=1)
    powers = gamma ** torch.arange(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)
    return (rewards * before * powers).sum(dim=1), alive[:, -1] * gamma ** rewards.shape[1]


def double_q_targets(
    returns: Float[Tensor, " batch"],
    discounts: Float[Tensor, " batch"],
    online: Float[Tensor, "batch actions"],
    target: Float[Tensor, "batch actions"],
) -> Float[Tensor, " batch"]:
    """`R + discount * Q_target(s', argmax_a Q_online(s', a))` (van Hasselt et al. 2016)."""
    best = online.argmax(dim=1, keepdim=True)
    return returns + discounts * target.gather(1, best).squeeze(1)


def margin_losses(
    values: Float[Tensor, "batch actions"], expert: Int[Tensor, " batch"], margin: float
) -> Float[Tensor, " batch"]:
    """`max_a [Q(s, a) + margin where a is not the expert's] - Q(s, expert)`, at least 0 (Hester et al. 2018, eq. 2)."""
    chosen = values.gather(1, expert[:, None])
    raised = (values + margin).scatter(1, expert[:, None], chosen)
    return raised.amax(dim=1) - chosen.squeeze(1)


def td_losses(values: Float[Tensor, " batch"], targets: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Huber's loss of the temporal difference, linear beyond 1."""
    return F.huber_loss(values, targets, reduction="none")


def sampling_probabilities(weights: Float[Tensor, " slots"]) -> Float[Tensor, " slots"]:
    """Of drawing each slot whose priority to the power of alpha is given; slots of weight 0 are never drawn."""
    return weights / weights.sum()


def importance_weights(
    probabilities: Float[Tensor, " batch"], slots: Tensor | int, beta: float
) -> Float[Tensor, " batch"]:
    """`(slots * P)^-beta`, divided by the largest of the batch: beta = 1 undoes that draws are not uniform."""
    weights = (probabilities * slots) ** -beta
    return weights / weights.amax()
