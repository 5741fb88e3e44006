"""Beam search with a length penalty, for a batch of prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from alignlab.core.config import require
from alignlab.core.errors import SamplerError
from alignlab.lm.generate import NOT_FINITE, Row, check_prompts, read_repeated
from alignlab.lm.model import GPTModel
from alignlab.lm.types import GenerationError, SamplingParams

Stopped = Callable[[list[int], Sequence[str]], bool]
"""Whether tokens have just completed one of some strings."""


@dataclass(frozen=True)
class BeamSearch:
    """Keeps the `beams` likeliest beginnings at every step, and gives the `n` best whole answers.

    An answer of T tokens scores log p / T ** length_penalty (Wu et al. 2016, eq. 14, with T in place of their
    ((5 + T) / 6)). Steps, scores and stopping are those of `transformers`. Nothing is drawn: temperature and seed are
    not asked.
    """

    beams: int = 4
    """Beginnings kept at every step."""
    length_penalty: float = 1.0
    """Above 0 favours long answers, below 0 short ones; 0 compares plain log-probabilities."""
    early_stopping: bool | Literal["never"] = False
    """True: stop at as many whole answers as beams. False: when no open one of today's length could still enter.
    "never": when none of any length could."""

    def __post_init__(self) -> None:
        require(self.beams >= 1, "beams", self.beams, "a whole number of at least 1")
        require(math.isfinite(self.length_penalty), "length_penalty", self.length_penalty, "a finite number")
        allowed = (True, False, "never")
        require(self.early_stopping in allowed, "early_stopping", self.early_stopping, "True, False or 'never'")


@dataclass
class Hypothesis:
    """An answer, or the beginning of one."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    total: float = 0.0
    """Sum of the log-probabilities."""
    score: float = 0.0
    """`total` by length, of a whole answer."""

    def grown(self, token: int, total: float) -> Hypothesis:
        return Hypothesis([*self.tokens, token], [*self.logprobs, total - self.total], total)


class Search:
    """The beams of one prompt."""

    def __init__(self, index: int, prompt: list[int], budget: int, how: BeamSearch) -> None:
        self.index, self.prompt, self.budget, self.how = index, prompt, budget, how
        self.open = [Hypothesis()]
        self.whole: list[Hypothesis] = []
        self.done = False

    def step(self, candidates: list[tuple[float, int, int]], ends: Callable[[list[int]], bool]) -> list[int]:
        """Grow the beams by the best `candidates` (total, beam, token), best first; returns each new beam's old one."""
        beams, length = self.how.beams, len(self.open[0].tokens) + 1
        accepting = not (self.how.early_stopping is True and len(self.whole) >= beams)
        grown, parents = list[Hypothesis](), list[int]()
        for rank, (total, parent, token) in enumerate(candidates):
            hypothesis = self.open[parent].grown(token, total)
            if length >= self.budget or ends(hypothesis.tokens):
                # Only what is among the best as many as there are beams becomes an answer.
                if rank < beams and accepting:
                    hypothesis.score = total / length**self.how.length_penalty
                    self.whole.append(hypothesis)
            elif len(grown) < beams:
                grown.append(hypothesis)
                parents.append(parent)
        self.whole = sorted(self.whole, key=lambda h: -h.score)[:beams]
        self.open = grown
        self.done = not grown or not self.can_improve(length)
        return parents

    def can_improve(self, length: int) -> bool:
        """Whether an open beam may still become one of the best answers."""
        if len(self.whole) < self.how.beams:
            return True
        if self.how.early_stopping is True:
            return False
        favours_long = self.how.early_stopping == "never" and self.how.length_penalty > 0
        reach = self.budget if favours_long else length
        return self.open[0].total / reach**self.how.length_penalty > self.whole[-1].score

    def rows(self, n: int) -> list[Row]:
        """The best `n` answers."""
        rows = []
        for i, answer in enumerate(self.whole[:n]):
            row = Row(self.index * n + i, self.prompt, self.budget, torch.zeros(0), answer.tokens, answer.logprobs)
            row.done = True
            rows.append(row)
        return rows


def check_sampling(sampling: SamplingParams, method: str) -> None:
    """What a search cannot follow is a `SamplerError`, rather than left out in silence."""
    plain = SamplingParams()
    names = ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "logit_bias", "constraint")
    given = [name for name in names if getattr(sampling, name) != getattr(plain, name)]
    if given:
        raise SamplerError(f"{method} does not go with {', '.join(given)}; leave that out, or decode by sampling")


@torch.no_grad()
def beam_search(
    model: GPTModel,
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    end_ids: frozenset[int],
    how: BeamSearch,
    *,
    stopped: Stopped | None = None,
) -> Iterator[list[Row]]:
    """The best answers of every prompt, yielded as a prompt's search ends; each prompt stands `sampling.n` times.

    A search ends as `how` says, and an answer at a token of `end_ids`, at `sampling.max_tokens`, at a full context, or
    where `stopped` finds a string of `sampling.stop`. A prompt whose logits are not finite fails alone, with a
    `GenerationError` at the end.
    """
    n, n_ctx = sampling.n, model.config.n_ctx
    check_sampling(sampling, "beam search")
    if n > how.beams:
        raise SamplerError(f"n is {n}, but a search with {how.beams} beams ends with at most {how.beams} answers")
    check_prompts(prompts, n_ctx)
    searches = [
        Search(i, prompt, min(sampling.max_tokens, n_ctx - len(prompt)), how) for i, prompt in enumerate(prompts[::n])
    ]
    keep = how.beams * max(2, 1 + len(end_ids))
    errors: dict[int, str] = {}

    def ends(tokens: list[int]) -> bool:
        return tokens[-1] in end_ids or (stopped is not None and stopped(tokens, sampling.stop))

    cache, last = read_repeated(
        model, [s.prompt for s in searches for _ in range(how.beams)], max(search.budget for search in searches)
    )
    while searches:
        rows, tokens = list[int](), list[int]()
        for place, (search, candidates) in enumerate(zip(searches, best(model, last, searches, keep), strict=True)):
            if any(not math.isfinite(total) for total, _, _ in candidates[:1]):
                length = len(search.prompt) + len(search.open[0].tokens)
                errors |= dict.fromkeys(range(search.index * n, search.index * n + n), NOT_FINITE.format(length))
                search.done = True
                continue
            parents = search.step(candidates, ends)
            if search.done:
                yield search.rows(n)
                continue
            idle = how.beams - len(parents)  # a vocabulary may be too small to fill the beams
            rows.extend(place * how.beams + parent for parent in parents + parents[:1] * idle)
            tokens.extend([h.tokens[-1] for h in search.open] + [0] * idle)
        searches = [search for search in searches if not search.done]
        if searches:
            cache.select(torch.tensor(rows, device=last.device))
            last = model.hidden_states(torch.tensor(tokens, device=last.device)[:, None], cache=cache)[:, -1]
    if errors:
        raise GenerationError(errors)


def best(model: GPTModel, last: Tensor, searches: Sequence[Search], keep: int) -> list[list[tuple[float, int, int]]]:
    """For each search its best `keep` continuations, as (total log-probability, beam, token), best first."""
    logprobs = model.unembed(last).float().log_softmax(-1)
    vocab_size = logprobs.shape[-1]
    beams = len(last) // len(searches)
    totals = torch.tensor([[h.total for h in s.open] + [-math.inf] * (beams - len(s.open)) for s in searches])
    summed = (logprobs.view(len(searches), beams, -1) + totals.to(last.device)[:, :, None]).flatten(1)
    found = summed.topk(min(keep, summed.shape[1]), -1)
    candidates = []
    for values, places in zip(found.values.tolist(), found.indices.tolist(), strict=True):
        pairs = [(value, *divmod(place, vocab_size)) for value, place in zip(values, places, strict=True)]
        candidates.append([pair for i, pair in enumerate(pairs) if i == 0 or pair[0] > -math.inf])
    return candidates
