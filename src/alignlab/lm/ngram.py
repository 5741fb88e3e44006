"""`KneserNey`: the n-gram language model with interpolated modified Kneser-Ney smoothing, on arrays of token ids.

Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling", section 3:

    p(w | h) = max(c(hw) - D(c(hw)), 0) / c(h.) + gamma(h) p(w | h')
    gamma(h) = (D1 N1(h.) + D2 N2(h.) + D3 N3+(h.)) / c(h.)

where h' is the context h without its oldest token. At the highest order c counts occurrences; below it, c(hw) is the
number of different tokens that precede hw (Kneser & Ney 1995). The unigrams are interpolated with 1 / vocabulary.

There is no loop over tokens. An n-gram is one integer, the number of its context among the sorted contexts times
(vocabulary + 1) plus its last token, so that any order fits 64 bits and looking up is a binary search in an array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.core.rng import numpy_generator

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Discounts = tuple[float, float, float]
"""What is taken off a count of 1, of 2, and of 3 or more."""


@dataclass(frozen=True)
class OrderTable:
    """The n-grams of one order."""

    keys: IntArray
    """(n-grams,) sorted: number of the context among those one order lower, times (vocabulary + 1), plus the token."""
    alpha: FloatArray
    """(n-grams,) discounted relative frequency of the last token after the context."""
    gamma: FloatArray
    """(contexts,) the mass that each context leaves to the next lower order; 1 where nothing was seen after it."""
    discounts: Discounts
    """The discounts of this order."""


class KneserNey:
    """An n-gram model over the tokens 0 .. vocab_size - 1; made by `KneserNey.fit`.

    Every document begins after `order - 1` start symbols, which are never predicted; no n-gram crosses documents.
    """

    def __init__(self, vocab_size: int, tables: Sequence[OrderTable]) -> None:
        self.vocab_size, self.order = vocab_size, len(tables)
        self.tables = tuple(tables)

    @classmethod
    def fit(
        cls,
        documents: Sequence[ArrayLike],
        *,
        vocab_size: int,
        order: int = 5,
        discounts: Sequence[Discounts] | None = None,
    ) -> Self:
        """Count the n-grams of `documents`, each (tokens,) of ids, and smooth them.

        `discounts` gives one triple an order, unigrams first; None estimates them from the counts of counts
        (`modified_discounts`). Raises ConfigError for an order below 1, DataError for documents without a token or
        with an id outside the vocabulary.
        """
        require(order >= 1, "order", order, "a whole number of at least 1")
        require(vocab_size >= 1, "vocab_size", vocab_size, "a whole number of at least 1")
        require(
            discounts is None or len(discounts) == order,
            "discounts",
            discounts,
            f"one triple for each of {order} orders",
        )
        stream, begins = _joined(documents, vocab_size, order - 1)
        tables: list[OrderTable] = []
        base = vocab_size + 1
        # Unigrams have all ids as keys, so that the number of a unigram is its token.
        keys, ids = np.arange(base), stream
        contexts = 1
        for k in range(1, order + 1):
            given = None if discounts is None else discounts[k - 1]
            if k == order:
                real = ids[(ids >= 0) & (stream < vocab_size)]
                tables.append(_table(keys, np.bincount(real, minlength=len(keys)), contexts, base, given))
                break
            prefix = np.where(begins, -1, np.roll(ids, 1))
            longer, first, numbers = _numbered(prefix, stream, base)
            preceded = ids[first[stream[first] < vocab_size]]  # the suffix of each different longer n-gram
            tables.append(_table(keys, np.bincount(preceded, minlength=len(keys)), contexts, base, given))
            contexts, keys, ids = len(keys), longer, numbers
        return cls(vocab_size, tables)

    @property
    def ngrams(self) -> list[int]:
        """How many different n-grams each order holds."""
        return [int(np.count_nonzero(table.alpha)) for table in self.tables]

    def log_probabilities(self, tokens: ArrayLike, *, context: ArrayLike = ()) -> Float[np.ndarray, " n"]:
        """Natural logarithm of p(token | all before it) for each of `tokens`, (n,).

        `context` comes before the first one; without it a document begins there.
        """
        scored = _checked(tokens, self.vocab_size, "tokens")
        before = self._left_context(_checked(context, self.vocab_size, "context")[None])[0]
        stream = np.concatenate([before, scored])
        p = np.full(len(stream), 1.0 / self.vocab_size)
        ids = np.zeros(len(stream), dtype=np.int64)
        for k, table in enumerate(self.tables, start=1):
            prefix = ids if k == 1 else np.concatenate([[-1], ids[:-1]])
            ids = self._find(k, prefix, stream)
            p *= np.where(prefix >= 0, table.gamma[prefix], 1.0)
            p += np.where(ids >= 0, table.alpha[ids], 0.0)
        with np.errstate(divide="ignore"):  # given discounts of 0 leave some tokens without probability
            logs: FloatArray = np.log(p[len(before) :])
        return logs

    def perplexity(self, tokens: ArrayLike, *, context: ArrayLike = ()) -> float:
        """exp of the mean negative log-likelihood (nats per token)."""
        logs = self.log_probabilities(tokens, context=context)
        if not logs.size:
            raise DataError("there are no tokens to score; perplexity needs at least one")
        return math.exp(-float(logs.mean()))

    def bits_per_byte(self, tokens: ArrayLike, n_bytes: int, *, context: ArrayLike = ()) -> float:
        """Total code length in bits of `tokens` over the `n_bytes` UTF-8 bytes of their text."""
        require(n_bytes >= 1, "n_bytes", n_bytes, "a positive whole number")
        return -float(self.log_probabilities(tokens, context=context).sum()) / (math.log(2) * n_bytes)

    def distribution(self, contexts: Int[np.ndarray, "batch length"]) -> Float[np.ndarray, "batch vocab"]:
        """p(. | context) for each row of token ids; rows shorter than `order - 1` begin a document."""
        checked = _checked(contexts, self.vocab_size, "contexts", dimensions=2)
        return self._probabilities(self._context_ids(checked))

    def sample(
        self, prompts: Int[np.ndarray, "batch length"], length: int, *, seed: int, temperature: float = 1.0
    ) -> Int[np.ndarray, "batch new"]:
        """Each row of `prompts` (length 0: new documents) goes on for `length` tokens; temperature 0: the likeliest."""
        require(temperature >= 0, "temperature", temperature, "0 or a positive number")
        rng = numpy_generator(seed)
        ids = self._context_ids(_checked(prompts, self.vocab_size, "prompts", dimensions=2))
        rows = len(ids[0])
        out = np.empty((rows, length), dtype=np.int64)
        for step in range(length):
            p = self._probabilities(ids)
            if temperature == 0:
                out[:, step] = p.argmax(axis=1)
            else:
                level = np.cumsum(p if temperature == 1 else (p / p.max(axis=1, keepdims=True)) ** (1 / temperature), 1)
                wanted = rng.random((rows, 1)) * level[:, -1:]
                out[:, step] = np.minimum((level <= wanted).sum(axis=1), self.vocab_size - 1)
            ids = self._advance(ids, out[:, step])
        return out

    def _find(self, k: int, prefix: IntArray, tokens: IntArray) -> IntArray:
        """Numbers of the k-grams (prefix, token); -1 where there is none."""
        if k == 1:
            return tokens
        keys = self.tables[k - 1].keys
        wanted = prefix * (self.vocab_size + 1) + tokens
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((prefix >= 0) & (keys[at] == wanted), at, -1)

    def _left_context(self, contexts: IntArray) -> IntArray:
        """The last `order - 1` tokens of each row, start symbols in front of shorter ones."""
        want = self.order - 1
        have = contexts[:, max(contexts.shape[1] - want, 0) :]
        return np.pad(have, ((0, 0), (want - have.shape[1], 0)), constant_values=self.vocab_size)

    def _context_ids(self, contexts: IntArray) -> list[IntArray]:
        """For k = 0 .. order - 1, the number of the k-gram that ends each row, (batch,); -1 where it was never seen."""
        rows = len(contexts)
        ids = [np.zeros(rows, dtype=np.int64), *(np.full(rows, -1) for _ in range(self.order - 1))]
        for column in self._left_context(contexts).T:
            ids = self._advance(ids, column)
        return ids

    def _advance(self, ids: list[IntArray], tokens: IntArray) -> list[IntArray]:
        return [ids[0], *(self._find(k, ids[k - 1], tokens) for k in range(1, self.order))]

    def _probabilities(self, ids: list[IntArray]) -> FloatArray:
        rows, base = len(ids[0]), self.vocab_size + 1
        p = np.full((rows, self.vocab_size), 1.0 / self.vocab_size)
        for context, table in zip(ids, self.tables, strict=True):
            p *= np.where(context >= 0, table.gamma[context], 1.0)[:, None]
            start = np.searchsorted(table.keys, context * base)
            size = np.where(context >= 0, np.searchsorted(table.keys, (context + 1) * base) - start, 0)
            row = np.repeat(np.arange(rows), size)
            entry = np.arange(size.sum()) + np.repeat(start - (np.cumsum(size) - size), size)
            token = table.keys[entry] % base
            real = token < self.vocab_size
            p[row[real], token[real]] += table.alpha[entry[real]]
        return p


def modified_discounts(counts: IntArray) -> Discounts:
    """D1, D2, D3+ from the counts of counts n_1 .. n_4 (Chen & Goodman 1998, section 3).

    D_i = i - (i + 1) Y n_{i+1} / n_i with Y = n_1 / (n_1 + 2 n_2). Where that is undefined or not between 0 and i, as
    in corpora so small or vocabularies so dense that few n-grams are rare, i / 2 is taken: every discount then leaves
    something to what was seen and something to what was not.
    """
    n = [int(np.count_nonzero(counts == i)) for i in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1]) if n[0] else 0.0
    found = []
    for i in (1, 2, 3):
        value = i - (i + 1) * y * n[i] / n[i - 1] if n[i - 1] and n[0] else 0.0
        found.append(value if 0 < value < i else i / 2)
    return found[0], found[1], found[2]


def _table(keys: IntArray, counts: IntArray, contexts: int, base: int, discounts: Discounts | None) -> OrderTable:
    discounts = modified_discounts(counts) if discounts is None else discounts
    off = np.minimum(np.array([0.0, *discounts])[np.minimum(counts, 3)], counts)
    context = keys // base
    total = np.bincount(context, weights=counts, minlength=contexts)
    left = np.bincount(context, weights=off, minlength=contexts)
    some = np.maximum(total, 1.0)
    return OrderTable(keys, (counts - off) / some[context], np.where(total > 0, left / some, 1.0), discounts)


def _numbered(prefix: IntArray, tokens: IntArray, base: int) -> tuple[IntArray, IntArray, IntArray]:
    """Sorted keys of the n-grams (prefix, token), where each first occurs, and each position's number (-1: none)."""
    at = np.flatnonzero(prefix >= 0)
    keys, first, inverse = np.unique(prefix[at] * base + tokens[at], return_index=True, return_inverse=True)
    numbers = np.full(len(tokens), -1, dtype=np.int64)
    numbers[at] = inverse.reshape(-1)
    return keys, at[first], numbers


def _joined(documents: Sequence[ArrayLike], vocab_size: int, starts: int) -> tuple[IntArray, NDArray[np.bool_]]:
    """All documents behind each other, `starts` start symbols before each, and where each begins."""
    parts = [_checked(document, vocab_size, f"document {i}") for i, document in enumerate(documents)]
    if not sum(part.size for part in parts):
        raise DataError("the documents hold no token; an n-gram model needs at least one")
    begin = np.full(starts, vocab_size, dtype=np.int64)
    stream = np.concatenate([piece for part in parts if part.size for piece in (begin, part)])
    begins = np.zeros(len(stream), dtype=bool)
    sizes = np.array([starts + part.size for part in parts if part.size])
    begins[np.cumsum(sizes) - sizes] = True
    return stream, begins


def _checked(tokens: ArrayLike, vocab_size: int, name: str, *, dimensions: int = 1) -> IntArray:
    array = np.asarray(tokens)
    if array.size == 0 and array.ndim == dimensions:
        return array.astype(np.int64)
    if array.ndim != dimensions or array.dtype.kind not in "iu":
        shape = "one row" if dimensions == 1 else "rows of one length"
        raise DataError(f"{name} is {array.dtype} of shape {array.shape}, allowed: whole numbers, {shape}")
    if int(array.min()) < 0 or int(array.max()) >= vocab_size:
        bad = int(array.min()) if int(array.min()) < 0 else int(array.max())
        raise DataError(f"{name} holds the token {bad}, allowed: 0 to {vocab_size - 1}")
    return array.astype(np.int64)
