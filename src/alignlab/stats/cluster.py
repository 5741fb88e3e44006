"""Standard errors when items come in groups (several questions on one passage, several samples of one prompt)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.stats.resampling import cluster_totals
from alignlab.stats.validation import as_codes, as_values, check_confidence


def standard_error(x: ArrayLike) -> float:
    """Standard error of the mean of independent items: s / sqrt(n) with the n - 1 variance. Needs n >= 2."""
    values = as_values(x, "x")
    if values.size < 2:
        raise DataError("a standard error needs at least 2 values, got 1")
    return float(values.std(ddof=1) / math.sqrt(values.size))


def clustered_standard_error(x: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean of `x`, (n,), that allows any correlation inside a cluster.

    SE^2 = G / (G - 1) * n^-2 * sum_c (sum_{i in c} (x_i - mean))^2: the sum over all pairs of one cluster of Miller
    2024 ("Adding Error Bars to Evals", arXiv:2411.00640, section 2.2), with the small-sample factor of G clusters on
    the whole sum rather than n / (n - 1) on its diagonal. Clusters of one item give `standard_error` exactly.
    Raises DataError for fewer than 2 clusters.
    """
    values = as_values(x, "x")
    sums, sizes = cluster_totals(values, as_codes(clusters, values.size))
    n_clusters = sums.size
    if n_clusters < 2:
        raise DataError("a clustered standard error needs at least 2 clusters, got 1")
    residual_sums = sums - sizes * values.mean()
    return math.sqrt(n_clusters / (n_clusters - 1) * float(np.sum(residual_sums**2))) / values.size


def clustered_interval(x: ArrayLike, clusters: Sequence[Hashable], confidence: float = 0.95) -> Interval:
    """Mean +- t_{G-1} times the clustered standard error: the closed-form companion of the cluster bootstrap."""
    check_confidence(confidence)
    values = as_values(x, "x")
    error = clustered_standard_error(values, clusters)
    half = float(student_t.ppf(0.5 + confidence / 2, len(set(clusters)) - 1)) * error
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, values.size, confidence, "clustered t")


def design_effect(x: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Clustered over naive variance of the mean: n / design_effect is the number of independent items these are worth.

    1 for data that do not vary at all.
    """
    naive = standard_error(x)
    clustered = clustered_standard_error(x, clusters)
    return 1.0 if naive == 0 else (clustered / naive) ** 2
