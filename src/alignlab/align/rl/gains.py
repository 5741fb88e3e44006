"""What a training gained: accuracy on the same items before and after, seeds crossed with items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.stats.crossed import crossed_interval
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval

LEAST_SEEDS = 3
Verdict = Literal["better", "worse", "tied"]


@dataclass(frozen=True)
class Gain:
    """Accuracy before and after on the same items, and whether it changed."""

    before: Interval
    after: Interval
    difference: Interval
    """At the level that `comparisons` leave of the confidence (Bonferroni)."""
    verdict: Verdict
    seeds: int


def gain(before: ArrayLike, after: ArrayLike, *, comparisons: int = 1, confidence: float = 0.95) -> Gain:
    """From the scores (0 to 1) of the same items: before (items,) or (items, seeds), after (items, seeds).

    With three seeds or more, items and seeds both count as drawn from more (`crossed_interval`); with fewer, the seeds
    are averaged and the intervals hold for these seeds. With several `comparisons` each difference gets an interval of
    level 1 - (1 - confidence) / comparisons, so that all hold together; "tied" where it contains 0.
    """
    require(comparisons >= 1, "comparisons", comparisons, "a whole number of at least 1")
    first, second = _table(before, "before"), _table(after, "after")
    wide = np.broadcast_to(first, (len(first), second.shape[1])) if np.ndim(before) == 1 else first
    if wide.shape != second.shape:
        raise DataError(f"before has shape {wide.shape} and after {second.shape}, must be the same items and seeds")
    level = 1 - (1 - confidence) / comparisons
    found = _interval(second - wide, (-1.0, 1.0), level)
    verdict: Verdict = "tied"
    if found.excludes(0.0):
        verdict = "better" if found.estimate > 0 else "worse"
    return Gain(
        _interval(first, (0.0, 1.0), confidence),
        _interval(second, (0.0, 1.0), confidence),
        found,
        verdict,
        second.shape[1],
    )


def gains(pairs: Mapping[str, tuple[ArrayLike, ArrayLike]], *, confidence: float = 0.95) -> dict[str, Gain]:
    """`gain` of each (before, after), corrected for as many comparisons as there are."""
    found = {}
    for name, (before, after) in pairs.items():
        found[name] = gain(before, after, comparisons=len(pairs), confidence=confidence)
    return found


def gain_lines(found: Mapping[str, Gain]) -> list[str]:
    """A table of gains in percent, with the level of the intervals and what they hold for."""
    if not found:
        return []
    width = max(map(len, found))
    lines = [f"{'':{width}}  {'before':>20}  {'after':>20}  {'difference':>22}  verdict"]
    for name, one in found.items():
        shown = f"{_percent(one.before):>20}  {_percent(one.after):>20}  {_percent(one.difference, sign=True):>22}"
        lines.append(f"{name:{width}}  {shown}  {one.verdict}")
    first = next(iter(found.values()))
    scope = "new items and new seeds" if first.seeds >= LEAST_SEEDS else "new items and these seeds"
    level = 100 * first.difference.confidence
    return [
        *lines,
        f"{first.difference.n} items, {first.seeds} seeds; percent, intervals for {scope}: "
        f"{100 * first.after.confidence:.4g} %, of differences "
        f"{level:.4g} % (all {len(found)} hold together); tied: the interval contains 0",
    ]


def _percent(interval: Interval, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    return f"{100 * interval.estimate:{form}} [{100 * interval.low:{form}}, {100 * interval.high:{form}}]"


def _table(values: ArrayLike, name: str) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or len(table) < 2 or not np.isfinite(table).all() or table.min() < 0 or table.max() > 1:
        raise DataError(
            f"{name} has shape {table.shape}, allowed: (items, seeds), at least 2 items, scores from 0 to 1"
        )
    return table


def _interval(table: NDArray[np.float64], limits: tuple[float, float], confidence: float) -> Interval:
    means = table.mean(axis=1)
    if table.shape[1] < LEAST_SEEDS or float(np.ptp(means)) == 0.0:  # where nothing varies, that is no certainty
        return mean_interval(means, limits=limits, confidence=confidence)
    found = crossed_interval(table, confidence=confidence)
    low, high = max(found.low, limits[0]), min(found.high, limits[1])
    return Interval(found.estimate, low, high, found.n, confidence, found.method)
