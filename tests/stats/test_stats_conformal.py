"""Prediction sets and semantic entropy: ranks by enumeration, guaranteed coverage, entropies by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.conformal import conformal_limit, fit_conformal, set_quality
from alignlab.stats.semantic_entropy import cluster_by_meaning, meaning_probabilities, semantic_entropy


def test_limit_is_exact_over_all_orders() -> None:
    """Five exchangeable values, alpha 0.4: the last exceeds the limit of the other four in exactly 2 of 5 orders."""
    above = [order[4] > conformal_limit(order[:4], 0.4) for order in itertools.permutations(range(5))]
    assert np.mean(above) == pytest.approx(0.4)
    assert conformal_limit([1.0, 2.0], 0.1) == math.inf
    assert conformal_limit(np.arange(9.0), 0.1) == 8.0  # (9 + 1) * 0.9 is 9, whatever floating point says


def cases(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident probabilities over 6 classes, and labels."""
    logits = rng.normal(size=(n, 6)) * 1.5
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, 5)
    said = np.exp(2 * logits)
    return said / said.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("method", ["threshold", "adaptive"])
@pytest.mark.no_cover
def test_coverage_is_guaranteed(method: str) -> None:
    """300 calibration sets of 99 with 200 new items: mean coverage 0.9 within 0.012 (5 standard errors)."""
    rng = np.random.default_rng(0)
    shares, inside = [], 0
    for seed in range(300):
        rule = fit_conformal(*cases(rng, 99), 0.1, method, seed=seed)  # type: ignore[arg-type]
        said, labels = cases(rng, 200)
        shares.append(set_quality(rule.sets(said, seed), labels).coverage.estimate)
        low, high = rule.coverage_range()
        inside += low - 0.06 <= shares[-1] <= high + 0.06  # 200 items add noise of 0.02
    assert np.mean(shares) == pytest.approx(0.9, abs=0.012)
    assert inside >= 290


def test_sets_by_hand() -> None:
    said = np.array([[0.6, 0.3, 0.1]] * 9)
    rule = fit_conformal(said, [0] * 7 + [1, 1], alpha=0.2)
    assert rule.limit == pytest.approx(0.7)
    assert rule.sets([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]).tolist() == [[True, True, False], [False, False, True]]
    found = set_quality([[1, 1, 0], [0, 0, 1], [0, 0, 0]], [1, 0, 2])
    assert found.coverage.estimate == pytest.approx(1 / 3)
    assert (found.size.estimate, found.empty, found.single) == pytest.approx((1.0, 1 / 3, 1 / 3))


def test_too_few_items_promise_nothing_less_than_everything() -> None:
    rule = fit_conformal([[0.9, 0.1]] * 5, [0] * 5, alpha=0.1)
    assert rule.limit == math.inf
    assert rule.sets([[0.99, 0.01]]).all()
    assert rule.coverage_range() == (1.0, 1.0)


def test_semantic_entropy_by_hand() -> None:
    assert semantic_entropy(["paris", "paris", "rome", "paris"]) == pytest.approx(
        -0.75 * math.log(0.75) + 0.25 * math.log(4)
    )
    assert semantic_entropy(["a"] * 5) == 0.0
    assert semantic_entropy(list("abcd")) == pytest.approx(math.log(4))
    # Masses 0.5 + 0.1 and 0.2, normalised: 0.75 and 0.25.
    logs = np.log([0.5, 0.1, 0.2])
    assert meaning_probabilities(["p", "p", "r"], logs) == pytest.approx([0.75, 0.25])
    assert semantic_entropy(["p", "p", "r"], logs) == pytest.approx(-0.75 * math.log(0.75) + 0.25 * math.log(4))
    # Long answers: exp(-800) is 0 in floating point, the entropy is not.
    assert semantic_entropy(["p", "r"], [-800.0, -800.0]) == pytest.approx(math.log(2))
    assert meaning_probabilities(["p", "r"], [-2.0, -8.0], [2, 8]) == pytest.approx([0.5, 0.5])


def test_clusters_need_entailment_both_ways() -> None:
    facts = {"Paris": 1, "It is Paris": 1, "Paris, in France": 2, "Rome": 4}

    def entails(premise: str, hypothesis: str) -> bool:
        if "Rome" in (premise, hypothesis):
            return premise == hypothesis
        return facts[premise] >= facts[hypothesis]

    assert cluster_by_meaning(["Paris", "Rome", "It is Paris", "Paris, in France", "Rome"], entails) == [0, 1, 0, 2, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conformal_limit([1.0], 0.0), ConfigError, "alpha is 0"),
        (lambda: fit_conformal([[0.5, 0.5]], [0], 0.1, "other"), ConfigError, "method is 'other'"),  # type: ignore[arg-type]
        (lambda: fit_conformal([[0.5, 0.6]], [0]), DataError, r"probabilities\[0\] are not a distribution"),
        (lambda: fit_conformal([[0.5, math.nan]], [0]), DataError, "not a distribution"),
        (lambda: fit_conformal([[0.5, 0.5]], [2]), DataError, r"labels\[0\] is 2"),
        (lambda: set_quality([[True, False]], [0, 1]), DataError, "one label an item"),
        (lambda: semantic_entropy([]), DataError, "empty"),
        (lambda: semantic_entropy(["a"], [0.5]), DataError, "not above 0"),
        (lambda: semantic_entropy(["a"], [-0.5, -1.0]), DataError, "give one an answer"),
        (lambda: semantic_entropy(["a"], None, [3]), DataError, "without log_probs"),
        (lambda: semantic_entropy(["a"], [-1.0], [0]), DataError, "at least one token"),
        (lambda: cluster_by_meaning([], lambda a, b: True), DataError, "empty"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
