"""Dawid-Skene: planted error rates, the likelihood by enumeration, another package, coverage, what is refused."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.dawid_skene import DawidSkene, _covariance, fit_dawid_skene
from alignlab.stats.rating_table import RatingTable, rating_rows, rating_table

PREVALENCE = np.array([0.5, 0.3, 0.2])
ACCURACIES = (0.95, 0.85, 0.75, 0.65, 0.5)


def planted_confusion() -> NDArray[np.float64]:
    """(5, 3, 3): each rater has an accuracy of their own, and errors that lean to the next label."""
    errors = np.array([[0, 0.7, 0.3], [0.3, 0, 0.7], [0.7, 0.3, 0]])
    return np.array([a * np.eye(3) + (1 - a) * errors for a in ACCURACIES])


def drawn(
    rng: np.random.Generator, n: int, gaps: float = 0.0, confusion: NDArray[np.float64] | None = None
) -> tuple[RatingTable, NDArray[np.int64]]:
    """Ratings of `n` items and the true labels."""
    tables = planted_confusion() if confusion is None else confusion
    truth = rng.choice(3, size=n, p=PREVALENCE)
    chances = np.cumsum(tables[:, truth], axis=2)  # (R, n, 3)
    labels = (rng.random((len(tables), n, 1)) > chances[:, :, :2]).sum(axis=2)
    missing = rng.random((len(tables), n)) < gaps
    triples = [(i, r, int(labels[r, i])) for i in range(n) for r in range(len(tables)) if not missing[r, i]]
    return rating_table(triples, labels=[0, 1, 2]), truth


def naive_likelihood(fit: DawidSkene) -> tuple[float, NDArray[np.float64]]:
    """The definition: products over the ratings of each item, for each label it may have."""
    table, total, posteriors = fit.table, 0.0, []
    for i in range(len(table.items)):
        joint = fit.prevalence.copy()
        for r, label in zip(table.rater[table.item == i], table.label[table.item == i], strict=True):
            joint = joint * fit.confusion[r, :, label]
        total += math.log(joint.sum())
        posteriors.append(joint / joint.sum())
    return total, np.array(posteriors)


def test_likelihood_and_posterior_are_those_of_the_definition() -> None:
    fit = fit_dawid_skene(drawn(np.random.default_rng(0), 60, gaps=0.3)[0])
    total, posterior = naive_likelihood(fit)
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(total, rel=1e-10)
    np.testing.assert_allclose(fit.posterior, posterior, atol=1e-7)
    # A fixed point: the tables are the posterior's shares, a twentieth of a rating added to each cell.
    said = np.full((5, 3, 3), 0.05)
    np.add.at(said.transpose(0, 2, 1), (fit.table.rater, fit.table.label), fit.posterior[fit.table.item])
    np.testing.assert_allclose(fit.confusion, said / said.sum(axis=2, keepdims=True), atol=1e-7)


def test_planted_parameters_are_recovered() -> None:
    table, truth = drawn(np.random.default_rng(1), 4000, gaps=0.2)
    fit = fit_dawid_skene(table)
    np.testing.assert_allclose(fit.prevalence, PREVALENCE, atol=0.03)
    order = [table.raters.index(r) for r in range(5)]
    np.testing.assert_allclose(fit.confusion[order], planted_confusion(), atol=0.05)
    actual = truth[np.array(table.items, dtype=int)]
    right = np.mean(np.array(list(fit.labels().values())) == actual)
    by_votes = np.mean(table.counts().argmax(axis=1) == actual)
    assert right > by_votes + 0.02  # who is good counts for more
    certain = fit.posterior.max(axis=1)
    assert certain.mean() == pytest.approx(right, abs=0.02)  # it knows how often it is right


@pytest.mark.no_cover
def test_another_package_finds_the_same() -> None:
    aggregation = pytest.importorskip("crowdkit.aggregation", reason="the package crowd-kit is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table, _ = drawn(np.random.default_rng(2), 300)
    frame = pandas.DataFrame({"task": table.item, "worker": table.rater, "label": table.label})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what pandas gives up
        theirs = aggregation.DawidSkene(n_iter=1000, tol=1e-10).fit(frame)
    fit = fit_dawid_skene(table, smoothing=0.0)
    np.testing.assert_allclose(fit.prevalence, theirs.priors_.sort_index().to_numpy(), atol=1e-4)
    np.testing.assert_allclose(fit.posterior, theirs.probas_.sort_index()[[0, 1, 2]].to_numpy(), atol=2e-3)


def test_information_is_the_curvature_of_the_penalised_likelihood() -> None:
    """Second differences of log-likelihood plus log prior in the logits, with the free direction of each row held."""
    confusion = planted_confusion()[:3]
    fit = fit_dawid_skene(drawn(np.random.default_rng(3), 80, confusion=confusion)[0])
    blocks = np.log(np.concatenate([fit.prevalence[None], fit.confusion.reshape(-1, 3)]))  # (1 + R K, K)

    def penalised(theta: NDArray[np.float64]) -> float:
        rows = theta.reshape(-1, 3)
        logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        tables = logs[1:].reshape(3, 3, 3)
        joint = np.tile(logs[0], (80, 1))
        np.add.at(joint, fit.table.item, tables[fit.table.rater, :, fit.table.label])
        held = ((rows - blocks).sum(axis=1) ** 2).sum() / 2
        return float(np.log(np.exp(joint).sum(axis=1)).sum() + 0.05 * logs.sum() - held)

    x, h = blocks.ravel(), 1e-3
    steps = h * np.eye(x.size)
    curvature = np.array(
        [
            [penalised(x + a + b) - penalised(x + a - b) - penalised(x - a + b) + penalised(x - a - b) for b in steps]
            for a in steps
        ]
    ) / (-4 * h * h)
    np.testing.assert_allclose(np.linalg.inv(_covariance(fit)), curvature, atol=1e-3)


def coverage(n_sets: int, n: int, confusion: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    tables = planted_confusion() if confusion is None else confusion
    planted = np.einsum("k,rkk->r", PREVALENCE, tables)
    hits = np.zeros(len(tables))
    for seed in range(n_sets):
        table, _ = drawn(np.random.default_rng([4, seed]), n, gaps=0.1, confusion=tables)
        found = fit_dawid_skene(table).accuracies()
        hits += [not found[r].excludes(float(planted[r])) for r in range(len(tables))]
    return hits / n_sets


@pytest.mark.no_cover
def test_intervals_of_accuracy_hold_the_truth_small() -> None:
    """30 sets of 5 raters: below 80 % for one has probability 0.0006 at a true 95 %, and the seed is fixed."""
    assert coverage(30, 300).min() >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("n", "least"), [(150, 0.90), (600, 0.92)])
def test_intervals_of_accuracy_hold_the_truth(n: int, least: float) -> None:
    """1,000 sets: measured 93.4 to 95.6 % at 600 items, 92.4 to 96.7 % at 150, where 32 shares are many to fit."""
    found = coverage(1000, n)
    assert found.min() >= least, found
    assert found.max() <= 0.98, found


def test_a_spammer_is_found_and_does_not_count() -> None:
    """One rater of four always says 0; whatever the truth is, that is no evidence."""
    confusion = np.concatenate([planted_confusion()[:3], [[[1.0, 0, 0]] * 3]])
    table, _ = drawn(np.random.default_rng(5), 500, confusion=confusion)
    fit = fit_dawid_skene(table)
    spammer = fit.confusion[table.raters.index(3)]
    np.testing.assert_allclose(spammer, [[1, 0, 0]] * 3, atol=0.02)
    found = fit.accuracies()
    assert found[3].estimate == pytest.approx(0.5, abs=0.06)  # the share of zeros
    assert found[3].high < found[0].low


def test_a_rater_whom_nobody_checks_is_not_believed() -> None:
    table, _ = drawn(np.random.default_rng(6), 200, confusion=planted_confusion()[:3])
    rng = np.random.default_rng(7)
    ratings = [(table.items[i], f"r{r}", int(k)) for i, r, k in zip(table.item, table.rater, table.label, strict=True)]
    ratings += [(f"own {i}", "alone", int(rng.integers(3))) for i in range(100)]
    fit = fit_dawid_skene(rating_table(ratings))
    found = fit.accuracies()
    assert found["alone"].low < 0.1
    assert found["alone"].high > 0.9
    assert found["r0"].high - found["r0"].low < 0.2
    alone = [fit.table.items.index(f"own {i}") for i in range(100)]
    np.testing.assert_allclose(fit.posterior[alone].max(axis=1), fit.prevalence.max(), atol=0.05)


def test_known_items_make_two_raters_enough_and_turn_the_labels() -> None:
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 2, 400)
    wrong = [[int(t ^ (rng.random() < share)) for share in (0.8, 0.75, 0.7)] for t in truth]  # worse than chance
    known = {i: int(truth[i]) for i in range(60)}
    fooled, taught = fit_dawid_skene(rating_rows(wrong)), fit_dawid_skene(rating_rows(wrong), known=known)
    assert np.mean([fooled.labels()[i] == truth[i] for i in range(40)]) < 0.4
    assert np.mean([taught.labels()[i] == truth[i] for i in range(60, 100)]) > 0.75
    assert taught.probabilities(1)[0] == float(truth[0])
    two = fit_dawid_skene(rating_rows([row[:2] for row in wrong]), known=known)
    found = two.accuracies()[0]
    assert found.low < 0.2 < found.high


def test_the_order_of_raters_and_items_does_not_matter() -> None:
    table, _ = drawn(np.random.default_rng(9), 100, gaps=0.2)
    triples = [
        (table.items[i], table.raters[r], table.labels[k])
        for i, r, k in zip(table.item, table.rater, table.label, strict=True)
    ]
    mixed = [triples[i] for i in np.random.default_rng(10).permutation(len(triples))]
    here, there = fit_dawid_skene(table), fit_dawid_skene(rating_table(mixed, labels=[0, 1, 2]))
    for rater, interval in here.accuracies().items():
        assert there.accuracies()[rater].low == pytest.approx(interval.low, abs=1e-6)
    assert there.probabilities(2) == pytest.approx(here.probabilities(2), abs=1e-7)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 rater\(s\) cannot be told apart from the truth.*needs at least 3"):
        fit_dawid_skene(rating_rows([[0], [1]]))
    with pytest.raises(DataError, match=r"2 rater\(s\).*for two use kappa"):
        fit_dawid_skene(rating_rows([[0, 1], [1, 1]]))
    with pytest.raises(DataError, match="the only label is 1"):
        fit_dawid_skene(rating_rows([[1, 1, 1]] * 4))
    rows = rating_rows([[0, 1, 1], [1, 1, 0]])
    with pytest.raises(DataError, match="known names item 9, which nobody rated"):
        fit_dawid_skene(rows, known={9: 1})
    with pytest.raises(DataError, match=r"known says that item 0 is 'x', allowed: \[0, 1\]"):
        fit_dawid_skene(rows, known={0: "x"})
    with pytest.raises(ConfigError, match="smoothing is -1"):
        fit_dawid_skene(rows, smoothing=-1)
    with pytest.raises(ConfigError, match="max_steps is 0"):
        fit_dawid_skene(rows, max_steps=0)
    with pytest.raises(DataError, match="label 'x' was never used"):
        fit_dawid_skene(rows, max_steps=3).probabilities("x")
    assert not fit_dawid_skene(rows, max_steps=1).converged


def test_all_agree_is_not_certainty() -> None:
    found = fit_dawid_skene(rating_rows([[0, 0, 0], [1, 1, 1]] * 10)).accuracies()
    for interval in found.values():
        assert 0.2 < interval.low < 0.95, interval
        assert 0.98 < interval.estimate < interval.high <= 1
