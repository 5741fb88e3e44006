"""Several decode steps without a plan between them: the GPU draws, and Python hears of all tokens at once.

Planning a step and settling its tokens costs Python more time than a GPU needs for a step of a small model. Where all
requests decode by rules that need nothing from Python, the tokens of a step are the next step's input on the GPU. Who
ends on the way is carried along, and what was drawn after its end is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from alignlab.lm.engine.paged import Span
from alignlab.lm.engine.request import Job
from alignlab.lm.engine.scheduler import Work
from alignlab.lm.generate import choose_tokens
from alignlab.lm.types import SamplingParams

if TYPE_CHECKING:
    from alignlab.lm.engine.runner import Runner


def runs_ahead(work: Sequence[Work], runner: Runner) -> bool:
    """Whether all of `work` decodes by rules that do not look at earlier tokens, in steps that can be replayed."""
    graphs = runner.graphs
    return (
        graphs is not None
        and all(
            piece.n_new == 1
            and piece.completes
            and not piece.job.scores
            and piece.job.state is None
            and piece.job.rule.repetition_penalty == 1.0
            for piece in work
        )
        and graphs.decode.takes([span_of(piece.job) for piece in work])
    )


def span_of(job: Job) -> Span:
    """The one token that a decoding job reads next."""
    return Span(job.blocks, job.computed, 1)


class DrawnAhead(NamedTuple):
    """What one job drew, whatever ended on the way."""

    tokens: list[int]
    logprobs: list[float]
    n_finite: int
    """How many came before the first whose log-probability is not a number."""


def draw_ahead(runner: Runner, jobs: Sequence[Job], n_steps: int) -> list[DrawnAhead]:
    """`n_steps` tokens of each job."""
    assert runner.graphs is not None
    graphs = runner.graphs.decode
    rules: dict[SamplingParams, list[int]] = {}
    for i, job in enumerate(jobs):
        rules.setdefault(job.rule, []).append(i)
    device = runner.cache.device
    pending, spans = [job.tokens[job.computed] for job in jobs], [span_of(job) for job in jobs]
    if graphs.kernel and all(rule.temperature == 0 and not rule.logit_bias for rule in rules):
        return listed(*graphs.run_ahead_greedily(pending, spans, n_steps))
    rows = [job.uniforms[len(job.logprobs) : len(job.logprobs) + n_steps] for job in jobs]
    uniforms = torch.tensor([[*row, *[0.0] * (n_steps - len(row))] for row in rows]).T.to(device)
    places = {rule: torch.tensor(members, device=device) for rule, members in rules.items()}

    def choose(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if len(places) == 1:
            return choose_tokens(logits, jobs[0].rule, uniforms[step], None)
        tokens = torch.empty(len(jobs), dtype=torch.long, device=device)
        logprobs = torch.empty(len(jobs), device=device)
        for rule, members in places.items():
            tokens[members], logprobs[members] = choose_tokens(logits[members], rule, uniforms[step, members], None)
        return tokens, logprobs

    return listed(*graphs.run_ahead(pending, spans, n_steps, choose))


def listed(drawn: Tensor, gained: Tensor) -> list[DrawnAhead]:
    """Job by job what (step, job) tensors of tokens and log-probabilities hold."""
    n_finite = gained.isfinite().long().cumprod(0).sum(0).tolist()
    return [DrawnAhead(*each) for each in zip(drawn.T.tolist(), gained.T.tolist(), n_finite, strict=True)]
