"""Packing documents of a token corpus into rows of one length: the plan is made once, in whole arrays."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from alignlab.data.shards import TokenShards


@dataclass(frozen=True)
class RowPlan:
    """Which stretches of the corpus each row predicts. Row r has pieces `first[r]` to `first[r + 1]` (exclusive)."""

    starts: Int[np.ndarray, " pieces"]
    """Position of the first target of each piece, in the order of rows."""
    lengths: Int[np.ndarray, " pieces"]
    """Targets of each piece."""
    first: Int[np.ndarray, " rows_and_one"]
    """Number of the first piece of each row, and the number of pieces."""
    length: int
    """Positions of a row."""

    @property
    def rows(self) -> int:
        return len(self.first) - 1

    def batch(self, rows: Int[np.ndarray, " batch"], shards: TokenShards) -> dict[str, np.ndarray]:
        """The rows as arrays (batch, length): `tokens`, `targets`, `segments`, `loss_mask`.

        The input to a document's first target is the separator: the id before it in the stream, or in front of all.
        """
        shape, separator = (len(rows), self.length), shards.manifest.separator
        counts = self.first[rows + 1] - self.first[rows]
        pieces = np.repeat(self.first[rows], counts) + _within(counts)
        lengths = self.lengths[pieces]
        place = _within(lengths)
        row = np.repeat(np.repeat(np.arange(len(rows)), counts), lengths)
        segment = np.repeat(_within(counts) + 1, lengths)
        used = self._used(counts, lengths)
        flat = row * self.length + _within(used)
        targets = np.repeat(self.starts[pieces], lengths) + place
        filled = {
            "tokens": np.full(shape, separator, dtype=np.int64),
            "targets": np.full(shape, separator, dtype=np.int64),
            "segments": np.zeros(shape, dtype=np.int64),
            "loss_mask": np.zeros(shape, dtype=np.bool_),
        }
        inputs = shards.take(np.maximum(targets - 1, 0))
        inputs[targets == 0] = separator
        for name, values in (
            ("tokens", inputs),
            ("targets", shards.take(targets)),
            ("segments", segment),
            ("loss_mask", True),
        ):
            filled[name].reshape(-1)[flat] = values
        return filled

    @staticmethod
    def _used(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Positions that each row fills; no row is without pieces."""
        return np.add.reduceat(lengths, np.cumsum(counts) - counts)


def _within(counts: np.ndarray) -> np.ndarray:
    """0 … c - 1 for each c of `counts`, one after another."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def plan_rows(starts: Int[np.ndarray, " documents"], tokens: int, length: int) -> RowPlan:
    """Rows for documents that start at `starts` in a corpus of `tokens` ids. A function of its arguments alone.

    Documents longer than `length` fill rows of their own; what remains of them is packed with the rest.
    """
    starts = np.array(starts, dtype=np.int64)
    sizes = np.diff(np.append(starts, tokens))
    counts = -(-sizes // length)
    place = _within(counts)
    piece_starts = np.repeat(starts, counts) + place * length
    piece_lengths = np.minimum(length, np.repeat(starts + sizes, counts) - piece_starts)
    row = best_fit(piece_lengths, length)
    # Within a row, pieces keep the order of the corpus.
    order = np.argsort(row, kind="stable")
    first = np.searchsorted(row[order], np.arange(row.max() + 2))
    return RowPlan(piece_starts[order], piece_lengths[order], first, length)


def best_fit(lengths: Int[np.ndarray, " n"], capacity: int) -> Int[np.ndarray, " n"]:
    """The row of each item by best-fit-decreasing (at most 11/9 of the fewest rows, Johnson 1974).

    Items of one length are placed together: the fullest rows that still hold one take as many as they hold, then the
    next fullest. The loop runs over lengths and over the free spaces that occur, not over items, so that millions of
    documents take a moment. Every length is from 1 to `capacity`.
    """
    order = np.argsort(-lengths, kind="stable")
    distinct, begin = np.unique(-lengths[order], return_index=True)
    row = np.empty(len(lengths), dtype=np.int64)
    free: dict[int, list[np.ndarray]] = {}  # free space -> rows with it
    spaces: list[int] = []  # its keys, sorted
    n_rows = 0

    def put(rows: np.ndarray, space: int) -> None:
        if space > 0 and len(rows):
            if space not in free:
                free[space] = []
                insort(spaces, space)
            free[space].append(rows)

    for size, items in zip((-distinct).tolist(), np.split(order, begin[1:]), strict=True):
        while len(items):
            at = bisect_left(spaces, size)
            if at < len(spaces):
                space = spaces.pop(at)
                rows = np.concatenate(free.pop(space))
            else:
                space = capacity
                rows = np.arange(n_rows, n_rows - (-len(items) // (capacity // size)))
                n_rows += len(rows)
            each = space // size
            whole = min(len(rows), len(items) // each)  # rows that take as many as they hold
            row[items[: whole * each]] = np.repeat(rows[:whole], each)
            put(rows[:whole], space - each * size)
            items, rows = items[whole * each :], rows[whole:]
            if len(rows) and len(items):  # one more row takes the few that are left
                row[items] = rows[0]
                put(rows[:1], space - len(items) * size)
                items, rows = items[:0], rows[1:]
            put(rows, space)
    return row
