"""Weights of layers that read the same input, below each other in one matrix, so that a step has fewer products.

Adapters, which learn in float32, are narrowed here once for all steps between two updates: in every step it would be
two kernels more for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from alignlab.lm.block import TransformerBlock
from alignlab.lm.linear import Joined
from alignlab.lm.lora import LoRALinear
from alignlab.lm.model import GPTModel

SMALL = 2**25
"""Bytes of a joined matrix at most: reading a larger one takes longer than launching its parts, and it is a copy."""


class JoinedProducts:
    """Query, key and value, and gate and up, of every block whose layers are plain and small, and adapters of all."""

    def __init__(self, model: GPTModel) -> None:
        self.layers: list[tuple[nn.Module, ...]] = []
        for block in cast("Sequence[TransformerBlock]", model.blocks):
            groups: list[tuple[nn.Module, ...]] = [(block.attn.q, block.attn.k, block.attn.v)]
            if block.mlp.gate is not None:
                groups.append((block.mlp.gate, block.mlp.up))
            self.layers.extend(group for group in groups if is_small(group) and can_join(group))
            alone = [block.attn.o, block.mlp.down] + ([block.mlp.up] if block.mlp.gate is None else [])
            self.layers.extend((layer,) for layer in alone if adapted((layer,)))
        self.parts = [joined(group) for group in self.layers]

    @torch.no_grad()
    def renew(self) -> None:
        """Write the weights, which have changed, into the same joined matrices."""
        for group, part in zip(self.layers, self.parts, strict=True):
            for old, new in zip(part, joined(group), strict=True):
                if isinstance(old, Tensor) and isinstance(new, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, `linear.project_together` and adapted layers find what was joined."""
        for group, part in zip(self.layers, self.parts, strict=True):
            vars(group[0])["joined"] = part
        try:
            yield
        finally:
            for group in self.layers:
                del vars(group[0])["joined"]


@torch.no_grad()
def joined(group: Sequence[nn.Module]) -> Joined:
    """The layers as one; a single layer's weight is its own, not a copy."""
    adapters = [layer for layer in group if isinstance(layer, LoRALinear)]
    bases = [cast("nn.Linear", layer.base if isinstance(layer, LoRALinear) else layer) for layer in group]
    weight = bases[0].weight.detach() if len(bases) == 1 else torch.cat([base.weight for base in bases])
    biases = biases_of(bases)
    bias = torch.cat(biases) if biases else None
    if not adapters:
        return Joined(weight, bias)
    a = torch.cat([layer.lora_A for layer in adapters]).to(weight.dtype)
    b = torch.block_diag(*(layer.lora_B for layer in adapters)).to(weight.dtype)
    return Joined(weight, bias, a, b, adapters[0].scaling)


def can_join(group: Sequence[nn.Module]) -> bool:
    """Whether all layers are plain, or all have adapters of one kind over plain layers."""
    if adapted(group):
        return len(biases_of([cast("LoRALinear", layer).base for layer in group])) in (0, len(group))
    return all(type(layer) is nn.Linear for layer in group) and len(biases_of(group)) in (0, len(group))


def adapted(group: Sequence[nn.Module]) -> bool:
    """Whether every layer has an adapter of the same kind, switched on and not merged, over a plain layer."""
    found = [layer for layer in group if isinstance(layer, LoRALinear)]
    return len(found) == len(group) and all(
        layer.enabled and not layer.merged and type(layer.base) is nn.Linear and layer.config == found[0].config
        for layer in found
    )


def is_small(group: Sequence[nn.Module]) -> bool:
    """Whether joining the weights pays."""
    bases = [layer.base if isinstance(layer, LoRALinear) else layer for layer in group]
    weights = [base.weight for base in bases if isinstance(base, nn.Linear)]
    return sum(weight.numel() * weight.element_size() for weight in weights) <= SMALL


def biases_of(group: Sequence[nn.Module]) -> list[Tensor]:
    """The biases of those layers that have one."""
    return [layer.bias.detach() for layer in group if isinstance(layer.bias, Tensor)]
