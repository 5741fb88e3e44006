"""GRPO: groups of answers to a prompt are each other's baseline; one loop that reads from top to bottom.

After Shao et al. 2024 (DeepSeekMath), with Dr. GRPO, DAPO and GSPO as switches of `GRPOConfig`. Left out: process
rewards, and the iterated re-training of the reward model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from alignlab.align.rl.answers import Actor, Answers, measure
from alignlab.align.rl.config import GRPOConfig
from alignlab.align.rl.learner import Learner, Metrics, OnStep, Piece, RLResult, begin, descend, draw_batch, finish
from alignlab.align.rl.objectives import group_advantages, grpo_loss, kl_loss, token_weights
from alignlab.align.rl.rewards import Reward
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.types import Prompt


def train_grpo(
    policy: LanguageModel | Actor,
    reward: Reward,
    prompts: Sequence[Prompt],
    config: GRPOConfig | None = None,
    *,
    run: Run | None = None,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
) -> RLResult:
    """Improve the policy in place, going on from the last checkpoint if there is one.

    Raises RewardError, or TrainingError where there is nothing to learn from or sampler and trainer part.
    """
    config = config or GRPOConfig()
    learner = begin("grpo", policy, reward, config, run=run, checkpoint_dir=checkpoint_dir)
    company = learner.actor.work.company(lambda: learner.step)
    with company, (progress or Progress.silent()).task("GRPO", config.steps, unit="batches") as task:
        task.advance(min(learner.step, config.steps))
        while learner.step < config.steps:
            responses, scores, metrics = draw_batch(learner, prompts)
            if responses:
                batch = measure(learner.actor, responses, scores, config)
                metrics |= improve(learner, config, batch)
            finish(learner, responses, metrics, on_step)
            task.advance(1, tokens=sum(len(response.completion.tokens) for response in responses))
    return learner.result


def improve(learner: Learner, config: GRPOConfig, batch: Answers) -> Metrics:
    """Advantages within groups, then the clipped steps with the KL term where the config puts it."""
    beta = config.kl_coefficient
    scores = batch.scores - beta * batch.sequence_kl if config.kl_in == "reward" and beta > 0 else batch.scores
    advantages = group_advantages(scores, config.group_size, scale=config.scale)

    def weights_of(learned: Tensor) -> Tensor:
        return token_weights(learned, config.aggregate, max_tokens=config.max_tokens)

    def loss_of(piece: Piece) -> tuple[Tensor, Metrics]:
        found = grpo_loss(
            piece.logprobs,
            piece.old,
            piece.advantages,
            piece.weights,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            level=config.level,
        )
        loss = found.loss
        if config.kl_in == "loss" and beta > 0:
            old = piece.old if config.kl_ratio else None
            loss = loss + beta * kl_loss(
                piece.logprobs, piece.reference, piece.weights, estimator=config.kl_estimator, old_logprobs=old
            )
        return loss, {"clip_fraction": float(found.clip_fraction), "approx_kl": float(found.approx_kl)}

    return descend(learner, batch, advantages, weights_of, loss_of)
