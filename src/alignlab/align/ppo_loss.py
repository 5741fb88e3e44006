"""The loss of PPO on some rows of a rollout batch: policy, value and entropy together."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from alignlab.align.losses import masked_mean, ppo_policy_loss, ppo_value_loss
from alignlab.align.ppo_config import PPOConfig
from alignlab.align.rollout import Rollout


def ppo_loss(
    batch: Rollout,
    rows: Tensor,
    width: int,
    config: PPOConfig,
    autocast: AbstractContextManager[Any],
    policy: nn.Module,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the tokens of `rows`, which are at most `width` long, and what to report of it.

    The policy's pass runs under `autocast`. The policy comes last because it is whoever computes that gives it.
    """
    short = slice(width - 1)
    tokens, mask = batch.tokens[rows, :width], batch.loss_mask[rows, :width]
    where = mask[:, 1:]
    with autocast:
        out = policy(tokens, mask, entropy=config.entropy_coefficient > 0)
    found = ppo_policy_loss(
        out.logprobs, batch.logprobs[rows, short], batch.advantages[rows, short], where, clip=config.clip
    )
    value = ppo_value_loss(
        out.values, batch.values[rows, short], batch.returns[rows, short], where, clip=config.value_clip
    )
    loss = found.loss + config.value_coefficient * value.loss
    if out.entropy is not None:
        loss = loss - config.entropy_coefficient * masked_mean(out.entropy, where)
    return loss, {
        "policy_loss": found.loss,
        "value_loss": value.loss,
        "clip_fraction": found.clip_fraction,
        "value_clip_fraction": value.clip_fraction,
        "approx_kl": found.approx_kl,
    }
