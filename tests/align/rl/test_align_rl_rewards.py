"""Rewards: what is refused and which row is named, combinations by hand, tasks as rewards."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from alignlab.align.rl.rewards import Combined, Guarded, RewardError, TaskReward
from alignlab.align.rl.tokenizers import check_reward_tokenizer
from alignlab.core.errors import ConfigError, TrainingError
from alignlab.tasks.task import Sample, Score, Task

PROMPTS, TEXTS = ["p"] * 4, ["one", "three", "six", "seven"]


def length(prompts: list, responses: list[str]) -> list[float]:
    return [float(len(text)) for text in responses]


class Model:
    """Anything with `score`."""

    def score(self, prompts: list, responses: list[str]) -> Tensor:
        return torch.tensor([len(text) for text in responses], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("limit", [None, 30.0])
def test_functions_and_models_are_rewards(limit: float | None) -> None:
    for reward in (length, Model()):
        scores = Guarded(reward, limit).score(PROMPTS, TEXTS)  # type: ignore[arg-type]
        assert scores.tolist() == [3.0, 5.0, 3.0, 5.0]
        assert scores.dtype == torch.float32
        assert not scores.requires_grad
    assert (Guarded(length).name, Guarded(Model()).name) == ("length", "Model")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "row", "message"),
    [
        ([1.0, 2.0, float("nan"), float("inf")], 2, r"of response 2 is nan, rewards must be finite \(2 of 4"),
        (torch.tensor([1.0, float("-inf"), 0.0, 0.0]), 1, "of response 1 is -inf"),
        ([1.0, None, 2.0, 3.0], 1, "gave None for response 1"),
        ([1.0, 2.0, "good", 3.0], 2, "gave 'good' for response 2"),
        ([1.0, 2.0], None, r"shape \(2,\) for 4 responses"),
        (torch.zeros(4, 2), None, r"shape \(4, 2\) for 4 responses"),
        (None, None, "one number per response"),
        ("good", None, "one number per response"),
    ],
)
def test_what_is_no_finite_number_is_refused_with_its_row(given: object, row: int | None, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        Guarded(lambda p, r: given).score(PROMPTS, TEXTS)  # type: ignore[arg-type, return-value]
    assert caught.value.row == row
    assert isinstance(caught.value, TrainingError)


def test_a_reward_that_raises_is_refused_and_the_row_named() -> None:
    def strict(prompts: list, responses: list[str]) -> list[float]:
        return [1 / (len(text) - 3 + (text == "one")) for text in responses]

    with pytest.raises(
        RewardError, match=r"raised ZeroDivisionError.*one by one, response 2 \('six'\) raises"
    ) as caught:
        Guarded(strict).score(PROMPTS, TEXTS)
    assert caught.value.row == 2
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def only_together(prompts: list, responses: list[str]) -> list[float]:
        if len(responses) > 1:
            raise MemoryError("too many at once")
        return [0.0]

    with pytest.raises(RewardError, match="of the 4 responses none fails alone") as caught:
        Guarded(only_together).score(PROMPTS, TEXTS)
    assert caught.value.row is None


def test_a_reward_written_for_one_response_is_told_how_it_is_called() -> None:
    with pytest.raises(RewardError, match=r"no attribute 'lower' \(a reward is called with two lists"):
        Guarded(lambda prompt, response: float("please" in response.lower())).score(PROMPTS, TEXTS)  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match=r"positional argument.* \(a reward is called with two lists"):
        Guarded(lambda response: [0.0]).score(PROMPTS, TEXTS)  # type: ignore[arg-type]


def test_a_reward_that_hangs_is_given_up_and_the_row_named() -> None:
    release = threading.Event()

    def stuck(prompts: list, responses: list[str]) -> list[float]:
        if "six" in responses:
            release.wait(60)
        return [0.0] * len(responses)

    started = time.monotonic()
    with pytest.raises(RewardError, match=r"longer than 0.2 s for 4 responses.*response 2 \('six'\) is not") as caught:
        Guarded(stuck, 0.2).score(PROMPTS, TEXTS)
    release.set()
    assert caught.value.row == 2
    assert time.monotonic() - started < 30


def test_weighted_sums_by_hand() -> None:
    rewards = {"length": length, "vowels": lambda p, r: [sum(c in "aeiou" for c in text) for text in r]}
    both = Combined(rewards, {"length": 1.0, "vowels": -2.0})  # type: ignore[arg-type]
    assert both.score(PROMPTS, TEXTS).tolist() == [3 - 4.0, 5 - 4.0, 3 - 2.0, 5 - 4.0]
    assert {name: part.tolist() for name, part in both.parts.items()} == {
        "length": [3, 5, 3, 5],
        "vowels": [2, 2, 1, 2],
    }


def test_normalised_parts_do_not_depend_on_units() -> None:
    def cents(prompts: list, responses: list[str]) -> list[float]:
        return [100 * value + 7 for value in length(prompts, responses)]

    ends = [Combined({"a": a, "b": lambda p, r: [0.0] * len(r)}, normalise="batch") for a in (length, cents)]  # type: ignore[dict-item]
    first, second = (each.score(PROMPTS, TEXTS) for each in ends)
    torch.testing.assert_close(first, second)
    assert first.tolist() == pytest.approx([-1, 1, -1, 1])


def test_running_normalisation_is_that_of_everything_seen_and_resumes() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(1)).mul(3).add(5)
    batches = [part.tolist() for part in values.split(6)]
    source = iter(batches)
    running = Combined({"a": lambda p, r: next(source)}, normalise="running")
    for i in range(4):
        found = running.score(["p"] * 6, ["r"] * 6)
        seen = values[: 6 * (i + 1)].double()
        wanted = (torch.tensor(batches[i]).double() - seen.mean()) / seen.std(correction=0)
        torch.testing.assert_close(found, wanted.float())
    other = Combined({"a": lambda p, r: batches[4]}, normalise="running")
    other.load_state_dict(running.state_dict())
    assert other.score(["p"] * 6, ["r"] * 6).tolist() == running.score(["p"] * 6, ["r"] * 6).tolist()


def arithmetic(**changes: object) -> Task:
    samples = [Sample("a", "1 + 1 =", "2"), Sample("b", "2 + 1 =", "3")]

    def exact(sample: Sample, completion: object) -> Score:
        text = completion.text  # type: ignore[attr-defined]
        return Score(float(text == sample.target)) if text else Score.unscorable("empty answer")

    return Task("sums", samples, lambda sampler, s: [], exact, **changes)  # type: ignore[arg-type]


def test_a_task_is_a_reward() -> None:
    reward = TaskReward(arithmetic())
    assert reward.prompts == ["1 + 1 =", "2 + 1 ="]
    prompts = ["2 + 1 =", "1 + 1 =", "1 + 1 ="]
    assert reward.score(prompts, ["3", "3", "2"]).tolist() == [1.0, 0.0, 1.0]
    turned = TaskReward(arithmetic(higher_is_better=False), unscorable=-2.0)
    assert turned.score(prompts, ["3", "3", ""]).tolist() == [-1.0, 0.0, -2.0]
    with pytest.raises(RewardError, match="'sums' cannot score response 1: empty answer") as caught:
        reward.score(prompts, ["3", "", "2"])
    assert caught.value.row == 1
    with pytest.raises(RewardError, match="prompt 0 is not one of task 'sums'"):
        reward.score(["5 + 5 ="], ["10"])


def test_a_tasks_prompts_must_tell_its_samples_apart() -> None:
    samples = [Sample("a", "same", "2"), Sample("b", "same", "3")]
    with pytest.raises(ConfigError, match="2 samples and 1 different prompts"):
        TaskReward(Task("twice", samples, lambda sampler, s: [], lambda sample, c: Score(0.0)))


def test_a_reward_model_with_another_tokenizer_is_refused_with_numbers() -> None:
    def tokenizer(size: int, shift: int = 0) -> SimpleNamespace:
        return SimpleNamespace(vocab_size=size, encode=lambda text: [ord(c) % size + shift for c in text])

    own = tokenizer(500)
    for reward in (length, SimpleNamespace(tokenizer=own), SimpleNamespace(tokenizer=tokenizer(500))):
        check_reward_tokenizer(reward, own)
    with pytest.raises(RewardError, match=r"SimpleNamespace has 400 tokens and the policy's 500"):
        check_reward_tokenizer(SimpleNamespace(tokenizer=tokenizer(400)), own)
    with pytest.raises(RewardError, match=r"reads 'The quick brown fox.' as 20 tokens \[85, .* as 20 \[84, "):
        check_reward_tokenizer(SimpleNamespace(tokenizer=tokenizer(500, 1)), own)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="time_limit is 0"):
        Guarded(length, 0)
    with pytest.raises(ConfigError, match="reward is a int"):
        Guarded(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one reward"):
        Combined({})
    with pytest.raises(ConfigError, match="one finite number for each of a"):
        Combined({"a": length}, {"b": 1.0})
    with pytest.raises(ConfigError, match="none, batch or running"):
        Combined({"a": length}, normalise="rank")  # type: ignore[arg-type]
