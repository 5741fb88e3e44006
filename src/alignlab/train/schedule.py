"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from alignlab.core.config import require

if TYPE_CHECKING:
    from alignlab.train.config import TrainConfig

Schedule = Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"]


def learning_rate_at(
    step: int,
    *,
    peak: float,
    steps: int,
    warmup_steps: int,
    schedule: Schedule,
    min_lr_ratio: float = 0.0,
    decay_fraction: float = 0.2,
) -> float:
    """Learning rate of update number `step` (0-based) out of `steps`.

    Warm-up is linear and never zero: `peak * (step + 1) / warmup_steps`. After it, with `t` running from 0 at the first
    update past the warm-up to 1 at update `steps`, the rate is `peak * (m + (1 - m) * f)` with `m = min_lr_ratio` and

    - `cosine`: `f = (1 + cos(pi t)) / 2` (Loshchilov & Hutter 2017, without restarts)
    - `linear`: `f = 1 - t`
    - `constant`: `f = 1`
    - `wsd`: warm-up, stable, decay. `f = 1` until the last `d = round(decay_fraction * steps)` updates, then
      `f = 1 - sqrt(u)` with `u = (step - (steps - d)) / d` (Hu et al. 2024; the shape is the one that Hägele et al.
      2024 found best). The decay never starts before the end of the warm-up.

    and for `inverse_sqrt` (Vaswani et al. 2017) `peak * max(m, sqrt(w / (step - warmup_steps + w)))` with
    `w = max(1, warmup_steps)`: the rate falls as the inverse root of the step, whatever `steps` is.

    Raises:
        ConfigError: unknown schedule.
    """
    require(schedule in get_args(Schedule), "schedule", schedule, ", ".join(get_args(Schedule)))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    if schedule == "inverse_sqrt":
        scale = max(1, warmup_steps)
        return peak * max(min_lr_ratio, math.sqrt(scale / (step - warmup_steps + scale)))
    if schedule == "wsd":
        decay = max(1, min(round(decay_fraction * steps), steps - warmup_steps))
        left = 1.0 - math.sqrt(min(1.0, max(0.0, (step - (steps - decay)) / decay)))
    else:
        t = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        left = (1.0 + math.cos(math.pi * t)) / 2 if schedule == "cosine" else 1.0 - t
    return peak * (min_lr_ratio + (1.0 - min_lr_ratio) * left)


def scheduled_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of update `step`, which counts from 1."""
    return learning_rate_at(
        step - 1,
        peak=config.learning_rate,
        steps=config.steps,
        warmup_steps=config.warmup_steps,
        schedule=config.schedule,
        min_lr_ratio=config.min_lr_ratio,
        decay_fraction=config.decay_fraction,
    )
