"""Answer only when sure: risk-coverage curve, the area under it, and how well confidence ranks right above wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.interval import Interval, wilson
from alignlab.stats.jackknife import BoolArray, jackknife_interval
from alignlab.stats.validation import FloatArray, as_binary, as_codes, as_values

Clusters = Sequence[Hashable] | None


@dataclass(frozen=True)
class RiskCoverage:
    """Errors among the answers given when only the surest are given; one entry for each distinct certainty."""

    threshold: FloatArray
    """Answer when the certainty is at least this; falling."""
    coverage: FloatArray
    """Share of items answered."""
    risk: FloatArray
    """Share of the answered that is wrong."""


def risk_coverage(certainty: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """The risk-coverage curve (El-Yaniv & Wiener 2010, JMLR 11:1605).

    certainty: (n,) any finite score, higher is surer (a probability, a log-probability, minus an entropy); correct:
    (n,) 0/1. Items of equal certainty are answered or left together, so the curve has one point a distinct value.
    """
    scores, losses = _scores_and_losses(certainty, correct)
    values, group = np.unique(-scores, return_inverse=True)  # surest first
    answered = np.cumsum(np.bincount(group))
    wrong = np.cumsum(np.bincount(group, weights=losses))
    return RiskCoverage(-values, answered / scores.size, wrong / answered)


def area_under_risk_coverage(
    certainty: ArrayLike, correct: ArrayLike, *, clusters: Clusters = None, confidence: float = 0.95
) -> Interval:
    """AURC: mean over k of the share wrong among the k surest (Geifman et al. 2018, arXiv:1805.08206).

    Lower is better. Ties count as the mean over all orders of the tied. A useless certainty gives the error rate, the
    best possible one `optimal_aurc`. Jackknife interval; with no error (or nothing but errors) Wilson's for the error
    rate, as the area would otherwise come out certain.
    """
    scores, losses = _scores_and_losses(certainty, correct)
    codes = as_codes(clusters, scores.size)
    if losses.min() == losses.max():
        units = scores.size if codes is None else int(codes.max()) + 1
        rate = wilson(units * int(losses[0]), units, confidence)
        return dataclasses.replace(rate, n=scores.size)
    order = np.argsort(-scores, kind="stable")
    scores, losses = scores[order], losses[order]

    def area(keep: BoolArray) -> float:
        return _aurc(scores[keep], losses[keep])

    return jackknife_interval(area, scores.size, None if codes is None else codes[order], confidence)


def optimal_aurc(correct: ArrayLike) -> float:
    """AURC of a certainty that puts every right answer before every wrong one: the floor for this error rate.

    AURC minus this floor is the excess, E-AURC, that the ranking costs (Geifman, Uziel & El-Yaniv 2019,
    arXiv:1805.08206v4).
    """
    losses = 1.0 - as_binary(correct, "correct")
    return _aurc(1.0 - losses, losses, presorted=False)


def certainty_auroc(
    certainty: ArrayLike, correct: ArrayLike, *, clusters: Clusters = None, confidence: float = 0.95
) -> Interval:
    """Probability that a right answer is surer than a wrong one, ties counting half; 0.5 says nothing.

    The measure of Kadavath et al. 2022 (arXiv:2207.05221) for P(True) and P(IK). Jackknife interval;
    where the classes separate completely, Wilson's with as many trials as the rarer class has items. DataError unless
    there are at least two right and two wrong answers.
    """
    scores, losses = _scores_and_losses(certainty, correct)
    n_wrong = int(losses.sum())
    rarer = min(n_wrong, losses.size - n_wrong)
    if rarer < 2:
        raise DataError(
            f"{losses.size - n_wrong} answers are right and {n_wrong} wrong; ranking needs at least two of each"
        )

    def area(keep: BoolArray) -> float:
        return _auroc(scores[keep], losses[keep])

    everything = _auroc(scores, losses)
    if everything in (0.0, 1.0):
        return dataclasses.replace(wilson(rarer * int(everything), rarer, confidence), n=losses.size)
    return jackknife_interval(area, losses.size, as_codes(clusters, losses.size), confidence)


def threshold_for_risk(certainty: ArrayLike, correct: ArrayLike, risk: float, confidence: float = 0.95) -> float:
    """Certainty from which to answer so that, with probability `confidence`, at most a share `risk` is wrong.

    Thresholds are tried from the surest down, at sizes fixed beforehand (n, n / 2, n / 4, ...), each with a
    Clopper-Pearson bound at its share of the error probability (Geifman & El-Yaniv 2017, arXiv:1705.08500, use the same
    bound with a binary search). The lowest threshold that passes is given; inf when none does: then no answer is safe
    enough. Holds for new items from the population of these, which must be independent and not have been used to fit
    the certainty.
    """
    from scipy.stats import beta

    if not 0.0 < risk < 1.0:
        raise ConfigError(f"risk is {risk!r}, allowed: a number between 0 and 1, such as 0.1")
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence!r}, allowed: a number between 0 and 1, such as 0.95")
    scores, losses = _scores_and_losses(certainty, correct)
    ordered = np.sort(scores)[::-1]
    sizes = [scores.size >> k for k in range(scores.size.bit_length())]
    for size in sizes:  # largest coverage first; the union over all sizes keeps the error probability
        threshold = float(ordered[size - 1])
        answered = losses[scores >= threshold]
        wrong = int(answered.sum())
        if wrong == answered.size:
            continue
        bound = float(beta.ppf(1 - (1 - confidence) / len(sizes), wrong + 1, answered.size - wrong))
        if bound <= risk:
            return threshold
    return float("inf")


def _scores_and_losses(certainty: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, FloatArray]:
    scores, outcomes = as_values(certainty, "certainty"), as_binary(correct, "correct")
    if scores.size != outcomes.size:
        raise DataError(f"certainty has {scores.size} values and correct has {outcomes.size}; give one of each an item")
    return scores, 1.0 - outcomes


def _aurc(scores: FloatArray, losses: FloatArray, presorted: bool = True) -> float:
    if not presorted:
        order = np.argsort(-scores, kind="stable")
        scores, losses = scores[order], losses[order]
    # The mean over all orders of a tied group is reached by giving each of its items the group's mean loss.
    starts = np.r_[True, scores[1:] != scores[:-1]]
    group = np.cumsum(starts) - 1
    shared = (np.bincount(group, weights=losses) / np.bincount(group))[group]
    return float(np.mean(np.cumsum(shared) / np.arange(1, shared.size + 1)))


def _auroc(scores: FloatArray, losses: FloatArray) -> float:
    ranks = rankdata(scores)
    n_right = float((1 - losses).sum())
    n_wrong = losses.size - n_right
    above = float(ranks[losses == 0].sum()) - n_right * (n_right + 1) / 2
    return above / (n_right * n_wrong)
