"""Generation that a crash does not undo: finished batches are on disk before the next one starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignlab.core.files import append_jsonl, read_jsonl
from alignlab.core.progress import Progress
from alignlab.lm.types import Prompt, Sampler, SamplingParams


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
    is read back, an unfinished batch is made again as it was, and the result equals an uninterrupted one.
    """
    rows = {row["index"]: row for row in (read_jsonl(path) if path.exists() else [])}
    order = sorted(range(len(prompts)), key=lambda i: prompt_length(prompts[i]))
    with progress.task(label, len(prompts)) as task:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            fresh: list[dict[str, Any]] = []
            if not all(i in rows for i in batch):
                done = sampler.generate([prompts[i] for i in batch], sampling)
                fresh = [
                    {"index": i, "text": c.text.strip(), "finish_reason": c.finish_reason, "tokens": len(c.tokens)}
                    for i, c in zip(batch, done, strict=True)
                ]
                append_jsonl(path, fresh)
                rows.update({row["index"]: row for row in fresh})
            task.advance(len(batch), tokens=sum(row["tokens"] for row in fresh))
    return [rows[i] for i in range(len(prompts))]


def prompt_length(prompt: Prompt) -> int:
    """Characters of a prompt, a cheap stand-in for its tokens."""
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
