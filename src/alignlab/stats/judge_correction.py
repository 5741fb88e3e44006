"""What is true behind a judge's verdicts? Rates and differences corrected for the judge's own measured error."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

from alignlab.core.errors import DataError
from alignlab.stats.classification import classify, rogan_gladen
from alignlab.stats.interval import Interval
from alignlab.stats.resampling import CHUNK_ELEMENTS
from alignlab.stats.validation import (
    FloatArray,
    IntArray,
    as_binary,
    as_codes,
    as_pair,
    as_values,
    check_confidence,
    check_resamples,
)

Clusters = Sequence[Hashable] | None
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Labelled:
    """Items whose truth is known, with the judge's verdicts on them: what the judge's error is measured on."""

    truth: ArrayLike
    """(m,) 0/1, from a person or by construction; both classes must occur."""
    predicted: ArrayLike
    """(m,) 0/1, the judge's verdicts on the same items."""
    clusters: Clusters = None
    """Groups of items that are not independent (answers to one prompt), or None."""


@dataclass(frozen=True)
class _Quality:
    """Sensitivity and specificity as measured, and as many resamples of both, (R,)."""

    sensitivity: float
    specificity: float
    drawn_sensitivity: FloatArray
    drawn_specificity: FloatArray


def corrected_prevalence(
    predicted: ArrayLike,
    labelled_truth: ArrayLike,
    labelled_predicted: ArrayLike,
    *,
    clusters: Clusters = None,
    labelled_clusters: Clusters = None,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Rogan-Gladen rate of truly positive items with an interval that carries the judge's own uncertainty.

    predicted: (n,) 0/1 verdicts on the items of interest; labelled_*: (m,) truth and verdicts on a labelled set. Each
    resample redraws the three rates (positives, sensitivity, specificity) and corrects again. Counts are drawn around
    rates with half a success and half a failure added (Jeffreys), so that a judge without an error on 20 labelled items
    is not taken for a perfect one. With clusters whole clusters are drawn, and the deviations of a rate are stretched
    to those of a t with one degree of freedom less than clusters. A resample in which the judge is no better than
    chance says nothing: it counts as 0 for the lower and 1 for the upper limit. n of the result counts `predicted`.
    It holds when the judge errs as often on the items of interest as on the labelled ones of the same truth.
    """
    check_confidence(confidence)
    check_resamples(n_resamples)
    called = as_binary(predicted, "predicted")
    rng = np.random.default_rng(seed)
    labelled = Labelled(labelled_truth, labelled_predicted, labelled_clusters)
    rate = _draw_rates(called[:, None], as_codes(clusters, called.size), n_resamples, confidence, rng)[:, 0]
    judge = _draw_quality(labelled, n_resamples, confidence, rng)
    estimate = rogan_gladen(float(called.mean()), judge.sensitivity, judge.specificity)
    corrected, useful = _correct(rate, judge)
    corrected = np.clip(corrected, 0.0, 1.0)
    return _limits(estimate, corrected, useful, (0.0, 1.0), called.size, confidence, "rogan-gladen bootstrap")


def corrected_difference(
    a: ArrayLike,
    b: ArrayLike,
    labelled: Labelled,
    labelled_b: Labelled | None = None,
    *,
    clusters: Clusters = None,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """True difference of two rates (b minus a) on the same items behind the judge's 0/1 verdicts a and b, (n,) each.

    With one labelled set for both, (mean b - mean a) / (sensitivity + specificity - 1): a judge's errors shrink a
    difference and never widen it. A judge may be softer on one system (its own family, longer answers); then give each
    its own labelled set, `labelled` for a and `labelled_b` for b, and each rate is corrected with its own error.
    Resampling as in `corrected_prevalence`, pairs together. Differences lie in [-1, 1]; resamples without information
    (a judge no better than chance) count as -1 for the lower and as 1 for the upper limit.
    """
    check_confidence(confidence)
    check_resamples(n_resamples)
    as_pair(a, b)
    pair = np.stack([as_binary(a, "a"), as_binary(b, "b")], axis=1)  # (n, 2)
    rng = np.random.default_rng(seed)
    rates = _draw_rates(pair, as_codes(clusters, len(pair)), n_resamples, confidence, rng)  # (R, 2)
    first = _draw_quality(labelled, n_resamples, confidence, rng)
    second = first if labelled_b is None else _draw_quality(labelled_b, n_resamples, confidence, rng)
    (low, useful_a), (high, useful_b) = _correct(rates[:, 0], first), _correct(rates[:, 1], second)
    drawn = np.clip(high - low, -1.0, 1.0)
    seen = pair.mean(axis=0)
    estimate = _uncut(float(seen[1]), second) - _uncut(float(seen[0]), first)
    estimate = min(1.0, max(-1.0, estimate))
    return _limits(estimate, drawn, useful_a & useful_b, (-1.0, 1.0), len(pair), confidence, "rogan-gladen bootstrap")


def prediction_powered_mean(
    judged: ArrayLike, labelled_truth: ArrayLike, labelled_judged: ArrayLike, confidence: float = 0.95
) -> Interval:
    """Mean true score of items of which a random few are labelled and all are judged, for scores of any kind.

    judged: (N,) judge's scores without a label; labelled_*: (n,) truth and judge on the labelled items, drawn at random
    from the same population. mean(truth) + lambda (mean(judged) - mean(labelled_judged)), lambda chosen to minimise the
    variance, so the interval is asymptotically never wider than that of the labels alone (Angelopoulos et al. 2023,
    arXiv:2311.01453, PPI++). Deviations: t with n - 1 degrees of freedom in place of the normal, and lambda is cut to
    [0, 1]. Unlike `corrected_prevalence` it needs no stable error rates, but labels from the very population.
    """
    check_confidence(confidence)
    scores = as_values(judged, "judged")
    truth, guess = as_values(labelled_truth, "labelled_truth"), as_values(labelled_judged, "labelled_judged")
    if truth.size != guess.size:
        raise DataError(f"labelled_truth has {truth.size} items and labelled_judged {guess.size}; give the same items")
    n, n_judged = truth.size, scores.size
    if n < 3 or n_judged < 2:
        raise DataError(f"{n} labelled and {n_judged} judged items are too few; at least 3 and 2 are needed")
    spread = float(np.concatenate([scores, guess]).var(ddof=1))
    covariance = float(np.cov(truth, guess, ddof=1)[0, 1])
    weight = 0.0 if spread == 0 else min(1.0, max(0.0, covariance / ((1 + n / n_judged) * spread)))
    estimate = float(truth.mean()) + weight * float(scores.mean() - guess.mean())
    residual = float((truth - weight * guess).var(ddof=2))  # the mean and the weight were both fitted
    error = math.sqrt(residual / n + weight**2 * float(scores.var(ddof=1)) / n_judged)
    half = float(student_t.ppf(0.5 + confidence / 2, n - 1)) * error
    return Interval(estimate, estimate - half, estimate + half, n + n_judged, confidence, "prediction-powered")


def with_unscorable(interval: Interval, n_unscorable: int, worst: float = 0.0, best: float = 1.0) -> Interval:
    """The interval of a mean over all items, had the `n_unscorable` all scored `worst` or all scored `best`.

    Nothing is assumed about items without a score (Manski's bounds): more of them only ever widen the limits. The
    estimate stays that of the scored items; n counts all.
    """
    if isinstance(n_unscorable, bool) or not isinstance(n_unscorable, int) or n_unscorable < 0:
        raise DataError(f"n_unscorable is {n_unscorable!r}, allowed: a whole number of items, 0 or more")
    if not worst <= interval.estimate <= best:
        raise DataError(f"the estimate {interval.estimate:.4g} lies outside the scale from {worst:g} to {best:g}")
    total = interval.n + n_unscorable
    share = n_unscorable / total
    low = (1 - share) * max(interval.low, worst) + share * worst
    high = (1 - share) * min(interval.high, best) + share * best
    return Interval(interval.estimate, low, high, total, interval.confidence, f"{interval.method}, unscorable bounded")


def _draw_rates(
    outcomes: FloatArray, codes: IntArray | None, n_resamples: int, confidence: float, rng: np.random.Generator
) -> FloatArray:
    """Resampled means of the 0/1 columns of `outcomes`, (n, K) with K of 1 or 2, as (R, K); rows stay together."""
    n, n_columns = outcomes.shape
    if codes is not None:
        columns = np.concatenate([outcomes, np.ones((n, 1))], axis=1)
        drawn, observed, n_clusters = _draw_clusters(columns, codes, n_resamples, rng)
        means = drawn[:, :n_columns] / drawn[:, n_columns:]
        centre = observed[:n_columns] / observed[n_columns]
        return np.stack(
            [
                _stretched(means[:, k], float(centre[k]), n_clusters, confidence, n_resamples, rng)
                for k in range(n_columns)
            ],
            axis=1,
        )
    # Each distinct row is one cell of a table; half a count for each column's two sides, spread over the cells.
    cells = np.stack(np.meshgrid(*[[0.0, 1.0]] * n_columns, indexing="ij"), axis=-1).reshape(-1, n_columns)
    counts = np.array([float(np.sum((outcomes == cell).all(axis=1))) for cell in cells]) + 1.0 / len(cells)
    return rng.multinomial(n, counts / counts.sum(), size=n_resamples) @ cells / n


def _draw_quality(labelled: Labelled, n_resamples: int, confidence: float, rng: np.random.Generator) -> _Quality:
    quality = classify(labelled.truth, labelled.predicted)
    if quality.sensitivity is None or quality.specificity is None:
        raise DataError("the labelled set must hold both positive and negative items to correct a judge's rate")
    sensitivity, specificity = quality.sensitivity.estimate, quality.specificity.estimate
    rogan_gladen(0.0, sensitivity, specificity)  # its error is the one for a judge that says nothing
    truth, called = as_binary(labelled.truth, "truth"), as_binary(labelled.predicted, "predicted")
    codes = as_codes(labelled.clusters, truth.size)
    if codes is None:
        positives, negatives = called[truth == 1, None], 1.0 - called[truth == 0, None]
        right = [_draw_rates(part, None, n_resamples, confidence, rng)[:, 0] for part in (positives, negatives)]
        return _Quality(sensitivity, specificity, right[0], right[1])
    columns = np.stack([truth * called, truth, (1 - truth) * (1 - called), 1 - truth], axis=1)
    drawn, _, _ = _draw_clusters(columns, codes, n_resamples, rng)
    rates = []
    for column, observed, members in ((0, sensitivity, truth == 1), (2, specificity, truth == 0)):
        total = drawn[:, column + 1]
        rate = np.where(total > 0, drawn[:, column] / np.maximum(total, 1.0), 0.0)  # 0: none drawn says nothing
        n_clusters = np.unique(codes[members]).size  # only those that hold such items
        rates.append(_stretched(rate, observed, n_clusters, confidence, n_resamples, rng))
    return _Quality(sensitivity, specificity, rates[0], rates[1])


def _draw_clusters(
    columns: FloatArray, codes: IntArray, n_resamples: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, int]:
    """Column totals (R, K) of G clusters drawn with replacement, the observed totals (K,), and G."""
    n_clusters = int(codes.max()) + 1
    if n_clusters < 2:
        raise DataError("a clustered bootstrap needs at least 2 clusters, got 1")
    totals = np.stack([np.bincount(codes, weights=column, minlength=n_clusters) for column in columns.T], axis=1)
    drawn = np.empty((n_resamples, totals.shape[1]))
    chunk = max(1, CHUNK_ELEMENTS // (n_clusters * totals.shape[1]))
    for start in range(0, n_resamples, chunk):
        rows = min(chunk, n_resamples - start)
        index = rng.integers(0, n_clusters, size=(rows, n_clusters))
        drawn[start : start + rows] = totals[index].sum(axis=1)
    return drawn, totals.sum(axis=0), n_clusters


def _stretched(
    means: FloatArray, observed: float, n_units: int, confidence: float, n_resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Resampled rates with the spread of a t rather than of n_units draws without the n / (n - 1), cut to [0, 1].

    Hesterberg 2015 (Am. Stat. 69:371), section 4.2, widens the percentile levels for the same two reasons. Units that
    never vary are drawn as a binomial with one trial a unit, smoothed: a rate of 1 in five clusters is not certain.
    """
    if observed in (0.0, 1.0) or n_units < 2:
        return rng.binomial(n_units, (observed * n_units + 0.5) / (n_units + 1), size=n_resamples) / n_units
    level = 0.5 + confidence / 2
    factor = student_t.ppf(level, n_units - 1) / norm.ppf(level) * math.sqrt(n_units / (n_units - 1))
    return np.clip(observed + float(factor) * (means - observed), 0.0, 1.0)


def _correct(rate: FloatArray, judge: _Quality) -> tuple[FloatArray, BoolArray]:
    """Uncut Rogan-Gladen rates (R,) and where the judge is better than chance (elsewhere the rate means nothing)."""
    youden = judge.drawn_sensitivity + judge.drawn_specificity - 1
    useful = youden > 1e-12
    return (rate + judge.drawn_specificity - 1) / np.where(useful, youden, 1.0), useful


def _uncut(rate: float, judge: _Quality) -> float:
    return (rate + judge.specificity - 1) / (judge.sensitivity + judge.specificity - 1)


def _limits(
    estimate: float,
    drawn: FloatArray,
    useful: BoolArray,
    scale: tuple[float, float],
    n: int,
    confidence: float,
    method: str,
) -> Interval:
    low = np.quantile(np.where(useful, drawn, scale[0]), 0.5 - confidence / 2)
    high = np.quantile(np.where(useful, drawn, scale[1]), 0.5 + confidence / 2)
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), n, confidence, method)
