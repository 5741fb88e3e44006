"""Adapters beside packed weights: small matrices of their own, packed anew whenever they have changed."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alignlab.lm.cpu_step import structures
from alignlab.lm.cpu_step.pack import Packer, packed_bytes
from alignlab.lm.lora import LoRALinear
from alignlab.lm.quant.adapted import AdaptedLinear
from alignlab.lm.quant.layout import LANES

MOST_RANKS = 64
"""Of all adapters of a layer together; beyond, torch's products are the better ones."""


class Adapter(NamedTuple):
    """What adds `scale * b (a x)` to a layer's output."""

    a: Tensor
    b: Tensor
    scale: float


class Place(NamedTuple):
    """A layer of a model: its block, and its name in model.h."""

    block: int
    name: str


def adapters_of(layer: nn.Module | None) -> list[Adapter]:
    """The adapters that act beside a layer's weight, the innermost first; merged and disabled ones do not."""
    if isinstance(layer, AdaptedLinear):
        return [Adapter(layer.a, layer.b, 1.0)]
    if not isinstance(layer, LoRALinear):
        return []
    acts = layer.enabled and not layer.merged
    return adapters_of(layer.base) + ([Adapter(layer.lora_A, layer.lora_B, layer.scaling)] if acts else [])


def can_be_added(adapters: list[Adapter]) -> bool:
    """Whether the program can add them to a layer's output."""
    tensors = [tensor for adapter in adapters for tensor in adapter[:2]]
    on_cpu = all(type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" for tensor in tensors)
    return on_cpu and sum(len(adapter.a) for adapter in adapters) <= MOST_RANKS


class PackedAdapters:
    """A packed model's structures once more, with adapters beside the weights; stale once an adapter is written to.

    In a bfloat16 model `a` and `b` are rounded to bfloat16, as torch's way rounds them; the update itself never is.
    """

    def __init__(self, model: structures.Model, layers: ctypes.Array, adapters: dict[Place, list[Adapter]]) -> None:
        self.adapters = adapters
        self.tensors = [tensor for some in adapters.values() for adapter in some for tensor in adapter[:2]]
        self.state = states(self.tensors)
        pairs = [joined(some, bool(model.half)) for some in adapters.values()]
        self.packer = Packer(sum(packed_bytes(matrix) for pair in pairs for matrix in pair))
        self.matrices = (structures.Matrix * (2 * len(pairs)))(
            *(self.packer.matrix(matrix) for pair in pairs for matrix in pair)
        )
        self.layers = type(layers).from_buffer_copy(layers)
        for i, (block, name) in enumerate(adapters):
            matrix = getattr(self.layers[block], name)
            matrix.a, matrix.b = (ctypes.addressof(self.matrices[j]) for j in (2 * i, 2 * i + 1))
        self.model = structures.Model.from_buffer_copy(model)
        self.model.layers = self.layers
        self.model.rank = max((-(-len(a) // LANES) * LANES for a, _ in pairs), default=0)

    def is_fresh(self) -> bool:
        """Whether no adapter has been written to."""
        return states(self.tensors) == self.state

    def are(self, adapters: dict[Place, list[Adapter]]) -> bool:
        """Whether these adapters are the ones that were packed, unchanged."""
        return identities(adapters) == identities(self.adapters) and self.is_fresh()


def joined(adapters: list[Adapter], half: bool) -> tuple[Tensor, Tensor]:
    """One pair of matrices for all adapters of a layer, scales in `b`, with the columns of `b` that Product::narrow
    wants: as many as whole blocks of `a`'s rows have, and in bfloat16 the same once more."""
    a = torch.cat([adapter.a.detach().float() for adapter in adapters])
    b = torch.cat([adapter.b.detach().float() * adapter.scale for adapter in adapters], 1)
    b = torch.cat([b, b.new_zeros(len(b), -len(a) % LANES)], 1)
    return (a.bfloat16(), torch.cat([b.bfloat16()] * 2, 1)) if half else (a, b)  # `repeat` would take ten times as long


def identities(adapters: dict[Place, list[Adapter]]) -> list[tuple[Place, list[tuple[int, int, float]]]]:
    """What differs when there is another adapter anywhere, or another scale."""
    return [(place, [(id(a), id(b), scale) for a, b, scale in some]) for place, some in adapters.items()]


def states(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """What changes when a tensor is written to or gets other memory."""
    return [(0 if tensor.is_inference() else tensor._version, tensor.data_ptr()) for tensor in tensors]
