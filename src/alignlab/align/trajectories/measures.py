"""What several seeds say together: returns, the share of the true reward's success, how well the reward was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from alignlab.core.errors import DataError
from alignlab.stats.cluster import clustered_interval
from alignlab.stats.interval import Interval


@dataclass(frozen=True)
class SeedResult:
    """One seed: the agent that learned from preferences beside the one that had the true reward."""

    seed: int
    learned: float
    """Mean true return of whole episodes at the end, likeliest actions."""
    true: float | None
    """The same of the agent trained on the task's own reward; None where it was not trained."""
    random: float
    """The same of random actions."""
    labels: int
    """Comparisons that were answered."""
    correlation: float | None
    """Of learned and true returns of clips."""

    @property
    def share(self) -> float | None:
        """Of what the true reward gains over random actions, the part that the learned one gains; 1 is as good.

        For CartPole this is a little stricter than the ratio of returns, and it means something where returns are
        negative.
        """
        if self.true is None:
            return None
        if self.true <= self.random:
            raise DataError(
                f"seed {self.seed}: the agent with the true reward got {self.true:.4g}, no more than random actions "
                f"({self.random:.4g}); train for more steps"
            )
        return (self.learned - self.random) / (self.true - self.random)


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean with Student's t interval over seeds; unbounded for one seed."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) == 1:
        return Interval(float(numbers[0]), -np.inf, np.inf, 1, method="one seed")
    return clustered_interval(numbers, range(len(numbers)))


def summarise(results: Sequence[SeedResult]) -> dict[str, Interval]:
    """Intervals over seeds of everything that was measured in all of them."""
    columns: Mapping[str, list[float | None]] = {
        "return, learned reward": [result.learned for result in results],
        "return, true reward": [result.true for result in results],
        "return, random actions": [result.random for result in results],
        "share of the true reward's gain": [result.share for result in results],
        "correlation of learned and true returns of clips": [result.correlation for result in results],
    }
    found = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: over_seeds(values) for name, values in found.items() if len(values) == len(results)}


def as_lines(summary: Mapping[str, Interval]) -> list[str]:
    """The summary as text."""
    return [f"{name}: {interval}" for name, interval in summary.items()]


def as_record(results: Sequence[SeedResult]) -> dict[str, Any]:
    """Seeds and summary as JSON takes them."""
    return {
        "seeds": [asdict(result) | {"share": result.share} for result in results],
        "summary": {name: interval.as_dict() for name, interval in summarise(results).items()},
    }
