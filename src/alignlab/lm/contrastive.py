"""Contrastive search (Su et al. 2022): likely tokens that do not repeat what the text already says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.core.config import require
from alignlab.lm.beam import check_sampling
from alignlab.lm.cache import KVCache
from alignlab.lm.generate import NOT_FINITE, Row, check_prompts, make_rows, pad_left
from alignlab.lm.model import GPTModel
from alignlab.lm.types import GenerationError, SamplingParams


@dataclass(frozen=True)
class ContrastiveSearch:
    """Among the `top_k` likeliest tokens takes the one with the largest (1 - alpha) · probability - alpha · likeness.

    A token's likeness is the largest cosine between the last layer's state at it (after the final norm) and the states
    at all tokens before it, prompt included: eq. 5 of "A Contrastive Framework for Neural Text Generation" (Su et al.
    2022). Nothing is drawn: temperature and seed are not asked.
    """

    top_k: int = 4
    """Candidates at every step; each is a row of the batch."""
    alpha: float = 0.6
    """0 is greedy, 1 only avoids what repeats."""

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "top_k", self.top_k, "a whole number of at least 1")
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "a number from 0 to 1")


@torch.no_grad()
def contrastive_search(
    model: GPTModel,
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    end_ids: frozenset[int],
    how: ContrastiveSearch,
) -> Iterator[list[Row]]:
    """Continue all prompts together; after every step yields the rows that got a token, as `decode` does.

    A row ends after a token of `end_ids`, `sampling.max_tokens`, at a full context, or when the consumer sets
    `row.done`. Rows whose logits are not finite end alone, and a `GenerationError` tells of them at the end.
    """
    n_ctx = model.config.n_ctx
    check_sampling(sampling, "contrastive search")
    check_prompts(prompts, n_ctx)
    rows = make_rows(prompts, sampling, n_ctx, [0] * len(prompts))
    top_k = min(how.top_k, model.config.vocab_size)
    cache, history, last = _read(model, rows, top_k)
    errors: dict[int, str] = {}
    while True:
        probabilities = model.unembed(last).float().softmax(-1)
        likeliest = probabilities.topk(top_k, -1)
        hidden = model.hidden_states(likeliest.indices.view(-1, 1), cache=cache)[:, -1].view(len(rows), top_k, -1)
        likeness = most_alike(hidden, history)
        pick = ((1 - how.alpha) * likeliest.values - how.alpha * likeness).argmax(-1, keepdim=True)
        chosen, gained = (t.gather(1, pick).squeeze(1) for t in (likeliest.indices, likeliest.values.log()))
        going = [row for row in rows if not row.done]
        for row, token, logprob in zip(rows, chosen.tolist(), gained.tolist(), strict=True):
            if not math.isfinite(logprob) and not row.done:
                errors[row.index], row.done = NOT_FINITE.format(len(row.prompt) + len(row.tokens)), True
            elif not row.done:
                row.take(token, logprob, end_ids)
        yield [row for row in going if row.index not in errors]
        alive = torch.tensor([i for i, row in enumerate(rows) if not row.done], device=last.device)
        if not len(alive):
            break
        # Every candidate's row goes on from the row of the one that was taken.
        cache.select((alive * top_k + pick[alive, 0]).repeat_interleave(top_k))
        last = hidden[alive, pick[alive, 0]]
        history = torch.cat([history[alive], F.normalize(last.float(), dim=-1)[:, None]], 1)
        rows = [rows[i] for i in alive.tolist()]
    if errors:
        raise GenerationError(errors)


def most_alike(
    hidden: Float[Tensor, "batch candidate d_model"], history: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch candidate"]:
    """Each candidate's largest cosine with the row's earlier states, which have length 1, or NaN on padding."""
    cosine = F.normalize(hidden.float(), dim=-1) @ history.transpose(1, 2)
    return cosine.nan_to_num(nan=-math.inf).amax(-1)


def _read(model: GPTModel, rows: Sequence[Row], top_k: int) -> tuple[KVCache, Tensor, Tensor]:
    """Read the prompts: a cache with `top_k` rows for each, the states of length 1 at their tokens, the last states."""
    weight, room = model.embed.weight, max(row.budget for row in rows)
    tokens, real = (t.to(weight.device) for t in pad_left([row.prompt for row in rows]))
    cache = KVCache(model.config, len(rows), tokens.shape[1] + room, device=weight.device, dtype=weight.dtype)
    hidden = model.hidden_states(tokens, cache=cache, segments=None if bool(real.all()) else real)
    history = F.normalize(hidden.float(), dim=-1).masked_fill(real[:, :, None] == 0, math.nan)
    each: Int[Tensor, " row"] = torch.arange(len(rows), device=weight.device).repeat_interleave(top_k)
    cache.select(each)
    return cache, history, hidden[:, -1]
