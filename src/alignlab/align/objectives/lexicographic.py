"""A strict order of objectives: the second counts only among answers that are about as good in the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.align.rl.normalising import Normalisation, Normaliser
from alignlab.align.rl.rewards import Guarded, Reward
from alignlab.core.config import require
from alignlab.lm.types import Prompt


def lexicographic_ranks(values: Float[Tensor, "n objectives"], tolerances: Sequence[float]) -> Float[Tensor, " n"]:
    """For each answer the share of the others that it beats, equals counting one half: from 0 to 1.

    All objectives but the last are read as steps of their tolerance behind the best answer, so that answers within one
    step are equal and the next objective decides; a tolerance of 0 reads the value itself. Steps are counted from the
    best so that the order has no circles, which "equal if closer than" would have.
    """
    if len(values) == 1:
        return torch.full((1,), 0.5)
    behind = values.double().max(dim=0).values - values.double()
    keys = [
        torch.floor(behind[:, k] / tolerance) if tolerance > 0 else behind[:, k]
        for k, tolerance in enumerate(tolerances)
    ]
    keys.append(behind[:, -1])
    beats = torch.zeros(len(values), len(values), dtype=torch.bool)
    equal = ~beats
    for key in keys:
        beats |= equal & (key[:, None] < key[None, :])
        equal = equal & (key[:, None] == key[None, :])
    won = beats.double().sum(dim=1) + 0.5 * (equal.double().sum(dim=1) - 1)
    return (won / (len(values) - 1)).float()


@dataclass
class Lexicographic:
    """Rewards in the order in which they are given, as ranks among the answers to one prompt.

    Thresholded lexicographic ordering (Gabor et al. 1998), per group of answers: what counts is who is better, not by
    how much, which suits GRPO and RLOO. Where every prompt has one answer (PPO, REINFORCE), the batch is the group.
    `tolerances` are in the units after normalisation: deviations, unless `normalise` is "none".
    """

    rewards: Mapping[str, Reward]
    tolerances: Mapping[str, float] | None = None
    normalise: Normalisation = "running"
    time_limit: float | None = 60.0
    parts: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        require(len(self.rewards) >= 2, "rewards", list(self.rewards), "at least two rewards, the weightiest first")
        given, ranked = dict(self.tolerances or {}), list(self.rewards)[:-1]
        fits = set(given) <= set(ranked) and all(0 <= value < float("inf") for value in given.values())
        require(fits, "tolerances", given, f"0 or a positive number for any of {', '.join(ranked)} (the last has none)")
        self._steps = [float(given.get(name, 0.0)) for name in ranked]
        self._normaliser = Normaliser(self.rewards, self.normalise)
        self._guarded = {name: Guarded(reward, self.time_limit) for name, reward in self.rewards.items()}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """The rank of each response among those to its prompt."""
        self.parts = {name: reward.score(prompts, responses) for name, reward in self._guarded.items()}
        table = torch.stack([self._normaliser(name, scores) for name, scores in self.parts.items()], dim=1)
        groups: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(repr(prompt), []).append(row)
        if len(groups) == len(table):
            return lexicographic_ranks(table, self._steps)
        ranks = torch.zeros(len(table))
        for rows in groups.values():
            ranks[rows] = lexicographic_ranks(table[rows], self._steps)
        return ranks

    def after_step(self) -> dict[str, float]:
        """Mean raw score of each reward in what was scored last."""
        return {f"reward/{name}": float(scores.mean()) for name, scores in self.parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """What normalisation has seen, for a checkpoint."""
        return self._normaliser.state_dict()

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from a checkpoint."""
        self._normaliser.load_state_dict(state)
