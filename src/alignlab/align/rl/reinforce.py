"""REINFORCE: every token is followed by its reward-to-go, less a baseline; no groups, no value head, no clip.

After Williams 1992; with `baseline="none"`, `whiten_advantages` and the KL penalty per token it is REINFORCE++ (Hu
2025) without its clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from alignlab.align.advantages import gae, token_rewards, whiten
from alignlab.align.rl.answers import Actor, Answers, measure
from alignlab.align.rl.config import ReinforceConfig
from alignlab.align.rl.learner import Learner, Metrics, OnStep, Piece, RLResult, begin, descend, draw_batch, finish
from alignlab.align.rl.objectives import leave_one_out_advantages, reinforce_loss, token_weights
from alignlab.align.rl.rewards import Reward
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.types import Prompt


def train_reinforce(
    policy: LanguageModel | Actor,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: ReinforceConfig | None = None,
    *,
    run: Run | None = None,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> RLResult:
    """Improve the policy in place, going on from the last checkpoint if there is one.

    Raises RewardError, or TrainingError where there is nothing to learn from or sampler and trainer part.
    """
    config = config or ReinforceConfig()
    learner = begin("reinforce", policy, reward, config, run=run, checkpoint_dir=checkpoint_dir)
    company = learner.actor.work.company(lambda: learner.step)
    with company, (progress or Progress.silent()).task("REINFORCE", config.steps, unit="batches") as task:
        task.advance(min(learner.step, config.steps))
        while learner.step < config.steps:
            responses, scores, metrics = draw_batch(learner, prompts)
            if responses:
                batch = measure(learner.actor, responses, scores, config)
                metrics |= improve(learner, config, batch)
            finish(learner, responses, metrics, on_step)
            task.advance(1, tokens=sum(len(response.completion.tokens) for response in responses))
    return learner.result


def improve(learner: Learner, config: ReinforceConfig, batch: Answers) -> Metrics:
    """Rewards of the tokens, their returns less the baseline, one step."""
    where = batch.responded
    rewards = token_rewards(
        batch.scores,
        batch.logprobs,
        batch.reference_logprobs,
        where,
        kl_coefficient=config.kl_coefficient,
        estimator=config.kl_estimator,
    )
    returns, _ = gae(rewards, torch.zeros_like(rewards), where, config.gamma, 1.0)  # without values: reward-to-go
    advantages = torch.where(where, returns - _baseline(learner, config, rewards.sum(dim=1))[:, None], 0.0)
    if config.whiten_advantages:
        advantages = whiten(advantages, where)

    def weights_of(learned: Tensor) -> Tensor:
        return token_weights(learned, config.aggregate, max_tokens=config.max_tokens)

    def loss_of(piece: Piece) -> tuple[Tensor, Metrics]:
        return reinforce_loss(piece.logprobs, piece.advantages, piece.weights), {}

    return descend(learner, batch, advantages, weights_of, loss_of)


def _baseline(learner: Learner, config: ReinforceConfig, totals: Tensor) -> Tensor:
    """What is taken from the returns of each response; none depends on that response itself."""
    if config.baseline == "batch" and len(totals) > 1:
        return totals - leave_one_out_advantages(totals, len(totals))
    before = learner.baseline
    mean = float(totals.mean())
    learner.baseline = mean if before is None else config.baseline_decay * before + (1 - config.baseline_decay) * mean
    return torch.full_like(totals, before or 0.0 if config.baseline == "running" else 0.0)
