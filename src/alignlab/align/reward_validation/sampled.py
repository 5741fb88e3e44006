"""Rewards of many answers to a prompt: what best-of-n and the bootstrap over prompts need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from alignlab.align.pairs import PreferencePair
from alignlab.align.policy import evaluating
from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.encoder import WordPieces
from alignlab.align.reward.examples import dialogue_of
from alignlab.align.reward_validation.best_of_n import FloatArray
from alignlab.align.rollout import RewardFn, ScoresResponses
from alignlab.core.errors import DataError
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed
from alignlab.lm.types import Prompt, Sampler, SamplingParams

Reward = ScoresResponses | RewardFn
"""A reward model (anything with `score`), or a function of prompts and responses."""


@dataclass(frozen=True)
class SampledRewards:
    """Answers of a policy and what rewards say of them."""

    answers: list[list[str]]
    """Texts by prompt."""
    rewards: dict[str, FloatArray]
    """(prompts, samples) by the name of the reward."""


def sample_rewards(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, Reward],
    sampling: SamplingParams,
    *,
    progress: Progress | None = None,
    at_a_time: int = 16,
) -> SampledRewards:
    """`sampling.n` answers to each prompt, `at_a_time` prompts together, with every reward."""
    if not prompts:
        raise DataError("the list of prompts is empty, at least one is needed")
    answers: list[list[str]] = []
    found: dict[str, list[FloatArray]] = {name: [] for name in rewards}
    with (progress or Progress.silent()).task("answers", len(prompts), unit="prompts") as task:
        for start in range(0, len(prompts), at_a_time):
            part = list(prompts[start : start + at_a_time])
            own = replace(sampling, seed=derive_seed(sampling.seed, "answers", start) % 2**31)
            completions = sampler.generate(part, own)
            n = sampling.n
            texts = [[c.text for c in completions[i * n : (i + 1) * n]] for i in range(len(part))]
            answers += texts
            for name, reward in rewards.items():
                found[name].append(score_answers(reward, part, texts))
            task.advance(len(part), tokens=sum(len(c.tokens) for c in completions))
    return SampledRewards(answers, {name: np.concatenate(parts) for name, parts in found.items()})


def distinct_prompts(pairs: Sequence[PreferencePair]) -> list[Prompt]:
    """The prompts of different dialogues, the first of each."""
    first: dict[str, Prompt] = {}
    for pair in pairs:
        first.setdefault(dialogue_of(pair.prompt), pair.prompt)
    return list(first.values())


def score_answers(reward: Reward, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> FloatArray:
    """The reward of every answer to every prompt, (prompts, samples); each prompt has as many answers.

    A `PreferenceModel` on a language model renders each prompt once rather than once an answer, and every text that
    recurs is scored once.
    """
    n = len(answers[0]) if answers else 0
    if len(answers) != len(prompts) or not n or any(len(texts) != n for texts in answers):
        raise DataError(
            f"got {len(prompts)} prompts and answers {[len(texts) for texts in answers]}, each needs as many"
        )
    pairs = list(dict.fromkeys((i, text) for i, texts in enumerate(answers) for text in texts))
    asked, texts = [prompts[i] for i, _ in pairs], [text for _, text in pairs]
    if isinstance(reward, PreferenceModel) and not isinstance(reward.tokenizer, WordPieces):
        values = _normalised(reward, prompts, pairs)
    elif isinstance(reward, ScoresResponses):
        values = reward.score(asked, texts)
    else:
        values = torch.as_tensor(list(reward(asked, texts)))
    known = dict(zip(pairs, values.double().tolist(), strict=True))
    return np.array([[known[i, text] for text in own] for i, own in enumerate(answers)])


def _normalised(model: PreferenceModel, prompts: Sequence[Prompt], pairs: Sequence[tuple[int, str]]) -> Tensor:
    """`model.score` of (index of the prompt, response), with each prompt encoded once."""
    raw = model.reward(answer_features(model, prompts, pairs)).float().cpu()
    if model.correction is not None:
        raw = raw - model.correction.amount([text for _, text in pairs])
    return (raw - model.reward_mean.cpu()) / model.reward_deviation.cpu()


@torch.no_grad()
def answer_features(model: PreferenceModel, prompts: Sequence[Prompt], pairs: Sequence[tuple[int, str]]) -> Tensor:
    """`model.response_features` of (index of the prompt, response): each prompt encoded once, in bf16 on a GPU."""
    assert model.tokenizer is not None
    before = [model.encode(prompt, "") for prompt in prompts]  # a prompt and the end of the turn
    rows = []
    for i, text in pairs:
        answer = [*model.tokenizer.encode(text), before[i][-1]]
        long = len(answer) >= model.max_length
        rows.append(model.encode(prompts[i], text) if long else [*before[i][:-1], *answer][-model.max_length :])
    device = model.head.weight.device
    with evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return model.row_features(rows)


def reward_function(model: PreferenceModel) -> RewardFn:
    """The model's `score` for PPO, in bf16 on a GPU."""

    def reward(prompts: list[Prompt], responses: list[str]) -> list[float]:
        return score_answers(model, prompts, [[text] for text in responses])[:, 0].tolist()

    return reward


def within_deviation(table: FloatArray) -> float:
    """How far rewards of answers to one prompt differ, the unit in which gains are told: root mean square over prompts
    of the standard deviation. DataError where they do not differ."""
    deviation = float(np.sqrt(table.var(axis=1, ddof=1).mean())) if table.shape[1] > 1 else 0.0
    if not deviation > 0:
        raise DataError(
            f"the rewards of {table.shape[1]} answers to each prompt do not differ, so nothing can be chosen"
        )
    return deviation


def pair_agreement(proxy: FloatArray, gold: FloatArray) -> FloatArray:
    """Share of pairs of answers to one prompt that both rewards order alike, by prompt: (prompts,).

    Pairs that gold calls equal are left out, those that the proxy calls equal count one half; nan where none is left.
    """
    found = []
    for p, g in zip(proxy, gold, strict=True):
        first, second = np.triu_indices(len(p), 1)
        ours, theirs = np.sign(p[first] - p[second]), np.sign(g[first] - g[second])
        decided = theirs != 0
        found.append(float((0.5 + 0.5 * ours * theirs)[decided].mean()) if decided.any() else float("nan"))
    return np.array(found)
