"""Generation that a crash does not undo: finished batches are on disk before the next one starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from alignlab.core.files import append_jsonl, read_jsonl
from alignlab.core.progress import Progress
from alignlab.lm.remote import RemoteSampler
from alignlab.lm.types import Completion, GenerationError, Prompt, Sampler, SamplingParams


def generate_logged(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    path: Path,
    *,
    batch_size: int,
    label: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """One row {index, text, finish_reason, tokens} for each prompt, in order, and in `path` as JSONL.

    Batches are cut at fixed places (short prompts first, so that little is padded) and written whole. What a crash left
    is read back, an unfinished batch is made again as it was, and the result equals an uninterrupted one. An endpoint's
    answers were paid for: they are kept also where others of their batch failed, and only those are asked for again.
    """
    paid = isinstance(sampler, RemoteSampler)
    rows = {row["index"]: row for row in (read_jsonl(path) if path.exists() else [])}
    order = sorted(range(len(prompts)), key=lambda i: prompt_length(prompts[i]))
    with progress.task(label, len(prompts)) as task:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            fresh: list[dict[str, Any]] = []
            wanted = [i for i in batch if i not in rows]
            if wanted:
                wanted = wanted if paid else batch
                try:
                    done: Sequence[Completion | None] = sampler.generate([prompts[i] for i in wanted], sampling)
                except GenerationError as error:
                    if paid and error.completions:
                        append_jsonl(path, _rows(wanted, error.completions))
                    raise
                fresh = _rows(wanted, done)
                append_jsonl(path, fresh)
                rows.update({row["index"]: row for row in fresh})
            task.advance(len(batch), tokens=sum(row["tokens"] for row in fresh))
    return [rows[i] for i in range(len(prompts))]


def _rows(indices: Sequence[int], completions: Sequence[Completion | None]) -> list[dict[str, Any]]:
    return [
        {"index": i, "text": c.text.strip(), "finish_reason": c.finish_reason, "tokens": len(c.tokens)}
        for i, c in zip(indices, completions, strict=True)
        if c is not None
    ]


@dataclass
class LoggedSampler:
    """A sampler whose every call is logged as `generate_logged` does, in `NAME-0.jsonl`, `NAME-1.jsonl`, … in `folder`.

    For callers that ask the same things in the same order when they are started again.
    """

    sampler: Sampler
    folder: Path
    name: str
    batch_size: int
    progress: Progress
    calls: int = 0

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """Text and finish reason of each completion; tokens are not kept."""
        path = self.folder / f"{self.name}-{self.calls}.jsonl"
        self.calls += 1
        rows = generate_logged(
            self.sampler, prompts, sampling, path, batch_size=self.batch_size, label=self.name, progress=self.progress
        )
        return [Completion(row["text"], (), (), row["finish_reason"]) for row in rows]

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor]:
        """Scores, which are not logged."""
        return self.sampler.logprobs(prompts, completions)


def prompt_length(prompt: Prompt) -> int:
    """Characters of a prompt, a cheap stand-in for its tokens."""
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
