"""What filters of fine-tuning data compare with: texts of evaluations, likelihoods under a model, rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.align.sft import SFTExample
from alignlab.core.errors import ConfigError, DataError
from alignlab.core.files import json_rows
from alignlab.core.progress import Progress
from alignlab.lm.types import Prompt

if TYPE_CHECKING:
    from alignlab.align.sft_filters import Record

FIELDS = ("messages", "prompt", "question", "instruction", "problem", "ctx", "text")
"""Where a JSONL file of an evaluation has its prompt: the first of these that a line has."""


def evaluation_texts(sources: Sequence[str]) -> list[tuple[str, list[str]]]:
    """For each source its name and the texts of its prompts.

    A source is a JSONL file (see `FIELDS`), or a built-in task, as `NAME` or `NAME=DATA` where the task reads a file.
    Raises ConfigError for a source that is neither, and DataError for a file without prompts.
    """
    return [(source, _texts(source)) for source in sources]


def _texts(source: str) -> list[str]:
    from alignlab.tasks.builtin import BUILT_IN, TaskSettings, make_task

    path = Path(source).expanduser()
    if path.is_file():
        return [_asked(row, where) for where, row in json_rows(path)]
    name, _, data = source.partition("=")
    if name not in BUILT_IN:
        raise ConfigError(f"{source!r} is neither a file nor a built-in task; `alignlab eval list` shows the tasks")
    task = make_task(name, TaskSettings(data=Path(data).expanduser()) if data else TaskSettings())
    return [_plain(sample.prompt) for sample in task.dataset]


def _asked(row: dict[str, Any], where: str) -> str:
    name = next((name for name in FIELDS if name in row), None)
    if name is None:
        raise DataError(f"{where} has {', '.join(row)}, allowed: one of {', '.join(FIELDS)}")
    value = row[name]
    if isinstance(value, list):
        return _plain(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {type(value).__name__}, allowed: text or messages")
    return value


def _plain(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.get("content")) for message in prompt if message.get("role") == "user")


def turns_of(record: Record) -> list[tuple[Prompt, str]]:
    """Each turn that the record teaches, with what comes before it."""
    found: list[tuple[Prompt, str]] = []
    for example in record.examples:
        if isinstance(example, SFTExample):
            found.append((example.prompt, example.response))
        else:
            found += [(example.messages[:i], example.messages[i]["content"]) for i in example.learned]
    return found


def answer_nats(records: Sequence[Record], model: str, progress: Progress) -> list[float | None]:
    """Mean negative log-likelihood (nats a token) of each record's answers under `model`; None where a prompt and its
    answer are longer than the model's context."""
    from alignlab.lm.language_model import load
    from alignlab.lm.local import LocalSampler

    lm = load(model)
    turns = [(number, *turn) for number, record in enumerate(records) for turn in turns_of(record)]
    sums, counts, unread = [0.0] * len(records), [0] * len(records), set[int]()
    readable = []
    for number, prompt, answer in turns:
        n = len(lm.tokenizer.encode_prompt(prompt)) + len(lm.tokenizer.encode(answer))
        if n > lm.model.config.n_ctx:
            unread.add(number)
        else:
            readable.append((number, prompt, answer))
    sampler = LocalSampler(lm)
    with progress.task("likelihoods", len(readable), unit="answers") as task:
        for start in range(0, len(readable), 64):
            part = readable[start : start + 64]
            for (number, _, _), found in zip(part, sampler.logprobs([p for _, p, _ in part], [a for _, _, a in part])):
                sums[number] -= float(found.sum())
                counts[number] += len(found)
            task.advance(len(part))
    return [
        None if number in unread or not counts[number] else sums[number] / counts[number]
        for number in range(len(records))
    ]


def answer_rewards(records: Sequence[Record], path: str) -> list[float]:
    """The lowest reward of each record's answers.

    Raises ModelError where `path` has no reward model, and DataError for a reward that is no number.
    """
    from alignlab.align.reward.readers import as_text
    from alignlab.align.reward.saved import has_template, load_reward

    model, _ = load_reward(path)
    turns = [(number, *turn) for number, record in enumerate(records) for turn in turns_of(record)]
    prompts = [prompt if has_template(model) else as_text(prompt) for _, prompt, _ in turns]
    found = [math.inf] * len(records)
    for (number, _, _), reward in zip(turns, model.score(prompts, [answer for _, _, answer in turns]).tolist()):
        if not math.isfinite(reward):
            raise DataError(f"the reward of line {records[number].line} is {reward}, allowed: a finite number")
        found[number] = min(found[number], reward)
    return found
