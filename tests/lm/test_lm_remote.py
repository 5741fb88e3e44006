"""The remote sampler against a small server: requests, order, patience, refusals and scores."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from alignlab.core.errors import SamplerError
from alignlab.lm.remote import RemoteLimits, RemoteSampler
from alignlab.lm.types import Prompt, Sampler, SamplingParams

Answer = tuple[int, Any, dict[str, str]]
QUICK = RemoteLimits(concurrency=4, timeout=2.0, retries=3, first_wait=0.001, longest_wait=0.05)


class FakeServer:
    """Answers with `respond(path, body, n-th request)`; remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.respond: Callable[[str, dict[str, Any], int], Answer] = lambda path, body, n: (200, chat_reply(body), {})
        self.lock, self.busy, self.most_busy = threading.Lock(), 0, 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.requests.append((self.path, body, dict(self.headers)))
                    n = len(fake.requests)
                    fake.busy += 1
                    fake.most_busy = max(fake.most_busy, fake.busy)
                status, reply, headers = fake.respond(self.path, body, n)
                with fake.lock:
                    fake.busy -= 1
                raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # the client gave up waiting, as one of the tests wants
                    self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def chat_reply(body: dict[str, Any], **choice: Any) -> dict[str, Any]:
    said = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    content = {"message": {"content": f"re: {said}"}} if "messages" in body else {"text": f"re: {said}"}
    return {"choices": [{"finish_reason": "stop", **content, **choice}], "usage": {"prompt_tokens": 7}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    for name in ("ALIGNLAB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeServer()
    yield fake
    fake.close()


def chat(text: str) -> Prompt:
    return [{"role": "user", "content": text}]


def test_conversations_and_text_go_where_they_belong(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    sampler = RemoteSampler(server.url + "/", "m", limits=QUICK)
    assert isinstance(sampler, Sampler)
    params = SamplingParams(max_tokens=5, temperature=0, stop=("X",), top_k=3, seed=9)
    done = sampler.generate([chat("a"), "b"], params)
    assert [c.text for c in done] == ["re: a", "re: b"]
    assert (done[0].finish_reason, done[0].prompt_tokens, done[0].tokens) == ("stop", 7, ())
    asked = {path: body for path, body, _ in server.requests}
    assert set(asked) == {"/v1/chat/completions", "/v1/completions"}
    assert asked["/v1/completions"] == {
        "model": "m", "prompt": "b", "max_tokens": 5, "temperature": 0, "top_p": 1.0, "seed": 9, "stop": ["X"],
        "top_k": 3,
    }  # fmt: skip
    assert {headers["Authorization"] for *_, headers in server.requests} == {"Bearer from-environment"}
    RemoteSampler(server.url, "m", api_key="mine", limits=QUICK).generate(["b"], params)
    assert server.requests[-1][2]["Authorization"] == "Bearer mine"


def test_order_is_kept_and_concurrency_is_bounded(server: FakeServer) -> None:
    def slow_first(path: str, body: dict[str, Any], n: int) -> Answer:
        time.sleep(0.05 if body["prompt"] < "05" else 0.01)
        return 200, chat_reply(body), {}

    server.respond = slow_first
    prompts: list[Prompt] = [f"{i:02}" for i in range(20)]
    done = RemoteSampler(server.url, "m", limits=QUICK).generate(prompts, SamplingParams())
    assert [c.text for c in done] == [f"re: {p}" for p in prompts]
    assert 1 < server.most_busy <= 4
    assert RemoteSampler(server.url, "m").generate([], SamplingParams()) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_refusals_that_may_pass_are_tried_again(status: int, server: FakeServer) -> None:
    server.respond = lambda path, body, n: (
        (200, chat_reply(body), {}) if n > 2 else (status, {}, {"Retry-After": "0.01"})
    )
    assert RemoteSampler(server.url, "m", limits=QUICK).generate(["a"], SamplingParams())[0].text == "re: a"
    assert len(server.requests) == 3


def test_refusals_that_stay_are_told_in_the_servers_words(server: FakeServer) -> None:
    sampler = RemoteSampler(server.url, "m", limits=QUICK)
    for status, reply, message, attempts in (
        (401, {"error": {"message": "bad key"}}, "answered 401: bad key", 1),
        (404, {"error": "no such model"}, "answered 404: no such model", 1),
        (400, b"plain\nwords", "answered 400: plain words", 1),
        (500, {}, "answered 500", 4),
        (302, {}, "answered 302", 1),
    ):
        before = len(server.requests)
        server.respond = lambda path, body, n, s=status, r=reply: (s, r, {"Location": server.url + "/elsewhere"})
        with pytest.raises(SamplerError, match=message):
            sampler.generate(["a"], SamplingParams())
        assert len(server.requests) - before == attempts
    assert all(path == "/v1/completions" for path, *_ in server.requests)  # the redirect was not followed


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"<html>", "the reply is not JSON"),
        ([], "a JSON list instead of an object"),
        ({"choices": []}, "holds no completion"),
        ({"choices": [{"text": 3}]}, "int instead of text"),
    ],
)
def test_other_replies_are_one_sentence(reply: Any, message: str, server: FakeServer) -> None:
    server.respond = lambda path, body, n: (200, reply, {})
    with pytest.raises(SamplerError, match=message):
        RemoteSampler(server.url, "m", limits=QUICK).generate(["a"], SamplingParams())


def test_silence_and_absence_are_one_sentence(server: FakeServer) -> None:
    def sleepy(path: str, body: dict[str, Any], n: int) -> Answer:
        time.sleep(0.3)
        return 200, {}, {}

    server.respond = sleepy
    limits = RemoteLimits(timeout=0.05, retries=1, first_wait=0.001)
    with pytest.raises(SamplerError, match=": timed out: it was silent"):
        RemoteSampler(server.url, "m", limits=limits).generate(["a"], SamplingParams())
    with pytest.raises(SamplerError, match="cannot be reached"):
        RemoteSampler("http://127.0.0.1:9/v1", "m", limits=limits).generate(["a"], SamplingParams())
    with pytest.raises(SamplerError, match="is not a web address"):
        RemoteSampler("file:///etc/passwd", "m")


def test_length_empty_content_and_volunteered_logprobs(server: FakeServer) -> None:
    server.respond = lambda path, body, n: (
        200,
        chat_reply(body, finish_reason="length", message={"content": None}),
        {},
    )
    done = RemoteSampler(server.url, "m", limits=QUICK).generate([chat("a")], SamplingParams())[0]
    assert (done.text, done.finish_reason) == ("", "length")
    scores = {"content": [{"logprob": -0.5}, {"logprob": -1}]}
    server.respond = lambda path, body, n: (200, chat_reply(body, logprobs=scores), {})
    assert RemoteSampler(server.url, "m", limits=QUICK).generate([chat("a")], SamplingParams())[0].logprobs == (
        -0.5,
        -1,
    )


def echo(path: str, body: dict[str, Any], n: int) -> Answer:
    """Tokens of three characters, the k-th with log-probability -k; one generated token at the end."""
    text = body["prompt"] + "!!!"
    offsets = list(range(0, len(text), 3))
    scores = {
        "tokens": [text[i : i + 3] for i in offsets],
        "text_offset": offsets,
        "token_logprobs": [None, *(-float(k) for k in range(1, len(offsets)))],
    }
    return 200, chat_reply(body, logprobs=scores), {}


def test_scores_are_those_of_the_completions_tokens(server: FakeServer) -> None:
    server.respond = echo
    sampler = RemoteSampler(server.url, "m", limits=QUICK)
    aligned, straddling = sampler.logprobs(["abcdef", "abcde"], ["ghijkl", "fghi"])
    assert aligned.tolist() == [-2.0, -3.0]
    assert straddling.tolist() == [-1.0, -2.0]  # the token "def" begins in the prompt and carries the completion's "f"
    assert server.requests[0][1]["echo"] is True
    with pytest.raises(SamplerError, match="needs `tokenizer`"):
        sampler.logprobs([chat("a")], ["b"])
    with pytest.raises(SamplerError, match="do not pair up"):
        sampler.logprobs(["a"], [])

    class Renders:
        def render_chat(self, messages: Any) -> str:
            return messages[0]["content"] * 3

    rendered = RemoteSampler(server.url, "m", tokenizer=Renders(), limits=QUICK)  # type: ignore[arg-type]
    assert rendered.logprobs([chat("ab")], ["cde"])[0].tolist() == [-2.0]
    server.respond = lambda path, body, n: (200, chat_reply(body), {})
    with pytest.raises(SamplerError, match="does not return log-probabilities of a prompt"):
        sampler.logprobs(["a"], ["b"])
