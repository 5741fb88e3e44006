"""Any task of gymnasium with vectors to observe and either numbered or vector actions, copy by copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.align.trajectories.control import REST, FloatArray, Step
from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.core.extras import import_extra
from alignlab.core.rng import derive_seed

DEFAULT_LIMIT = 1000


class GymTask:
    """`n` copies of a gymnasium task. See `alignlab.align.trajectories.control.ControlTask`.

    With `continuing` an end is no end: the copy rests where it is for REST steps, which earn nothing, and begins anew.
    """

    def __init__(self, name: str, n: int, *, seed: int = 0, continuing: bool = False) -> None:
        require(n >= 1, "n", n, "a positive whole number")
        gym = import_extra("gymnasium", "rl")
        try:
            self._copies: list[Any] = [gym.make(name) for _ in range(n)]
        except Exception as error:  # gymnasium raises many kinds: unknown name, missing physics engine, ...
            raise ConfigError(f"env is {name!r}, allowed: a task that gymnasium can make ({error})") from error
        self.name, self.n, self.continuing = name, n, continuing
        first = self._copies[0]
        seen, acts = first.observation_space, first.action_space
        discrete = isinstance(acts, gym.spaces.Discrete)
        bounded = isinstance(acts, gym.spaces.Box) and np.isfinite(acts.low).all() and np.isfinite(acts.high).all()
        if not isinstance(seen, gym.spaces.Box) or not (discrete or bounded):
            raise ConfigError(
                f"env is {name!r}, which shows {seen} and takes {acts}; allowed: a task that shows a vector and takes "
                "a number or a bounded vector"
            )
        self.observation_size = int(np.prod(seen.shape))
        self.actions = int(acts.n) if discrete else 0
        self.action_size = 0 if discrete else int(np.prod(acts.shape))
        self.time_limit = int((first.spec.max_episode_steps if first.spec else None) or DEFAULT_LIMIT)
        self._seeds: list[int | None] = [derive_seed(seed, "copy", i) % 2**31 for i in range(n)]
        self._clock, self._resting = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self._last = np.zeros((n, self.observation_size))

    def reset(self) -> FloatArray:
        """Every copy in a new episode."""
        self._clock[:], self._resting[:] = 0, 0
        self._last = np.stack([self._begin(i) for i in range(self.n)])
        return self._last.copy()

    def step(self, actions: NDArray[Any]) -> Step:
        """One step of every copy."""
        final, rewards = self._last.copy(), np.zeros(self.n)
        over, cut = np.zeros(self.n, dtype=bool), np.zeros(self.n, dtype=bool)
        rest = self._resting > 0
        for i in np.flatnonzero(~rest):
            observation, rewards[i], over[i], cut[i], _ = self._copies[i].step(self._action(actions[i]))
            final[i] = np.ravel(observation)
        self._clock += 1
        cut = (cut | (self._clock >= self.time_limit)) & (self.continuing | ~over)
        again = over | cut
        if self.continuing:
            again = cut | (self._resting == 1)
            self._resting = np.where(rest, self._resting - 1, np.where(over, REST, 0))
            over = np.zeros_like(over)
        self._last = final.copy()
        for i in np.flatnonzero(again):
            self._last[i] = self._begin(int(i))
        self._resting[again] = 0
        self._clock[over | cut] = 0
        return Step(self._last.copy(), rewards, over, cut, final)

    def _begin(self, copy: int) -> FloatArray:
        seed, self._seeds[copy] = self._seeds[copy], None
        return np.ravel(self._copies[copy].reset(seed=seed)[0]).astype(np.float64)

    def _action(self, action: Any) -> Any:
        space = self._copies[0].action_space
        if self.actions:
            return int(space.start) + int(action)
        inside = (np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0) + 1.0) / 2.0
        return (space.low + inside.reshape(space.shape) * (space.high - space.low)).astype(space.dtype)
