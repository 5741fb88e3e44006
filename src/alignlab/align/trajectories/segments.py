"""Clips: short stretches of what the agent did, as a reward model and a teacher see them, and comparisons of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignlab.align.trajectories.policy_training import Rollout
from alignlab.core.errors import DataError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Segments:
    """Clips of equal length."""

    inputs: FloatArray
    """(n, length, size): observation and action of each step, actions one-hot or in [-1, 1]."""
    rewards: FloatArray
    """(n, length): the task's own, which only a synthetic teacher may look at."""

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def returns(self) -> FloatArray:
        """(n,): the task's reward summed over each clip."""
        return self.rewards.sum(axis=1)

    def pick(self, index: Sequence[int] | NDArray[np.int64]) -> Segments:
        """Those of these numbers."""
        return Segments(self.inputs[index], self.rewards[index])

    @classmethod
    def join(cls, parts: Sequence[Segments]) -> Segments:
        """All in a row."""
        return cls(np.concatenate([p.inputs for p in parts]), np.concatenate([p.rewards for p in parts]))


@dataclass(frozen=True)
class Comparisons:
    """Pairs of clips with the share of preference for the first: 1, 0, or 0.5 for a tie."""

    first: Segments
    second: Segments
    labels: FloatArray
    """(n,)."""

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def join(cls, parts: Sequence[Comparisons]) -> Comparisons:
        """All in a row."""
        return cls(
            Segments.join([p.first for p in parts]),
            Segments.join([p.second for p in parts]),
            np.concatenate([p.labels for p in parts]),
        )


class ClipPool:
    """The latest stretches of every copy, from which clips are drawn; older ones leave."""

    def __init__(self, *, length: int, actions: int, most_steps: int) -> None:
        self.length, self.actions, self.most_steps = length, actions, most_steps
        self._parts: list[tuple[FloatArray, FloatArray, NDArray[np.bool_]]] = []

    def add(self, rollout: Rollout) -> None:
        """Take in what the agent did."""
        inputs = np.concatenate([rollout.observations, rollout.one_hot(self.actions)], axis=-1)
        self._parts.append((inputs, rollout.rewards, rollout.truncated))
        each = rollout.rewards.size
        keep = max(1, -(-self.length // len(rollout.rewards)), self.most_steps // each)
        self._parts = self._parts[-keep:]

    def draw(self, count: int, rng: np.random.Generator) -> Segments:
        """`count` clips from random places, none of which runs over a time limit; they may overlap.

        Raises DataError where the pool holds no stretch that is long enough.
        """
        inputs = np.concatenate([part[0] for part in self._parts])
        rewards = np.concatenate([part[1] for part in self._parts])
        cut = np.concatenate([part[2] for part in self._parts])
        places = len(inputs) - self.length + 1
        if places < 1:
            raise DataError(f"clips have {self.length} steps, and {len(inputs)} were taken so far")
        # A clip from t holds the steps t .. t + length - 1; an end inside, before its last step, would splice two
        # episodes together.
        ends = np.cumsum(np.concatenate([np.zeros((1, cut.shape[1])), cut]), axis=0)
        whole = ends[self.length - 1 : self.length - 1 + places] - ends[:places] == 0
        begin, copy = np.nonzero(whole)
        if not len(begin):
            raise DataError(f"no stretch between two time limits has {self.length} steps, the length of a clip")
        chosen = rng.integers(0, len(begin), size=count)
        time = begin[chosen][:, None] + np.arange(self.length)
        return Segments(inputs[time, copy[chosen][:, None]], rewards[time, copy[chosen][:, None]])
