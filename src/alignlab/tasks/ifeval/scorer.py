"""The task, its scorer, and the four accuracies that the benchmark reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.types import Completion, SamplingParams
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval
from alignlab.tasks.evaluation import Evaluation
from alignlab.tasks.ifeval.english import sentence_model
from alignlab.tasks.ifeval.language import require_langdetect
from alignlab.tasks.ifeval.registry import Verdict, find, judge
from alignlab.tasks.solvers import Generate
from alignlab.tasks.task import Sample, Score, Task

Mode = Literal["strict", "loose"]


@dataclass(frozen=True)
class IFEval:
    """Scores 1 when all of a sample's instructions are followed, else 0: the benchmark's prompt-level verdict.

    Every verdict, strict and loose, is kept in the score's explanation, from which `accuracies` makes the rest. An
    empty answer follows nothing and scores 0, as in the reference.
    """

    mode: Mode = "strict"
    sentences: str = "auto"
    """The model that counts sentences, see `sentence_model`. Becomes the name of the model in use, so that a log tells
    which one judged it."""

    def __post_init__(self) -> None:
        if self.mode not in ("strict", "loose"):
            raise ConfigError(f'mode is {self.mode!r}, allowed: "strict" or "loose"')
        object.__setattr__(self, "sentences", sentence_model(self.sentences).name)

    def __call__(self, sample: Sample, completion: Completion) -> Score:
        """0 or 1; unscorable for a sample without instructions."""
        pairs = [(one["id"], one["arguments"]) for one in sample.metadata.get("instructions", [])]
        if not pairs:
            return Score.unscorable("the sample has no instructions")
        verdict = judge(completion.text, pairs, sentence_model(self.sentences))
        passed = verdict.all_strict if self.mode == "strict" else verdict.all_loose
        return Score(float(passed), explanation=_packed(verdict))


def _packed(verdict: Verdict) -> str:
    return json.dumps(
        {"instructions": verdict.instructions, "strict": verdict.strict, "loose": verdict.loose}, ensure_ascii=False
    )


def _unpacked(explanation: str | None, sample: str) -> Verdict:
    try:
        found: dict[str, Any] = json.loads(explanation or "")
        parts = [tuple(found[name]) for name in ("instructions", "strict", "loose")]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"sample {sample!r} was not scored by IFEval: its log holds no verdicts") from error
    return Verdict(*parts)


def ifeval_task(
    samples: Sequence[Sample], sampling: SamplingParams, *, mode: Mode = "strict", sentences: str = "auto"
) -> Task:
    """The task over samples of `read_ifeval`, each asked once.

    Raises MissingExtraError at once, not after hours of generation, when an instruction needs langdetect and it is not
    installed; DataError for a sample whose instructions are unknown.
    """
    wanted = [find(one["id"]) for sample in samples for one in sample.metadata.get("instructions", [])]
    if any(instruction.needs_langdetect for instruction in wanted):
        require_langdetect()
    return Task("ifeval", samples, Generate(sampling), IFEval(mode, sentences))


@dataclass(frozen=True)
class Accuracies:
    """What the benchmark reports, over the samples that could be scored. None where there is none."""

    prompt_strict: Interval | None
    """Share of prompts all of whose instructions are followed."""
    prompt_loose: Interval | None
    instruction_strict: Interval | None
    """Share of instructions followed; those of one prompt share an answer, so the interval draws whole prompts."""
    instruction_loose: Interval | None
    n_unscorable: int
    """Samples outside all of the above."""
    by_group: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """For each group: instructions, followed strictly, followed loosely."""
    by_instruction: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """The same for each identifier."""


def accuracies(evaluation: Evaluation, *, seed: int = 0) -> Accuracies:
    """The four accuracies with 95 % intervals from a finished evaluation; `seed` drives the bootstrap.

    Raises DataError when the evaluation was scored by something else.
    """
    scored = [result for result in evaluation.results if result.score.value is not None]
    verdicts = [_unpacked(result.score.explanation, result.id) for result in scored]
    prompts = [label for verdict, label in zip(verdicts, (r.id for r in scored), strict=True) for _ in verdict.strict]

    def interval(values: list[bool], clusters: list[str] | None) -> Interval | None:
        return mean_interval([float(value) for value in values], clusters=clusters, seed=seed) if values else None

    return Accuracies(
        interval([verdict.all_strict for verdict in verdicts], None),
        interval([verdict.all_loose for verdict in verdicts], None),
        interval([value for verdict in verdicts for value in verdict.strict], prompts),
        interval([value for verdict in verdicts for value in verdict.loose], prompts),
        len(evaluation.results) - len(scored),
        _counts((name.partition(":")[0], strict, loose) for name, strict, loose in _flat(verdicts)),
        _counts(_flat(verdicts)),
    )


def _flat(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, bool, bool]]:
    for verdict in verdicts:
        yield from zip(verdict.instructions, verdict.strict, verdict.loose, strict=True)


def _counts(rows: Iterator[tuple[str, bool, bool]]) -> dict[str, tuple[int, int, int]]:
    counts: dict[str, tuple[int, int, int]] = {}
    for name, strict, loose in rows:
        n, first, second = counts.get(name, (0, 0, 0))
        counts[name] = (n + 1, first + strict, second + loose)
    return dict(sorted(counts.items()))
