"""Packing: examples of different lengths laid into rows of one length, with nothing attending across examples.

`pack` lays them, `batches` shuffles and trims the rows, `next_token_targets` says what each position should predict.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from alignlab.core.errors import DataError
from alignlab.core.rng import derive_seed, torch_generator

Row = dict[str, Tensor]


@dataclass(frozen=True)
class Example:
    """One sequence and which of its tokens the model should learn to produce."""

    tokens: list[int]
    """Token ids."""
    loss_mask: list[bool]
    """True where the token itself counts in the loss (the shift by one happens in `next_token_targets`)."""


def pack(
    examples: Sequence[Example],
    length: int,
    *,
    overflow: Literal["truncate", "error"] = "error",
    keep: Literal["start", "end"] = "end",
    pad_id: int = 0,
) -> list[Row]:
    """Lay examples into as few rows of `length` tokens as best-fit-decreasing finds.

    Longest first, each example goes into the row with the least space that still holds it (at most 11/9 of the best
    possible number of rows, Johnson 1974). Ties go to the earlier example and the older row, so the result is a
    function of the input alone. Each row has `tokens` (int64), `loss_mask` (bool) and `segments` (int64: 1, 2, ... for
    the examples in it, 0 for padding), all of shape (length,).

    Args:
        overflow: what happens to an example longer than `length`: an error, or it is cut.
        keep: which part of a cut example stays; the end by default, where an answer is.

    Raises:
        DataError: no examples, an empty one, a mask of another length, one that is too long, or one whose
            every learnable token was cut away.
    """
    if length < 2:
        raise DataError(f"length is {length}, allowed: at least 2 (one token to read, one to predict)")
    if not examples:
        raise DataError("there are no examples to pack; at least one is needed")
    fitted = [_fit(example, i, length, overflow, keep) for i, example in enumerate(examples)]
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free tokens, row), sorted; full rows leave the list
    for i in sorted(range(len(fitted)), key=lambda i: (-len(fitted[i].tokens), i)):
        need = len(fitted[i].tokens)
        at = bisect_left(space, (need, -1))
        free, row = space.pop(at) if at < len(space) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        if free > need:
            insort(space, (free - need, row))
    return [_row([fitted[i] for i in row], length, pad_id) for row in rows]


def _fit(example: Example, index: int, length: int, overflow: str, keep: str) -> Example:
    n = len(example.tokens)
    if n == 0:
        raise DataError(f"example {index} has no tokens")
    if n != len(example.loss_mask):
        raise DataError(f"example {index} has {n} tokens and a loss_mask of {len(example.loss_mask)}; they must agree")
    if n <= length:
        return example
    if overflow == "error":
        raise DataError(
            f"example {index} has {n} tokens, but a row holds {length}; raise the length or pass overflow='truncate'"
        )
    part = slice(n - length, n) if keep == "end" else slice(0, length)
    cut = Example(example.tokens[part], example.loss_mask[part])
    if any(example.loss_mask) and not any(cut.loss_mask[1:]):
        raise DataError(f"example {index} has nothing left to learn once cut from {n} to the {keep}'s {length} tokens")
    return cut


def _row(examples: Sequence[Example], length: int, pad_id: int) -> Row:
    tokens = torch.full((length,), pad_id, dtype=torch.int64)
    loss_mask = torch.zeros(length, dtype=torch.bool)
    segments = torch.zeros(length, dtype=torch.int64)
    start = 0
    for number, example in enumerate(examples, start=1):
        part = slice(start, start + len(example.tokens))
        tokens[part] = torch.tensor(example.tokens, dtype=torch.int64)
        loss_mask[part] = torch.tensor(example.loss_mask, dtype=torch.bool)
        segments[part] = number
        start = part.stop
    return {"tokens": tokens, "loss_mask": loss_mask, "segments": segments}


def next_token_targets(batch: Row) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """What each position should predict, and where that counts.

    `targets[b, t] = tokens[b, t + 1]`; the mask is True where token `t + 1` is in the loss mask and belongs to the
    same segment as token `t`. The first token of an example has no predecessor and so is never a target. Without
    `segments` in the batch the whole row is one example; without `loss_mask` every token counts.
    """
    tokens = batch["tokens"]
    targets, mask = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    targets[:, :-1] = tokens[:, 1:]
    mask[:, :-1] = batch["loss_mask"][:, 1:] if "loss_mask" in batch else True
    if "segments" in batch:
        segments = batch["segments"]
        mask[:, :-1] &= (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return targets, mask


@dataclass
class Batches:
    """Batch number i of endlessly (or `epochs` times) repeated, freshly shuffled rows: a pure function of i."""

    rows: Sequence[Row]
    batch_size: int
    seed: int = 0
    epochs: int | None = None
    _order: tuple[int, list[int]] = field(default=(-1, []), repr=False)

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the rows; the last one may be smaller."""
        return -(-len(self.rows) // self.batch_size)

    def __len__(self) -> int:
        if self.epochs is None:
            raise DataError("these batches repeat without end and have no length; give epochs=")
        return self.epochs * self.per_epoch

    def __call__(self, index: int) -> Row:
        epoch, at = divmod(index, self.per_epoch)
        if index < 0 or (self.epochs is not None and epoch >= self.epochs):
            raise DataError(f"batch {index} was asked for, but there are {self.per_epoch * (self.epochs or 0)}")
        if self._order[0] != epoch:
            generator = torch_generator(derive_seed(self.seed, "epoch", epoch))
            self._order = (epoch, torch.randperm(len(self.rows), generator=generator).tolist())
        chosen = self._order[1][at * self.batch_size : (at + 1) * self.batch_size]
        return collate([self.rows[i] for i in chosen])


def batches(rows: Sequence[Row], batch_size: int, *, seed: int = 0, epochs: int | None = None) -> Batches:
    """Micro-batches for `Trainer.fit`: shuffled anew each epoch, padding trimmed to the longest row of each batch.

    Raises:
        DataError: no rows, or a batch size below 1; when called, a batch number past the last epoch.
    """
    if not rows:
        raise DataError("there are no rows to make batches of; at least one is needed")
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}, allowed: a positive whole number")
    return Batches(rows, batch_size, seed, epochs)


def collate(rows: Sequence[Row]) -> Row:
    """Stack rows of one length to (batch, pos) and drop the columns that are padding in all of them."""
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    used = int((batch["segments"] > 0).any(dim=0).sum())  # padding is always at the end
    return {key: value[:, : max(used, 1)] for key, value in batch.items()}
