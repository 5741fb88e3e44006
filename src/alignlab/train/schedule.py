"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal, get_args

from alignlab.core.config import require

Schedule = Literal["cosine", "linear", "constant"]


def learning_rate_at(
    step: int, *, peak: float, steps: int, warmup_steps: int, schedule: Schedule, min_lr_ratio: float = 0.0
) -> float:
    """Learning rate of update number `step` (0-based) out of `steps`.

    Warm-up is linear and never zero: `peak * (step + 1) / warmup_steps`. After it, with `t` running from 0 at the first
    update past the warm-up to 1 at update `steps`:

    - `cosine`: `min + (peak - min) * (1 + cos(pi t)) / 2` (Loshchilov & Hutter 2017, without restarts)
    - `linear`: `peak + (min - peak) * t`
    - `constant`: `peak`

    where `min = peak * min_lr_ratio`.

    Raises:
        ConfigError: unknown schedule.
    """
    require(schedule in get_args(Schedule), "schedule", schedule, ", ".join(get_args(Schedule)))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    t = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    left = (1.0 + math.cos(math.pi * t)) / 2 if schedule == "cosine" else 1.0 - t
    return peak * (min_lr_ratio + (1.0 - min_lr_ratio) * left)
