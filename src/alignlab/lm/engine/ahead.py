"""Several decode steps without a plan between them: the GPU draws, and Python hears of all tokens at once.

Planning a step and settling its tokens costs Python more time than a GPU needs for a step of a small model. Where all
requests decode by rules that need nothing from Python, the tokens of a step are the next step's input on the GPU. Who
ends on the way is carried along, and what was drawn after its end is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
        and graphs.takes([span_of(piece.job) for piece in work])
    )


def span_of(job: Job) -> Span:
    """The one token that a decoding job reads next."""
    return Span(job.blocks, job.computed, 1)


def draw_ahead(runner: Runner, jobs: Sequence[Job], n_steps: int) -> tuple[list[list[int]], list[list[float]]]:
    """`n_steps` tokens of each job and their log-probabilities, whatever ends on the way."""
    assert runner.graphs is not None
    device = runner.cache.device
    uniforms = torch.zeros(n_steps, len(jobs))
    for i, job in enumerate(jobs):
        own = job.uniforms[len(job.logprobs) : len(job.logprobs) + n_steps]
        uniforms[: len(own), i] = torch.tensor(own)
    uniforms = uniforms.to(device)
    rules: dict[SamplingParams, list[int]] = {}
    for i, job in enumerate(jobs):
        rules.setdefault(job.rule, []).append(i)
    places = {rule: torch.tensor(members, device=device) for rule, members in rules.items()}

    def choose(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if len(places) == 1:
            return choose_tokens(logits, jobs[0].rule, uniforms[step], None)
        tokens = torch.empty(len(jobs), dtype=torch.long, device=device)
        logprobs = torch.empty(len(jobs), device=device)
        for rule, members in places.items():
            tokens[members], logprobs[members] = choose_tokens(logits[members], rule, uniforms[step, members], None)
        return tokens, logprobs

    pending = [job.tokens[job.computed] for job in jobs]
    drawn, gained = runner.graphs.run_ahead(pending, [span_of(job) for job in jobs], n_steps, choose)
    return drawn.T.tolist(), gained.T.tolist()
