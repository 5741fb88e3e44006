"""The next token of many requests at once, each drawn by its own rule from its own random stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alignlab.core.errors import SamplerError
from alignlab.lm.engine.request import Job
from alignlab.lm.generate import NOT_FINITE, choose_tokens
from alignlab.lm.types import SamplingParams


class Drawn(NamedTuple):
    """One request's next token, or None with a reason: its error, or (no error) an answer that is whole."""

    token: int | None
    logprob: float
    error: str | None = None


def drawing_rule(sampling: SamplingParams) -> SamplingParams:
    """`sampling` without what does not touch the choice of one token."""
    return replace(sampling, max_tokens=1, stop=(), seed=0, n=1, constraint=None)


def draw_next(logits: Float[Tensor, "job vocab"], jobs: Sequence[Job]) -> list[Drawn]:
    """A token for every job. A job whose logits are not finite, or whose constraint leaves nothing, fails alone."""
    drawn: dict[int, Drawn] = {}
    rules: dict[tuple[SamplingParams, bool], list[int]] = {}
    allowed: dict[int, Tensor] = {}
    for i, job in enumerate(jobs):
        try:
            if job.state is not None:
                allowed[i] = job.state.allowed()
            rules.setdefault((job.rule, job.state is not None), []).append(i)
        except SamplerError as error:
            drawn[i] = Drawn(None, 0.0, str(error))
    for (rule, _), members in rules.items():
        own = logits if len(members) == len(logits) else logits[torch.tensor(members, device=logits.device)]
        uniform = torch.tensor([jobs[i].uniforms[len(jobs[i].logprobs)] for i in members], device=logits.device)
        seen = mask = None
        if rule.repetition_penalty != 1.0:
            seen = torch.stack([seen_tokens(jobs[i], logits) for i in members])
        if members[0] in allowed:
            mask = torch.stack([allowed[i] for i in members]).to(logits.device)
        chosen, gained = choose_tokens(own, rule, uniform, seen, mask)
        for i, token, logprob in zip(members, chosen.tolist(), gained.tolist(), strict=True):
            drawn[i] = settle(jobs[i], token, logprob, logits[i])
    return [drawn[i] for i in range(len(jobs))]


def settle(job: Job, token: int, logprob: float, logits: Float[Tensor, " vocab"]) -> Drawn:
    """What becomes of a drawn token: refused where it is not a number, changed where a constraint must come to an end.

    Marks it as seen and moves the constraint on.
    """
    if not math.isfinite(logprob):
        return Drawn(None, logprob, NOT_FINITE.format(len(job.tokens)))
    if job.state is not None:
        final = job.state.settle(token, job.budget - len(job.logprobs))
        if final is None:
            return Drawn(None, 0.0)
        if final != token:
            wide = logits.float()
            token, logprob = final, float(wide[final] - wide.logsumexp(-1))
        if token not in job.end_ids:
            job.state.advance(token)
    if job.seen is not None:
        job.seen[token] = 1
    return Drawn(token, logprob)


def seen_tokens(job: Job, logits: Float[Tensor, "job vocab"]) -> Tensor:
    """1 for each token that the job has read or written, kept with the job."""
    if job.seen is None:
        job.seen = torch.zeros(logits.shape[-1], dtype=torch.int32, device=logits.device)
        job.seen[torch.tensor(job.tokens, device=logits.device)] = 1
    return job.seen
