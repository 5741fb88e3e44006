"""Setting text aside for validation, in a way that neither the order nor the size of a corpus changes.

A document falls into validation by a hash of its text, so that copies of one text are never in both parts. A corpus of
few documents is cut inside them instead: the end of each is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from alignlab.core.errors import DataError

FEW_DOCUMENTS = 20


@dataclass(frozen=True)
class Part:
    """One part of a corpus that can be read again and again."""

    documents: Iterable[str]
    validation: bool
    """Which part: what is held out, or the rest."""
    fraction: float
    """The share of the text that is held out."""
    inside: bool
    """Documents are cut, instead of each being in one of the parts."""
    seed: int = 0

    def __iter__(self) -> Iterator[str]:
        for document in self.documents:
            if self.inside:
                cut = int(len(document) * (1 - self.fraction))
                yield document[cut:] if self.validation else document[:cut]
            elif (_place(document, self.seed) < self.fraction) == self.validation:
                yield document


def _place(document: str, seed: int) -> float:
    """A number in [0, 1) that the text decides."""
    digest = hashlib.blake2b(document.encode("utf-8", "replace"), digest_size=8, salt=(seed % 2**64).to_bytes(8, "big"))
    return int.from_bytes(digest.digest()[:6], "big") / 2**48


def split_validation(
    documents: Iterable[str], fraction: float, *, by: Literal["auto", "documents", "end"] = "auto", seed: int = 0
) -> tuple[Part, Part]:
    """The parts of a corpus for training and for validation; `documents` is read again for each.

    Args:
        fraction: the share that is held out.
        by: "documents" holds whole documents out, "end" the last part of each document; "auto" holds out whole
            documents where there are at least 20.

    Raises:
        DataError: a fraction outside of (0, 1).
    """
    if not 0 < fraction < 1:
        raise DataError(f"the share for validation is {fraction}, allowed: a number between 0 and 1")
    inside = by == "end" or (by == "auto" and sum(1 for _ in islice(documents, FEW_DOCUMENTS)) < FEW_DOCUMENTS)
    return Part(documents, False, fraction, inside, seed), Part(documents, True, fraction, inside, seed)
