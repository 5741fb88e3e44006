"""How good is generated text? Likelihood, diversity, repetition; `alignlab.tasks.mauve` compares it with human text.

A text is a sequence of units (words, token ids, characters: whatever the caller splits it into). Every number depends
on that choice and on the length of the texts, so compare only what was split and cut alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

from alignlab.core.config import require
from alignlab.core.errors import DataError

Text = Sequence[Hashable]


def perplexity(nats: ArrayLike) -> float:
    """exp of the mean negative log-likelihood; `nats` is (n,), one number a token."""
    return math.exp(float(_likelihoods(nats).mean()))


def bits_per_byte(nats: ArrayLike, n_bytes: int) -> float:
    """Code length of a text in bits over its UTF-8 bytes: comparable between tokenizers, as perplexity is not.

    `nats` is (n,), the negative log-likelihood of every token of the text.
    """
    require(n_bytes >= 1, "n_bytes", n_bytes, "a positive whole number")
    return float(_likelihoods(nats).sum()) / (math.log(2) * n_bytes)


def distinct_n(texts: Sequence[Text], n: int) -> float:
    """Different n-grams over all n-grams of all texts together (Li et al. 2016); 1 where nothing is said twice.

    It falls with the amount of text. DataError when no text is as long as n.
    """
    counts: Counter[tuple[Hashable, ...]] = Counter()
    for text in texts:
        counts.update(ngrams(text, n))
    return len(counts) / _total(counts, n)


def repetition_rate(texts: Sequence[Text], n: int = 4) -> float:
    """Mean over texts of the share of n-grams that the same text has said before: 1 - different / all.

    "seq-rep-n" of Welleck et al. 2020. Texts shorter than n are left out; DataError when that leaves none.
    """
    rates = []
    for text in texts:
        found = ngrams(text, n)
        if found:
            rates.append(1.0 - len(set(found)) / len(found))
    if not rates:
        raise DataError(f"no text has {n} units, so there is no {n}-gram to repeat")
    return math.fsum(rates) / len(rates)


def bleu(candidate: Text, references: Sequence[Text], *, max_n: int = 4, smooth: bool = True) -> float:
    """BLEU of one text against its references, 0 to 1 (Papineni et al. 2002).

    Brevity penalty times the geometric mean of the clipped n-gram precisions, n = 1 .. `max_n`, the penalty from the
    reference of the closest length (the shorter one of two). `smooth` adds 1 to numerator and denominator for n > 1
    (Lin & Och 2004), so that one missing 4-gram does not make it zero. Orders longer than the text are left out.
    """
    require(max_n >= 1, "max_n", max_n, "a positive whole number")
    if not references:
        raise DataError("there are no references; BLEU needs at least one")
    matches, totals = [], []
    for n in range(1, max_n + 1):
        own = Counter(ngrams(candidate, n))
        allowed: Counter[tuple[Hashable, ...]] = Counter()
        for reference in references:
            allowed |= Counter(ngrams(reference, n))
        matches.append((own & allowed).total())
        totals.append(own.total())
    closest = min((abs(len(r) - len(candidate)), len(r)) for r in references)[1]
    return _bleu(matches, totals, len(candidate), closest, smooth)


def self_bleu(texts: Sequence[Text], *, max_n: int = 4, smooth: bool = True) -> float:
    """Mean BLEU of each text against all the others (Zhu et al. 2018): high where the texts are alike.

    The count that the others allow an n-gram is the largest of its counts, or the second largest for the text that has
    the largest: the work grows with the texts, not with their pairs. DataError for fewer than two texts.
    """
    if len(texts) < 2:
        raise DataError(f"there are {len(texts)} texts; self-BLEU needs at least two")
    matches = np.zeros((len(texts), max_n), dtype=np.int64)
    totals = np.zeros_like(matches)
    for n in range(1, max_n + 1):
        counts = [Counter(ngrams(text, n)) for text in texts]
        most: dict[tuple[Hashable, ...], tuple[int, int, int]] = {}  # n-gram -> (largest, whose, second largest)
        for i, count in enumerate(counts):
            for gram, times in count.items():
                largest, whose, second = most.get(gram, (0, -1, 0))
                most[gram] = (times, i, largest) if times > largest else (largest, whose, max(second, times))
        for i, count in enumerate(counts):
            totals[i, n - 1] = count.total()
            for gram, times in count.items():
                largest, whose, second = most[gram]
                matches[i, n - 1] += min(times, second if whose == i else largest)
    lengths = [len(text) for text in texts]
    scores = [
        _bleu(list(row), list(total), lengths[i], _closest_other(lengths, i), smooth)
        for i, (row, total) in enumerate(zip(matches.tolist(), totals.tolist(), strict=True))
    ]
    return math.fsum(scores) / len(scores)


def ngrams(text: Text, n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n units, in order; none where the text is shorter."""
    require(n >= 1, "n", n, "a positive whole number")
    return list(zip(*(text[i:] for i in range(n)), strict=False))


def _bleu(matches: Sequence[int], totals: Sequence[int], length: int, reference: int, smooth: bool) -> float:
    if length == 0 or matches[0] == 0:
        return 0.0
    logs = []
    for n, (match, total) in enumerate(zip(matches, totals, strict=True), start=1):
        if total == 0:
            break
        plus = 1 if smooth and n > 1 else 0
        if match + plus == 0:
            return 0.0
        logs.append(math.log((match + plus) / (total + plus)))
    brevity = min(0.0, 1.0 - reference / length)
    return math.exp(brevity + math.fsum(logs) / len(logs))


def _closest_other(lengths: Sequence[int], i: int) -> int:
    return min((abs(length - lengths[i]), length) for j, length in enumerate(lengths) if j != i)[1]


def _total(counts: Counter[tuple[Hashable, ...]], n: int) -> int:
    total = counts.total()
    if not total:
        raise DataError(f"no text has {n} units, so there is no {n}-gram to count")
    return total


def _likelihoods(nats: ArrayLike) -> Float[NDArray[np.float64], " n"]:
    values = np.asarray(nats, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise DataError(
            f"the negative log-likelihoods have shape {values.shape}, allowed: (n,) with at least one token"
        )
    if np.isnan(values).any():
        raise DataError("the negative log-likelihoods hold NaN, allowed: numbers")
    return values
