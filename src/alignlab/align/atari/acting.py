"""What every copy of a game shows, what the agent does there, and what it takes that to be worth."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from alignlab.align.atari.agent import Agent
from alignlab.align.atari.clip_reward import ClipReward
from alignlab.align.atari.networks import STACK
from alignlab.core.cuda_graphs import Replayed


class LatestFrames:
    """The four latest frames of every copy; an episode's first frame stands for those before it."""

    def __init__(self, copies: int, size: int, device: torch.device | str) -> None:
        self.frames = torch.zeros(copies, size, size, dtype=torch.uint8, device=device)
        self.first = torch.ones(copies, dtype=torch.bool, device=device)
        self.stacks = torch.zeros(copies, STACK, size, size, dtype=torch.uint8, device=device)

    def take(self, frames: NDArray[np.uint8], first: NDArray[np.bool_]) -> None:
        """What is shown now, and where it begins an episode."""
        self.frames.copy_(torch.from_numpy(frames))
        self.first.copy_(torch.from_numpy(first))

    def look(self) -> UInt8[Tensor, "copies 4 size size"]:
        """The stacks with what was taken last at their end, moved where they are."""
        moved = torch.cat([self.stacks[:, 1:], self.frames[:, None]], dim=1)
        self.stacks.copy_(torch.where(self.first[:, None, None, None], self.frames[:, None], moved))
        return self.stacks


class Acting:
    """An agent before all copies of a game: one piece of work a step, recorded on a GPU."""

    def __init__(
        self, agent: Agent, copies: int, size: int, shares: Float[Tensor, " copies"], device: torch.device | str
    ) -> None:
        self.agent, self.shares = agent, shares
        self.latest = LatestFrames(copies, size, device)
        self.learned = torch.zeros(copies, device=device)
        self._work: dict[ClipReward | None, Replayed] = {}

    def choose(self, reward: ClipReward | None = None) -> Int[Tensor, " copies"]:
        """The actions for what was taken last; `learned` becomes its reward, where there is a model of it."""
        if reward not in self._work:
            self._work[reward] = Replayed(
                lambda: self._choose(reward), self.learned.device, generators=[self.agent.generator]
            )
        return self._work[reward]()

    def _choose(self, reward: ClipReward | None) -> Int[Tensor, " copies"]:
        stacks = self.latest.look()
        if reward is not None:
            self.learned.copy_(reward.rewards(stacks))
        return self.agent.act(stacks, self.shares)
