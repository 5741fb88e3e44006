"""Logged generation: interrupted anywhere, it goes on and ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignlab.align.resumable import generate_logged, prompt_length
from alignlab.core.errors import DataError
from alignlab.core.files import read_jsonl
from alignlab.core.progress import Progress
from alignlab.lm.scripted import ScriptedSampler
from alignlab.lm.types import Completion, Prompt, SamplingParams

PROMPTS: list[Prompt] = [
    "a" * 7,
    [{"role": "user", "content": "bb"}],
    "c" * 3,
    "d" * 9,
    [{"role": "user", "content": "e"}, {"role": "assistant", "content": "eeee"}],
    "f",
    "g" * 4,
]
BY_LENGTH = [5, 1, 2, 6, 4, 0, 3]


class Counting(ScriptedSampler):
    """Repeats the prompt's last text; raises on batch number `fails` and remembers what it was asked."""

    def __init__(self, fails: int | None = None) -> None:
        super().__init__(lambda p: f" {p if isinstance(p, str) else p[-1]['content']} !\n")
        self.fails, self.batches = fails, list[list[Prompt]]()

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        if len(self.batches) == self.fails:
            raise RuntimeError("the power went off")
        self.batches.append(list(prompts))
        return super().generate(prompts, sampling)


def generate(sampler: Counting, path: Path, batch_size: int = 2) -> list[dict[str, Any]]:
    return generate_logged(
        sampler,
        PROMPTS,
        SamplingParams(max_tokens=5),
        path,
        batch_size=batch_size,
        label="test",
        progress=Progress.silent(),
    )


def test_rows_in_order_of_the_prompts(tmp_path: Path) -> None:
    rows = generate(Counting(), tmp_path / "log.jsonl")
    assert [row["index"] for row in rows] == list(range(7))
    assert rows[3] == {"index": 3, "text": "ddddddddd !", "finish_reason": "stop", "tokens": 3}
    assert sorted(read_jsonl(tmp_path / "log.jsonl"), key=lambda row: row["index"]) == rows


def test_short_prompts_come_first_in_fixed_batches(tmp_path: Path) -> None:
    assert [prompt_length(prompt) for prompt in PROMPTS] == [7, 2, 3, 9, 5, 1, 4]
    sampler = Counting()
    generate(sampler, tmp_path / "log.jsonl")
    assert sampler.batches == [[PROMPTS[i] for i in BY_LENGTH[start : start + 2]] for start in range(0, 7, 2)]


@pytest.mark.parametrize("fails", [0, 1, 2, 3])
def test_only_what_is_missing_is_asked_again(tmp_path: Path, fails: int) -> None:
    whole = generate(Counting(), tmp_path / "whole.jsonl")
    path = tmp_path / "log.jsonl"
    with pytest.raises(RuntimeError, match="the power went off"):
        generate(Counting(fails), path)
    again = Counting()
    assert generate(again, path) == whole
    assert again.batches == [[PROMPTS[i] for i in BY_LENGTH[s : s + 2]] for s in range(2 * fails, 7, 2)]
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    third = Counting()
    assert generate(third, path) == whole
    assert third.batches == []


@pytest.mark.parametrize("cut", [1, 10, 60, 70, 130, 200])
def test_a_torn_log_is_mended(tmp_path: Path, cut: int) -> None:
    """The file cut off anywhere, as a crash of the machine may leave it."""
    whole = generate(Counting(), tmp_path / "whole.jsonl")
    path = tmp_path / "log.jsonl"
    path.write_bytes((tmp_path / "whole.jsonl").read_bytes()[:-cut])
    assert generate(Counting(), path) == whole
    assert generate(Counting(0), path) == whole


def test_half_a_batch_is_made_again_whole(tmp_path: Path) -> None:
    """Its companions are asked too, so that the batch is the one an undisturbed run makes."""
    whole = generate(Counting(), tmp_path / "whole.jsonl", batch_size=3)
    path = tmp_path / "log.jsonl"
    path.write_text("".join((tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)[:4]))
    sampler = Counting()
    assert generate(sampler, path, batch_size=3) == whole
    assert sampler.batches[0] == [PROMPTS[i] for i in BY_LENGTH[3:6]]


def test_a_damaged_log_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('nonsense\n{"index": 0, "text": "", "finish_reason": "stop", "tokens": 0}\n')
    with pytest.raises(DataError, match="line 1 is not valid JSON"):
        generate(Counting(), path)
