"""Demonstrations by a scripted player who reads the console's memory, and slips as people do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alignlab.align.atari.environments import MOST_STEPS
from alignlab.align.atari.games import OneGame
from alignlab.align.atari.players import PLAYERS, Slipping
from alignlab.align.atari.replay import Episodes
from alignlab.core.config import require
from alignlab.core.rng import derive_seed, numpy_generator

IDLE = 30
"""Most ticks that nothing is done at the beginning of an episode, as in `AtariGames`."""


def record_demonstrations(
    game: str, *, steps: int, slips: float = 0.1, seed: int = 0, size: int = 84, most_steps: int = MOST_STEPS
) -> Episodes:
    """Episodes of the scripted player until there are `steps` steps; the last one is cut there.

    The actions recorded are those taken, slips included. ConfigError for a game without a scripted player.
    """
    require(steps >= 1, "steps", steps, "a positive whole number")
    rng = numpy_generator(derive_seed(seed, "demonstrations", game))
    copy = OneGame(game, seed=derive_seed(seed, "console"), size=size)
    frames: list[NDArray[np.uint8]] = []
    actions: list[int] = []
    rewards: list[float] = []
    ends: list[bool] = []
    while len(actions) < steps:
        player = Slipping(PLAYERS[game](), copy.actions, slips=slips, rng=rng)
        seen, over = copy.reset(int(rng.integers(1, IDLE + 1))), False
        for played in range(1, most_steps + 1):
            action = player(copy.memory())
            later, reward, over = copy.step(action)
            over = over or played == most_steps or len(actions) + 1 == steps
            frames.append(seen)
            actions.append(action)
            rewards.append(reward)
            ends.append(over)
            seen = later
            if over:
                break
    return Episodes(
        np.stack(frames),
        np.array(actions, dtype=np.int64),
        np.array(rewards, dtype=np.float32),
        np.array(ends, dtype=np.bool_),
    )
