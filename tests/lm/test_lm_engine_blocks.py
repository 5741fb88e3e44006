"""Blocks and turns without a model: counts against a naive count, nothing lost, shared or starved that must not be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.lm.engine.blocks import BlockPool, chain_hash
from alignlab.lm.engine.request import Job, Request
from alignlab.lm.engine.scheduler import Scheduler, Work

SIZE = 4


def name(i: int) -> bytes:
    return chain_hash(b"", [i])


# Blocks ---------------------------------------------------------------------------------------------------------------


def test_names_depend_on_everything_before() -> None:
    first = chain_hash(b"", [1, 2])
    assert first == chain_hash(b"", [1, 2])
    assert len({first, chain_hash(b"", [2, 1]), chain_hash(first, [1, 2]), chain_hash(b"", [1, 2, 1, 2])}) == 4


def test_idle_blocks_are_found_until_the_longest_unused_is_needed() -> None:
    pool = BlockPool(3)
    blocks = [pool.allocate() for _ in range(3)]
    for i, block in enumerate(blocks):
        pool.publish(block, name(i))
    for i in (1, 0, 2):
        pool.release(blocks[i])
    assert (pool.available, pool.used) == (3, 0)
    assert pool.find([name(0), name(1), name(9), name(2)]) == [blocks[0], blocks[1]]
    pool.share(blocks[1])  # in use again: not the one to go
    assert pool.allocate() == blocks[0]
    assert pool.find([name(0)]) == []
    assert pool.allocate() == blocks[2]
    assert pool.available == 0
    pool.release(blocks[1])
    assert pool.find([name(1)]) == [blocks[1]]


def test_equal_blocks_stay_apart_and_withdrawn_ones_are_free() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, name(0))
    pool.publish(second, name(0))
    assert pool.find([name(0)]) == [first]
    pool.release(second)  # it had no name of its own
    pool.withdraw(first)
    assert pool.find([name(0)]) == []
    pool.release(first)
    assert sorted(pool.free) == [1, 2, 3, 4]
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(first)


# Turns ----------------------------------------------------------------------------------------------------------------


def make_scheduler(blocks: int = 12, *, max_running: int = 4, chunk: int = 8) -> Scheduler:
    return Scheduler(BlockPool(blocks), block_size=SIZE, max_running=max_running, prefill_chunk=chunk)


def make_job(
    scheduler: Scheduler, serial: int, tokens: list[int], budget: int, *, priority: int = 0, ageing: int = 8
) -> Job:
    rank = (scheduler.step - ageing * priority, serial)
    job = Job(Request(tokens), str(serial), list(tokens), budget, rank, arrived_step=scheduler.step)
    job.prompt_length = len(tokens)
    scheduler.add(job)
    return job


def carry_out(scheduler: Scheduler, work: list[Work]) -> list[Job]:
    """What the engine does after a pass, with a made-up token; returns the jobs that ended."""
    ended = []
    for piece in work:
        job = piece.job
        full = job.computed // SIZE
        job.computed += piece.n_new
        for i, block_name in enumerate(job.block_names(SIZE, job.computed)):
            if i >= full:
                scheduler.pool.publish(job.blocks[i], block_name)
        if piece.completes:
            job.tokens.append(1000 + len(job.tokens))
            if len(job.tokens) - job.prompt_length >= job.budget:
                scheduler.drop(job)
                job.end("length")
                ended.append(job)
    return ended


def check(scheduler: Scheduler, work: list[Work]) -> None:
    """Every block is where the jobs say, what is written to is one job's alone, and the limits hold."""
    pool, running = scheduler.pool, scheduler.running
    users = Counter(block for job in running for block in job.blocks)
    assert {block: n for block, n in enumerate(pool.users) if n} == dict(users)
    assert sorted([*pool.free, *pool.idle, *users]) == list(range(1, pool.n_blocks + 1))
    assert len(running) <= scheduler.max_running
    assert running == sorted(running, key=lambda job: job.rank)
    assert not any(job.blocks or job.computed for job in scheduler.waiting)
    assert sum(piece.n_new for piece in work if piece.job.remaining > 1) <= scheduler.prefill_chunk
    for piece in work:
        job, end = piece.job, piece.job.computed + piece.n_new
        assert 1 <= piece.n_new <= job.remaining
        assert len(set(job.blocks)) == len(job.blocks) >= -(-end // SIZE)
        written = job.blocks[job.computed // SIZE : -(-end // SIZE)]
        assert all(users[block] == 1 and block not in pool.name_of for block in written)


arrivals = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps until it arrives
        st.lists(st.integers(0, 1), min_size=1, max_size=20),  # two tokens only: beginnings are often equal
        st.integers(1, 20),
        st.integers(0, 2),
        st.booleans(),  # cancelled some steps later
    ),
    min_size=1,
    max_size=14,
)


@given(arrivals, st.integers(10, 24), st.integers(1, 5), st.integers(1, 12))
@pytest.mark.no_cover
def test_any_traffic_ends_and_leaves_nothing_behind(
    traffic: list[tuple[int, list[int], int, int, bool]], blocks: int, max_running: int, chunk: int
) -> None:
    scheduler = make_scheduler(blocks, max_running=max_running, chunk=chunk)
    coming, jobs, doomed = list(traffic), list[Job](), dict[int, Job]()
    pause = 0
    while coming or scheduler.waiting or scheduler.running:
        while coming and pause >= coming[0][0]:
            _, tokens, budget, priority, cancelled = coming.pop(0)
            pause = 0
            jobs.append(make_job(scheduler, len(jobs), tokens, budget, priority=priority))
            if cancelled:
                doomed[scheduler.step + budget // 2] = jobs[-1]
        pause += 1
        work = scheduler.plan()
        check(scheduler, work)
        assert work or not (scheduler.waiting or scheduler.running), "somebody waits and nobody moves"
        carry_out(scheduler, work)
        victim = doomed.pop(scheduler.step, None)
        if victim is not None and victim.finished is None:
            scheduler.drop(victim)
            victim.end("cancelled")
        assert scheduler.step < 2000
    assert scheduler.pool.used == 0
    assert all(job.finished for job in jobs)


def test_a_prompt_is_read_in_chunks_beside_decoding() -> None:
    scheduler = make_scheduler(40, chunk=8)
    short = make_job(scheduler, 0, [1, 2, 3], 50)
    carry_out(scheduler, scheduler.plan())
    long = make_job(scheduler, 1, list(range(30)), 5)
    chunks = []
    for _ in range(5):
        work = scheduler.plan()
        assert (short, 1) in [(piece.job, piece.n_new) for piece in work]
        chunks.append(sum(piece.n_new for piece in work if piece.job is long))
        carry_out(scheduler, work)
    assert chunks == [8, 8, 8, 6, 1]


def test_who_begins_alike_waits_for_the_first_and_shares_its_blocks() -> None:
    scheduler = make_scheduler(40, chunk=64)
    jobs = [make_job(scheduler, i, [7] * 9 + [i], 3) for i in range(4)]
    assert [piece.job for piece in scheduler.plan()] == jobs[:1]
    carry_out(scheduler, [Work.of(jobs[0], 10)])
    work = scheduler.plan()
    assert [(piece.job, piece.n_new) for piece in work] == [(jobs[0], 1), *((job, 2) for job in jobs[1:])]
    assert all(job.blocks[:2] == jobs[0].blocks[:2] and job.reused == 8 for job in jobs[1:])
    assert scheduler.pool.users[jobs[0].blocks[0]] == 4


def test_priority_goes_first_but_nobody_waits_for_ever() -> None:
    """With a new important request every step, the plain one is begun once it has waited for the difference."""
    ageing, difference = 8, 3
    scheduler = make_scheduler(max_running=1)
    plain = make_job(scheduler, 0, [1], 1, ageing=ageing)
    for serial in range(1, 200):
        make_job(scheduler, serial, [1], 1, priority=difference, ageing=ageing)
        carry_out(scheduler, scheduler.plan())
        if plain.finished:
            break
    assert plain.waited == ageing * difference + 1


def test_a_request_that_does_not_fit_yet_is_not_passed_by() -> None:
    scheduler = make_scheduler(8)
    first = make_job(scheduler, 0, list(range(20)), 4)
    while first.remaining > 1:
        carry_out(scheduler, scheduler.plan())
    large = make_job(scheduler, 1, list(range(100, 120)), 2)
    small = make_job(scheduler, 2, [1], 1)
    carry_out(scheduler, scheduler.plan())
    assert (large in scheduler.waiting, small in scheduler.waiting) == (True, True)
    while not small.finished:
        carry_out(scheduler, scheduler.plan())
    assert large.started_at is not None
    assert small.started_at is not None
    assert large.started_at < small.started_at


def test_out_of_blocks_the_worst_ranked_gives_way_and_comes_back() -> None:
    scheduler = make_scheduler(6)
    jobs = [make_job(scheduler, i, [10 * i + 1, 10 * i + 2], 18) for i in range(3)]
    ended: list[Job] = []
    while scheduler.running or scheduler.waiting:
        work = scheduler.plan()
        check(scheduler, work)
        ended += carry_out(scheduler, work)
    assert scheduler.preemptions >= 2
    assert ended == jobs
    assert jobs[0].preempted == 0
    assert all(len(job.tokens) == 20 for job in jobs)
