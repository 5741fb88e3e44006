"""Who runs in the next step, with how many tokens, on which blocks. Nothing here knows tensors or models.

Every running request that decodes gets one token a step. What is left of the step's reading budget goes to those still
reading their prompt, best rank first, and then to waiting ones: long prompts are read in chunks beside the decoding
(Sarathi, Agrawal et al. 2023).

A request's rank is `arrival - ageing * priority`, in steps, smaller is better. So one level of priority is worth
`ageing` steps of waiting, and the order of two waiting requests never changes: who arrives more than `ageing *
(difference of priority)` steps later goes behind. Admission follows the ranks strictly, nobody slips past a request
that does not fit yet, and the best-ranked running request is never preempted: so none starves.
"""

from __future__ import annotations

import time
from bisect import insort
from dataclasses import dataclass

from alignlab.lm.engine.blocks import BlockPool
from alignlab.lm.engine.request import Job


@dataclass(frozen=True)
class Work:
    """The next `n_new` tokens of a job are read in this step."""

    job: Job
    n_new: int
    completes: bool
    """Whether this reads all there is, so that the next token can be drawn."""

    @classmethod
    def of(cls, job: Job, n_new: int) -> Work:
        return cls(job, n_new, n_new == job.remaining)


class Scheduler:
    """The waiting and the running jobs, both best rank first."""

    def __init__(self, pool: BlockPool, *, block_size: int, max_running: int, prefill_chunk: int) -> None:
        self.pool, self.block_size = pool, block_size
        self.max_running, self.prefill_chunk = max_running, prefill_chunk
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.step = 0
        self.preemptions = 0
        self.reused = 0
        """Tokens that admitted jobs found in the cache."""

    def blocks_for(self, n_tokens: int) -> int:
        """Blocks that hold `n_tokens`."""
        return -(-n_tokens // self.block_size)

    def add(self, job: Job) -> None:
        insort(self.waiting, job, key=rank)

    def drop(self, job: Job) -> None:
        """A job has ended, by whatever cause: give back all it holds."""
        (self.running if job in self.running else self.waiting).remove(job)
        self._release(job)

    def plan(self) -> list[Work]:
        """The work of one step; empty where there is nothing to do."""
        self.step += 1
        budget, work, before = self.prefill_chunk, [], self.preemptions
        place = 0
        while place < len(self.running):  # who gives way stands at the end, so places before it stay
            job = self.running[place]
            decodes = job.remaining == 1
            n_new = 1 if decodes else min(job.remaining, budget)
            if n_new and self._reserve(job, job.computed + n_new):
                budget -= 0 if decodes else n_new
                work.append(Work.of(job, n_new))
            place += 1
        if self.preemptions == before:
            self._admit(budget, work)
        return work

    def reserve_ahead(self, work: list[Work], n_steps: int) -> int:
        """For how many steps all of `work`, which decodes, can go on without a new plan; blocks for them are reserved.

        1 where the cache is too full: somebody may then have to give way.
        """
        ends = [min(job.computed + n_steps, job.prompt_length + job.budget - 1) for job in (w.job for w in work)]
        missing = [self.blocks_for(end) - len(piece.job.blocks) for piece, end in zip(work, ends, strict=True)]
        if sum(n for n in missing if n > 0) > self.pool.available:
            return 1
        for piece, n in zip(work, missing, strict=True):
            piece.job.blocks.extend(self.pool.allocate() for _ in range(n))
        longest = max(piece.job.budget - len(piece.job.logprobs) for piece in work)
        return min(n_steps, longest)

    def _admit(self, budget: int, work: list[Work]) -> None:
        being_read = {name for job in self.running for name in self._names_being_read(job)}
        for job in list(self.waiting):
            if budget < 1 or len(self.running) >= self.max_running:
                break
            names = job.block_names(self.block_size, job.reusable)
            found = self.pool.find(names)
            if len(found) < len(names) and names[len(found)] in being_read:
                continue  # another reads this very block now: soon it can be shared
            if not self._fits(job, found):
                break
            self._start(job, found)
            being_read.update(self._names_being_read(job))
            n_new = min(job.remaining, budget)
            budget -= n_new
            work.append(Work.of(job, n_new))

    def _names_being_read(self, job: Job) -> list[bytes]:
        if job.remaining <= 1:
            return []
        return job.block_names(self.block_size, job.goal)[job.computed // self.block_size :]

    def _fits(self, job: Job, found: list[int]) -> bool:
        """Whether it can be read to the end now, leaving every running job a block to grow into."""
        idle = sum(self.pool.users[block] == 0 for block in found)
        fresh = self.blocks_for(job.goal) - len(found)
        return fresh + len(self.running) <= self.pool.available - idle

    def _start(self, job: Job, found: list[int]) -> None:
        for block in found:
            self.pool.share(block)
        job.blocks = [*found, *(self.pool.allocate() for _ in range(self.blocks_for(job.goal) - len(found)))]
        job.computed = len(found) * self.block_size
        self.reused += job.computed
        if job.started_at is None:
            job.started_at, job.waited, job.reused = time.monotonic(), self.step - job.arrived_step, job.computed
        self.waiting.remove(job)
        insort(self.running, job, key=rank)

    def _reserve(self, job: Job, n_tokens: int) -> bool:
        """Get blocks for `n_tokens`, from the worst-ranked job where none is left; False if that is `job` itself."""
        while len(job.blocks) < self.blocks_for(n_tokens):
            if self.pool.available:
                job.blocks.append(self.pool.allocate())
                continue
            last = self.running[-1]
            self._preempt(last)
            if last is job:
                return False
        return True

    def _preempt(self, job: Job) -> None:
        """Back to waiting. What it has read is read again later, as far as its blocks are not found in the cache."""
        self.running.remove(job)
        self._release(job)
        job.preempted += 1
        self.preemptions += 1
        if job.scores:
            job.logprobs.clear()
        self.add(job)

    def _release(self, job: Job) -> None:
        for block in reversed(job.blocks):  # so that beginnings, which others may share, are given away last
            self.pool.release(block)
        job.blocks, job.computed = [], 0


def rank(job: Job) -> tuple[float, int]:
    return job.rank
