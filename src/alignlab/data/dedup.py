"""Duplicate documents: exact ones by their hash, near ones by MinHash and locality-sensitive hashing.

Broder (1997): the share of equal minima of random hash functions over the shingles of two documents estimates the
Jaccard similarity of the shingle sets. Bands of minima bring together the pairs that are worth comparing (Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, section 3.4). All loops over words are NumPy's.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

from alignlab.core.errors import DataError
from alignlab.core.rng import derive_seed, numpy_generator

SHINGLE_WORDS = 5
PERMUTATIONS = 128
_BLOCK = 1 << 13
_PAIRS = 1 << 16
_PART = 1 << 22
_BASE = 0x100000001B3


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found among n documents."""

    keep: Bool[np.ndarray, " documents"]
    """True for the documents to keep: of each group the first."""
    exact: int
    """Removed because an earlier document has the same text."""
    near: int
    """Removed because they are linked to an earlier, similar document."""
    first: Int[np.ndarray, " documents"]
    """The document that each is counted as: the first of its group, and itself where it is kept."""

    @property
    def documents(self) -> int:
        return len(self.keep)

    def select(self, documents: Iterable[str]) -> Iterator[str]:
        """The documents to keep of the same corpus, read once more. Raises DataError when it has changed in number."""
        number = -1
        for number, document in enumerate(documents):
            if number >= len(self.keep):
                break
            if self.keep[number]:
                yield document
        if number + 1 != len(self.keep):
            more = "more" if number >= len(self.keep) else "fewer"
            raise DataError(
                f"the corpus has {more} documents than the {len(self.keep)} in which duplicates were looked for; "
                "do not change it in between"
            )


def find_duplicates(
    documents: Iterable[str], *, threshold: float | None = 0.8, seed: int = 0, permutations: int = PERMUTATIONS
) -> Duplicates:
    """Which documents to keep, reading them once.

    Exact duplicates have the same text. Near duplicates have an estimated Jaccard similarity of at least `threshold`
    between their sets of five-word shingles (case and punctuation aside); the estimate has a standard error of
    sqrt(s (1 - s) / permutations). Similarity is carried on: if a is like b and b like c, only the first of them stays.
    `threshold=None` looks for exact duplicates only.

    Memory does not hold the documents: about 100 bytes for each in main memory, and 4 · `permutations` bytes for each
    different one in a temporary file.

    Raises:
        DataError: a threshold outside of (0, 1], or fewer than 16 permutations or a number not divisible by 16.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise DataError(f"threshold is {threshold}, allowed: a number above 0 and up to 1, or None")
    if permutations < 16 or permutations % 16:
        raise DataError(f"permutations is {permutations}, allowed: multiples of 16")
    seen: dict[bytes, int] = {}
    first: list[int] = []
    with tempfile.TemporaryFile() as signatures:
        functions = _hash_functions(permutations, seed)
        for document in documents:
            raw = document.encode("utf-8", "replace")
            digest = hashlib.blake2b(raw, digest_size=16).digest()
            is_new = digest not in seen
            first.append(seen.setdefault(digest, len(first)))
            if is_new and threshold is not None:
                signatures.write(_signature(document, functions).tobytes())
        same = np.array(first, dtype=np.int64)
        different = np.flatnonzero(same == np.arange(len(same)))
        if threshold is not None and len(seen) > 1:
            group = _groups(signatures, len(seen), permutations, threshold)
            same = different[group][np.searchsorted(different, same)]
    keep = same == np.arange(len(same))
    return Duplicates(keep, len(same) - len(seen), len(seen) - int(keep.sum()), same)


def shingles(text: str, words: int = SHINGLE_WORDS) -> UInt[np.ndarray, " shingles"]:
    """64-bit hashes of all runs of `words` words of `text`; at least one, and a short text is one shingle.

    Words are runs of ASCII letters and digits and of two-byte characters, in lower case. A character of three or four
    bytes (Chinese, Japanese, emoji) is a word of its own, since such scripts put no spaces.
    """
    raw = np.frombuffer(text.lower().encode("utf-8", "replace"), dtype=np.uint8)
    inside = ((raw >= 48) & (raw <= 57)) | ((raw >= 97) & (raw <= 122)) | (raw >= 128)
    before = np.zeros_like(inside)
    before[1:] = inside[:-1]
    long = raw >= 0xE0  # first byte of a character of three or four
    # After a long character a new word begins as well: it is three bytes long, or four from 0xF0 on.
    after = np.zeros_like(inside)
    for lead, width in ((long & (raw < 0xF0), 3), (raw >= 0xF0, 4)):
        at = np.flatnonzero(lead) + width
        after[at[at < len(raw)]] = True
    starts = np.flatnonzero(inside & (~before | long | after))
    if not len(starts):
        return np.frombuffer(hashlib.blake2b(raw.tobytes(), digest_size=8).digest(), dtype="<u8")
    # The hash of a word is the sum of its bytes times powers of an odd base, from running sums modulo 2**64.
    kept = np.where(inside, raw.astype(np.uint64) + np.uint64(1), np.uint64(0))
    powers = _powers(_BASE, len(raw))
    running = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(kept * powers, dtype=np.uint64)])
    bounds = np.append(starts, len(raw))
    inverse = _powers(pow(_BASE, -1, 1 << 64), len(raw))
    word = _scramble((running[bounds[1:]] - running[bounds[:-1]]) * inverse[starts])
    n = min(words, len(word))
    combined = np.zeros(len(word) - n + 1, dtype=np.uint64)
    for i in range(n):  # order counts: a step of the hash for every place
        combined = _scramble(combined ^ word[i : len(word) - n + 1 + i])
    return combined


def _powers(base: int, n: int) -> np.ndarray:
    """base**0 … base**(n-1) modulo 2**64."""
    factors = np.full(max(n, 1), base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _scramble(values: np.ndarray) -> np.ndarray:
    """A one-to-one map of 64-bit numbers whose output bits all depend on all input bits (SplitMix64's, 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash_functions(permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = numpy_generator(derive_seed(seed, "minhash"))
    drawn = generator.integers(0, 1 << 64, size=(2, permutations), dtype=np.uint64, endpoint=False)
    return drawn[0] | np.uint64(1), drawn[1]


def _signature(text: str, functions: tuple[np.ndarray, np.ndarray]) -> UInt[np.ndarray, " permutations"]:
    """The least value of each hash function (multiply-shift, Dietzfelbinger et al. 1997) over the shingles, 32 bits.

    A text of many megabytes is read in parts, so that memory does not grow with it; shingles across parts are left out.
    """
    multipliers, offsets = functions
    least = np.full(len(multipliers), np.iinfo(np.uint64).max, dtype=np.uint64)
    for part in range(0, max(len(text), 1), _PART):
        hashes = shingles(text[part : part + _PART])
        for start in range(0, len(hashes), _BLOCK):
            values = hashes[start : start + _BLOCK] * multipliers[:, None] + offsets[:, None]
            np.minimum(least, values.min(axis=1), out=least)
    return (least >> np.uint64(32)).astype("<u4")


def minhash(text: str, *, permutations: int = PERMUTATIONS, seed: int = 0) -> UInt[np.ndarray, " permutations"]:
    """The signature of a text: `np.mean(minhash(a) == minhash(b))` estimates the similarity of two texts."""
    return _signature(text, _hash_functions(permutations, seed))


def band_rows(threshold: float, permutations: int) -> int:
    """Rows of a band, so that pairs of similarity `threshold` meet in some band with probability 0.99 or more.

    b bands of r rows bring a pair of similarity s together with probability 1 - (1 - s^r)^b; the most rows that reach
    it leave the fewest needless comparisons.
    """
    allowed = [r for r in (16, 8, 4, 2) if 1 - (1 - threshold**r) ** (permutations // r) >= 0.99]
    return allowed[0] if allowed else 1


def _groups(stream: IO[bytes], n: int, permutations: int, threshold: float) -> Int[np.ndarray, " n"]:
    """For each of n documents the first of its group of linked ones; links are found band by band."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    stream.flush()
    signatures = np.memmap(stream, dtype="<u4", mode="r", shape=(n, permutations))  # type: ignore[call-overload]
    rows = band_rows(threshold, permutations)
    group = np.arange(n)
    for start in range(0, permutations, rows):
        left, right = _candidates(signatures, start, rows)
        apart = group[left] != group[right]  # what earlier bands have linked need not be compared again
        left, right = left[apart], right[apart]
        alike = _similarity(signatures, left, right) >= threshold
        if alike.any():
            left, right = np.append(left[alike], group), np.append(right[alike], np.arange(n))
            links = coo_array((np.ones(len(left), dtype=np.bool_), (left, right)), shape=(n, n))
            label = connected_components(links, directed=False)[1]
            first = np.full(label.max() + 1, n)
            np.minimum.at(first, label, np.arange(n))
            group = first[label]
    del signatures
    return group


def _candidates(signatures: np.ndarray, start: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that agree in the band: each document with the first of those it agrees with, and with the one before."""
    keys = np.zeros(len(signatures), dtype=np.uint64)
    for row in range(start, start + rows):
        keys = _scramble(keys ^ signatures[:, row].astype(np.uint64))
    order = np.argsort(keys, kind="stable")  # of equal keys, the earlier document stays in front
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
    begins = np.ones(len(order), dtype=np.bool_)
    begins[same] = False
    first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    left = np.concatenate([order[first[same]], order[same - 1]])
    return left, np.concatenate([order[same], order[same]])


def _similarity(
    signatures: np.ndarray, left: Int[np.ndarray, " pairs"], right: Int[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    parts = [
        (signatures[left[at : at + _PAIRS]] == signatures[right[at : at + _PAIRS]]).mean(axis=1)
        for at in range(0, len(left), _PAIRS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)
