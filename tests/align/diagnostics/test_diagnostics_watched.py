"""A watched reward: same scores, an account of each step, a bounded log that any file content survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.align.diagnostics.history import StepResponses
from alignlab.align.diagnostics.response_log import (
    FILE,
    ResponseLog,
    Sample,
    StepRecord,
    prompt_key,
    prompt_text,
    read_responses,
)
from alignlab.align.diagnostics.watched import Watched, spread, text_measures
from alignlab.align.rl.rewards import Combined, Guarded, RewardError
from alignlab.core.errors import ConfigError
from alignlab.core.runs import Run

CHAT = [{"role": "user", "content": "Why?"}]


def letters(prompts: Any, responses: Any) -> list[float]:
    return [float(len(text)) for text in responses]


def vowels(prompts: Any, responses: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in responses]


def record(step: int, text: str = "an answer", n: int = 3) -> StepRecord:
    numbers = StepResponses(step, tuple(f"p{i}" for i in range(n)), (1.0,) * n, (2.0,) * n, (0.5,) * n)
    return StepRecord(numbers, (Sample("asked", text, 1.0, 0.5, (("an ", 0.25), ("answer", -0.5))),))


def test_scores_are_the_rewards_own_and_a_step_is_accounted_for(tmp_path: Path) -> None:
    with Run.create({}, name="rl", path=tmp_path / "run") as run:
        watched = Watched(letters, vowels, run, lambda text: len(text.split()), samples=2, attribute=1)
        guarded = Guarded(watched)
        assert guarded.score([CHAT, CHAT], ["a b c d a b c d", "no"]).tolist() == [15.0, 2.0]
        guarded.score(["q"], ["uuu uuu"])
        measured = guarded.after_step()
        assert measured["gold"] == pytest.approx((2 + 1 + 6) / 3)
        assert measured["repetition"] == pytest.approx(1 / 5)
        assert measured["length_correlation"] == pytest.approx(1.0)
        assert guarded.after_step() == {}
    records, broken = read_responses(run.path / FILE)
    assert (list(records), broken) == ([1], 0)
    numbers = records[1].numbers
    assert numbers.prompts == (prompt_key(CHAT), prompt_key(CHAT), prompt_key("q"))
    assert (numbers.rewards, numbers.gold, numbers.lengths) == ((15, 2, 7), (2, 1, 6), (8, 1, 2))
    best, worst = records[1].samples
    assert (best.prompt, best.response, best.gold) == (CHAT, "a b c d a b c d", 2.0)
    assert (worst.response, worst.spans) == ("no", ())
    assert [text for text, _ in best.spans] == ["a ", "b ", "c ", "d ", "a ", "b ", "c ", "d"]
    assert [value for _, value in best.spans] == [2.0] * 7 + [1.0]


def test_the_rewards_own_account_and_state_go_through() -> None:
    inner = Combined({"letters": letters}, normalise="running")
    watched = Watched(inner, gold_every=2, gold=vowels)
    watched.score(["q", "q"], ["abc", "e"])
    first = watched.after_step()
    assert first["reward/letters"] == 2.0
    assert "gold" not in first
    watched.score(["q"], ["aa"])
    assert watched.after_step()["gold"] == 2.0
    again = Watched(Combined({"letters": letters}, normalise="running"), gold=vowels)
    Guarded(again).load_state_dict(json.loads(json.dumps(Guarded(watched).state_dict())))
    assert again.step == 2
    assert torch.equal(again.score(["q"], ["abcd"]), watched.score(["q"], ["abcd"]))


def test_a_watched_model_shows_its_tokenizer_and_a_broken_reward_its_row() -> None:
    class Model:
        tokenizer = "the policy's is compared with this"

        def score(self, prompts: Any, responses: Any) -> torch.Tensor:
            return torch.tensor([float("nan") if text == "bad" else 0.0 for text in responses])

    watched = Watched(Model())
    assert (watched.tokenizer, watched.name) == (Model.tokenizer, "Model")
    with pytest.raises(RewardError, match="response 1"):
        watched.score(["a", "b"], ["good", "bad"])
    assert watched.after_step() == {}
    with pytest.raises(ConfigError, match="attribute"):
        Watched(letters, samples=2, attribute=3)


def test_measures_of_texts() -> None:
    assert text_measures(["a b a b a b"], [1.0])["repetition"] == pytest.approx(1 / 3)
    assert text_measures(["a b", "a b"], [1.0, 2.0])["distinct"] == 0.5
    assert text_measures(["", "a"], [1.0, 1.0]) == {}
    assert spread(10, 4) == [0, 3, 6, 9]
    assert (spread(3, 8), spread(5, 1), spread(5, 0)) == ([0, 1, 2], [0], [])


def test_what_is_written_is_read_again_and_of_a_step_done_twice_the_last_counts(tmp_path: Path) -> None:
    log = ResponseLog(tmp_path / FILE)
    log.write(record(1, "first"))
    log.write(record(2))
    log.write(record(1, "a lone surrogate: \\ud800"))
    records, broken = read_responses(tmp_path / FILE)
    assert broken == 0
    assert records == {1: record(1, "a lone surrogate: \\ud800"), 2: record(2)}


def test_texts_stay_in_their_space_and_numbers_of_every_step_stay(tmp_path: Path) -> None:
    log = ResponseLog(tmp_path / FILE, text_bytes=60_000)
    for step in range(1, 401):
        log.write(record(step, "words " * 60))
    records, _ = read_responses(tmp_path / FILE)
    assert list(records) == list(range(1, 401))
    kept = [step for step, one in records.items() if one.samples]
    assert kept[0] == 1
    assert 10 < len(kept) < 220
    assert kept[-1] > 380
    assert (tmp_path / FILE).stat().st_size < 170_000
    assert ResponseLog(tmp_path / FILE).every == log.every > 1


def test_a_damaged_log_is_read_without_its_damage(tmp_path: Path) -> None:
    path = tmp_path / FILE
    ResponseLog(path).write(record(1))
    good = path.read_bytes()
    hostile = [
        b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"null\n", b'{"step": true}\n', b'{"step": 3}\n',
        b'{"step": 4, "prompts": ["a"], "rewards": [NaN]}\n', b'{"step": 5, "prompts": 7, "rewards": []}\n',
        b'{"step": 6, "samples": {}}\n', b'{"step": 7, "prompts": [], "rewards": [], "samples": [1]}\n',
    ]  # fmt: skip
    path.write_bytes(b"".join(hostile) + good + b'{"step": 9, "prom')
    records, broken = read_responses(path)
    assert list(records) == [1]
    assert broken == len(hostile)
    assert read_responses(tmp_path / "none") == ({}, 0)


def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    with Run.create({}, name="rl", path=tmp_path / "run") as run:
        watched = Watched(letters, run=run)
        watched.score([CHAT], ["x" * 5000])
        watched.after_step()
    (sample,) = read_responses(run.path / FILE)[0][1].samples
    assert (len(sample.response), sample.cut, sample.prompt) == (2000, True, prompt_text(CHAT))
