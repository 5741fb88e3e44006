"""From logits to a token: filters as pure functions on (batch, vocab) logits, and inverse-CDF sampling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
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


def keep_typical(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """-inf outside the tokens whose surprise is nearest the entropy, as many as reach mass `p`, ties included.

    Locally typical sampling, Meister et al. 2022, eq. 10: the set that minimises the sum of |H + log q(y)|.
    """
    logprobs = logits.log_softmax(-1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nansum(-1, keepdim=True)  # what is excluded already counts 0 · -inf
    distance = (logprobs + entropy).abs()
    ordered, order = distance.sort(-1)
    mass = probabilities.gather(-1, order).cumsum(-1)
    last = (mass < p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(distance > ordered.gather(-1, last), float("-inf"))


def add_bias(logits: Float[Tensor, "batch vocab"], bias: tuple[tuple[int, float], ...]) -> Float[Tensor, "batch vocab"]:
    """Logits with `bias`, pairs of a token and what is added to its logit."""
    tokens = torch.tensor([token for token, _ in bias], device=logits.device)
    nats = torch.tensor([nats for _, nats in bias], dtype=logits.dtype, device=logits.device)
    return logits.index_add(1, tokens, nats.expand(len(logits), -1))


def shape_logits(
    logits: Float[Tensor, "batch vocab"],
    sampling: SamplingParams,
    seen: Int[Tensor, "batch vocab"] | None = None,
    allowed: Bool[Tensor, "batch vocab"] | None = None,
) -> Float[Tensor, "batch vocab"]:
    """What comes before temperature: bias, then repetition penalty (where `seen` counts earlier tokens), then -inf
    where not `allowed`."""
    if sampling.logit_bias:
        logits = add_bias(logits, sampling.logit_bias)
    if seen is not None:
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
    return logits if allowed is None else logits.masked_fill(~allowed, float("-inf"))


def filter_logits(logits: Float[Tensor, "batch vocab"], sampling: SamplingParams) -> Float[Tensor, "batch vocab"]:
    """Temperature, then top-k, top-p, min-p and typical-p, each only where it is on (temperature must be above 0)."""
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    if sampling.typical_p < 1:
        logits = keep_typical(logits, sampling.typical_p)
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
    token = (block * BLOCK + first_above(inside.cumsum(-1), wanted - before)).squeeze(1)
    return token.clamp(max=logits.shape[-1] - 1)  # of logits that are not finite, any token at all


def first_above(level: Float[Tensor, "batch n"], wanted: Float[Tensor, "batch 1"]) -> Int[Tensor, "batch 1"]:
    """Index of the first entry of a non-decreasing row above `wanted`, never one past the last that still rises."""
    # Rounding may put `wanted` at or past the end; the last rise is then the last token with any probability.
    # (A search for NaN ends past the end.)
    last = torch.searchsorted(level, level[:, -1:].contiguous(), right=False).clamp(max=level.shape[-1] - 1)
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
    allowed: Bool[Tensor, "batch vocab"] | None = None,
) -> Int[Tensor, " batch"]:
    """The next token of every row; `seen` counts earlier tokens where a repetition penalty is set, and only `allowed`
    ones are chosen where a constraint is."""
    logits = shape_logits(logits, sampling, seen, allowed)
    if sampling.temperature == 0:
        return argmax(logits)
    return draw(filter_logits(logits, sampling), uniform)
