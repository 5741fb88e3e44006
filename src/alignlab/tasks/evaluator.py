"""Run a task: in batches, logged sample by sample, resumable after a crash, with honest denominators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.core.files import append_jsonl, atomic_write, writing
from alignlab.core.progress import SILENT, Progress
from alignlab.lm.types import Completion, Prompt, Sampler, SamplingParams
from alignlab.tasks.evaluation import (
    HEADER_FILE,
    LOG_FILE,
    SUMMARY_FILE,
    Evaluation,
    SampleResult,
    read_header,
    read_results,
)
from alignlab.tasks.fingerprint import header
from alignlab.tasks.task import BatchScorer, Sample, Score, Task

if TYPE_CHECKING:
    from torch import Tensor


def evaluate(
    task: Task,
    sampler: Sampler,
    *,
    log_dir: str | Path,
    batch_size: int = 32,
    progress: Progress = SILENT,
    model: str | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluate `sampler` on `task`, or continue where an interrupted evaluation in `log_dir` stopped.

    Batches are cut at fixed positions of the dataset, so a resumed evaluation asks exactly what an uninterrupted one
    asks. A solver or scorer that raises for a sample makes that sample unscorable, with the reason; an error of the
    sampler itself propagates, and what was logged before it stays. `model` names what is evaluated (default: what the
    sampler calls itself): give stages of one model different names. `seed` drives the bootstrap of the aggregate.

    Writes evaluation.json, samples.jsonl (a line a sample), samples.parquet and summary.json. DataError when `log_dir`
    holds the log of another task, dataset, solver, scorer or model, or when a score lies outside `task.score_range`.
    """
    require(isinstance(batch_size, int) and batch_size >= 1, "batch_size", batch_size, "a whole number of at least 1")
    log_dir = Path(log_dir)
    with writing(log_dir):
        log_dir.mkdir(parents=True, exist_ok=True)
    ids = [sample.id for sample in task.dataset]
    identity = {**header(task, sampler, model), "seed": seed, "ids": ids}
    done = _open_log(log_dir, identity)
    guarded = _GuardedSampler(sampler)
    with progress.task(f"{task.name}: {identity['model']}", len(task.dataset)) as bar:
        for start in range(0, len(task.dataset), batch_size):
            batch = task.dataset[start : start + batch_size]
            missing = {sample.id for sample in batch if sample.id not in done}
            if missing:
                results = _run_batch(task, guarded, batch)
                rows = [result.row() for result in results if result.id in missing]
                append_jsonl(log_dir / LOG_FILE, rows)
                # Back from JSON, so that what is held equals what a resumed evaluation reads.
                fresh = [SampleResult.from_row(json.loads(json.dumps(row)), log_dir) for row in rows]
                done.update({result.id: result for result in fresh})
            spent = [done[sample.id].completion for sample in batch if sample.id in missing]
            bar.advance(len(batch), tokens=sum(len(completion.tokens) for completion in spent if completion))
    evaluation = Evaluation.build(identity, [done[name] for name in ids], log_dir, seed)
    evaluation.write_parquet()
    summary = {"task": task.name, "model": identity["model"], **evaluation.aggregate.as_dict()}
    atomic_write(log_dir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    return evaluation


def _open_log(log_dir: Path, identity: dict[str, Any]) -> dict[str, SampleResult]:
    """Results logged so far; writes the header of a new log, refuses a log that is not of `identity`."""
    path = log_dir / HEADER_FILE
    if not path.exists():
        if (log_dir / LOG_FILE).exists():
            raise DataError(
                f"{log_dir} holds {LOG_FILE} without {HEADER_FILE}, so its task is unknown; use another folder"
            )
        atomic_write(path, json.dumps(identity, indent=1) + "\n")
        return {}
    old, new = read_header(log_dir), json.loads(json.dumps(identity))
    # The seed belongs to the aggregate, not to the samples, so another one may reuse the log.
    parts = [part for part in new if part not in ("seed", "ids") and old.get(part) != new[part]]
    if parts:
        raise DataError(
            f"the log in {log_dir} is of another {' and '.join(parts)} (task {old.get('task')!r}, model "
            f"{old.get('model')!r}); use another folder or delete it"
        )
    if old.get("seed") != identity["seed"]:
        atomic_write(path, json.dumps(identity, indent=1) + "\n")
    return read_results(log_dir)


class _GuardedSampler:
    """Remembers an error of the sampler, so that it is told from an error of the solver that called it."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.failure: Exception | None = None

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        try:
            return self._sampler.generate(prompts, sampling)
        except Exception as error:
            self.failure = error
            raise

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor]:
        try:
            return self._sampler.logprobs(prompts, completions)
        except Exception as error:
            self.failure = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


def _run_batch(task: Task, sampler: _GuardedSampler, batch: Sequence[Sample]) -> list[SampleResult]:
    solved = _solve(task, sampler, batch)
    answered = [(sample, done) for sample, done in zip(batch, solved, strict=True) if isinstance(done, Completion)]
    scores = _score(task, [sample for sample, _ in answered], [done for _, done in answered])
    scored = {sample.id: score for (sample, _), score in zip(answered, scores, strict=True)}
    return [
        SampleResult.of(sample, done, scored[sample.id])
        if isinstance(done, Completion)
        else SampleResult.of(sample, None, done)
        for sample, done in zip(batch, solved, strict=True)
    ]


def _solve(task: Task, sampler: _GuardedSampler, batch: Sequence[Sample]) -> list[Completion | Score]:
    """A completion for each sample, or the unscorable score of one for which the solver raised."""
    sampler.failure = None
    try:
        completions = task.solver(sampler, batch)
    except Exception as error:
        if sampler.failure is not None:
            raise sampler.failure  # noqa: B904  the sampler's own error is the cause, whatever the solver made of it
        if len(batch) == 1:
            return [Score.unscorable(f"solver raised {_told(error)}")]
        # One bad sample must not cost its companions: find it by asking one at a time.
        return [one for sample in batch for one in _solve(task, sampler, [sample])]
    if len(completions) != len(batch):
        raise DataError(
            f"the solver of task {task.name!r} returned {len(completions)} completions for {len(batch)} samples"
        )
    return list(completions)


def _score(task: Task, samples: Sequence[Sample], completions: Sequence[Completion]) -> list[Score]:
    scores: list[Score] | None = None
    if isinstance(task.scorer, BatchScorer) and samples:
        try:
            scores = task.scorer.score_batch(samples, completions)
        except Exception:
            scores = None  # the single calls below find which sample it was
        if scores is not None and len(scores) != len(samples):
            raise DataError(
                f"the scorer of task {task.name!r} returned {len(scores)} scores for {len(samples)} samples"
            )
    if scores is None:
        scores = [_score_one(task, sample, done) for sample, done in zip(samples, completions, strict=True)]
    for sample, score in zip(samples, scores, strict=True):
        _check_score(task, sample, score)
    return scores


def _score_one(task: Task, sample: Sample, completion: Completion) -> Score:
    try:
        return task.scorer(sample, completion)
    except Exception as error:
        return Score.unscorable(f"scorer raised {_told(error)}")


def _check_score(task: Task, sample: Sample, score: Score) -> None:
    if not isinstance(score, Score):
        raise DataError(
            f"the scorer of task {task.name!r} returned {type(score).__name__} for {sample.id!r}, allowed: a Score"
        )
    if score.value is None or task.score_range is None:
        return
    low, high = task.score_range
    if not low <= score.value <= high:
        raise DataError(
            f"the scorer of task {task.name!r} gave {score.value:g} for sample {sample.id!r}, outside its score_range "
            f"({low:g}, {high:g}); declare the right range, or None for an unbounded score"
        )


def _told(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
