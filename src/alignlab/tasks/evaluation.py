"""The result of an evaluation: one row a sample, an aggregate with bounds, and its files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.core.errors import DataError
from alignlab.core.files import read_json, read_jsonl, writing
from alignlab.lm.types import Completion, Prompt
from alignlab.stats.interval import Interval
from alignlab.stats.paired import mean_interval
from alignlab.tasks.task import Sample, Score

if TYPE_CHECKING:
    import polars as pl  # a table is rarely asked for, and training with a task's scorer needs none

HEADER_FILE, LOG_FILE, TABLE_FILE, SUMMARY_FILE = "evaluation.json", "samples.jsonl", "samples.parquet", "summary.json"


@dataclass(frozen=True)
class SampleResult:
    """What happened to one sample."""

    id: str
    prompt: Prompt
    completion: Completion | None
    """None when the solver raised for this sample."""
    score: Score
    target: str | None = None
    cluster: str | None = None
    metadata: dict[str, Any] | None = None

    @classmethod
    def of(cls, sample: Sample, completion: Completion | None, score: Score) -> SampleResult:
        """The result of `sample`."""
        return cls(sample.id, sample.prompt, completion, score, sample.target, sample.cluster, dict(sample.metadata))

    def row(self) -> dict[str, Any]:
        """The line of the log."""
        done = self.completion
        return {
            "id": self.id,
            "prompt": self.prompt,
            "target": self.target,
            "cluster": self.cluster,
            "metadata": self.metadata or {},
            "text": done.text if done else None,
            "finish_reason": done.finish_reason if done else None,
            "prompt_tokens": done.prompt_tokens if done else None,
            "tokens": list(done.tokens) if done else None,
            "logprobs": [round(float(p), 6) for p in done.logprobs] if done else None,
            "value": self.score.value,
            "reason": self.score.reason,
            "explanation": self.score.explanation,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any], where: Path) -> SampleResult:
        """The inverse of `row`; DataError naming the file when a key is missing."""
        try:
            completion = None
            if row["text"] is not None:
                tokens, logprobs = tuple(row["tokens"]), tuple(row["logprobs"])
                completion = Completion(row["text"], tokens, logprobs, row["finish_reason"], row["prompt_tokens"])
            score = Score(row["value"], row["reason"], row["explanation"])
            return cls(row["id"], row["prompt"], completion, score, row["target"], row["cluster"], row["metadata"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{where} holds a line that is not a sample's result: {error}") from error


@dataclass(frozen=True)
class Aggregate:
    """Mean score with its uncertainty and its denominator."""

    mean: Interval | None
    """Over the scored samples; None when there is none."""
    n: int
    """Samples in the dataset."""
    n_scored: int
    n_unscorable: int
    reasons: dict[str, int]
    """Why samples are unscorable, with counts, most frequent first."""
    worst: Interval | None
    """Mean over all samples if every unscorable one had got the worst score; None for an unbounded score."""
    best: Interval | None
    """The same with the best score."""

    @property
    def score(self) -> Interval | None:
        """The number to quote: every unscorable sample counted as the worst, its interval wide enough for whatever
        they deserved. So nothing that fails to be scored can improve it, as it can the mean of the others.

        Equal to `mean` where everything is scored; None for an unbounded score with unscorable samples.
        """
        if self.n_unscorable == 0:
            return self.mean
        if self.worst is None or self.best is None:
            return None
        low, high = min(self.worst.low, self.best.low), max(self.worst.high, self.best.high)
        return Interval(self.worst.estimate, low, high, self.n, self.worst.confidence, "unscorable as worst")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        intervals = {name: getattr(self, name) for name in ("score", "mean", "worst", "best")}
        return {
            "n": self.n,
            "n_scored": self.n_scored,
            "n_unscorable": self.n_unscorable,
            "reasons": self.reasons,
            **{name: interval.as_dict() if interval else None for name, interval in intervals.items()},
        }


@dataclass(frozen=True)
class Evaluation:
    """One model on one task."""

    header: dict[str, Any]
    """What the log belongs to: task, model, dataset digest, solver, scorer."""
    results: tuple[SampleResult, ...]
    """In the order of the dataset."""
    aggregate: Aggregate
    log_dir: Path

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.header["task"])

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.header["model"])

    @property
    def dataset(self) -> str:
        """Digest of the dataset."""
        return str(self.header["dataset"])

    @property
    def higher_is_better(self) -> bool:
        """Direction of the score."""
        return bool(self.header["higher_is_better"])

    @property
    def score_range(self) -> tuple[float, float] | None:
        """Lowest and highest possible score."""
        limits = self.header["score_range"]
        return (float(limits[0]), float(limits[1])) if limits is not None else None

    @property
    def values(self) -> dict[str, float | None]:
        """Score of each sample by id, in the order of the dataset; None: unscorable."""
        return {result.id: result.score.value for result in self.results}

    @property
    def tokens(self) -> int:
        """Completion tokens over all samples."""
        return sum(len(result.completion.tokens) for result in self.results if result.completion)

    @property
    def truncated(self) -> int:
        """Completions that ran into the token limit."""
        return sum(r.completion is not None and r.completion.finish_reason == "length" for r in self.results)

    @classmethod
    def build(cls, header: dict[str, Any], results: Sequence[SampleResult], log_dir: Path, seed: int = 0) -> Evaluation:
        """Aggregate `results`; `seed` drives the bootstrap."""
        limits = header["score_range"]
        score_range = (limits[0], limits[1]) if limits is not None else None
        summary = aggregate(results, score_range, bool(header["higher_is_better"]), seed)
        return cls(header, tuple(results), summary, log_dir)

    @classmethod
    def load(cls, log_dir: str | Path) -> Evaluation:
        """Read a finished evaluation back; DataError when it is unfinished or damaged."""
        log_dir = Path(log_dir)
        header = read_header(log_dir)
        order = header["ids"]
        found = read_results(log_dir)
        missing = [name for name in order if name not in found]
        if missing:
            raise DataError(
                f"the evaluation in {log_dir} is unfinished: {len(missing)} of {len(order)} samples are missing; "
                "run it again to continue"
            )
        return cls.build(header, [found[name] for name in order], log_dir, int(header["seed"]))

    def frame(self) -> pl.DataFrame:
        """One row a sample; prompts of messages and metadata as JSON text."""
        import polars as pl

        schema: dict[str, Any] = {
            **dict.fromkeys(["id", "prompt", "target", "cluster", "metadata", "text", "finish_reason"], pl.String),
            **dict.fromkeys(["prompt_tokens", "completion_tokens"], pl.Int64),
            "tokens": pl.List(pl.Int64),
            "logprobs": pl.List(pl.Float64),
            "value": pl.Float64,
            **dict.fromkeys(["reason", "explanation"], pl.String),
        }
        rows = [result.row() for result in self.results]
        for row in rows:
            row["prompt"] = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
            row["metadata"] = json.dumps(row["metadata"], sort_keys=True)
            row["completion_tokens"] = None if row["tokens"] is None else len(row["tokens"])
        return pl.DataFrame(rows, schema=schema, orient="row")

    def write_parquet(self) -> Path:
        """Write `samples.parquet` beside the log, replacing an old one whole."""
        path = self.log_dir / TABLE_FILE
        part = path.with_name(f".{path.name}.tmp")
        with writing(path):
            self.frame().write_parquet(part)
            os.replace(part, path)
        return path


def cluster_labels(results: Sequence[SampleResult]) -> list[Hashable] | None:
    """A cluster for each sample (its own when it names none); None when no sample names one."""
    if all(result.cluster is None for result in results):
        return None
    return [("own", r.id) if r.cluster is None else ("named", r.cluster) for r in results]


def aggregate(
    results: Sequence[SampleResult], score_range: tuple[float, float] | None, higher_is_better: bool, seed: int
) -> Aggregate:
    """Mean over the scored samples, and over all with every unscorable one at its worst and at its best."""
    scored = [result for result in results if result.score.value is not None]
    reasons = Counter(r.score.reason for r in results if r.score.reason is not None)

    def interval(rows: Sequence[SampleResult], fill: float) -> Interval:
        values = [fill if row.score.value is None else row.score.value for row in rows]
        return mean_interval(values, clusters=cluster_labels(rows), limits=score_range, seed=seed)

    mean = interval(scored, 0.0) if scored else None
    worst = best = mean if len(scored) == len(results) else None
    if score_range is not None and len(scored) < len(results):
        low, high = score_range if higher_is_better else score_range[::-1]
        worst, best = interval(results, low), interval(results, high)
    n, n_scored = len(results), len(scored)
    return Aggregate(mean, n, n_scored, n - n_scored, dict(reasons.most_common()), worst, best)


def read_header(log_dir: Path) -> dict[str, Any]:
    """The identity of the log in `log_dir`; DataError when there is none."""
    header = read_json(log_dir / HEADER_FILE)
    if not isinstance(header, dict) or header.get("format") != 1 or not isinstance(header.get("ids"), list):
        raise DataError(f"{log_dir / HEADER_FILE} is not the header of an evaluation log")
    return header


def read_results(log_dir: Path) -> dict[str, SampleResult]:
    """Logged results by sample id; a torn last line, the mark of a crash, is left out."""
    path = log_dir / LOG_FILE
    if not path.exists():
        return {}
    found: dict[str, SampleResult] = {}
    for row in read_jsonl(path):
        result = SampleResult.from_row(row, path)
        found.setdefault(result.id, result)
    return found
