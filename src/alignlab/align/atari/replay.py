"""Replay on the device: frames once each, prioritised draws, demonstrations that never leave (Hester et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from alignlab.align.atari.losses import importance_weights, n_step_returns, sampling_probabilities
from alignlab.align.atari.networks import STACK
from alignlab.core.config import require
from alignlab.core.errors import DataError


@dataclass(frozen=True)
class Episodes:
    """Whole episodes in a row, as a demonstrator played them."""

    frames: NDArray[np.uint8]
    """(steps, size, size): what was seen before each action."""
    actions: NDArray[np.int64]
    """(steps,)."""
    rewards: NDArray[np.float32]
    """(steps,): the game's own."""
    ends: NDArray[np.bool_]
    """(steps,): True at the last step of each."""

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def returns(self) -> NDArray[np.float64]:
        """Score of each episode."""
        parts = np.split(self.rewards, np.flatnonzero(self.ends) + 1)
        return np.array([part.sum() for part in parts if len(part)], dtype=np.float64)


@dataclass(frozen=True)
class ReplaySettings:
    """What is kept and how it is drawn."""

    capacity: int = 400_000
    """Steps of the agent that are kept, over all copies of the game."""
    n_step: int = 5
    """Rewards summed before a value takes over."""
    gamma: float = 0.99
    """Discount a step."""
    alpha: float = 0.5
    """Power of the priorities: 0 draws uniformly."""
    beta: float = 0.4
    """Power of the importance weights."""
    agent_bonus: float = 0.001
    """Added to the error of the agent's own steps, which is their priority."""
    demonstration_bonus: float = 1.0
    """The same for demonstrated steps."""

    def __post_init__(self) -> None:
        require(self.capacity >= 1, "capacity", self.capacity, "a positive whole number")
        require(self.n_step >= 1, "n_step", self.n_step, "a positive whole number")
        for name in ("gamma", "alpha", "beta"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number from 0 to 1")
        for name in ("agent_bonus", "demonstration_bonus"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")


@dataclass(frozen=True)
class Batch:
    """What one update learns from."""

    slots: Int[Tensor, " batch"]
    stacks: UInt8[Tensor, "batch 4 size size"]
    actions: Int[Tensor, " batch"]
    returns: Float[Tensor, " batch"]
    discounts: Float[Tensor, " batch"]
    later: UInt8[Tensor, "batch 4 size size"]
    weights: Float[Tensor, " batch"]
    demonstrated: Bool[Tensor, " batch"]


class Replay:
    """The latest steps of every copy of a game, each in a ring of its own, and behind them the demonstrations.

    A slot holds one step: the frame seen, the action, the game's reward, the learned one, whether the episode ended
    with it. It can be drawn once the n steps after it are there, until its earlier frames are written over.
    With `hide_ends` a value follows the end of an episode like any other step (that of the next episode's beginning):
    where a reward is learned, the end of a game must not say what the score would.
    """

    def __init__(
        self,
        copies: int,
        size: int,
        settings: ReplaySettings,
        demonstrations: Episodes | None = None,
        *,
        hide_ends: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings, self.copies, self.hide_ends = settings, copies, hide_ends
        self.length = settings.capacity // copies
        if self.length < settings.n_step + STACK + 1:
            raise DataError(
                f"{settings.capacity} steps over {copies} copies are {self.length} each, fewer than the "
                f"{settings.n_step + STACK + 1} that a draw looks at"
            )
        self.demonstrated = 0 if demonstrations is None else len(demonstrations)
        self.own = copies * self.length
        slots = self.own + self.demonstrated
        self.frames = torch.zeros(slots, size, size, dtype=torch.uint8, device=device)
        self.actions = torch.zeros(slots, dtype=torch.int64, device=device)
        self.true_rewards = torch.zeros(slots, device=device)
        self.learned_rewards = torch.zeros(slots, device=device)
        self.ends = torch.zeros(slots, dtype=torch.bool, device=device)
        self.first = torch.zeros(slots, dtype=torch.bool, device=device)
        self.priorities = torch.zeros(slots, dtype=torch.float64, device=device)
        self.largest = torch.ones((), dtype=torch.float64, device=device)
        self.steps = 0
        self._columns = torch.arange(copies, device=device) * self.length
        if demonstrations is not None:
            self._keep(demonstrations)

    def _keep(self, given: Episodes) -> None:
        if self.demonstrated <= self.settings.n_step:
            raise DataError(
                f"demonstrations of {self.demonstrated} steps are too short for {self.settings.n_step}-step returns"
            )
        place = slice(self.own, None)
        for name, values in (("frames", given.frames), ("actions", given.actions), ("ends", given.ends)):
            getattr(self, name)[place] = torch.from_numpy(values).to(self.frames.device)
        self.true_rewards[place] = torch.from_numpy(given.rewards).to(self.frames.device)
        self.first[self.own] = True
        self.first[self.own + 1 :] = self.ends[self.own : -1]
        self.priorities[self.own : len(self.priorities) - self.settings.n_step] = 1.0

    def add(
        self,
        frames: UInt8[Tensor, "copies size size"],
        first: Bool[Tensor, " copies"],
        actions: Int[Tensor, " copies"],
        rewards: Float[Tensor, " copies"],
        learned: Float[Tensor, " copies"],
        ends: Bool[Tensor, " copies"],
    ) -> None:
        """One step of every copy: the frame before the action, whether it begins an episode, what came of it."""
        slots = self._columns + self.steps % self.length
        self.frames[slots], self.first[slots], self.actions[slots] = frames, first, actions
        self.true_rewards[slots], self.learned_rewards[slots], self.ends[slots] = rewards, learned, ends
        # This step has no future yet, and the stacks of the oldest ones reach back to what was just written over.
        ahead = torch.arange(self.steps, self.steps + STACK, device=slots.device) % self.length
        self.priorities[self._columns[:, None] + ahead] = 0.0
        if self.steps >= self.settings.n_step:
            self.priorities[self._columns + (self.steps - self.settings.n_step) % self.length] = self.largest
        self.steps += 1

    def move(self, slots: Int[Tensor, "*batch"], by: Int[Tensor, "*shift"] | int) -> Int[Tensor, "*moved"]:
        """The slots that many steps later (earlier, if negative) in the same ring; shapes broadcast."""
        own = slots < self.own
        base = torch.where(own, slots // self.length * self.length, self.own)
        length = torch.where(own, self.length, max(self.demonstrated, 1))
        return base + (slots - base + by) % length

    def earlier(self, slots: Int[Tensor, " batch"], frames: int = STACK) -> Int[Tensor, "batch frames"]:
        """Slots of the latest frames up to each, oldest first; an episode's first frame stands for those before it."""
        back = torch.arange(frames, device=slots.device)
        begun = self.first[self.move(slots[:, None], -back)]
        # Steps back to the episode's first frame, where one is near: the first True, or none.
        most = torch.where(begun.any(dim=1), begun.int().argmax(dim=1), frames - 1)
        return self.move(slots[:, None], -torch.minimum(back, most[:, None])).flip(1)

    def stacks(self, slots: Int[Tensor, " batch"]) -> UInt8[Tensor, "batch 4 size size"]:
        """What an agent saw at each slot."""
        return self.frames[self.earlier(slots)]

    def draw(self, batch: int, generator: torch.Generator, *, reward: str = "true") -> Batch:
        """A batch by priority, one from each of `batch` equal parts of the total, with its n-step returns."""
        sums = self.priorities.cumsum(0)
        part = torch.rand(batch, generator=generator, device=sums.device, dtype=torch.float64)
        part += torch.arange(batch, device=sums.device)
        slots = torch.searchsorted(sums, part / batch * sums[-1], right=True).clamp_(max=len(sums) - 1)
        chances = self.priorities[slots] / sums[-1]
        weights = importance_weights(chances, (self.priorities > 0).sum(), self.settings.beta).float()
        return self._batch(slots, weights, reward)

    def draw_demonstrations(self, batch: int, generator: torch.Generator) -> Batch:
        """A batch of demonstrated steps, all equally likely."""
        if not self.demonstrated:
            raise DataError("there are no demonstrations to imitate")
        most = self.demonstrated - self.settings.n_step
        slots = self.own + torch.randint(most, (batch,), generator=generator, device=self.frames.device)
        return self._batch(slots, torch.ones(batch, device=self.frames.device), "true")

    def _batch(self, slots: Tensor, weights: Tensor, reward: str) -> Batch:
        # The game's own are cut to -1, 0, 1, as in Mnih et al. (2015).
        kept = self.true_rewards.clamp(-1, 1) if reward == "true" else self.learned_rewards
        future = self.move(slots[:, None], torch.arange(self.settings.n_step, device=slots.device))
        ends = torch.zeros_like(future, dtype=torch.bool) if self.hide_ends else self.ends[future]
        returns, discounts = n_step_returns(kept[future], ends, self.settings.gamma)
        # One look for both ends: on a GPU it is the number of operations that costs.
        both = self.stacks(torch.cat([slots, self.move(slots, self.settings.n_step)]))
        stacks, later = both.split(len(slots))
        return Batch(slots, stacks, self.actions[slots], returns, discounts, later, weights, slots >= self.own)

    def set_errors(self, batch: Batch, errors: Float[Tensor, " batch"]) -> None:
        """New priorities of what was just learned from: the size of its error plus a bonus, to the power of alpha."""
        kept = self.settings
        bonus = torch.where(batch.demonstrated, kept.demonstration_bonus, kept.agent_bonus)
        priorities = (errors.detach().abs().double() + bonus) ** kept.alpha
        self.priorities[batch.slots] = priorities
        torch.maximum(self.largest, priorities.amax(), out=self.largest)

    def probabilities(self) -> Float[Tensor, " slots"]:
        """Of being drawn, for every slot."""
        return sampling_probabilities(self.priorities)

    def filled(self, *, demonstrations: bool = True) -> Int[Tensor, " slots"]:
        """The slots that hold a step whose stack is whole, in order of the rings."""
        count = min(self.steps, self.length)
        times = torch.arange(self.steps - count, self.steps, device=self.frames.device)
        if self.steps > self.length:
            times = times[STACK - 1 :]
        own = (self._columns[:, None] + times % self.length).flatten()
        shown = torch.arange(self.own, self.own + (self.demonstrated if demonstrations else 0), device=own.device)
        return torch.cat([own, shown])
