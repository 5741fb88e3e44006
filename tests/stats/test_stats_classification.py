"""Judge quality and corrected rates: worked tables, scikit-learn, simulation, planted prevalence."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.classification import classify, cohen_kappa, rogan_gladen
from alignlab.stats.interval import wilson
from alignlab.stats.judge_correction import corrected_prevalence


def test_hand_worked_table() -> None:
    truth = [1] * 50 + [0] * 50
    predicted = [1] * 45 + [0] * 5 + [1] * 10 + [0] * 40
    quality = classify(truth, predicted)
    counts = (quality.true_positive, quality.false_negative, quality.false_positive, quality.true_negative)
    assert counts == (45, 5, 10, 40)
    assert quality.sensitivity == wilson(45, 50)
    assert quality.specificity == wilson(40, 50)
    assert quality.precision == wilson(45, 55)
    assert quality.accuracy == wilson(85, 100)
    # p_o = 0.85; p_e = 0.5 * 0.55 + 0.5 * 0.45 = 0.5; kappa = 0.35 / 0.5.
    assert quality.kappa == pytest.approx(0.7)


def test_kappa_equals_sklearn() -> None:
    rng = np.random.default_rng(0)
    labels = ["harmful", "harmless", "refusal", 4]
    a = [labels[i] for i in rng.integers(0, 4, size=200)]
    b = [x if rng.random() < 0.6 else labels[i] for x, i in zip(a, rng.integers(0, 4, size=200), strict=True)]
    assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score([str(x) for x in a], [str(x) for x in b]))
    assert cohen_kappa(a, a) == pytest.approx(1.0)


def test_rates_that_do_not_exist_are_none() -> None:
    quality = classify([1, 1], [1, 1])
    assert quality.specificity is None
    assert quality.kappa is None
    assert classify([0, 1], [0, 0]).precision is None


def test_correction_inverts_the_judge() -> None:
    for prevalence in (0.0, 0.1, 0.6, 1.0):
        seen = prevalence * 0.9 + (1 - prevalence) * (1 - 0.8)
        assert rogan_gladen(seen, 0.9, 0.8) == pytest.approx(prevalence)
    assert rogan_gladen(0.05, 0.9, 0.8) == 0.0  # below the judge's own false alarms


def draw(rng: np.random.Generator, truth: np.ndarray, sensitivity: float, specificity: float) -> np.ndarray:
    return (rng.random(truth.size) < np.where(truth == 1, sensitivity, 1 - specificity)).astype(int)


def test_corrected_interval_covers_a_planted_prevalence() -> None:
    """Prevalence 0.3 behind a 0.85/0.75 judge, 300 data sets: covered in >= 91 %, by the raw rate in under half.

    Nominal 95 %: a shortfall has probability 2e-3; the seed is fixed.
    """
    rng = np.random.default_rng(1)
    covered = raw = 0
    for i in range(300):
        truth = (rng.random(250) < 0.3).astype(int)
        labelled = np.r_[np.ones(60, dtype=int), np.zeros(60, dtype=int)]
        predicted = draw(rng, truth, 0.85, 0.75)
        interval = corrected_prevalence(predicted, labelled, draw(rng, labelled, 0.85, 0.75), n_resamples=1000, seed=i)
        covered += interval.low <= 0.3 <= interval.high
        naive = wilson(int(predicted.sum()), 250)
        raw += naive.low <= 0.3 <= naive.high
    assert covered / 300 >= 0.91
    assert raw / 300 < 0.5


def test_an_unblemished_judge_is_not_taken_for_perfect() -> None:
    labelled = np.r_[np.ones(10, dtype=int), np.zeros(10, dtype=int)]
    predicted = np.r_[np.ones(500, dtype=int), np.zeros(500, dtype=int)]
    small = corrected_prevalence(predicted, labelled, labelled)
    large = corrected_prevalence(predicted, np.tile(labelled, 50), np.tile(labelled, 50))
    assert small.estimate == large.estimate == 0.5
    assert small.high - small.low > 1.3 * (large.high - large.low)


def test_a_judge_hardly_better_than_chance_bounds_little() -> None:
    labelled = np.r_[np.ones(10, dtype=int), np.zeros(10, dtype=int)]
    judged = np.r_[np.ones(6), np.zeros(4), np.ones(5), np.zeros(5)].astype(int)
    interval = corrected_prevalence(np.r_[np.ones(55), np.zeros(45)], labelled, judged)
    assert interval.low == 0.0
    assert interval.high == 1.0


def test_resamples_without_information_widen_both_ways() -> None:
    labelled = np.r_[np.ones(10, dtype=int), np.zeros(10, dtype=int)]
    judged = np.r_[np.ones(6), np.zeros(4), np.ones(5), np.zeros(5)].astype(int)
    # Every informative resample of "nothing flagged" corrects to 0, so only the others can raise the upper limit.
    assert corrected_prevalence(np.zeros(100), labelled, judged).high == 1.0
    assert corrected_prevalence(np.ones(100), labelled, judged).low == 0.0


def test_corrected_interval_is_reproducible() -> None:
    labelled, judged = [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]
    first = corrected_prevalence([1, 0, 0, 1], labelled, judged, seed=2)
    assert first == corrected_prevalence([1, 0, 0, 1], labelled, judged, seed=2)
    assert first.n == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classify([1, 0], [1]), "same items"),
        (lambda: classify([], []), "empty"),
        (lambda: classify([1, 2], [1, 0]), r"truth\[1\] is 2"),
        (lambda: classify([1, 0], [1, 0.5]), r"predicted\[1\] is 0.5"),
        (lambda: cohen_kappa([1], [1, 2]), "same items"),
        (lambda: cohen_kappa([], []), "at least one item"),
        (lambda: cohen_kappa(["x", "x"], ["x", "x"]), "undefined"),
        (lambda: rogan_gladen(0.5, 0.5, 0.5), "no better than chance"),
        (lambda: rogan_gladen(1.5, 0.9, 0.9), "positive_rate is 1.5"),
        (lambda: corrected_prevalence([1], [1, 1], [1, 1]), "both positive and negative"),
    ],
)
def test_bad_data(call, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="n_resamples"):
        corrected_prevalence([1], [1, 0], [1, 0], n_resamples=5)
