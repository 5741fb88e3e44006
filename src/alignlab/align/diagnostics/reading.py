"""A run as a training against a reward: read while it is being written, whatever else the files hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.align.diagnostics.alarms import Alarm, Limits, alarms
from alignlab.align.diagnostics.history import METHODS, History
from alignlab.align.diagnostics.kl_budget import KLBudget, kl_budget
from alignlab.align.diagnostics.response_log import FILE, StepRecord, read_responses
from alignlab.core.errors import RunError
from alignlab.core.run_record import RESERVED
from alignlab.core.run_status import RunSummary, summarise
from alignlab.core.runs import Run

BESIDE = ("kl", "entropy", "response_length", "policy_loss")
"""A training against a reward logs one of these beside its reward."""
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_LARGEST_STEP = 2**53


@dataclass(frozen=True)
class Training:
    """What a run says about its training against a reward."""

    summary: RunSummary
    method: str
    """ppo, grpo, rloo, reinforce, or empty where the metrics have no such name before theirs."""
    history: History
    records: Mapping[int, StepRecord]
    """Recorded responses by step."""
    broken: int
    """Lines that could not be read and are left out."""
    config: Mapping[str, Any]

    @property
    def total_steps(self) -> int | None:
        """Steps that the config asks for, where it says so in a place we know."""
        for place in (self.config.get(self.method), self.config.get("rl"), self.config):
            steps = place.get("steps") if isinstance(place, Mapping) else None
            if type(steps) is int and steps >= len(self.history):
                return steps
        return None

    def limits(self, **changes: Any) -> Limits:
        """The limits for this training; `changes` that are None change nothing."""
        given = {name: value for name, value in changes.items() if value is not None}
        return Limits(**{"total_steps": self.total_steps, **given})

    def alarms(self, limits: Limits | None = None) -> list[Alarm]:
        """What looks wrong; a run that is at work is not over."""
        return alarms(self.history, limits=limits or self.limits(), over=self.summary.state != "running")

    def kl_budget(self, budget: float | None = None) -> KLBudget | None:
        """The account of the KL."""
        return kl_budget(self.history, budget)


def read_training(path: Path, method: str | None = None) -> Training:
    """The training in the run `path`; with several methods in it the one logged last, or `method`.

    Lines that are no JSON objects or have no step are left out and counted. RunError, in one sentence, where there is
    no run, it logged nothing yet, or nothing in it was trained against a reward.
    """
    summary = summarise(path) if path.is_dir() else None
    if summary is None or summary.state == "unreadable":
        raise RunError((summary and summary.error) or f"{path} is not a run: there is no such directory")
    rows, broken = _metric_rows(path / "metrics.jsonl")
    if not rows:
        left = f" (lines that cannot be read: {broken})" if broken else ""
        raise RunError(f"the run {path.name} has logged no metrics yet{left}")
    found = [name for name in _methods(rows) if method in (None, name)]
    if not found:
        names = sorted({key for row in rows for key in row if key not in RESERVED})
        logged = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        wanted = "against a reward" if method is None else f"by {method}"
        raise RunError(
            f"the run {path.name} trained nothing {wanted}: it logged {logged}; a training by PPO, GRPO, RLOO or "
            "REINFORCE logs its reward and its KL, entropy or length"
        )
    chosen = found[-1]
    records, torn = read_responses(path / FILE)
    start = f"{chosen}/" if chosen else ""
    others = tuple(f"{name}/" for name in METHODS)
    own = [
        {key: value for key, value in row.items() if key == "step" or _is_own(key, start, others)}
        for row in rows
        if any(_is_own(key, start, others) for key in row if key != "step")
    ]
    history = History.of(own, [record.numbers for record in records.values()])
    return Training(summary, chosen, history, records, broken + torn, Run.read(path).config_dict)


def _is_own(key: str, start: str, others: tuple[str, ...]) -> bool:
    return key.startswith(start) if start else not key.startswith(others)


def _methods(rows: list[dict[str, float]]) -> list[str]:
    """Methods that logged a reward and something beside it, the last one to log at the end."""
    last: dict[str, int] = {}
    for i, row in enumerate(rows):
        for method in (*METHODS, ""):
            start = f"{method}/" if method else ""
            if f"{start}reward" in row and any(f"{start}{name}" in row for name in BESIDE):
                last[method] = i
    return sorted(last, key=lambda method: last[method])


def _metric_rows(path: Path) -> tuple[list[dict[str, float]], int]:
    """(numbers of every line that can be read, lines that cannot); the line being written now is not counted."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return [], 0
    rows, broken = [], 0
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        row = _numbers(line)
        if row is not None:
            rows.append(row)
        elif i < len(lines) - 1:
            broken += 1
    return rows, broken


def _numbers(line: bytes) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    if type(step) is not int or abs(step) > _LARGEST_STEP:
        return None
    found: dict[str, float] = {"step": step}
    for key, value in row.items():
        if key in RESERVED:
            continue
        if isinstance(value, str):
            value = _WORDS.get(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                found[key] = float(value)
            except OverflowError:  # an integer of hundreds of digits
                found[key] = math.inf
    return found
