"""Rewards put together: ranks against a naive order, each combination in a training, memory in checkpoints."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cmp_to_key
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.align.objectives.combining import ObjectivesConfig, Shortfall, combine
from alignlab.align.objectives.heads import SharedHeads
from alignlab.align.objectives.lexicographic import Lexicographic, lexicographic_ranks
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.heads import HeadConfig
from alignlab.align.rl.config import GRPOConfig
from alignlab.align.rl.constrained import LagrangianReward
from alignlab.align.rl.grpo import train_grpo
from alignlab.align.rl.normalising import Normaliser
from alignlab.align.rl.rewards import Combined, RewardError
from alignlab.core.errors import ConfigError, DataError, TrainingError
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import LoraConfig

SMALL = GRPOConfig(
    steps=3, prompts_per_step=2, group_size=4, max_tokens=5, on_equal_rewards="skip", checkpoint_every=1,
    lora=LoraConfig(rank=2, targets=("all-linear",)), minibatch_size=8,
)  # fmt: skip


def vowels(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in responses]


def brief(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    return [-float(len(text)) for text in responses]


def naive_ranks(rows: list[tuple[float, ...]], tolerances: list[float]) -> list[float]:
    """Ranks by sorting with a comparison written out."""
    best = [max(column) for column in zip(*rows, strict=True)]

    def compare(a: tuple[float, ...], b: tuple[float, ...]) -> int:
        for k, tolerance in enumerate([*tolerances, 0.0]):
            first, second = best[k] - a[k], best[k] - b[k]
            if tolerance:
                first, second = first // tolerance, second // tolerance
            if first != second:
                return -1 if first < second else 1
        return 0

    ordered = sorted(range(len(rows)), key=cmp_to_key(lambda i, j: compare(rows[i], rows[j])))
    ranks = [0.0] * len(rows)
    for i in ordered:
        beaten = sum(compare(rows[i], rows[j]) < 0 for j in range(len(rows)))
        equal = sum(compare(rows[i], rows[j]) == 0 for j in range(len(rows))) - 1
        ranks[i] = (beaten + equal / 2) / (len(rows) - 1)
    return ranks


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 7), st.integers(2, 3), st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 10_000))
def test_ranks_against_a_written_out_order(n: int, objectives: int, tolerance: float, seed: int) -> None:
    drawn = random.Random(seed)
    rows = [tuple(drawn.choice([-1.0, 0.0, 0.25, 1.0, 1.5, 3.0]) for _ in range(objectives)) for _ in range(n)]
    tolerances = [tolerance] * (objectives - 1)
    assert lexicographic_ranks(torch.tensor(rows), tolerances).tolist() == pytest.approx(naive_ranks(rows, tolerances))


def test_the_second_objective_decides_within_the_tolerance() -> None:
    values = torch.tensor([[1.0, 0.0], [0.8, 5.0], [0.2, 9.0]])
    assert lexicographic_ranks(values, [0.5]).tolist() == [0.5, 1.0, 0.0]
    assert lexicographic_ranks(values, [0.0]).tolist() == [1.0, 0.5, 0.0]
    assert lexicographic_ranks(values[:1], [0.5]).tolist() == [0.5]


def test_ranks_are_of_the_answers_to_one_prompt() -> None:
    reward = Lexicographic({"vowels": vowels, "brief": brief}, {"vowels": 1.5}, normalise="none")
    prompts = ["p", "q", "p", "q"]
    assert reward.score(prompts, ["aax", "x", "axxx", "aaa"]).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert reward.after_step() == {"reward/vowels": 1.5, "reward/brief": -2.75}
    together = reward.score(["p", "q", "r"], ["aaa", "a", "x"])  # one answer each: the batch is the group
    assert together.tolist() == [1.0, 0.5, 0.0]


def test_combinations_are_what_they_say() -> None:
    rewards = {"vowels": vowels, "brief": brief}
    weighted = combine(rewards, ObjectivesConfig(weights={"vowels": 2.0, "brief": 1.0}, normalise="none"))
    assert isinstance(weighted, Combined)
    assert weighted.score(["p"] * 2, ["aa", "x"]).tolist() == [2.0, -1.0]
    held = combine(
        rewards,
        ObjectivesConfig("constrained", maximise="vowels", bounds={"brief": -1.5}, normalise="none", rate=1.0),
    )
    assert isinstance(held, LagrangianReward)
    held.score(["p"] * 2, ["aaa", "x"])  # mean length 2, allowed 1.5
    measured = held.after_step()
    assert measured["cost/brief"] == 2.0
    assert measured["reward/vowels"] == 1.5
    assert held.multipliers == {"brief": pytest.approx(0.5 + 0.5 * 0.5)}  # integral and proportional term
    assert held.score(["p"], ["aa"]).tolist() == [pytest.approx(2.0 - 0.75 * 2.0)]


@pytest.mark.parametrize(
    "config",
    [
        ObjectivesConfig(weights={"vowels": 0.7, "brief": 0.3}),
        ObjectivesConfig("constrained", maximise="vowels", bounds={"brief": -3.0}),
        ObjectivesConfig("lexicographic", order=("brief", "vowels"), tolerances={"brief": 1.0}),
    ],
    ids=lambda config: config.method,
)
def test_trainings_go_on_where_they_were(
    config: ObjectivesConfig, make_lm: Callable[..., LanguageModel], tmp_path: Path
) -> None:
    """Checkpoints hold running means and multipliers: a training broken off after two steps ends as the whole one."""
    rewards = {"vowels": vowels, "brief": brief}

    def train(folder: str, until: int) -> list[dict[str, float]]:
        def on_step(step: int, *_: Any) -> None:
            if step == until:
                raise InterruptedError

        lm, reward = make_lm(), combine(rewards, config)
        return train_grpo(lm, reward, ["ab", "cd"], SMALL, checkpoint_dir=tmp_path / folder, on_step=on_step).history

    whole = train("whole", 0)
    assert "reward/vowels" in whole[-1]
    with pytest.raises(InterruptedError):
        train("broken", 2)
    assert train("broken", 0) == whole


def test_heads_share_a_pass_and_are_scaled(make_lm: Callable[..., LanguageModel]) -> None:
    model = PreferenceModel(make_lm(), heads=HeadConfig(("helpful", "harmless")))
    heads = SharedHeads(model)
    prompts, answers = ["ab", "ab", "cd"], ["e", "fg", "h"]
    passes = []
    model.trunk.register_forward_hook(lambda *_: passes.append(1))
    found = {name: reward.score(prompts, answers) for name, reward in heads.rewards.items()}
    alone = model.head_scores(prompts, answers)[:, 0]
    torch.testing.assert_close(torch.stack(list(found.values()), dim=1), alone)
    before = heads._found
    heads.rewards["helpful"].score(prompts, answers)
    assert heads._found is before  # nothing was computed again
    heads.fit_scales(prompts, answers)
    scaled = heads.rewards["harmless"].score(prompts, answers)
    assert float(scaled.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scaled.std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(DataError, match="is the same for all 1 responses"):
        heads.fit_scales(["ab"], ["e"])
    with pytest.raises(DataError, match="got 2 prompts and 1 responses"):
        heads.scores(["a", "b"], ["c"])


def test_a_shortfall_says_what_its_reward_says() -> None:
    assert Shortfall(vowels).score(["p"], ["aa"]) == [-2.0]
    cost = combine(
        {"a": vowels, "b": lambda p, r: [None] * len(r)},  # type: ignore[dict-item]
        ObjectivesConfig("constrained", maximise="a", bounds={"b": 0.0}),
    )
    with pytest.raises(RewardError, match="gave None for response 0"):
        cost.score(["p"], ["aa"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "sum"}, "method is 'sum'"),
        ({"method": "constrained", "bounds": {"b": 0.0}}, "maximise is ''"),
        ({"method": "constrained", "maximise": "a"}, "bounds is {}"),
        ({"method": "constrained", "maximise": "a", "bounds": {"a": 0.0}}, "bounds on others than 'a'"),
        ({"method": "lexicographic", "order": ("a",)}, "order is .'a',."),
        ({"weights": {"a": 1.0}, "method": "lexicographic"}, "nothing unless method is 'weighted'"),
    ],
)
def test_configs_that_contradict_themselves(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ObjectivesConfig(**arguments)


def test_rewards_that_are_not_there() -> None:
    rewards = {"vowels": vowels, "brief": brief}
    with pytest.raises(ConfigError, match="there is no reward 'kind', allowed: vowels, brief"):
        combine(rewards, ObjectivesConfig(weights={"kind": 1.0}))
    with pytest.raises(ConfigError, match="reward 'third' has no place in the lexicographic combination"):
        combine({**rewards, "third": vowels}, ObjectivesConfig("lexicographic", order=("brief", "vowels")))
    with pytest.raises(ConfigError, match=r"tolerances is \{'brief': 1.0\}"):
        Lexicographic(rewards, {"brief": 1.0})
    with pytest.raises(TrainingError, match="the checkpoint normalises a, this training b"):
        Normaliser(["b"]).load_state_dict(Normaliser(["a"]).state_dict())
