"""The agent: double deep Q-learning with a duelling network, n steps, priorities and an expert's margin."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from alignlab.align.atari.losses import double_q_targets, margin_losses, td_losses
from alignlab.align.atari.networks import ActionValues, drawn
from alignlab.align.atari.replay import Batch, Replay
from alignlab.core.config import require
from alignlab.core.cuda_graphs import Replayed, Work
from alignlab.core.errors import TrainingError
from alignlab.core.rng import derive_seed, torch_generator


@dataclass(frozen=True)
class AgentSettings:
    """The network and how it learns."""

    width: int = 32
    """Filters of the first convolution; the others have twice as many."""
    hidden: int = 512
    """Units behind the value, and behind the advantages."""
    learning_rate: float = 2.5e-4
    """Of Adam."""
    batch_size: int = 128
    """Steps an update learns from."""
    target_every: int = 500
    """Updates after which the target network becomes the agent's."""
    margin: float = 0.5
    """By how much the demonstrated action should be better than any other, in units of value."""
    margin_weight: float = 1.0
    """Of the margin's loss beside the temporal difference's."""
    weight_decay: float = 1e-5
    """Of AdamW, in place of the paper's L2 penalty."""
    clip: float = 10.0
    """Largest norm of a gradient."""
    exploration: tuple[float, float] = (0.4, 0.002)
    """Share of random actions of the most and the least curious copy of the game."""

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "batch_size", "target_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        for name in ("learning_rate", "margin", "clip"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("margin_weight", "weight_decay"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or a positive number")
        require(all(0 < e <= 1 for e in self.exploration), "exploration", self.exploration, "numbers above 0 to 1")

    def random_shares(self, copies: int, device: torch.device | str = "cpu") -> Float[Tensor, " copies"]:
        """Share of random actions of each copy, equally far apart in ratio (Horgan et al. 2018, Ape-X)."""
        most, least = (math.log(share) for share in self.exploration)
        return torch.linspace(most, least, copies, device=device).exp()


class Agent:
    """Action values, their target, and the optimiser."""

    def __init__(
        self, actions: int, settings: AgentSettings, *, size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.actions, self.settings, self.updates = actions, settings, 0
        online = ActionValues(actions, size=size, width=settings.width, hidden=settings.hidden)
        self.online = drawn(online, derive_seed(seed, "action values")).to(device)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.online.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, eps=1e-5,
            fused=True, capturable=torch.device(device).type == "cuda",
        )  # fmt: skip
        self._updates: dict[tuple[Replay, str], Replayed] = {}
        self.generator = torch_generator(derive_seed(seed, "agent"), device)

    @torch.no_grad()
    def act(self, stacks: UInt8[Tensor, "copies 4 size size"], shares: Tensor | float) -> Int[Tensor, " copies"]:
        """The likeliest action of each, or with that chance any."""
        best = self.online(stacks).argmax(dim=1)
        any_action = torch.randint(self.actions, best.shape, generator=self.generator, device=best.device)
        free = torch.rand(best.shape, generator=self.generator, device=best.device) < shares
        return torch.where(free, any_action, best)

    def learn(self, replay: Replay, reward: str) -> Tensor:
        """One update from a batch drawn by priority: temporal differences, and the margin of what was demonstrated."""
        return self._update(replay, reward, lambda: self._learn(replay, reward))

    def imitate(self, replay: Replay) -> Tensor:
        """One update from demonstrated steps by the margin's loss alone: no reward of any kind is looked at."""
        return self._update(replay, "", lambda: self._imitate(replay))

    def _learn(self, replay: Replay, reward: str) -> Tensor:
        batch = replay.draw(self.settings.batch_size, self.generator, reward=reward)
        targets = self.targets(batch)
        values = self.online(batch.stacks)
        chosen = values.gather(1, batch.actions[:, None]).squeeze(1)
        losses = td_losses(chosen, targets)
        if replay.demonstrated:
            margins = margin_losses(values, batch.actions, self.settings.margin)
            losses = losses + self.settings.margin_weight * margins * batch.demonstrated
        loss = (batch.weights * losses).mean()
        self._step(loss)
        replay.set_errors(batch, chosen - targets)
        return loss.detach()

    def _imitate(self, replay: Replay) -> Tensor:
        batch = replay.draw_demonstrations(self.settings.batch_size, self.generator)
        loss = margin_losses(self.online(batch.stacks), batch.actions, self.settings.margin).mean()
        self._step(loss)
        return loss.detach()

    @torch.no_grad()
    def targets(self, batch: Batch) -> Float[Tensor, " batch"]:
        """What the values of a batch are drawn towards."""
        return double_q_targets(batch.returns, batch.discounts, self.online(batch.later), self.target(batch.later))

    def _step(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.online.parameters(), self.settings.clip)
        self.optimiser.step()

    def _update(self, replay: Replay, kind: str, once: Work) -> Tensor:
        """One update; on a GPU the third of its kind is recorded, and this and all later ones are replays."""
        if (replay, kind) not in self._updates:
            self._updates[replay, kind] = Replayed(
                once, self.generator.device, generators=[self.generator], before=self.optimiser.zero_grad
            )
        loss = self._updates[replay, kind]()
        self.updates += 1
        if self.updates % self.settings.target_every == 0:
            self.target.load_state_dict(self.online.state_dict())
        return loss

    def check(self, loss: Tensor) -> float:
        """The loss as a number, asked for now and then since it waits for the device; TrainingError if it is none."""
        number = float(loss)
        if number != number or number in (float("inf"), float("-inf")):
            raise TrainingError(f"the agent's loss is {number} after {self.updates} updates, try a lower learning rate")
        return number
