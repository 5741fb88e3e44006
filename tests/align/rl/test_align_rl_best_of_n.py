"""Choosing among answers: the distributions that theory gives, and a model that learns from its own best answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from alignlab.align.reward_validation.best_of_n import best_of_n_policy
from alignlab.align.rl import best_of_n as module
from alignlab.align.rl.best_of_n import (
    Candidates,
    ExpertConfig,
    best_of,
    best_of_n,
    draw_candidates,
    expert_iteration,
    rejection_sample,
    select,
)
from alignlab.align.rl.rewards import RewardError
from alignlab.align.sft import SFTConfig
from alignlab.core.errors import ConfigError, DataError, SamplerError, TrainingError
from alignlab.core.runs import Run
from alignlab.lm.lora import LoraConfig, lora_parameters
from alignlab.lm.types import Completion, Prompt, SamplingParams
from alignlab.train.config import TrainConfig

P = np.array([0.4, 0.3, 0.2, 0.1])
REWARDS = np.array([0.0, 1.0, 0.5, 2.0])
LETTERS = "abcd"


def ended(text: str, reason: str = "stop") -> Completion:
    return Completion(text, (5,), (0.0,), reason)  # type: ignore[arg-type]


class Categorical:
    """One letter, drawn from `P`."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        drawn = np.random.default_rng(sampling.seed).choice(list(LETTERS), len(prompts) * sampling.n, p=P)
        return [ended(str(letter)) for letter in drawn]

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[torch.Tensor]:
        raise NotImplementedError


def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    return [float(REWARDS[LETTERS.index(response)]) for response in responses]


def counts(texts: Sequence[str]) -> np.ndarray:
    return np.array([texts.count(letter) for letter in LETTERS])


@pytest.mark.parametrize("n", [1, 3])
def test_best_of_n_has_the_distribution_that_enumeration_gives(n: int) -> None:
    """Chi-squared on 4,000 choices at 1e-6: that often it would fail by chance, were the seed not fixed."""
    chosen = best_of_n(Categorical(), reward, ["q"] * 4000, n, SamplingParams(seed=3))
    seen = counts([choice.answer.text for choice in chosen])
    assert chisquare(seen, best_of_n_policy(P, REWARDS, n) * 4000).pvalue > 1e-6
    assert all(choice.of == n and choice.score == reward([""], [choice.answer.text])[0] for choice in chosen)
    if n > 1:
        assert chisquare(seen, P * 4000).pvalue < 1e-6


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_rejection_sampling_reaches_the_optimum_of_kl_regularised_rl(beta: float) -> None:
    """Accepted answers are a sample of pi_ref exp(r / beta); chi-squared at 1e-6, as above."""
    drawn = draw_candidates(Categorical(), reward, [f"q{i}" for i in range(1000)], SamplingParams(n=12, seed=4))
    taken = rejection_sample(drawn, beta, bound=2.0, seed=1)
    wanted = P * np.exp(REWARDS / beta)
    seen = counts([choice.answer.text for choice in taken])
    assert chisquare(seen, wanted / wanted.sum() * seen.sum()).pvalue > 1e-6
    # Without a bound each prompt keeps at least its best.
    kept = rejection_sample(drawn, 1e-3)
    assert {choice.prompt for choice in kept} == {each.prompt for each in drawn}
    assert {choice.score for choice in kept} >= {2.0}
    best = {each.prompt: float(each.scores.max()) for each in drawn}
    assert all(choice.score == best[choice.prompt] for choice in kept)  # type: ignore[index]
    with pytest.raises(DataError, match=r"scores 2, above the bound 1\.5"):
        rejection_sample(drawn, beta, bound=1.5)
    with pytest.raises(ConfigError, match="beta is 0"):
        rejection_sample(drawn, 0)


def test_an_answer_that_did_not_end_is_taken_only_where_none_did() -> None:
    cut, whole = ended("long", "length"), ended("short")
    assert best_of(Candidates("q", (cut, whole), torch.tensor([5.0, 1.0]))).answer is whole
    assert best_of(Candidates("q", (cut, cut), torch.tensor([1.0, 5.0]))).score == 5


def test_selection_by_hand() -> None:
    cut, a, b = ended("cut", "length"), ended("a"), ended("b")
    drawn = [
        Candidates("differ", (a, b), torch.tensor([0.0, 1.0])),
        Candidates("equal", (a, b), torch.tensor([1.0, 1.0])),
        Candidates("unended", (cut, cut), torch.tensor([3.0, 4.0])),
        Candidates("low", (a, b), torch.tensor([-2.0, -1.0])),
    ]
    kept, metrics = select(drawn, None)
    assert [(example.prompt, example.response) for example in kept] == [("differ", "b"), ("low", "b")]
    assert metrics == {"reward": 7 / 8, "best_reward": 5 / 4, "kept": 2.0, "equal": 1.0, "finished": 6 / 8}
    assert [example.prompt for example in select(drawn, 1.0)[0]] == ["differ", "equal"]
    with pytest.raises(
        TrainingError, match=r"none of the 4 answers to 2 prompts.*1 prompts whose.*1 whose answers all"
    ):
        select(drawn[1:3], None)
    with pytest.raises(TrainingError, match=r"3 below the least score.*between -2 and 4"):
        select(drawn, 9.0)


def letters_a(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """Share of the text that is an `a`."""
    return [text.count("a") / max(1, len(text)) for text in responses]


def settings(rounds: int) -> ExpertConfig:
    train = TrainConfig(steps=6, learning_rate=0.02, checkpoint_every=2)
    sft = SFTConfig(
        epochs=None, row_length=48, batch_size=4, lora=LoraConfig(rank=4, targets=("all-linear",)), train=train
    )
    return ExpertConfig(rounds=rounds, n=6, max_tokens=12, least=0.05, sft=sft, seed=1)


@pytest.mark.slow
def test_expert_iteration_learns_and_ends_in_the_same_bits_after_a_stop(
    make_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["ask", "why", "who", "how"] * 2
    whole = make_lm(letters="abcdefghiklmnoprstuwy ")
    with Run.create({}, name="whole", path=tmp_path / "whole") as run:
        metrics = expert_iteration(whole, letters_a, prompts, settings(3), run=run)
    assert metrics[-1]["reward"] > metrics[0]["reward"] + 0.1
    real, calls = module.sft, 0

    def stopped(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(module, "sft", stopped)
    with pytest.raises(KeyboardInterrupt), Run.create({}, name="part", path=tmp_path / "part") as run:
        expert_iteration(make_lm(letters="abcdefghiklmnoprstuwy "), letters_a, prompts, settings(3), run=run)
    again = make_lm(letters="abcdefghiklmnoprstuwy ")
    with Run.open(tmp_path / "part") as run:
        assert expert_iteration(again, letters_a, prompts, settings(3), run=run) == metrics
    for one, other in zip(lora_parameters(whole.model), lora_parameters(again.model), strict=True):
        assert torch.equal(one, other)


def test_bad_input(make_lm: Any) -> None:
    with pytest.raises(DataError, match="list of prompts is empty"):
        best_of_n(Categorical(), reward, [], 2)
    with pytest.raises(ConfigError, match="n is 0"):
        best_of_n(Categorical(), reward, ["q"], 0)
    with pytest.raises(RewardError, match="finite"):
        best_of_n(Categorical(), lambda prompts, responses: [float("nan")] * len(responses), ["q"], 2)
    with pytest.raises(ConfigError, match="n is 1, allowed: at least 2"):
        ExpertConfig(n=1)

    class Short(Categorical):
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
            return super().generate(prompts, sampling)[1:]

    with pytest.raises(SamplerError, match="gave 3 answers to 2 prompts, right are 2 each"):
        best_of_n(Short(), reward, ["q", "p"], 2)
