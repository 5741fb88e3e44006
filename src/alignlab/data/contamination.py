"""Whether training texts hold what a model is going to be evaluated on: runs of words in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.data.dedup import shingles

BOILERPLATE = 0.02


@dataclass(frozen=True)
class Overlap:
    """What a text shares with an evaluation."""

    text: int
    """Which of the evaluation's texts."""
    words: int
    """How many words in a row."""


class Evaluated:
    """The runs of `words` words of an evaluation's texts (13 in Brown et al. 2020), to be looked for in others.

    A text of fewer words counts as one run; below `least` words it is no evidence and is left out (`ignored`). Runs
    that more than 2 % of the texts (and more than two) have in common are instructions, and are left out too: a text of
    nothing else cannot be found. Case and punctuation do not count.
    """

    def __init__(self, texts: Sequence[str], *, words: int = 13, least: int = 6) -> None:
        require(words >= least >= 1, "words", words, f"a whole number of at least {least}")
        if not texts:
            raise DataError("the evaluation has no texts to look for")
        runs: dict[int, list[tuple[np.ndarray, int]]] = {}
        self.ignored = 0
        for number, text in enumerate(texts):
            n = len(shingles(text, 1))
            if n < least:
                self.ignored += 1
                continue
            size = min(words, n)
            runs.setdefault(size, []).append((np.unique(shingles(text, size)), number))
        self.runs = {size: _index(found, max(2.0, BOILERPLATE * len(texts))) for size, found in runs.items()}
        """By length: the hashes in order, and the text of each."""

    def find(self, text: str) -> Overlap | None:
        """The longest run that `text` shares with the evaluation; None where there is none."""
        for size in sorted(self.runs, reverse=True):
            hashes, numbers = self.runs[size]
            own = shingles(text, size)
            at = np.searchsorted(hashes, own)
            inside = np.flatnonzero(at < len(hashes))
            hits = inside[hashes[at[inside]] == own[inside]]
            if len(hits):
                return Overlap(int(numbers[at[hits[0]]]), size)
        return None


def _index(found: list[tuple[np.ndarray, int]], most: float) -> tuple[np.ndarray, np.ndarray]:
    hashes = np.concatenate([part for part, _ in found])
    numbers = np.concatenate([np.full(len(part), number) for part, number in found])
    values, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    return values[counts <= most], numbers[first][counts <= most]
