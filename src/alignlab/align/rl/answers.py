"""A policy and what it answers: one set of weights under sampler, trainer and reference, checked at every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.align.adapters import ensure_lora, has_lora, merged_for_decoding, reference_mode
from alignlab.align.losses import kl_estimate
from alignlab.align.policy import evaluating, sampled_entropy, token_logprobs
from alignlab.align.rl.config import RLConfig
from alignlab.align.rollout import (
    EncodesPrompts,
    Response,
    check_ends,
    check_mismatch,
    row_lengths,
    stack_responses,
)
from alignlab.align.shared_work import SharedWork
from alignlab.align.weight_sync import bring_up_to_date
from alignlab.core.errors import ConfigError, TrainingError
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.model import GPTModel
from alignlab.lm.samplers import sampler_of
from alignlab.lm.types import Prompt, Sampler, SamplingParams
from alignlab.train.parallel import Parallel


@dataclass
class Actor:
    """Who answers: the policy's weights, and what reads, samples and refers to them.

    `reference=None` takes the policy's own weights with the LoRA adapter off.
    """

    model: GPTModel
    tokenizer: EncodesPrompts
    sampler: Sampler
    reference: GPTModel | None = None
    parallel: Parallel | None = None
    """The processes that train together; none: this one alone."""
    work: SharedWork = field(init=False)
    """Set by `actor_of`, once the adapter is there."""


@dataclass(frozen=True)
class Answers:
    """A batch of responses with what the losses need; no tensor carries gradient, columns are as in `policy`."""

    tokens: Int[Tensor, "batch pos"]
    loss_mask: Bool[Tensor, "batch pos"]
    learned: Bool[Tensor, "batch pos-1"]
    """True on the response tokens that take part in the loss."""
    scores: Float[Tensor, " batch"]
    logprobs: Float[Tensor, "batch pos-1"]
    reference_logprobs: Float[Tensor, "batch pos-1"]
    metrics: dict[str, float]
    """What was measured while the batch was put together."""

    @property
    def responded(self) -> Bool[Tensor, "batch pos-1"]:
        """True on every response token, whether it takes part in the loss or not."""
        return self.loss_mask[:, 1:]

    @property
    def sequence_kl(self) -> Float[Tensor, " batch"]:
        """k1 summed over each response: its log-ratio to the reference, in nats."""
        estimate = kl_estimate(self.logprobs, self.reference_logprobs)
        return torch.where(self.responded, estimate, torch.zeros_like(estimate)).sum(dim=1)


def actor_of(policy: LanguageModel | Actor, config: RLConfig) -> Actor:
    """The actor of a language model, or the one given, with the config's adapter on it."""
    if isinstance(policy, LanguageModel):
        policy = Actor(
            policy.model, policy.tokenizer, sampler_of(policy, batch_size=config.prompts_per_step * config.group_size)
        )
    ensure_lora(policy.model, config.lora)
    if policy.reference is None and config.kl_coefficient > 0 and not has_lora(policy.model):
        raise ConfigError(
            f"kl_coefficient is {config.kl_coefficient:g} and there is neither a reference nor an adapter to switch "
            "off; give the Actor a reference, a LoRA adapter, or set kl_coefficient to 0"
        )
    policy.work = SharedWork(policy.model, policy.parallel)
    if policy.reference is not None:
        policy.reference.to(policy.model.head_weight.device)
    return policy


def draw(actor: Actor, prompts: Sequence[Prompt], config: RLConfig, seed: int) -> list[Response]:
    """`group_size` answers to each prompt, at temperature 1 without filters; answers of a prompt are adjacent."""
    sampling = SamplingParams(max_tokens=config.max_tokens, stop=config.stop, seed=seed, n=config.group_size)
    bring_up_to_date(actor.sampler, actor.model, actor.work)
    with evaluating(actor.model), merged_for_decoding(actor.model):
        completions = actor.work.speak(actor.sampler, prompts, sampling)
    expected = len(prompts) * config.group_size
    if len(completions) != expected:
        raise TrainingError(
            f"the sampler gave {len(completions)} answers to {len(prompts)} prompts, right are {config.group_size} each"
        )
    responses = [
        Response(prompt, tuple(actor.tokenizer.encode_prompt(prompt)), completion)
        for prompt, completion in zip((p for p in prompts for _ in range(config.group_size)), completions, strict=True)
    ]
    check_ends(responses, actor.tokenizer, config.stop)
    return responses


def measure(actor: Actor, responses: Sequence[Response], scores: Tensor, config: RLConfig) -> Answers:
    """Log-probabilities of the responses under policy and reference; stops where sampler and trainer part."""
    device = actor.model.head_weight.device
    tokens, mask, sampled = (tensor.to(device) for tensor in stack_responses(responses))
    scores, where, lengths = scores.to(device), mask[:, 1:], row_lengths(mask)
    logprobs, reference = torch.zeros_like(sampled), torch.zeros_like(sampled)
    with torch.no_grad(), evaluating(actor.model), autocast(actor.model, config):
        for rows, width in actor.work.own_rows(
            torch.arange(len(lengths), device=device), lengths, config.microbatch_size
        ):
            part = tokens[rows, :width], mask[rows, :width]
            logprobs[rows, : width - 1] = token_logprobs(actor.model, *part)
            if config.kl_coefficient > 0:
                reference[rows, : width - 1] = reference_logprobs(actor, *part)
    logprobs, reference = actor.work.added(logprobs, reference)
    metrics = check_mismatch(sampled, logprobs, where, limit=config.max_mismatch)
    ended = torch.tensor([r.completion.finish_reason == "stop" for r in responses], device=device)
    learned = where & ended[:, None] if config.on_truncated == "mask" else where
    if not bool(learned.any()):
        raise TrainingError(
            f"all {len(responses)} responses ran into max_tokens ({config.max_tokens}) and on_truncated is 'mask', so "
            f"none of their {int(where.sum())} tokens is left to learn from; raise max_tokens or keep truncated answers"
        )
    metrics |= {
        "reward": float(scores.mean()),
        "reward_std": float(scores.std(correction=0)),
        "entropy": sampled_entropy(logprobs, where),
        "response_length": float(where.sum(dim=1).float().mean()),
        "ended": float(ended.float().mean()),
    }
    answers = Answers(tokens, mask, learned, scores, logprobs, reference, metrics)
    if config.kl_coefficient == 0:
        return replace(answers, reference_logprobs=logprobs)
    metrics["kl"] = float(answers.sequence_kl.mean())
    metrics["objective"] = metrics["reward"] - config.kl_coefficient * metrics["kl"]
    return answers


def reference_logprobs(actor: Actor, tokens: Tensor, loss_mask: Tensor) -> Float[Tensor, "batch pos-1"]:
    """Log-probabilities under the reference: the given one, or the policy with its adapter off."""
    if actor.reference is not None:
        with evaluating(actor.reference):
            return token_logprobs(actor.reference, tokens, loss_mask)
    with reference_mode(actor.model):
        return token_logprobs(actor.model, tokens, loss_mask)


def autocast(model: GPTModel, config: RLConfig) -> torch.autocast:
    """bf16 matrix products where the config asks for them."""
    return torch.autocast(model.head_weight.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")
