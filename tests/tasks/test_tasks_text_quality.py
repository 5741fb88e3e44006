"""Text quality: numbers by hand, other implementations, naive versions, and MAUVE where its area has a closed form."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.lstm import LSTMConfig, LSTMModel
from alignlab.tasks.mauve import divergence_curve, frontier_area, hidden_features, mauve, ngram_features, quantise
from alignlab.tasks.text_quality import (
    bits_per_byte,
    bleu,
    distinct_n,
    ngrams,
    perplexity,
    repetition_rate,
    self_bleu,
)


def sentences(n: int, seed: int, words: int = 6) -> list[list[str]]:
    rng = random.Random(seed)
    return [[rng.choice("abcdefgh"[:words]) for _ in range(rng.randint(5, 14))] for _ in range(n)]


def test_likelihoods() -> None:
    nats = [math.log(2), math.log(8)]
    assert perplexity(nats) == pytest.approx(4.0)
    assert bits_per_byte(nats, 8) == pytest.approx(0.5)
    for wrong in ([], [[1.0]], [math.nan]):
        with pytest.raises(DataError):
            perplexity(wrong)
    with pytest.raises(ConfigError, match="n_bytes is 0"):
        bits_per_byte(nats, 0)


def test_distinct_and_repetition_by_hand() -> None:
    texts = [["a", "b", "a", "b", "a"], ["c", "c", "c"]]
    assert distinct_n(texts, 1) == pytest.approx(3 / 8)
    assert distinct_n(texts, 2) == pytest.approx(3 / 6)  # ab, ba, cc
    assert repetition_rate(texts, 1) == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert repetition_rate(texts, 2) == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert repetition_rate(texts, 4) == 0.0  # the second is too short to count
    assert distinct_n("abc", 1) == 1.0
    assert ngrams("abcd", 3) == [("a", "b", "c"), ("b", "c", "d")]
    assert ngrams("ab", 3) == []
    for measure in (distinct_n, repetition_rate):
        with pytest.raises(DataError, match="no text has 9 units"):
            measure(texts, 9)
        with pytest.raises(ConfigError, match="n is 0"):
            measure(texts, 0)


def test_bleu_of_the_paper() -> None:
    """Papineni et al. 2002, section 2: example 2 has a clipped unigram precision of 2/7."""
    candidate = ["the", "the", "the", "the", "the", "the", "the"]
    references = [["the", "cat", "is", "on", "the", "mat"], ["there", "is", "a", "cat", "on", "the", "mat"]]
    assert bleu(candidate, references, max_n=1) == pytest.approx(2 / 7)
    assert bleu(candidate, references, smooth=False) == 0.0
    assert bleu(references[0], references) == pytest.approx(1.0)
    # Half as long as the reference, otherwise perfect: only the brevity penalty is left.
    assert bleu("abcde", ["abcdefghij"]) == pytest.approx(math.exp(1 - 10 / 5))
    assert bleu([], references) == 0.0
    with pytest.raises(DataError, match="no references"):
        bleu(candidate, [])


@pytest.mark.parametrize("smooth", [True, False])
def test_bleu_equals_nltk(smooth: bool) -> None:
    score = pytest.importorskip("nltk.translate.bleu_score", reason="nltk is not installed")
    smoothing = score.SmoothingFunction().method2 if smooth else score.SmoothingFunction().method0
    compared = 0
    for seed in range(40):
        candidate, *references = sentences(4, seed, words=2)
        if bleu(candidate, references, smooth=smooth) == 0:
            continue  # nltk warns, and takes the smallest number above zero
        compared += 1
        expected = score.sentence_bleu(references, candidate, smoothing_function=smoothing)
        assert bleu(candidate, references, smooth=smooth) == pytest.approx(expected, rel=1e-9), seed
    assert compared > 20


def test_bleu_equals_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    for seed in range(30):
        candidate, *references = (" ".join(words) for words in sentences(4, seed))
        own = bleu(candidate.split(), [r.split() for r in references])
        metric = sacrebleu.BLEU(smooth_method="add-k", smooth_value=1, tokenize="none", effective_order=True)
        expected = metric.sentence_score(candidate, references).score / 100
        assert own == pytest.approx(expected, rel=1e-6), seed


@pytest.mark.parametrize("smooth", [True, False])
def test_self_bleu_equals_each_against_the_others(smooth: bool) -> None:
    texts = sentences(12, 3, words=3)
    texts[4] = list(texts[1])  # two that tie for the largest count
    expected = np.mean([bleu(t, texts[:i] + texts[i + 1 :], smooth=smooth) for i, t in enumerate(texts)])
    assert self_bleu(texts, smooth=smooth) == pytest.approx(float(expected), rel=1e-12)


def test_self_bleu_at_its_limits() -> None:
    assert self_bleu([["a", "b", "c", "d", "e"]] * 5) == pytest.approx(1.0)
    assert self_bleu([["a"] * 5, ["b"] * 5, ["c"] * 5]) == 0.0
    with pytest.raises(DataError, match="at least two"):
        self_bleu([["a"]])


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_mauve_area_has_a_closed_form_for_partial_overlap(shared: float, scale: float) -> None:
    """p = (1 - t, t, 0), q = (0, t, 1 - t): the curve is ((1 - λ)^a, λ^a), a = c(1 - t), of area Γ(a+1)² / Γ(2a+1)."""
    p, q = [1 - shared, shared, 0.0], [0.0, shared, 1 - shared]
    a = scale * (1 - shared)
    exact = math.exp(2 * math.lgamma(a + 1) - math.lgamma(2 * a + 1))
    assert frontier_area(divergence_curve(p, q, scale=scale, mixtures=20_000)) == pytest.approx(exact, abs=1e-6)
    assert frontier_area(divergence_curve(p, q, scale=scale)) == pytest.approx(exact, abs=0.01)


def test_mauve_limits() -> None:
    same = [0.2, 0.3, 0.5]
    assert frontier_area(divergence_curve(same, same)) == pytest.approx(1.0)
    assert frontier_area(divergence_curve([1.0, 0.0], [0.0, 1.0])) < 0.006  # 1/252 with the integral done exactly
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(200, 8)), rng.normal(size=(200, 8))
    near[:, 0] += 30
    far[:, 0] -= 30
    assert mauve(near, far).score < 0.01
    assert mauve(near, near).score == pytest.approx(1.0)
    again = rng.normal(size=(200, 8))
    again[:, 0] += 30
    assert mauve(near, again, clusters=4).score > 0.9


def test_mauve_orders_what_is_closer() -> None:
    rng = np.random.default_rng(2)
    human = rng.normal(size=(300, 6)) + 5
    scores = [mauve(human, rng.normal(size=(300, 6)) + 5 + shift * np.eye(6)[0], seed=1).score for shift in (0, 2, 6)]
    assert scores[0] > scores[1] > scores[2]
    first, second = (mauve(human, human + 1.0, seed=3) for _ in range(2))
    assert first.score == second.score
    assert first.p.sum() == pytest.approx(1.0)
    assert first.curve.shape == (27, 2)


def test_symmetric_in_its_arguments() -> None:
    p, q = [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]
    there, back = frontier_area(divergence_curve(p, q)), frontier_area(divergence_curve(q, p))
    assert there == pytest.approx(back, rel=1e-9)


def test_quantise_separates_and_counts_few_distinct_texts() -> None:
    rng = np.random.default_rng(0)
    directions = np.eye(3)[rng.integers(0, 3, 60)]
    labels = quantise(directions + rng.normal(0, 0.01, (60, 3)), 3)
    assert len({(int(label), int(d)) for label, d in zip(labels, directions.argmax(1), strict=True)}) == 3
    assert len(set(quantise(np.repeat(np.eye(2), 10, axis=0), 5).tolist())) == 2


def test_ngram_features_see_likeness() -> None:
    texts = ["the cat sat on the mat", "the cat sat on a mat", "0123 4567 89 !!"]
    found = ngram_features(texts)
    assert found.shape == (3, 512)
    np.testing.assert_allclose((found**2).sum(1), 1.0)
    assert found[0] @ found[1] > 0.7 > 0.3 > found[0] @ found[2]
    assert not ngram_features([""]).any()


def test_hidden_features_are_the_last_states() -> None:
    model = LSTMModel(LSTMConfig(vocab_size=9, d_model=8, n_layers=1))
    rows = [torch.tensor([1, 2, 3]), torch.tensor([4])]
    found = hidden_features(model, rows)
    assert found.shape == (2, 8)
    np.testing.assert_allclose(found[1], model.hidden_states(rows[1][None])[0, -1].detach().numpy(), rtol=1e-6)
    with pytest.raises(DataError, match="text 1 has no tokens"):
        hidden_features(model, [rows[0], torch.zeros(0, dtype=torch.int64)])


def test_bad_features_and_distributions() -> None:
    good = np.ones((4, 3))
    for wrong in (np.ones(3), np.ones((0, 3)), np.full((2, 3), np.nan)):
        with pytest.raises(DataError, match="human features"):
            mauve(wrong, good)
    with pytest.raises(DataError, match="they must agree"):
        mauve(good, np.ones((4, 2)))
    with pytest.raises(ConfigError, match="clusters is 9"):
        mauve(good, good, clusters=9)
    for p in ([0.5, 0.4], [1.5, -0.5], []):
        with pytest.raises(DataError, match="not a distribution"):
            divergence_curve(p, [0.5, 0.5])
    with pytest.raises(DataError, match="over the same ones"):
        divergence_curve([1.0], [0.5, 0.5])
