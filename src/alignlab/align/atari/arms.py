"""What an agent may learn from: the arms of the experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reward = Literal["none", "learned", "true"]


@dataclass(frozen=True)
class Arm:
    """What one agent may learn from."""

    reward: Reward
    """The game's score, one learned from preferences, or none at all."""
    demonstrations: bool = True
    """Whether it is shown how to play."""
    online: bool = True
    """Whether questions go on while it learns; else the reward stays what the first answers said."""


ARMS: dict[str, Arm] = {
    "preferences+demonstrations": Arm("learned"),
    "demonstrations": Arm("none"),
    "true reward": Arm("true"),
    "preferences": Arm("learned", demonstrations=False),
    "frozen reward": Arm("learned", online=False),
}
"""The paper's method, its imitation baseline, its upper bound, what demonstrations add, and what questions add."""
