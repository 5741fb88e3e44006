"""Control tasks, many copies stepped at once: CartPole-v1 and Pendulum-v1 as arrays, and any other of gymnasium.

The two are the equations of gymnasium's classic control, equal to it step by step (tested), without its overhead of
one Python call per copy. `continuing` is for learned rewards: an episode that ends early says what the task is, and
Christiano et al. 2017 (appendix A) took such ends away. Here whoever ends an episode stays as it is for REST steps,
which earn nothing, and begins anew, unmarked; only the time limit is left. (The paper lets MuJoCo's robots go on and
charges a penalty; a pole that has fallen over does not get up.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alignlab.core.config import require
from alignlab.core.rng import numpy_generator

FloatArray = NDArray[np.float64]
REST = 15
"""Steps that a continuing task rests after what would have ended an episode."""


@dataclass(frozen=True)
class Step:
    """What one action in every copy led to. Copies whose episode ended stand in a new one already."""

    observations: FloatArray
    """(n, d): where the next action is taken."""
    rewards: FloatArray
    """(n,): of the task itself."""
    terminated: NDArray[np.bool_]
    """(n,): the episode ended for good, nothing of value follows."""
    truncated: NDArray[np.bool_]
    """(n,): the time limit cut it; what would have followed still counts."""
    final: FloatArray
    """(n, d): the observation the action led to, before any reset."""


class ControlTask(Protocol):
    """`n` copies of one task."""

    name: str
    n: int
    observation_size: int
    actions: int
    """Discrete actions; 0 where the action is a vector."""
    action_size: int
    """Length of the action vector, each in [-1, 1]; 0 where actions are discrete."""
    time_limit: int

    def reset(self) -> FloatArray:
        """Every copy in a new episode, (n, d)."""

    def step(self, actions: NDArray[Any]) -> Step:
        """One step: actions (n,) whole numbers, or (n, action_size) in [-1, 1] (clipped)."""


class ArrayTask:
    """What the two tasks written as arrays share: states, the clock, resets."""

    name: str
    observation_size: int
    actions = 0
    action_size = 0
    time_limit: int

    def __init__(self, n: int, *, seed: int = 0, continuing: bool = False) -> None:
        require(n >= 1, "n", n, "a positive whole number")
        self.n, self.continuing = n, continuing
        self._rng = numpy_generator(seed)
        self.states = np.zeros((n, 0))
        self.clock = np.zeros(n, dtype=np.int64)
        self.resting = np.zeros(n, dtype=np.int64)

    def reset(self) -> FloatArray:
        """Every copy in a new episode."""
        self.states = self._fresh(self.n)
        self.clock[:], self.resting[:] = 0, 0
        return self._observe(self.states)

    def step(self, actions: NDArray[Any]) -> Step:
        """One step of every copy."""
        moved, rewards, over = self._dynamics(self.states, actions)
        self.clock += 1
        truncated, again = self.clock >= self.time_limit, over
        if self.continuing:
            rest = self.resting > 0
            moved[rest], rewards[rest] = self.states[rest], 0.0
            again = self.resting == 1
            self.resting = np.where(rest, self.resting - 1, np.where(over, REST, 0))
            over = np.zeros_like(over)
        self.states = moved
        terminated, truncated = over, truncated & ~over
        again = again | truncated
        observations = final = self._observe(moved)
        if again.any():
            self.states[again] = self._fresh(int(again.sum()))
            self.resting[again] = 0
            self.clock[terminated | truncated] = 0
            observations = self._observe(self.states)
        return Step(observations, rewards, terminated, truncated, final)

    def _fresh(self, count: int) -> FloatArray:
        raise NotImplementedError

    def _observe(self, states: FloatArray) -> FloatArray:
        raise NotImplementedError

    def _dynamics(self, states: FloatArray, actions: NDArray[Any]) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        raise NotImplementedError


class CartPole(ArrayTask):
    """CartPole-v1 (Barto, Sutton & Anderson 1983): 1 for every step until the pole or the cart leaves its limits."""

    name, observation_size, actions, time_limit = "CartPole-v1", 4, 2, 500
    ANGLE, PLACE = 12 * 2 * np.pi / 360, 2.4

    def _fresh(self, count: int) -> FloatArray:
        return self._rng.uniform(-0.05, 0.05, size=(count, 4))

    def _observe(self, states: FloatArray) -> FloatArray:
        return states.copy()

    def _dynamics(self, states: FloatArray, actions: NDArray[Any]) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        gravity, pole, total, half, seconds = 9.8, 0.1, 1.1, 0.5, 0.02
        x, speed, angle, turning = states.T
        force = np.where(actions == 1, 10.0, -10.0)
        cosine, sine = np.cos(angle), np.sin(angle)
        push = (force + pole * half * turning**2 * sine) / total
        turn = (gravity * sine - cosine * push) / (half * (4.0 / 3.0 - pole * cosine**2 / total))
        pull = push - pole * half * turn * cosine / total
        after = np.stack(
            [x + seconds * speed, speed + seconds * pull, angle + seconds * turning, turning + seconds * turn], axis=1
        )
        over = (np.abs(after[:, 0]) > self.PLACE) | (np.abs(after[:, 2]) > self.ANGLE)
        return after, np.ones(len(after)), over


class Pendulum(ArrayTask):
    """Pendulum-v1: minus the squared angle from upright, a tenth of the squared speed and a little of the torque."""

    name, observation_size, action_size, time_limit = "Pendulum-v1", 3, 1, 200
    TORQUE, SPEED = 2.0, 8.0

    def _fresh(self, count: int) -> FloatArray:
        return self._rng.uniform([-np.pi, -1.0], [np.pi, 1.0], size=(count, 2))

    def _observe(self, states: FloatArray) -> FloatArray:
        return np.stack([np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1]], axis=1)

    def _dynamics(self, states: FloatArray, actions: NDArray[Any]) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        gravity, seconds = 10.0, 0.05
        angle, speed = states.T
        torque = self.TORQUE * np.clip(np.asarray(actions, dtype=np.float64)[:, 0], -1.0, 1.0)
        away = (angle + np.pi) % (2 * np.pi) - np.pi
        rewards = -(away**2 + 0.1 * speed**2 + 0.001 * torque**2)
        after = np.clip(speed + (1.5 * gravity * np.sin(angle) + 3.0 * torque) * seconds, -self.SPEED, self.SPEED)
        return np.stack([angle + after * seconds, after], axis=1), rewards, np.zeros(len(states), dtype=bool)


def make_task(name: str, n: int, *, seed: int = 0, continuing: bool = False) -> ControlTask:
    """`n` copies of the task of this name: written as arrays where it is one of the two, else through gymnasium.

    Raises:
        ConfigError: gymnasium does not know it, or its observations or actions are of no kind known here.
        MissingExtraError: gymnasium is needed and not installed.
    """
    for kind in (CartPole, Pendulum):
        if name == kind.name:
            return kind(n, seed=seed, continuing=continuing)
    from alignlab.align.trajectories.gym_tasks import GymTask

    return GymTask(name, n, seed=seed, continuing=continuing)
