"""From logits to a token: filters as pure functions on (batch, vocab) logits, and inverse-CDF sampling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.lm.types import SamplingParams

BLOCK = 256
"""Vocabularies are searched in blocks of this many tokens."""
NUCLEUS_CANDIDATES = 512
"""Tokens looked at first when a nucleus is sought."""


def penalise_repetition(
    logits: Float[Tensor, "batch vocab"], seen: Int[Tensor, "batch vocab"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Divide positive and multiply negative logits of tokens with `seen > 0` by `penalty` (Keskar et al. 2019)."""
    return torch.where(seen > 0, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """-inf below the k-th largest logit (ties with it stay)."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k, -1).values[:, -1:], float("-inf"))


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """-inf outside the smallest set of most likely tokens whose probability reaches `p` (Holtzman et al. 2020).

    Ties with the least likely of the set stay: which of them a partial sort finds depends on the other rows.
    """
    total = logits.logsumexp(-1, keepdim=True)
    # Sorting a whole vocabulary costs more than the model's own step; the nucleus is nearly always among the first few.
    for candidates in (NUCLEUS_CANDIDATES, logits.shape[-1]):
        ordered = logits.topk(min(candidates, logits.shape[-1]), -1).values
        mass = (ordered - total).exp().cumsum(-1)
        if ordered.shape[-1] == logits.shape[-1] or bool((mass[:, -1] >= p).all()):
            break
    outside = F.pad(mass[:, :-1], (1, 0)) >= p  # the mass before this token already suffices
    least = ordered.masked_fill(outside, float("inf")).amin(-1, keepdim=True)
    return logits.masked_fill(logits < least, float("-inf"))


def keep_min_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """-inf where the probability is below `p` times the largest."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), float("-inf"))


def filter_logits(logits: Float[Tensor, "batch vocab"], sampling: SamplingParams) -> Float[Tensor, "batch vocab"]:
    """Temperature, then top-k, top-p and min-p, each only where it is switched on (temperature must be above 0)."""
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def draw(logits: Float[Tensor, "batch vocab"], uniform: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The token where the cumulative probability first exceeds each row's uniform number.

    One number per row and step is what makes a row's sample independent of its companions. The search goes first over
    sums of blocks, then inside one block, which spares a cumulative sum over the vocabulary.
    """
    blocks = in_blocks((logits - logits.amax(-1, keepdim=True)).exp(), 0.0)
    level = blocks.sum(-1).cumsum(-1)
    wanted = uniform[:, None] * level[:, -1:]
    block = first_above(level, wanted)
    before = F.pad(level, (1, 0)).gather(1, block)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block.squeeze(1)]
    return (block * BLOCK + first_above(inside.cumsum(-1), wanted - before)).squeeze(1)


def first_above(level: Float[Tensor, "batch n"], wanted: Float[Tensor, "batch 1"]) -> Int[Tensor, "batch 1"]:
    """Index of the first entry of a non-decreasing row above `wanted`, never one past the last that still rises."""
    # Rounding may put `wanted` at or past the end; the last rise is then the last token with any probability.
    last = torch.searchsorted(level, level[:, -1:].contiguous(), right=False)
    return torch.minimum(torch.searchsorted(level, wanted.contiguous(), right=True), last)


def argmax(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
    """The first largest entry of each row; on CPU a tenth of the time of `torch.argmax` on a large vocabulary."""
    blocks = in_blocks(logits, float("-inf"))
    block = blocks.amax(-1).argmax(-1)
    return block * BLOCK + blocks[torch.arange(len(blocks), device=blocks.device), block].argmax(-1)


def in_blocks(x: Float[Tensor, "batch vocab"], fill: float) -> Float[Tensor, "batch blocks block"]:
    """Rows cut into blocks, the last one filled up."""
    short = -x.shape[-1] % BLOCK
    return (F.pad(x, (0, short), value=fill) if short else x).view(len(x), -1, BLOCK)


def choose(
    logits: Float[Tensor, "batch vocab"],
    sampling: SamplingParams,
    uniform: Float[Tensor, " batch"],
    seen: Int[Tensor, "batch vocab"] | None,
) -> Int[Tensor, " batch"]:
    """The next token of every row; `seen` counts earlier tokens where a repetition penalty is set."""
    if seen is not None:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return argmax(logits)
    return draw(filter_logits(logits, sampling), uniform)
