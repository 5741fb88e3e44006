"""Intervals for statistics that are not means: delete-a-group jackknife, items or clusters."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t as student_t

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.stats.validation import IntArray, check_confidence

BoolArray = NDArray[np.bool_]
MAX_GROUPS = 1000
"""More units than this are deleted in groups, which costs no accuracy to speak of and bounds the work."""


def jackknife_interval(
    statistic: Callable[[BoolArray], float], n: int, codes: IntArray | None, confidence: float
) -> Interval:
    """A statistic between 0 and 1 of `n` items, with limits of a jackknife on the scale of its logit.

    logit(theta) +- t_{G-1} se / (theta (1 - theta)), se = sqrt((G - 1) / G * sum (theta_(g) - mean)^2). `statistic`
    takes a boolean mask (n,) of the items kept; with `codes` clusters are left out whole (Efron & Tibshirani 1993, "An
    Introduction to the Bootstrap", chapter 11). For statistics that are smooth in the weights of the items. The logit
    keeps the limits inside the scale and takes most of the skewness out.
    """
    check_confidence(confidence)
    units = np.arange(n) if codes is None else codes
    n_units = int(units.max()) + 1
    if n_units < 2:
        raise DataError("a jackknife needs at least 2 items (or clusters), got 1")
    group = units % MAX_GROUPS if n_units > MAX_GROUPS else units
    n_groups = min(n_units, MAX_GROUPS)
    estimate = statistic(np.ones(n, dtype=bool))
    left_out = np.array([statistic(group != g) for g in range(n_groups)])
    spread = left_out - left_out.mean()
    error = math.sqrt((n_groups - 1) / n_groups * float(spread @ spread))
    half = float(student_t.ppf(0.5 + confidence / 2, n_groups - 1)) * error / (estimate * (1 - estimate))
    low, high = expit(logit(estimate) - half), expit(logit(estimate) + half)
    return Interval(estimate, float(low), float(high), n, confidence, "jackknife")
