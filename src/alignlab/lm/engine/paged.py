"""The paged key-value cache, and the attention of rows that stand end to end over it.

Keys and values lie in blocks of `block_size` tokens, (layer, block, place, kv_head, d_head). A row's block table names
its blocks in order, so rows grow without moving and share beginnings. Attention gathers the blocks of rows of similar
length into a contiguous view and then is ordinary attention (PagedAttention, Kwon et al. 2023, reads the blocks where
they lie; on the few rows of a CPU one gathered copy per layer is simple and close to it).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.lm.attention import Extra, MultiHeadAttention, causal_mask
from alignlab.lm.cache import RaggedCache, RaggedLayer
from alignlab.lm.config import GPTConfig
from alignlab.lm.engine.blocks import ZERO_BLOCK
from alignlab.lm.engine.invariant import attend_invariantly
from alignlab.lm.positions import AlibiBias
from alignlab.lm.rotary import Rotation

SHARED_BLOCKS = 2
"""Rows that begin with at least this many common blocks meet them in one product (`attend_with_prefix`)."""


class PagedCache:
    """The memory: blocks 1 … `n_blocks`, block 0 of zeros, and one more that takes what must be written but not kept.

    Masked numbers still take part in a product with 0, so nothing that is not finite may stay in a block: memory
    starts as zeros, and `scrub` cleans what a request with NaN leaves.
    """

    def __init__(
        self, config: GPTConfig, n_blocks: int, block_size: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.n_blocks, self.block_size = config, n_blocks, block_size
        self.scratch = n_blocks + 1
        shape = (config.n_layers, n_blocks + 2, block_size, config.n_kv_heads, config.d_head)
        self.keys = zeros(shape, device, dtype)
        self.values = zeros(shape, device, dtype)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @staticmethod
    def bytes_per_block(config: GPTConfig, block_size: int, dtype: torch.dtype) -> int:
        return 2 * config.n_layers * block_size * config.n_kv_heads * config.d_head * dtype.itemsize

    def write(self, layer: int, slots: Int[Tensor, " total"], k: Tensor, v: Tensor) -> None:
        """Keep keys and values (total, kv_head, d_head) of one layer; slot = block · block_size + place."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, k)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, v)

    def gather(self, layer: int, table: Int[Tensor, "row block"]) -> tuple[Tensor, Tensor]:
        """Keys and values (row, kv_head, key, d_head) of the blocks in `table`."""
        keys, values = (t[layer].index_select(0, table.flatten()) for t in (self.keys, self.values))
        shape = (len(table), -1, *keys.shape[2:])
        return keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2)

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zeros into `blocks`."""
        index = torch.tensor(list(blocks), dtype=torch.long, device=self.device)
        self.keys[:, index] = 0
        self.values[:, index] = 0


def zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros; on the CPU the system hands out their memory when it is first written, not now."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(n_bytes, np.uint8)).view(dtype).view(shape)


class Span(NamedTuple):
    """The tokens of one row in a pass: `n_new` after the `start` that its `blocks` already hold."""

    blocks: Sequence[int]
    start: int
    n_new: int


@dataclass
class Group:
    """Neighbouring rows of a pass that attend together: one new token each, or equally many at the same place."""

    first: int
    """Column of its first token."""
    n_rows: int
    n_query: int
    positions: Int[Tensor, "row query"]
    table: Int[Tensor, "row block"] | None
    """Their blocks, or None where all they may look at is new."""
    shared: Int[Tensor, " block"] | None = None
    """Blocks that stand before those of `table` in all rows."""
    uniform: bool = False
    """Whether every query may look at every gathered key."""
    n_keys: int | None = None
    """How many of the gathered keys count for any row; None for all."""
    masks: dict[bool, Bool[Tensor, "row 1 query key"] | None] = field(default_factory=dict)
    extras: dict[bool, Extra | None] = field(default_factory=dict)

    @property
    def columns(self) -> slice:
        return slice(self.first, self.first + self.n_rows * self.n_query)

    def key_positions(self, block_size: int) -> Int[Tensor, "1 key"]:
        n_blocks = (0 if self.table is None else self.table.shape[1]) + (0 if self.shared is None else len(self.shared))
        n_keys = self.n_query if self.table is None else n_blocks * block_size
        return torch.arange(n_keys if self.n_keys is None else self.n_keys, device=self.positions.device)[None]


class PagedBatch(RaggedCache):
    """One pass over rows of a `PagedCache`.

    With `invariant`, attention adds up in an order that no other row and no chunking changes (`engine.invariant`).
    """

    def __init__(
        self,
        cache: PagedCache,
        positions: Int[Tensor, "1 total"],
        slots: Int[Tensor, " total"],
        groups: list[Group],
        *,
        length: int,
        invariant: bool = False,
    ) -> None:
        self.cache, self.positions, self.slots, self.groups = cache, positions, slots, groups
        self.length, self.invariant = length, invariant

    @classmethod
    def of(cls, cache: PagedCache, spans: Sequence[Span], *, invariant: bool = False, pad_to: int = 1) -> PagedBatch:
        """The pass over `spans`, which stand in `pass_order`, with idle tokens up to a multiple of `pad_to`."""
        size, total = cache.block_size, sum(span.n_new for span in spans)
        padding = -total % pad_to
        positions = np.concatenate([np.arange(s.start, s.start + s.n_new) for s in spans] + [np.zeros(padding, int)])
        slots = np.full(total + padding, cache.scratch * size)
        at = 0
        for span in spans:
            own = positions[at : at + span.n_new]
            slots[at : at + span.n_new] = np.asarray(span.blocks)[own // size] * size + own % size
            at += span.n_new
        placed = torch.from_numpy(positions).to(cache.device)
        groups = make_groups(cache, spans, placed, trim=not invariant)
        length = max(span.start + span.n_new for span in spans)
        return cls(
            cache, placed[None], torch.from_numpy(slots).to(cache.device), groups, length=length, invariant=invariant
        )

    def begin(self, tokens: Int[Tensor, "1 total"], real: Bool[Tensor, "1 total"] | None) -> Int[Tensor, "1 total"]:
        return self.positions

    def prepare(self, windowed: bool, window: int | None, alibi: AlibiBias | None, dtype: torch.dtype) -> None:
        for group in self.groups:
            mask, extra = None, None
            if alibi is not None or window is not None or not group.uniform:
                keys = group.key_positions(self.cache.block_size)
                mask = causal_mask(group.positions, keys, window)
                if alibi is not None:
                    extra = Extra(bias=alibi(group.positions, keys, mask, dtype))
            group.masks[windowed], group.extras[windowed] = mask, extra

    def layer(self, layer: int, windowed: bool) -> PagedLayer:
        return PagedLayer(self, layer, windowed)


class PagedLayer(RaggedLayer):
    """A layer's part of a `PagedBatch`: attention group by group."""

    def __init__(self, batch: PagedBatch, layer: int, windowed: bool) -> None:
        self.batch, self.layer, self.windowed = batch, layer, windowed

    def attend(
        self,
        attention: MultiHeadAttention,
        q: Float[Tensor, "1 total head d_head"],
        k: Float[Tensor, "1 total kv_head d_head"],
        v: Float[Tensor, "1 total kv_head d_head"],
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "1 total head d_head"]:
        batch, cache, layer, windowed = self.batch, self.batch.cache, self.layer, self.windowed
        cache.write(layer, batch.slots, k[0], v[0])
        found = []
        for group in batch.groups:
            rows = (group.n_rows, group.n_query)
            own_q, own_k, own_v = (t[0, group.columns].unflatten(0, rows).transpose(1, 2) for t in (q, k, v))
            mask, extra, shared = group.masks[windowed], group.extras[windowed], None
            if group.table is not None:
                own_k, own_v = (t[:, :, : group.n_keys] for t in cache.gather(layer, group.table))
                if group.shared is not None:
                    far_k, far_v = cache.gather(layer, group.shared[None])
                    shared = far_k[0], far_v[0]
            if batch.invariant and mask is not None and not attention.taps:
                z = attend_invariantly(attention, own_q, own_k, own_v, mask, extra)
            else:
                z = attention.attend(own_q, own_k, own_v, mask, shared, extra)  # (row, query, head, d_head)
            found.append(z.reshape(-1, *z.shape[2:]))
        spare = q.shape[1] - sum(map(len, found))
        if spare:
            found.append(q.new_zeros(spare, *q.shape[2:]))
        return (found[0] if len(found) == 1 else torch.cat(found))[None]


def pass_order(span: Span) -> tuple[int, int, int, int]:
    """Sorting key: rows of one new token first, by how many blocks they look at; then alike ones beside each other."""
    seen = span.start + span.n_new
    return (0, len(span.blocks), seen, 0) if span.n_new == 1 else (1, span.n_new, span.start, 0)


def group_of(span: Span, block_size: int) -> tuple[int, int]:
    """What the rows of a group have in common: decoding ones a length within a factor of two, others their place."""
    if span.n_new == 1:
        return -1, (-(-(span.start + 1) // block_size) - 1).bit_length()
    return span.n_new, span.start


def make_groups(cache: PagedCache, spans: Sequence[Span], positions: Tensor, *, trim: bool) -> list[Group]:
    """Neighbours of `spans` that attend together; `trim` spares them keys that none or all of them look at."""
    groups, first, size = [], 0, cache.block_size
    for _, alike in itertools.groupby(spans, lambda span: group_of(span, size)):
        rows = list(alike)
        n_query = rows[0].n_new
        total = len(rows) * n_query
        placed = positions[first : first + total].view(len(rows), n_query)
        lengths = [span.start + span.n_new for span in rows]
        group = Group(first, len(rows), n_query, placed, None)
        if n_query > 1 and max(lengths) == n_query and trim:
            group.uniform = True  # nothing came before: plain causal attention among the new tokens
        else:
            n_blocks = [-(-length // size) for length in lengths]
            common = common_blocks([span.blocks[:n] for span, n in zip(rows, n_blocks, strict=True)]) if trim else 0
            table = np.full((len(rows), max(n_blocks) - common), ZERO_BLOCK)
            for i, (span, n) in enumerate(zip(rows, n_blocks, strict=True)):
                table[i, : n - common] = span.blocks[common:n]
            group.table = torch.from_numpy(table).to(cache.device)
            if common:
                group.shared = torch.tensor(rows[0].blocks[:common], device=cache.device)
            elif trim:
                group.n_keys = max(lengths)
            group.uniform = trim and not common and n_query == 1 and min(lengths) == max(lengths)
        groups.append(group)
        first += total
    return groups


def common_blocks(tables: Sequence[Sequence[int]]) -> int:
    """How many leading blocks all rows have in common, each keeping one of its own; 0 where it does not pay."""
    if len(tables) < 2:
        return 0
    limit = min(map(len, tables)) - 1
    first = tables[0]
    common = next((i for i in range(limit) if any(table[i] != first[i] for table in tables)), limit)
    return common if common >= SHARED_BLOCKS else 0
