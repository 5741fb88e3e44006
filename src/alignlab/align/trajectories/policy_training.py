"""Proximal policy optimisation (Schulman et al. 2017) on many copies of a control task: one loop.

Christiano et al. 2017 train with TRPO on MuJoCo and A2C on Atari; PPO is their successor and needs less code. Where the
reward comes from is an argument, so that the loop is the same with the task's own reward and with a learned one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignlab.align.advantages import gae
from alignlab.align.losses import ppo_policy_loss, ppo_value_loss
from alignlab.align.trajectories.control import ControlTask
from alignlab.align.trajectories.policy import Agent
from alignlab.core.config import require
from alignlab.core.errors import TrainingError
from alignlab.core.rng import derive_seed, torch_generator


@dataclass(frozen=True)
class PPOSettings:
    """How the agent learns; the defaults solve CartPole-v1."""

    copies: int = 32
    """Copies of the task that are stepped together."""
    horizon: int = 32
    """Steps of each copy between updates."""
    epochs: int = 10
    """Passes over them."""
    batch_size: int = 256
    """Steps per gradient step."""
    learning_rate: float = 1e-3
    """Falls to 0 in a straight line."""
    gamma: float = 0.98
    """Discount of a step."""
    lam: float = 0.9
    """Lambda of generalised advantage estimation."""
    clip: float = 0.2
    """The ratio of probabilities counts up to 1 ± this."""
    entropy: float = 0.0
    """Weight of the entropy, which keeps the policy trying."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    max_norm: float = 0.5
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        for name in ("copies", "horizon", "epochs", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        for name in ("learning_rate", "clip", "max_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in ("gamma", "lam"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in [0, 1]")


@dataclass
class Rollout:
    """What the agent did between two updates, time first: (horizon, copies, ...)."""

    observations: np.ndarray
    final: np.ndarray
    """What each action led to, before any reset."""
    actions: Tensor
    logprobs: Tensor
    rewards: np.ndarray
    """The task's own."""
    terminated: np.ndarray
    truncated: np.ndarray

    def one_hot(self, actions: int) -> np.ndarray:
        """The actions as vectors: one-hot where they are numbers, else clipped to [-1, 1] as the task does."""
        taken = self.actions.numpy()
        return np.eye(actions)[taken] if actions else np.clip(taken, -1.0, 1.0)


RewardOf = Callable[[Rollout], np.ndarray]
"""The reward (horizon, copies) of a rollout; called once after each, when it may also learn from it."""


def train_agent(
    task: ControlTask,
    agent: Agent,
    settings: PPOSettings,
    *,
    steps: int,
    reward_of: RewardOf,
    report: Callable[[int], None] | None = None,
    seed: int = 0,
) -> int:
    """Train for `steps` steps of the task (all copies together, rounded up to whole rollouts); the steps taken.

    `report` is called with the steps so far after every update. Raises TrainingError where a reward is not finite.
    """
    policy = agent.policy
    generator = torch_generator(derive_seed(seed, "ppo"))
    optimiser = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate, eps=1e-5, fused=True)
    per_rollout = settings.copies * settings.horizon
    updates = max(1, -(-steps // per_rollout))
    observations = task.reset()
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * (1 - update / updates)
        rollout, observations = collect(task, agent, observations, settings.horizon, generator)
        rewards = torch.from_numpy(np.asarray(reward_of(rollout), dtype=np.float32))
        if not bool(torch.isfinite(rewards).all()):
            raise TrainingError(f"a reward after {update * per_rollout} steps is not finite")
        seen, ahead = agent.scale(rollout.observations), agent.scale(rollout.final)
        with torch.no_grad():
            values, following = policy.values(seen), policy.values(ahead)
        advantages, returns = advantages_of(rollout, rewards, values, following, settings.gamma, settings.lam)
        flat = [part.flatten(0, 1) for part in (seen, rollout.actions, rollout.logprobs, advantages, returns, values)]
        for _ in range(settings.epochs):
            for chosen in torch.randperm(per_rollout, generator=generator).split(settings.batch_size):
                loss = ppo_loss(agent, [part[chosen] for part in flat], settings)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_norm)
                optimiser.step()
        agent.scale.see(rollout.observations)
        if report is not None:
            report((update + 1) * per_rollout)
    return updates * per_rollout


@torch.inference_mode()
def collect(
    task: ControlTask, agent: Agent, observations: np.ndarray, horizon: int, generator: torch.Generator
) -> tuple[Rollout, np.ndarray]:
    """`horizon` steps of every copy under the policy, from `observations`; also where they stand then."""
    seen, steps, actions, logprobs = [], [], [], []
    for _ in range(horizon):
        chosen, logprob = agent.policy.act(agent.scale(observations), generator)
        step = task.step(chosen.numpy())
        seen.append(observations)
        steps.append(step)
        actions.append(chosen)
        logprobs.append(logprob)
        observations = step.observations
    rollout = Rollout(
        np.stack(seen),
        np.stack([step.final for step in steps]),
        torch.stack(actions).clone(),
        torch.stack(logprobs).clone(),
        np.stack([step.rewards for step in steps]),
        np.stack([step.terminated for step in steps]),
        np.stack([step.truncated for step in steps]),
    )
    return rollout, observations


def advantages_of(
    rollout: Rollout,
    rewards: Float[Tensor, "time copies"],
    values: Float[Tensor, "time copies"],
    following: Float[Tensor, "time copies"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "time copies"], Float[Tensor, "time copies"]]:
    """(advantages, returns) of a rollout; `following` is the value of where each action led, before any reset.

    An end that the task means is worth nothing more. Where time ran out, or the rollout does, what would have followed
    counts with its value, discounted, in the reward of the last step (Pardo et al. 2018). Every stretch between two
    ends is then an episode of its own.
    """
    ends = torch.from_numpy(rollout.terminated | rollout.truncated)
    last = ends.clone()
    last[-1] = True
    cut = last & ~torch.from_numpy(rollout.terminated)
    rewards = rewards + gamma * torch.where(cut, following, torch.zeros_like(following))
    row, column = stretches(last)
    shape = (int(row.max()) + 1, int(column.max()) + 1)
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[row, column] = True
    laid = [part.new_zeros(shape).index_put((row, column), part) for part in (rewards, values)]
    advantages, returns = gae(laid[0], laid[1], inside, gamma, lam)
    return advantages[row, column], returns[row, column]


def stretches(last: Bool[Tensor, "time copies"]) -> tuple[Tensor, Tensor]:
    """For each step, which stretch of one episode it is in (counted copy by copy) and the place in it from 0."""
    horizon, copies = last.shape
    begins = torch.ones_like(last)
    begins[1:] = last[:-1]
    row = begins.T.flatten().cumsum(0).view(copies, horizon).T - 1
    times = torch.arange(horizon)[:, None].expand(horizon, copies)
    began = torch.where(begins, times, torch.zeros_like(times)).cummax(dim=0).values
    return row, times - began


def ppo_loss(agent: Agent, batch: list[Tensor], settings: PPOSettings) -> Tensor:
    """Clipped surrogate, value error and entropy of a batch of steps, whose advantages are whitened together."""
    seen, actions, before, advantages, returns, values = batch
    advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    logprobs, entropy = agent.policy.logprobs(seen, actions)
    every = torch.ones(1, len(seen), dtype=torch.bool)
    surrogate = ppo_policy_loss(logprobs[None], before[None], advantages[None], every, clip=settings.clip)
    found = agent.policy.values(seen)
    error = ppo_value_loss(found[None], values[None], returns[None], every, clip=None)
    return surrogate.loss + settings.value_weight * error.loss - settings.entropy * entropy.mean()
