"""Gradient noise scale: how large a batch is worth its computation (McCandlish et al. 2018).

A batch of B tokens gives a gradient whose squared norm is on average `|G|² + tr(Σ)/B`: G is the true gradient, Σ the
covariance of one token's. The noise scale `tr(Σ)/|G|²` is the batch size at which both parts are equal; it estimates
the critical batch size. Two batch sizes give two equations, and so both unknowns (appendix A.1). Here the small batch
is a micro-batch and the large one the whole update, so that measuring needs no pass over the data of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from alignlab.core.config import require
from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.interval import Interval
from alignlab.stats.validation import FloatArray, check_confidence
from alignlab.train.layer_statistics import tensor_norms
from alignlab.train.observer import Metrics, UpdateView


@dataclass(frozen=True)
class NoiseScale:
    """Signal and noise of a gradient, and their ratio."""

    gradient_square: float
    """Unbiased estimate of |G|², the squared norm of the true gradient; below 0 where the noise drowns it."""
    variance: float
    """Unbiased estimate of tr(Σ), the variance of the gradient of one unit, summed over parameters."""
    scale: Interval
    """tr(Σ)/|G|² in units; its estimate and upper limit are infinite where the data do not bound them."""
    unit: str = "tokens"
    """What batches are counted in: "tokens", or "examples" where the loss reports no tokens."""


def noise_moments(square_norms: Sequence[float], tokens: Sequence[float], total: float) -> tuple[float, float]:
    """Unbiased (|G|², tr(Σ)) from the gradients of n batches and the gradient of all of them together.

    square_norms: |g_i|² of each batch's mean loss; tokens: t_i, how many each mean is over; total: |Σ t_i g_i / T|²,
    with T = Σ t_i. Because E|g_i|² = |G|² + tr(Σ)/t_i, also where sizes differ,

        tr(Σ) = T/(n-1) · (Σ t_i |g_i|² / T - total)        |G|² = total - tr(Σ)/T

    For equal sizes this is appendix A.1 of McCandlish et al. 2018 with the small norm averaged over its n batches.

    Raises:
        ConfigError: fewer than two batches. DataError: lengths differ, or a size is not above 0.
    """
    n = len(square_norms)
    if n < 2:
        raise ConfigError(
            f"the noise scale compares small batches with all of them together, and here there is only {n}; "
            "at least 2 micro-batches an update are needed (accumulate)"
        )
    if len(tokens) != n or min(tokens) <= 0:
        raise DataError(f"{n} gradient norms came with batch sizes {list(tokens)}, allowed: {n} numbers above 0")
    whole = math.fsum(tokens)
    small = math.fsum(t * norm for t, norm in zip(tokens, square_norms, strict=True)) / whole
    variance = whole / (n - 1) * (small - total)
    return total - variance / whole, variance


def ratio_interval(
    numerator: float, denominator: float, covariance: FloatArray, *, df: float, n: int, confidence: float = 0.95
) -> Interval:
    """Fieller's interval for `numerator / denominator`, two estimates of quantities that cannot be below 0.

    It holds every r for which `numerator - r · denominator` is within t standard errors of 0 (Fieller 1954, J. R. Stat.
    Soc. B 16:175). covariance: (2, 2), of the two estimates in this order; df: degrees of freedom behind it. Where the
    denominator cannot be told from 0 there is no upper limit; where it is estimated below 0, the estimate is infinite.
    """
    check_confidence(confidence)
    name = "fieller"
    estimate = max(numerator, 0.0) / denominator if denominator > 0 else math.inf
    if df <= 0 or not np.all(np.isfinite(covariance)):
        return Interval(estimate, 0.0, math.inf, n, confidence, name)
    bound = float(stdtrit(df, 0.5 + confidence / 2)) ** 2
    # The set is a r² - 2 b r + c <= 0.
    a = denominator**2 - bound * float(covariance[1, 1])
    b = numerator * denominator - bound * float(covariance[0, 1])
    c = numerator**2 - bound * float(covariance[0, 0])
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0 and denominator > 0:
        low, high = max((b - root) / a, 0.0), max((b + root) / a, 0.0)
        return Interval(estimate, min(low, estimate), max(high, estimate), n, confidence, name)
    # Only a lower limit: the positive root, written so that it survives a = 0.
    bounded = a <= 0 and c > 0 and numerator > 0 and b + root > 0
    return Interval(estimate, min(c / (b + root), estimate) if bounded else 0.0, math.inf, n, confidence, name)


class MovingMoments:
    """Exponential moving averages of |G|² and tr(Σ), each corrected for its start, and their ratio with an interval.

    Both are averaged before the ratio is taken: an average of ratios would be dominated by updates at which the
    estimate of |G|² happens to be near 0. The interval treats the updates as independent, with their weights.
    """

    def __init__(self, decay: float) -> None:
        require(0 <= decay < 1, "decay", decay, "a number from 0 to below 1")
        self.decay = decay
        self.count = 0
        self._weight = self._weight_square = 0.0
        self._mean = np.zeros(2)
        self._products = np.zeros((2, 2))

    def add(self, gradient_square: float, variance: float) -> None:
        """Take in one update's unbiased estimates."""
        pair, share = np.array([variance, gradient_square]), 1.0 - self.decay
        self.count += 1
        self._weight = self.decay * self._weight + share
        self._weight_square = self.decay**2 * self._weight_square + share**2
        self._mean = self.decay * self._mean + share * pair
        self._products = self.decay * self._products + share * np.outer(pair, pair)

    def state(self) -> dict[str, Any]:
        """All that further averages depend on, exactly, as JSON holds it."""
        sums = [self._weight, self._weight_square, *self._mean.tolist(), *self._products.ravel().tolist()]
        # Squares of squares can overflow, which JSON has no number for.
        return {"count": self.count, "sums": [value if math.isfinite(value) else str(value) for value in sums]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`. Raises ValueError or KeyError where it is none."""
        weight, weight_square, *rest = (float(value) for value in state["sums"])
        mean, products = np.array(rest[:2]), np.array(rest[2:]).reshape(2, 2)
        self.count, self._weight, self._weight_square = int(state["count"]), weight, weight_square
        self._mean, self._products = mean, products

    def estimate(self, confidence: float = 0.95, unit: str = "tokens") -> NoiseScale:
        """The smoothed estimates so far. Raises DataError before the first `add`."""
        if not self.count:
            raise DataError("no update has been measured, so there is no noise scale; call add first")
        variance, gradient_square = (float(value) for value in self._mean / self._weight)
        centre = self._mean / self._weight
        concentration = self._weight_square / self._weight**2  # 1/n for n equal weights
        df = 1.0 / concentration - 1.0
        covariance = np.full((2, 2), math.nan)
        if self.count > 1:
            spread = self._products / self._weight - np.outer(centre, centre)
            covariance = spread * concentration / (1.0 - concentration)
        scale = ratio_interval(
            variance, gradient_square, covariance, df=df if self.count > 1 else 0.0, n=self.count, confidence=confidence
        )
        return NoiseScale(gradient_square, variance, scale, unit)


class GradientNoiseScale:
    """Observer: the noise scale during training, from micro-batches and their update (two batch sizes).

    Logs at updates that are a multiple of `every`: `noise_scale` (smoothed, in tokens) with `noise_scale/low` and
    `noise_scale/high`; unsmoothed and unbiased `noise_scale/gradient_square` and `noise_scale/variance`;
    `noise_scale/batch`, the tokens of the update. What is infinite (no bound, or a gradient lost in noise) is left out.
    Checkpoints keep the averages: a resumed training logs the numbers of one that was never interrupted.

    Raises, at the first update measured:
        ConfigError: fewer than two micro-batches an update.
    """

    def __init__(self, *, every: int = 1, decay: float = 0.98, confidence: float = 0.95) -> None:
        require(every >= 1, "every", every, "a positive whole number")
        check_confidence(confidence)
        self.micro_gradients_every = every
        self.confidence = confidence
        self.moments = MovingMoments(decay)

    def before_update(self, view: UpdateView) -> Metrics:
        """Measure this update where it is due."""
        if view.step % self.micro_gradients_every:
            return {}
        gradients = [p.grad for p in view.parameters.values() if p.grad is not None]
        total = math.fsum(norm**2 for norm in tensor_norms(gradients))
        gradient_square, variance = noise_moments(view.micro_gradients_sq_norms, view.micro_tokens, total)
        self.moments.add(gradient_square, variance)
        scale = self.moments.estimate(self.confidence).scale
        metrics = {
            "noise_scale": scale.estimate,
            "noise_scale/low": scale.low,
            "noise_scale/high": scale.high,
            "noise_scale/gradient_square": gradient_square,
            "noise_scale/variance": variance,
            "noise_scale/batch": math.fsum(view.micro_tokens),
        }
        return {key: value for key, value in metrics.items() if math.isfinite(value)}

    def after_update(self, view: UpdateView) -> Metrics:
        """Nothing: all is known before the step."""
        return {}

    def state(self) -> dict[str, Any]:
        """The averages, for a checkpoint."""
        return self.moments.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from the averages of a checkpoint."""
        self.moments.load_state(state)


def progress_per_update(batch: float, noise_scale: float) -> float:
    """Progress of the best update at this batch size, as a share of the noiseless one: `1 / (1 + noise_scale/batch)`.

    McCandlish et al. 2018, section 2.2. With it, a training takes `1/share` times the fewest possible updates.
    """
    _check_sizes(batch, noise_scale)
    return batch / (batch + noise_scale) if math.isfinite(noise_scale) else 0.0


def progress_per_token(batch: float, noise_scale: float) -> float:
    """Progress per token at this batch size, as a share of that of very small batches: `1 / (1 + batch/noise_scale)`.

    The other side of the same trade: `(S/S_min - 1)(E/E_min - 1) = 1` (McCandlish et al. 2018, section 2.3). Both
    shares are one half where the batch is the critical one.
    """
    _check_sizes(batch, noise_scale)
    return noise_scale / (batch + noise_scale) if math.isfinite(noise_scale) else 1.0


def _check_sizes(batch: float, noise_scale: float) -> None:
    if not batch > 0 or not noise_scale >= 0:
        raise DataError(f"batch is {batch} and noise_scale {noise_scale}, allowed: above 0, and 0 or above")
