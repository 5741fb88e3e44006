"""The terms on which an endpoint is asked: pauses, rates, seeds, several answers, cost, dialects."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from wire_server import answer

from alignlab.core.errors import SamplerError
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.remote import Price, RemoteLimits, RemoteOptions, UsageMeter
from alignlab.lm.types import SamplingParams

ONE = SamplingParams(max_tokens=4)


def test_the_pause_that_a_server_asks_for_is_kept_by_all_requests(server: Any) -> None:
    times: list[float] = []

    def respond(wire: Any, body: dict[str, Any], n: int) -> None:
        times.append(time.monotonic())
        if n == 1:
            wire.whole({"error": "slow down"}, 429, Retry_After="0.4")
        else:
            time.sleep(0.25 if n == 2 else 0.0)
            wire.whole(answer("ok"))

    server.will(respond)
    limits = RemoteLimits(concurrency=2, retries=1, first_wait=0.001, longest_wait=0.01)
    assert [c.text for c in server.sampler(limits).generate(["a", "b", "c"], ONE)] == ["ok"] * 3
    # The second was under way already; the third and the repeated first have waited.
    assert len(times) == 4
    assert times[2] - times[0] >= 0.4
    server.will(lambda wire, body, n: wire.whole({"error": "slow down"}, 429, Retry_After="4000"))
    with pytest.raises(SamplerError, match=r"answered 429: slow down, and asks to come back in 4000 seconds"):
        server.sampler(limits).generate(["a"] * 9, ONE)
    assert len(server.seen) <= 2


def test_ctrl_c_does_not_wait_for_the_replies_in_flight(server: Any) -> None:
    server.will(lambda wire, body, n: time.sleep(30))
    script = (
        "from alignlab.lm.remote import RemoteSampler\n"
        "from alignlab.lm.types import SamplingParams\n"
        f"RemoteSampler({server.url!r}, 'm').generate(['a', 'b', 'c'], SamplingParams())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while len(server.seen) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
        assert b"KeyboardInterrupt" in said
    finally:
        process.kill()
        process.wait()


def test_a_mistake_of_our_own_is_not_swallowed(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = server.sampler()
    monkeypatch.setattr(sampler, "_complete", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler.generate(["a"] * 20, ONE)


@pytest.mark.parametrize("limit", [{"requests_per_minute": 2}, {"tokens_per_minute": 20}])
def test_rates_are_kept(limit: dict[str, int], server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.lm.remote_limits.WINDOW_SECONDS", 0.3)
    times: list[float] = []

    def respond(wire: Any, body: dict[str, Any], n: int) -> None:
        times.append(time.monotonic())
        wire.whole(answer("ok", tokens=(5, 4)))  # the estimate of one token a prompt and ten new ones is put right

    server.will(respond)
    limits = RemoteLimits(concurrency=4, **limit)
    server.sampler(limits).generate(["a", "b", "c", "d"], SamplingParams(max_tokens=10))
    # Both limits admit two at once: of 20 tokens each takes 11 at most until its reply says 9.
    assert times[2] - times[0] >= 0.25
    assert times[3] - times[0] < 1.5


def test_answers_come_in_order_of_their_index_and_repeats_have_seeds_of_their_own(server: Any) -> None:
    def respond(wire: Any, body: dict[str, Any], n: int) -> None:
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


def test_tokens_and_cost_are_counted_and_kept(server: Any, tmp_path: Path) -> None:
    def respond(wire: Any, body: dict[str, Any], n: int) -> None:
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


def test_a_dialect_is_told_what_its_server_would_otherwise_choose_itself(server: Any) -> None:
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
