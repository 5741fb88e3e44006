"""Tasks split for learning from a verifiable reward, and the comparison of before and after: planted accuracies."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_rl

from alignlab.align.rl.config import GRPOConfig
from alignlab.align.rl.gains import gain, gain_lines, gains
from alignlab.align.rl.grpo import train_grpo
from alignlab.align.rl.verifiable_task import (
    VerifiableTask,
    gsm8k_task,
    measure,
    question_key,
    shared_questions,
    sums_task,
    without_shared,
    word_task,
)
from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Completion, Prompt, SamplingParams
from alignlab.tasks.generation.worked import WorkedItem, WorkedTemplate


def build_lm() -> LanguageModel:
    return tiny_rl.build_lm()


class Planted:
    """Answers each prompt as planned: (text, whether it ended), `n` answers each."""

    def __init__(self, said: dict[str, list[tuple[str, bool]]]) -> None:
        self.said = said
        self.sampling: SamplingParams | None = None

    def generate(self, prompts: list[Prompt], sampling: SamplingParams) -> list[Completion]:
        self.sampling = sampling
        return [
            Completion(text, (1, 2), (0.0, 0.0), "stop" if ended else "length")
            for prompt in prompts
            for text, ended in self.said[str(prompt).splitlines()[-1]][: sampling.n]
        ]


def test_no_question_is_on_both_sides() -> None:
    task = sums_task(400, 150, seed=3)
    assert (len(task.learned), len(task.held), len(task.shown)) == (400, 150, 4)
    keys = [{question_key(item.question) for item in part} for part in (task.learned, task.held, task.shown)]
    assert not keys[0] & keys[1]
    assert not (keys[0] | keys[1]) & keys[2]
    assert task.prompts[0].splitlines()[-1] == f"{task.learned[0].question} ="  # type: ignore[union-attr]
    assert task == sums_task(400, 150, seed=3)
    with pytest.raises(ConfigError, match="fewer"):
        sums_task(3000, 100, kinds=("product",))


KEYS = [
    ("7 + 5", "5 + 7", True),
    ("What is 12 times 3?", "what is  3 TIMES 12?", True),
    ("7 - 5", "5 - 7", False),
    ("7 + 5", "7 * 5", False),
    ("2 + 3 * 4", "3 + 2 * 4", False),  # here the order matters
    ("17 + 5", "1 + 75", False),
]


@pytest.mark.parametrize(("one", "other", "same"), KEYS)
def test_what_counts_as_the_same_question(one: str, other: str, same: bool) -> None:
    assert (question_key(one) == question_key(other)) is same


def test_a_shared_question_is_refused_or_left_out() -> None:
    def items(*questions: str) -> tuple[WorkedItem, ...]:
        return tuple(WorkedItem(f"{q[:1]}-{i}", q, "12") for i, q in enumerate(questions))

    learned, held, template = items("7 + 5", "2 * 6"), items("5 + 7", "20 - 8"), sums_task(3, 3).template
    assert shared_questions(learned, held) == ["7-0"]
    assert [item.question for item in without_shared(learned, held)] == ["2 * 6"]
    with pytest.raises(DataError, match=r"1 questions to learn from are also held out, the first is '7-0': '7 \+ 5'"):
        VerifiableTask("t", learned, held, template, SamplingParams())


def test_gsm8k_files_and_what_they_share(tmp_path: Path) -> None:
    row = '{"question": "%s", "answer": "So <<3*4=12>>12.\\n#### %s"}\n'
    (tmp_path / "train.jsonl").write_text(row % ("Ada has 3 bags of 4 pens. How many?", "12") + row % ("Two?", "2"))
    (tmp_path / "test.jsonl").write_text(row % ("two?", "2"))
    task = gsm8k_task(tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert [item.question for item in task.learned] == ["Ada has 3 bags of 4 pens. How many?"]
    assert task.solutions()[0].response == "So 12.\n#### 12"
    assert task.reward().score(task.prompts, ["#### 12"]).tolist() == [1.0]
    assert task.form == "marked"


def test_word_problems_have_solutions_in_the_asked_form() -> None:
    task = word_task(6, 4)
    example, item = task.solutions()[1], task.learned[1]
    assert example.response.endswith(f"\n#### {item.answer}")
    assert task.reward(formed=0.1).score([example.prompt, example.prompt], [example.response, "#### 0"]).tolist() == [
        1.0,
        pytest.approx(0.1),
    ]


def test_planted_answers_are_measured() -> None:
    task = sums_task(6, 4, kinds=("sum",))
    right = {f"{item.question} =": item.answer for item in task.held}
    first, second, third, fourth = right
    said = {
        first: [(f" {right[first]}", True), (f" {right[first]}", True)],
        second: [(f" {right[second]}", True), ("0", True)],
        third: [(f"it is {right[third]}", True), (f"it is {right[third]}", True)],  # another form
        fourth: [(f" {right[fourth]}", False), ("", True)],  # cut off; nothing said
    }
    sampler = Planted(said)
    found = measure(sampler, task, temperature=1.0, seed=7, answers=2)
    assert found.right == [1.0, 0.5, 0.0, 0.0]
    assert found.right_any_form == [1.0, 0.5, 1.0, 0.0]
    assert found.ended == [1.0, 1.0, 1.0, 0.5]
    assert found.tokens == [2.0] * 4
    assert sampler.sampling is not None
    assert (sampler.sampling.seed, sampler.sampling.stop, sampler.sampling.max_tokens) == (7, ("\n",), 6)
    assert measure(sampler, task).right == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ConfigError, match="answers is 2, allowed: 1 at temperature 0"):
        measure(sampler, task, answers=2)


def test_differences_are_of_the_same_item() -> None:
    """The pairing removes what items share: shuffling one side keeps the estimate and widens the interval."""
    rng = np.random.default_rng(0)
    easy = (rng.random(300) < 0.5).astype(float)
    before = easy.copy()
    after = np.stack([np.maximum(easy, rng.random(300) < 0.1) for _ in range(4)], axis=1)
    paired, broken = gain(before, after), gain(before, after[rng.permutation(300)])
    assert paired.difference.estimate == pytest.approx(broken.difference.estimate)
    assert paired.difference.estimate == pytest.approx(after.mean() - before.mean())
    assert (paired.difference.high - paired.difference.low) < 0.5 * (broken.difference.high - broken.difference.low)
    assert paired.verdict == "better"
    assert gain(after.mean(axis=1), before).verdict == "worse"
    assert (paired.seeds, paired.difference.method) == (4, "crossed t")


def test_one_seed_speaks_for_itself_and_equal_answers_are_no_certainty() -> None:
    before, after = np.zeros(40), np.ones((40, 1))
    one = gain(before, after)
    assert (one.verdict, one.seeds) == ("better", 1)
    same = gain(before, np.zeros((40, 3)))
    assert same.verdict == "tied"
    assert same.difference.low < -0.05 < 0.05 < same.difference.high


def test_several_comparisons_widen_every_interval() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(50), np.clip(rng.random((50, 3)) + 0.05, 0, 1)
    alone, four = gain(before, after), gains({f"m{i}": (before, after) for i in range(4)})["m2"]
    assert four.difference.confidence == pytest.approx(1 - 0.05 / 4)
    assert four.difference.low < alone.difference.low < alone.difference.high < four.difference.high
    assert (four.before, four.after) == (alone.before, alone.after)
    lines = gain_lines({"m": four})
    assert lines[-1].startswith("50 items, 3 seeds; percent, intervals for new items and new seeds: 95 %")
    assert "98.75 %" in lines[-1]
    assert gain_lines({}) == []


BAD = [
    ([0.0, 1.0], [[0.0], [2.0]], r"after has shape \(2, 1\)"),
    ([0.0, 1.0, 1.0], [[0.0], [1.0]], r"before has shape \(3, 1\) and after \(2, 1\)"),
    ([[0.0] * 2] * 2, [[0.0] * 3] * 2, r"before has shape \(2, 2\) and after \(2, 3\)"),
    ([0.0], [[1.0]], "at least 2 items"),
    ([0.0, float("nan")], [[0.0], [1.0]], "before has shape"),
]


@pytest.mark.parametrize(("before", "after", "message"), BAD)
def test_what_cannot_be_compared(before: list[Any], after: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        gain(before, after)


def planted_world(rng: np.random.Generator, effect: float, seed_spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Answers of a policy before, and of three that were trained; each item has its own chance of being right."""
    chance = rng.beta(1.5, 3.0, size=200)
    shifts = effect + seed_spread * rng.standard_normal(3)
    before = (rng.random(200) < chance).astype(float)
    after = rng.random((200, 3)) < np.clip(chance[:, None] + shifts * (1 - chance[:, None]), 0, 1)
    return before, after.astype(float)


@pytest.mark.slow
def test_intervals_cover_and_verdicts_are_rarely_false() -> None:
    """Without an effect 5 % of verdicts may be false; 400 worlds, so more than 8.5 % has a chance below 0.2 %."""
    rng = np.random.default_rng(5)
    for spread in (0.0, 0.05):
        false = sum(gain(*planted_world(rng, 0.0, spread)).verdict != "tied" for _ in range(400)) / 400
        assert false <= 0.085, spread
    found = [gain(*planted_world(rng, 0.3, 0.03)).verdict for _ in range(50)]
    assert found.count("better") >= 45


def test_gsm8k_itself_shares_no_question() -> None:
    folder = os.environ.get("ALIGNLAB_SHARED_DATA")
    if folder is None:
        pytest.skip("ALIGNLAB_SHARED_DATA names no folder with public data")
    files = [Path(folder) / "capability" / name for name in ("gsm8k_train.jsonl.gz", "gsm8k_test.jsonl")]
    task = gsm8k_task(*files)
    assert (len(task.learned), len(task.held)) == (7473, 1319)  # as published: nothing had to be left out
    solutions = task.solutions()[:50]
    assert task.reward().score(task.prompts[:50], [one.response for one in solutions]).tolist() == [1.0] * 50


@pytest.mark.slow
def test_a_policy_learns_a_rule_from_the_reward_and_keeps_it_on_held_out_questions() -> None:
    """Two letters, equal or not: say 1 or 2, and end. A random model of a few thousand weights hardly ever does."""
    letters = "abcdefghij"
    pairs = [x + y for x in letters for y in letters]
    random.Random(0).shuffle(pairs)
    items = [WorkedItem(pair, pair, str(len(set(pair)))) for pair in pairs]
    template = WorkedTemplate(question="{question}", solution="{answer}")
    task = VerifiableTask(
        "distinct", tuple(items[:70]), tuple(items[70:]), template, SamplingParams(max_tokens=3), "bare"
    )
    lm = build_lm()
    sampler = sampler_of(lm, batch_size=64)
    before = measure(sampler, task, temperature=1.0, answers=8)
    config = GRPOConfig(
        steps=60, prompts_per_step=8, group_size=16, minibatch_size=128, microbatch_size=128, max_tokens=3,
        learning_rate=0.02, missing_end_penalty=1.0, on_equal_rewards="skip", kl_coefficient=0.0, scale="none",
        aggregate="constant", lora=None,
    )  # fmt: skip
    result = train_grpo(lm, task.reward(formed=0.2), task.prompts, config)
    found = gain(before.right, measure(sampler, task, temperature=1.0, answers=8).right)
    assert found.verdict == "better"
    assert found.before.estimate < 0.05 < 0.2 < found.difference.low
    assert result.history[-1]["distinct/right"] > 5 * result.history[0]["distinct/right"]
