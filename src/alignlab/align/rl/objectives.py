"""Advantages and losses of GRPO, RLOO and REINFORCE as pure functions on tensors.

A loss is a sum over tokens with weights that `token_weights` makes once for a whole minibatch; a microbatch takes its
rows of them, so the gradients of microbatches add up to the minibatch's whatever the normalisation.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.align.losses import KLEstimator, PolicyLoss, kl_estimate, masked_mean, same_shape
from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.train.losses import check_mask

Scale = Literal["group", "batch", "none"]
Aggregate = Literal["sequence", "token", "constant"]
RatioLevel = Literal["token", "sequence"]


def grouped(scores: Float[Tensor, " batch"], group_size: int) -> Float[Tensor, "groups size"]:
    """Scores of answers that stand together by prompt as one row a prompt."""
    require(group_size >= 2, "group_size", group_size, "a whole number of at least 2")
    if scores.ndim != 1 or len(scores) == 0 or len(scores) % group_size:
        raise ConfigError(
            f"{tuple(scores.shape)} scores do not fall into groups of {group_size}; right is a multiple of that"
        )
    return scores.view(-1, group_size)


def equal_groups(scores: Float[Tensor, " batch"], group_size: int) -> Bool[Tensor, " groups"]:
    """True for a group whose scores are all the same: no answer of it is better than another."""
    rows = grouped(scores, group_size)
    return (rows == rows[:, :1]).all(dim=1)


def group_advantages(
    scores: Float[Tensor, " batch"], group_size: int, *, scale: Scale = "group", epsilon: float = 1e-4
) -> Float[Tensor, " batch"]:
    """`(r - mean of its group) / (deviation + epsilon)`: Shao et al. 2024 (DeepSeekMath), section 4.1.2.

    `scale="group"` takes the group's deviation, `"batch"` that of all scores, `"none"` leaves the difference as it is
    (Liu et al. 2025, Dr. GRPO: dividing favours prompts that are nearly always or never solved). Deviations have the
    n - 1 denominator, as in `trl`.
    """
    rows = grouped(scores, group_size)
    advantages = rows - rows.mean(dim=1, keepdim=True)
    if scale == "group":
        advantages = advantages / (rows.std(dim=1, keepdim=True) + epsilon)
    elif scale == "batch":
        advantages = advantages / (scores.std() + epsilon)
    elif scale != "none":
        raise ConfigError(f"scale is {scale!r}, allowed: 'group', 'batch' or 'none'")
    return advantages.flatten()


def leave_one_out_advantages(
    scores: Float[Tensor, " batch"], group_size: int, *, normalise: bool = False, epsilon: float = 1e-4
) -> Float[Tensor, " batch"]:
    """Each score less the mean of the others in its group: Kool et al. 2019; Ahmadian et al. 2024 (RLOO), eq. 8.

    Unlike the group's mean the baseline does not depend on the answer itself, so the gradient is unbiased; it is
    `n / (n - 1)` times the difference to the mean. `normalise` then scales to mean 0 and deviation 1 over the batch.
    """
    rows = grouped(scores, group_size)
    advantages = (rows - (rows.sum(dim=1, keepdim=True) - rows) / (group_size - 1)).flatten()
    if normalise:
        advantages = (advantages - advantages.mean()) / (advantages.std() + epsilon)
    return advantages


def token_weights(
    loss_mask: Bool[Tensor, "batch pos"], aggregate: Aggregate = "token", *, max_tokens: int | None = None
) -> Float[Tensor, "batch pos"]:
    """Weight of each token in the loss of a minibatch; 0 where the mask is False.

    `sequence`: every response counts the same, its tokens share (GRPO as first published; a long wrong answer is
    punished less per token). `token`: every token counts the same (Yu et al. 2025, DAPO, eq. 8). `constant`: the sum
    divided by `batch * max_tokens` (Dr. GRPO), so that a response's weight does not depend on the others' lengths. A
    response that is masked whole counts among the batch and adds nothing. Raises TrainingError when nothing is left.
    """
    check_mask(loss_mask)
    inside = loss_mask.float()
    lengths = inside.sum(dim=1, keepdim=True)
    if aggregate == "sequence":
        return inside / lengths.clamp(min=1) / len(loss_mask)
    if aggregate == "token":
        return inside / lengths.sum()
    if aggregate == "constant":
        require(max_tokens is not None and max_tokens >= 1, "max_tokens", max_tokens, "a whole number of at least 1")
        return inside / (len(loss_mask) * float(max_tokens or 1))
    raise ConfigError(f"aggregate is {aggregate!r}, allowed: 'sequence', 'token' or 'constant'")


def weighted_sum(values: Float[Tensor, "batch pos"], weights: Float[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Sum of `weights * values`; what stands where the weight is 0 (perhaps inf or nan) is not touched."""
    return torch.where(weights != 0, values * weights, torch.zeros_like(values)).sum()


def grpo_loss(
    logprobs: Float[Tensor, "batch pos"],
    old_logprobs: Float[Tensor, "batch pos"],
    advantages: Float[Tensor, " batch"],
    weights: Float[Tensor, "batch pos"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    level: RatioLevel = "token",
) -> PolicyLoss:
    """Clipped surrogate `-sum w min(r A, clamp(r, 1 - low, 1 + high) A)` of grouped answers.

    `level="token"` is DeepSeekMath, eq. 3, without its KL term (`kl_loss`); a `clip_high` above `clip_low` is DAPO's
    "clip-higher". `level="sequence"` is GSPO (Zheng et al. 2025, eq. 5 to 7): r is the geometric mean of the tokens'
    ratios, the same for all tokens of a response.
    """
    same_shape("grpo_loss", logprobs=logprobs, old_logprobs=old_logprobs, weights=weights)
    inside = weights != 0
    log_ratio = torch.where(inside, logprobs - old_logprobs, torch.zeros_like(logprobs))
    if level == "sequence":
        mean = log_ratio.sum(dim=1, keepdim=True) / inside.sum(dim=1, keepdim=True).clamp(min=1)
        per_token = mean.expand_as(log_ratio)
    elif level == "token":
        per_token = log_ratio
    else:
        raise ConfigError(f"level is {level!r}, allowed: 'token' or 'sequence'")
    ratio, gain = per_token.exp(), advantages[:, None]
    plain, clipped = ratio * gain, ratio.clamp(1 - clip_low, 1 + clip_high) * gain
    loss = -weighted_sum(torch.minimum(plain, clipped), weights)
    return PolicyLoss(loss, *_clip_measures(clipped < plain, log_ratio.detach(), inside))


def rloo_loss(
    logprobs: Float[Tensor, "batch pos"],
    old_logprobs: Float[Tensor, "batch pos"],
    advantages: Float[Tensor, " batch"],
    loss_mask: Bool[Tensor, "batch pos"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PolicyLoss:
    """Clipped surrogate with the ratio of whole responses, mean over the batch: `-mean(min(R A, clamp(R) A))`.

    A response is one action (Ahmadian et al. 2024, section 3): R is the product of its tokens' ratios. At the policy
    that gave the answers the gradient is REINFORCE's; the clip, as in `trl`, lets a batch be used more than once.
    """
    same_shape("rloo_loss", logprobs=logprobs, old_logprobs=old_logprobs, mask=loss_mask)
    check_mask(loss_mask)
    log_ratio = torch.where(loss_mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    ratio = log_ratio.sum(dim=1).exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    off = (clipped < plain)[:, None].expand_as(loss_mask)
    return PolicyLoss(-torch.minimum(plain, clipped).mean(), *_clip_measures(off, log_ratio.detach(), loss_mask))


def reinforce_loss(
    logprobs: Float[Tensor, "batch pos"],
    advantages: Float[Tensor, "batch pos"],
    weights: Float[Tensor, "batch pos"],
) -> Float[Tensor, ""]:
    """`-sum w A log pi` (Williams 1992): its gradient is the policy gradient; its value means nothing."""
    same_shape("reinforce_loss", logprobs=logprobs, advantages=advantages, weights=weights)
    return -weighted_sum(logprobs * advantages, weights)


def kl_loss(
    logprobs: Float[Tensor, "batch pos"],
    reference_logprobs: Float[Tensor, "batch pos"],
    weights: Float[Tensor, "batch pos"],
    *,
    estimator: KLEstimator = "k3",
    old_logprobs: Float[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, ""]:
    """Weighted sum of the KL estimates, to be added to a loss times beta.

    The estimators' values agree in expectation but their gradients do not, for tokens drawn from the policy: that of
    k2 is the gradient of KL(policy || reference); that of k3, GRPO's as published, is the gradient of KL(reference ||
    policy); that of k1 is 0. With `old_logprobs` each estimate is multiplied by the token's probability ratio, and k1
    and k3 too then have the gradient of KL(policy || reference) (DeepSeek-V3.2, section 3.1).
    """
    same_shape("kl_loss", logprobs=logprobs, reference_logprobs=reference_logprobs, weights=weights)
    estimate = kl_estimate(logprobs, reference_logprobs, estimator)
    if old_logprobs is not None:
        estimate = estimate * (logprobs - old_logprobs).exp()
    return weighted_sum(estimate, weights)


def overlong_penalty(lengths: Int[Tensor, " batch"], max_tokens: int, buffer: int) -> Float[Tensor, " batch"]:
    """DAPO's soft punishment (Yu et al. 2025, eq. 13): 0 up to `max_tokens - buffer`, then falling to -1 at the end."""
    require(1 <= buffer <= max_tokens, "buffer", buffer, f"a whole number from 1 to max_tokens ({max_tokens})")
    return -((lengths.float() - (max_tokens - buffer)) / buffer).clamp(0, 1)


def _clip_measures(
    off: Bool[Tensor, "batch pos"], log_ratio: Float[Tensor, "batch pos"], inside: Bool[Tensor, "batch pos"]
) -> tuple[Tensor, Tensor]:
    """Share of tokens that the clip switched off, and KL(old || new) per token by k3; 0 where nothing is inside."""
    if not bool(inside.any()):  # a microbatch may hold masked responses only
        return torch.zeros(()), torch.zeros(())
    return masked_mean(off.float(), inside), masked_mean(torch.expm1(log_ratio) - log_ratio, inside)
