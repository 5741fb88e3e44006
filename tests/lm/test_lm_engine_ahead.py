"""Several decode steps without a plan between them, and prompts in padded passes: the answers stay the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from alignlab.core.errors import SamplerError
from alignlab.lm.engine import Engine, EngineSampler, Request
from alignlab.lm.engine.paged import Span
from alignlab.lm.engine.prompt_graphs import LENGTHS
from alignlab.lm.engine.runner import Graphs
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.types import SamplingParams

MakeLM = Callable[..., LanguageModel]
MakeReciter = Callable[[Sequence[int]], LanguageModel]
GREEDY = SamplingParams(max_tokens=30, temperature=0)
DRAWN = SamplingParams(max_tokens=30, temperature=0.9, top_p=0.95, seed=3)
PROMPTS = ["abc", "h g f e d c b a", "aaaa", "abc", "g", "cdcdcdcdcdcdcdcdcd", "b a"]


def replaying(lm: LanguageModel, **settings: object) -> Engine:
    """An engine on the CPU that runs the passes of fixed shape which a GPU records."""
    engine = Engine(lm, invariant=False, **settings)
    engine.runner.graphs = Graphs(lm.model, engine.cache, record=False)
    return engine


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, DRAWN, replace(DRAWN, stop=("a", "gh")), replace(DRAWN, n=2), replace(GREEDY, logit_bias=((70, 4.0),))],
    ids=["greedy", "drawn", "stop", "n", "bias"],
)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_answers_are_those_of_the_local_sampler(family: str, sampling: SamplingParams, make_lm: MakeLM) -> None:
    lm = make_lm(family, tie_embeddings=False)
    expected = LocalSampler(lm).generate(PROMPTS, sampling)
    for ahead in (1, 5, 16):
        engine = replaying(lm, ahead=ahead, blocks=200)
        found = EngineSampler(engine).generate(PROMPTS, sampling)
        assert [(one.tokens, one.finish_reason) for one in found] == [(o.tokens, o.finish_reason) for o in expected]
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=2e-5)
        assert engine.stats().blocks_used == 0


def test_steps_are_fewer_and_events_are_all_there(make_lm: MakeLM) -> None:
    lm = make_lm("gemma3")
    handles, events, steps = [], [], {}
    for ahead in (1, 8):
        engine = replaying(lm, ahead=ahead)
        handles = [
            engine.submit(Request(lm.tokenizer.encode_prompt(p), replace(GREEDY, max_tokens=n), end_ids=frozenset()))
            for p, n in zip(PROMPTS, (30, 3, 17, 30, 1, 9, 8), strict=True)
        ]
        events = []
        while engine.jobs:
            events += engine.step()
        steps[ahead] = engine.stats().steps
        for handle in handles:
            own = [event for event in events if event.id == handle.id]
            assert [event.token for event in own] == handle.tokens
            assert [event.logprob for event in own] == handle.logprobs
            assert [event.finished for event in own] == [None] * (len(own) - 1) + ["length"]
    assert [len(handle.tokens) for handle in handles] == [30, 3, 17, 30, 1, 9, 8]
    assert steps[8] <= 8 < 30 <= steps[1]


def test_a_full_cache_goes_step_by_step(make_lm: MakeLM) -> None:
    """So few blocks that requests give way: what does not fit ahead is planned as ever."""
    lm = make_lm()
    expected = LocalSampler(lm).generate(PROMPTS, DRAWN)
    engine = replaying(lm, blocks=6)
    found = EngineSampler(engine).generate(PROMPTS, DRAWN)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert engine.stats().preemptions > 0
    assert engine.stats().blocks_used == 0


def test_the_context_may_end_on_the_way(make_lm: MakeLM) -> None:
    lm = make_lm()
    n_ctx = lm.model.config.n_ctx
    prompt = [5 + i % 50 for i in range(n_ctx - 4)]
    sampling = SamplingParams(max_tokens=50, temperature=0)
    engine = replaying(lm, ahead=16)
    handles = [
        engine.submit(Request(tokens, sampling, end_ids=frozenset())) for tokens in (prompt, prompt[:7], prompt[:30])
    ]
    engine.run()
    assert [len(handle.tokens) for handle in handles] == [4, 50, 34]
    for handle, tokens in zip(handles, (prompt, prompt[:7], prompt[:30]), strict=True):
        alone = Engine(lm, invariant=False).submit(Request(tokens, sampling, end_ids=frozenset())).wait()
        assert handle.tokens == alone.tokens


def test_what_is_not_a_number_fails_alone(make_lm: MakeLM) -> None:
    """A token whose embedding is NaN fails the request that draws it, after the tokens before; the others go on."""
    lm = make_lm(tie_embeddings=False)
    answers = LocalSampler(lm).generate(PROMPTS, GREEDY)
    first, others = answers[1].tokens, {t for i in (0, 2, 4, 5, 6) for t in answers[i].tokens}
    broken = next(i for i, token in enumerate(first[:-1]) if token not in others and i > 1)
    with torch.no_grad():
        lm.model.embed.weight[first[broken]] = float("nan")
    engine = replaying(lm, ahead=16)
    handles = [engine.submit(Request(lm.tokenizer.encode_prompt(p), GREEDY)) for p in PROMPTS]
    engine.run()
    assert handles[1].finished == "failed"
    assert handles[1].tokens == list(first[: broken + 1])
    with pytest.raises(SamplerError, match=r"not finite .* after \d+ tokens"):
        handles[1].wait()
    for i in (0, 2, 4, 5, 6):
        assert handles[i].tokens == list(answers[i].tokens)
    assert not engine.cache.keys[:, 1 : engine.cache.n_blocks + 1].isnan().any()


def test_prompts_of_one_padded_length_are_one_pass(make_lm: MakeLM) -> None:
    lm = make_lm()
    engine = replaying(lm, blocks=40)
    handles = [
        engine.submit(Request([7 + i] * n, replace(GREEDY, max_tokens=1))) for i, n in enumerate((12, 16, 9, 13))
    ]
    engine.step()
    assert all(handle.finished for handle in handles)
    assert engine.runner.graphs is not None
    prompts = engine.runner.graphs.prompts
    assert list(prompts.steps) == [(4, 16)]
    assert prompts.shape([Span([1, 2], 16, 5)]) is None  # its beginning is in the cache
    assert prompts.shape([Span([1, 2], 0, 2), Span([3, 4], 0, 29)]) is None  # mostly padding
    assert prompts.shape([Span([1] * 99, 0, LENGTHS[-1] + 1)]) is None
    assert prompts.shape([Span([1, 2], 0, 30), Span([3, 4], 0, 20), Span([3, 4], 0, 32)]) == (4, 32)
