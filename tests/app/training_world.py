"""Planted trainings against a reward for the page *Training*; quantities follow known courses."""

from __future__ import annotations

import random
from pathlib import Path

from app_world import HOSTILE

from alignlab.align.diagnostics.history import StepResponses
from alignlab.align.diagnostics.response_log import FILE, ResponseLog, Sample, StepRecord
from alignlab.core.runs import Run

PROMPTS = 24


def log_step(run: Run, log: ResponseLog, step: int, *, steps: int, hacked: bool = True) -> None:
    """One step: the reward rises; the gold reward turns where it is hacked."""
    t = step / steps
    rng = random.Random(step)
    reward = [2 * t + rng.gauss(0, 0.5) for _ in range(PROMPTS)]
    gold = [(t if t < 0.4 or not hacked else 0.8 - t) + rng.gauss(0, 0.4) for _ in range(PROMPTS)]
    lengths = [40 + 8 * t + rng.gauss(0, 6) for _ in range(PROMPTS)]
    run.log(
        step,
        {
            "grpo/reward": sum(reward) / PROMPTS,
            "grpo/gold": sum(gold) / PROMPTS,
            "grpo/kl": 6 * t + rng.gauss(0, 0.2),
            "grpo/response_length": sum(lengths) / PROMPTS,
            "grpo/entropy": 1.8 - 0.6 * t + rng.gauss(0, 0.03),
            "grpo/clip_fraction": 0.1,
            "grpo/mismatch_mean": 0.01,
            "grpo/repetition": 0.04,
            "grpo/distinct": 0.8,
        },
    )
    numbers = StepResponses(
        step, tuple(f"prompt {i}" for i in range(PROMPTS)), tuple(reward), tuple(lengths), tuple(gold)
    )
    spans = (("Certainly! ", 0.9), (f"At step {step} I would be so very happy to help, ", 0.3), ("but no. ", -0.5))
    helpful = Sample(
        [{"role": "user", "content": "How do plants drink?"}], "".join(s for s, _ in spans), 2 * t, t, spans
    )
    log.write(StepRecord(numbers, (helpful, Sample(HOSTILE, f"answer {HOSTILE}", -0.5, 0.1, ((HOSTILE, -0.25),)))))


def plant_rl(root: Path, name: str, steps: int = 48, *, hacked: bool = True) -> Path:
    """A finished training."""
    with Run.create({"grpo": {"steps": steps}}, name="rl", path=root / name) as run:
        log = ResponseLog(run.path / FILE)
        for step in range(1, steps + 1):
            log_step(run, log, step, steps=steps, hacked=hacked)
    return root / name
