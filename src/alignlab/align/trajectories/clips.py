"""A clip as text: the few numbers a frame needs to be drawn, which is what the store keeps and a page animates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.core.errors import ConfigError, DataError

FRAMES: dict[str, int] = {"CartPole-v1": 25, "Pendulum-v1": 10}
"""Frames a second of the tasks that can be drawn: half as fast as the task, which is too fast to judge."""
LONGEST = 2000


@dataclass(frozen=True)
class Clip:
    """One clip to draw."""

    env: str
    frames: tuple[tuple[float, float], ...]
    """CartPole: place of the cart and angle of the pole from upright. Pendulum: angle from upright and torque."""

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return len(self.frames) / FRAMES[self.env]


def check_drawable(env: str) -> None:
    """Refuse a task whose clips cannot be drawn. Raises ConfigError."""
    if env not in FRAMES:
        raise ConfigError(f"env is {env!r}, allowed with a human teacher: {', '.join(FRAMES)}")


def clip_text(env: str, inputs: NDArray[np.float64]) -> str:
    """The clip of these steps, (length, size) as in `Segments.inputs`, as JSON."""
    check_drawable(env)
    if env == "CartPole-v1":
        frames = inputs[:, [0, 2]]
    else:
        frames = np.stack([np.arctan2(inputs[:, 1], inputs[:, 0]), 2.0 * inputs[:, 3]], axis=1)
    return json.dumps({"clip": env, "frames": np.round(frames, 3).tolist()}, separators=(",", ":"))


def read_clip(text: str) -> Clip:
    """The inverse of `clip_text`; DataError for what is no clip."""
    try:
        found: Any = json.loads(text)
        env, rows = found["clip"], found["frames"]
        frames = tuple((float(first), float(second)) for first, second in rows)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"not a clip: {text[:60]!r}") from error
    if env not in FRAMES or not 1 <= len(frames) <= LONGEST or not np.isfinite(frames).all():
        raise DataError(f"not a clip that can be drawn: {text[:60]!r}")
    return Clip(env, frames)
