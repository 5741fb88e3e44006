"""Choosing among several answers: best-of-n, rejection sampling, and expert iteration, which learns from the choice.

None of these has a policy gradient: answers are drawn, scored and selected; what is learned is learned by supervised
fine-tuning. `align.reward_validation.best_of_n` has the estimators of how far best-of-n goes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.align.adapters import merged_for_decoding
from alignlab.align.policy import evaluating
from alignlab.align.rl.rewards import Guarded, Reward
from alignlab.align.sft import SFTConfig, SFTExample, sft
from alignlab.core.config import require
from alignlab.core.errors import DataError, SamplerError, TrainingError
from alignlab.core.files import read_jsonl
from alignlab.core.progress import Progress
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Completion, Prompt, Sampler, SamplingParams

Metrics = dict[str, float]


@dataclass(frozen=True)
class Candidates:
    """The answers to one prompt and their scores."""

    prompt: Prompt
    answers: tuple[Completion, ...]
    scores: Float[Tensor, " n"]

    @property
    def finished(self) -> list[int]:
        """Which answers came to their end; one that ran into `max_tokens` is no example of how to answer."""
        return [i for i, answer in enumerate(self.answers) if answer.finish_reason == "stop"]


@dataclass(frozen=True)
class Choice:
    """The answer that was taken."""

    prompt: Prompt
    answer: Completion
    score: float
    of: int
    """Among how many."""


def draw_candidates(
    sampler: Sampler,
    reward: Reward,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    *,
    time_limit: float | None = 60.0,
) -> list[Candidates]:
    """`sampling.n` answers to each prompt, scored in one call.

    Raises DataError without prompts, SamplerError where the sampler gives another number of answers, and RewardError
    where the reward fails, takes longer than `time_limit` seconds or gives something else than finite numbers.
    """
    if not prompts:
        raise DataError("the list of prompts is empty, at least one is needed")
    answers, n = sampler.generate(prompts, sampling), sampling.n
    if len(answers) != len(prompts) * n:
        raise SamplerError(f"the sampler gave {len(answers)} answers to {len(prompts)} prompts, right are {n} each")
    asked = [prompt for prompt in prompts for _ in range(n)]
    scores = Guarded(reward, time_limit).score(asked, [answer.text for answer in answers])
    parts = [slice(i * n, (i + 1) * n) for i in range(len(prompts))]
    return [Candidates(prompt, tuple(answers[at]), scores[at]) for prompt, at in zip(prompts, parts, strict=True)]


def best_of(candidates: Candidates) -> Choice:
    """The answer with the highest score, the first of equal ones: among those that ended, where any did."""
    allowed = candidates.finished or list(range(len(candidates.answers)))
    best = max(allowed, key=lambda i: float(candidates.scores[i]))
    score = float(candidates.scores[best])
    return Choice(candidates.prompt, candidates.answers[best], score, len(candidates.answers))


def best_of_n(
    sampler: Sampler,
    reward: Reward,
    prompts: Sequence[Prompt],
    n: int,
    sampling: SamplingParams | None = None,
    *,
    time_limit: float | None = 60.0,
) -> list[Choice]:
    """Each prompt answered n times, and the answer that the reward likes best (Nakano et al. 2021; Stiennon et al.
    2020)."""
    require(n >= 1, "n", n, "a whole number of at least 1")
    sampling = replace(sampling or SamplingParams(), n=n)
    return [best_of(c) for c in draw_candidates(sampler, reward, prompts, sampling, time_limit=time_limit)]


def rejection_sample(
    candidates: Sequence[Candidates], beta: float, *, bound: float | None = None, seed: int = 0
) -> list[Choice]:
    """Answers accepted with probability `exp((score - bound) / beta)`: a sample of pi_ref exp(r / beta), the optimum of
    KL-regularised reinforcement learning.

    Exact where no reward exceeds `bound`; without one each prompt's highest score takes its place, so that at least
    one of its answers is kept (algorithm 1 of Liu et al. 2024, "Statistical rejection sampling improves preference
    optimization"). Raises DataError for a score above the bound.
    """
    require(beta > 0, "beta", beta, "a positive number")
    found = []
    generator = torch_generator(derive_seed(seed, "rejection sampling"))
    for each in candidates:
        highest = float(each.scores.max())
        if bound is not None and highest > bound:
            raise DataError(f"an answer scores {highest:g}, above the bound {bound:g}; sampling would not be exact")
        level = highest if bound is None else bound
        accept = torch.exp((each.scores.double() - level) / beta)
        taken = torch.rand(len(accept), generator=generator, dtype=torch.float64) < accept
        found += [
            Choice(each.prompt, each.answers[i], float(each.scores[i]), len(each.answers))
            for i in taken.nonzero().flatten().tolist()
        ]
    return found


# Expert iteration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpertConfig:
    """Rounds of: answer n times, keep the best, learn them."""

    rounds: int = 3
    """How often."""
    n: int = 4
    """Answers to each prompt in a round."""
    least: float | None = None
    """Lowest score of an answer to learn from; none: an answer has to beat another one to the same prompt."""
    max_tokens: int = 64
    """Most tokens of an answer; one that reaches it is not learned from."""
    temperature: float = 1.0
    """Of the answers."""
    batch_size: int = 32
    """Answers drawn at a time."""
    time_limit: float | None = 60.0
    """Seconds that the reward may take in a round."""
    sft: SFTConfig = field(default_factory=SFTConfig)
    """How the kept answers are learned in each round; an adapter goes on from round to round."""
    seed: int = 0
    """Of the answers."""

    def __post_init__(self) -> None:
        for name in ("rounds", "n", "max_tokens", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        require(self.n >= 2 or self.least is not None, "n", self.n, "at least 2, or a least score")
        require(self.temperature > 0, "temperature", self.temperature, "a positive number")
        require(self.least is None or math.isfinite(self.least), "least", self.least, "none or a finite number")


def expert_iteration(
    lm: LanguageModel,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: ExpertConfig | None = None,
    *,
    run: Run | None = None,
    progress: Progress | None = None,
) -> list[Metrics]:
    """Tune `lm` in place by supervised learning on its own best answers; the metrics of each round.

    Anthony et al. 2017; for language models Dong et al. 2023 (RAFT) and Gulcehre et al. 2023 (ReST). With a `run`,
    answers that were kept are on disk before they are learned, and a run that stopped goes on to the same weights.
    Raises TrainingError, with the numbers, where a round keeps no answer.
    """
    config, done = config or ExpertConfig(), []
    for number in range(config.rounds):
        kept, metrics = _kept(lm, reward, prompts, config, number, run)
        part = replace(config.sft, train=replace(config.sft.train, seed=derive_seed(config.seed, "learn", number)))
        result = sft(lm, kept, part, run=run, name=f"expert-{number}", progress=progress)
        metrics["loss"] = result.final_loss
        if run is not None:
            run.log(number + 1, {f"expert/{name}": value for name, value in metrics.items()})
        done.append(metrics)
    return done


def _kept(
    lm: LanguageModel, reward: Reward, prompts: Sequence[Prompt], config: ExpertConfig, number: int, run: Run | None
) -> tuple[list[SFTExample], Metrics]:
    """The examples of a round, drawn now or before an interruption, and what was measured of its answers."""
    name = f"expert/round-{number}.jsonl"
    if run is not None and (run.artifacts / name).exists():
        head, *rows = read_jsonl(run.artifacts / name)
        return [SFTExample(**row) for row in rows], dict(head)
    seed = derive_seed(config.seed, "answers", number)
    shape = {"max_tokens": config.max_tokens, "temperature": config.temperature, "n": config.n, "seed": seed}
    with evaluating(lm.model), merged_for_decoding(lm.model):
        sampler = sampler_of(lm, batch_size=config.batch_size)
        drawn = draw_candidates(
            sampler,
            reward,
            prompts,
            SamplingParams(**shape),  # type: ignore[arg-type]
            time_limit=config.time_limit,
        )
    kept, metrics = select(drawn, config.least)
    if run is not None:
        rows = [metrics, *map(asdict, kept)]
        run.write_artifact(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return kept, metrics


def select(drawn: Sequence[Candidates], least: float | None) -> tuple[list[SFTExample], Metrics]:
    """What a round learns from, each prompt's best finished answer, and numbers about all answers.

    Without `least` a prompt whose answers all score the same teaches nothing and is left out: its best answer is a
    worst one too. Raises TrainingError where nothing is left.
    """
    scores = torch.cat([each.scores for each in drawn])
    kept, equal, cut, low = [], 0, 0, 0
    for each in drawn:
        choice = best_of(each)
        if not each.finished:
            cut += 1
        elif least is None and float(each.scores.min()) == choice.score:
            equal += 1
        elif least is not None and choice.score < least:
            low += 1
        else:
            kept.append(SFTExample(each.prompt, choice.answer.text))
    if not kept:
        raise TrainingError(
            f"none of the {len(scores)} answers to {len(drawn)} prompts is worth learning: {equal} prompts whose "
            f"answers all score the same, {low} below the least score, {cut} whose answers all ran into max_tokens; "
            f"scores lie between {float(scores.min()):g} and {float(scores.max()):g}"
        )
    finished = sum(len(each.finished) for each in drawn)
    metrics = {
        "reward": float(scores.mean()),
        "best_reward": float(torch.stack([each.scores.max() for each in drawn]).mean()),
        "kept": float(len(kept)),
        "equal": float(equal),
        "finished": finished / len(scores),
    }
    return kept, metrics
