"""How good is a judge or classifier on labelled items?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval, wilson
from alignlab.stats.validation import FloatArray, as_binary


@dataclass(frozen=True)
class Classification:
    """Verdicts of a judge against the truth on the same items; every rate has a Wilson interval."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    accuracy: Interval
    """Share of verdicts that are right."""
    sensitivity: Interval | None
    """Share of the truly positive called positive; None without any truly positive item."""
    specificity: Interval | None
    """Share of the truly negative called negative; None without any truly negative item."""
    precision: Interval | None
    """Share of those called positive that are; None when nothing was called positive."""
    kappa: float | None
    """Cohen's kappa; None where it is undefined (truth and verdicts all of one and the same class)."""


def classify(truth: ArrayLike, predicted: ArrayLike, confidence: float = 0.95) -> Classification:
    """Accuracy, sensitivity, specificity, precision and kappa of 0/1 (or bool) verdicts, both (n,)."""
    actual, called = _binary_pair(truth, predicted)
    tp, fp = int(np.sum(actual * called)), int(np.sum((1 - actual) * called))
    fn, tn = int(np.sum(actual * (1 - called))), int(np.sum((1 - actual) * (1 - called)))
    only_class = len({*actual.tolist(), *called.tolist()}) == 1
    return Classification(
        true_positive=tp,
        false_positive=fp,
        true_negative=tn,
        false_negative=fn,
        accuracy=wilson(tp + tn, actual.size, confidence),
        sensitivity=wilson(tp, tp + fn, confidence) if tp + fn else None,
        specificity=wilson(tn, tn + fp, confidence) if tn + fp else None,
        precision=wilson(tp, tp + fp, confidence) if tp + fp else None,
        kappa=None if only_class else cohen_kappa(actual.tolist(), called.tolist()),
    )


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance, (p_o - p_e) / (1 - p_e) (Cohen 1960, Educ. Psychol. Meas. 20:37).

    Labels may be of any hashable type. DataError for unequal lengths, no items, or one single class used by both
    (chance agreement is then 1 and kappa undefined).
    """
    if len(a) != len(b):
        raise DataError(f"a has {len(a)} labels and b has {len(b)}; two raters must rate the same items")
    if len(a) == 0:
        raise DataError("a is empty; kappa needs at least one item")
    codes = {label: i for i, label in enumerate(dict.fromkeys([*a, *b]))}
    table = np.zeros((len(codes), len(codes)))
    np.add.at(table, ([codes[label] for label in a], [codes[label] for label in b]), 1.0)
    table /= len(a)
    observed = float(np.trace(table))
    chance = float(table.sum(axis=1) @ table.sum(axis=0))
    if 1 - chance < 1e-15:
        raise DataError("both raters gave every item the same single class; kappa is undefined there")
    return (observed - chance) / (1 - chance)


def rogan_gladen(positive_rate: float, sensitivity: float, specificity: float) -> float:
    """True prevalence behind an imperfect judge's positive rate, clipped to [0, 1].

    (rate + specificity - 1) / (sensitivity + specificity - 1) (Rogan & Gladen 1978, Am. J. Epidemiol. 107:71).
    DataError when sensitivity + specificity <= 1: such a judge is no better than a coin and nothing can be corrected.
    """
    rates = {"positive_rate": positive_rate, "sensitivity": sensitivity, "specificity": specificity}
    for name, rate in rates.items():
        if not 0.0 <= rate <= 1.0:
            raise DataError(f"{name} is {rate}, which is not between 0 and 1")
    youden = sensitivity + specificity - 1
    if youden <= 0:
        raise DataError(
            f"sensitivity {sensitivity:.3g} + specificity {specificity:.3g} is not above 1: "
            "this judge is no better than chance, so its rate cannot be corrected"
        )
    return min(1.0, max(0.0, (positive_rate + specificity - 1) / youden))


def _binary_pair(truth: ArrayLike, predicted: ArrayLike) -> tuple[FloatArray, FloatArray]:
    a, b = as_binary(truth, "truth"), as_binary(predicted, "predicted")
    if a.size != b.size:
        raise DataError(f"truth has {a.size} items and predicted has {b.size}; they must be the same items")
    return a, b
