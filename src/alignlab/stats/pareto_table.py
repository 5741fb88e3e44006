"""Points in several objectives, each measured on items and perhaps trained from several seeds; comparisons of them.

Every point is measured on the same items, so that all differences are paired. Three or more seeds a point make
intervals that hold for new trainings; with fewer they hold for these trainings and new items, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from alignlab.core.errors import ConfigError, DataError
from alignlab.stats.crossed import crossed_interval
from alignlab.stats.design import LEAST_SEEDS
from alignlab.stats.interval import Interval
from alignlab.stats.multiplicity import holm
from alignlab.stats.paired import bootstrap_mean, permutation_test
from alignlab.stats.validation import FloatArray, check_confidence


@dataclass(frozen=True, eq=False)
class PointTable:
    """What was measured of each point; larger is better in every objective."""

    objectives: tuple[str, ...]
    """Their names, at least two."""
    values: Mapping[str, FloatArray]
    """By the name of the point, in order: (seeds, items, objectives). Points may differ in how many seeds they have."""

    @property
    def names(self) -> tuple[str, ...]:
        """The points."""
        return tuple(self.values)

    @property
    def items(self) -> int:
        """Items that each point is measured on."""
        return next(iter(self.values.values())).shape[1]

    @property
    def means(self) -> FloatArray:
        """Mean over seeds and items, (points, objectives)."""
        return np.stack([table.mean(axis=(0, 1)) for table in self.values.values()])

    @property
    def new_trainings(self) -> bool:
        """Whether intervals hold for new trainings: every point has at least three seeds."""
        return all(self.repeated)

    @property
    def repeated(self) -> tuple[bool, ...]:
        """Which points have at least three seeds, so that what another training would give is in their noise."""
        return tuple(len(table) >= LEAST_SEEDS for table in self.values.values())

    def rows(self, name: str) -> FloatArray:
        """Mean over the seeds of a point, (items, objectives)."""
        return np.asarray(self.of(name).mean(axis=0))

    def of(self, name: str) -> FloatArray:
        """The values of a point; DataError where there is none of that name."""
        if name not in self.values:
            raise DataError(f"there is no point {name!r}, allowed: {', '.join(self.values)}")
        return self.values[name]

    def column(self, objective: str) -> int:
        """The place of an objective; ConfigError where there is none of that name."""
        if objective not in self.objectives:
            raise ConfigError(f"objective is {objective!r}, allowed: {', '.join(self.objectives)}")
        return self.objectives.index(objective)


def point_table(values: Mapping[str, ArrayLike], objectives: Sequence[str]) -> PointTable:
    """The table of arrays (items, objectives), or (seeds, items, objectives), by the name of the point.

    Raises DataError for fewer than two objectives, no point, other items than the first point's, or a value that is
    not finite.
    """
    names = tuple(objectives)
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"objectives are {', '.join(names) or 'none'}; a trade-off needs at least two, all different")
    if not values:
        raise DataError("there is no point; at least one is needed")
    found: dict[str, FloatArray] = {}
    items: int | None = None
    for name, given in values.items():
        table = np.asarray(given, dtype=np.float64)
        table = table[None] if table.ndim == 2 else table
        if table.ndim != 3 or 0 in table.shape or table.shape[2] != len(names):
            raise DataError(f"point {name!r} has shape {table.shape}, right is (seeds, items, {len(names)} objectives)")
        if items is not None and table.shape[1] != items:
            raise DataError(f"point {name!r} is measured on {table.shape[1]} items and others on {items}; use the same")
        if not np.isfinite(table).all():
            seed, item, column = (int(i) for i in np.argwhere(~np.isfinite(table))[0])
            raise DataError(
                f"point {name!r}: {names[column]} of item {item} (seed {seed}) is {table[seed, item, column]}; every "
                "value must be finite"
            )
        found[name], items = table, table.shape[1]
    return PointTable(names, found)


def mean_of(table: FloatArray, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Interval of the mean of (seeds, items): for new items and trainings with three seeds or more, else for new items.

    One item (a summary of each training) leaves the seeds alone to speak: Student's t; both single: unbounded.
    """
    check_confidence(confidence)
    seeds, items = table.shape
    if items == 1:
        mean = float(table.mean())
        if seeds < 2:
            return Interval(mean, -math.inf, math.inf, 1, confidence, "none")
        half = float(student_t.ppf(0.5 + confidence / 2, seeds - 1) * table.std(ddof=1) / math.sqrt(seeds))
        return Interval(mean, mean - half, mean + half, seeds, confidence, "t over seeds")
    if seeds >= LEAST_SEEDS:
        return crossed_interval(table.T, confidence=confidence)
    return bootstrap_mean(table.mean(axis=0), confidence=confidence, seed=seed)


def objective_intervals(table: PointTable, confidence: float = 0.95, seed: int = 0) -> dict[str, dict[str, Interval]]:
    """The interval of every objective of every point."""
    return {
        name: {objective: mean_of(values[:, :, k], confidence, seed) for k, objective in enumerate(table.objectives)}
        for name, values in table.values.items()
    }


def difference(
    table: PointTable, better: str, worse: str, objective: str, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of `better` less `worse` in one objective, paired by item, and by seed where both have as many."""
    return mean_of(_differences(table, better, worse)[:, :, table.column(objective)], confidence, seed)


@dataclass(frozen=True)
class Dominance:
    """Whether one point beats another beyond noise."""

    better: str
    worse: str
    p_value: float
    """Of the hypothesis that it does not: not at least as good (within the tolerance) everywhere, or nowhere better."""
    adjusted_p: float
    """After Holm's correction over all ordered pairs of points."""
    confident: bool
    """Whether the adjusted p is at or below alpha."""


def dominance(
    table: PointTable, *, tolerance: Mapping[str, float] | None = None, alpha: float = 0.05, seed: int = 0
) -> list[Dominance]:
    """For every ordered pair of points: does the first dominate the second with confidence?

    Claimed where the first is better in every objective (an intersection-union test: the largest of the one-sided p,
    which needs no correction over objectives; Berger 1982, Technometrics 24:295). A `tolerance` for an objective lets
    the first be worse there by less than so much; it must then be better somewhere beyond noise (Bonferroni over
    objectives). Holm over all pairs keeps the chance of any false claim at `alpha`.
    """
    if not 0.0 < alpha < 1.0:
        raise ConfigError(f"alpha is {alpha!r}, allowed: a number between 0 and 1, such as 0.05")
    slack = np.zeros(len(table.objectives))
    for name, given in (tolerance or {}).items():
        if not given >= 0:
            raise ConfigError(f"the tolerance of {name} is {given!r}, allowed: 0 or a positive number")
        slack[table.column(name)] = given
    pairs = [(a, b) for a in table.names for b in table.names if a != b]
    p_values = [_dominance_p(_differences(table, *pair), slack, seed) for pair in pairs]
    adjusted = holm(p_values)
    return [Dominance(a, b, p, q, q <= alpha + 1e-12) for (a, b), p, q in zip(pairs, p_values, adjusted, strict=True)]


def dominated_with_confidence(found: Sequence[Dominance]) -> dict[str, list[str]]:
    """The points that are beaten beyond noise, each with those that beat it."""
    beaten: dict[str, list[str]] = {}
    for one in found:
        if one.confident:
            beaten.setdefault(one.worse, []).append(one.better)
    return beaten


def _dominance_p(differences: FloatArray, slack: FloatArray, seed: int) -> float:
    columns = range(differences.shape[2])
    everywhere = max(one_sided_p(differences[:, :, k] + slack[k], seed) for k in columns)
    if not slack.any():
        return everywhere
    somewhere = min(one_sided_p(differences[:, :, k], seed) for k in columns)
    return max(everywhere, min(1.0, len(columns) * somewhere))


def one_sided_p(differences: FloatArray, seed: int = 0) -> float:
    """p of "the mean is not above 0" for differences (seeds, items): the sign-flip test over items, or with three seeds
    or more (or one item) the level at which the interval of `mean_of` would begin at 0.
    """
    seeds, items = differences.shape
    mean = float(differences.mean())
    if items > 1 and seeds < LEAST_SEEDS:
        rows = differences.mean(axis=0)
        two_sided = permutation_test(np.zeros_like(rows), rows, seed=seed)
        return two_sided / 2 if mean > 0 else 1 - two_sided / 2
    if not np.any(differences != mean) or (items == 1 and seeds < 2):
        return 1.0 if mean <= 0 or seeds < 2 else 0.0
    low, high = 1e-9, 1 - 1e-9  # of the two-sided level: the interval narrows as it grows
    for _ in range(50):
        level = (low + high) / 2
        found = mean_of(differences, 1 - level)
        low, high = (level, high) if (found.low <= 0 if mean > 0 else found.high >= 0) else (low, level)
    return high / 2 if mean > 0 else 1 - high / 2


def _differences(table: PointTable, better: str, worse: str) -> FloatArray:
    """(seeds, items, objectives): by seed, as many as both have; a single one is set against every seed of the other.

    Two seeds against more: of the means over seeds.
    """
    first, second = table.of(better), table.of(worse)
    both, most = min(len(first), len(second)), max(len(first), len(second))
    if both == 1 and most >= LEAST_SEEDS:
        return np.asarray(first - second)
    if both == most or both >= LEAST_SEEDS:
        return np.asarray(first[:both] - second[:both])
    return np.asarray(first.mean(axis=0, keepdims=True) - second.mean(axis=0, keepdims=True))
