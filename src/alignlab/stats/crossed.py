"""Items crossed with seeds: an interval for new items and new seeds, and the noise components that a plan needs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from alignlab.core.errors import DataError
from alignlab.stats.design import LEAST_SEEDS, Noise, crossed_half_width
from alignlab.stats.interval import Interval
from alignlab.stats.resampling import cluster_totals
from alignlab.stats.validation import FloatArray, as_codes, as_values, check_confidence


def crossed_interval(
    differences: ArrayLike, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Interval:
    """Mean of b - a over items and seeds, both regarded as drawn from more: holds for new items and new seeds.

    differences: (items, seeds), at least 2 items and 3 seeds. Two-way random effects; variance and quantile as in
    `crossed_half_width`. With clusters (of about equal size) the rows are cluster means. Conservative where a
    handful of seeds hardly differ.
    """
    check_confidence(confidence)
    table = _as_table(differences, clusters)
    n_items, n_seeds = table.shape
    if n_seeds < LEAST_SEEDS:
        raise DataError(f"differences have {n_seeds} seeds; at least {LEAST_SEEDS} are needed to see how seeds differ")
    mean, squares = _mean_squares(table)
    items, seeds, residual = (np.array(square) for square in squares)
    half = float(crossed_half_width((items, seeds, residual), n_items, n_seeds, 1 - confidence)) / math.sqrt(table.size)
    return Interval(mean, mean - half, mean + half, len(np.asarray(differences)), confidence, "crossed t")


def estimate_noise(differences: ArrayLike, clusters: Sequence[Hashable] | None = None) -> Noise:
    """`Noise` of a pilot study, differences b - a, (items, seeds), at least 2 x 2, by the method of moments.

    Negative estimates of a variance are set to 0. A pilot of two or three seeds gives a coarse estimate of `seed`.
    """
    table = _as_table(differences, None)
    _, (items, seeds, residual) = _mean_squares(table)
    n_items, n_seeds = table.shape
    if clusters is None:
        correlation = 0.0
    else:
        correlation = max(0.0, intraclass_correlation(table.mean(axis=1), clusters))
    return Noise(
        item=math.sqrt(max(0.0, (items - residual) / n_seeds)),
        seed=math.sqrt(max(0.0, (seeds - residual) / n_items)),
        residual=math.sqrt(residual),
        cluster_correlation=correlation,
    )


def intraclass_correlation(x: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Correlation of two items of one cluster, by one-way analysis of variance; below 0 when clusters are too alike.

    (MS_between - MS_within) / (MS_between + (m0 - 1) MS_within), m0 the size that stands for unequal ones (Donner &
    Koval 1980, Biometrics 36:19). DataError for one cluster, for no cluster of two, or for values that do not vary.
    """
    values = as_values(x, "x")
    codes = as_codes(clusters, values.size)
    sums, sizes = cluster_totals(values, codes)
    n, n_clusters = values.size, sums.size
    if n_clusters < 2 or n_clusters == n:
        raise DataError("an intraclass correlation needs at least 2 clusters, one of them with at least 2 items")
    means = sums / sizes
    between = float(sizes @ (means - values.mean()) ** 2) / (n_clusters - 1)
    within = float(np.sum((values - means[codes]) ** 2)) / (n - n_clusters)
    typical = (n - float(sizes @ sizes) / n) / (n_clusters - 1)
    if between == 0 and within == 0:
        raise DataError("the values do not vary; an intraclass correlation is undefined")
    return (between - within) / (between + (typical - 1) * within)


def _as_table(differences: ArrayLike, clusters: Sequence[Hashable] | None) -> FloatArray:
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise DataError(f"differences have shape {table.shape}; (items, seeds) of at least 2 x 2 is needed")
    if not np.isfinite(table).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(table))[0])
        raise DataError(
            f"differences[{row}, {column}] is {table[row, column]}; every item needs a value for every seed"
        )
    codes = as_codes(clusters, len(table))
    if codes is None:
        return table
    means = np.stack([np.bincount(codes, weights=column) / np.bincount(codes) for column in table.T], axis=1)
    if len(means) < 2:
        raise DataError("all items belong to one cluster; at least 2 clusters are needed")
    return means


def _mean_squares(table: FloatArray) -> tuple[float, tuple[float, float, float]]:
    """Mean, and mean squares of items, seeds and residual."""
    n_items, n_seeds = table.shape
    mean = float(table.mean())
    rows, columns = table.mean(axis=1, keepdims=True) - mean, table.mean(axis=0, keepdims=True) - mean
    freedoms = (n_items - 1, n_seeds - 1, (n_items - 1) * (n_seeds - 1))
    squares = (
        n_seeds * float(np.sum(rows**2)) / freedoms[0],
        n_items * float(np.sum(columns**2)) / freedoms[1],
        float(np.sum((table - mean - rows - columns) ** 2)) / freedoms[2],
    )
    return mean, squares
