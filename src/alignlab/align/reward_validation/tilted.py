"""The policy that RL with a KL penalty aims at, exactly: `pi ~ reference * exp(reward / beta)`.

No policy of the same KL has a higher proxy reward (Korbak et al. 2022), so a known reference shows what any optimiser
does to a gold reward at best. With `t = 1 / beta`, d E_pi[gold] / dt = Cov_pi(gold, proxy): the gold reward turns
where it ceases to vary with the proxy under the policy reached so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax

from alignlab.align.reward_validation.best_of_n import FloatArray, as_policy, kl_divergence, sample_table
from alignlab.core.errors import DataError


@dataclass(frozen=True)
class TiltedPoint:
    """The optimal policy at one strength of optimisation."""

    inverse_beta: float
    """1 / beta; 0 is the reference."""
    kl: float
    """KL to the reference, nats."""
    proxy: float
    """Expected proxy reward."""
    gold: float
    """Expected gold reward."""
    covariance: float
    """Of gold and proxy under the policy; the gold reward falls from here on where it is negative."""


def tilted_policy(reference: ArrayLike, proxy: ArrayLike, inverse_beta: float) -> FloatArray:
    """`reference * exp(inverse_beta * proxy)`, normalised: (n_answers,)."""
    p, r = as_policy(reference, proxy)
    with np.errstate(divide="ignore"):
        return np.asarray(softmax(np.log(p) + inverse_beta * r))


def tilted_point(reference: ArrayLike, proxy: ArrayLike, gold: ArrayLike, inverse_beta: float) -> TiltedPoint:
    """KL and rewards of the optimal policy, exactly."""
    p, r = as_policy(reference, proxy)
    _, g = as_policy(reference, gold)
    policy = tilted_policy(p, r, inverse_beta)
    means = float(policy @ r), float(policy @ g)
    covariance = float(policy @ ((r - means[0]) * (g - means[1])))
    return TiltedPoint(inverse_beta, kl_divergence(policy, p), *means, covariance)


def turn_of_gold(
    reference: ArrayLike, proxy: ArrayLike, gold: ArrayLike, *, most: float, steps: int = 400
) -> TiltedPoint | None:
    """The first place where the gold reward turns down, for `inverse_beta` up to `most`; None where it does not."""
    if not most > 0:
        raise DataError(f"most is {most}, allowed: a positive number")

    def covariance(inverse_beta: float) -> float:
        return tilted_point(reference, proxy, gold, inverse_beta).covariance

    grid = np.linspace(0, most, steps + 1)
    values = [covariance(t) for t in grid]
    for low, high, before, after in zip(grid[:-1], grid[1:], values[:-1], values[1:], strict=True):
        if before > 0 >= after:
            return tilted_point(reference, proxy, gold, float(brentq(covariance, low, high)))
    return None


def tilted_from_samples(
    proxy: ArrayLike, gold: ArrayLike, inverse_betas: Sequence[float]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(KL, proxy, gold, effective samples), each (prompts, points), of the optimal policy from the reference's answers.

    proxy, gold: (prompts, samples). Weights `exp(inverse_beta * proxy)`, normalised in each prompt: biased by one over
    the effective number of samples, so trust points with many (KL well below the log of the samples).
    """
    p, g = sample_table(proxy, "proxy"), sample_table(gold, "gold")
    if p.shape != g.shape:
        raise DataError(f"proxy has shape {p.shape} and gold {g.shape}, both need (prompts, samples)")
    logits = np.asarray(inverse_betas)[None, :, None] * p[:, None, :]  # (prompts, points, samples)
    log_weights = logits - logsumexp(logits, axis=2, keepdims=True)
    weights = np.exp(log_weights)
    kl = (weights * (log_weights + np.log(p.shape[1]))).sum(axis=2)
    rewards = [np.einsum("kps,ks->kp", weights, table) for table in (p, g)]
    return kl, rewards[0], rewards[1], 1 / (weights**2).sum(axis=2)
