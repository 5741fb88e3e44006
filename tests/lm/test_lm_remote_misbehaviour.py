"""Endpoints that misbehave in every way known: each is one clear error for its request, and the others go on."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignlab.core.errors import SamplerError
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.remote import Price, RemoteLimits, RemoteOptions, RemoteSampler, UsageMeter
from alignlab.lm.types import GenerationError, Prompt, SamplingParams

QUICK = RemoteLimits(concurrency=4, timeout=2.0, retries=2, first_wait=0.001, longest_wait=0.01)
STREAM = {"Content-Type": "text/event-stream"}
Respond = Callable[["Wire", dict[str, Any], int], None]


class Wire(BaseHTTPRequestHandler):
    """One request; tests write the answer byte by byte and close when they like."""

    respond: Respond
    seen: list[dict[str, Any]]
    lock: threading.Lock

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.seen.append(body)
            n = len(self.seen)
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has left, as some tests want
            type(self).respond(self, body, n)

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def whole(self, reply: Any, status: int = 200, **headers: str) -> None:
        raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.head(status, Content_Length=str(len(raw)), **headers)
        self.wfile.write(raw)

    def events(self, *events: Any, end: bool = True) -> None:
        self.head(Content_Type="text/event-stream")
        for event in events:
            raw = event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode()
            self.wfile.write(raw)
            self.wfile.flush()
        if end:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    """A server on a free port of this machine that answers as `respond` says."""

    def __init__(self) -> None:
        class Handler(Wire):
            seen: list[dict[str, Any]] = []  # noqa: RUF012
            lock = threading.Lock()

        self.handler = Handler
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def seen(self) -> list[dict[str, Any]]:
        return self.handler.seen

    def will(self, respond: Respond) -> None:
        self.handler.seen.clear()
        self.handler.respond = respond

    def sampler(self, limits: RemoteLimits = QUICK, **fields: Any) -> RemoteSampler:
        return RemoteSampler(self.url, "m", limits=limits, **fields)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("ALIGNLAB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()
    running.thread.join()


def answer(*texts: str, tokens: tuple[int, int] | None = (3, 2)) -> dict[str, Any]:
    choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)]
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}}
    return {"choices": choices, **usage}


def piece(text: str, index: int = 0, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "finish_reason": finish}]}


ONE = SamplingParams(max_tokens=4)
PROMPTS: list[Prompt] = ["good 1", "bad", "good 2", "good 3"]


def silent(wire: Wire, body: dict[str, Any], n: int) -> None:
    time.sleep(0.4)


def drip(wire: Wire, body: dict[str, Any], n: int) -> None:
    wire.head(Content_Length="1000")
    for _ in range(12):
        wire.wfile.write(b" ")
        wire.wfile.flush()
        time.sleep(0.05)


def cut(part: bytes, **headers: str) -> Respond:
    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
        wire.head(**headers)
        wire.wfile.write(part)

    return respond


BAD_REPLIES: dict[str, tuple[Respond, str, int]] = {
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
def test_a_bad_reply_is_an_error_of_its_request_and_the_others_go_on(kind: str, server: Server) -> None:
    bad, message, attempts = BAD_REPLIES[kind]

    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
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
def test_what_may_pass_is_tried_again(kind: str, server: Server) -> None:
    bad = BAD_REPLIES[kind][0]
    server.will(lambda wire, body, n: bad(wire, body, n) if n == 1 else wire.whole(answer("done")))
    limits = RemoteLimits(timeout=0.2, retries=1, first_wait=0.001)
    sampler = server.sampler(limits)
    assert sampler.generate(["a"], ONE)[0].text == "done"
    assert (sampler.usage.total.retried, sampler.usage.total.failed, sampler.usage.total.requests) == (1, 0, 1)


@pytest.mark.parametrize(("status", "reply"), [(401, "bad key"), (403, "not yours"), (404, "no such model")])
def test_what_every_request_would_meet_ends_the_call(status: int, reply: str, server: Server) -> None:
    server.will(lambda wire, body, n: wire.whole({"error": reply}, status))
    limits = RemoteLimits(concurrency=2, retries=2, first_wait=0.001)
    outcomes = server.sampler(limits).generate_each([str(i) for i in range(50)], ONE)
    assert all(isinstance(outcome, SamplerError) and reply in str(outcome) for outcome in outcomes)
    assert len(server.seen) <= 4
    with pytest.raises(GenerationError, match=f"answered {status}: {reply}; 2 more failed"):
        server.sampler(limits).generate(["a", "b", "c"], ONE)


def test_a_server_that_is_gone_ends_the_call_soon(server: Server) -> None:
    limits = RemoteLimits(concurrency=2, retries=1, first_wait=0.001)
    started = time.monotonic()
    outcomes = RemoteSampler("http://127.0.0.1:9/v1", "m", limits=limits).generate_each(["a"] * 300, ONE)
    assert all(isinstance(outcome, SamplerError) for outcome in outcomes)
    assert "Connection refused" in str(outcomes[-1])
    assert time.monotonic() - started < 2.0


def silent_stream(wire: Wire, body: dict[str, Any], n: int) -> None:
    wire.events(piece("ab"), end=False)
    time.sleep(0.4)


def pinging_stream(wire: Wire, body: dict[str, Any], n: int) -> None:
    wire.events(piece("ab"), end=False)
    for _ in range(12):
        wire.wfile.write(b": ping\n")
        wire.wfile.flush()
        time.sleep(0.05)


BAD_STREAMS: dict[str, tuple[Respond, str]] = {
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
def test_a_broken_stream_is_told_after_what_was_good(kind: str, server: Server) -> None:
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
def test_a_broken_stream_is_an_error_of_its_request_and_the_others_go_on(kind: str, server: Server) -> None:
    bad, message = BAD_STREAMS[kind]

    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
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


def test_a_stream_carries_text_as_it_comes_whatever_its_shape(server: Server) -> None:
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


def test_streams_of_several_answers_are_put_together(server: Server) -> None:
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


def test_a_stream_that_breaks_before_its_first_piece_is_asked_for_again(server: Server) -> None:
    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
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


def test_leaving_a_stream_closes_its_connection(server: Server) -> None:
    gone = threading.Event()

    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
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


def test_the_pause_that_a_server_asks_for_is_kept_by_all_requests(server: Server) -> None:
    times: list[float] = []

    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
        times.append(time.monotonic())
        if n == 1:
            wire.whole({"error": "slow down"}, 429, Retry_After="0.3")
        else:
            time.sleep(0.1 if n == 2 else 0.0)
            wire.whole(answer("ok"))

    server.will(respond)
    limits = RemoteLimits(concurrency=2, retries=1, first_wait=0.001, longest_wait=0.01)
    assert [c.text for c in server.sampler(limits).generate(["a", "b", "c"], ONE)] == ["ok"] * 3
    # The second was under way already; the third and the repeated first have waited.
    assert len(times) == 4
    assert times[2] - times[0] >= 0.3
    server.will(lambda wire, body, n: wire.whole({"error": "slow down"}, 429, Retry_After="4000"))
    with pytest.raises(SamplerError, match=r"answered 429: slow down, and asks to come back in 4000 seconds"):
        server.sampler(limits).generate(["a"] * 9, ONE)
    assert len(server.seen) <= 2


@pytest.mark.parametrize("limit", [{"requests_per_minute": 2}, {"tokens_per_minute": 20}])
def test_rates_are_kept(limit: dict[str, int], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.lm.remote_limits.WINDOW_SECONDS", 0.3)
    times: list[float] = []

    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
        times.append(time.monotonic())
        wire.whole(answer("ok", tokens=(5, 4)))  # the estimate of one token a prompt and ten new ones is put right

    server.will(respond)
    limits = RemoteLimits(concurrency=4, **limit)
    server.sampler(limits).generate(["a", "b", "c", "d"], SamplingParams(max_tokens=10))
    # Both limits admit two at once: of 20 tokens each takes 11 at most until its reply says 9.
    assert times[2] - times[0] >= 0.25
    assert times[3] - times[0] < 1.5


def test_answers_come_in_order_of_their_index_and_repeats_have_seeds_of_their_own(server: Server) -> None:
    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
        reply = answer(*(f"{body['prompt']}{i}" for i in range(body.get("n", 1) + 1)))  # one more than asked
        reply["choices"].reverse()
        wire.whole(reply)

    server.will(respond)
    done = server.sampler().generate(["a", "b", "a"], SamplingParams(n=3, seed=5))
    assert [c.text for c in done] == [f"{p}{i}" for p in "aba" for i in range(3)]
    seeds = {(body["prompt"], body["seed"]) for body in server.seen}
    assert {("a", 5), ("b", 5)} < seeds
    assert len(seeds) == 3
    server.will(lambda wire, body, n: wire.whole(answer(body["prompt"])))
    alone = server.sampler(options=RemoteOptions(n_in_one=False)).generate(["a"], SamplingParams(n=3, seed=5))
    assert len(alone) == 3
    assert len({body["seed"] for body in server.seen}) == 3
    assert all("n" not in body and 0 <= body["seed"] < 2**31 for body in server.seen)


def test_tokens_and_cost_are_counted_and_kept(server: Server, tmp_path: Path) -> None:
    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
        reply = answer("ok", tokens=(1000, 200))
        reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 400}
        wire.whole(reply if body["prompt"] != "untold" else answer("ok", tokens=None))

    server.will(respond)
    path = tmp_path / "usage.json"
    meter = UsageMeter(Price(prompt=2.0, completion=10.0, cached=0.5, currency="EUR"), path=path)
    server.sampler(usage=meter).generate(["a", "b"], ONE)
    # 600 fresh and 400 cached tokens in, 200 out, twice: (600·2 + 400·0.5 + 200·10) / 10⁶ = 0.0034 each.
    assert meter.cost == pytest.approx(0.0068)
    assert meter.report() == "2 requests; 2,000 tokens in, 400 out; 0.0068 EUR"
    server.sampler(usage=meter).generate(["untold"], ONE)
    assert "at least 0.0068 EUR; 1 answers without a token count" in meter.report()
    kept = json.loads(path.read_text())
    assert (kept["requests"], kept["prompt_tokens"], kept["unreported"], kept["cost"]) == (3, 2000, 1, meter.cost)
    again = UsageMeter(Price(prompt=2.0, completion=10.0), path=path)
    assert again.total == meter.total
    path.write_text("[]")
    with pytest.raises(Exception, match="holds no totals of an endpoint's usage"):
        UsageMeter(path=path)


def test_a_dialect_is_told_what_its_server_would_otherwise_choose_itself(server: Server) -> None:
    server.will(lambda wire, body, n: wire.whole(answer("ok")))
    plain = {"model", "max_tokens", "temperature", "top_p", "seed", "prompt"}

    def sent(dialect: Any, sampling: SamplingParams) -> dict[str, Any]:
        server.sampler(options=RemoteOptions(dialect=dialect, extra={"user": "u"})).generate(["p"], sampling)
        return {name: value for name, value in server.seen[-1].items() if name not in plain}

    off = SamplingParams()
    assert sent("openai", off) == {"user": "u"}
    assert sent("vllm", off) == {"user": "u", "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert sent("sglang", off) == {"user": "u", "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert sent("llama.cpp", off) == {"user": "u", "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
    rich = SamplingParams(logit_bias=((5, -100.0),), constraint=Constraint.json_schema({"type": "integer"}))
    assert sent("openai", rich)["logit_bias"] == {"5": -100.0}
    assert sent("openai", rich)["response_format"]["json_schema"]["schema"] == {"type": "integer"}
    assert sent("llama.cpp", rich)["json_schema"] == {"type": "integer"}
    regex = SamplingParams(constraint=Constraint.regex("a+"))
    assert sent("vllm", regex)["structured_outputs"] == {"regex": "a+"}
    assert sent("sglang", regex)["regex"] == "a+"
    assert sent("llama.cpp", SamplingParams(typical_p=0.5))["typical_p"] == 0.5
    for dialect, sampling, message in (
        ("openai", regex, "cannot hold an answer to a regex"),
        ("vllm", SamplingParams(typical_p=0.5), "typical_p is 0.5"),
    ):
        with pytest.raises(SamplerError, match=message):
            sent(dialect, sampling)
