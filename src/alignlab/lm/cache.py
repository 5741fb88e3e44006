"""The key-value cache: preallocated once for a batch, filled column by column."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.lm.config import GPTConfig

if TYPE_CHECKING:
    from alignlab.lm.attention import MultiHeadAttention
    from alignlab.lm.positions import AlibiBias
    from alignlab.lm.rotary import Rotation


class RaggedCache(ABC):
    """A cache whose rows take different numbers of new tokens in one pass: they stand end to end, as one row of tokens.

    Whatever works on one token at a time does not notice; the attention between tokens is the cache's affair, which
    knows which token belongs to whom (`alignlab.lm.engine.paged`).
    """

    length: int
    """A bound that no position of this pass reaches."""

    @abstractmethod
    def begin(self, tokens: Int[Tensor, "1 total"], real: Bool[Tensor, "1 total"] | None) -> Int[Tensor, "1 total"]:
        """Positions of the new tokens, each in its own row's count."""

    @abstractmethod
    def prepare(self, windowed: bool, window: int | None, alibi: AlibiBias | None, dtype: torch.dtype) -> None:
        """Make the masks (or ALiBi's penalties) of this pass for the windowed or for the full layers."""

    @abstractmethod
    def layer(self, layer: int, windowed: bool) -> RaggedLayer:
        """What one layer of the model sees of this pass."""


class RaggedLayer:
    """One layer's part of a pass over a `RaggedCache`. It says itself which layer it is, so that all layers' programs
    are one to a compiler."""

    rotates = False
    """Whether queries and keys come as projected, with the rotation that `attend` then gives them."""

    def attend(
        self,
        attention: MultiHeadAttention,
        q: Float[Tensor, "1 total head d_head"],
        k: Float[Tensor, "1 total kv_head d_head"],
        v: Float[Tensor, "1 total kv_head d_head"],
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "1 total head d_head"]:
        """Keep the new keys and values, and attend from each token to all before it in its row."""
        raise NotImplementedError


class KVCache:
    """Keys and values of everything a batch has read so far.

    Column c of row b holds a token at position `positions[b, c]`, or padding where that is -1; padding may stand
    anywhere, so rows of different length share a batch. The first `shared` columns may be common to all rows: they are
    then held once, as `prefix` (see `spread`).
    """

    def __init__(self, config: GPTConfig, batch: int, capacity: int, *, device: torch.device, dtype: torch.dtype):
        shape = (config.n_layers, batch, config.n_kv_heads, capacity, config.d_head)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.positions = torch.full((batch, capacity), -1, device=device)
        self.next_position = torch.zeros(batch, dtype=torch.long, device=device)
        self.length = 0
        self.padded = False
        self.shared = 0
        self.prefix_keys: Tensor | None = None
        self.prefix_values: Tensor | None = None

    @property
    def capacity(self) -> int:
        return self.positions.shape[1]

    def begin(
        self, tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"] | None
    ) -> Int[Tensor, "batch pos"]:
        """Claim columns for new tokens (`real` is False on padding) and return their positions, -1 on padding."""
        width = tokens.shape[1]
        if self.length + width > self.capacity:
            raise ModelError(f"the cache holds {self.capacity} tokens, {self.length + width} are needed")
        if real is None:
            positions = self.next_position[:, None] + torch.arange(width, device=tokens.device)
            self.next_position = self.next_position + width
        else:
            positions = torch.where(real, self.next_position[:, None] + real.long().cumsum(1) - 1, -1)
            self.next_position = self.next_position + real.sum(1)
            self.padded = True
        self.positions[:, self.length : self.length + width] = positions
        self.length += width
        return positions

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values (batch, pos, head, d_head); return all not shared, heads first."""
        end = self.length - self.shared
        start = end - k.shape[1]
        self.keys[layer, :, :, start:end] = k.transpose(1, 2)
        self.values[layer, :, :, start:end] = v.transpose(1, 2)
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def prefix(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values (head, pos, d_head) that all rows share, or None."""
        if self.prefix_keys is None or self.prefix_values is None:
            return None
        return self.prefix_keys[layer], self.prefix_values[layer]

    def spread(self, batch: int) -> None:
        """Let `batch` rows go on from what the single row has read, which is held once for all of them."""
        self.shared = self.length
        self.prefix_keys = self.keys[:, 0, :, : self.shared].contiguous()
        self.prefix_values = self.values[:, 0, :, : self.shared].contiguous()
        layers, _, heads, capacity, d_head = self.keys.shape
        self.keys = self.keys.new_empty((layers, batch, heads, capacity - self.shared, d_head))
        self.values = torch.empty_like(self.keys)
        self.positions = self.positions.repeat(batch, 1)
        self.next_position = self.next_position.repeat(batch)

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only `rows`, in that order."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.positions, self.next_position = self.positions[rows], self.next_position[rows]
