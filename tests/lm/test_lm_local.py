"""`LocalSampler`: text, stop strings, streaming and scores, independent of batch size and companions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch

from alignlab.core.errors import SamplerError
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import Completion, Sampler, SamplingParams

MakeLM = Callable[..., LanguageModel]
MakeReciter = Callable[[Sequence[int]], LanguageModel]
GREEDY = SamplingParams(max_tokens=12, temperature=0)
WORDS = ["a", "abcd", "hag had", "cab", "dead beef", "b" * 30, "abcdefgh abcdefgh abcdefgh", "é", "face a", "deed"]
CONTROL = 1  # a control token: part of the tokens, not of the text


def recited(lm: LanguageModel, **how: object) -> Completion:
    return LocalSampler(lm).generate(["a"], SamplingParams(**({"max_tokens": 60, "temperature": 0} | how)))[0]  # type: ignore[arg-type]


def streamed(lm: LanguageModel, prompt: str = "a", **how: object) -> list[str]:
    params = SamplingParams(**({"max_tokens": 60, "temperature": 0} | how))  # type: ignore[arg-type]
    return list(LocalSampler(lm).stream(prompt, params))


# Completions ----------------------------------------------------------------------------------------------------------


def test_it_is_a_sampler_and_describes_its_completions(make_lm: MakeLM, byte_tokenizer: Tokenizer) -> None:
    lm = make_lm()
    sampler = LocalSampler(lm)
    assert isinstance(sampler, Sampler)
    for prompt, done in zip(WORDS, sampler.generate(WORDS, GREEDY), strict=True):
        assert done.prompt_tokens == len(byte_tokenizer.encode(prompt))
        assert done.text == byte_tokenizer.decode(done.tokens)
        assert len(done.logprobs) == len(done.tokens) <= 12
        assert all(x <= 0 for x in done.logprobs)
        assert done.finish_reason == ("stop" if done.tokens[-1] == 0 else "length")
    assert sampler.generate([], GREEDY) == []
    assert sampler.logprobs([], []) == []


def test_an_end_token_ends_without_text(make_reciter: MakeReciter, byte_tokenizer: Tokenizer) -> None:
    script = [*byte_tokenizer.encode("cab"), CONTROL, *byte_tokenizer.encode("bed")]
    done = recited(make_reciter([*script, 0, *script]))
    assert (done.text, done.tokens, done.finish_reason) == ("cabbed", (*script, 0), "stop")
    cut = recited(make_reciter([*script, 0]), max_tokens=3)
    assert (cut.text, cut.finish_reason) == ("cab", "length")
    full = recited(make_reciter(script), max_tokens=500)  # the context ends first
    assert full.finish_reason == "length"
    assert full.tokens == tuple(script)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_depends_on_batch_size_or_order(temperature: float, make_lm: MakeLM) -> None:
    """Every prompt three times, so that repeats stand in different batches of different companions."""
    lm, prompts = make_lm(), WORDS * 3
    sampling = SamplingParams(max_tokens=8, temperature=temperature, seed=4)
    whole = LocalSampler(lm, batch_size=64).generate(prompts, sampling)
    for size in (1, 4, 7):
        got = LocalSampler(lm, batch_size=size).generate(prompts, sampling)
        assert [c.tokens for c in got] == [c.tokens for c in whole]
    backwards = LocalSampler(lm, batch_size=4).generate(WORDS[::-1], sampling)[::-1]
    assert [c.tokens for c in backwards] == [c.tokens for c in whole[: len(WORDS)]]
    for i in range(len(WORDS)):
        texts = {whole[i + k * len(WORDS)].tokens for k in range(3)}
        assert len(texts) == (1 if temperature == 0 else 3)


def test_log_probs_of_generation_equal_scoring(make_lm: MakeLM) -> None:
    sampler = LocalSampler(make_lm())
    found = 0
    for prompt in WORDS:
        done = sampler.generate([prompt], SamplingParams(max_tokens=3))[0]
        if sampler.lm.tokenizer.encode(done.text) == list(done.tokens):
            found += 1
            assert torch.allclose(sampler.logprobs([prompt], [done.text])[0], torch.tensor(done.logprobs), atol=1e-4)
    assert found


def test_impossible_requests_are_refused(make_lm: MakeLM) -> None:
    sampler = LocalSampler(make_lm(n_ctx=16), batch_size=2)
    with pytest.raises(SamplerError, match="prompt 3 is empty"):
        sampler.generate(["aaa", "bbb", "c", ""], GREEDY)
    with pytest.raises(SamplerError, match="prompt 1 has 16 tokens, the model reads at most 15"):
        sampler.generate(["a", "a" * 16, "b", "c"], GREEDY)
    with pytest.raises(SamplerError, match="prompt 0 is empty"):
        list(sampler.stream("", GREEDY))
    with pytest.raises(SamplerError, match="prompt 0 has 20 tokens"):
        list(sampler.stream("a" * 20, GREEDY))
    with pytest.raises(SamplerError, match="batch_size is 0"):
        LocalSampler(sampler.lm, batch_size=0)
    with pytest.raises(SamplerError, match="2 prompts and 1 completions"):
        sampler.logprobs(["a", "b"], ["c"])
    with pytest.raises(SamplerError, match=r"prompt 1 and its completion have 9 \+ 8 tokens.*at most 16"):
        sampler.logprobs(["a", "a" * 9], ["c", "c" * 8])
    with pytest.raises(SamplerError, match=r"prompt 0 and its completion have 0 \+ 1 tokens"):
        sampler.logprobs([""], ["c"])
    assert len(sampler.logprobs(["a" * 8], ["c" * 8])[0]) == 8


# Stop strings and streaming -------------------------------------------------------------------------------------------

STOPS = [
    ("abcabcd e", ("cd",), "abcab"),  # the pair is inside the one token "abcd"
    ("abcd efgh", ("d e",), "abc"),  # across three tokens
    ("a b c d", ("x", "c ", "b"), "a "),  # the earliest in the text, not the first in the list
    ("abcdabcd", ("cd", "b"), "a"),  # two of them in one token
    ("aaaab", ("aab",), "aa"),  # a beginning that repeats itself
    ("aaaac", ("aab",), "aaaac"),
    ("face", ("face",), ""),
    ("bé déjà", ("jà",), "bé dé"),  # the stop ends inside a character's bytes
    ("b😀d e", ("😀d",), "b"),
    ("b😀", ("b😁",), "b😀"),
]


@pytest.mark.parametrize(("text", "stop", "expected"), STOPS)
def test_stop_strings_cut_text_and_stream(
    text: str, stop: tuple[str, ...], expected: str, make_reciter: MakeReciter, byte_tokenizer: Tokenizer
) -> None:
    ids = byte_tokenizer.encode(text)
    lm = make_reciter([*ids, 0, *ids])
    done = recited(lm, stop=stop)
    assert (done.text, done.finish_reason) == (expected, "stop")
    pieces = streamed(lm, stop=stop)
    assert "".join(pieces) == expected
    assert all(pieces)
    if expected != text:  # nothing is decoded after the token that completes the stop string
        shorter = byte_tokenizer.decode(done.tokens[:-1])
        assert len(done.tokens) <= len(ids)
        assert not any(s in shorter for s in stop)


def test_a_stop_string_far_into_a_text_is_found(make_reciter: MakeReciter, byte_tokenizer: Tokenizer) -> None:
    text = "é" * 40 + "😀abc" + "é" * 20
    done = recited(make_reciter(byte_tokenizer.encode(text)), stop=("é😀ab",), max_tokens=500)
    assert done.text == "é" * 39


def test_one_rows_stop_does_not_touch_its_companions(make_lm: MakeLM, byte_level_tokenizer: Tokenizer) -> None:
    sampler = LocalSampler(make_lm(tokenizer=byte_level_tokenizer, vocab_size=258))
    free = sampler.generate(WORDS, GREEDY)
    stop = next(a + b for a, b in pairwise(free[0].text[2:]) if a.isascii() and b.isascii())
    cut = sampler.generate(WORDS, SamplingParams(max_tokens=12, temperature=0, stop=(stop,)))
    assert cut[0].text == free[0].text[: free[0].text.index(stop)]
    assert cut[0].finish_reason == "stop"
    for a, b in zip(free, cut, strict=True):
        assert b.text == a.text.split(stop)[0]
        assert b.tokens == a.tokens[: len(b.tokens)]


@pytest.mark.parametrize("text", ["abcd efgh", "héllo wörld", "a😀b", "日本語 abc", "ends in 😀"])
def test_pieces_join_to_the_text_and_no_character_is_split(
    text: str, make_reciter: MakeReciter, byte_tokenizer: Tokenizer
) -> None:
    lm = make_reciter([*byte_tokenizer.encode(text), 0])
    pieces = streamed(lm)
    assert "".join(pieces) == text == recited(lm).text
    assert "�" not in "".join(pieces)
    assert len(pieces) >= 3


def test_what_may_become_a_stop_string_is_held_back(make_reciter: MakeReciter, byte_tokenizer: Tokenizer) -> None:
    lm = make_reciter([*byte_tokenizer.encode("efg"), *byte_tokenizer.encode("hfgfgh"), 0])
    assert streamed(lm, stop=("fgfgg",)) == ["e", "fgh", "fgfgh"]
    assert streamed(lm) == list("efghfgfgh")
    assert streamed(lm, stop=("fgfgg",), max_tokens=3) == ["e", "fg"]  # the end of the budget releases it


def test_an_unfinished_character_is_shown_at_the_end(make_reciter: MakeReciter, byte_tokenizer: Tokenizer) -> None:
    emoji = byte_tokenizer.encode("😀")
    assert len(emoji) == 4
    for n in range(1, 4):
        lm = make_reciter([*byte_tokenizer.encode("a"), *emoji[:n], 0])
        assert "".join(streamed(lm)) == recited(lm).text == "a" + "�" * n


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_random_streams_join_to_what_generate_returns(
    seed: int, make_lm: MakeLM, byte_level_tokenizer: Tokenizer
) -> None:
    """Random bytes, half of them no characters, a control token among them, and short stop strings."""
    sampler = LocalSampler(make_lm(seed=seed, tokenizer=byte_level_tokenizer, vocab_size=258))
    stopped = 0
    for prompt in WORDS:
        stops = ("a", "gh", "é", "�x", "b�", "0", "1", "2", "3", "4")
        sampling = SamplingParams(max_tokens=40, seed=seed, stop=stops)
        done = sampler.generate([prompt], sampling)[0]
        assert "".join(sampler.stream(prompt, sampling)) == done.text
        assert not any(stop in done.text for stop in stops)
        stopped += done.finish_reason == "stop"
    assert stopped > 0


def test_a_stream_may_be_left_early(make_lm: MakeLM) -> None:
    stream = LocalSampler(make_lm()).stream("abcd", SamplingParams(max_tokens=30, temperature=0))
    next(stream)
    stream.close()
    assert torch.is_grad_enabled()


# Scores ---------------------------------------------------------------------------------------------------------------


def naive_scores(lm: LanguageModel, prompt: str, completion: str) -> torch.Tensor:
    """One token at a time, each with a pass of its own."""
    before, found = lm.tokenizer.encode_prompt(prompt), []
    with torch.no_grad():
        for token in lm.tokenizer.encode(completion):
            logits = lm.model(torch.tensor([before]))[0, -1].double()
            found.append(logits[token] - logits.logsumexp(-1))
            before = [*before, token]
    return torch.tensor(found, dtype=torch.float64)


PREFIX = "abcdefgh abcd hgfedcba "
CASES = [
    [("a", "bcd"), ("hag", ""), ("abcd efgh", "é and so"), ("b" * 20, "a"), ("cab", "cab")],  # nothing shared
    [(PREFIX + "a", "bc"), (PREFIX + "b", "bc"), (PREFIX + "b", ""), (PREFIX + "bad", "gh gh gh"), (PREFIX, "ab")],
    [("face", "a"), ("face", "ab"), ("face", "abcd"), ("face", "face")],  # one prompt, several answers
    [("face", "same answer"), ("face", "same answer")],
    [("a", ""), ("b", "")],
    [("hag", "abcd")],
]


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("batch_size", [2, 32])
def test_scores_equal_one_token_at_a_time(family: str, case: int, batch_size: int, make_lm: MakeLM) -> None:
    lm = make_lm(family)
    prompts, completions = [p for p, _ in CASES[case]], [c for _, c in CASES[case]]
    scores = LocalSampler(lm, batch_size=batch_size).logprobs(prompts, completions)
    assert len(scores) == len(prompts)
    for score, prompt, completion in zip(scores, prompts, completions, strict=True):
        expected = naive_scores(lm, prompt, completion)
        assert score.dtype == torch.float32
        assert score.shape == expected.shape
        assert not score.requires_grad
        assert torch.allclose(score.double(), expected, atol=1e-4)


def test_scores_in_bf16_are_near_those_in_float32(make_lm: MakeLM) -> None:
    """Two layers of bf16 with logits of deviation 1: an error of a few hundredths, 0.15 at most."""
    prompts, completions = [PREFIX + w for w in WORDS], WORDS[::-1]
    wide, narrow = make_lm(), make_lm()
    narrow.model.to(torch.bfloat16)
    exact = LocalSampler(wide).logprobs(prompts, completions)
    for rounded, score in zip(LocalSampler(narrow).logprobs(prompts, completions), exact, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - score).abs().max() < 0.15
    assert len(LocalSampler(narrow).generate(prompts[:3], GREEDY)) == 3


def test_scores_are_a_distribution(make_reciter: MakeReciter, make_lm: MakeLM) -> None:
    sampler = LocalSampler(make_lm())
    single = [sampler.lm.tokenizer.decode([i]) for i in range(258, 267)]
    scores = torch.cat(sampler.logprobs(["hag"] * 9, single))
    assert 0 < float(scores.exp().sum()) < 1
    certain = LocalSampler(make_reciter(make_lm().tokenizer.encode("deed")))
    assert certain.logprobs(["a"], ["deed"])[0].abs().max() < 1e-3
