"""What a run of `alignlab align` recorded, read once and compared: what the report and the summary are written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.core.errors import DataError, RunError
from alignlab.core.files import read_jsonl
from alignlab.core.run_record import RunRecord, StageRecord
from alignlab.stats.multiplicity import holm_correct
from alignlab.stats.power import minimum_detectable_effect
from alignlab.tasks.comparison import EvaluationComparison, compare_evaluations
from alignlab.tasks.evaluation import Evaluation

TASKS = {"harmlessness": "harmlessness", "over_refusal": "over-refusal", "helpfulness": "helpfulness"}
"""Tasks of the pipeline by name, with their names in prose."""
MODELS = {"base": "base", "sl-cai": "SL-CAI", "rl-cai": "RL-CAI"}
"""Measured models in order, with their names in prose."""
MEASURED_BY = {"base": "baseline", "sl-cai": "sl-cai", "rl-cai": "rl-cai"}
"""The stage that measures each model."""
CAPABILITY_LIMIT = 0.05
"""Bits per byte may rise by this share before the capability kept counts as failed."""
ALPHA, POWER = 0.05, 0.8
"""Level of every test and power of the minimum detectable effect."""
SPACE = "\u00a0"


@dataclass(frozen=True)
class Difference:
    """One model against an earlier one on one task."""

    task: str
    earlier: str
    later: str
    result: EvaluationComparison
    """Paired by prompt; the verdict is after Holm's correction over all differences of the report."""
    detectable: float | None
    """Smallest true difference seen with 80 % power by a single test at 5 %; None where the data cannot tell."""
    changed: int
    """Pairs whose score differs."""

    @property
    def name(self) -> str:
        """Such as "harmlessness: SL-CAI − base"."""
        return f"{TASKS[self.task]}: {self.pair}"

    @property
    def pair(self) -> str:
        """Such as "SL-CAI − base"."""
        return f"{MODELS[self.later]} − {MODELS[self.earlier]}"

    @property
    def told(self) -> str:
        """The difference in points with its interval, in words where no score changed."""
        if not self.changed:
            return f"0.0 points (no score of {self.result.difference.n} changed)"
        interval = self.result.difference
        text = f"{points(interval.estimate)} points [{points(interval.low)}, {points(interval.high)}]"
        if self.result.verdict == "tied" and interval.excludes(0.0):
            text += f"; the interval leaves zero out, but p = {self.result.adjusted_p:.2f} after correction"
        return text


class Findings:
    """The recorded numbers of one run, finished or not."""

    def __init__(self, run: RunRecord) -> None:
        """RunError when `run` is not a run of `alignlab align`; DataError when what it recorded is damaged."""
        settings = run.config_dict.get("reinforcement")
        if not isinstance(settings, dict) or "method" not in settings:
            raise RunError(f"the run {run.path} is no run of `alignlab align`, a report can be made only of one")
        self.run, self.config = run, run.config_dict
        self.method = str(settings["method"])
        self.stages: dict[str, StageRecord] = run.stages()
        self.models = [name for name, stage in MEASURED_BY.items() if stage in self.stages]

    @property
    def finished(self) -> bool:
        """Whether the last stage is recorded; the run itself is still open while its report is written."""
        return "export" in self.stages

    @property
    def final(self) -> str | None:
        """The last measured model after the base; None before there is one."""
        return self.models[-1] if len(self.models) > 1 else None

    @property
    def missing(self) -> list[str]:
        """Stages that are not done, in order."""
        skipped = ("reinforcement", "rl-cai") if self.method == "none" else ()
        return [name for name in STAGES if name not in self.stages and name not in skipped]

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all finished stages."""
        return sum(record.seconds for record in self.stages.values())

    @property
    def peak_memory_bytes(self) -> int:
        """Most memory that a stage held."""
        return max((record.peak_memory_bytes for record in self.stages.values()), default=0)

    def stage_label(self, name: str) -> str:
        """A stage's name in prose."""
        if name == "reinforcement":
            return self.method.upper()
        return STAGES.get(name, name)

    def output(self, stage: str) -> dict[str, Any]:
        """What a stage recorded; empty where it has not finished."""
        return self.stages[stage].output if stage in self.stages else {}

    def bits(self, model: str) -> float | None:
        """Bits per byte of a measured model."""
        value = self.output(MEASURED_BY[model]).get("bits_per_byte")
        return None if value is None else float(value)

    def bits_change(self, model: str) -> float | None:
        """Relative change of bits per byte against the base."""
        before, after = self.bits("base"), self.bits(model)
        return None if before is None or after is None or before <= 0 else after / before - 1

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Evaluation]]:
        """Task -> model -> evaluation, for models whose measuring stage has finished."""
        found: dict[str, dict[str, Evaluation]] = {}
        for task in TASKS:
            folders = {model: self.run.artifacts / "evaluations" / model / task for model in self.models}
            loaded = {model: Evaluation.load(folder) for model, folder in folders.items() if folder.exists()}
            if loaded:
                found[task] = loaded
        return found

    @cached_property
    def differences(self) -> list[Difference]:
        """Every later model against every earlier one on every task; the verdicts hold for the whole family."""
        raw: dict[str, tuple[str, str, str]] = {}
        compared: dict[str, EvaluationComparison] = {}
        for task, by_model in self.evaluations.items():
            for earlier, later in combinations(by_model, 2):
                if not any(pair_values(by_model[earlier], by_model[later])):
                    continue  # nothing is scored on both sides; the table of rates says so
                key = f"{task}/{earlier}/{later}"
                raw[key] = (task, earlier, later)
                compared[key] = compare_evaluations(by_model[earlier], by_model[later], seed=self.run.seed)
        corrected = holm_correct(compared, ALPHA)
        found = []
        for key, (task, earlier, later) in raw.items():
            values = pair_values(self.evaluations[task][earlier], self.evaluations[task][later])
            steps = [after - before for before, after in values]
            found.append(
                Difference(task, earlier, later, corrected[key], detectable(steps), sum(step != 0 for step in steps))
            )
        return found

    def difference(self, task: str, later: str, earlier: str = "base") -> Difference | None:
        """One of `differences`, None where it was not measured."""
        wanted = (task, earlier, later)
        return next((d for d in self.differences if (d.task, d.earlier, d.later) == wanted), None)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged numbers, a row a step."""
        return self.run.metrics()

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of one metric."""
        return [(row["step"], float(row[name])) for row in self.metrics if row.get(name) is not None]

    def rows(self, name: str, *keys: str) -> list[dict[str, Any]]:
        """The lines of `artifacts/NAME`, empty where there is no such file. DataError when a line lacks a key."""
        return read_rows(self.run.artifacts / name, keys)


STAGES = {
    "setup": "set-up",
    "baseline": "measuring base",
    "responses": "responses",
    "critiques": "critiques",
    "revisions": "revisions",
    "supervised": "supervised fine-tuning",
    "sl-cai": "measuring SL-CAI",
    "pairs": "sampled pairs",
    "preferences": "AI preferences",
    "preference-model": "preference model",
    "reinforcement": "reinforcement",
    "rl-cai": "measuring RL-CAI",
    "export": "export",
}
"""Stages of the pipeline in order, with their names in prose."""


def pair_values(a: Evaluation, b: Evaluation) -> list[tuple[float, float]]:
    """Scores of the samples that both evaluations scored."""
    other = b.values
    pairs = [(value, other.get(name)) for name, value in a.values.items()]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def detectable(steps: Sequence[float], alpha: float = ALPHA) -> float | None:
    """Minimum detectable effect from the spread of paired differences; None below two pairs or without any spread."""
    spread = float(np.std(steps, ddof=1)) if len(steps) > 1 else 0.0
    return minimum_detectable_effect(spread, len(steps), alpha, POWER) if spread > 0 else None


def read_rows(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a JSONL file, each with `keys`; empty where there is no file."""
    rows = read_jsonl(path) if path.exists() else []
    for i, row in enumerate(rows):
        lacking = [key for key in keys if key not in row]
        if lacking:
            raise DataError(f"{path}, row {i + 1} has no {lacking[0]!r}; delete the file and run the stage again")
    return rows


def percent(rate: float) -> str:
    """A rate of 0..1, such as "37.5 %"."""
    return f"{100 * rate:.1f}{SPACE}%"


def whole(share: float) -> str:
    """A share as a whole percentage, such as "5 %"."""
    return f"{100 * share:.0f}{SPACE}%"


def points(difference: float) -> str:
    """A difference of rates in percentage points, with its sign."""
    if not np.isfinite(difference):
        return "–"
    shown = f"{100 * difference:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "−")


def change(share: float) -> str:
    """A relative change, such as "−0.6 %"."""
    return f"{points(share)}{SPACE}%"


def duration(seconds: float) -> str:
    """Minutes, or seconds where there are few."""
    return f"{seconds / 60:.1f}{SPACE}min" if seconds >= 90 else f"{seconds:.1f}{SPACE}s"


def memory(n_bytes: int) -> str:
    """Bytes in GiB."""
    return f"{n_bytes / 2**30:.2f}{SPACE}GiB"


def clip(text: str, limit: int = 1200) -> str:
    """A text short enough to show."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} … ({len(text) - limit:,} more characters)"
