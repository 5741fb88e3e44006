"""Trainings that never were: healthy ones, and healthy ones with one thing gone wrong. Alarms are measured on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from alignlab.align.diagnostics.history import StepResponses

STEPS = 60
PROMPTS = 40
Row = dict[str, float]


def healthy(
    seed: int,
    steps: int = STEPS,
    *,
    batch: int = 16,
    reward: Callable[[float], float] = lambda t: 1.5 * t,
    gold: Callable[[float], float] = lambda t: 0.8 * t,
    length: Callable[[float], float] = lambda t: 40.0 + 4.0 * t,
    length_pays: float = 0.0,
) -> tuple[list[Row], list[StepResponses]]:
    """Rows and responses of a training whose quantities follow the given courses over time in [0, 1], with noise of
    prompts and of answers."""
    rng = np.random.default_rng(seed)
    easy, hard = rng.normal(0, 0.7, PROMPTS), rng.normal(0, 0.7, PROMPTS)
    rows, records = [], []
    for step in range(1, steps + 1):
        t = step / steps
        which = rng.integers(PROMPTS, size=batch)
        lengths = np.maximum(rng.normal(length(t), 10, batch), 1).round()
        rewards = reward(t) + easy[which] + rng.normal(0, 1, batch) + length_pays * (lengths - length(0.0))
        golds = gold(t) + hard[which] + rng.normal(0, 1, batch)
        rows.append(
            {
                "ppo/reward": float(rewards.mean()),
                "ppo/gold": float(golds.mean()),
                "ppo/kl": float(8 * (1 - np.exp(-2 * t)) + rng.normal(0, 0.4)),
                "ppo/entropy": float(2.0 - 0.9 * t + rng.normal(0, 0.08)),
                "ppo/response_length": float(lengths.mean()),
                "ppo/ended": float(rng.binomial(batch, 0.9) / batch),
                "ppo/explained_variance": float(0.6 * (1 - np.exp(-6 * t)) + rng.normal(0, 0.12)),
                "ppo/clip_fraction": float(abs(rng.normal(0.12, 0.05))),
                "ppo/mismatch_mean": float(abs(rng.normal(0.012, 0.002))),
                "ppo/repetition": float(abs(rng.normal(0.05, 0.02))),
                "ppo/distinct": float(rng.normal(0.7, 0.05)),
                "ppo/groups": 8.0,
                "ppo/equal_groups": float(rng.binomial(8, 0.3)),
                "step": float(step),
            }
        )
        records.append(
            StepResponses(
                step,
                tuple(f"prompt {i}" for i in which),
                tuple(rewards.tolist()),
                tuple(lengths.tolist()),
                tuple(golds.tolist()),
            )
        )
    return rows, records


def spoilt(name: str, course: Callable[[float], float], seed: int = 0, **more: Any) -> list[Row]:
    """The rows of a healthy training in which one metric follows another course, with a twentieth of noise."""
    rng = np.random.default_rng(seed + 1000)
    rows, _ = healthy(seed, **more)
    for i, row in enumerate(rows):
        value = course((i + 1) / len(rows))
        row[f"ppo/{name}"] = float(value + abs(value) * rng.normal(0, 0.05))
    return rows


FAILURES: dict[str, tuple[str, Callable[[float], float]]] = {
    "entropy collapse": ("entropy", lambda t: 2 * (1 - t) ** 3 + 0.02),
    "value function": ("explained_variance", lambda t: -0.5),
    "clipping": ("clip_fraction", lambda t: 0.1 + 0.5 * t),
    "sampler drift": ("mismatch_mean", lambda t: 0.01 + 0.08 * t * t),
    "repetition": ("repetition", lambda t: 0.05 + 0.7 * t * t),
    "sameness": ("distinct", lambda t: 0.7 - 0.6 * t),
    "answers do not end": ("ended", lambda t: 0.9 - 0.7 * t),
    "equal groups": ("equal_groups", lambda t: 8 * min(1.0, 0.3 + t)),
    "length collapse": ("response_length", lambda t: 40 - 35 * t),
    "length growth": ("response_length", lambda t: 40 + 80 * t),
    "KL budget": ("kl", lambda t: 20 * t),
}
"""For an alarm, the metric that goes wrong and its course over time in [0, 1]."""
