"""What a policy reaches in each objective, item by item, in the form that `alignlab pareto` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.align.reward_validation.sampled import sample_rewards
from alignlab.align.rl.rewards import Reward
from alignlab.core.errors import DataError
from alignlab.core.files import append_jsonl
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.types import Prompt, Sampler, SamplingParams
from alignlab.stats.validation import FloatArray

FILE = "objectives.json"
"""Where a run keeps its record, among its artifacts."""


def measure_objectives(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, Reward],
    sampling: SamplingParams,
    *,
    at_a_time: int = 64,
    progress: Progress | None = None,
) -> tuple[dict[str, list[float]], list[list[str]]]:
    """(every objective's mean over the answers to each prompt, the answers); `sampling.n` answers a prompt."""
    drawn = sample_rewards(sampler, prompts, rewards, sampling, progress=progress, at_a_time=at_a_time)
    return {name: table.mean(axis=1).tolist() for name, table in drawn.rewards.items()}, drawn.answers


def objectives_record(
    point: str,
    objectives: Mapping[str, Sequence[float] | FloatArray],
    *,
    seed: int = 0,
    items: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One training's record: the name of its point, and each objective's value of every item, in the items' order."""
    values = {name: np.asarray(given, dtype=np.float64).tolist() for name, given in objectives.items()}
    lengths = {name: len(given) for name, given in values.items()}
    if len(set(lengths.values())) != 1 or (items is not None and len(items) not in lengths.values()):
        expected = "" if items is None else f", {len(items)} items"
        raise DataError(f"point {point!r} has objectives of different lengths: {lengths}{expected}")
    record: dict[str, Any] = {"point": point, "seed": seed, "objectives": values}
    if items is not None:
        record["items"] = list(items)
    if settings:
        record["settings"] = dict(settings)
    return record


def record_objectives(run: Run, record: Mapping[str, Any]) -> None:
    """Keep the record in the run, where `alignlab pareto RUNS` finds it."""
    run.write_artifact(FILE, dict(record))


def append_point(file: Path, record: Mapping[str, Any]) -> None:
    """Add the record to a JSONL file of points."""
    append_jsonl(file, [record])
