"""Who says which of two clips is better: a synthetic teacher who knows the true reward, of chosen faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alignlab.align.trajectories.segments import Segments
from alignlab.core.config import require

FloatArray = NDArray[np.float64]


class Teacher(Protocol):
    """Anything that judges pairs of clips."""

    def judge(self, first: Segments, second: Segments, rng: np.random.Generator) -> FloatArray:
        """The preference for the first of each pair, (n,): 1, 0, 0.5 for a tie, NaN where nothing is said."""


@dataclass(frozen=True)
class SyntheticTeacher:
    """Prefers the clip with the higher true return, with the faults asked for (names after Lee et al. 2021, B-Pref)."""

    error_rate: float = 0.0
    """Share of answers turned round, at random; ties are not."""
    rationality: float | None = None
    """None: always the better one. Else the better one with Bradley-Terry's probability of `rationality` times the
    difference of returns: a noisy-rational teacher, nearly random where clips are nearly equal."""
    tie_within: float = 1e-9
    """Returns that differ by no more are called equal."""

    def __post_init__(self) -> None:
        require(0 <= self.error_rate <= 0.5, "error_rate", self.error_rate, "a number from 0 to 0.5")
        positive = self.rationality is None or self.rationality > 0
        require(positive, "rationality", self.rationality, "none or a positive number")
        require(self.tie_within >= 0, "tie_within", self.tie_within, "0 or a positive number")

    def judge(self, first: Segments, second: Segments, rng: np.random.Generator) -> FloatArray:
        """See `Teacher.judge`."""
        gap = first.returns - second.returns
        right = (gap > 0).astype(np.float64)
        if self.rationality is not None:
            right = (rng.random(len(gap)) < 0.5 * (1 + np.tanh(0.5 * self.rationality * gap))).astype(np.float64)
        wrong = rng.random(len(gap)) < self.error_rate
        return np.where(np.abs(gap) <= self.tie_within, 0.5, np.where(wrong, 1 - right, right))
