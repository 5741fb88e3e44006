"""Several answers a prompt share its reading, and a request that fails leaves the others alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from alignlab.core.errors import SamplerError
from alignlab.lm.beam import BeamSearch
from alignlab.lm.cache import KVCache
from alignlab.lm.contrastive import ContrastiveSearch
from alignlab.lm.generate import decode
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import Decoding, LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.speculative import Speculation
from alignlab.lm.types import GenerationError, SamplingParams

MakeModel = Callable[..., GPTModel]
MakeLM = Callable[..., LanguageModel]
WORDS = ["abcd", "hag had", "cab" * 6, "a"]


@pytest.fixture
def broken(make_lm: MakeLM) -> LanguageModel:
    """A model that gives NaN where a text has a g."""
    lm = make_lm()
    with torch.no_grad():
        lm.model.embed.weight[lm.tokenizer.encode("g")[0]] = float("nan")
    return lm


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("words", [WORDS, ["abcd"]])
def test_answers_are_those_of_repeated_prompts(family: str, words: list[str], make_lm: MakeLM) -> None:
    """Prompts in order, answers adjacent, each what the same prompt gives when it is repeated in the call."""
    sampler = LocalSampler(make_lm(family), batch_size=5)
    several = sampler.generate(words, SamplingParams(max_tokens=10, n=3, seed=2))
    repeated = sampler.generate([word for word in words for _ in range(3)], SamplingParams(max_tokens=10, seed=2))
    alone = LocalSampler(make_lm(family), batch_size=1).generate(words, SamplingParams(max_tokens=10, n=3, seed=2))
    assert [done.tokens for done in several] == [done.tokens for done in repeated] == [done.tokens for done in alone]
    assert len({done.tokens for done in several}) > len(words)
    first = sampler.generate(words, SamplingParams(max_tokens=10, seed=2))
    assert [done.tokens for done in several[::3]] == [done.tokens for done in first]


@pytest.mark.parametrize(("prompts", "read"), [([[7, 8, 9]] * 6, [(1, 3)]), ([[7, 8, 9]] * 2 + [[5, 6]] * 3, [(2, 3)])])
def test_a_repeated_prompt_is_read_once(
    prompts: list[list[int]], read: list[tuple[int, int]], make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    plain = KVCache.begin

    def spy(self: KVCache, tokens: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        shapes.append((tokens.shape[0], tokens.shape[1]))
        return plain(self, tokens, real)

    monkeypatch.setattr(KVCache, "begin", spy)
    assert len(list(decode(make_model(), prompts, SamplingParams(max_tokens=3), frozenset()))) == 3
    assert shapes == [*read, (len(prompts), 1), (len(prompts), 1)]


def test_a_stream_is_one_answer(make_lm: MakeLM) -> None:
    with pytest.raises(SamplerError, match="n is 2: a stream is one answer"):
        next(LocalSampler(make_lm()).stream("a", SamplingParams(n=2)))


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_logits_that_are_not_finite_fail_one_prompt(temperature: float, batch_size: int, broken: LanguageModel) -> None:
    sampler, sampling = (
        LocalSampler(broken, batch_size=batch_size),
        SamplingParams(max_tokens=6, temperature=temperature),
    )
    with pytest.raises(GenerationError) as caught:
        sampler.generate(["abcd", "g", "cab", "hag"], sampling)
    error = caught.value
    assert isinstance(error, SamplerError)
    assert str(error) == (
        "prompt 1: the model's logits are not finite (NaN or infinite) after 1 tokens; its weights or activations "
        "overflow; 1 more failed; the other 2 are in `completions` of this error"
    )
    assert list(error.errors) == [1, 3]
    alone = sampler.generate(["abcd", "cab"], sampling)
    assert [done and done.tokens for done in error.completions] == [alone[0].tokens, None, alone[1].tokens, None]


def test_a_row_that_breaks_on_its_way_fails_with_how_far_it_came(make_lm: MakeLM) -> None:
    lm = make_lm()
    healthy = LocalSampler(lm).generate(["abcd", "cab"], SamplingParams(max_tokens=9, temperature=0))
    third = healthy[0].tokens[2]
    assert third not in healthy[1].tokens + healthy[0].tokens[:2]
    with torch.no_grad():
        lm.model.embed.weight[third] = float("inf")
    with pytest.raises(GenerationError) as caught:
        LocalSampler(lm).generate(["abcd", "cab"], SamplingParams(max_tokens=9, temperature=0))
    read = healthy[0].prompt_tokens + 3
    assert list(caught.value.errors) == [0]
    assert f"not finite (NaN or infinite) after {read} tokens" in str(caught.value)
    assert caught.value.completions[1] is not None
    assert caught.value.completions[1].tokens == healthy[1].tokens


@pytest.mark.parametrize("decoding", [None, BeamSearch(2), ContrastiveSearch(2), Speculation()])
def test_every_way_of_decoding_names_the_answer_that_failed(decoding: Decoding | None, broken: LanguageModel) -> None:
    sampler = LocalSampler(broken, decoding=decoding)
    with pytest.raises(GenerationError, match=r"^prompt 1, answer 0: .* 1 more failed; the other 4 are in"):
        sampler.generate(["abcd", "g", "cab"], SamplingParams(max_tokens=4, n=2))
    with pytest.raises(GenerationError, match=r"^prompt 0: the model's logits"):
        list(sampler.stream("g", SamplingParams(max_tokens=4)))


def test_a_bias_on_a_token_that_is_not_there_is_refused(make_lm: MakeLM) -> None:
    sampling = SamplingParams(logit_bias=((300, 1.0),))
    for decoding in (None, Speculation()):
        with pytest.raises(SamplerError, match="logit_bias names token 300, the model has tokens 0 to 299"):
            LocalSampler(make_lm(), decoding=decoding).generate(["a"], sampling)


def test_a_bias_may_be_a_mapping() -> None:
    assert SamplingParams(logit_bias={3: 1, 5: -2.5}).logit_bias == ((3, 1.0), (5, -2.5))  # type: ignore[arg-type]
