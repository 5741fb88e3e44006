"""How sure a front and its hypervolume are: resampled means of points that share their items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from alignlab.core.errors import DataError
from alignlab.stats.interval import Interval
from alignlab.stats.pareto import as_reference, hypervolumes
from alignlab.stats.pareto_table import PointTable
from alignlab.stats.resampling import CHUNK_ELEMENTS
from alignlab.stats.validation import FloatArray, check_confidence, check_resamples


@dataclass(frozen=True)
class Hypervolume:
    """The volume that a set of points covers, with its uncertainty."""

    measured: float
    """Of the measured means; on average too large, because a front picks what noise has lifted."""
    interval: Interval
    """Its estimate is corrected for that (by the median of the bootstrap)."""
    reference: tuple[float, ...]
    """The corner it is measured from."""


def worst_corner(table: PointTable) -> FloatArray:
    """The worst mean of each objective less a tenth of its range: a reference when nothing better is known.

    It belongs to the points at hand, so volumes of other sets cannot be compared with it.
    """
    means = table.means
    low, high = means.min(axis=0), means.max(axis=0)
    return np.asarray(low - 0.1 * np.where(high > low, high - low, 1.0))


def drawn_means(table: PointTable, n_resamples: int, seed: int = 0) -> FloatArray:
    """Means of all points under resampling, (resamples, points, objectives).

    Items are drawn with replacement, the same for every point (n - 1 of n, so that the spread is unbiased). Points with
    three seeds or more get noise of the seeds: multivariate Student t with the covariance of seed means, pooled over
    those points, which few seeds make wide as they should. The noise of single answers counts in both, so intervals
    are wide rather than narrow. A point with fewer seeds, such as a model before any training, stands for itself.
    """
    check_resamples(n_resamples)
    rng = np.random.default_rng(seed)
    means = table.means
    rows = np.stack([table.rows(name) for name in table.names])  # (points, items, objectives)
    points, items, objectives = rows.shape
    drawn = np.repeat(means[None], n_resamples, axis=0)
    if items > 1:
        centred = (rows - means[:, None, :]).transpose(1, 0, 2).reshape(items, points * objectives)
        chunk = max(1, CHUNK_ELEMENTS // items)
        for start in range(0, n_resamples, chunk):
            count = min(chunk, n_resamples - start)
            weights = rng.multinomial(items - 1, np.full(items, 1 / items), size=count) / (items - 1)
            drawn[start : start + count] += (weights @ centred).reshape(count, points, objectives)
    if items == 1 and not table.new_trainings:
        raise DataError("one item and fewer than three seeds a point say nothing about noise; measure on items")
    if any(table.repeated):
        drawn[:, list(table.repeated)] += _seed_noise(table, n_resamples, rng)
    return drawn


def _seed_noise(table: PointTable, n_resamples: int, rng: np.random.Generator) -> FloatArray:
    """(resamples, points with three seeds or more, objectives)."""
    deviations, counts = [], []
    for values, repeated in zip(table.values.values(), table.repeated, strict=True):
        if not repeated:
            continue
        by_seed = values.mean(axis=1)
        deviations.append(by_seed - by_seed.mean(axis=0))
        counts.append(len(by_seed))
    pooled = np.concatenate(deviations)
    freedom = sum(counts) - len(counts)
    normal = rng.standard_normal((n_resamples, len(counts), len(pooled))) @ pooled / np.sqrt(freedom)
    scale = np.sqrt(rng.chisquare(freedom, (n_resamples, 1, 1)) / freedom)
    return np.asarray(normal / scale / np.sqrt(np.array(counts))[None, :, None])


def covered_volume(
    table: PointTable,
    reference: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Hypervolume:
    """The hypervolume of the points (or of some, by `names`) with a basic bootstrap interval.

    The basic interval (Davison & Hinkley 1997, section 5.2) reflects the draws about the measured value, which takes
    the front's optimism out; the percentile interval doubles it and covers half as often as it says where points are
    close together. Without `reference`, `worst_corner`.
    """
    check_confidence(confidence)
    corner = worst_corner(table) if reference is None else as_reference(reference, len(table.objectives))
    chosen = _places(table, names)
    measured = float(hypervolumes(table.means[None, chosen], corner)[0])
    volumes = hypervolumes(drawn_means(table, n_resamples, seed)[:, chosen], corner)
    tail = (1 - confidence) / 2
    low, middle, high = np.quantile(volumes, [tail, 0.5, 1 - tail])
    limits = (max(0.0, float(2 * measured - value)) for value in (middle, high, low))
    estimate, least, most = limits
    n = table.items if table.items > 1 else min(len(values) for values in table.values.values())
    interval = Interval(estimate, least, most, n, confidence, "basic bootstrap")
    return Hypervolume(measured, interval, tuple(float(value) for value in corner))


def volume_difference(
    table: PointTable,
    first: Sequence[str],
    second: Sequence[str],
    reference: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Basic bootstrap interval of the volume of some points less that of others, above one reference."""
    check_confidence(confidence)
    corner = worst_corner(table) if reference is None else as_reference(reference, len(table.objectives))
    one, other = _places(table, first), _places(table, second)

    def gap(means: FloatArray) -> FloatArray:
        return hypervolumes(means[:, one], corner) - hypervolumes(means[:, other], corner)

    measured, draws = float(gap(table.means[None])[0]), gap(drawn_means(table, n_resamples, seed))
    tail = (1 - confidence) / 2
    low, middle, high = (2 * measured - float(value) for value in np.quantile(draws, [1 - tail, 0.5, tail]))
    return Interval(middle, low, high, table.items, confidence, "basic bootstrap")


def on_front_share(table: PointTable, *, n_resamples: int = 2000, seed: int = 0) -> FloatArray:
    """How often each point is on the front of the resampled means, (points,): not a probability of being on the true
    one, but 1 for a point that noise does not touch and small for one that noise may have lifted."""
    draws = drawn_means(table, n_resamples, seed)
    at_least = (draws[:, :, None, :] >= draws[:, None, :, :]).all(axis=3)
    better = (draws[:, :, None, :] > draws[:, None, :, :]).any(axis=3)
    beaten = np.any(at_least & better, axis=1)
    return np.asarray(1.0 - beaten.mean(axis=0))


def _places(table: PointTable, names: Sequence[str] | None) -> list[int]:
    chosen = table.names if names is None else tuple(names)
    for name in chosen:
        table.of(name)
    if not chosen:
        raise DataError("no point is chosen; a volume needs at least one")
    return [table.names.index(name) for name in chosen]
