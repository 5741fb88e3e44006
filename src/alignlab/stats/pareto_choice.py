"""Choosing among points with several objectives: by weights, or by the best of one under bounds on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.core.errors import ConfigError
from alignlab.stats.interval import Interval
from alignlab.stats.multiplicity import holm
from alignlab.stats.pareto import scalar_best
from alignlab.stats.pareto_resampling import drawn_means
from alignlab.stats.pareto_table import PointTable, difference, mean_of, one_sided_p


@dataclass(frozen=True)
class Choice:
    """The best point for some weights, and what it costs."""

    name: str
    score: Interval
    """Its weighted mean, weights made to sum to 1."""
    cost: Mapping[str, tuple[str, Interval]]
    """By objective: the point that is best in it, and by how much the choice falls short of that one (0 for itself)."""
    share: Mapping[str, float]
    """How often each point has the largest score under resampling."""


def best_for_weights(table: PointTable, weights: Mapping[str, float], *, n_resamples: int = 1000) -> Choice:
    """The point with the largest weighted mean; ConfigError for an unknown objective or weights that do not weigh."""
    for name in weights:
        table.column(name)
    given = [float(weights.get(name, 0.0)) for name in table.objectives]
    means = table.means
    name = table.names[scalar_best(means, given)]
    share = np.array(given) / sum(given)
    score = mean_of(table.of(name) @ share)
    cost = {}
    for k, objective in enumerate(table.objectives):
        top = table.names[int(np.argmax(means[:, k]))]
        cost[objective] = (top, difference(table, top, name, objective))
    winners = np.argmax(drawn_means(table, n_resamples) @ share, axis=1)
    often = np.bincount(winners, minlength=len(table.names)) / n_resamples
    return Choice(name, score, cost, dict(zip(table.names, often.tolist(), strict=True)))


@dataclass(frozen=True)
class BoundMet:
    """One point against bounds, and against the best other point that meets them."""

    name: str
    values: Mapping[str, Interval]
    """The bounded objectives."""
    met: bool
    """Whether every mean is at or above its bound."""
    surely: bool
    """Whether every interval is."""
    kept: Interval
    """The objective that is to be large."""
    rivals: Mapping[str, tuple[Interval, float]]
    """Other points that meet the bounds: how much more of that objective this one has, and Holm's p (two-sided)."""


def under_bounds(
    table: PointTable,
    name: str,
    maximise: str,
    bounds: Mapping[str, float],
    rivals: Sequence[str] | None = None,
) -> BoundMet:
    """What one point reaches in `maximise` while others stay at or above `bounds`, paired with rivals that meet them.

    `rivals` are all other points unless given; those whose mean breaks a bound are left out. ConfigError without a
    bound.
    """
    if not bounds or maximise in bounds:
        raise ConfigError(f"bounds are {dict(bounds)}; give at least one, on other objectives than {maximise!r}")
    kept = table.column(maximise)
    limits = np.array([bounds.get(objective, -np.inf) for objective in table.objectives])
    own = table.of(name)
    values = {objective: mean_of(own[:, :, table.column(objective)]) for objective in bounds}
    others = [other for other in (table.names if rivals is None else rivals) if other != name]
    others = [other for other in others if (table.of(other).mean(axis=(0, 1)) >= limits).all()]
    found = [difference(table, name, other, maximise) for other in others]
    p_values = []
    for other in others:
        both = min(len(own), len(table.of(other)))
        p = one_sided_p(own[:both, :, kept] - table.of(other)[:both, :, kept])
        p_values.append(min(1.0, 2 * min(p, 1 - p)))
    return BoundMet(
        name,
        values,
        bool((own.mean(axis=(0, 1)) >= limits).all()),
        all(values[objective].low >= bound for objective, bound in bounds.items()),
        mean_of(own[:, :, kept]),
        {other: (gap, p) for other, gap, p in zip(others, found, holm(p_values), strict=True)},
    )
