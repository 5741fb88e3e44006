"""Advantages of stretches against a naive loop, the agent's probabilities, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignlab.align.trajectories.control import make_task
from alignlab.align.trajectories.policy import Agent, RunningScale, evaluate_agent
from alignlab.align.trajectories.policy_training import PPOSettings, Rollout, advantages_of, train_agent
from alignlab.core.errors import ConfigError, TrainingError
from alignlab.core.rng import torch_generator


def naive(rollout: Rollout, rewards: np.ndarray, values: np.ndarray, following: np.ndarray, g: float, lam: float):  # type: ignore[no-untyped-def]
    """Schulman et al. 2016, eq. 16, step by step: an end is worth 0 more, a cut and the last step what follows."""
    out = np.zeros_like(rewards)
    for copy in range(rewards.shape[1]):
        after = 0.0
        for t in reversed(range(rewards.shape[0])):
            over, cut = rollout.terminated[t, copy], rollout.truncated[t, copy]
            if over or cut:
                after = 0.0
            delta = rewards[t, copy] + (0.0 if over else g * following[t, copy]) - values[t, copy]
            after = delta + g * lam * after
            out[t, copy] = after
    return out


@pytest.mark.parametrize("ends", [0.0, 0.15, 1.0])
def test_advantages_are_those_of_the_definition(ends: float) -> None:
    rng, shape = np.random.default_rng(1), (13, 5)
    over = rng.random(shape) < ends / 2
    rollout = Rollout(
        np.zeros((*shape, 2)), np.zeros((*shape, 2)), torch.zeros(shape), torch.zeros(shape), np.zeros(shape),
        over, (rng.random(shape) < ends) & ~over,
    )  # fmt: skip
    rewards, values, following = (rng.normal(size=shape) for _ in range(3))
    # What follows a step that ended nothing is the value of the next one.
    going_on = ~(rollout.terminated | rollout.truncated)[:-1]
    following[:-1][going_on] = values[1:][going_on]
    parts = [torch.from_numpy(part) for part in (rewards, values, following)]
    advantages, returns = advantages_of(rollout, *parts, 0.9, 0.8)
    expected = naive(rollout, rewards, values, following, 0.9, 0.8)
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), expected + values, atol=1e-12)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_probabilities_and_entropy_of_actions(name: str) -> None:
    task = make_task(name, 6)
    policy = Agent(task, seed=2).policy
    with torch.no_grad():
        policy.log_deviation.fill_(-0.3)
        policy.actor[-1].weight.mul_(100)
        seen = torch.randn(6, task.observation_size, generator=torch_generator(0))
        actions, drawn = policy.act(seen, torch_generator(1))
        logprobs, entropy = policy.logprobs(seen, actions)
        out = policy.actor(seen)
    kind = (
        torch.distributions.Categorical(logits=out) if task.actions else torch.distributions.Normal(out, np.exp(-0.3))
    )
    expected, spread = kind.log_prob(actions), kind.entropy()
    if not task.actions:
        expected, spread = expected.sum(-1), spread.sum(-1)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(drawn, expected)
    torch.testing.assert_close(entropy, spread)


def test_the_running_scale_is_that_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal([1.0, -3.0], [2.0, 0.1], size=(50, 2))
    scale = RunningScale(2)
    for part in np.split(rows, [3, 20]):
        scale.see(part)
    np.testing.assert_allclose(scale.mean, rows.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(scale.variance, rows.var(axis=0), atol=1e-4)


def test_same_seed_same_agent_and_it_learns() -> None:
    """3,000 steps raise CartPole's return; random actions get about 22."""
    settings = PPOSettings(copies=16, horizon=32, epochs=4, batch_size=128)
    found = []
    for _ in range(2):
        task = make_task("CartPole-v1", 16, seed=4)
        agent = Agent(task, seed=4)
        taken = train_agent(task, agent, settings, steps=3000, reward_of=lambda rollout: rollout.rewards, seed=4)
        found.append(evaluate_agent(agent, "CartPole-v1", episodes=20, seed=1))
    assert taken == 3072
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0].mean() > 45
    assert 15 < evaluate_agent(None, "CartPole-v1", episodes=200, seed=1).mean() < 30


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"gamma is 1\.5"):
        PPOSettings(gamma=1.5)
    task = make_task("Pendulum-v1", 2)
    settings = PPOSettings(copies=2, horizon=4)
    with pytest.raises(TrainingError, match="a reward after 0 steps is not finite"):
        train_agent(task, Agent(task), settings, steps=8, reward_of=lambda rollout: rollout.rewards * np.nan)
