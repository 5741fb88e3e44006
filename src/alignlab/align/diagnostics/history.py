"""A training's record as columns: one number a step for each metric, one a response where responses were recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
METHODS = ("ppo", "grpo", "rloo", "reinforce")
PROXIES = ("plain_reward", "reward")
"""Metrics that are the reward which is optimised, the one without penalties of constraints first."""
REFERENCES = ("gold", "gold_reward", "judge", "win_rate")
"""Metrics that say how good the answers are and are not optimised."""


@dataclass(frozen=True)
class StepResponses:
    """The responses of one rollout batch as numbers, one entry each."""

    step: int
    """Rollout batch, from 1."""
    prompts: tuple[str, ...]
    """What tells prompts apart; answers to one prompt share an entry."""
    rewards: tuple[float, ...]
    """The reward that is optimised."""
    lengths: tuple[float, ...] = ()
    """Tokens; none where nothing counted them."""
    gold: tuple[float, ...] = ()
    """Of a reward that is not optimised; none where there is no such."""


QUANTITIES = {"reward": "rewards", "gold": "gold", "gold_reward": "gold", "response_length": "lengths"}
"""Metrics that responses recorded one by one have too."""


@dataclass(frozen=True)
class Single:
    """One quantity of every recorded response, step after step."""

    values: FloatArray
    prompts: NDArray[np.int64]
    """Number of the prompt of each."""
    ends: NDArray[np.int64]
    """Where each step begins and the one before it ends: one entry more than there are steps."""


@dataclass(frozen=True)
class History:
    """The steps of a training, in their order."""

    steps: NDArray[np.int64]
    columns: dict[str, FloatArray]
    """A metric's value at every step; nan where it was not logged or is not finite."""
    not_finite: tuple[tuple[int, str], ...] = ()
    """(step, metric) of values that were logged and are no finite number."""
    singles: Mapping[str, Single] = field(default_factory=dict)
    """By the names of `StepResponses`: what was recorded response by response."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float]], responses: Iterable[StepResponses] = ()) -> History:
        """From a result's `history` or from logged rows: `step` where there is one, else 1, 2, ...; metrics with or
        without the method's name and a slash before theirs."""
        by_step: dict[int, dict[str, float]] = {}
        for i, row in enumerate(rows):
            step = int(row.get("step", i + 1))
            own = by_step.setdefault(step, {})
            own |= {bare(name): float(value) for name, value in row.items() if name not in ("step", "time")}
        steps = sorted(by_step)
        names = dict.fromkeys(name for step in steps for name in by_step[step])
        columns = {name: np.array([by_step[step].get(name, math.nan) for step in steps]) for name in names}
        bad = [(s, name) for s in steps for name, value in by_step[s].items() if not math.isfinite(value)]
        for values in columns.values():
            values[~np.isfinite(values)] = math.nan
        singles = _singles(steps, {one.step: one for one in responses})
        return cls(np.array(steps, dtype=np.int64), columns, tuple(bad), singles)

    def __len__(self) -> int:
        return len(self.steps)

    def first(self, count: int) -> History:
        """The first `count` steps alone."""
        steps = self.steps[:count]
        last = int(steps[-1]) if len(steps) else 0
        columns = {name: values[:count] for name, values in self.columns.items()}
        bad = tuple((step, name) for step, name in self.not_finite if step <= last)
        return replace(self, steps=steps, columns=columns, not_finite=bad)

    def has(self, name: str) -> bool:
        """Whether the metric was logged at least once as a finite number."""
        return name in self.columns and bool(np.isfinite(self.columns[name]).any())

    @property
    def proxy(self) -> str | None:
        """The metric that is optimised."""
        return next((name for name in PROXIES if self.has(name)), None)

    @property
    def references(self) -> list[str]:
        """The metrics that say how good the answers are."""
        return [name for name in REFERENCES if self.has(name)]


def bare(name: str) -> str:
    """A metric's name without its method's: `ppo/kl` is `kl`."""
    method, slash, rest = name.partition("/")
    return rest if slash and method in METHODS else name


def _singles(steps: Sequence[int], records: Mapping[int, StepResponses]) -> dict[str, Single]:
    codes: dict[str, int] = {}
    found = {}
    for name in dict.fromkeys(QUANTITIES.values()):
        values: list[float] = []
        prompts: list[int] = []
        ends = [0]
        for step in steps:
            record = records.get(step)
            own = getattr(record, name) if record is not None else ()
            if record is not None and len(own) == len(record.prompts) and all(map(math.isfinite, own)):
                values += own
                prompts += [codes.setdefault(prompt, len(codes)) for prompt in record.prompts]
            ends.append(len(values))
        if values:
            found[name] = Single(np.array(values), np.array(prompts, dtype=np.int64), np.array(ends, dtype=np.int64))
    return found
