"""Speculation gives the target's distribution exactly (enumerated), and plain decoding's tokens where it promises."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tokenizers
import torch
from scipy.stats import chi2
from torch import Tensor

from alignlab.core.errors import ConfigError, SamplerError
from alignlab.lm.constraint_types import Constraint
from alignlab.lm.generate import row_seeds
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.sampling import filter_logits
from alignlab.lm.speculative import Speculation, accept, decode_speculatively, look_up
from alignlab.lm.tokenizer import SpecialTokens, Tokenizer
from alignlab.lm.types import GenerationError, SamplingParams

MakeModel = Callable[..., GPTModel]
MakeLM = Callable[..., LanguageModel]
WORDS = ["abcd", "hag had", "abab abab ab", "cab", "abcdefgh abcdefgh abcdefgh"]
FALSE_ALARM = 1e-6


def letters(count: int) -> Tokenizer:
    """One token a letter, and no end: every continuation of a length can be enumerated."""
    vocab = {chr(ord("a") + i): i for i in range(count)}
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [])), SpecialTokens())


def p_value(found: Sequence[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Chi-square of counts against probabilities; cells that expect fewer than five are one."""
    n, counts = len(found), Counter(found)
    assert set(counts) <= {cell for cell, p in expected.items() if p > 0}
    rare = [cell for cell, p in expected.items() if n * p < 5]
    pairs = [(counts[cell], n * p) for cell, p in expected.items() if n * p >= 5]
    if rare and (pooled := sum(n * expected[cell] for cell in rare)) > 1:
        pairs.append((sum(counts[cell] for cell in rare), pooled))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in pairs)
    return float(chi2.sf(statistic, len(pairs) - 1))


# The rule -------------------------------------------------------------------------------------------------------------


def pair_of(vocab: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two distributions at each of three positions, fairly far apart, each with a token that it never draws."""
    x = torch.randn(2, 3, vocab, generator=torch.Generator().manual_seed(seed))
    x[0, :, 0] = x[1, :, 1] = -torch.inf
    return x[0].softmax(-1), x[1, :2].softmax(-1)


def accepted(target: Tensor, drafted: Tensor, n: int) -> list[tuple[int, ...]]:
    """What `n` rounds of two drafted tokens give, filled up by the target itself to three."""
    generator = torch.Generator().manual_seed(0)
    drafts = torch.stack([torch.multinomial(q, n, replacement=True, generator=generator) for q in drafted], 1)
    fill = torch.stack([torch.multinomial(p, n, replacement=True, generator=generator) for p in target], 1)
    uniform = torch.rand(n, 4, generator=generator)
    found = []
    for tokens, rest, u in zip(drafts.tolist(), fill.tolist(), uniform, strict=True):
        kept = accept(target, drafted, tokens, u)
        found.append((*kept, *rest[len(kept) :]))
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.no_cover
def test_accepted_tokens_follow_the_target_whatever_drafts(seed: int) -> None:
    """All 125 triples of a vocabulary of five, 4,000 rounds; false alarms in 1e-6 of correct programs a case."""
    target, drafted = pair_of(5, seed)
    cells = itertools.product(range(5), repeat=3)
    expected = {cell: float(target[0, cell[0]] * target[1, cell[1]] * target[2, cell[2]]) for cell in cells}
    found = accepted(target, drafted, 4000)
    assert p_value(found, expected) > FALSE_ALARM
    # The test has power: a target that is 30 % sharper would be noticed.
    sharp = target**1.3 / (target**1.3).sum(-1, keepdim=True)
    cells = itertools.product(range(5), repeat=3)
    wrong = {cell: float(sharp[0, cell[0]] * sharp[1, cell[1]] * sharp[2, cell[2]]) for cell in cells}
    assert p_value(found, wrong) < FALSE_ALARM


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_token_has_the_targets_shares_on_an_even_grid(seed: int) -> None:
    """No chance: over a grid of both uniform numbers, sum over drafted x of q(x) · share of y is p(y)."""
    target, drafted = pair_of(5, seed)
    n, shares = 400, torch.zeros(5)
    grid = (torch.arange(n) + 0.5) / n
    for x, q in enumerate(drafted[0].tolist()):
        if q == 0:
            continue
        first = [accept(target[:2], drafted[:1], [x], torch.stack([u, u, torch.tensor(0.5)])) for u in grid]
        stands = sum(len(tokens) == 2 for tokens in first) / n
        shares[x] += q * stands
        if stands < 1:
            fallen = torch.tensor(1.0)
            for u in grid:
                y = accept(target[:2], drafted[:1], [x], torch.stack([fallen, fallen, u]))[0]
                shares[y] += q * (1 - stands) / n
    assert (shares - target[0]).abs().max() < 0.006  # a grid of 400 misses by 1/400 at most, in each of the two


def test_a_drafter_equal_to_the_target_is_always_accepted() -> None:
    target, _ = pair_of(7, 3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        tokens = [int(torch.multinomial(p, 1, generator=generator)) for p in target[:2]]
        assert accept(target, target[:2], tokens, torch.rand(4, generator=generator))[:2] == tokens


def test_acceptance_by_hand() -> None:
    """p = (0.2, 0.8), q = (0.5, 0.5): token 0 stands where u < 0.4; where it falls only token 1 is left."""
    p, q = torch.tensor([[0.2, 0.8], [1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    assert accept(p, q, [0], torch.tensor([0.39, 0.0, 0.0])) == [0, 0]
    assert accept(p, q, [0], torch.tensor([0.41, 0.0, 0.0])) == [1]
    assert accept(p, q, [1], torch.tensor([0.99, 0.0, 0.9])) == [1, 0]


# The whole, enumerated ------------------------------------------------------------------------------------------------


@torch.no_grad()
def enumerated(model: GPTModel, prompt: list[int], sampling: SamplingParams) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of three tokens, from the model without a cache."""
    vocab = model.config.vocab_size
    every = list(itertools.product(range(vocab), repeat=3))
    rows = torch.tensor([[*prompt, *tokens] for tokens in every])
    logits = model(rows)[:, len(prompt) - 1 : -1]
    p = filter_logits(logits.flatten(0, 1), sampling).softmax(-1).view(logits.shape)
    return dict(zip(every, p.gather(2, rows[:, len(prompt) :, None]).prod(1).squeeze(1).tolist(), strict=True))


def enumerable(make_model: MakeModel, draft_seed: int | None) -> tuple[LanguageModel, Speculation]:
    tokenizer = letters(4)
    lm = LanguageModel(make_model(vocab_size=4, n_layers=1), tokenizer, "target", "test")
    if draft_seed is None:
        return lm, Speculation(tokens=2)
    return lm, Speculation(LanguageModel(make_model("gpt2", draft_seed, vocab_size=4), tokenizer, "d", "test"), 2)


def check_distribution(make_model: MakeModel, draft_seed: int | None, n: int, **filters: Any) -> None:
    lm, how = enumerable(make_model, draft_seed)
    sampling = SamplingParams(max_tokens=3, **filters)
    prompts = [[0, 1, 0, 1, 2]] * n
    with torch.no_grad():
        rows = {
            row.index: row
            for moved in decode_speculatively(lm, prompts, sampling, how, seeds=row_seeds(prompts, 5))
            for row in moved
        }
    found = [tuple(rows[i].tokens) for i in range(n)]
    expected = enumerated(lm.model, prompts[0], sampling)
    assert p_value(found, expected) > FALSE_ALARM
    assert 0.2 < how.tally.accepted / how.tally.drafted < 0.9  # drafts both stand and fall
    sharp = enumerated(lm.model, prompts[0], SamplingParams(temperature=0.4 * sampling.temperature))
    assert p_value(found, sharp) < FALSE_ALARM


@pytest.mark.parametrize(
    ("draft_seed", "filters"),
    [(1, {"temperature": 2.0}), pytest.param(None, {"temperature": 2.0}, marks=pytest.mark.slow)],
)
@pytest.mark.no_cover
def test_sequences_follow_the_target(draft_seed: int | None, filters: dict[str, Any], make_model: MakeModel) -> None:
    """All 64 continuations of three tokens, 600 samples; false alarms in 1e-6 of correct programs a case."""
    check_distribution(make_model, draft_seed, 600, **filters)


@pytest.mark.slow
@pytest.mark.parametrize("draft_seed", [2, None])
@pytest.mark.parametrize("filters", [{}, {"temperature": 2.0}, {"temperature": 1.7, "top_k": 3}])
def test_many_sequences_follow_the_target(
    draft_seed: int | None, filters: dict[str, Any], make_model: MakeModel
) -> None:
    """As above with 3,000 samples and filters, which apply to draft and target alike; 1e-6 a case again."""
    check_distribution(make_model, draft_seed, 3000, **filters)


# The same tokens as without -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
@pytest.mark.parametrize("drafter", ["lookup", "other", "itself"])
def test_greedy_equals_plain_greedy(family: str, drafter: str, make_lm: MakeLM) -> None:
    lm = make_lm(family)
    drafts = {"lookup": None, "other": make_lm("llama", seed=3, n_layers=1), "itself": lm}
    how = Speculation(drafts[drafter], tokens=3)
    sampling = SamplingParams(max_tokens=20, temperature=0, n=2, repetition_penalty=1.1)
    plain = LocalSampler(lm).generate(WORDS, sampling)
    ours = LocalSampler(lm, decoding=how).generate(WORDS, sampling)
    assert [c.tokens for c in ours] == [c.tokens for c in plain]
    assert [c.finish_reason for c in ours] == [c.finish_reason for c in plain]
    for one, other in zip(ours, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    assert how.tally.written == sum(len(c.tokens) for c in ours)
    if drafter == "itself":
        assert how.tally.accepted == how.tally.drafted
        assert how.tally.passes < how.tally.written / 2


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8, "repetition_penalty": 1.2}, {"temperature": 0.2}])
def test_lookup_samples_the_same_tokens_as_plain_decoding(filters: dict[str, Any], make_lm: MakeLM) -> None:
    lm, how = make_lm(), Speculation(tokens=4, ngram=2)
    sampling = SamplingParams(max_tokens=25, seed=3, n=2, **filters)
    ours = LocalSampler(lm, decoding=how).generate(WORDS, sampling)
    assert [c.tokens for c in ours] == [c.tokens for c in LocalSampler(lm).generate(WORDS, sampling)]
    assert how.tally.drafted > 20


def test_a_recited_text_takes_few_passes(make_reciter: Callable[[Sequence[int]], LanguageModel]) -> None:
    """Lookup drafts what repeats: 40 tokens of a text with period four in far fewer passes."""
    script = [5, 6, 7, 8] * 10
    lm, how = make_reciter(script), Speculation(tokens=7)
    done = LocalSampler(lm, decoding=how).generate(["a"], SamplingParams(max_tokens=40, temperature=0))[0]
    assert list(done.tokens) == script
    assert how.tally.passes <= 12


def test_stops_and_streams_end_as_in_plain_decoding(make_lm: MakeLM) -> None:
    lm = make_lm()
    plain, ours = LocalSampler(lm), LocalSampler(lm, decoding=Speculation(lm))
    text = plain.generate(["abcd"], SamplingParams(max_tokens=30, temperature=0))[0].text
    stop = next(c for c in text if c != "�" and c.isprintable())
    sampling = SamplingParams(max_tokens=30, temperature=0, stop=(stop,))
    done, expected = ours.generate(["abcd"], sampling)[0], plain.generate(["abcd"], sampling)[0]
    assert (done.text, done.tokens, done.finish_reason) == (expected.text, expected.tokens, "stop")
    assert "".join(ours.stream("abcd", sampling)) == "".join(plain.stream("abcd", sampling))


@pytest.mark.parametrize("drafter", [None, 1])
def test_constraints_hold_and_greedy_is_the_same(drafter: int | None, make_lm: MakeLM) -> None:
    lm = make_lm()
    how = Speculation(None if drafter is None else make_lm(seed=drafter))
    items = {"enum": ["ab", "cd"]}
    constraint = Constraint.json_schema({"type": "array", "items": items, "minItems": 5, "maxItems": 6})
    sampling = SamplingParams(max_tokens=60, temperature=0, constraint=constraint)
    ours = LocalSampler(lm, decoding=how).generate(WORDS, sampling)
    assert [c.text for c in ours] == [c.text for c in LocalSampler(lm).generate(WORDS, sampling)]
    assert how.tally.drafted > 0


def test_the_context_of_target_and_draft_bound_what_is_drafted(make_lm: MakeLM) -> None:
    lm, small = make_lm(n_ctx=32), make_lm(seed=1, n_ctx=8)
    sampling = SamplingParams(max_tokens=40, temperature=0)
    ours = LocalSampler(lm, decoding=Speculation(small)).generate(["ab" * 3, "g" * 30], sampling)
    assert [c.tokens for c in ours] == [c.tokens for c in LocalSampler(lm).generate(["ab" * 3, "g" * 30], sampling)]
    assert [len(c.tokens) + c.prompt_tokens for c in ours] == [32, 32]


@pytest.mark.parametrize("rows", [290, 320])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vocabularies_padded_to_other_sizes_fit(rows: int, temperature: float, make_lm: MakeLM) -> None:
    how = Speculation(make_lm(seed=1, vocab_size=rows))
    done = LocalSampler(make_lm(), decoding=how).generate(WORDS, SamplingParams(max_tokens=9, temperature=temperature))
    assert [len(c.tokens) for c in done] == [9] * len(WORDS)


# Lookup ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ngram", "count", "expected"),
    [
        ([1, 2, 3, 9, 1, 2], 3, 2, [3, 9]),  # the ending 1 2 stands at the start
        ([1, 2, 7, 5, 2, 8, 1, 2], 2, 1, [7]),  # a longer ending counts more than a later one
        ([2, 8, 2, 9, 2], 1, 3, [9, 2]),  # of equal ones the latest
        ([4, 4, 4], 2, 5, [4]),
        ([1, 2, 3], 3, 4, []),
        ([1], 3, 4, []),
        ([1, 2, 1], 3, 0, []),
    ],
)
def test_lookup_by_hand(text: list[int], ngram: int, count: int, expected: list[int]) -> None:
    assert look_up(text, ngram, count) == expected


# Bad input ------------------------------------------------------------------------------------------------------------


def test_a_draft_with_another_tokenizer_is_refused(make_lm: MakeLM, byte_level_tokenizer: Tokenizer) -> None:
    other = make_lm(tokenizer=byte_level_tokenizer)
    with pytest.raises(SamplerError, match=r"cannot draft for tiny: .* entries of their vocabularies differ"):
        LocalSampler(make_lm(), decoding=Speculation(other))


def test_the_same_vocabulary_in_another_object_is_accepted(make_lm: MakeLM, byte_tokenizer: Tokenizer) -> None:
    twin = Tokenizer(tokenizers.Tokenizer.from_str(byte_tokenizer.core.to_str()), byte_tokenizer.special)
    greedy = SamplingParams(max_tokens=6, temperature=0)
    found = LocalSampler(make_lm(), decoding=Speculation(make_lm(tokenizer=twin))).generate(["ab"], greedy)
    assert found[0].tokens == LocalSampler(make_lm()).generate(["ab"], greedy)[0].tokens


def test_logits_that_are_not_finite_fail_one_request(make_lm: MakeLM) -> None:
    lm, draft = make_lm(), make_lm(seed=1)
    with torch.no_grad():
        lm.model.embed.weight[lm.tokenizer.encode("g")[0]] = float("nan")
    for how in (Speculation(), Speculation(draft)):
        with pytest.raises(GenerationError, match="prompt 1: the model's logits are not finite") as caught:
            LocalSampler(lm, decoding=how).generate(["ab", "g", "cab"], SamplingParams(max_tokens=5))
        assert [done is None for done in caught.value.completions] == [False, True, False]


def test_a_broken_draft_model_costs_speed_only(make_lm: MakeLM) -> None:
    lm, draft = make_lm(), make_lm(seed=1)
    with torch.no_grad():
        draft.model.embed.weight.fill_(float("nan"))
    sampling = SamplingParams(max_tokens=8, temperature=0)
    ours = LocalSampler(lm, decoding=Speculation(draft)).generate(WORDS, sampling)
    assert [c.tokens for c in ours] == [c.tokens for c in LocalSampler(lm).generate(WORDS, sampling)]
    assert len(LocalSampler(lm, decoding=Speculation(draft)).generate(WORDS, SamplingParams(max_tokens=8))) == 5


@pytest.mark.parametrize("fields", [{"tokens": 0}, {"ngram": 0}])
def test_impossible_speculation_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(fields))} is 0, allowed: "):
        Speculation(**fields)
