"""Streams: text as it comes, whatever its shape; what is cut, silent or garbage is told, never taken for an answer."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from wire_server import piece

from alignlab.core.errors import SamplerError
from alignlab.lm.remote import RemoteLimits, RemoteOptions
from alignlab.lm.types import Prompt, SamplingParams

ONE = SamplingParams(max_tokens=4)
PROMPTS: list[Prompt] = ["good 1", "bad", "good 2", "good 3"]


def silent_stream(wire: Any, body: dict[str, Any], n: int) -> None:
    wire.events(piece("ab"), end=False)
    time.sleep(0.4)


def pinging_stream(wire: Any, body: dict[str, Any], n: int) -> None:
    wire.events(piece("ab"), end=False)
    for _ in range(12):
        wire.wfile.write(b": ping\n")
        wire.wfile.flush()
        time.sleep(0.05)


BAD_STREAMS: dict[str, tuple[Any, str]] = {
    "cut between events": (lambda w, b, n: w.events(piece("ab"), end=False), "the stream ended before its end"),
    "cut mid-token": (
        lambda w, b, n: w.events(piece("ab"), b'data: {"choices": [{"text": "c', end=False),
        "the stream ended inside an event",
    ),
    "cut in a character": (
        lambda w, b, n: w.events(piece("ab"), 'data: {"choices": [{"text": "é'.encode()[:-1], end=False),
        "the stream ended inside an event",
    ),
    "cut before the empty line": (
        lambda w, b, n: w.events(piece("ab"), b'data: {"choices": []}\n', end=False),
        "the stream ended inside an event",
    ),
    "no JSON": (lambda w, b, n: w.events(piece("ab"), b"data: {oops\n\n"), "garbage (not JSON): '{oops'"),
    "no object": (lambda w, b, n: w.events(piece("ab"), b"data: 3\n\n"), "a JSON int instead of an object"),
    "no UTF-8": (lambda w, b, n: w.events(piece("ab"), b"data: \xff\xfe\n\n"), "garbage (not UTF-8)"),
    "no answers": (lambda w, b, n: w.events(piece("ab"), {"choices": [3]}), "something else than answers"),
    "no text": (lambda w, b, n: w.events(piece("ab"), {"choices": [{"text": 3}]}), "something else than text"),
    "the server's error": (
        lambda w, b, n: w.events(piece("ab"), {"error": {"message": "out of memory"}}),
        "the server broke off: out of memory",
    ),
    "no end": (lambda w, b, n: w.events(piece("ab")), "answer 0 ended before its end, after 2 characters"),
    "silence": (silent_stream, "timed out: it was silent or unfinished for 0.2 seconds"),
    "only comments": (pinging_stream, "timed out: it was silent or unfinished for 0.2 seconds"),
}


@pytest.mark.parametrize("kind", BAD_STREAMS)
def test_a_broken_stream_is_told_after_what_was_good(kind: str, server: Any) -> None:
    bad, message = BAD_STREAMS[kind]
    server.will(bad)
    sampler = server.sampler(RemoteLimits(timeout=0.2, retries=2, first_wait=0.001))
    heard: list[str] = []
    with pytest.raises(SamplerError) as raised:
        for text in sampler.stream("p", ONE):
            heard.append(text)
    assert message in str(raised.value)
    assert heard == ["ab"]
    assert len(server.seen) == 1  # nothing can be asked again once something was heard
    assert (sampler.usage.total.failed, sampler.usage.total.requests) == (1, 0)


@pytest.mark.parametrize("kind", BAD_STREAMS)
def test_a_broken_stream_is_an_error_of_its_request_and_the_others_go_on(kind: str, server: Any) -> None:
    bad, message = BAD_STREAMS[kind]

    def respond(wire: Any, body: dict[str, Any], n: int) -> None:
        if body["prompt"] == "bad":
            bad(wire, body, n)
        else:
            wire.events(piece(body["prompt"]), piece("!", finish="stop"))

    server.will(respond)
    limits = RemoteLimits(concurrency=4, timeout=0.2, retries=0)
    outcomes = server.sampler(limits, options=RemoteOptions(streamed=True)).generate_each(PROMPTS, ONE)
    assert isinstance(outcomes[1], SamplerError)
    assert message in str(outcomes[1])
    good = [outcome for outcome in outcomes if not isinstance(outcome, SamplerError)]
    assert [answers[0].text for answers in good] == ["good 1!", "good 2!", "good 3!"]


def test_a_stream_carries_text_as_it_comes_whatever_its_shape(server: Any) -> None:
    chat = [
        b": a comment\n\n",
        {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
        {"choices": [{"index": 0, "delta": {"content": "Grüße"}}]},
        'event: message\r\ndata: {"choices": [{"index": 0,\r\ndata: "delta": {"content": " 💡"}}]}\r\n\r\n'.encode(),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}},
    ]
    server.will(lambda wire, body, n: wire.events(*chat))
    sampler = server.sampler()
    prompt: Prompt = [{"role": "user", "content": "hi"}]
    assert list(sampler.stream(prompt, ONE)) == ["Grüße", " 💡"]
    assert server.seen[0]["stream"] is True
    assert server.seen[0]["stream_options"] == {"include_usage": True}
    assert (sampler.usage.total.prompt_tokens, sampler.usage.total.completion_tokens) == (5, 7)
    done = server.sampler(options=RemoteOptions(streamed=True)).generate([prompt], ONE)[0]
    assert (done.text, done.finish_reason, done.prompt_tokens) == ("Grüße 💡", "length", 5)
    # A server that closes instead of sending [DONE] has left nothing out once every answer has ended.
    server.will(lambda wire, body, n: wire.events(piece("a"), piece("b", finish="stop"), end=False))
    assert list(sampler.stream("p", ONE)) == ["a", "b"]


def test_streams_of_several_answers_are_put_together(server: Any) -> None:
    def scored(text: str, value: float, index: int, finish: str | None = None) -> dict[str, Any]:
        made = piece(text, index, finish)
        made["choices"][0] |= {"logprobs": {"token_logprobs": [value]}, "token_ids": [ord(text)]}
        return made

    server.will(lambda w, b, n: w.events(
        scored("x", -1.0, 1), scored("a", -2.0, 0), scored("y", -3.0, 1, "stop"), scored("b", -4.0, 0, "length"),
    ))  # fmt: skip
    sampler = server.sampler(options=RemoteOptions(streamed=True, ask_logprobs=True))
    first, second = sampler.generate(["p"], SamplingParams(n=2))
    assert (first.text, first.logprobs, first.tokens, first.finish_reason) == ("ab", (-2.0, -4.0), (97, 98), "length")
    assert (second.text, second.logprobs, second.tokens) == ("xy", (-1.0, -3.0), (120, 121))
    assert (server.seen[0]["n"], server.seen[0]["logprobs"]) == (2, 1)
    with pytest.raises(SamplerError, match="3 answers were asked for and 2 came"):
        sampler.generate(["p"], SamplingParams(n=3))


def test_a_stream_that_breaks_before_its_first_piece_is_asked_for_again(server: Any) -> None:
    def respond(wire: Any, body: dict[str, Any], n: int) -> None:
        if n == 1:
            wire.events(end=False)
        elif n == 2:
            wire.whole(b"", 429)
        else:
            wire.events(piece("ok", finish="stop"))

    server.will(respond)
    assert list(server.sampler().stream("p", ONE)) == ["ok"]
    assert len(server.seen) == 3
    server.will(lambda wire, body, n: wire.whole({"choices": []}, Content_Type="application/json"))
    with pytest.raises(SamplerError, match="asked for a stream of events, the server sent application/json"):
        list(server.sampler().stream("p", ONE))


def test_leaving_a_stream_closes_its_connection(server: Any) -> None:
    gone = threading.Event()

    def respond(wire: Any, body: dict[str, Any], n: int) -> None:
        wire.events(piece("a"), end=False)
        try:
            for _ in range(400):
                wire.wfile.write(b": ping\n" * 100)
                time.sleep(0.005)
        except OSError:
            gone.set()

    server.will(respond)
    stream = server.sampler().stream("p", ONE)
    assert next(stream) == "a"
    stream.close()  # type: ignore[attr-defined]
    assert gone.wait(2.0)
