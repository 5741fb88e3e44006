"""The two networks: action values of an agent, and the reward of what is seen. Both look at four frames."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from alignlab.core.rng import torch_generator

Net = TypeVar("Net", bound=nn.Module)
STACK = 4
"""Frames that an agent sees at once."""
MOTION = 10.0
"""By how much the reward model sees differences between frames larger than the frames themselves."""


def as_input(stacks: UInt8[Tensor, "batch 4 height width"]) -> Float[Tensor, "batch 4 height width"]:
    """Grey levels from 0 to 1; channels last, which is how convolutions are fast."""
    return stacks.to(torch.float32, memory_format=torch.channels_last).div_(255.0)


class ActionValues(nn.Module):
    """Three convolutions (Mnih et al. 2015), a duelling head: value plus advantage less its mean (Wang et al. 2016)."""

    def __init__(self, actions: int, *, size: int = 84, width: int = 32, hidden: int = 512) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(STACK, width, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            inside = self.trunk(torch.zeros(1, STACK, size, size)).shape[1]
        self.hidden = nn.Linear(inside, 2 * hidden)
        self.value, self.advantage = nn.Linear(hidden, 1), nn.Linear(hidden, actions)

    def forward(self, stacks: UInt8[Tensor, "batch 4 height width"]) -> Float[Tensor, "batch actions"]:
        """Q(s, .)."""
        value, advantage = self.hidden(self.trunk(as_input(stacks))).relu().chunk(2, dim=1)
        advantages = self.advantage(advantage)
        return self.value(value) + advantages - advantages.mean(dim=1, keepdim=True)


class FrameReward(nn.Module):
    """Four convolutions and a layer of 64 units (after Christiano et al. 2017, appendix A): one number a stack.

    Without their batch normalisation and dropout; clips are shifted at random instead (`ClipRewardSettings.shift`).
    It sees the latest frame and the three differences between frames: a point is scored by what moves, which is a few
    pixels of a still picture.
    """

    def __init__(self, *, size: int = 84, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, kernel, stride, edge in ((STACK, 7, 3, 0), (width, 5, 2, 0), (width, 3, 1, 1), (width, 3, 1, 1)):
            layers += [nn.Conv2d(inside, width, kernel, stride=stride, padding=edge), nn.LeakyReLU(0.01)]
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            inside = self.trunk(torch.zeros(1, STACK, size, size)).shape[1]
        self.head = nn.Sequential(nn.Linear(inside, 64), nn.LeakyReLU(0.01), nn.Linear(64, 1))

    def forward(self, stacks: UInt8[Tensor, "batch 4 height width"]) -> Float[Tensor, " batch"]:
        """Reward of each stack, not normalised."""
        frames = as_input(stacks)
        seen = torch.cat([frames[:, -1:], MOTION * frames.diff(dim=1)], dim=1)
        found: Tensor = self.head(self.trunk(seen)).squeeze(1)
        return found


@torch.no_grad()
def drawn(net: Net, seed: int) -> Net:
    """The network with weights and biases drawn from the seed, uniformly within 1 / sqrt(inputs of a unit)."""
    generator = torch_generator(seed)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for weights in layer.parameters():
                weights.uniform_(-bound, bound, generator=generator)
    return net
