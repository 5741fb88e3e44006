"""Duplicates: planted ones are found, others are left alone, and the estimate is that of the definition."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from alignlab.core.errors import DataError
from alignlab.data import dedup
from alignlab.data.dedup import Duplicates, band_rows, find_duplicates, minhash, shingles

WORDS = [f"{a}{b}{c}" for a, b, c in itertools.product("bdfgklmnprst", "aeiou", "lmnrst")]


def text(seed: int, n_words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def with_changes(original: str, n: int, seed: int = 0) -> str:
    words, generator = original.split(), random.Random(seed)
    for at in generator.sample(range(len(words)), n):
        words[at] = generator.choice(WORDS).upper()
    return " ".join(words)


def naive_shingles(document: str) -> set[tuple[str, ...]]:
    words = document.lower().split()
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def jaccard(one: str, other: str) -> float:
    a, b = naive_shingles(one), naive_shingles(other)
    return len(a & b) / len(a | b)


def test_shingles_are_runs_of_words() -> None:
    """The hashes of two texts agree exactly where their five-word runs do."""
    one, other = text(1, 60), with_changes(text(1, 60), 2)
    first, second = shingles(one), shingles(other)
    runs = [tuple(document.lower().split()[i : i + 5]) for document in (one, other) for i in range(56)]
    hashes = [*first.tolist(), *second.tolist()]
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs)))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The cat, sat on -- the mat!", "the CAT sat on the mat", True),
        ("a b c d e", "a b c e d", False),
        ("ab c d e f", "a bc d e f", False),
        ("one two", "one two", True),
        ("one two", "two one", False),
        ("na\u00efve caf\u00e9 au lait chaud", "NA\u00cfVE CAF\u00c9 au lait, chaud", True),
        ("!?", "...", False),
        ("", "", True),
    ],
)
def test_what_counts_as_the_same_run(one: str, other: str, same: bool) -> None:
    assert (shingles(one).tolist() == shingles(other).tolist()) == same


def test_scripts_without_spaces_have_shingles() -> None:
    """Each Chinese character and each emoji is a word, also next to Latin letters."""
    assert len(shingles("春眠不觉晓处处闻啼鸟")) == 10 - 4
    assert len(shingles("a🎉b🎉c🎉")) == 6 - 4
    assert set(shingles("x春眠不觉晓处")) & set(shingles("春眠不觉晓 y"))


def test_estimates_have_the_error_that_theory_says() -> None:
    original = text(7, 400)
    errors = []
    for n in (0, 2, 5, 10, 20, 40):
        for seed in range(10):
            changed = with_changes(original, n, seed)
            exact = jaccard(original, changed)
            estimate = float(np.mean(minhash(original, seed=seed) == minhash(changed, seed=seed)))
            deviation = (exact * (1 - exact) / 128) ** 0.5
            assert abs(estimate - exact) <= 5 * deviation + 1e-9, (n, seed)
            errors.append((estimate - exact) / deviation if deviation else 0.0)
    assert abs(np.mean(errors)) < 0.6  # unbiased: 50 independent standard errors have a mean of 0 ± 0.14


def test_planted_duplicates_are_found_and_nothing_else() -> None:
    originals = [text(seed) for seed in range(60)]
    near = {i: with_changes(originals[i], 3, seed=i) for i in range(0, 60, 3)}
    exact = {i: originals[i] for i in range(0, 60, 5)}
    unrelated = {i: with_changes(originals[i], 60, seed=i) for i in range(0, 60, 7)}
    documents = [*originals, *near.values(), *exact.values(), *unrelated.values()]
    assert min(jaccard(originals[i], changed) for i, changed in near.items()) > 0.84
    assert max(jaccard(originals[i], changed) for i, changed in unrelated.items()) < 0.5
    found = find_duplicates(documents, threshold=0.75)
    assert (found.exact, found.near) == (len(exact), len(near))
    assert list(found.select(documents)) == [*originals, *unrelated.values()]
    assert find_duplicates(documents, threshold=None).near == 0
    assert list(find_duplicates(documents, threshold=None).select(documents)) == list(dict.fromkeys(documents))


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_against_comparing_all_pairs(threshold: float) -> None:
    """Every removed document is like another (within the estimate's error); no pair that is clearly alike is kept."""
    documents = [with_changes(text(i % 10), i // 10, seed=i) for i in range(80)]
    found = find_duplicates(documents, threshold=threshold)
    sets = [naive_shingles(document) for document in documents]
    alike = np.zeros((80, 80))
    for i, j in itertools.combinations(range(80), 2):
        alike[i, j] = alike[j, i] = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
    margin = 5 * (threshold * (1 - threshold) / 128) ** 0.5
    assert found.keep.sum() < 80
    for i in np.flatnonzero(~found.keep):
        assert alike[i].max() >= threshold - margin
    kept = np.flatnonzero(found.keep)
    assert alike[np.ix_(kept, kept)].max() < min(threshold + margin, 0.999)


def test_the_threshold_decides() -> None:
    """Pairs of similarity about 0.7: none is a duplicate at 0.9, five standard errors away; all are at 0.5."""
    pairs = [(text(seed), with_changes(text(seed), 7, seed)) for seed in range(30)]
    exact = [jaccard(*pair) for pair in pairs]
    assert 0.63 < min(exact) <= max(exact) < 0.77
    documents = [document for pair in pairs for document in pair]
    assert find_duplicates(documents, threshold=0.9).near == 0
    assert find_duplicates(documents, threshold=0.5).keep.tolist() == [True, False] * 30


def test_similarity_is_carried_on_and_the_first_stays() -> None:
    chain = [text(3)]
    for step in range(6):
        chain.append(with_changes(chain[-1], 4, seed=step))
    assert jaccard(chain[0], chain[-1]) < 0.6
    found = find_duplicates([text(99), *chain], threshold=0.75)
    assert found.keep.tolist() == [True, True, *[False] * 6]


def test_long_documents_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    long = text(5, 3000)
    whole = minhash(long)
    monkeypatch.setattr(dedup, "_PART", 4000)
    monkeypatch.setattr(dedup, "_BLOCK", 100)
    monkeypatch.setattr(dedup, "_PAIRS", 2)
    assert np.mean(minhash(long) == whole) > 0.9  # only runs across parts are missing
    found = find_duplicates([long, with_changes(long, 20), text(6, 3000)])
    assert found.keep.tolist() == [True, False, True]


def test_bands_find_pairs_at_the_threshold() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        rows = band_rows(threshold, 128)
        assert rows == 1 or 1 - (1 - threshold**rows) ** (128 // rows) >= 0.99
    assert band_rows(0.95, 128) > band_rows(0.5, 128)


def test_small_corpora() -> None:
    assert find_duplicates([]).keep.tolist() == []
    assert find_duplicates(["a"]).keep.tolist() == [True]
    assert find_duplicates(["", "", "\ud800"]).keep.tolist() == [True, False, True]


def test_same_seed_same_result() -> None:
    documents = [with_changes(text(i % 5), i, seed=i) for i in range(40)]
    runs = [find_duplicates(documents, seed=seed).keep.tolist() for seed in (0, 0)]
    assert runs[0] == runs[1]
    assert not np.array_equal(minhash(documents[0], seed=0), minhash(documents[0], seed=1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": 1.1}, "threshold is 1.1"),
        ({"permutations": 8}, "permutations is 8"),
        ({"permutations": 100}, "permutations is 100"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_duplicates(["a", "b"], **wrong)


@pytest.mark.parametrize(("documents", "word"), [(["a", "b", "c"], "more"), (["a"], "fewer"), ([], "fewer")])
def test_a_corpus_that_changed_is_noticed(documents: list[str], word: str) -> None:
    found = Duplicates(np.array([True, True]), 0, 0, np.arange(2))
    with pytest.raises(DataError, match=f"has {word} documents than the 2"):
        list(found.select(documents))
