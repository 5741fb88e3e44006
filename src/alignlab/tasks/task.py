"""The task object: samples, a solver that answers them and a scorer that judges the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.types import Completion, Prompt, Sampler


@dataclass(frozen=True)
class Sample:
    """One item of a dataset."""

    id: str
    """Unique in its dataset; evaluations of two models are paired by it."""
    prompt: Prompt
    """Raw text or a list of messages."""
    target: str | None = None
    """What a right answer is compared with, where there is such a thing."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for scorers and reports (category, source, ...)."""
    cluster: str | None = None
    """Samples that share a cluster are not independent (paraphrases of one question); None: on its own."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise DataError(f"the id of a sample is {self.id!r}, allowed: a non-empty string")
        if isinstance(self.prompt, str):
            return
        messages = self.prompt
        if not isinstance(messages, list) or not messages:
            raise DataError(f"the prompt of sample {self.id!r} must be text or a non-empty list of messages")
        for message in messages:
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise DataError(f"sample {self.id!r} has a message without 'role' and 'content': {message!r}")


@dataclass(frozen=True)
class Score:
    """A finite value, or None with the reason why the sample could not be scored. Never both, never neither."""

    value: float | None
    """The score; None: unscorable."""
    reason: str | None = None
    """Why there is no value."""
    explanation: str | None = None
    """Free text for the log: the judge's words, the extracted answer, ..."""

    def __post_init__(self) -> None:
        if self.value is None:
            if not self.reason:
                raise DataError("a score without a value needs a reason why the sample is unscorable")
            return
        if self.reason is not None:
            raise DataError(f"a score has both the value {self.value!r} and a reason for having none: {self.reason!r}")
        try:
            value = float(self.value)
        except (TypeError, ValueError) as error:
            raise DataError(f"the value of a score is {self.value!r}, allowed: a finite number or None") from error
        if not math.isfinite(value):
            raise DataError(f"the value of a score is {value}, allowed: a finite number or None with a reason")
        object.__setattr__(self, "value", value)

    @classmethod
    def unscorable(cls, reason: str, explanation: str | None = None) -> Score:
        """A score without a value."""
        return cls(None, reason, explanation)


Solver = Callable[[Sampler, Sequence[Sample]], list[Completion]]
"""Answers samples with a sampler: one completion for each sample, in order."""

Scorer = Callable[[Sample, Completion], Score]
"""Judges one completion."""


@runtime_checkable
class BatchScorer(Protocol):
    """A scorer that is faster on many at once (a judge model); the evaluator then calls `score_batch`."""

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """Judge one completion; also the way back when `score_batch` raises."""
        ...

    def score_batch(self, samples: Sequence[Sample], completions: Sequence[Completion]) -> list[Score]:
        """One score for each pair, in order, equal to what `__call__` gives."""
        ...


@dataclass(frozen=True)
class Task:
    """Dataset, solver and scorer under one name."""

    name: str
    """Shown in reports; part of the log's fingerprint."""
    dataset: Sequence[Sample]
    """At least one sample, with unique ids."""
    solver: Solver
    """How a model answers."""
    scorer: Scorer
    """How an answer is judged."""
    score_range: tuple[float, float] | None = (0.0, 1.0)
    """Lowest and highest possible score, the basis of worst- and best-case bounds; None: unbounded, no such bounds."""
    higher_is_better: bool = True
    """False for rates of something bad, such as over-refusal."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("name is '', allowed: a non-empty task name")
        if len(self.dataset) == 0:
            raise DataError(f"the dataset of task {self.name!r} is empty; at least one sample is needed")
        seen: set[str] = set()
        for sample in self.dataset:
            if sample.id in seen:
                raise DataError(f"task {self.name!r} has two samples with the id {sample.id!r}; ids must be unique")
            seen.add(sample.id)
        if self.score_range is not None:
            low, high = self.score_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(f"score_range is {self.score_range!r}, allowed: (low, high) with low < high, or None")
