"""Batched decoding with a preallocated cache: prompts in, a stream of tokens out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignlab.core.errors import SamplerError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.cache import KVCache
from alignlab.lm.cpu_step.reading import Stepper
from alignlab.lm.model import GPTModel
from alignlab.lm.sampling import choose
from alignlab.lm.types import GenerationError, SamplingParams

if TYPE_CHECKING:
    from alignlab.lm.constrained import Guide, GuideState

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
    ended: bool = False
    """The constraint is met and nothing may follow, so the row is whole without an end token."""
    state: GuideState | None = None

    def take(self, token: int, logprob: float, end_ids: frozenset[int]) -> None:
        """The next token; the row is done after an end token, its budget, or the end of what its constraint allows."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.state is not None and token not in end_ids:
            self.state.advance(token)
            self.ended = self.state.finished
        self.done = self.ended or token in end_ids or len(self.tokens) >= self.budget


NOT_FINITE = "the model's logits are not finite (NaN or infinite) after {} tokens; its weights or activations overflow"


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


def check_bias(sampling: SamplingParams, vocab_size: int) -> None:
    """A biased token that the model does not have is a `SamplerError`."""
    for token, _ in sampling.logit_bias:
        if token >= vocab_size:
            raise SamplerError(f"logit_bias names token {token}, the model has tokens 0 to {vocab_size - 1}")


def make_rows(
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    n_ctx: int,
    seeds: Sequence[int],
    guide: Guide | None = None,
) -> list[Row]:
    """Rows with their random numbers drawn, one seed each, and at the start of what `guide` allows."""
    rows = []
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        budget = min(sampling.max_tokens, n_ctx - len(prompt))
        row = Row(index, prompt, budget, torch.rand(budget, generator=torch_generator(seed)))
        row.state = None if guide is None else guide.start()
        rows.append(row)
    return rows


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the beginning that all prompts share, leaving each at least one token of its own."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))


def read_prompts(
    model: GPTModel, prompts: Sequence[Sequence[int]], room: int, stepper: Stepper | None = None
) -> tuple[KVCache, Tensor]:
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
    stepper = stepper or Stepper(model)
    if shared:
        stepper.hidden_states(torch.tensor([prompts[0][:shared]], device=weight.device), cache)
        cache.spread(len(prompts))
    tokens, real = pad_left([prompt[shared:] for prompt in prompts])
    segments = None if bool(real.all()) else real.to(weight.device)
    hidden = stepper.hidden_states(tokens.to(weight.device), cache, segments)
    return cache, hidden[:, -1]


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens (batch, longest row), each row at the right, and 1 where there is one, 0 on padding."""
    width = max(map(len, rows))
    tokens, real = torch.zeros(2, len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row)
        real[i, width - len(row) :] = 1
    return tokens, real


def read_repeated(
    model: GPTModel, prompts: Sequence[Sequence[int]], room: int, stepper: Stepper | None = None
) -> tuple[KVCache, Tensor]:
    """As `read_prompts`, with every different prompt read once, however often it occurs."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    cache, last = read_prompts(model, [list(prompt) for prompt in place], room, stepper)
    if len(place) == len(prompts):
        return cache, last
    rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=last.device)
    if len(place) == 1:
        cache.spread(len(prompts))
    else:
        cache.select(rows)
    return cache, last[rows]


def choose_tokens(
    logits: Tensor,
    sampling: SamplingParams,
    uniform: Tensor,
    seen: Tensor | None,
    allowed: Tensor | None = None,
    *,
    total: Tensor | None = None,
    best: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each row's next token and its log-probability under the unfiltered logits, which is not finite where they aren't.

    `total` and `best` are each row's `logsumexp` and first largest logit, where they are known already. On the CPU a
    few rows at a time, so that what one step leaves is still in the processor's cache for the next.
    """
    if best is not None and total is not None and is_plain_greedy(sampling) and seen is None and allowed is None:
        return best, logits.gather(1, best[:, None]).squeeze(1) - total
    step = CACHED_ROWS if logits.device.type == "cpu" else len(logits)
    chosen, gained = [], []
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        wide = logits[rows].float()
        counts, mask = (None if x is None else x[rows] for x in (seen, allowed))
        chosen.append(choose(wide, sampling, uniform[rows], counts, mask))
        norm = wide.logsumexp(-1) if total is None else total[rows]
        gained.append(wide.gather(1, chosen[-1][:, None]).squeeze(1) - norm)
    return torch.cat(chosen), torch.cat(gained)


def is_plain_greedy(sampling: SamplingParams) -> bool:
    """Whether the next token is the most likely one as the model has it."""
    return sampling.temperature == 0 and not sampling.logit_bias


def count_seen(rows: Sequence[Row], vocab_size: int, device: torch.device) -> Tensor:
    """1 at every token (batch, vocab) of each row's prompt."""
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.int32, device=device)
    for i, row in enumerate(rows):
        seen[i, torch.tensor(row.prompt, device=device)] = 1
    return seen


def allowed_tokens(rows: Sequence[Row], errors: dict[int, str], device: torch.device) -> Tensor | None:
    """What each row's constraint allows next (batch, vocab), or None where there is none.

    A row that its constraint leaves no token is done, with an entry in `errors`.
    """
    if rows[0].state is None:
        return None
    masks = []
    for row in rows:
        assert row.state is not None
        try:
            masks.append(row.state.guide.everything if row.done else row.state.allowed())
        except SamplerError as error:
            errors[row.index], row.done = str(error), True
            masks.append(row.state.guide.everything)
    return torch.stack(masks).to(device)


def settle(rows: Sequence[Row], chosen: Tensor, gained: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """`chosen` and its log-probabilities, with other tokens where a row's constraint needs its last ones to finish."""
    for i, (row, token, logprob) in enumerate(zip(rows, chosen.tolist(), gained.tolist(), strict=True)):
        if row.done or row.state is None or not math.isfinite(logprob):
            continue
        final = row.state.settle(token, row.budget - len(row.tokens))
        if final is None:
            row.ended = row.done = True
        elif final != token:
            wide = logits[i].float()
            chosen[i], gained[i] = final, wide[final] - wide.logsumexp(-1)
    return chosen, gained


@torch.no_grad()
def decode(
    model: GPTModel,
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    end_ids: frozenset[int],
    *,
    seeds: Sequence[int] | None = None,
    guide: Guide | None = None,
) -> Iterator[list[Row]]:
    """Continue all prompts together; after every step yields the rows that got a token.

    A row ends after a token of `end_ids`, after its budget, at the end of what `guide` allows, or when the consumer
    sets `row.done`. Finished rows leave the batch once they are half of it. `seeds` are the rows' own (`row_seeds` of
    these prompts where None): whoever splits prompts over several calls numbers repeats over all of them. Prompts that
    are equal are read once. An empty or overlong prompt is a `SamplerError`; rows whose logits are not finite, or that
    `guide` leaves no token, end alone, and a `GenerationError` tells of them once the others are done.
    """
    n_ctx, vocab_size = model.config.n_ctx, model.config.vocab_size
    check_prompts(prompts, n_ctx)
    check_bias(sampling, vocab_size)
    seeds = row_seeds(prompts, sampling.seed) if seeds is None else seeds
    rows = make_rows(prompts, sampling, n_ctx, seeds, guide)
    errors: dict[int, str] = {}
    stepper = Stepper(model)
    cache, last = read_repeated(model, prompts, max(row.budget for row in rows), stepper)
    device, reading = last.device, stepper.unembed(last)
    uniforms = torch.zeros(len(rows), sampling.max_tokens)
    for i, row in enumerate(rows):
        uniforms[i, : row.budget] = row.uniforms
    uniforms = uniforms.to(device)
    seen = count_seen(rows, vocab_size, device) if sampling.repetition_penalty != 1.0 else None
    for step in range(sampling.max_tokens):
        logits, allowed = reading.logits, allowed_tokens(rows, errors, device)
        chosen, gained = choose_tokens(
            logits, sampling, uniforms[:, step], seen, allowed, total=reading.total, best=reading.best
        )
        going = [row for row in rows if not row.done]
        if guide is not None:
            chosen, gained = settle(rows, chosen, gained, logits)
        if seen is not None:
            seen.scatter_(1, chosen[:, None], 1)
        for row, token, logprob in zip(rows, chosen.tolist(), gained.tolist(), strict=True):
            if not math.isfinite(logprob) and not row.done:
                errors[row.index], row.done = NOT_FINITE.format(len(row.prompt) + step), True
            elif not row.done:
                row.take(token, logprob, end_ids)
        yield [row for row in going if row.index not in errors]
        alive = [i for i, row in enumerate(rows) if not row.done]
        if not alive:
            break
        # A finished row whose context is full cannot be carried along: it has no position left.
        if len(alive) <= len(rows) // 2 or any(len(row.prompt) + step >= n_ctx for row in rows):
            keep = torch.tensor(alive, device=device)
            cache.select(keep)
            chosen, uniforms = chosen[keep], uniforms[keep]
            seen = None if seen is None else seen[keep]
            rows = [rows[i] for i in alive]
        reading = stepper.next(chosen, cache)
    if errors:
        raise GenerationError(errors)
