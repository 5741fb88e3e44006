"""`responses.jsonl` of a run: what the policy said at every step, as numbers for all and as texts for some.

One line a step. Numbers of at most 256 responses are kept for every step (about 30 bytes each); texts of a few, until
they fill their space: then those of every second step are dropped, and so on, so that a long training keeps samples
from all of it in bounded space.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.align.diagnostics.history import StepResponses
from alignlab.core.files import append_jsonl, atomic_write
from alignlab.lm.types import Prompt

FILE = "responses.jsonl"
MOST_NUMBERS = 256
LONGEST_TEXT = 2000
TEXT_BYTES = 16_000_000


@dataclass(frozen=True)
class Sample:
    """One response as text."""

    prompt: Prompt
    response: str
    reward: float
    gold: float | None = None
    spans: tuple[tuple[str, float], ...] = ()
    """The response in parts with what each contributes to the reward; none where nobody asked."""
    cut: bool = False
    """Whether prompt or response are longer than what is kept."""


@dataclass(frozen=True)
class StepRecord:
    """One step as it is in the file."""

    numbers: StepResponses
    samples: tuple[Sample, ...] = ()


@dataclass
class ResponseLog:
    """Writes the file of one run; opened again it goes on where it was."""

    path: Path
    text_bytes: int = TEXT_BYTES
    every: int = field(default=1, init=False)
    """Texts are kept of steps that this divides."""

    def __post_init__(self) -> None:
        rows, _ = read_rows(self.path)
        self.every = max((every for row in rows if isinstance(every := row.get("every"), int) and every > 0), default=1)

    def write(self, record: StepRecord) -> None:
        """Append one step; RunError where the disk is full."""
        keep = record.numbers.step % self.every == 0 or record.numbers.step == 1
        row = as_row(record, self.every) if keep else {**as_row(record, self.every), "samples": []}
        append_jsonl(self.path, [row])
        if keep and self.path.stat().st_size > self.text_bytes:
            self._thin()

    def _thin(self) -> None:
        """Drop the texts of every second step that has some, until half of the space is free."""
        rows = list({row["step"]: row for row in read_rows(self.path)[0]}.values())  # steps redone after a crash: once

        def with_texts() -> int:
            return sum(len(json.dumps(row["samples"])) for row in rows)

        while rows and (size := with_texts()) > self.text_bytes // 2 and self.every < 2 * rows[-1]["step"]:
            self.every *= 2
            for row in rows:
                if row["step"] % self.every and row["step"] != 1:
                    row["samples"] = []
            if with_texts() == size:
                break
        for row in rows:
            row["every"] = self.every
        atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        numbers = self.path.stat().st_size - with_texts()
        self.text_bytes = max(self.text_bytes, 2 * numbers)  # numbers alone must not cause this at every step


def as_row(record: StepRecord, every: int = 1) -> dict[str, Any]:
    """A step as one JSON object."""
    numbers = record.numbers

    def first(values: Sequence[float]) -> list[float]:
        return [float(f"{value:.6g}") for value in values[:MOST_NUMBERS]]

    return {
        "step": numbers.step,
        "every": every,
        "prompts": list(numbers.prompts[:MOST_NUMBERS]),
        "rewards": first(numbers.rewards),
        "lengths": first(numbers.lengths),
        "gold": first(numbers.gold),
        "samples": [_sample_row(sample) for sample in record.samples],
    }


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(the lines that are what they should be, how many are not); nothing where there is no file.

    A line that is still being written does not count as broken.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return [], 0
    rows, broken = [], 0
    *lines, last = content.split(b"\n")
    for line in [*lines, last]:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            good = isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("samples", []), list)
        except (ValueError, RecursionError):
            good, row = False, None
        if good:
            rows.append({"samples": [], **row})
        else:
            broken += line is not last
    return rows, broken


def read_responses(path: Path) -> tuple[dict[int, StepRecord], int]:
    """(records by step, lines or steps that could not be read); of a step written twice the last counts."""
    rows, broken = read_rows(path)
    found: dict[int, StepRecord] = {}
    for row in rows:
        try:
            found[row["step"]] = _record(row)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            broken += 1
    return dict(sorted(found.items())), broken


def prompt_key(prompt: Prompt) -> str:
    """What tells prompts apart in the file: eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:8]


def prompt_text(prompt: Prompt) -> str:
    """A prompt for people: messages with who says them."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def clean(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text that JSON and UTF-8 can hold, cut to what is kept."""
    return text[:longest].encode("utf-8", "replace").decode()


def cleaned(messages: Sequence[Mapping[str, str]]) -> Prompt:
    """The same for the messages of a prompt."""
    return [{"role": clean(message["role"]), "content": clean(message["content"])} for message in messages]


def _sample_row(sample: Sample) -> dict[str, Any]:
    asked = sample.prompt if isinstance(sample.prompt, str) else [dict(message) for message in sample.prompt]
    row: dict[str, Any] = {"prompt": asked, "response": sample.response, "reward": sample.reward}
    if sample.gold is not None:
        row["gold"] = sample.gold
    if sample.spans:
        row["spans"] = [[text, float(f"{value:.4g}")] for text, value in sample.spans]
    return {**row, "cut": True} if sample.cut else row


def _record(row: Mapping[str, Any]) -> StepRecord:
    def numbers(name: str) -> tuple[float, ...]:
        values = tuple(float(value) for value in row.get(name) or ())
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name} are not finite")
        return values

    found = StepResponses(
        row["step"], tuple(str(p) for p in row["prompts"]), numbers("rewards"), numbers("lengths"), numbers("gold")
    )
    return StepRecord(found, tuple(_sample(sample) for sample in row["samples"]))


def _sample(row: Mapping[str, Any]) -> Sample:
    gold = row.get("gold")
    spans = tuple((str(text), float(value)) for text, value in row.get("spans") or ())
    asked: Prompt = row["prompt"]
    if not isinstance(asked, str):
        asked = [{"role": str(message["role"]), "content": str(message["content"])} for message in asked]
    return Sample(
        asked, str(row["response"]), float(row["reward"]), None if gold is None else float(gold), spans,
        bool(row.get("cut")),
    )  # fmt: skip
