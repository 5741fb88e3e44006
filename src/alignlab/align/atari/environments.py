"""Many copies of an Atari game at once, played by ale-py's own threads: grey frames of four ticks each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignlab.align.atari.games import Game, hidden_rows, load_ale, named
from alignlab.core.config import require
from alignlab.core.rng import derive_seed, numpy_generator

MOST_STEPS = 4500
"""Steps after which an episode is cut, five minutes of play."""


@dataclass(frozen=True)
class AtariStep:
    """What a step of every copy brought."""

    frames: NDArray[np.uint8]
    """(copies, size, size): what is seen next; of a new episode where one ended."""
    rewards: NDArray[np.float32]
    """(copies,): the game's own."""
    ends: NDArray[np.bool_]
    """(copies,): True where the episode ended or was cut with this step."""


class AtariGames:
    """`copies` of a game. Episodes begin after up to 30 idle ticks, drawn from the seed, and follow each other.

    The score is painted over, as in Christiano et al. (2017): neither agent nor reward model may read it.
    """

    def __init__(
        self, game: str, copies: int, *, seed: int = 0, threads: int = 0, size: int = 84, most_steps: int = MOST_STEPS
    ) -> None:
        self.game: Game = named(game)
        for name, value in (("copies", copies), ("size", size), ("most_steps", most_steps)):
            require(value >= 1, name, value, "a positive whole number")
        self.copies, self.size, self.most_steps = copies, size, most_steps
        ale = load_ale()
        self._games = ale.AtariVectorEnv(
            game, copies, num_threads=min(threads, copies), stack_num=1, img_height=size, img_width=size,
            reward_clipping=False, noop_max=30, use_fire_reset=self.game.fires, autoreset_mode="SameStep",
        )  # fmt: skip
        self._seed = derive_seed(seed, "atari", game) % 2**31
        self._rng, self._clock = numpy_generator(derive_seed(seed, "cut")), np.zeros(copies, dtype=np.int64)
        self.actions = int(self._games.single_action_space.n)
        self._hidden = hidden_rows(self.game, size)

    def reset(self) -> NDArray[np.uint8]:
        """The first frames, (copies, size, size)."""
        frames, _ = self._games.reset(seed=self._seed)
        self._clock[:] = 0
        return self._seen(frames)

    def send(self, actions: NDArray[np.int64]) -> None:
        """Begin a step of every copy; its threads play while the caller does something else."""
        self._games.send(np.asarray(actions, dtype=np.int64))

    def receive(self) -> AtariStep:
        """The end of the step begun with `send`."""
        frames, rewards, over, cut, _ = self._games.recv()
        self._clock += 1
        ends = over | cut
        late = (self._clock >= self.most_steps) & ~ends
        if late.any():
            seeds = self._rng.integers(0, 2**31, size=int(late.sum()))
            frames, _ = self._games.reset(seed=seeds, options={"reset_mask": late})
            ends = ends | late
        self._clock[ends] = 0
        return AtariStep(self._seen(frames), rewards.astype(np.float32), ends)

    def step(self, actions: NDArray[np.int64]) -> AtariStep:
        """One step of every copy."""
        self.send(actions)
        return self.receive()

    def _seen(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        seen = np.array(frames[:, 0])
        seen[:, : self._hidden] = 0
        return seen
