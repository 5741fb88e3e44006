"""The loader: batch number i of a token corpus, a pure function of i, so that any interruption resumes exactly.

Shuffling needs no table: the order of an epoch is a keyed permutation that is evaluated where it is needed. No state
moves from one batch to the next, so ranks and workers can ask for any batches in any order.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from alignlab.core.errors import DataError
from alignlab.core.rng import derive_seed
from alignlab.data.document_rows import plan_rows
from alignlab.data.shards import TokenShards

Batch = dict[str, Tensor]
_ROUNDS = 8


class TokenLoader:
    """Micro-batches of `batch_size` rows of `length` tokens; `loader(i)` is the same whenever and wherever it is asked.

    Rows are drawn epoch after epoch, each in an order of its own, and a batch may span two epochs: over any number of
    batches every row comes equally often, give or take one. Each rank gets its own part of the rows of batch i; put
    together in the order of ranks, they are the same batch for every `world` that divides `batch_size`.

    Without `documents` a row is a window of the stream: row w has `tokens` w·length … (w+1)·length - 1 and as `targets`
    the ids one further. The last fewer than `length` tokens of the corpus are left out (`evaluation_batches` has them).

    With `documents`, rows are packed with whole documents, best fit first. Every id of a document is a target once: the
    first is predicted from the separator before it. A document longer than a row is cut into rows; its pieces do not
    see each other. Batches then also have `segments` (1, 2, … for the documents of a row, 0 for padding) and
    `loss_mask` (True where the target counts), so that neither attention nor positions cross documents.

    Args:
        length: tokens of a row.
        batch_size: rows of a batch, over all ranks.

    Raises:
        DataError: a length that the corpus does not reach, a world size that does not divide the batch, a rank outside
            of the world, or a number below 1.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        documents: bool = False,
    ) -> None:
        for name, value in (("length", length), ("batch_size", batch_size), ("world", world)):
            if value < 1:
                raise DataError(f"{name} is {value}, allowed: a positive whole number")
        if batch_size % world:
            fitting = ", ".join(str(n) for n in range(1, batch_size + 1) if batch_size % n == 0)
            raise DataError(
                f"a world size of {world} does not divide the batch of {batch_size} rows; allowed: {fitting}"
            )
        if not 0 <= rank < world:
            raise DataError(f"rank is {rank}, allowed: 0 to {world - 1} in a world of {world}")
        self.shards, self.length, self.batch_size, self.seed = shards, length, batch_size, seed
        self.rank, self.world, self.documents = rank, world, documents
        self._plan = plan_rows(shards.document_starts, len(shards), length) if documents else None
        self.rows = (len(shards) - 1) // length if self._plan is None else self._plan.rows
        """Rows of one epoch."""
        if self.rows < 1:
            raise DataError(
                f"the corpus {shards.path} has {len(shards)} tokens, but a row of length {length} needs {length + 1}; "
                "lower the length or use more text"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the rows, at least 1."""
        return max(1, self.rows // self.batch_size)

    @property
    def padding(self) -> float:
        """The share of positions that packing leaves empty; 0 without `documents`."""
        plan = self._plan
        return 0.0 if plan is None else 1.0 - int(plan.lengths.sum()) / (plan.rows * self.length)

    def fingerprint(self) -> dict[str, str | int | bool]:
        """What decides which batch comes when; equal for every rank and world size."""
        return {
            "corpus": self.shards.manifest.digest,
            "length": self.length,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "documents": self.documents,
        }

    def row_numbers(self, index: int) -> Int[np.ndarray, " rows"]:
        """The numbers of this rank's rows of global batch `index`."""
        if index < 0:
            raise DataError(f"batch {index} was asked for, allowed: 0 and above")
        per_rank = self.batch_size // self.world
        first = index * self.batch_size + self.rank * per_rank
        epochs, places = np.divmod(np.arange(first, first + per_rank), self.rows)
        numbers = np.empty(per_rank, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            numbers[here] = permute(places[here], self.rows, derive_seed(self.seed, "epoch", int(epoch)))
        return numbers

    def __call__(self, index: int) -> Batch:
        rows = self.row_numbers(index)
        if self._plan is not None:
            return _as_tensors(self._plan.batch(rows, self.shards))
        ids = self.shards.take(rows[:, None] * self.length + np.arange(self.length + 1))  # (rows, length + 1)
        return _as_tensors({"tokens": ids[:, :-1], "targets": ids[:, 1:]})

    __getitem__ = __call__
    """`loader[i]`, for `torch.utils.data.DataLoader(loader, sampler=range(start, stop), batch_size=None)`."""


def _as_tensors(arrays: dict[str, np.ndarray]) -> Batch:
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}


def permute(places: Int[np.ndarray, " n"], size: int, key: int) -> Int[np.ndarray, " n"]:
    """Where a permutation of 0 … `size` - 1 that `key` chooses sends each of `places`; int64.

    A Feistel network (Luby and Rackoff 1988) permutes the smallest 4**k that holds `size`; what falls outside is sent
    on until it falls inside (cycle walking, Black and Rogaway 2002), which keeps the map one to one.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = [np.uint64(derive_seed(key, "round", i)) for i in range(_ROUNDS)]
    values = places.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        high, low = values[outside] >> np.uint64(half), values[outside] & mask
        for round_key in keys:
            high, low = low, high ^ (_mix(low ^ round_key) & mask)
        values[outside] = (high << np.uint64(half)) | low
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), modulo 2**64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def evaluation_batches(shards: TokenShards, *, length: int, batch_size: int) -> Iterator[Batch]:
    """The whole stream once, in order: every id but the first is a target exactly once.

    Batches are those of a `TokenLoader` without shuffling; the last of full rows may have fewer rows, and what is left
    of the stream comes as one shorter row.

    Raises:
        DataError: a corpus of one token, which leaves nothing to predict, or a number below 1.
    """
    if length < 1 or batch_size < 1:
        raise DataError(f"length is {length} and batch_size {batch_size}, allowed: positive whole numbers")
    if len(shards) < 2:
        raise DataError(f"the corpus {shards.path} has one token; at least two are needed to predict one")
    return _in_order(shards, length, batch_size)


def _in_order(shards: TokenShards, length: int, batch_size: int) -> Iterator[Batch]:
    full = (len(shards) - 1) // length
    for first in range(0, full, batch_size):
        starts = np.arange(first, min(first + batch_size, full)) * length
        ids = shards.take(starts[:, None] + np.arange(length + 1))
        yield _as_tensors({"tokens": ids[:, :-1], "targets": ids[:, 1:]})
    rest = shards.slice(full * length, len(shards))[None]
    if rest.shape[1] > 1:
        yield _as_tensors({"tokens": rest[:, :-1], "targets": rest[:, 1:]})


class Prefetch:
    """Asks for the next batches in threads while the current one is used; `prefetch(i)` equals `batch_at(i)`.

    Any order of calls is right, only consecutive ones are fast. Errors of `batch_at` are raised where their batch is
    asked for. Use it in a `with` block, or call `close`.
    """

    def __init__(self, batch_at: Callable[[int], Batch], *, workers: int = 1, ahead: int = 2) -> None:
        if workers < 1 or ahead < 1:
            raise DataError(f"workers is {workers} and ahead {ahead}, allowed: positive whole numbers")
        self.batch_at, self.ahead = batch_at, ahead
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self._waiting: OrderedDict[int, Future[Batch]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, index: int) -> Batch:
        with self._lock:
            for stale in [i for i in self._waiting if not index <= i <= index + self.ahead]:
                self._waiting.pop(stale).cancel()
            for i in range(index, index + self.ahead + 1):
                if i not in self._waiting:
                    self._waiting[i] = self._pool.submit(self.batch_at, i)
            wanted = self._waiting.pop(index)
        return wanted.result()

    def close(self) -> None:
        """Stop the threads; batches not yet asked for are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
