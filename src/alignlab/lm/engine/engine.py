"""`Engine`: many requests through one model at once, each as if it were alone.

A step (`Engine.step`) plans who reads how many tokens (`scheduler`), reads them in one pass over the paged cache
(`runner`, `paged`), draws the next tokens (`choose`) and settles what ended. Requests come and go between steps
(continuous batching; Orca, Yu et al. 2022).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import torch

from alignlab.core.errors import AlignlabError, SamplerError
from alignlab.core.rng import torch_generator
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.engine.admission import check_request
from alignlab.lm.engine.ahead import draw_ahead, runs_ahead
from alignlab.lm.engine.blocks import BlockPool
from alignlab.lm.engine.choose import Drawn, draw_next, drawing_rule
from alignlab.lm.engine.options import EngineOptions
from alignlab.lm.engine.paged import PagedCache
from alignlab.lm.engine.request import Event, FinishReason, Handle, Job, Request
from alignlab.lm.engine.runner import Graphs, Read, Runner
from alignlab.lm.engine.scheduler import Scheduler, Work
from alignlab.lm.generate import NOT_FINITE, row_seeds
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.stop_strings import has_stop

if TYPE_CHECKING:
    from alignlab.lm.constrained import Guide

KEPT_GUIDES = 32


@dataclass(frozen=True)
class EngineStats:
    """What an engine holds now and has done so far."""

    running: int
    waiting: int
    blocks: int
    blocks_used: int
    steps: int
    tokens_read: int
    tokens_reused: int
    preemptions: int


class Engine:
    """Continuous batching over a paged key-value cache.

    The settings are those of `EngineOptions`: `Engine(lm, blocks=64)`, or `Engine(lm, EngineOptions(blocks=64))`. Any
    thread may submit, wait or cancel; steps are made by whoever waits. Raises `ConfigError` for sizes that hold no
    request.
    """

    def __init__(self, lm: LanguageModel, options: EngineOptions | None = None, **settings: Any) -> None:
        weight = lm.model.embed.weight
        on_cpu, on_gpu = (weight.device.type == kind for kind in ("cpu", "cuda"))
        options = replace(options or EngineOptions(), **settings)
        if options.invariant is None:
            options = replace(options, invariant=on_cpu and weight.dtype is torch.float32)
        n_blocks, size = options.n_blocks(lm.model), options.block_size
        self.lm, self.lock, self.options = lm, threading.RLock(), options
        self.pool = BlockPool(n_blocks)
        self.scheduler = Scheduler(
            self.pool, block_size=size, max_running=options.max_running,
            prefill_chunk=options.prefill_chunk or (8192 if on_gpu else 512),
        )  # fmt: skip
        self.cache = PagedCache(lm.model.config, n_blocks, size, device=weight.device, dtype=weight.dtype)
        graphs = None
        if not on_cpu:
            graphs = Graphs(lm.model, self.cache, record=on_gpu, compiled=options.compiled)
        self.runner = Runner(lm.model, self.cache, invariant=bool(options.invariant), graphs=graphs)
        self.jobs: dict[str, Job] = {}
        self.guides: dict[Constraint, Guide] = {}
        self._serial = count()
        self._weights: tuple[object, object] | None = None
        self._tokens_read = 0

    # Requests ---------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Handle:
        """Let a request wait for its turn. A `SamplerError` says why one can never be served."""
        with self.lock:
            serial = next(self._serial)
            name = request.id or f"request-{serial}"
            if name in self.jobs:
                raise SamplerError(f"request {name!r} is still in flight; allowed: another id, or none")
            if not self.jobs:
                self.refresh()
            job = self._job(request, name, serial)
            if job.scores and job.request.score_from == len(job.tokens):
                job.end("scored")
            else:
                self.jobs[name] = job
                self.scheduler.add(job)
            return Handle(self, job)

    def _job(self, request: Request, name: str, serial: int) -> Job:
        tokens, sampling, step = list(request.tokens), request.sampling, self.scheduler.step
        size = self.scheduler.block_size
        budget = check_request(name, request, self.lm.model.config, self.pool.n_blocks * size, size)
        seed = row_seeds([tokens], sampling.seed)[0] if request.seed is None else request.seed
        job = Job(
            request, name, tokens, budget, (step - self.options.ageing * request.priority, serial),
            arrived_step=step, prompt_length=len(tokens), rule=drawing_rule(sampling),
        )  # fmt: skip
        job.end_ids = self.lm.tokenizer.eos_ids if request.end_ids is None else request.end_ids
        if not job.scores:
            job.uniforms = torch.rand(budget, generator=torch_generator(seed)).tolist()
            job.state = None if sampling.constraint is None else self.guide(sampling.constraint).start()
        return job

    def guide(self, constraint: Constraint) -> Guide:
        """The automaton of a constraint, kept for the next request. A `SamplerError` where nothing satisfies it."""
        from alignlab.lm.constrained import Guide  # an extra: only who constrains needs it

        with self.lock:
            if constraint not in self.guides:
                if len(self.guides) >= KEPT_GUIDES:
                    self.guides.clear()
                self.guides[constraint] = Guide(self.lm.tokenizer, self.lm.model.config.vocab_size, constraint)
            return self.guides[constraint]

    def cancel(self, request_id: str) -> bool:
        """End a request now and give back what it holds; False where none of that name is in flight."""
        with self.lock:
            return request_id in self.jobs and self.abandon(self.jobs[request_id])

    def abandon(self, job: Job) -> bool:
        """`cancel` for whoever holds the job itself."""
        with self.lock:
            going = job.finished is None
            if going:
                self._end(job, "cancelled")
            return going

    # Steps ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One pass of the model for whoever's turn it is; empty where nobody is in flight."""
        with self.lock:
            work = self.scheduler.plan()
            if not work:
                return []
            n_steps = self.scheduler.reserve_ahead(work, self.options.ahead) if runs_ahead(work, self.runner) else 1
            if n_steps > 1:
                return self._run_ahead([piece.job for piece in work], n_steps)
            read = self.runner.read(work)
            self._tokens_read += len(read.hidden)
            broken = self._fail_broken(read)
            return [*broken, *self._score(read), *self._draw(read)]

    def run(self) -> None:
        """Step until nobody is in flight."""
        while self.jobs:
            self.step()

    def advance(self, job: Job, known: int) -> None:
        """Step, unless `job` has ended or has more than `known` new tokens by now (another thread may have stepped)."""
        with self.lock:
            if job.finished is None and len(job.tokens) - job.prompt_length <= known:
                self.step()

    def _fail_broken(self, read: Read) -> list[Event]:
        """End the requests whose hidden states are not numbers; whoever draws a token is looked at when it draws."""
        places = [i for i, piece in enumerate(read.work) if piece.job.scores or not piece.completes]
        if not places:
            return []
        fine = read.last_of(places).isfinite().all(-1).tolist()
        return [
            self._end(job, "failed", SamplerError(f"request {job.id!r}: {NOT_FINITE.format(len(job.tokens))}"))
            for job, ok in zip((read.work[i].job for i in places), fine, strict=True)
            if not ok
        ]

    def _score(self, read: Read) -> list[Event]:
        places = [i for i, piece in enumerate(read.work) if piece.job.scores and not piece.job.finished]
        events = []
        if places:
            for place, scores in zip(places, self.runner.scores(read, places), strict=True):
                read.work[place].job.logprobs.extend(scores)
        for piece in read.work:
            if not piece.job.finished and (piece.job.scores or not piece.completes):
                self._advance(piece.job, piece.n_new)
                if piece.job.scores and piece.job.remaining == 0:
                    events.append(self._end(piece.job, "scored"))
        return events

    def _draw(self, read: Read) -> list[Event]:
        places = [i for i, piece in enumerate(read.work) if piece.completes and not piece.job.scores]
        if not places:
            return []
        drawn = draw_next(self.runner.logits(read.last_of(places)), [read.work[i].job for i in places])
        return [self._take(read.work[place], one) for place, one in zip(places, drawn, strict=True)]

    def _run_ahead(self, jobs: list[Job], n_steps: int) -> list[Event]:
        """Several steps of requests that all decode. What a request drew after its end is thrown away."""
        events = []
        for job, drawn in zip(jobs, draw_ahead(self.runner, jobs, n_steps), strict=True):
            n_kept = self._kept(job, drawn.tokens[: drawn.n_finite])
            tokens, logprobs = drawn.tokens[:n_kept], drawn.logprobs[:n_kept]
            self._tokens_read += n_kept
            job.tokens += tokens
            job.logprobs += logprobs
            self._advance(job, n_kept)
            finished = self._reason(job, tokens[-1]) if tokens else None
            events += [Event(job.id, token, logprob) for token, logprob in zip(tokens, logprobs, strict=True)]
            if finished:
                events[-1] = events[-1]._replace(finished=finished)
                self._end(job, finished)
            elif n_kept == drawn.n_finite < n_steps:
                error = SamplerError(f"request {job.id!r}: {NOT_FINITE.format(len(job.tokens))}")
                events.append(self._end(job, "failed", error))
        return events

    def _kept(self, job: Job, tokens: list[int]) -> int:
        """How many of `tokens` belong to the answer: those up to its end."""
        n = min(len(tokens), job.budget - len(job.logprobs))
        if not job.end_ids.isdisjoint(tokens):
            n = min(n, 1 + next(i for i, token in enumerate(tokens) if token in job.end_ids))
        stops, so_far = job.request.sampling.stop, job.new_tokens
        stopped = (i for i in range(1, n + 1) if stops and has_stop(self.lm.tokenizer, so_far + tokens[:i], stops))
        return next(stopped, n)

    def _take(self, piece: Work, drawn: Drawn) -> Event:
        """Write a drawn token down, and end the request where it was the last."""
        job = piece.job
        if drawn.error is not None:
            return self._end(job, "failed", SamplerError(f"request {job.id!r}: {drawn.error}"))
        self._advance(job, piece.n_new)
        if drawn.token is None:
            return self._end(job, "stop")
        job.tokens.append(drawn.token)
        job.logprobs.append(drawn.logprob)
        finished = self._reason(job, drawn.token)
        if finished:
            self._end(job, finished)
        return Event(job.id, drawn.token, drawn.logprob, finished)

    def _reason(self, job: Job, token: int) -> FinishReason | None:
        """Why a request ends with the token that it got last; None where it goes on."""
        stops = job.request.sampling.stop
        if token in job.end_ids or (job.state is not None and job.state.finished):
            return "stop"
        if stops and has_stop(self.lm.tokenizer, job.new_tokens, stops):
            return "stop"
        return "length" if len(job.logprobs) >= job.budget else None

    def _advance(self, job: Job, n_read: int) -> None:
        """What was read counts; blocks that are full now can be found by others."""
        size = self.scheduler.block_size
        full = job.computed // size
        job.computed += n_read
        if job.computed // size > full:
            names = job.block_names(size, job.computed)
            for i in range(full, len(names)):
                self.pool.publish(job.blocks[i], names[i])

    def _end(self, job: Job, reason: FinishReason, error: AlignlabError | None = None) -> Event:
        held = list(job.blocks)
        self.scheduler.drop(job)
        if reason == "failed":  # what it wrote may not be numbers: nobody finds it, and zeros take its place
            for block in held:
                self.pool.withdraw(block)
            self.cache.scrub([block for block in held if self.pool.users[block] == 0])
        del self.jobs[job.id]
        job.end(reason, error)
        return Event(job.id, finished=reason)

    # State ------------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Forget what was read if the model's weights (or who listens to it) have changed since."""
        model = self.lm.model
        tensors = list(chain(model.parameters(), model.buffers()))
        switches = [(getattr(m, "enabled", None), getattr(m, "scaling", None)) for m in model.modules()]
        places = (switches, [tensor.data_ptr() for tensor in tensors])
        versions = (object() if model.taps else None, [tensor._version for tensor in tensors])
        if (places, versions) == self._weights:
            return
        self.pool.forget()
        if self.runner.graphs is not None and self._weights is not None:
            self.runner.graphs.changed(moved=self._weights[0] != places)
        self._weights = places, versions

    def stats(self) -> EngineStats:
        """A snapshot of what the engine does."""
        with self.lock:
            plan = self.scheduler
            return EngineStats(
                len(plan.running), len(plan.waiting), self.pool.n_blocks, self.pool.used,
                plan.step, self._tokens_read, plan.reused, plan.preemptions,
            )  # fmt: skip
