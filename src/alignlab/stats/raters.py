"""Do several raters agree beyond chance? Fleiss' kappa, Krippendorff's alpha and kappas of pairs, with intervals.

Every interval speaks of new items (or new clusters of items) rated by the same raters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri
from scipy.stats import t as student_t

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.agreement import kappa_interval, lean_interval
from alignlab.stats.interval import Interval
from alignlab.stats.rating_table import RatingTable
from alignlab.stats.validation import FloatArray, IntArray, check_confidence

Level = Literal["nominal", "ordinal", "interval"]
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")
Clusters = Mapping[Any, Hashable] | None
"""Item -> the group it belongs to (its prompt), where items are not independent."""


@dataclass(frozen=True)
class AgreementSummary:
    """What raters of one table share."""

    agreement: Interval
    """Share of pairs of ratings of one item that are equal, averaged over items; chance included."""
    fleiss: Interval | None
    """Fleiss' kappa; None where only one label was ever used."""
    alpha: Interval | None
    """Krippendorff's alpha; None where only one label was ever used."""
    pairs: dict[tuple[Hashable, Hashable], Interval | None]
    """Cohen's kappa of each pair of raters with two items or more in common; None where it is undefined."""
    n_items: int
    """Items with two ratings or more: all of the above rest on these."""
    n_single: int
    """Items with one rating, which say nothing about agreement."""


def fleiss_kappa(table: RatingTable, *, clusters: Clusters = None, confidence: float = 0.95) -> Interval:
    """Agreement of many raters beyond chance, (P - P_e) / (1 - P_e), on a nominal scale (Fleiss 1971, Psychol. Bull.
    76:378).

    P is the mean share of equal pairs of ratings in an item, P_e the sum of squares of the mean shares of the labels.
    Items may have different numbers of raters (each item then counts once, as in Gwet 2014, "Handbook of Inter-Rater
    Reliability", chapter 2); those with fewer than two are left out and not counted in n. Limits: jackknife over items
    or clusters, a t's on the scale of Fisher's z; where all agree, see `krippendorff_alpha`.

    Raises:
        DataError: no item with two ratings, one single label (kappa is undefined), or fewer than 2 items or clusters.
    """
    shared = _Shared(table, clusters, confidence)
    agree, shares = shared.agreement(), shared.counts() / shared.sizes[:, None]
    n = _left_out(np.bincount(shared.codes).astype(np.float64))
    observed = _left_out(shared.by_group(1 - agree)) / n
    expected = 1 - ((_left_out(shared.by_group(shares)) / n[:, None]) ** 2).sum(axis=1)
    return _limits(_beyond_chance(observed, expected), shared, confidence, "fleiss jackknife")


def krippendorff_alpha(
    table: RatingTable, level: Level = "nominal", *, clusters: Clusters = None, confidence: float = 0.95
) -> Interval:
    """Agreement beyond chance for any number of raters and missing ratings, 1 - D_o / D_e (Krippendorff 2019, "Content
    Analysis", chapter 12).

    D_o is the mean squared distance of two ratings of one item, D_e of any two. Distances: "nominal" equal or not;
    "ordinal" ratings between the two, with half of those at each end; "interval" difference of the numbers. Items with
    one rating are left out and not counted in n. Limits: jackknife over items or clusters, a t's on the scale of
    Fisher's z. Where no item differs from the others in agreement (all agree), the limits are those with one more kind
    of items, as many as Wilson's upper limit at none seen: there two ratings always differ, or always agree.

    Raises:
        DataError: no item with two ratings, no variation (alpha is undefined), fewer than 2 items or clusters, labels
            that are no numbers ("interval"), or without a known order ("ordinal").
    """
    if level not in LEVELS:
        raise ConfigError(f"level is {level!r}, allowed: {', '.join(LEVELS)}")
    if level == "ordinal" and not table.ordered:
        raise DataError("the order of the labels is unknown; give them to rating_table(labels=...), lowest first")
    shared = _Shared(table, clusters, confidence)
    ratings = _left_out(shared.by_group(shared.sizes))
    if level == "nominal":
        within, pairs = _nominal(shared)
    elif level == "ordinal":
        within, pairs = _ordinal(shared)
    else:
        within, pairs = _interval(shared, table.values())
    alphas = _beyond_chance(within / ratings, pairs / (ratings * np.maximum(ratings - 1, 1)))
    return _limits(alphas, shared, confidence, f"{level} alpha jackknife")


def pairwise_kappas(
    table: RatingTable, *, clusters: Clusters = None, confidence: float = 0.95
) -> dict[tuple[Hashable, Hashable], Interval | None]:
    """Cohen's kappa of every two raters who share at least two items (or clusters), on those items.

    None where both used one and the same label only: kappa is then undefined.
    """
    check_confidence(confidence)
    codes = table.item_codes(clusters)
    given = np.full((len(table.raters), len(table.items)), -1)
    given[table.rater, table.item] = table.label
    found: dict[tuple[Hashable, Hashable], Interval | None] = {}
    for i, j in itertools.combinations(range(len(table.raters)), 2):
        shared = np.flatnonzero((given[i] >= 0) & (given[j] >= 0))
        groups = codes[shared].tolist()
        if len(set(groups)) < 2:
            continue
        a, b = given[i, shared].tolist(), given[j, shared].tolist()
        pair = (table.raters[i], table.raters[j])
        if len({*a, *b}) == 1:
            found[pair] = None
            continue
        found[pair] = kappa_interval(a, b, clusters=None if clusters is None else groups, confidence=confidence)
    return found


def summarise_agreement(
    table: RatingTable, level: Level = "nominal", *, clusters: Clusters = None, confidence: float = 0.95
) -> AgreementSummary:
    """Share of agreement, Fleiss' kappa, Krippendorff's alpha and the kappas of pairs, of one table.

    Raises DataError as `krippendorff_alpha`, but for one single label: there the coefficients are None.
    """
    shared = _Shared(table, clusters, confidence)
    groups = None if clusters is None else shared.codes.tolist()
    varied = shared.different > 0
    # Between 0 and 1, and never past either end: full agreement leans one way, none the other.
    lean = lean_interval(2 * shared.agreement() - 1, clusters=groups, confidence=confidence)
    mean, low, high = ((1 + x) / 2 for x in (lean.estimate, lean.low, lean.high))
    return AgreementSummary(
        agreement=replace(lean, estimate=mean, low=low, high=high),
        fleiss=fleiss_kappa(table, clusters=clusters, confidence=confidence) if varied else None,
        alpha=krippendorff_alpha(table, level, clusters=clusters, confidence=confidence) if varied else None,
        pairs=pairwise_kappas(table, clusters=clusters, confidence=confidence),
        n_items=shared.sizes.size,
        n_single=shared.n_single,
    )


class _Shared:
    """The N items with two ratings or more, their M ratings, and the G groups they fall into."""

    def __init__(self, table: RatingTable, clusters: Clusters, confidence: float) -> None:
        check_confidence(confidence)
        sizes = np.bincount(table.item, minlength=len(table.items))
        kept = sizes >= 2
        if not kept.any():
            raise DataError(
                f"no item has ratings of two raters ({len(table.raters)} rated {len(table.items)} items); "
                "agreement needs items that several raters rated"
            )
        rows = kept[table.item]
        self.n_single, self.n_labels = int((~kept).sum()), len(table.labels)
        self.item: IntArray = (np.cumsum(kept) - 1)[table.item[rows]]  # (M,)
        self.label: IntArray = table.label[rows]  # (M,)
        self.sizes: FloatArray = sizes[kept].astype(np.float64)  # (N,)
        self.codes: IntArray = np.unique(table.item_codes(clusters)[kept], return_inverse=True)[1]  # (N,)
        self.n_groups = int(self.codes.max()) + 1
        if self.n_groups < 2:
            raise DataError("an interval for agreement needs at least 2 items (or clusters) with two ratings, got 1")
        share = np.bincount(self.label) / self.label.size
        self.different = (1 - float(share @ share)) * self.label.size / (self.label.size - 1)
        """Chance that two ratings drawn at random differ; exactly 0 where one label was used."""
        if share.max() == 1:
            self.different = 0.0

    def counts(self) -> FloatArray:
        """How often each item got each label, (N, K)."""
        shape = self.sizes.size, self.n_labels
        flat = np.bincount(self.item * self.n_labels + self.label, minlength=shape[0] * shape[1])
        return flat.reshape(shape).astype(np.float64)

    def agreement(self) -> FloatArray:
        """Share of equal pairs among the ratings of each item, (N,)."""
        found: FloatArray = ((self.counts() ** 2).sum(axis=1) - self.sizes) / (self.sizes * (self.sizes - 1))
        return found

    def by_group(self, values: FloatArray) -> FloatArray:
        """Sums over the items of each group, (G,) or (G, K)."""
        sums = np.zeros((self.n_groups, *values.shape[1:]))
        np.add.at(sums, self.codes, values)
        return sums


def _left_out(by_group: FloatArray) -> FloatArray:
    """The sum over all groups, then the sums with each group left out, (1 + G, ...)."""
    total = by_group.sum(axis=0, keepdims=True)
    return np.concatenate([total, total - by_group])


def _beyond_chance(observed: FloatArray, expected: FloatArray) -> FloatArray:
    """1 - observed / expected disagreement; 1 where a group left out takes all disagreement along."""
    some = expected > 1e-12 * float(np.abs(expected).max(initial=0.0))
    found: FloatArray = 1 - np.divide(observed, expected, out=np.zeros_like(observed), where=some)
    return found


def _nominal(shared: _Shared) -> tuple[FloatArray, FloatArray]:
    """Disagreement in items and between all ratings, of everything and with each group left out, (1 + G,) each."""
    counts = shared.counts()
    item = (shared.sizes**2 - (counts**2).sum(axis=1)) / (shared.sizes - 1)
    marginal = _left_out(shared.by_group(counts))
    return _left_out(shared.by_group(item)), marginal.sum(axis=1) ** 2 - (marginal**2).sum(axis=1)


def _interval(shared: _Shared, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The same for squared differences of `values`, (K,), from sums and sums of squares."""
    given = values[shared.label] - values[shared.label].mean()
    first = np.asarray(np.bincount(shared.item, given), dtype=np.float64)
    second = np.asarray(np.bincount(shared.item, given**2), dtype=np.float64)
    item = 2 * (shared.sizes * second - first**2) / (shared.sizes - 1)
    n, s1, s2 = (_left_out(shared.by_group(x)) for x in (shared.sizes, first, second))
    return _left_out(shared.by_group(np.maximum(item, 0.0))), 2 * (n * s2 - s1**2)


def _ordinal(shared: _Shared) -> tuple[FloatArray, FloatArray]:
    """The same for squared differences of ranks: the number of ratings below plus half of those beside.

    Ranks move with what is left out: an item's disagreement is a quadratic form of the ranks, and those of all items
    add up to one matrix (K, K).
    """
    counts, weight = shared.counts(), 2 / (shared.sizes - 1)
    marginal = _left_out(shared.by_group(counts))  # (1 + G, K)
    ranks = np.cumsum(marginal, axis=1) - marginal / 2
    matrix = np.diag((weight * shared.sizes) @ counts) - (counts * weight[:, None]).T @ counts
    within = ((ranks @ matrix) * ranks).sum(axis=1)
    own = ranks[1 + shared.codes]  # with the item's group left out, (N, K)
    item = weight * (shared.sizes * (counts * own**2).sum(axis=1) - (counts * own).sum(axis=1) ** 2)
    within[1:] -= shared.by_group(item)
    ratings = marginal.sum(axis=1)
    pairs = 2 * (ratings * (marginal * ranks**2).sum(axis=1) - (marginal * ranks).sum(axis=1) ** 2)
    return np.maximum(within, 0.0), pairs


def _limits(found: FloatArray, shared: _Shared, confidence: float, method: str) -> Interval:
    """Jackknife limits of a coefficient of at most 1: of everything, then with each group left out, (1 + G,)."""
    if shared.different == 0:
        raise DataError("all raters gave one and the same label to every item; agreement beyond chance is undefined")
    estimate, left_out, n_groups, n = float(found[0]), found[1:], shared.n_groups, shared.sizes.size
    spread = left_out - left_out.mean()
    error = math.sqrt((n_groups - 1) / n_groups * float(spread @ spread))
    if abs(estimate) > 1 - 1e-9 or error < 1e-9:  # no item differs from the others, which is not certainty
        z2 = float(ndtri(0.5 + confidence / 2)) ** 2
        unlike = z2 / (n_groups + z2)  # Wilson's upper limit at none of n_groups
        low = estimate * (1 - unlike) + unlike * (1 - 1 / shared.different)
        low, high = max(-1.0, min(low, estimate)), estimate * (1 - unlike) + unlike
        return Interval(estimate, low, high, n, confidence, method)
    quantile = float(student_t.ppf(0.5 + confidence / 2, n_groups - 1))
    half = quantile * error / (1 - estimate**2)
    low, high = math.tanh(math.atanh(estimate) - half), math.tanh(math.atanh(estimate) + half)
    return Interval(estimate, min(low, estimate), max(high, estimate), n, confidence, method)
