"""Endpoints that answer wrongly in every way known: one clear error for that request, and the others go on."""

from __future__ import annotations

import time
from typing import Any

import pytest
from wire_server import answer

from alignlab.core.errors import SamplerError
from alignlab.lm.remote import RemoteLimits, RemoteSampler
from alignlab.lm.types import GenerationError, Prompt, SamplingParams

ONE = SamplingParams(max_tokens=4)
PROMPTS: list[Prompt] = ["good 1", "bad", "good 2", "good 3"]


def silent(wire: Any, body: dict[str, Any], n: int) -> None:
    time.sleep(0.4)


def drip(wire: Any, body: dict[str, Any], n: int) -> None:
    wire.head(Content_Length="1000")
    for _ in range(12):
        wire.wfile.write(b" ")
        wire.wfile.flush()
        time.sleep(0.05)


def cut(part: bytes, **headers: str) -> Any:
    def respond(wire: Any, body: dict[str, Any], n: int) -> None:
        wire.head(**headers)
        wire.wfile.write(part)

    return respond


BAD_REPLIES: dict[str, tuple[Any, str, int]] = {
    "silence": (silent, "timed out: it was silent or unfinished for 0.2 seconds", 3),
    "drip": (drip, "timed out: it was silent or unfinished for 0.2 seconds", 3),
    "closed": (lambda wire, body, n: None, "closed the connection without an answer", 3),
    "cut": (cut(b'{"choices": [{"te', Content_Length="90"), "the reply was cut after 17 of 90 bytes", 3),
    "cut chunk": (cut(b'40\r\n{"choices"', Transfer_Encoding="chunked"), "broke off: IncompleteRead", 3),
    "cut without a length": (cut(b'{"choices": [{"te'), "the reply is not JSON", 1),
    "garbage": (lambda wire, body, n: wire.whole(b"\xff\xfe\x00garbage"), "the reply is not JSON", 1),
    "no answer": (lambda wire, body, n: wire.whole({"choices": []}), "holds no completion", 1),
    "fewer answers": (lambda wire, body, n: wire.whole(answer("a")), "2 answers were asked for and 1 came", 1),
    "given up": (
        lambda wire, body, n: wire.whole(
            {"choices": [{"text": "", "finish_reason": "abort"}, {"text": "", "finish_reason": "stop"}]}
        ),
        "the server gave the answer up",
        1,
    ),
    "too long a prompt": (
        lambda wire, body, n: wire.whole({"error": {"message": "context is 8 tokens"}}, 400),
        "answered 400: context is 8 tokens",
        1,
    ),
    "overloaded": (lambda wire, body, n: wire.whole(b"", 503), "answered 503: Service Unavailable", 3),
}


@pytest.mark.parametrize("kind", BAD_REPLIES)
def test_a_bad_reply_is_an_error_of_its_request_and_the_others_go_on(kind: str, server: Any) -> None:
    bad, message, attempts = BAD_REPLIES[kind]

    def respond(wire: Any, body: dict[str, Any], n: int) -> None:
        if body["prompt"] == "bad":
            bad(wire, body, n)
        else:
            wire.whole(answer(body["prompt"] + " a", body["prompt"] + " b"))

    server.will(respond)
    limits = RemoteLimits(concurrency=2, timeout=0.2, retries=2, first_wait=0.001, longest_wait=0.01)
    sampler = server.sampler(limits)
    outcomes = sampler.generate_each(PROMPTS, SamplingParams(n=2))
    failure = outcomes[1]
    assert isinstance(failure, SamplerError)
    assert message in str(failure)
    assert "\n" not in str(failure)
    rest = [outcome for outcome in outcomes if not isinstance(outcome, SamplerError)]
    assert [[c.text for c in answers] for answers in rest] == [[f"good {i} a", f"good {i} b"] for i in (1, 2, 3)]
    assert sum(body["prompt"] == "bad" for body in server.seen) == attempts
    with pytest.raises(GenerationError, match="prompt 1") as raised:
        sampler.generate(PROMPTS, SamplingParams(n=2))
    assert set(raised.value.errors) == {2, 3}
    texts = [c.text if c else None for c in raised.value.completions]
    assert texts[:5] == ["good 1 a", "good 1 b", None, None, "good 2 a"]


@pytest.mark.parametrize("kind", ["silence", "closed", "cut", "cut chunk", "overloaded"])
def test_what_may_pass_is_tried_again(kind: str, server: Any) -> None:
    bad = BAD_REPLIES[kind][0]
    server.will(lambda wire, body, n: bad(wire, body, n) if n == 1 else wire.whole(answer("done")))
    limits = RemoteLimits(timeout=0.2, retries=1, first_wait=0.001)
    sampler = server.sampler(limits)
    assert sampler.generate(["a"], ONE)[0].text == "done"
    assert (sampler.usage.total.retried, sampler.usage.total.failed, sampler.usage.total.requests) == (1, 0, 1)


@pytest.mark.parametrize(("status", "reply"), [(401, "bad key"), (403, "not yours"), (404, "no such model")])
def test_what_every_request_would_meet_ends_the_call(status: int, reply: str, server: Any) -> None:
    server.will(lambda wire, body, n: wire.whole({"error": reply}, status))
    limits = RemoteLimits(concurrency=2, retries=2, first_wait=0.001)
    outcomes = server.sampler(limits).generate_each([str(i) for i in range(50)], ONE)
    assert all(isinstance(outcome, SamplerError) and reply in str(outcome) for outcome in outcomes)
    assert len(server.seen) <= 4
    with pytest.raises(GenerationError, match=f"answered {status}: {reply}; 2 more failed"):
        server.sampler(limits).generate(["a", "b", "c"], ONE)


def test_a_server_that_is_gone_ends_the_call_soon(server: Any) -> None:
    limits = RemoteLimits(concurrency=2, retries=1, first_wait=0.001)
    started = time.monotonic()
    outcomes = RemoteSampler("http://127.0.0.1:9/v1", "m", limits=limits).generate_each(["a"] * 300, ONE)
    assert all(isinstance(outcome, SamplerError) for outcome in outcomes)
    assert "Connection refused" in str(outcomes[-1])
    assert time.monotonic() - started < 2.0
