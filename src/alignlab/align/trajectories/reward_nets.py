"""Reward networks over clips: an ensemble fitted to comparisons (Christiano et al. 2017, sections 2.2.1 and 2.2.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from alignlab.align.reward.losses import preference_losses
from alignlab.align.trajectories.segments import Comparisons, Segments
from alignlab.core.config import require
from alignlab.core.rng import derive_seed, numpy_generator, torch_generator

RATIO = (1.1, 1.5)
"""Validation loss over training loss that the L2 penalty is steered to (appendix A.1)."""
SLOPE = 0.01
"""Of the leaky ReLU below zero (appendix A.1)."""


@dataclass(frozen=True)
class RewardSettings:
    """The networks and how they are fitted."""

    members: int = 3
    """Networks of the ensemble."""
    hidden: int = 64
    """Units of each of two hidden layers."""
    uniform: float = 0.1
    """Share of answers taken to be drawn at random, without a look (section 2.2.1)."""
    learning_rate: float = 3e-3
    """Of Adam."""
    batch_size: int = 32
    """Comparisons per gradient step."""
    steps: int = 100
    """Gradient steps after every round of questions."""
    penalty: float = 1e-4
    """L2 penalty to begin with; it is adapted to the ratio of validation and training loss."""

    def __post_init__(self) -> None:
        for name in ("members", "hidden", "batch_size", "steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        require(0 <= self.uniform < 1, "uniform", self.uniform, "a number from 0 to below 1")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a positive number")
        require(self.penalty >= 0, "penalty", self.penalty, "0 or a positive number")


class RewardNets(nn.Module):
    """An ensemble of networks from observation and action to a reward, computed side by side.

    Comparisons leave scale and shift of a reward open: each member is normalised on the clips it was fitted to, to mean
    0 and deviation 1 a step, and then the members are averaged.
    """

    def __init__(self, size: int, settings: RewardSettings | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings or RewardSettings()
        members, hidden = self.settings.members, self.settings.hidden
        generator = torch_generator(derive_seed(seed, "reward nets"))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inside, outside in ((size, hidden), (hidden, hidden), (hidden, 1)):
            bound = 1 / math.sqrt(inside)
            drawn = torch.rand(members, inside, outside, generator=generator)
            self.weights.append(nn.Parameter((2 * drawn - 1) * bound))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, outside)))
        self.input_mean, self.input_scale = torch.zeros(size), torch.ones(size)
        self.output_mean, self.output_scale = torch.zeros(members, 1), torch.ones(members, 1)
        self.penalties = torch.full((members,), self.settings.penalty)
        self.optimiser = torch.optim.Adam(self.parameters(), lr=self.settings.learning_rate, fused=True)
        self._draws = numpy_generator(derive_seed(seed, "bootstrap"))
        self._order = torch_generator(derive_seed(seed, "order"))
        self._counts = np.zeros((members, 0), dtype=np.int64)

    def forward(self, inputs: Float[Tensor, "... size"]) -> Float[Tensor, "members ..."]:
        """Rewards of single steps, as each member has them, not normalised."""
        shape = inputs.shape[:-1]
        hidden = ((inputs.reshape(-1, inputs.shape[-1]) - self.input_mean) / self.input_scale).expand(
            self.settings.members, -1, -1
        )
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if i < len(self.weights) - 1:
                hidden = F.leaky_relu(hidden, SLOPE)
        return hidden.reshape(self.settings.members, *shape)

    def sums(self, clips: Segments) -> Float[Tensor, "members clips"]:
        """Reward of each clip: the sum over its steps, as each member has it."""
        return self(_tensor(clips.inputs)).sum(dim=-1)

    @torch.no_grad()
    def probabilities(self, first: Segments, second: Segments) -> Float[Tensor, "members pairs"]:
        """That the first of each pair is preferred, as each member has it (equation 1)."""
        return torch.sigmoid(self.sums(first) - self.sums(second))

    @torch.no_grad()
    def rewards(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """The normalised reward of steps (..., size), averaged over the members: what the agent learns from."""
        found = self(_tensor(inputs)).flatten(1)
        normal = (found - self.output_mean) / self.output_scale
        return normal.mean(dim=0).reshape(inputs.shape[:-1]).double().numpy()

    def fit(self, data: Comparisons, *, steps: int | None = None) -> tuple[float, float]:
        """Go on fitting to all comparisons so far; (training loss, validation loss), mean over members, in nats
        above the entropy of the labels.

        `data` must begin with what the last call had: each member draws how often a new comparison counts for it once,
        from Poisson(1), which makes a bootstrap sample that can grow (Oza & Russell 2001). The share 1/e that it draws
        no times is what it is validated on, the share that the paper holds out.
        """
        self._grow(len(data))
        self._see(data)
        first, second, labels = _tensor(data.first.inputs), _tensor(data.second.inputs), _tensor(data.labels)
        counts = torch.from_numpy(self._counts).float()
        batch = min(self.settings.batch_size, len(data))
        for _ in range(self.settings.steps if steps is None else steps):
            chosen = torch.randint(len(data), (batch,), generator=self._order)
            weight = counts[:, chosen]
            losses = self._losses(first[chosen], second[chosen], labels[chosen])
            loss = ((losses * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)).sum()
            loss = loss + (self.penalties * self._squares()).sum()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
        train, held = self._measure(first, second, labels, counts)
        self._adapt(train, held)
        self._normalise(torch.cat([first, second]))
        return float(train.mean()), float(held.nanmean())

    def _losses(self, first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
        """(members, pairs): equation 1's cross-entropy, a share of the answers being uniform."""
        both = self(torch.cat([first, second])).sum(dim=-1)
        difference = both[:, : len(first)] - both[:, len(first) :]
        # An answer drawn at random is wrong half the time.
        return preference_losses(difference, labels, flip_rate=self.settings.uniform / 2, noise="mixture")

    def _squares(self) -> Tensor:
        return torch.stack([weight.pow(2).sum(dim=(1, 2)) for weight in self.weights]).sum(dim=0)

    @torch.no_grad()
    def _measure(self, first: Tensor, second: Tensor, labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Training and validation loss of each member, less what no reward could avoid: the log 2 of each tie, which
        would hide how much is fitted too closely."""
        losses = self._losses(first, second, labels) - torch.special.entr(labels) - torch.special.entr(1 - labels)
        held = (counts == 0).float()
        train = (losses * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
        return train, (losses * held).sum(dim=1) / held.sum(dim=1)  # NaN where nothing is held out

    def _adapt(self, train: Tensor, held: Tensor) -> None:
        """More penalty where the validation loss is far above the training loss, less where it is hardly above."""
        ratio = held / train
        factor = torch.where(ratio > RATIO[1], 1.5, torch.where(ratio < RATIO[0], 1 / 1.5, 1.0))
        self.penalties = (self.penalties * factor).clamp(1e-7, 1e-1)

    def _grow(self, size: int) -> None:
        more = self._draws.poisson(1.0, size=(size - self._counts.shape[1], self.settings.members)).T
        self._counts = np.concatenate([self._counts, more], axis=1)

    def _see(self, data: Comparisons) -> None:
        rows = np.concatenate([data.first.inputs, data.second.inputs]).reshape(-1, data.first.inputs.shape[-1])
        self.input_mean = _tensor(rows.mean(axis=0))
        self.input_scale = _tensor(rows.std(axis=0) + 1e-3)

    @torch.no_grad()
    def _normalise(self, clips: Tensor) -> None:
        found = self(clips).flatten(1)
        self.output_mean = found.mean(dim=1, keepdim=True)
        self.output_scale = found.std(dim=1, keepdim=True) + 1e-8


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
