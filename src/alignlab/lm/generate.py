"""Batched decoding with a preallocated cache: prompts in, a stream of tokens out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignlab.core.errors import SamplerError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.cache import KVCache
from alignlab.lm.model import GPTModel
from alignlab.lm.sampling import choose
from alignlab.lm.types import SamplingParams

SHARED_PREFIX = 16
"""A common beginning of at least this many tokens is read once for the whole batch."""
CACHED_ROWS = 8


@dataclass
class Row:
    """One prompt being continued."""

    index: int
    prompt: list[int]
    budget: int
    uniforms: Tensor
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False


def row_seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """A seed for each prompt from the prompt itself, so that no other prompt matters; repeats of a prompt differ."""
    seeds, repeats = [], dict[str, int]()
    for prompt in prompts:
        digest = hashlib.sha256(",".join(map(str, prompt)).encode()).hexdigest()
        seeds.append(derive_seed(seed, digest, repeats.get(digest, 0)))
        repeats[digest] = repeats.get(digest, 0) + 1
    return seeds


def check_prompts(prompts: Sequence[Sequence[int]], n_ctx: int) -> None:
    """An empty or overlong prompt is a `SamplerError`."""
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise SamplerError(f"prompt {index} is empty: the model needs at least one token to continue")
        if len(prompt) >= n_ctx:
            raise SamplerError(
                f"prompt {index} has {len(prompt)} tokens, the model reads at most {n_ctx - 1} before answering"
            )


def make_rows(prompts: Sequence[list[int]], sampling: SamplingParams, n_ctx: int, seeds: Sequence[int]) -> list[Row]:
    """Rows with their random numbers drawn, one seed each."""
    rows = []
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        budget = min(sampling.max_tokens, n_ctx - len(prompt))
        rows.append(Row(index, prompt, budget, torch.rand(budget, generator=torch_generator(seed))))
    return rows


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the beginning that all prompts share, leaving each at least one token of its own."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))


def read_prompts(model: GPTModel, prompts: Sequence[Sequence[int]], room: int) -> tuple[KVCache, Tensor]:
    """Fill a cache with the prompts, leaving `room` columns; returns it and the last hidden states (batch, d_model).

    Prompts are padded on the left, so that all rows write the same column from here on. A shared beginning is read
    once and spread over the rows.
    """
    weight = model.embed.weight
    shared = common_prefix(prompts) if len(prompts) > 1 else 0
    shared = shared if shared >= SHARED_PREFIX else 0
    width = max(map(len, prompts)) - shared
    cache = KVCache(
        model.config, 1 if shared else len(prompts), shared + width + room, device=weight.device, dtype=weight.dtype
    )
    if shared:
        model.hidden_states(torch.tensor([prompts[0][:shared]], device=weight.device), cache=cache)
        cache.spread(len(prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    real = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        own = prompt[shared:]
        tokens[i, width - len(own) :] = torch.tensor(own)
        real[i, width - len(own) :] = 1
    segments = None if bool(real.all()) else real.to(weight.device)
    hidden = model.hidden_states(tokens.to(weight.device), cache=cache, segments=segments)
    return cache, hidden[:, -1]


def choose_tokens(
    logits: Tensor, sampling: SamplingParams, uniform: Tensor, seen: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Each row's next token and its log-probability under the unfiltered logits.

    On the CPU a few rows at a time, so that what one step leaves is still in the processor's cache for the next.
    """
    step = CACHED_ROWS if logits.device.type == "cpu" else len(logits)
    chosen, gained = [], []
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        wide = logits[rows].float()
        chosen.append(choose(wide, sampling, uniform[rows], None if seen is None else seen[rows]))
        gained.append(wide.gather(1, chosen[-1][:, None]).squeeze(1) - wide.logsumexp(-1))
    return torch.cat(chosen), torch.cat(gained)


@torch.no_grad()
def decode(
    model: GPTModel,
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    end_ids: frozenset[int],
    *,
    seeds: Sequence[int] | None = None,
) -> Iterator[list[Row]]:
    """Continue all prompts together; after every step yields the rows that got a token.

    A row ends after a token of `end_ids`, after its budget, or when the consumer sets `row.done`. Finished rows leave
    the batch once they are half of it. `seeds` are the rows' own (`row_seeds` of these prompts where None): whoever
    splits prompts over several calls numbers repeats over all of them. An empty or overlong prompt is a `SamplerError`.
    """
    n_ctx = model.config.n_ctx
    check_prompts(prompts, n_ctx)
    rows = make_rows(prompts, sampling, n_ctx, row_seeds(prompts, sampling.seed) if seeds is None else seeds)
    cache, last = read_prompts(model, prompts, max(row.budget for row in rows))
    device = last.device
    uniforms = torch.zeros(len(rows), sampling.max_tokens)
    for i, row in enumerate(rows):
        uniforms[i, : row.budget] = row.uniforms
    uniforms = uniforms.to(device)
    seen = None
    if sampling.repetition_penalty != 1.0:
        seen = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.int32, device=device)
        for i, row in enumerate(rows):
            seen[i, torch.tensor(row.prompt, device=device)] = 1
    for step in range(sampling.max_tokens):
        chosen, gained = choose_tokens(model.unembed(last), sampling, uniforms[:, step], seen)
        if seen is not None:
            seen.scatter_(1, chosen[:, None], 1)
        moved = []
        for row, token, logprob in zip(rows, chosen.tolist(), gained.tolist(), strict=True):
            if row.done:
                continue
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.done = token in end_ids or len(row.tokens) >= row.budget
            moved.append(row)
        yield moved
        alive = [i for i, row in enumerate(rows) if not row.done]
        if not alive:
            return
        # A finished row whose context is full cannot be carried along: it has no position left.
        if len(alive) <= len(rows) // 2 or any(len(row.prompt) + step >= n_ctx for row in rows):
            keep = torch.tensor(alive, device=device)
            cache.select(keep)
            chosen, uniforms = chosen[keep], uniforms[keep]
            seen = None if seen is None else seen[keep]
            rows = [rows[i] for i in alive]
        last = model.hidden_states(chosen[:, None], cache=cache)[:, -1]
