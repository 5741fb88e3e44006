"""Scripted players: they read where things are from the console's memory, know nothing of the score, and slip.

The bytes are those of Anand et al. (2019, the Atari Annotated RAM Interface); the rest was found by playing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from alignlab.align.atari.games import Memory
from alignlab.core.config import require


class Player(Protocol):
    """Chooses actions from the console's 128 bytes, one episode long."""

    def choose(self, memory: Memory, rng: np.random.Generator) -> int:
        """The number of an action, as the game's smallest set has them."""


@dataclass(frozen=True)
class Paddle:
    """What a player of a ball game must know."""

    actions: tuple[int, int, int]
    """Numbers of the actions that serve, that move towards smaller, and towards larger coordinates."""
    ball: tuple[int, int]
    """Bytes of the ball's place along the paddle's way, and across it."""
    place: int
    """Byte of the paddle's place."""
    plane: int
    """Where the ball meets the paddle, across its way."""
    walls: tuple[int, int]
    """Between which the ball moves along the paddle's way."""
    aims: tuple[int, ...]
    """Where on the paddle to take the ball, one drawn for each approach."""
    zone: int
    """How far off is near enough."""


@dataclass
class PaddlePlayer:
    """Goes where the ball will be three steps on, or where it meets the paddle if that is sooner."""

    paddle: Paddle
    _last: tuple[int, int, int] | None = None
    _came: bool = False
    _aim: int = 0

    def choose(self, memory: Memory, rng: np.random.Generator) -> int:
        """See `Player.choose`."""
        known = self.paddle
        along, across, place = (int(memory[byte]) for byte in (*known.ball, known.place))
        last, self._last = self._last, (along, across, place)
        if not across or not along:
            return known.actions[0]
        if last is None or not last[1]:
            last = (along, across, place)
        coming = across > last[1]
        if coming and not self._came:
            self._aim = int(rng.choice(known.aims))
        self._came = coming
        target = float(along)
        if coming:
            ahead = min((known.plane - across) / (across - last[1]), 3.0)
            target = reflected(along + (along - last[0]) * ahead, known.walls)
        # A paddle in motion goes on for half a step.
        off = place + 0.5 * (place - last[2]) + self._aim - target
        if abs(off) <= known.zone:
            return 0
        return known.actions[1] if off > 0 else known.actions[2]


@dataclass
class BoxingPlayer:
    """Keeps an arm's length from the other, level with him, and punches every other step when it is there."""

    reach: int = 14
    level: int = 8
    near: int = 3
    _step: int = field(default=0)

    def choose(self, memory: Memory, rng: np.random.Generator) -> int:
        """See `Player.choose`."""
        self._step += 1
        x, y, other_x, other_y = (int(memory[byte]) for byte in (32, 34, 33, 35))
        across = other_x - x - (self.reach if other_x >= x else -self.reach)
        down = other_y - y - (self.level if other_y >= y else -self.level)
        punch = abs(across) <= 2 * self.near and abs(down) <= 2 * self.near and self._step % 2 == 1
        return BOXING[_sign(down, self.near), _sign(across, self.near), punch]


BOXING = {
    (down, right, fire): number
    for number, (down, right, fire) in enumerate(
        [
            (0, 0, False), (0, 0, True), (-1, 0, False), (0, 1, False), (0, -1, False), (1, 0, False), (-1, 1, False),
            (-1, -1, False), (1, 1, False), (1, -1, False), (-1, 0, True), (0, 1, True), (0, -1, True), (1, 0, True),
            (-1, 1, True), (-1, -1, True), (1, 1, True), (1, -1, True),
        ]
    )
}  # fmt: skip
"""Numbers of all eighteen actions: (down or up, right or left, button)."""

PLAYERS: dict[str, Callable[[], Player]] = {
    "boxing": BoxingPlayer,
    "breakout": lambda: PaddlePlayer(Paddle((1, 3, 2), (99, 101), 72, 180, (56, 200), (8,), 3)),
    "pong": lambda: PaddlePlayer(Paddle((0, 2, 3), (54, 49), 51, 190, (40, 205), (3, 13), 3)),
}
"""A new player of each game."""


class Slipping:
    """A player some of whose actions are random, which is what makes a demonstrator human."""

    def __init__(self, player: Player, actions: int, *, slips: float, rng: np.random.Generator) -> None:
        require(0 <= slips <= 1, "slips", slips, "a number from 0 to 1")
        self.player, self.actions, self.slips, self.rng = player, actions, slips, rng

    def __call__(self, memory: Memory) -> int:
        """The action for this step."""
        action = self.player.choose(memory, self.rng)
        return int(self.rng.integers(self.actions)) if self.rng.random() < self.slips else action


def reflected(place: float, walls: tuple[int, int]) -> float:
    """Where a ball is that would be at `place` if it flew through the walls."""
    low, high = walls
    way = (place - low) % (2 * (high - low))
    return low + min(way, 2 * (high - low) - way)


def _sign(value: int, near: int) -> int:
    return 0 if abs(value) <= near else (1 if value > 0 else -1)
