"""The reward model: a network over frames, fitted to which of two clips is preferred (Ibarz et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from alignlab.align.atari.networks import STACK, FrameReward, drawn
from alignlab.align.atari.replay import Replay
from alignlab.align.reward.losses import preference_losses
from alignlab.align.trajectories.segments import Segments
from alignlab.core.config import require
from alignlab.core.errors import DataError, FeedbackError, TrainingError
from alignlab.core.rng import derive_seed, torch_generator


@dataclass(frozen=True)
class ClipRewardSettings:
    """The reward model and how it is fitted."""

    width: int = 16
    """Filters of each convolution."""
    uniform: float = 0.1
    """Share of answers taken to be drawn at random, without a look."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 1e-3
    """Of AdamW."""
    batch_size: int = 16
    """Comparisons of an update."""
    first_updates: int = 1000
    """Updates after the first round of questions."""
    updates: int = 200
    """Updates after every later round."""
    shift: int = 4
    """Most pixels, up or down and left or right, by which the clips of an update are moved at random."""
    scale: float = 0.2
    """Deviation a step that the reward is brought to before the agent learns from it; its mean is brought to 0."""

    def __post_init__(self) -> None:
        for name in ("width", "batch_size", "first_updates", "updates"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        require(0 <= self.uniform < 1, "uniform", self.uniform, "a number from 0 to below 1")
        for name in ("learning_rate", "scale"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or a positive number")
        require(self.shift >= 0, "shift", self.shift, "0 or a positive whole number")


@dataclass(frozen=True)
class Clips:
    """Stretches of play on the device, each with the frames before its first step that are seen there."""

    frames: UInt8[Tensor, "clips frames size size"]
    """STACK - 1 frames more than steps."""
    rewards: Float[Tensor, "clips steps"]
    """The game's own, which only the teacher may look at."""

    def __len__(self) -> int:
        return len(self.frames)

    def segments(self) -> Segments:
        """As a teacher takes them: with the game's reward of every step."""
        rewards = self.rewards.double().cpu().numpy()
        return Segments(np.zeros((*rewards.shape, 0)), rewards)

    def pick(self, index: Tensor) -> Clips:
        """Those of these numbers."""
        return Clips(self.frames[index], self.rewards[index])

    @classmethod
    def join(cls, parts: list[Clips]) -> Clips:
        """All in a row."""
        return cls(torch.cat([p.frames for p in parts]), torch.cat([p.rewards for p in parts]))


def draw_clips(
    replay: Replay, slots: Int[Tensor, " slots"], count: int, length: int, generator: torch.Generator
) -> Clips:
    """`count` clips of `length` steps that begin at some of `slots` and run over no end of an episode.

    `slots` are stretches in order of time, as `Replay.filled` gives them. DataError where none is long enough.
    """
    begins = slots[: max(len(slots) - length + 1, 0)]
    if len(begins):
        ends = torch.cat([torch.zeros(1, device=slots.device), replay.ends[slots].float().cumsum(0)])
        # An end may be a clip's last step; a stretch must not jump from one ring to the next.
        inside = ends[length - 1 : length - 1 + len(begins)] - ends[: len(begins)]
        whole = (inside == 0) & (replay.move(begins, length - 1) == slots[length - 1 :])
        begins = begins[whole]
    if not len(begins):
        raise DataError(f"no stretch between two ends of an episode has {length} steps, the length of a clip")
    chosen = begins[torch.randint(len(begins), (count,), generator=generator, device=begins.device)]
    steps = replay.move(chosen[:, None], torch.arange(length, device=chosen.device))
    seen = torch.cat([replay.earlier(chosen)[:, :-1], steps], dim=1)
    return Clips(replay.frames[seen], replay.true_rewards[steps])


class ClipReward:
    """A reward of single steps, learned from comparisons of clips; the agent sees it at mean 0, scaled."""

    def __init__(
        self, settings: ClipRewardSettings, *, size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.settings = settings
        net = FrameReward(size=size, width=settings.width)
        self.net = drawn(net, derive_seed(seed, "clip reward")).to(device)
        self.mean, self.deviation = torch.zeros((), device=device), torch.ones((), device=device)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.generator = torch_generator(derive_seed(seed, "clip order"), device)
        self._shifts = torch_generator(derive_seed(seed, "shifts"))
        self._first: list[Clips] = []
        self._second: list[Clips] = []
        self.labels: NDArray[np.float64] = np.zeros(0)
        self._fitted = False

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, first: Clips, second: Clips, labels: NDArray[np.float64]) -> None:
        """Keep answers: preference for the first, 0.5 for a tie; NaN, where nothing was said, is left out."""
        said = torch.from_numpy(np.flatnonzero(~np.isnan(labels))).to(first.frames.device)
        if len(said):
            self._first.append(first.pick(said))
            self._second.append(second.pick(said))
            self.labels = np.concatenate([self.labels, labels[~np.isnan(labels)]])

    def sums(self, clips: Clips) -> Float[Tensor, " clips"]:
        """Reward of each clip, not normalised: the sum over its steps."""
        count, frames, size = clips.frames.shape[:3]
        stacks = clips.frames.unfold(1, STACK, 1).permute(0, 1, 4, 2, 3)
        return self.net(stacks.reshape(-1, STACK, size, size)).reshape(count, frames - STACK + 1).sum(dim=1)

    def fit(self) -> float:
        """Go on fitting to all comparisons so far; the mean loss of the last tenth of the updates.

        FeedbackError where there is none, TrainingError for a loss that is no number.
        """
        if not len(self):
            raise FeedbackError("the teacher said nothing of the first pairs, there is no reward to learn")
        first, second = Clips.join(self._first), Clips.join(self._second)
        self._first, self._second = [first], [second]
        labels = torch.from_numpy(self.labels).float().to(first.frames.device)
        count = self.settings.updates if self._fitted else self.settings.first_updates
        self._fitted = True
        batch, shift, losses = min(self.settings.batch_size, len(labels)), self.settings.shift, []
        for _ in range(count):
            chosen = torch.randint(len(labels), (batch,), generator=self.generator, device=labels.device)
            down, right = torch.randint(-shift, shift + 1, (2,), generator=self._shifts).tolist()
            both = Clips.join([first.pick(chosen), second.pick(chosen)])
            pair = self.sums(Clips(both.frames.roll((down, right), (2, 3)), both.rewards))
            difference = pair[:batch] - pair[batch:]
            # An answer drawn at random is wrong half the time.
            loss = preference_losses(
                difference, labels[chosen], flip_rate=self.settings.uniform / 2, noise="mixture"
            ).mean()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            losses.append(loss.detach())
        found = float(torch.stack(losses[-max(1, count // 10) :]).mean())
        if not np.isfinite(found):
            raise TrainingError(f"the reward model's loss is {found}, try a lower learning rate")
        return found

    @torch.no_grad()
    def rewards(self, stacks: UInt8[Tensor, "batch 4 size size"]) -> Float[Tensor, " batch"]:
        """As the agent learns from them."""
        return (self.net(stacks) - self.mean) / self.deviation * self.settings.scale

    @torch.no_grad()
    def relabel(self, replay: Replay, *, at_a_time: int = 4096) -> None:
        """Bring the reward of all that is kept to mean 0 and the deviation asked for, and write it there anew."""
        slots = replay.filled()
        found = torch.cat([self.net(replay.stacks(part)) for part in slots.split(at_a_time)])
        self.mean.copy_(found.mean())  # where they are: `rewards` may be part of a recorded graph
        self.deviation.copy_(found.std() + 1e-8)
        replay.learned_rewards[slots] = (found - self.mean) / self.deviation * self.settings.scale
