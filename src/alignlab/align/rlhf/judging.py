"""Who wins: a judge that took no part in training compares answers, and its own error widens the win rate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from alignlab.align.reward.examples import RewardPair, dialogues
from alignlab.align.rl.rewards import Guarded, Reward
from alignlab.core.errors import DataError
from alignlab.lm.types import Prompt
from alignlab.stats.interval import Interval
from alignlab.stats.judge_correction import Labelled, corrected_difference, with_unscorable
from alignlab.stats.paired import Comparison, compare, mean_interval
from alignlab.tasks.judges.labelled import LabelledPair
from alignlab.tasks.judges.pairwise import Pair, PairwiseJudge
from alignlab.tasks.judges.pointwise import question_text

LEAST_LABELS = 20
"""Fewer pairs with verdicts than this say next to nothing about a judge."""


class AnswerJudge(Protocol):
    """Compares two answers to a prompt."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def prefer(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        """For each prompt 1 (the first answer is better), 0 (the second), between (a tie), or None: no verdict."""
        ...


@dataclass
class RewardJudge:
    """A reward as a judge: the answer with the higher reward is better."""

    reward: Reward
    name: str
    time_limit: float | None = None

    def prefer(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        """1, 0, or 0.5 where both rewards are equal."""
        scores = Guarded(self.reward, self.time_limit).score([*prompts, *prompts], [*first, *second])
        margin = (scores[: len(prompts)] - scores[len(prompts) :]).tolist()
        return [0.5 if value == 0 else float(value > 0) for value in margin]


@dataclass
class ModelJudge:
    """A language model as a judge, asked in both orders."""

    judge: PairwiseJudge

    @property
    def name(self) -> str:
        """What it is called."""
        return self.judge.name

    def prefer(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        """Its preferences; equal answers are a tie without asking."""
        pairs = [Pair(question_text(p), a, b) for p, a, b in zip(prompts, first, second, strict=True)]
        asked = [i for i, pair in enumerate(pairs) if pair.first.strip() != pair.second.strip()]
        found: list[float | None] = [0.5] * len(pairs)
        for i, preference in zip(asked, self.judge.prefer([pairs[i] for i in asked]), strict=True):
            found[i] = preference.score.value
        return found


@dataclass(frozen=True)
class JudgeError:
    """A judge against people's verdicts on pairs; each pair is put to it in both orders."""

    n: int
    """Pairs that it gave a verdict on."""
    missing: int
    """Pairs without a verdict of the judge."""
    accuracy: Interval
    """Share of pairs in which it prefers what people prefer; a tie counts one half."""
    labelled: Labelled
    """What the correction of a rate takes."""

    @property
    def useful(self) -> bool:
        """Whether it is better than chance, so that there is something to correct."""
        return self.accuracy.estimate > 0.5


def measure_judge(
    judge: AnswerJudge,
    prompts: Sequence[Prompt],
    better: Sequence[str],
    worse: Sequence[str],
    *,
    clusters: Sequence[Hashable],
    seed: int = 0,
) -> JudgeError | None:
    """The judge's error on pairs of which people prefer `better`; None for fewer than 20 that it has a verdict on.

    Positive is "the first answer is strictly better". Each pair counts in both orders, as one cluster: the judges here
    give the mirrored verdict for the mirrored pair.
    """
    verdicts = judge.prefer(prompts, better, worse)
    kept = [i for i, value in enumerate(verdicts) if value is not None]
    if len(kept) < LEAST_LABELS:
        return None
    values = np.array([verdicts[i] for i in kept], dtype=np.float64)
    groups = [clusters[i] for i in kept]
    right = (values > 0.5) + 0.5 * (values == 0.5)
    accuracy = mean_interval(right, clusters=groups if len(set(groups)) < len(groups) else None, seed=seed)
    truth = [1] * len(kept) + [0] * len(kept)
    predicted = [*(values > 0.5).astype(int).tolist(), *(values < 0.5).astype(int).tolist()]
    labelled = Labelled(tuple(truth), tuple(predicted), (*groups, *groups))
    return JudgeError(len(kept), len(verdicts) - len(kept), accuracy, labelled)


def labels_of_pairs(pairs: Sequence[RewardPair], most: int) -> dict[str, list[Any]]:
    """Comparisons of people as the arguments of `measure_judge`, the first `most` (0: all)."""
    some = list(pairs[: most or None])
    return {
        "prompts": [pair.prompt for pair in some],
        "better": [pair.chosen for pair in some],
        "worse": [pair.rejected for pair in some],
        "clusters": dialogues(some),
    }


def labels_of_file(pairs: Sequence[LabelledPair], most: int) -> dict[str, list[Any]]:
    """The same from labelled pairs; ties of people say nothing about who is right and are left out."""
    some = [pair for pair in pairs if pair.better != "tie"][: most or None]
    sides = [(p.first, p.second) if p.better == "first" else (p.second, p.first) for p in some]
    return {
        "prompts": [[{"role": "user", "content": pair.question}] for pair in some],
        "better": [side[0] for side in sides],
        "worse": [side[1] for side in sides],
        "clusters": [pair.cluster or pair.id for pair in some],
    }


@dataclass(frozen=True)
class WinRate:
    """How often a later model's answers beat an earlier one's."""

    wins: int
    ties: int
    losses: int
    missing: int
    """Prompts without a verdict."""
    raw: Interval
    """The judge's win rate, a tie counted as half; the judge's own error is not in it."""
    corrected: Interval | None
    """The win rate behind the verdicts, with the judge's measured error in the interval, and the prompts without a
    verdict bounded; None without labels, or with a judge no better than chance."""
    test: Comparison
    """Sign-flip test of "neither wins more often" on the judge's verdicts."""


def win_rate(
    verdicts: Sequence[float | None],
    error: JudgeError | None,
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> WinRate:
    """From verdicts for the later model (1 win, 0 loss, between: tie); DataError where there are none.

    Corrected as the difference of two rates, wins and losses, each with the judge's sensitivity and specificity (Rogan
    & Gladen 1978): (1 + wins - losses) / 2.
    """
    kept = [i for i, value in enumerate(verdicts) if value is not None]
    if not kept:
        raise DataError(f"the judge gave no verdict on any of the {len(verdicts)} pairs of answers")
    values = np.array([verdicts[i] for i in kept], dtype=np.float64)
    groups = None if clusters is None else [clusters[i] for i in kept]
    won, lost, missing = values > 0.5, values < 0.5, len(verdicts) - len(kept)
    scored = won + 0.5 * (values == 0.5)
    half = np.full(values.size, 0.5)
    corrected = None
    if error is not None and error.useful:
        net = corrected_difference(lost.astype(int), won.astype(int), error.labelled, clusters=groups, seed=seed)
        net = with_unscorable(net, missing, -1.0, 1.0)
        corrected = Interval(
            (1 + net.estimate) / 2, (1 + net.low) / 2, (1 + net.high) / 2, net.n, net.confidence, net.method
        )
    return WinRate(
        int(won.sum()),
        int((values == 0.5).sum()),
        int(lost.sum()),
        missing,
        mean_interval(scored, clusters=groups, seed=seed),
        corrected,
        compare(half, scored, clusters=groups, seed=seed),
    )
