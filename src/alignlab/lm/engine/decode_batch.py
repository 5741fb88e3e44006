"""The pass in which every row reads one token, as a GPU runs it: no Python object in it depends on the rows."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignlab.lm.attention import MultiHeadAttention
from alignlab.lm.cache import RaggedCache, RaggedLayer
from alignlab.lm.config import GPTConfig
from alignlab.lm.engine.paged import PagedCache
from alignlab.lm.positions import AlibiBias
from alignlab.lm.rotary import Rotation


def has_kernel(config: GPTConfig, device: torch.device) -> bool:
    """Whether the kernel of `paged_kernel` serves a model there; it knows no ALiBi and no heads wider than 256."""
    fits = config.positions != "alibi" and config.d_head <= 256 and config.attention != "explicit"
    return fits and device.type == "cuda" and importlib.util.find_spec("triton") is not None


class DecodeBatch(RaggedCache):
    """One new token for each row, whose keys and values the kernel of `paged_kernel` reads where they lie."""

    def __init__(
        self, cache: PagedCache, positions: Int[Tensor, "1 row"], table: Int[Tensor, "row block"], *, length: int
    ) -> None:
        self.cache, self.positions, self.table, self.length = cache, positions, table, length
        self.windows = {False: 0, True: 0}

    def begin(self, tokens: Int[Tensor, "1 row"], real: Bool[Tensor, "1 row"] | None) -> Int[Tensor, "1 row"]:
        return self.positions

    def prepare(self, windowed: bool, window: int | None, alibi: AlibiBias | None, dtype: torch.dtype) -> None:
        assert alibi is None
        self.windows[windowed] = window or 0

    def layer(self, layer: int, windowed: bool) -> DecodeLayer:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return DecodeLayer(keys, values, self.table, self.positions[0], self.windows[windowed])


@dataclass
class DecodeLayer(RaggedLayer):
    """A layer's part of a `DecodeBatch`; a compiled block sees tensors here and nothing that names the layer."""

    keys: Float[Tensor, "block place kv_head d_head"]
    values: Float[Tensor, "block place kv_head d_head"]
    table: Int[Tensor, "row block"]
    positions: Int[Tensor, " row"]
    window: int
    rotates = True

    def attend(
        self,
        attention: MultiHeadAttention,
        q: Float[Tensor, "1 row head d_head"],
        k: Float[Tensor, "1 row kv_head d_head"],
        v: Float[Tensor, "1 row kv_head d_head"],
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "1 row head d_head"]:
        from alignlab.lm.engine.paged_kernel import CachedRows, attend_paged  # needs Triton

        turn = None if rotation is None else (rotation.cos[0, :, 0], rotation.sin[0, :, 0])
        cached = CachedRows(self.keys, self.values, self.table, self.positions)
        cap = attention.config.attn_softcap or 0.0
        z = attend_paged(
            q[0], k[0], v[0], cached, scale=attention.scale, softcap=cap, window=self.window, rotation=turn
        )
        return z[None]
