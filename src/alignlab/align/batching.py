"""Batches of examples of different length: shuffled, then grouped so that a batch wastes little on padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignlab.core.config import require
from alignlab.core.errors import DataError
from alignlab.core.rng import derive_seed, torch_generator

GROUP = 8
"""Batches whose examples are sorted by length among themselves; larger wastes less padding and shuffles less."""


class LengthBatches:
    """Micro-batch number i as a list of example indices: a pure function of i, so that training resumes exactly.

    Each epoch visits every example once, in a new order; a last batch may be smaller.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        require(batch_size >= 1, "batch_size", batch_size, "a positive whole number")
        if not lengths:
            raise DataError("there are no examples to make batches of; at least one is needed")
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self._epoch, self._batches = -1, list[list[int]]()

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the examples."""
        return -(-len(self.lengths) // self.batch_size)

    def __call__(self, index: int) -> list[int]:
        epoch, position = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self.epoch_batches(epoch)
        return self._batches[position]

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """All batches of one epoch."""
        generator = torch_generator(derive_seed(self.seed, "length batches", epoch))
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size, batches = self.batch_size, []
        for start in range(0, len(order), size * GROUP):
            group = sorted(order[start : start + size * GROUP], key=lambda i: self.lengths[i])
            pieces = [group[i : i + size] for i in range(0, len(group), size)]
            batches += [pieces[i] for i in torch.randperm(len(pieces), generator=generator).tolist()]
        return batches


def in_length_order(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """All indices once, longest first (a batch that does not fit into memory fails at once), for passes without
    training.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
