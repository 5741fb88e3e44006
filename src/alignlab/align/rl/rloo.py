"""RLOO: a response is one action, and the other answers to its prompt are its baseline.

After Ahmadian et al. 2024. The KL penalty is part of the reward; the clip on the response's ratio, as `trl` has it,
is 1 at the first step on a batch and lets `epochs` be more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from alignlab.align.rl.answers import Actor, Answers, measure
from alignlab.align.rl.config import RLOOConfig
from alignlab.align.rl.learner import Learner, Metrics, OnStep, Piece, RLResult, begin, descend, draw_batch, finish
from alignlab.align.rl.objectives import leave_one_out_advantages, rloo_loss, token_weights
from alignlab.align.rl.rewards import Reward
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.types import Prompt


def train_rloo(
    policy: LanguageModel | Actor,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: RLOOConfig | None = None,
    *,
    run: Run | None = None,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> RLResult:
    """Improve the policy in place, going on from the last checkpoint if there is one.

    Raises RewardError, or TrainingError where there is nothing to learn from or sampler and trainer part.
    """
    config = config or RLOOConfig()
    learner = begin("rloo", policy, reward, config, run=run, checkpoint_dir=checkpoint_dir)
    company = learner.actor.work.company(lambda: learner.step)
    with company, (progress or Progress.silent()).task("RLOO", config.steps, unit="batches") as task:
        task.advance(min(learner.step, config.steps))
        while learner.step < config.steps:
            responses, scores, metrics = draw_batch(learner, prompts)
            if responses:
                batch = measure(learner.actor, responses, scores, config)
                metrics |= improve(learner, config, batch)
            finish(learner, responses, metrics, on_step)
            task.advance(1, tokens=sum(len(response.completion.tokens) for response in responses))
    return learner.result


def improve(learner: Learner, config: RLOOConfig, batch: Answers) -> Metrics:
    """Leave-one-out advantages of the penalised rewards, then the steps."""
    scores = batch.scores - config.kl_coefficient * batch.sequence_kl
    advantages = leave_one_out_advantages(scores, config.group_size, normalise=config.normalise_advantages)

    def loss_of(piece: Piece) -> tuple[Tensor, Metrics]:
        found = rloo_loss(
            piece.logprobs,
            piece.old,
            piece.advantages,
            piece.learned,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        metrics = {"clip_fraction": float(found.clip_fraction), "approx_kl": float(found.approx_kl)}
        return piece.share * found.loss, metrics

    return descend(learner, batch, advantages, token_weights, loss_of)
