"""Rewards made comparable before they are put together, each by its own mean and deviation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor

from alignlab.core.config import require
from alignlab.core.errors import TrainingError

Normalisation = Literal["none", "batch", "running"]


class Normaliser:
    """Subtracts a mean and divides by a deviation, for each reward by its name.

    `batch` takes those of the batch; `running` those of everything seen so far, the batch included (Welford's sums),
    which keeps the sign of a batch that is good throughout. A reward that does not vary is shifted only.
    """

    def __init__(self, names: Iterable[str], mode: Normalisation = "running") -> None:
        require(mode in get_args(Normalisation), "normalise", mode, "none, batch or running")
        self.mode: Normalisation = mode
        self._sums = {name: [0.0, 0.0, 0.0] for name in names}

    def __call__(self, name: str, scores: Tensor) -> Tensor:
        """The scores of one reward, normalised; in `running` they count from now on."""
        if self.mode == "none":
            return scores
        values = scores.double()
        if self.mode == "batch":
            mean, variance = float(values.mean()), float(values.var(correction=0))
        else:
            mean, variance = self._seen(name, values)
        return ((values - mean) / (math.sqrt(variance) if variance > 1e-12 else 1.0)).float()

    def state_dict(self) -> dict[str, list[float]]:
        """Count, mean and sum of squares of each reward, for a checkpoint."""
        return {name: list(sums) for name, sums in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from a checkpoint; TrainingError where it is of other rewards."""
        if set(state) != set(self._sums):
            there, here = ", ".join(state), ", ".join(self._sums)
            raise TrainingError(f"the checkpoint normalises {there}, this training {here}; they must agree")
        self._sums = {name: list(state[name]) for name in self._sums}

    def _seen(self, name: str, values: Tensor) -> tuple[float, float]:
        """Mean and variance of everything so far, these values included."""
        count, mean, squares = self._sums[name]
        own, both = float(values.mean()), count + len(values)
        squares += float(((values - own) ** 2).sum()) + (own - mean) ** 2 * count * len(values) / both
        mean += (own - mean) * len(values) / both
        self._sums[name] = [both, mean, squares]
        return mean, squares / both
