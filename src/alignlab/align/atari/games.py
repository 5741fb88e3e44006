"""The games that there is a scripted demonstrator for, and one copy of a game whose memory a demonstrator may read."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from alignlab.core.config import require
from alignlab.core.extras import import_extra

Memory = NDArray[np.int64]
TICKS = 4
"""Ticks of the console that an action lasts; a frame is the lighter of the last two."""


@dataclass(frozen=True)
class Game:
    """What must be known of a game."""

    name: str
    """As ale-py calls it."""
    score_rows: int
    """Rows at the top of the screen, of 210, that show score and clock."""
    fires: bool
    """Whether an episode begins with the button."""


GAMES: dict[str, Game] = {
    "boxing": Game("boxing", 25, False),
    "breakout": Game("breakout", 16, True),
    "pong": Game("pong", 22, False),
}
"""Those that alignlab.align.atari.players has a scripted player for."""


def named(game: str) -> Game:
    """The game of that name; ConfigError where there is no demonstrator for it."""
    require(game in GAMES, "game", game, " or ".join(GAMES))
    return GAMES[game]


def load_ale() -> ModuleType:
    """ale-py, which the extra `atari` brings with the games themselves, told to be quiet."""
    import_extra("gymnasium", "atari")
    ale = import_extra("ale_py", "atari")
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    return ale


class OneGame:
    """A single copy, seen exactly as `AtariGames` shows it, whose memory can be read."""

    def __init__(self, game: str, *, seed: int = 0, size: int = 84) -> None:
        self.game = named(game)
        ale = load_ale()
        self._console = ale.ALEInterface()
        self._console.setInt("random_seed", seed % 2**31)
        self._console.setFloat("repeat_action_probability", 0.0)
        self._console.loadROM(ale.roms.get_rom_path(game))
        self._actions = self._console.getMinimalActionSet()
        self.actions = len(self._actions)
        # Sparse: dense products of this size would wake every core's thread for each frame.
        self._rows, self._columns = csr_array(area_weights(210, size)), csr_array(area_weights(160, size))
        self._hidden = hidden_rows(self.game, size)

    def reset(self, idle: int = 0) -> NDArray[np.uint8]:
        """A new episode, after `idle` ticks; its first frame."""
        self._console.reset_game()
        for _ in range(idle):
            self._console.act(self._actions[0])
        if self.game.fires:
            self._console.act(self._actions[1])
        return self._seen(self._console.getScreenGrayscale())

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool]:
        """(frame, reward, over) after the action has lasted its ticks."""
        reward, before, last = 0.0, None, None
        for _ in range(TICKS):
            reward += self._console.act(self._actions[action])
            before, last = last, self._console.getScreenGrayscale()
        assert before is not None
        assert last is not None
        return self._seen(np.maximum(before, last)), reward, bool(self._console.game_over())

    def memory(self) -> Memory:
        """The console's 128 bytes."""
        return np.asarray(self._console.getRAM(), dtype=np.int64)

    def _seen(self, screen: NDArray[np.uint8]) -> NDArray[np.uint8]:
        small = np.rint((self._columns @ (self._rows @ screen.astype(np.float64)).T).T).astype(np.uint8)
        small[: self._hidden] = 0
        return small


def hidden_rows(game: Game, size: int) -> int:
    """Rows at the top of a frame that show the score."""
    return -(-game.score_rows * size // 210)


def area_weights(inside: int, outside: int) -> NDArray[np.float64]:
    """(outside, inside): each new pixel is the mean of the stretch of old ones that it covers."""
    edges = np.arange(outside + 1) * inside / outside
    covered = np.minimum(edges[1:, None], np.arange(1, inside + 1)) - np.maximum(edges[:-1, None], np.arange(inside))
    return np.clip(covered, 0, None) * outside / inside
