"""The rate limiter on a clock of its own, pauses that servers ask for, and where a text's scores lie in an echo."""

from __future__ import annotations

import email.utils
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.core.errors import ConfigError, SamplerError
from alignlab.lm.remote import RemoteLimits, RemoteOptions, RemoteSampler
from alignlab.lm.remote_limits import RateLimiter, Stopped, retry_after
from alignlab.lm.remote_scores import scores_in


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> bool:
        self.now += seconds
        return False


REQUESTS = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 50), st.integers(0, 50)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(REQUESTS, st.integers(0, 5), st.integers(0, 120))
def test_no_minute_holds_more_than_allowed_and_none_waits_without_need(
    jobs: list[tuple[float, int, int]], requests: int, tokens: int
) -> None:
    """Against the definition: every window that ends with a request is within both limits, and a moment earlier the
    request would have been too much (or it did not wait). What a request really took replaces its estimate."""
    clock = Clock()
    limiter = RateLimiter(requests, tokens, clock=clock)
    log: list[tuple[float, int]] = []

    def within(moment: float, more: int) -> bool:
        recent = [used for at, used in log if at > moment - 60 + 1e-6]
        few = not requests or len(recent) + 1 <= requests
        return few and (not tokens or not recent or sum(recent) + more <= tokens)

    for idle, guess, real in jobs:
        clock.now += idle
        came = clock.now
        entry = limiter.admit(guess, clock.sleep)
        assert within(clock.now, guess)
        assert clock.now == came or not within(clock.now - 1e-3, guess)
        used = min(real, guess)  # estimates bound what follows
        limiter.settle(entry, used)
        log.append((clock.now, used))


def test_a_pause_holds_everybody_and_waiting_can_be_given_up() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock)
    limiter.hold(7.0)
    limiter.hold(3.0)
    assert limiter.admit(1, clock.sleep)[0] == 107.0
    limiter.hold(5.0)
    with pytest.raises(Stopped):
        limiter.admit(1, lambda seconds: True)


def test_threads_share_one_limit() -> None:
    limiter = RateLimiter(requests_per_minute=3)
    stop = threading.Event()
    admitted: list[int] = []

    def ask(number: int) -> None:
        try:
            limiter.admit(1, stop.wait)
            admitted.append(number)
        except Stopped:
            pass

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert len(admitted) == 3
    stop.set()
    for thread in threads:
        thread.join(2.0)
    assert len(admitted) == 3


def test_retry_after_in_both_its_forms() -> None:
    assert retry_after("2.5") == 2.5
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 27 < retry_after(soon) <= 30
    for nothing in (None, "", "soon", "-3", "nan", "inf", email.utils.formatdate(0, usegmt=True)):
        assert retry_after(nothing) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"tokens_per_minute": -5}, "tokens_per_minute is -5"),
    ],
)
def test_impossible_limits_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteLimits(**fields)


def test_impossible_endpoints_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dialect is 'tgi', allowed: openai, vllm, sglang, llama\.cpp"):
        RemoteOptions(dialect="tgi")  # type: ignore[arg-type]
    with pytest.raises(SamplerError, match="token_prompts needs `tokenizer`"):
        RemoteSampler("http://localhost/v1", "m", options=RemoteOptions(token_prompts=True))
    for url in ("localhost:8000/v1", "http://", "http://host:port/v1", "ftp://host/v1"):
        with pytest.raises(SamplerError, match="is not a web address"):
            RemoteSampler(url, "m")


def test_what_a_server_refuses_to_score_is_not_asked_of_it() -> None:
    sampler = RemoteSampler("http://127.0.0.1:9/v1", "m", options=RemoteOptions(dialect="llama.cpp"))
    with pytest.raises(SamplerError, match=r"llama\.cpp's server does not score a given text"):
        sampler.logprobs(["a"], ["b"])


def reply(tokens: list[str], values: list[float | None], offsets: list[int] | None = None) -> dict[str, Any]:
    scores: dict[str, Any] = {"tokens": tokens, "token_logprobs": values}
    return {"choices": [{"logprobs": scores | ({} if offsets is None else {"text_offset": offsets})}]}


def test_scores_of_every_servers_echo() -> None:
    values: list[float | None] = [None, -1.0, -2.0, -3.0, -4.0]
    plain = (["ab", "c", "de", "f", "!"], values)
    for offsets in ([0, 2, 3, 5, 6], [-1] * 5, None):  # OpenAI's, SGLang's, none at all
        assert scores_in(reply(*plain, offsets), "url", "abc", "def").tolist() == [-2.0, -3.0]
    # vLLM shows a beginning token in the echo and counts its characters in the offsets.
    begun = reply(["<s>", "ab", "c", "de", "f", "!"], [None, -0.5, *values[1:]], [0, 3, 5, 6, 8, 9])
    assert scores_in(begun, "url", "abc", "def").tolist() == [-2.0, -3.0]
    # Half a character is no text of its own; then the server's offsets count, if they reach from start to end.
    halves = (["ab", "bytes:\\xc3", "bytes:\\xa9", "!"], [None, -1.0, -2.0, -9.0])
    assert scores_in(reply(*halves, [0, 2, 2, 3]), "url", "ab", "é").tolist() == [-1.0, -2.0]
    with pytest.raises(
        SamplerError, match="do not spell the text that was sent; give the sampler the model's tokenizer"
    ):
        scores_in(reply(*halves, [-1] * 4), "url", "ab", "é")
    assert scores_in(reply(*plain), "url", "abcdef", "").tolist() == []


def test_scores_of_tokens_are_counted_off() -> None:
    values: list[float | None] = [None, -1.0, -2.0, -3.0]
    for generated in ([], [-9.0]):
        found = scores_in(reply([], [*values, *generated]), "url", [5, 6], [7, 8])
        assert found.tolist() == [-2.0, -3.0]
    with pytest.raises(SamplerError, match="does not return log-probabilities of a prompt"):
        scores_in(reply([], [-9.0]), "url", [5, 6], [7, 8])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "does not return log-probabilities of a prompt"),
        ({"choices": [{"logprobs": None}]}, "does not return log-probabilities of a prompt"),
        (
            {"choices": [{"logprobs": {"content": [{"logprob": -1.0}]}}]},
            "does not return log-probabilities of a prompt",
        ),
        (reply(["!"], [-1.0], [0]), "does not return log-probabilities of a prompt"),  # llama.cpp: only the new token
        (reply(["!"], [-1.0], [6]), "does not return log-probabilities of a prompt"),
        (reply(["abc"], [-1.0, -2.0]), "does not return log-probabilities of a prompt"),
        (reply(["abc", "def", "!"], [None, None, -2.0]), "has no log-probability"),
        (reply(["abc", "def", "!"], [None, float("nan"), -2.0]), "has no log-probability"),
    ],
)
def test_an_echo_without_scores_is_told(answer: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplerError, match=message):
        scores_in(answer, "url", "abc", "def")
