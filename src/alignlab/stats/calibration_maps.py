"""Make stated probabilities mean what they say: temperature scaling and isotonic regression, fitted out of fold."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.validation import FloatArray, as_codes, as_probabilities, as_stated

CLIP = 1e-6
"""Stated probabilities are kept this far from 0 and 1 before a logit, which would be infinite there."""
StatedMap = Callable[[FloatArray], FloatArray]
"""Maps stated probabilities (n,) to calibrated ones (n,)."""


@dataclass(frozen=True)
class Temperature:
    """softmax(logits / temperature): one number that keeps every ranking of the classes."""

    temperature: float
    """Above 1 softens an overconfident model, below 1 sharpens."""

    def __call__(self, logits: ArrayLike) -> FloatArray:
        """Calibrated class probabilities, (n, K), of `logits`, (n, K)."""
        return np.asarray(softmax(_as_logits(logits) / self.temperature, axis=1), dtype=np.float64)


@dataclass(frozen=True)
class StatedTemperature:
    """The same for one stated probability an item: logit(p) is divided by the temperature."""

    temperature: float

    def __call__(self, stated: ArrayLike) -> FloatArray:
        """Calibrated probabilities, (n,), of `stated`, (n,)."""
        logits = _logit(as_probabilities(stated, "stated")) / self.temperature
        return np.asarray(0.5 * (1 + np.tanh(logits / 2)), dtype=np.float64)


@dataclass(frozen=True)
class Isotonic:
    """A non-decreasing map: the means of the fitted blocks, straight lines between them, constant outside."""

    knots: tuple[float, ...]
    """Stated probabilities at both ends of each block, rising."""
    values: tuple[float, ...]
    """Calibrated probability at each knot, not falling."""

    def __call__(self, stated: ArrayLike) -> FloatArray:
        """Calibrated probabilities, (n,), of `stated`, (n,)."""
        return np.interp(as_probabilities(stated, "stated"), self.knots, self.values)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> Temperature:
    """The temperature of least negative log-likelihood (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    logits: (n, K), up to a constant a row (log-probabilities will do); labels: (n,) classes 0..K-1. The likelihood is
    concave in 1 / temperature, so its slope has one root. DataError where it has none: every label has the highest
    logit (temperature 0), or labels are no likelier than under equal chances (temperature infinite).
    """
    scores = _as_logits(logits)
    classes = _as_labels(labels, scores)
    chosen = scores[np.arange(len(scores)), classes]
    if np.all(chosen >= scores.max(axis=1)):
        raise DataError("every label already has the highest logit: the best temperature is 0; use harder items")

    def slope(log_inverse: float) -> float:
        weights = softmax(math.exp(log_inverse) * scores, axis=1)
        return float(np.mean((weights * scores).sum(axis=1) - chosen))

    if float(np.mean(scores.mean(axis=1) - chosen)) >= 0:
        raise DataError("the labels are no likelier than chance under these logits: the best temperature is infinite")
    low, high = -1.0, 1.0
    while slope(low) >= 0 and low > -60:
        low *= 2
    while slope(high) <= 0 and high < 60:
        high *= 2
    if slope(low) >= 0 or slope(high) <= 0:
        raise DataError("no finite temperature fits these logits and labels")
    return Temperature(math.exp(-float(brentq(slope, low, high, xtol=1e-12))))


def fit_stated_temperature(stated: ArrayLike, correct: ArrayLike) -> StatedTemperature:
    """Temperature scaling of one stated probability an item, (n,), by outcomes `correct`, (n,) 0/1.

    It pulls towards or away from 0.5 and cannot correct a model that is right less often than it says on both sides;
    `fit_isotonic` can.
    """
    probabilities, outcomes = as_stated(stated, correct)
    logits = _logit(probabilities)
    both = np.stack([np.zeros_like(logits), logits], axis=1)
    return StatedTemperature(fit_temperature(both, outcomes).temperature)


def fit_isotonic(stated: ArrayLike, correct: ArrayLike) -> Isotonic:
    """The non-decreasing map of least squared error (pool adjacent violators; Zadrozny & Elkan 2002, KDD).

    stated: (n,) in [0, 1]; correct: (n,) 0/1. Equal stated values get one value. Its ends are means of few items: a
    calibrated probability of 1 from three items is no certainty. Fit and judge on different items (`cross_fitted`).
    """
    probabilities, outcomes = as_stated(stated, correct)
    values, group = np.unique(probabilities, return_inverse=True)
    weight = np.bincount(group).astype(np.float64)
    mean = np.bincount(group, weights=outcomes) / weight
    blocks: list[tuple[float, float, int, int]] = []  # mean, weight, first and last index into values
    for i in range(values.size):
        block = (float(mean[i]), float(weight[i]), i, i)
        while blocks and blocks[-1][0] >= block[0]:
            before = blocks.pop()
            total = before[1] + block[1]
            block = ((before[0] * before[1] + block[0] * block[1]) / total, total, before[2], block[3])
        blocks.append(block)
    knots: list[float] = []
    heights: list[float] = []
    for height, _, first, last in blocks:
        for end in dict.fromkeys((first, last)):
            knots.append(float(values[end]))
            heights.append(height)
    return Isotonic(tuple(knots), tuple(heights))


def cross_fitted(
    stated: ArrayLike,
    correct: ArrayLike,
    fit: Callable[[FloatArray, FloatArray], StatedMap],
    *,
    n_folds: int = 5,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> FloatArray:
    """Calibrated probabilities, (n,), each from a map fitted on the other folds: fit to be judged.

    `fit` is `fit_isotonic`, `fit_stated_temperature` or any function of that form. With clusters, a cluster stays in
    one fold. ConfigError for fewer than 2 folds or more folds than items (or clusters).
    """
    probabilities, outcomes = as_stated(stated, correct)
    codes = as_codes(clusters, outcomes.size)
    units = np.arange(outcomes.size) if codes is None else codes
    n_units = int(units.max()) + 1
    if isinstance(n_folds, bool) or not isinstance(n_folds, int) or not 2 <= n_folds <= n_units:
        raise ConfigError(f"n_folds is {n_folds!r}, allowed: an integer from 2 to the {n_units} items (or clusters)")
    fold = (np.random.default_rng(seed).permutation(n_units) % n_folds)[units]
    calibrated = np.empty_like(probabilities)
    for k in range(n_folds):
        held = fold == k
        calibrated[held] = fit(probabilities[~held], outcomes[~held])(probabilities[held])
    return calibrated


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-probability of the labels, nats: what temperature scaling lowers."""
    scores = _as_logits(logits)
    classes = _as_labels(labels, scores)
    return float(np.mean(logsumexp(scores, axis=1) - scores[np.arange(len(scores)), classes]))


def _logit(probabilities: FloatArray) -> FloatArray:
    kept = np.clip(probabilities, CLIP, 1 - CLIP)
    return np.log(kept) - np.log1p(-kept)


def _as_logits(logits: ArrayLike) -> FloatArray:
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
        raise DataError(f"logits have shape {scores.shape}; (items, classes) with at least 2 classes is needed")
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores).all(axis=1)))
        raise DataError(f"logits[{row}] holds a value that is not finite")
    return scores


def _as_labels(labels: ArrayLike, scores: FloatArray) -> np.ndarray:
    given = np.asarray(labels)
    if given.shape != (len(scores),):
        raise DataError(f"labels have shape {given.shape} for {len(scores)} rows of logits; give one label a row")
    classes = given.astype(np.int64)
    wrong = (classes != given) | (classes < 0) | (classes >= scores.shape[1])
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(f"labels[{first}] is {given[first]}; classes are 0 to {scores.shape[1] - 1}")
    return classes
