"""The scripted sampler is a Sampler, answers from its script and scores reproducibly."""

from __future__ import annotations

import pytest
import torch

from alignlab.core.errors import SamplerError
from alignlab.lm.scripted import ScriptedSampler
from alignlab.lm.types import Sampler, SamplingParams

PARAMS = SamplingParams(max_tokens=3)
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]


def test_mapping_sequence_and_function_answer() -> None:
    assert isinstance(ScriptedSampler(), Sampler)
    assert [c.text for c in ScriptedSampler({"hi": "a", "ho": "b"}).generate([CHAT, "ho"], PARAMS)] == ["a", "b"]
    one_by_one = ScriptedSampler(["x", "y"])
    assert one_by_one.generate(["p"], PARAMS)[0].text == "x"
    assert one_by_one.generate(["p"], PARAMS)[0].text == "y"
    assert one_by_one.calls == ["p", "p"]
    with pytest.raises(SamplerError, match="has 2 answers and all are used up"):
        one_by_one.generate(["p"], PARAMS)
    with pytest.raises(SamplerError, match="no answer to 'he'"):
        ScriptedSampler({"hi": "a"}).generate(["he"], PARAMS)
    assert ScriptedSampler(lambda p: f"<{p}>").generate(["q"], PARAMS)[0].text == "<q>"


def test_limits_and_stops_cut_the_answer() -> None:
    sampler = ScriptedSampler(lambda p: "one two  three four")
    long = sampler.generate(["p"], PARAMS)[0]
    assert (long.text, long.finish_reason, len(long.tokens)) == ("one two  three", "length", 3)
    stopped = sampler.generate(["p"], SamplingParams(stop=("three", "two")))[0]
    assert (stopped.text, stopped.finish_reason) == ("one ", "stop")
    assert ScriptedSampler([""]).generate(["p"], PARAMS)[0].tokens == ()


def test_scores_depend_on_prompt_and_text_only() -> None:
    sampler = ScriptedSampler(["one two", "one two"])
    a, b = sampler.logprobs(["p", "q"], ["one two", "one two"])
    again = ScriptedSampler().logprobs(["p"], ["one two"])[0]
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert a.shape == (2,)
    assert (a < 0).all()
    assert sampler.generate(["p"], PARAMS)[0].logprobs == tuple(a.tolist())
    scored = ScriptedSampler(score=lambda prompt, text: -float(len(text))).logprobs(["p"], ["ab c"])[0]
    assert scored.tolist() == [-4.0, -4.0]
    with pytest.raises(SamplerError, match="1 prompts and 2 completions"):
        sampler.logprobs(["p"], ["a", "b"])
