"""Clustered standard errors against the pairwise definition, sandwich regression and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignlab.core.errors import DataError
from alignlab.stats.cluster import clustered_interval, clustered_standard_error, design_effect, standard_error


def pairwise_definition(x: np.ndarray, clusters: list[int]) -> float:
    """Miller's double sum over the pairs of each cluster, in Python loops, times G / (G - 1)."""
    n, mean, total = len(x), x.mean(), 0.0
    for i in range(n):
        for j in range(n):
            if clusters[i] == clusters[j]:
                total += (x[i] - mean) * (x[j] - mean)
    groups = len(set(clusters))
    return math.sqrt(groups / (groups - 1) * total) / n


def sandwich(x: np.ndarray, clusters: list[int]) -> float:
    """Cluster-robust variance of a regression on a constant, with the factor G/(G-1) (n-1)/(n-k), k = 1."""
    design = np.ones((len(x), 1))
    beta = np.linalg.lstsq(design, x, rcond=None)[0]
    residual = x - design @ beta
    bread = np.linalg.inv(design.T @ design)
    meat = np.zeros((1, 1))
    for group in set(clusters):
        score = design[np.array(clusters) == group].T @ residual[np.array(clusters) == group]
        meat += np.outer(score, score)
    groups = len(set(clusters))
    return math.sqrt(float((groups / (groups - 1) * bread @ meat @ bread).item()))


@pytest.mark.parametrize("seed", range(3))
def test_equals_independent_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, 7, size=40).tolist()
    x = rng.normal(size=40) + np.array(clusters)
    assert clustered_standard_error(x, clusters) == pytest.approx(pairwise_definition(x, clusters))
    assert clustered_standard_error(x, clusters) == pytest.approx(sandwich(x, clusters))


def test_single_item_clusters_give_the_plain_error() -> None:
    x = np.random.default_rng(0).normal(size=30)
    assert clustered_standard_error(x, list(range(30))) == pytest.approx(standard_error(x))
    assert design_effect(x, list(range(30))) == pytest.approx(1.0)


def test_copies_add_no_information() -> None:
    """Every item repeated four times: the clustered error of 80 values is that of the 20 originals."""
    x = np.random.default_rng(1).normal(size=20)
    copies, clusters = np.repeat(x, 4), np.repeat(np.arange(20), 4).tolist()
    assert clustered_standard_error(copies, clusters) == pytest.approx(standard_error(x))
    assert design_effect(copies, clusters) == pytest.approx(4 * 79 / (4 * 19), rel=1e-9)


def test_interval_covers() -> None:
    """95 % nominal, 12 clusters of unequal size, 1000 data sets: coverage in [0.91, 0.98] (false alarm < 1e-3)."""
    rng = np.random.default_rng(2)
    sizes = np.array([2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7])
    clusters = np.repeat(np.arange(12), sizes)
    covered = 0
    for _ in range(1000):
        x = rng.normal(size=12)[clusters] + rng.normal(size=clusters.size)
        interval = clustered_interval(x, clusters.tolist())
        covered += interval.low <= 0 <= interval.high
    assert 0.91 <= covered / 1000 <= 0.98


def test_constant_data_and_bad_input() -> None:
    assert design_effect([1.0, 1.0, 1.0], ["a", "a", "b"]) == 1.0
    with pytest.raises(DataError, match="at least 2 clusters"):
        clustered_standard_error([1.0, 2.0], ["a", "a"])
    with pytest.raises(DataError, match="at least 2 values"):
        standard_error([1.0])
    with pytest.raises(DataError, match="one label per value"):
        clustered_standard_error([1.0, 2.0], ["a"])
