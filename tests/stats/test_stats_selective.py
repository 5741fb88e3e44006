"""Selective prediction: curves by hand, areas over all orders, coverage of the jackknife, guarded thresholds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.interval import wilson
from alignlab.stats.selective import (
    area_under_risk_coverage,
    certainty_auroc,
    optimal_aurc,
    risk_coverage,
    threshold_for_risk,
)


def test_curve_by_hand() -> None:
    curve = risk_coverage([0.9, 0.8, 0.8, 0.1], [1, 0, 1, 0])
    assert curve.threshold.tolist() == [0.9, 0.8, 0.1]
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert curve.risk == pytest.approx([0.0, 1 / 3, 0.5])


def test_ties_are_the_mean_over_all_orders() -> None:
    certainty, correct = [3, 2, 2, 2, 1, 1], [1, 0, 1, 1, 0, 1]
    areas = []
    for order in itertools.permutations(range(6)):
        if all(certainty[a] >= certainty[b] for a, b in itertools.pairwise(order)):
            wrong = np.cumsum([1 - correct[i] for i in order])
            areas.append(np.mean(wrong / np.arange(1, 7)))
    assert area_under_risk_coverage(certainty, correct).estimate == pytest.approx(np.mean(areas))


def test_known_areas() -> None:
    correct = [1, 0, 1, 0]
    assert area_under_risk_coverage([0.5] * 4, correct).estimate == pytest.approx(0.5)  # says nothing: the error rate
    assert optimal_aurc(correct) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert area_under_risk_coverage(correct, correct).estimate == pytest.approx(
        np.mean([0, 0, 1 / 6, 1 / 2]) + (1 / 3 - 1 / 6) / 4
    )


def test_auroc_equals_all_pairs() -> None:
    rng = np.random.default_rng(0)
    certainty = rng.integers(0, 6, size=60)
    correct = (rng.random(60) < 0.3 + 0.08 * certainty).astype(int)
    right, wrong = certainty[correct == 1], certainty[correct == 0]
    pairs = [(r > w) + 0.5 * (r == w) for r in right for w in wrong]
    assert certainty_auroc(certainty, correct).estimate == pytest.approx(np.mean(pairs))


def coverage(n: int, n_sets: int) -> tuple[float, float]:
    """Share of intervals holding the population's AURC and AUROC, both known from integrals on a fine grid."""
    rng = np.random.default_rng(n)
    # Certainty u uniform, chance of being right 0.3 + 0.6 u. Risk at coverage c: 0.7 - 0.6 (1 - c / 2).
    aurc = 0.7 - 0.6 * 0.75
    grid = (np.arange(4000) + 0.5) / 4000
    right, wrong = 0.3 + 0.6 * grid, 0.7 - 0.6 * grid
    auroc = float(np.sum(right * (np.cumsum(wrong) - wrong / 2)) / (right.sum() * wrong.sum()))
    hits = []
    for _ in range(n_sets):
        u = rng.random(n)
        correct = rng.random(n) < 0.3 + 0.6 * u
        hits.append(
            (
                not area_under_risk_coverage(u, correct).excludes(aurc),
                not certainty_auroc(u, correct).excludes(auroc),
            )
        )
    first, second = np.mean(hits, axis=0)
    return float(first), float(second)


@pytest.mark.no_cover
def test_intervals_cover() -> None:
    """150 sets of 80 items, nominal 95 %: at least 88 % (false alarm 1e-3 at a true 95 %)."""
    assert min(coverage(80, 150)) >= 0.88


@pytest.mark.slow
@pytest.mark.parametrize("n", [60, 300])
def test_coverage_at_length(n: int) -> None:
    """Nominal 95 %, 1500 sets: 92.5 to 97.5 % (false alarm 1e-5 at a true 95 %)."""
    assert all(0.925 <= share <= 0.975 for share in coverage(n, 1500))


def test_copies_in_clusters_add_no_certainty() -> None:
    rng = np.random.default_rng(1)
    u = rng.random(50)
    correct = (rng.random(50) < u).astype(int)
    clusters = np.repeat(np.arange(50), 4).tolist()
    for measure in (area_under_risk_coverage, certainty_auroc):
        alone, copied = measure(u, correct), measure(np.repeat(u, 4), np.repeat(correct, 4), clusters=clusters)
        assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_no_error_seen_is_not_no_error() -> None:
    found = area_under_risk_coverage([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1])
    assert (found.low, found.high) == (0.0, wilson(0, 4).high)
    apart = certainty_auroc([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1])
    assert (apart.estimate, apart.low) == (1.0, wilson(2, 2).low)


def test_threshold_keeps_its_promise() -> None:
    """400 calibration sets of 300: the true risk above the threshold exceeds 0.2 in at most 5 % (seen: fewer)."""
    rng = np.random.default_rng(2)
    broken = answered = 0
    for _ in range(400):
        u = rng.random(300)
        threshold = threshold_for_risk(u, rng.random(300) < 0.3 + 0.7 * u, 0.2)
        if threshold < math.inf:
            answered += 1
            broken += 0.7 - 0.7 * (1 + threshold) / 2 > 0.2  # mean error of u uniform above the threshold
    assert answered > 200
    assert broken / 400 <= 0.05
    assert threshold_for_risk([0.5] * 10, [1] * 10, 0.01) == math.inf


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: risk_coverage([0.5, math.nan], [1, 0]), DataError, "must be finite"),
        (lambda: risk_coverage([0.5], [1, 0]), DataError, "one of each an item"),
        (lambda: certainty_auroc([0.5, 0.6, 0.7], [1, 1, 0]), DataError, "at least two of each"),
        (lambda: threshold_for_risk([0.5], [1], 1.5), ConfigError, "risk is 1.5"),
        (lambda: optimal_aurc([]), DataError, "empty"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
