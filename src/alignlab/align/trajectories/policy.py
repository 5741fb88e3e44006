"""The agent: a small network that acts and one that values, for numbered or for vector actions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from alignlab.align.trajectories.control import ControlTask, FloatArray, make_task
from alignlab.core.rng import torch_generator


class RunningScale:
    """Mean and deviation of the observations seen so far (Welford, in batches); puts new ones on a common scale."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.variance = 1e-4, np.zeros(size), np.ones(size)

    def see(self, rows: FloatArray) -> None:
        """Take rows (..., size) into account."""
        rows = rows.reshape(-1, rows.shape[-1])
        together = self.count + len(rows)
        shift = rows.mean(axis=0) - self.mean
        between = shift**2 * (self.count * len(rows) / together)
        self.variance = (self.variance * self.count + rows.var(axis=0) * len(rows) + between) / together
        self.mean = self.mean + shift * (len(rows) / together)
        self.count = together

    def __call__(self, rows: FloatArray) -> Tensor:
        """The rows in deviations from the mean, at most 10 of them."""
        scaled = (rows - self.mean) / np.sqrt(self.variance + 1e-8)
        return torch.from_numpy(np.clip(scaled, -10.0, 10.0).astype(np.float32))


class ActorCritic(nn.Module):
    """Two multi-layer perceptrons of two hidden tanh layers, orthogonal at the start.

    Numbered actions are drawn from a softmax; vectors from a Gaussian whose deviation does not depend on where it is,
    and are clipped by the task.
    """

    def __init__(self, task: ControlTask, *, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.discrete = task.actions > 0
        generator = torch_generator(seed)
        out = task.actions or task.action_size
        self.actor = _network(task.observation_size, hidden, out, 0.01, generator)
        self.critic = _network(task.observation_size, hidden, 1, 1.0, generator)
        self.log_deviation = nn.Parameter(torch.zeros(task.action_size))

    def values(self, observations: Float[Tensor, "*shape size"]) -> Float[Tensor, "*shape"]:
        """Expected discounted reward from here on."""
        return self.critic(observations).squeeze(-1)

    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Actions drawn for (n, size) observations, and their log-probabilities (n,)."""
        out = self.actor(observations)
        if self.discrete:
            logprobs = out.log_softmax(dim=-1)
            actions = torch.multinomial(logprobs.exp(), 1, generator=generator).squeeze(-1)
            return actions, logprobs.gather(-1, actions[:, None]).squeeze(-1)
        actions = out + self.log_deviation.exp() * torch.randn(out.shape, generator=generator)
        return actions, self._gaussian(out, actions)

    def best(self, observations: Tensor) -> Tensor:
        """The likeliest action."""
        out = self.actor(observations)
        return out.argmax(dim=-1) if self.discrete else out

    def logprobs(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies) of actions, both (n,), in nats."""
        out = self.actor(observations)
        if self.discrete:
            logprobs = out.log_softmax(dim=-1)
            entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
            return logprobs.gather(-1, actions[:, None]).squeeze(-1), entropy
        entropy = (self.log_deviation + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return self._gaussian(out, actions), entropy.expand(len(actions))

    def _gaussian(self, mean: Tensor, actions: Tensor) -> Tensor:
        scaled = (actions - mean) * torch.exp(-self.log_deviation)
        return (-0.5 * scaled**2 - self.log_deviation - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


class Agent:
    """A policy with the scale of what it observes."""

    def __init__(self, task: ControlTask, *, hidden: int = 64, seed: int = 0) -> None:
        self.policy = ActorCritic(task, hidden=hidden, seed=seed)
        self.scale = RunningScale(task.observation_size)

    @torch.inference_mode()
    def best(self, observations: FloatArray) -> NDArray[Any]:
        """The likeliest actions, as a task takes them."""
        return self.policy.best(self.scale(observations)).numpy()


def evaluate_agent(agent: Agent | None, name: str, *, episodes: int, seed: int) -> FloatArray:
    """Returns of whole episodes under the task's own reward, (episodes,), for the likeliest or for random actions.

    Without an agent actions are random. All episodes run side by side and each counts once, the first of its copy.
    """
    task = make_task(name, episodes, seed=seed)
    rng = np.random.default_rng(seed)
    observations, returns = task.reset(), np.zeros(episodes)
    running = np.ones(episodes, dtype=bool)
    while running.any():
        if agent is not None:
            actions = agent.best(observations)
        elif task.actions:
            actions = rng.integers(0, task.actions, size=episodes)
        else:
            actions = rng.uniform(-1, 1, size=(episodes, task.action_size))
        step = task.step(actions)
        returns += np.where(running, step.rewards, 0.0)
        running &= ~(step.terminated | step.truncated)
        observations = step.observations
    return returns


def _network(size: int, hidden: int, out: int, gain: float, generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, outside, scale in ((size, hidden, math.sqrt(2)), (hidden, hidden, math.sqrt(2)), (hidden, out, gain)):
        linear = nn.Linear(inside, outside)
        nn.init.orthogonal_(linear.weight, scale, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])
