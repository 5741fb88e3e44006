"""The bootstrap engine: resampled means of items or clusters, and BCa limits, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr, ndtri

from alignlab.stats.interval import Interval
from alignlab.stats.validation import FloatArray, IntArray

CHUNK_ELEMENTS = 1 << 20
"""Elements of the largest temporary array: memory stays near 16 MB however many resamples are asked for."""


def cluster_totals(values: FloatArray, codes: IntArray | None) -> tuple[FloatArray, FloatArray]:
    """Sum and size of each cluster, both (G,); without clusters every value is its own."""
    if codes is None:
        return values, np.ones_like(values)
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def resampled_means(sums: FloatArray, sizes: FloatArray, n_resamples: int, rng: np.random.Generator) -> FloatArray:
    """Means of `n_resamples` draws of G clusters with replacement, (n_resamples,).

    Clusters with equal (sum, size) are interchangeable, so a draw is a multinomial count over the distinct ones:
    the same distribution as drawing indices, at the cost of the distinct values (three for 0/1 differences).
    """
    units = np.stack([sums, sizes], axis=1)  # (G, 2)
    distinct, counts = np.unique(units, axis=0, return_counts=True)
    n_units, n_distinct = len(units), len(distinct)
    means = np.empty(n_resamples)
    few = 4 * n_distinct <= n_units
    chunk = max(1, CHUNK_ELEMENTS // (n_distinct if few else n_units))
    for start in range(0, n_resamples, chunk):
        rows = min(chunk, n_resamples - start)
        if few:
            drawn = rng.multinomial(n_units, counts / n_units, size=rows) @ distinct  # (rows, 2)
            total, size = drawn[:, 0], drawn[:, 1]
        else:
            index = rng.integers(0, n_units, size=(rows, n_units))
            total, size = sums[index].sum(axis=1), sizes[index].sum(axis=1)
        means[start : start + rows] = total / size
    return means


def bca_interval(
    values: FloatArray, codes: IntArray | None, n_resamples: int, confidence: float, seed: int
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron 1987, J. Am. Stat. Assoc. 82:171).

    With `codes`, whole clusters are drawn and the statistic is the mean over their items. One unit gives unbounded
    limits; units that are all equal give a point.
    """
    sums, sizes = cluster_totals(values, codes)
    n, estimate = values.size, float(values.mean())
    name = "bca" if codes is None else "cluster bca"
    if sums.size < 2:
        return Interval(estimate, -math.inf, math.inf, n, confidence, name)
    leave_one_out = (sums.sum() - sums) / (sizes.sum() - sizes)  # (G,)
    centred = leave_one_out.mean() - leave_one_out
    scale = float(np.abs(leave_one_out).max())
    if float(np.abs(centred).max()) <= 1e-14 * scale:  # equal up to rounding: nothing varies
        return Interval(estimate, estimate, estimate, n, confidence, name)
    means = resampled_means(sums, sizes, n_resamples, np.random.default_rng(seed))
    # Ties with the estimate count half: with 0/1 scores a large share of the resamples equals it exactly.
    tolerance = 1e-12 * max(1.0, abs(estimate))
    below = float(np.mean(means < estimate - tolerance) + np.mean(np.abs(means - estimate) <= tolerance) / 2)
    below = min(max(below, 0.5 / n_resamples), 1 - 0.5 / n_resamples)
    bias = ndtri(below)
    acceleration = float(np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5))
    z = bias + ndtri(np.array([0.5 - confidence / 2, 0.5 + confidence / 2]))
    levels = ndtr(bias + z / (1 - acceleration * z))
    low, high = np.quantile(means, levels)
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), n, confidence, name)
