"""Kneser-Ney smoothing against its definition, against nltk, and against sources whose entropy is known."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.ngram import KneserNey, modified_discounts

START = -1


class Naive:
    """Chen & Goodman's formulas with dictionaries, one n-gram after the other."""

    def __init__(self, documents: Sequence[Sequence[int]], vocab: int, order: int, discounts: object = None) -> None:
        self.vocab, self.order = vocab, order
        seen = [Counter[tuple[int, ...]]() for _ in range(order + 1)]
        for document in documents:
            padded = [START] * (order - 1) + list(document)
            for end in range(order - 1, len(padded)):
                for k in range(1, order + 1):
                    seen[k][tuple(padded[end - k + 1 : end + 1])] += 1
        self.counts: list[dict[tuple[int, ...], int]] = [{} for _ in range(order + 1)]
        self.counts[order] = dict(seen[order])
        for k in range(1, order):
            before: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in seen[k + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[k] = {gram: len(before[gram]) for gram in seen[k]}
        self.discounts = [(0.0, 0.0, 0.0)] + [
            modified_discounts(np.array(list(self.counts[k].values()))) if discounts is None else discounts[k - 1]  # type: ignore[index]
            for k in range(1, order + 1)
        ]

    def p(self, word: int, context: tuple[int, ...]) -> float:
        k = len(context) + 1
        lower = self.p(word, context[1:]) if context else 1.0 / self.vocab
        after = {gram[-1]: c for gram, c in self.counts[k].items() if gram[:-1] == context}
        if not after:
            return lower
        total = sum(after.values())
        off = {w: min(c, self.discounts[k][min(c, 3) - 1]) for w, c in after.items()}
        return (after.get(word, 0) - off.get(word, 0.0)) / total + sum(off.values()) / total * lower


def corpus(seed: int, vocab: int, sizes: Sequence[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(vocab, 0.5))
    return [rng.choice(vocab, size=n, p=weights) for n in sizes]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_definition(order: int) -> None:
    vocab = 5
    documents = corpus(order, vocab, (23, 1, 40, 7))
    model = KneserNey.fit(documents, vocab_size=vocab, order=order)
    naive = Naive([d.tolist() for d in documents], vocab, order)
    for table, discounts in zip(model.tables, naive.discounts[1:], strict=True):
        assert table.discounts == pytest.approx(discounts)
    contexts = list(product(range(vocab), repeat=order - 1))
    expected = [[naive.p(word, context) for word in range(vocab)] for context in contexts]
    found = model.distribution(np.array(contexts, dtype=np.int64).reshape(len(contexts), order - 1))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_scores_a_document_from_its_start() -> None:
    documents = corpus(3, 4, (30, 12))
    model = KneserNey.fit(documents, vocab_size=4, order=3)
    naive = Naive([d.tolist() for d in documents], 4, 3)
    scored = [3, 0, 1, 1, 2, 0]
    padded = [START, START, *scored]
    expected = [math.log(naive.p(padded[i], tuple(padded[i - 2 : i]))) for i in range(2, len(padded))]
    np.testing.assert_allclose(model.log_probabilities(scored), expected, rtol=1e-12)
    # With context the padding is gone; a long context is read as far as the order reaches.
    np.testing.assert_allclose(model.log_probabilities(scored[3:], context=scored[:3]), expected[3:], rtol=1e-12)
    np.testing.assert_allclose(model.log_probabilities(scored[1:], context=scored[:1]), expected[1:], rtol=1e-12)
    mean = -np.mean(expected)
    assert model.perplexity(scored) == pytest.approx(math.exp(mean))
    assert model.bits_per_byte(scored, 12) == pytest.approx(mean * 6 / 12 / math.log(2))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.no_cover
def test_equals_nltk(order: int) -> None:
    """nltk has one discount, none on unigrams, and no uniform floor: the same model with those discounts."""
    lm = pytest.importorskip("nltk.lm", reason="nltk is not installed")
    util = pytest.importorskip("nltk.util", reason="nltk is not installed")
    vocab = 6
    documents = corpus(8, vocab, (60, 25))
    # All tokens in one document, so that no unigram is unseen; nltk must not predict its padding.
    documents.append(np.arange(vocab))
    reference = lm.KneserNeyInterpolated(order, discount=0.3)
    grams = []
    for document in documents:
        padded = ["<s>"] * (order - 1) + [str(t) for t in document]
        found = [gram for gram in util.everygrams(padded, max_len=order) if gram[-1] != "<s>"]
        grams.append(found)
    reference.fit(grams, vocabulary_text=[str(t) for t in range(vocab)])
    flat = [(0.0, 0.0, 0.0)] + [(0.3, 0.3, 0.3)] * (order - 1)
    model = KneserNey.fit(documents, vocab_size=vocab, order=order, discounts=flat)
    contexts = list(product(range(vocab), repeat=order - 1))
    found = model.distribution(np.array(contexts))
    for row, context in zip(found, contexts, strict=True):
        expected = [reference.score(str(word), [str(t) for t in context]) for word in range(vocab)]
        np.testing.assert_allclose(row, expected, rtol=1e-9)


@given(
    st.lists(st.lists(st.integers(0, 6), max_size=30), min_size=1, max_size=4).filter(lambda d: any(d)),
    st.integers(1, 6),
    st.lists(st.integers(0, 6), max_size=8),
)
def test_every_distribution_sums_to_one_and_leaves_nothing_impossible(
    documents: list[list[int]], order: int, context: list[int]
) -> None:
    model = KneserNey.fit(documents, vocab_size=7, order=order)
    p = model.distribution(np.array([context], dtype=np.int64))
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p > 0).all()
    # Scoring and the whole distribution are two ways to the same number.
    chained = [math.exp(model.log_probabilities([word], context=context)[0]) for word in range(7)]
    np.testing.assert_allclose(chained, p[0], rtol=1e-12)


def test_discounts_from_counts_of_counts() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [10, 4, 2, 1, 3])
    y = 10 / 18
    assert modified_discounts(counts) == pytest.approx((1 - 2 * y * 4 / 10, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2))
    assert modified_discounts(np.array([7, 9])) == (0.5, 1.0, 1.5)  # nothing rare to estimate them from
    assert all(0 < d <= i for i, d in enumerate(modified_discounts(np.array([1, 2, 3, 3, 3, 3])), start=1))


def test_reaches_the_entropy_rate_of_a_markov_chain() -> None:
    rng = np.random.default_rng(0)
    vocab, n = 4, 60_000
    transition = rng.dirichlet(np.ones(vocab), size=vocab * vocab)  # of order 2
    stream, uniforms = [0, 1], rng.random(n)
    level = transition.cumsum(1)
    for u in uniforms:
        stream.append(min(int(np.searchsorted(level[stream[-2] * vocab + stream[-1]], u)), vocab - 1))
    train, held = np.array(stream[: n - 10_000]), np.array(stream[n - 10_000 :])
    truth = -np.mean([math.log(transition[held[i - 2] * vocab + held[i - 1], held[i]]) for i in range(2, len(held))])
    losses = [-KneserNey.fit([train], vocab_size=vocab, order=k).log_probabilities(held).mean() for k in (1, 2, 3, 5)]
    assert losses[2] == pytest.approx(truth, abs=0.005)
    assert losses[0] > losses[1] > losses[2]
    assert losses[3] == pytest.approx(truth, abs=0.05)  # too high an order costs little: that is what smoothing is for


def test_no_ngram_crosses_documents() -> None:
    apart = KneserNey.fit([[0, 1], [2, 3]], vocab_size=4, order=2)
    joined = KneserNey.fit([[0, 1, 2, 3]], vocab_size=4, order=2)
    assert apart.ngrams == [4, 4]  # (start, 0), (0, 1), (start, 2), (2, 3)
    assert len(apart.tables[1].keys) == 4  # nor is one kept that nothing counts
    assert joined.ngrams == [4, 4]  # (start, 0), (0, 1), (1, 2), (2, 3)
    assert joined.distribution(np.array([[1]]))[0, 2] > apart.distribution(np.array([[1]]))[0, 2]


def test_high_orders_over_large_vocabularies_fit_their_integers() -> None:
    stream = np.random.default_rng(1).integers(0, 50_257, 400)
    model = KneserNey.fit([stream, stream], vocab_size=50_257, order=12)
    assert model.ngrams[-1] == 400
    assert model.perplexity(stream) < 30
    assert KneserNey.fit([stream], vocab_size=50_257, order=1).perplexity(stream[:9]) > 100


def test_samples_follow_the_distribution() -> None:
    model = KneserNey.fit(corpus(5, 5, (200,)), vocab_size=5, order=3)
    prompt = np.array([[1, 4]])
    p = model.distribution(prompt)[0]
    n = 20_000
    drawn = model.sample(np.repeat(prompt, n, axis=0), 1, seed=3)[:, 0]
    frequency = np.bincount(drawn, minlength=5) / n
    # Five deviations on five outcomes: a false alarm in about 10^-6 of the seeds.
    assert (np.abs(frequency - p) < 5 * np.sqrt(p * (1 - p) / n)).all()
    hot = np.bincount(model.sample(np.repeat(prompt, n, axis=0), 1, seed=3, temperature=0.5)[:, 0], minlength=5) / n
    sharp = p**2 / (p**2).sum()
    assert (np.abs(hot - sharp) < 5 * np.sqrt(sharp * (1 - sharp) / n)).all()


def test_samples_are_reproducible_and_go_on_from_their_prompts() -> None:
    cycle = np.tile([0, 1, 2, 3], 50)
    model = KneserNey.fit([cycle], vocab_size=4, order=4)
    prompts = np.array([[0, 1, 2], [2, 3, 0]])
    assert model.sample(prompts, 5, seed=0, temperature=0).tolist() == [[3, 0, 1, 2, 3], [1, 2, 3, 0, 1]]
    assert model.sample(prompts, 8, seed=1).tolist() == model.sample(prompts, 8, seed=1).tolist()
    fresh = model.sample(np.zeros((3, 0), dtype=np.int64), 4, seed=0, temperature=0)
    assert fresh.tolist() == [[0, 1, 2, 3]] * 3
    assert model.sample(prompts, 0, seed=0).shape == (2, 0)


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "hold no token"),
        ([[], []], {}, "hold no token"),
        ([[0, 4]], {}, "document 0 holds the token 4, allowed: 0 to 3"),
        ([[0], [-1]], {}, "document 1 holds the token -1"),
        ([[0.5]], {}, "whole numbers"),
        ([[[0, 1]]], {}, "one row"),
    ],
)
def test_bad_documents(documents: list, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        KneserNey.fit(documents, vocab_size=4, order=2, **options)


def test_bad_choices() -> None:
    with pytest.raises(ConfigError, match="order is 0"):
        KneserNey.fit([[0]], vocab_size=4, order=0)
    with pytest.raises(ConfigError, match="one triple for each of 2 orders"):
        KneserNey.fit([[0]], vocab_size=4, order=2, discounts=[(0.5, 0.5, 0.5)])
    model = KneserNey.fit([[0, 1]], vocab_size=4, order=2)
    with pytest.raises(DataError, match="no tokens to score"):
        model.perplexity([])
    with pytest.raises(DataError, match="rows of one length"):
        model.distribution(np.array([0, 1]))
    with pytest.raises(ConfigError, match="temperature is -1"):
        model.sample(np.array([[0]]), 1, seed=0, temperature=-1)
