"""What a policy said, as tensors: responses, their scores, and the rollout batch that PPO learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.align.pairs import pad_masks, pad_rows
from alignlab.core.errors import TrainingError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.types import Completion, Prompt

RewardFn = Callable[[list[Prompt], list[str]], Sequence[float]]
"""A reward in plain Python: prompts and responses in, one number for each out."""


@runtime_checkable
class ScoresResponses(Protocol):
    """A reward model: anything with the `score` of `PreferenceModel`."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor: ...


class EncodesPrompts(Protocol):
    """The one thing that PPO asks of a tokenizer."""

    def encode_prompt(self, prompt: Prompt) -> list[int]: ...


@dataclass(frozen=True)
class Response:
    """One prompt and what the policy made of it."""

    prompt: Prompt
    """The prompt as it was given."""
    prompt_tokens: tuple[int, ...]
    """The prompt as the model read it."""
    completion: Completion
    """The sampled continuation, with the sampler's log-probabilities."""


@dataclass(frozen=True)
class Rollout:
    """A batch of responses with everything the update needs; no tensor carries gradient.

    Column t of the tensors with one column fewer than `tokens` is about token t + 1, as in `policy`.
    """

    tokens: Int[Tensor, "batch pos"]
    loss_mask: Bool[Tensor, "batch pos"]
    scores: Float[Tensor, " batch"]
    logprobs: Float[Tensor, "batch pos-1"]
    reference_logprobs: Float[Tensor, "batch pos-1"]
    values: Float[Tensor, "batch pos-1"]
    advantages: Float[Tensor, "batch pos-1"]
    returns: Float[Tensor, "batch pos-1"]
    metrics: dict[str, float]
    """What was measured while the batch was put together."""

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens of each row, prompt and response."""
        return row_lengths(self.loss_mask)


def prompts_from(prompts: Sequence[Prompt], start: int, count: int, seed: int) -> list[Prompt]:
    """`count` prompts from position `start` on: consecutive pieces of one shuffled pass after the other."""
    chosen: list[Prompt] = []
    for position in range(start, start + count):
        epoch, index = divmod(position, len(prompts))
        if index == 0 or not chosen:
            order = torch.randperm(
                len(prompts), generator=torch_generator(derive_seed(seed, "prompts", epoch))
            ).tolist()
        chosen.append(prompts[order[index]])
    return chosen


def row_lengths(loss_mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """Position after the last True of each row: the response ends the row, so this is the row's length."""
    after = torch.arange(1, loss_mask.shape[1] + 1, device=loss_mask.device)
    return (loss_mask * after).max(dim=1).values


def by_length(rows: Int[Tensor, " n"], lengths: Int[Tensor, " batch"], size: int) -> Iterator[tuple[Tensor, int]]:
    """Split rows into parts of at most `size` rows of similar length: (rows of the part, its width in tokens)."""
    ordered = rows[lengths[rows].argsort(stable=True)]
    for part in ordered.split(size):
        yield part, int(lengths[part].max())


def stack_responses(responses: Sequence[Response]) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, loss_mask, sampler_logprobs): rows padded on the right; the last has one column fewer.

    Raises TrainingError for a response without tokens or with another number of log-probabilities than tokens.
    """
    rows, masks, logprobs = [], [], []
    for i, response in enumerate(responses):
        prompt, completion = response.prompt_tokens, response.completion
        if not prompt or not completion.tokens:
            part = "response" if prompt else "prompt"
            raise TrainingError(f"the {part} of item {i} has no tokens, so there is no probability to learn from")
        if len(completion.tokens) != len(completion.logprobs):
            raise TrainingError(
                f"response {i} has {len(completion.tokens)} tokens and {len(completion.logprobs)} log-probabilities, "
                "the sampler must give one for each token"
            )
        if completion.prompt_tokens not in (0, len(prompt)):
            raise TrainingError(
                f"the sampler read prompt {i} as {completion.prompt_tokens} tokens and the trainer as {len(prompt)}; "
                "both must use one tokenizer and chat template"
            )
        rows.append([*prompt, *completion.tokens])
        masks.append([False] * len(prompt) + [True] * len(completion.tokens))
        logprobs.append([0.0] * (len(prompt) - 1) + list(completion.logprobs))
    tokens, loss_mask = pad_rows(rows), pad_masks(masks)
    width = tokens.shape[1] - 1
    sampled = torch.tensor([row + [0.0] * (width - len(row)) for row in logprobs], dtype=torch.float32)
    return tokens, loss_mask, sampled


def check_ends(responses: Sequence[Response], tokenizer: object, stop: Sequence[str] = ()) -> None:
    """Refuse a response that counts as finished though nothing ended it: neither an end token nor a stop string.

    Says nothing where the tokenizer names no end tokens (`eos_ids`).
    """
    ends = getattr(tokenizer, "eos_ids", None)
    decode = getattr(tokenizer, "decode", None)
    if not ends:
        return
    for i, response in enumerate(responses):
        completion = response.completion
        if completion.finish_reason != "stop" or not completion.tokens or completion.tokens[-1] in ends:
            continue
        if stop and (decode is None or any(text in decode(list(completion.tokens)) for text in stop)):
            continue
        raise TrainingError(
            f"response {i} counts as finished after {len(completion.tokens)} tokens, but its last token is "
            f"{completion.tokens[-1]}, none of the end tokens {sorted(ends)}{' and no stop string' if stop else ''}; "
            "a truncated answer must have the finish reason 'length'"
        )


def check_mismatch(
    sampled: Float[Tensor, "batch pos"],
    recomputed: Float[Tensor, "batch pos"],
    loss_mask: Bool[Tensor, "batch pos"],
    *,
    limit: float,
) -> dict[str, float]:
    """Compare the sampler's log-probabilities with the trainer's; the metrics, or TrainingError past `limit` (mean,
    nats).

    When they part, the policy that is improved is not the one that spoke, and every ratio is wrong.
    """
    difference = torch.where(loss_mask, (sampled - recomputed).abs(), torch.zeros_like(sampled))
    mean, largest = float(difference[loss_mask].mean()), float(difference.max())
    if not mean <= limit:  # also catches nan
        row, column = divmod(int(difference.nan_to_num(nan=float("inf")).argmax()), difference.shape[1])
        raise TrainingError(
            f"the sampler's and the trainer's log-probabilities differ by {mean:.4f} nats per token on average, "
            f"allowed: {limit:g}; the largest difference is {largest:.4f}, at token {column + 1} of response {row} "
            f"({float(sampled[row, column]):.4f} sampled, {float(recomputed[row, column]):.4f} recomputed)"
        )
    return {"mismatch_mean": mean, "mismatch_max": largest}
