"""The tasks as arrays equal gymnasium step for step; ends, time limits and resets; other tasks through gymnasium."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alignlab.align.trajectories.control import REST, CartPole, Pendulum, make_task
from alignlab.align.trajectories.gym_tasks import GymTask
from alignlab.core.errors import ConfigError

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'alignlab[rl]'")


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_step_for_step_like_gymnasium(name: str) -> None:
    """400 steps of 3 copies, ends and time limits included, each new episode begun in the same state."""
    rng, copies = np.random.default_rng(0), 3
    ours = make_task(name, copies, seed=1)
    ours.reset()
    theirs = [gymnasium.make(name) for _ in range(copies)]
    for i, env in enumerate(theirs):
        env.reset(seed=i)
        env.unwrapped.state = ours.states[i].copy()
    ends = 0
    for t in range(400):
        if ours.actions:
            # Mostly what keeps the pole up, so that episodes are of many lengths.
            taken = np.where(rng.random(copies) < 0.6, ours.states[:, 2] + ours.states[:, 3] > 0, t % 2 == 0).astype(
                int
            )
        else:
            taken = rng.uniform(-1.3, 1.3, size=(copies, 1))
        step = ours.step(taken)
        for i, env in enumerate(theirs):
            action = int(taken[i]) if ours.actions else (2.0 * taken[i]).astype(np.float64)
            observation, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_allclose(step.final[i], observation, rtol=1e-5, atol=1e-6)
            assert step.rewards[i] == pytest.approx(reward, abs=1e-9)
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated and not terminated)
            if terminated or truncated:
                ends += 1
                env.reset()
                env.unwrapped.state = ours.states[i].copy()
                np.testing.assert_array_equal(step.observations[i], ours._observe(ours.states)[i])
            else:
                np.testing.assert_array_equal(step.observations[i], step.final[i])
    assert ends >= 3


def test_the_time_limit_cuts_and_does_not_end() -> None:
    task = CartPole(1)
    task.reset()
    for t in range(500):
        task.states[:] = 0.0  # held upright
        step = task.step(np.array([t % 2]))
        assert bool(step.truncated[0]) == (t == 499)
        assert not step.terminated[0]


@pytest.mark.parametrize("kind", [CartPole, lambda n, continuing: GymTask("CartPole-v1", n, continuing=continuing)])
def test_continuing_takes_the_ends_away_and_rests_where_they_were(kind: Any) -> None:
    task = kind(2, continuing=True)
    task.reset()
    if isinstance(task, CartPole):
        task.states[0] = [0.0, 0.0, 0.3, 0.0]
    else:
        task._copies[0].unwrapped.state = np.array([0.0, 0.0, 0.3, 0.0])
    first = task.step(np.array([1, 1]))
    assert abs(first.final[0, 2]) > CartPole.ANGLE
    rewards = [first.rewards[0]]
    for t in range(REST + 1):
        step = task.step(np.array([t % 2, t % 2]))
        assert not step.terminated.any()
        assert not step.truncated.any()
        rewards.append(step.rewards[0])
        if t < REST:
            np.testing.assert_array_equal(step.final[0], first.final[0])
        if t == REST - 1:
            assert abs(step.observations[0]).max() <= 0.05  # begun anew
    assert rewards == [1.0] + [0.0] * REST + [1.0]


def test_starts_are_drawn_as_gymnasium_draws_them() -> None:
    """Uniform on gymnasium's ranges: the mean of 4000 is within 5 standard errors (false alarms: 1 in 10^6)."""
    for kind, high in ((CartPole, np.full(4, 0.05)), (Pendulum, np.array([np.pi, 1.0]))):
        task = kind(4000, seed=3)
        task.reset()
        assert (np.abs(task.states) <= high).all()
        assert (np.abs(task.states.mean(axis=0)) < 5 * high / np.sqrt(3 * 4000)).all()
        assert (task.states.max(axis=0) > 0.99 * high).all()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_adapter_to_gymnasium_does_the_same(name: str) -> None:
    ours, theirs = make_task(name, 2, seed=5), GymTask(name, 2, seed=5)
    theirs.reset()
    ours.reset()
    for i, copy in enumerate(theirs._copies):
        copy.unwrapped.state = ours.states[i].copy()
    assert (ours.observation_size, ours.actions, ours.action_size, ours.time_limit) == (
        theirs.observation_size, theirs.actions, theirs.action_size, theirs.time_limit,
    )  # fmt: skip
    for _ in range(8):
        taken = np.array([1, 0]) if ours.actions else np.array([[1.7], [-0.4]])
        one, other = ours.step(taken), theirs.step(taken)
        np.testing.assert_allclose(one.final, other.final, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.rewards, other.rewards, rtol=1e-6)


def test_another_task_of_gymnasium() -> None:
    task = make_task("Acrobot-v1", 2, seed=0, continuing=True)
    assert task.reset().shape == (2, 6)
    for _ in range(500):
        step = task.step(np.array([0, 2]))
    assert step.truncated.all()
    assert not step.terminated.any()


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="env is 'CartPoel-v1', allowed: a task that gymnasium can make"):
        make_task("CartPoel-v1", 1)
    with pytest.raises(ConfigError, match="which shows Discrete"):
        make_task("FrozenLake-v1", 1)
    with pytest.raises(ConfigError, match="n is 0"):
        CartPole(0)
