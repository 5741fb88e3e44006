"""The engine under load, for longer: hundreds of requests, random cancellation, answers equal to those given alone."""

from __future__ import annotations

import os
import random
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from alignlab.lm.engine import Engine, Handle, Request
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.types import SamplingParams

MakeLM = Callable[..., LanguageModel]
GGUF = os.environ.get("ALIGNLAB_TEST_GGUF")
MINUTES = float(os.environ.get("ALIGNLAB_LOAD_MINUTES", "0.5"))
N_CTX = 256


def draw_requests(n: int, vocab_size: int, *, seed: int, sampled: bool, longest: int = 40) -> list[Request]:
    """Mixed lengths; a third begins with one of three long beginnings; a fifth of the sampled ones is greedy."""
    draw = random.Random(seed)
    beginnings = [[draw.randrange(2, vocab_size) for _ in range(length)] for length in (20, 48, 100)]
    requests = []
    for i in range(n):
        tokens = [draw.randrange(2, vocab_size) for _ in range(draw.choice((1, 3, 10, 30, 90)))]
        if draw.random() < 1 / 3:
            tokens = draw.choice(beginnings) + tokens
        greedy = not sampled or draw.random() < 0.2
        sampling = SamplingParams(
            max_tokens=draw.choice((1, 4, 12, longest)), temperature=0 if greedy else 0.9, seed=i,
            top_p=draw.choice((0.9, 1.0)), repetition_penalty=draw.choice((1.0, 1.2)),
        )  # fmt: skip
        requests.append(Request(tokens, sampling, priority=draw.choice((0, 0, 1, 2)), end_ids=frozenset({5, 6})))
    return requests


def answer(handle: Handle) -> tuple[list[int], list[float]]:
    return handle.tokens, handle.logprobs


def alone(lm: LanguageModel, requests: list[Request]) -> list[tuple[list[int], list[float]]]:
    """Each request in an engine that has nothing else to do and remembers nothing."""
    found, engine = [], Engine(lm, blocks=-(-lm.model.config.n_ctx // 16))
    for request in requests:
        engine.pool.forget()
        found.append(answer(engine.submit(request).wait()))
    return found


@pytest.mark.parametrize("n", [24, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.no_cover
def test_greedy_answers_alone_and_under_any_load(n: int, make_lm: MakeLM) -> None:
    """In float32, and not only the text: every log-probability has the same bits."""
    lm = make_lm(n_ctx=N_CTX, tie_embeddings=False)
    requests = draw_requests(n, 300, seed=1, sampled=False)
    expected = alone(lm, requests)
    assert len({tuple(tokens) for tokens, _ in expected}) > n / 2
    for how in ({}, {"blocks": 24}, {"max_running": 7, "prefill_chunk": 33}):
        engine = Engine(lm, **how)  # type: ignore[arg-type]
        order = random.Random(len(how)).sample(range(n), n)
        handles = {i: engine.submit(requests[i]) for i in order}
        engine.run()
        assert [answer(handles[i]) for i in range(n)] == expected


@pytest.mark.slow
@pytest.mark.skipif(GGUF is None, reason="ALIGNLAB_TEST_GGUF names no model")
def test_greedy_answers_of_a_real_model_alone_and_under_load() -> None:
    lm = load(str(GGUF), dtype="float32", device="cpu")
    words = ["the", "of", "and", "river", "mountain", "old", "why", "how", "tell", "explain", "because", "story", "cat"]
    draw = random.Random(0)
    prompts = [" ".join(draw.choice(words) for _ in range(draw.choice((2, 10, 40)))) for _ in range(24)]
    requests = [Request(lm.tokenizer.encode_prompt(p), SamplingParams(max_tokens=8, temperature=0)) for p in prompts]
    engine = Engine(lm, blocks=64)
    expected = []
    for request in requests[:8]:
        engine.pool.forget()
        expected.append(answer(engine.submit(request).wait()))
    handles = [engine.submit(request) for request in requests]
    engine.run()
    assert [answer(handle) for handle in handles[:8]] == expected


@pytest.mark.slow
def test_two_hundred_at_a_time_with_random_cancellation(make_lm: MakeLM) -> None:
    """Runs `ALIGNLAB_LOAD_MINUTES` (half a minute where unset). 200 requests are in flight all the time; one in ten is
    cancelled at a random moment. Nothing leaks, nobody starves, every answer is the one given alone."""
    lm = make_lm(n_ctx=N_CTX, tie_embeddings=False)
    requests = draw_requests(300, 300, seed=2, sampled=True, longest=100)
    expected = alone(lm, requests)
    engine, draw = Engine(lm, blocks=80, max_running=64, prefill_chunk=256), random.Random(0)
    flying: dict[str, tuple[int, Handle]] = {}
    waits: dict[int, list[int]] = defaultdict(list)
    ends: Counter[str] = Counter()
    memory: list[int] = []
    stop = time.monotonic() + 60 * MINUTES
    served = 0
    while flying or time.monotonic() < stop:
        while len(flying) < 200 and time.monotonic() < stop:
            handle = engine.submit(requests[served % len(requests)])
            flying[handle.id] = served % len(requests), handle
            served += 1
        for event in engine.step():
            if event.finished:
                i, handle = flying.pop(event.id)
                assert answer(handle) == expected[i]
                ends[event.finished] += 1
                waits[handle.request.priority].append(handle.waited)
        if flying and draw.random() < 0.3:
            name = draw.choice(list(flying))
            i, handle = flying.pop(name)
            handle.cancel()
            assert handle.tokens == expected[i][0][: len(handle.tokens)]
            ends["cancelled"] += 1
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    stats = engine.stats()
    print(ends, stats)
    for priority, found in sorted(waits.items()):
        print(f"priority {priority}: waited {sum(found) / len(found):.1f} steps, at most {max(found)} (n={len(found)})")
    assert sum(ends.values()) == served
    assert min(ends["cancelled"], ends["length"], ends["stop"], stats.preemptions) > 0
    assert stats.blocks_used == stats.running == stats.waiting == 0
    assert sorted([*engine.pool.free, *engine.pool.idle]) == list(range(1, 81))
    # Everybody's turn comes once two levels of priority are waited for and those ranked before it, at most 200 at that
    # moment, have had theirs: a dozen or more run at a time, for a hundred steps at most, if they are not preempted.
    assert max(map(max, waits.values())) < 2 * engine.options.ageing + 2000
    assert memory[-1] - memory[len(memory) // 3] < 32 * 1024  # kilobytes
