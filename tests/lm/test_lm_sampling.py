"""Filters equal transformers' processors; draws have the wanted distribution and never land on nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from alignlab.core.errors import ConfigError
from alignlab.lm.sampling import (
    BLOCK,
    add_bias,
    argmax,
    choose,
    draw,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalise_repetition,
)
from alignlab.lm.types import SamplingParams

SIZES = [5, 255, 256, 257, 1000, 3001]
IDS = torch.zeros(4, 1, dtype=torch.long)


def logits_of(vocab: int, *, tied: bool = False, seed: int = 0) -> Tensor:
    """Four rows from nearly flat to sharp; `tied` rounds them so that many are equal."""
    x = torch.randn(4, vocab, generator=torch.Generator().manual_seed(seed + vocab))
    x = x * torch.tensor([0.1, 1.0, 3.0, 8.0])[:, None]
    return (2 * x).round() / 2 if tied else x


def kept(x: Tensor) -> Tensor:
    return ~x.isneginf()


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("k", [1, 2, 40, 256, 5000])
def test_top_k_equals_transformers(vocab: int, tied: bool, k: int) -> None:
    x = logits_of(vocab, tied=tied)
    assert torch.equal(keep_top_k(x, k), TopKLogitsWarper(k)(IDS, x))


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_equals_transformers(vocab: int, p: float) -> None:
    x = logits_of(vocab).double()  # transformers sums from the other end: in float32 the last token may differ
    assert torch.equal(keep_top_p(x, p), TopPLogitsWarper(p)(IDS, x))


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_top_p_keeps_all_ties_where_transformers_keeps_some(vocab: int, p: float) -> None:
    x = logits_of(vocab, tied=True)
    ours, theirs = keep_top_p(x, p), TopPLogitsWarper(p)(IDS, x)
    assert (kept(ours) >= kept(theirs)).all()
    least = theirs.masked_fill(~kept(theirs), float("inf")).amin(-1, keepdim=True)
    assert torch.equal(kept(ours), x >= least)
    assert torch.equal(ours[kept(ours)], x[kept(ours)])


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_top_p_is_the_smallest_set_that_reaches_p(p: float) -> None:
    x = logits_of(3001)
    probabilities = x.double().softmax(-1)
    for row, mask in zip(probabilities, kept(keep_top_p(x, p)), strict=True):
        assert row[mask].sum() >= p - 1e-6
        assert row[mask].sum() - row[mask].min() < p + 1e-6
        assert not (~mask).any() or row[mask].min() >= row[~mask].max()


def test_top_p_of_a_row_does_not_depend_on_the_others() -> None:
    """One flat row makes the search look at the whole vocabulary; the tied row keeps the same tokens."""
    tied, flat = logits_of(3001, tied=True)[3:], torch.zeros(1, 3001)
    assert torch.equal(keep_top_p(torch.cat([tied, flat]), 0.9)[:1], keep_top_p(tied, 0.9))


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("p", [1e-4, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("tied", [False, True])
def test_min_p_equals_transformers(vocab: int, p: float, tied: bool) -> None:
    x = logits_of(vocab, tied=tied)
    assert torch.equal(keep_min_p(x, p), MinPLogitsWarper(p)(IDS, x))


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("tied", [False, True])
def test_typical_equals_transformers(vocab: int, p: float, tied: bool) -> None:
    x = logits_of(vocab, tied=tied).double()
    assert torch.equal(keep_typical(x, p), TypicalLogitsWarper(p)(IDS, x))
    cut = keep_top_k(x, 4)  # what is excluded already stays so, and counts nothing
    assert torch.equal(keep_typical(cut, p), TypicalLogitsWarper(p)(IDS, cut))


def test_typical_by_hand() -> None:
    """p = (.7, .2, .1): H = .802; surprises .357, 1.609, 2.303 lie .445, .808, 1.5 from it. A flat row keeps all."""
    x = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]).log()
    assert kept(keep_typical(x, 0.5)).tolist() == [[True, False, False], [True, True, True]]
    assert kept(keep_typical(x, 0.75)).tolist()[0] == [True, True, False]
    # The likeliest token may be the one that goes: H = 1.471 here, and .3 is 0.27 away, the four others .27 and less.
    odd = torch.tensor([[0.3, 0.25, 0.25, 0.2]]).log()
    assert not kept(keep_typical(odd, 0.4))[0, 0]


def test_bias_equals_transformers() -> None:
    x, bias = logits_of(300), ((7, 2.5), (0, -100.0), (299, 1e-3))
    expected = SequenceBiasLogitsProcessor([[[token], nats] for token, nats in bias])(IDS, x)
    assert torch.equal(add_bias(x, bias), expected)
    assert torch.allclose(add_bias(x, ((7, 1.0), (7, 1.5))), add_bias(x, ((7, 2.5),)))


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_penalty_equals_transformers(vocab: int, penalty: float) -> None:
    x = logits_of(vocab)
    past = torch.randint(0, vocab, (4, 30), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(4, vocab, dtype=torch.int32)
    for row, tokens in zip(seen, past, strict=True):
        for token in tokens.tolist():
            row[token] += 1
    expected = RepetitionPenaltyLogitsProcessor(penalty)(past, x.clone())
    assert torch.equal(penalise_repetition(x, seen, penalty), expected)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("vocab", [257, 3001])
def test_all_filters_together_equal_transformers_in_its_order(temperature: float, vocab: int) -> None:
    x = logits_of(vocab)
    expected = x
    for warper in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(60),
        TopPLogitsWarper(0.8),
        MinPLogitsWarper(0.1),
    ):
        expected = warper(IDS, expected)
    got = filter_logits(x, SamplingParams(temperature=temperature, top_k=60, top_p=0.8, min_p=0.1))
    assert torch.equal(got, expected)


def test_filters_at_their_defaults_do_nothing() -> None:
    x = logits_of(300)
    assert torch.equal(filter_logits(x, SamplingParams()), x)


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("tied", [False, True])
def test_argmax_equals_torchs(vocab: int, tied: bool) -> None:
    x = logits_of(vocab, tied=tied)
    if tied:
        x = x.clamp(max=1.0)
    assert torch.equal(argmax(x), x.argmax(-1))
    for last in (0, vocab - 1, min(BLOCK, vocab - 1)):
        x[:, last] = 50.0
        assert (argmax(x) == last).all()
        x[:, last] = -50.0
    assert torch.equal(argmax(-100 - x.abs()), (-100 - x.abs()).argmax(-1))


@pytest.mark.parametrize("vocab", [5, 256, 700])
def test_draws_follow_the_distribution(vocab: int) -> None:
    """Chi-square over 100 000 seeded draws; a correct sampler fails one of the three cases with probability 3e-6."""
    n = 100_000
    x = logits_of(vocab)[1]
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    drawn = torch.cat([draw(x.expand(len(u), -1), u) for u in uniform.split(2000)])
    expected = n * x.double().softmax(-1)
    statistic = float(((drawn.bincount(minlength=vocab) - expected) ** 2 / expected).sum())
    assert chi2.sf(statistic, vocab - 1) > 1e-6
    wrong = n * (1.1 * x.double()).softmax(-1)  # the test has power: a temperature off by 10 % is noticed
    assert chi2.sf(float(((drawn.bincount(minlength=vocab) - wrong) ** 2 / wrong).sum()), vocab - 1) < 1e-6


@pytest.mark.parametrize("vocab", [5, 256, 257, 1000])
def test_an_even_grid_of_numbers_gives_exact_shares(vocab: int) -> None:
    n = 20_000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for x in logits_of(vocab):
        drawn = torch.cat([draw(x.expand(len(u), -1), u) for u in grid.float().split(2000)])
        share = drawn.bincount(minlength=vocab) - n * x.double().softmax(-1)
        assert share.abs().max() < 1.2  # at most one point of the grid, and rounding, at either end of the interval
        assert (drawn.diff() >= 0).all()


@pytest.mark.parametrize("vocab", [3, 256, 257, 1000])
def test_the_edges_of_the_unit_interval_are_real_tokens(vocab: int) -> None:
    edges = torch.tensor([0.0, 2**-24, 0.5, 1 - 2**-24, 1.0])
    generator = torch.Generator().manual_seed(vocab)
    for _ in range(200):
        x = torch.randn(len(edges), vocab, generator=generator)  # no token so rare that float32 would lose it
        x[torch.rand(x.shape, generator=generator) < 0.95] = float("-inf")
        x[:, int(torch.randint(0, vocab, (), generator=generator))] = 0.3
        chosen = draw(x, edges)
        assert kept(x.gather(1, chosen[:, None])).all()
        assert chosen[0] == kept(x[0]).nonzero()[0]
        assert chosen[4] == kept(x[4]).nonzero()[-1]


@pytest.mark.parametrize("vocab", [256, 600])
def test_a_single_possible_token_is_always_drawn(vocab: int) -> None:
    for only in (0, 100, 255, vocab - 1):
        x = torch.full((3, vocab), float("-inf"))
        x[:, only] = -7.0
        assert (draw(x, torch.tensor([0.0, 0.3, 1 - 2**-24])) == only).all()


def test_a_draw_depends_on_its_own_row_only() -> None:
    x = logits_of(1000)
    uniform = torch.tensor([0.1, 0.99, 0.5, 0.7])
    together = draw(x, uniform)
    assert together.tolist() == [int(draw(x[i : i + 1], uniform[i : i + 1])) for i in range(4)]


def test_choose_penalises_filters_and_draws() -> None:
    x = torch.tensor([[2.0, 1.9, -1.0]])
    seen = torch.tensor([[1, 0, 0]])
    uniform = torch.tensor([0.999])
    assert choose(x, SamplingParams(temperature=0), uniform, None).tolist() == [0]
    assert choose(x, SamplingParams(temperature=0, repetition_penalty=1.5), uniform, seen).tolist() == [1]
    assert choose(x, SamplingParams(), uniform, None).tolist() == [2]
    assert choose(x, SamplingParams(top_k=2), uniform, None).tolist() == [1]
    assert choose(x, SamplingParams(temperature=0.01), torch.tensor([0.99]), None).tolist() == [0]
    assert choose(x, SamplingParams(temperature=0, logit_bias=((2, 3.5),)), uniform, None).tolist() == [2]
    # The bias comes before the penalty: (2.0 + 1.0) / 1.5 is above 1.9.
    biased = SamplingParams(temperature=0, logit_bias=((0, 1.0),), repetition_penalty=1.5)
    assert choose(x, biased, uniform, seen).tolist() == [0]
    # A constraint comes before the filters: the top two are those of what is allowed.
    allowed = torch.tensor([[False, True, True]])
    assert choose(x, SamplingParams(top_k=2), torch.tensor([0.0]), None, allowed).tolist() == [1]
    assert choose(x, SamplingParams(top_k=2), uniform, None, allowed).tolist() == [2]
    assert choose(x, SamplingParams(temperature=0), uniform, None, torch.tensor([[False, False, True]])).tolist() == [2]


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_gives_some_token_of_the_vocabulary(vocab: int, broken: float) -> None:
    """Whoever asks finds out by the log-probability; no index may leave the vocabulary before."""
    one, every = logits_of(vocab), torch.full((4, vocab), broken)
    one[:, vocab // 2] = broken
    for x in (one, every):
        for sampling in (SamplingParams(), SamplingParams(temperature=0), SamplingParams(top_p=0.9, typical_p=0.9)):
            chosen = choose(x, sampling, torch.tensor([0.0, 0.5, 0.9, 1.0]), None)
            assert ((chosen >= 0) & (chosen < vocab)).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 1.0},
        {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"stop": ("a", "")}, {"typical_p": 0.0}, {"n": 0},
        {"logit_bias": ((-1, 1.0),)}, {"logit_bias": ((3, float("inf")),)}, {"logit_bias": (("a", 1.0),)},
    ],
)  # fmt: skip
def test_impossible_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(fields))} is .* allowed: "):
        SamplingParams(**fields)
