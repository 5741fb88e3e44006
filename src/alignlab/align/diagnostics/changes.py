"""What changed between two stretches of a training, with an interval over prompts (or over steps)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from alignlab.align.diagnostics.history import QUANTITIES, FloatArray, History
from alignlab.stats.interval import Interval


@dataclass(frozen=True)
class Block:
    """One quantity over a stretch of steps."""

    values: FloatArray
    clusters: NDArray[np.int64]
    """What belongs together: the prompt of each response; each step by itself where only means were logged."""
    unit: str
    """`prompts` or `steps`: what the clusters are."""
    mean: float
    groups: int
    """Different clusters."""

    @classmethod
    def of(cls, values: FloatArray, clusters: NDArray[np.int64], unit: str) -> Block:
        """A block of at least one value."""
        return cls(values, clusters, unit, float(values.mean()), len(np.unique(clusters)))

    def scaled(self, factor: float) -> Block:
        """All values times `factor`."""
        return self if factor == 1.0 else replace(self, values=self.values * factor, mean=self.mean * factor)


def block_of(history: History, name: str, start: int, end: int) -> Block | None:
    """A metric over the steps `start` to `end` (positions, the end excluded); None where it was never logged there.

    From the responses where every step of them has its own recorded, else from the logged means.
    """
    single = history.singles.get(QUANTITIES.get(name, ""))
    if single is not None and end > start and bool((np.diff(single.ends[start : end + 1]) > 0).all()):
        rows = slice(int(single.ends[start]), int(single.ends[end]))
        return Block.of(single.values[rows], single.prompts[rows], "prompts")
    column = history.columns.get(name)
    if column is None:
        return None
    there = np.isfinite(column[start:end])
    return Block.of(column[start:end][there], history.steps[start:end][there], "steps") if there.any() else None


def change(early: Block | None, late: Block | None, alpha: float) -> Interval | None:
    """Mean of `late` less mean of `early`, with limits that each miss with probability `alpha`.

    Clusters may be correlated inside and may be in both blocks, which pairs them: the variance is the sum over clusters
    of the squared sum of influences, each block's times G / (G - 1); Student's t with the smaller block's G - 1
    degrees of freedom. For singletons this is Welch's or the paired interval. None where a block has fewer than two
    clusters, or one counts prompts and the other steps.
    """
    if early is None or late is None or early.unit != late.unit or min(early.groups, late.groups) < 2:
        return None
    clusters, index = np.unique(np.concatenate([early.clusters, late.clusters]), return_inverse=True)
    influence = np.concatenate([-_influence(early), _influence(late)])
    sums = np.bincount(index, weights=influence, minlength=len(clusters))
    error, groups = math.sqrt(float(sums @ sums)), min(early.groups, late.groups)
    return _around(late.mean - early.mean, error, groups, len(late.values), alpha)


def level(block: Block | None, alpha: float) -> Interval | None:
    """Mean of a block with limits that each miss with probability `alpha`; None with fewer than two clusters."""
    if block is None or block.groups < 2:
        return None
    sums = np.bincount(np.unique(block.clusters, return_inverse=True)[1], weights=_influence(block))
    return _around(block.mean, math.sqrt(float(sums @ sums)), block.groups, len(block.values), alpha)


def _influence(block: Block) -> FloatArray:
    return (block.values - block.mean) * (math.sqrt(block.groups / (block.groups - 1)) / len(block.values))


def slope_within(values: ArrayLike, on: ArrayLike, groups: NDArray[np.int64]) -> float:
    """Least-squares slope of `values` on `on` inside groups (both less their group's mean); 0 where `on` is constant
    in every one."""
    x, y = np.asarray(on, dtype=np.float64), np.asarray(values, dtype=np.float64)
    index = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(index)
    x = x - (np.bincount(index, weights=x) / counts)[index]
    y = y - (np.bincount(index, weights=y) / counts)[index]
    square = float(x @ x)
    return float(x @ y) / square if square > 1e-12 else 0.0


def _around(estimate: float, error: float, groups: int, n: int, alpha: float) -> Interval:
    half = float(stdtrit(groups - 1, 1 - alpha)) * error
    return Interval(estimate, estimate - half, estimate + half, n, 1 - 2 * alpha, "clustered t")
