"""What the loops share beside mathematics: optimiser, groups of answers, gradient steps, checkpoints.

Randomness needs no state: every draw derives from the seed, the number of the rollout batch and of the attempt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alignlab.align.policy import evaluating, token_logprobs
from alignlab.align.rl.answers import Actor, Answers, actor_of, autocast, draw
from alignlab.align.rl.config import RLConfig
from alignlab.align.rl.learner_state import load, save
from alignlab.align.rl.objectives import equal_groups, overlong_penalty
from alignlab.align.rl.rewards import Guarded, Reward
from alignlab.align.rl.tokenizers import check_reward_tokenizer
from alignlab.align.rollout import Response, prompts_from, row_lengths
from alignlab.core.errors import DataError, TrainingError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.core.runs import Run
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.lm.types import Prompt
from alignlab.train.losses import check_variance
from alignlab.train.optim import trainable_parameters
from alignlab.train.schedule import learning_rate_at

Metrics = dict[str, float]
OnStep = Callable[[int, list[Response], Metrics], None]


@dataclass(frozen=True)
class RLResult:
    """What a training did."""

    steps: int
    """Rollout batches done, those before a resume included."""
    history: list[Metrics]
    """Metrics of every rollout batch."""


@dataclass
class Learner:
    """The state of a training, which a checkpoint holds and a loop moves on."""

    method: str
    actor: Actor
    config: RLConfig
    reward: Guarded
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    directory: Path | None = None
    run: Run | None = None
    step: int = 0
    cursor: int = 0
    """Prompts drawn so far."""
    baseline: float | None = None
    """Running mean of the returns, where a method keeps one."""
    history: list[Metrics] = field(default_factory=list)

    @property
    def result(self) -> RLResult:
        return RLResult(self.step, self.history)


class Piece(NamedTuple):
    """A microbatch: what the loss functions take, the policy's log-probabilities with gradient."""

    logprobs: Float[Tensor, "batch pos"]
    old: Float[Tensor, "batch pos"]
    reference: Float[Tensor, "batch pos"]
    advantages: Tensor
    """One a response, or one a token."""
    weights: Float[Tensor, "batch pos"]
    learned: Bool[Tensor, "batch pos"]
    share: float
    """Of the minibatch's responses."""


def begin(
    method: str,
    policy: LanguageModel | Actor,
    reward: Reward,
    config: RLConfig,
    *,
    run: Run | None = None,
    checkpoint_dir: Path | None = None,
) -> Learner:
    """A training at its beginning, or where the newest checkpoint of its directory left it."""
    actor = actor_of(policy, config)
    parameters = trainable_parameters(actor.work.trained)
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    directory = actor.work.place(checkpoint_dir or (run.checkpoints / method if run is not None else None))
    guarded = reward if isinstance(reward, Guarded) else Guarded(reward, config.reward_time_limit)
    if config.reward_tokenizer == "same":
        check_reward_tokenizer(guarded.reward, actor.tokenizer)
    learner = Learner(method, actor, config, guarded, parameters, optimizer, directory, run)
    load(learner)
    return learner


def score(learner: Learner, responses: Sequence[Response]) -> Float[Tensor, " batch"]:
    """One score for each response: the reward's, clipped, less the penalties for length and for a missing end."""
    config = learner.config
    prompts, texts = [r.prompt for r in responses], [r.completion.text for r in responses]
    scores = learner.actor.work.score(learner.reward, prompts, texts)
    if config.reward_clip is not None:
        scores = scores.clamp(-config.reward_clip, config.reward_clip)
    unended = torch.tensor([float(r.completion.finish_reason == "length") for r in responses])
    scores = scores - config.missing_end_penalty * unended
    if config.overlong_buffer is not None:
        lengths = torch.tensor([len(r.completion.tokens) for r in responses])
        scores = scores + overlong_penalty(lengths, config.max_tokens, config.overlong_buffer)
    return scores


def draw_batch(learner: Learner, prompts: Sequence[Prompt]) -> tuple[list[Response], Tensor, Metrics]:
    """Responses and scores of the next prompts, without the groups that teach nothing; empty where all are such.

    A group whose scores are equal is left out, or made up for with the next prompts, as `equal_groups` says.
    """
    if not prompts:
        raise DataError(f"{learner.method} got an empty list of prompts, at least one is needed")
    config, size = learner.config, learner.config.group_size
    kept: list[Response] = []
    scores: list[Tensor] = []
    drawn, missing, attempt = 0, config.prompts_per_step, 0
    while missing > 0 and attempt <= (config.max_resamples if config.equal_groups == "resample" else 0):
        chosen = prompts_from(prompts, learner.cursor, missing, config.seed)
        learner.cursor += missing
        responses = draw(learner.actor, chosen, config, derive_seed(config.seed, "rollout", learner.step, attempt))
        found = score(learner, responses)
        useful = _useful_groups(found, config)
        kept += [response for i, response in enumerate(responses) if useful[i // size]]
        scores.append(found[useful.repeat_interleave(size)])
        drawn, missing, attempt = drawn + len(chosen), missing - int(useful.sum()), attempt + 1
    metrics = {"groups": float(drawn), "equal_groups": float(drawn - len(kept) // size)}
    if not kept and config.on_equal_rewards == "raise":
        check_variance(found, "rewards within every group" if size > 1 else "rewards")
        raise TrainingError(
            f"in each of the {drawn} groups of this batch all {size} rewards are equal, so there is nothing to learn; "
            "use larger groups, other prompts or a reward that tells answers apart"
        )
    return kept, torch.cat(scores), metrics if kept else {**metrics, "reward": float(found.mean()), "skipped": 1.0}


def _useful_groups(scores: Tensor, config: RLConfig) -> Bool[Tensor, " groups"]:
    size = config.group_size
    if size == 1:  # one answer a prompt: the batch is the group
        return torch.full((len(scores),), bool((scores != scores[0]).any()) or config.equal_groups == "keep")
    equal = equal_groups(scores, size)
    if config.equal_groups == "raise" and bool(equal.any()):
        group = int(equal.nonzero()[0])
        raise TrainingError(
            f"group {group} of this batch has {size} equal rewards ({float(scores[group * size]):g}), so its "
            f"advantages are 0 ({int(equal.sum())} of {len(equal)} groups are such); equal_groups says what to do"
        )
    return torch.ones_like(equal) if config.equal_groups == "keep" else ~equal


def descend(
    learner: Learner,
    batch: Answers,
    advantages: Tensor,
    weights_of: Callable[[Bool[Tensor, "batch pos"]], Tensor],
    loss_of: Callable[[Piece], tuple[Tensor, Metrics]],
) -> Metrics:
    """Gradient steps on a batch: epochs, minibatches, microbatches; means of the metrics over the updates tried."""
    config, size = learner.config, len(batch.tokens)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate_at(
            learner.step,
            peak=config.learning_rate,
            steps=config.steps,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
        )
    updates: list[Metrics] = []
    made = 0
    for epoch in range(config.epochs):
        generator = torch_generator(derive_seed(config.seed, "minibatches", learner.step, epoch))
        order = torch.randperm(size, generator=generator).to(batch.tokens.device)
        for rows in order.split(config.minibatch_size):
            if not bool(batch.learned[rows].any()):
                continue  # nothing but masked responses in this minibatch
            updates.append(_update(learner, batch, advantages, rows, (weights_of, loss_of)))
            if updates[-1].pop("stop"):
                break
            made += 1
        else:
            continue
        break  # too far from the policy that gave these responses
    learner.actor.work.refresh()
    means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
    return {**batch.metrics, **means, "updates": float(made)}


def _update(
    learner: Learner, batch: Answers, advantages: Tensor, rows: Tensor, functions: tuple[Callable, Callable]
) -> Metrics:
    """One optimiser step on some rows, in microbatches whose gradients add up to the minibatch's."""
    config, work, (weights_of, loss_of) = learner.config, learner.actor.work, functions
    weights = torch.zeros_like(batch.logprobs)
    weights[rows] = weights_of(batch.learned[rows])
    taking_part = rows[batch.learned[rows].any(dim=1)]
    tokens_total = float(batch.learned[rows].sum())
    sums: dict[str, float] = defaultdict(float)
    learner.optimizer.zero_grad(set_to_none=True)

    def loss_on(part: Tensor, width: int, model: torch.nn.Module) -> tuple[Tensor, Metrics, float]:
        short = slice(width - 1)
        with autocast(learner.actor.model, config):
            tokens, mask = batch.tokens[part, :width], batch.loss_mask[part, :width]
            logprobs = token_logprobs(cast(GPTModel, model), tokens, mask)
        piece = Piece(
            logprobs,
            batch.logprobs[part, short],
            batch.reference_logprobs[part, short],
            advantages[part] if advantages.ndim == 1 else advantages[part, short],
            weights[part, short],
            batch.learned[part, short],
            len(part) / len(rows),
        )
        return *loss_of(piece), float(piece.learned.sum()) / tokens_total

    with evaluating(work.trained):  # no dropout: the ratio compares two evaluations of one function
        lengths = row_lengths(batch.loss_mask)
        for part, width, weight, last in work.parts(taking_part, lengths, config.microbatch_size):
            with work.passing(last):
                loss, metrics, share = work.compute(partial(loss_on, part, width))
                (loss * (weight * work.world)).backward()
            sums["policy_loss"] += weight * float(loss.detach())
            for name, number in metrics.items():
                sums[name] += weight * share * float(number)
    sums = work.added_numbers(sums)
    return {**sums, **_step(learner, sums)}


def _step(learner: Learner, sums: Metrics) -> Metrics:
    """Clip, check and apply the gradient, unless the policy has gone too far."""
    limit = learner.config.max_policy_kl
    norm = learner.actor.work.clip(learner.parameters.values(), learner.config.grad_clip)
    if not bool(norm.isfinite()):
        raise TrainingError(
            f"the gradient of {learner.method} step {learner.step + 1} is not finite (loss {sums['policy_loss']:g}); "
            "lower the learning rate or check the rewards"
        )
    stop = limit is not None and sums.get("approx_kl", 0.0) > limit
    if not stop:
        learner.optimizer.step()
    return {"grad_norm": float(norm), "stop": float(stop)}


def finish(learner: Learner, responses: list[Response], metrics: Metrics, on_step: OnStep | None) -> None:
    """Count, log and, when it is time, save a rollout batch."""
    work = learner.actor.work
    metrics |= work.main(learner.reward.after_step)
    learner.step += 1
    learner.history.append(metrics)
    if learner.run is not None:
        learner.run.log(learner.step, {f"{learner.method}/{name}": value for name, value in metrics.items()})
    if on_step is not None:
        work.main(partial(on_step, learner.step, responses, metrics))
    every = learner.config.checkpoint_every
    if learner.directory is not None and (learner.step % every == 0 or learner.step == learner.config.steps):
        save(learner)
