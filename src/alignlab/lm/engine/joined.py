"""Weights of layers that read the same input, below each other in one matrix, so that a step has fewer products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from alignlab.lm.block import TransformerBlock
from alignlab.lm.model import GPTModel

SMALL = 2**25
"""Bytes of a joined matrix at most: reading a larger one takes longer than launching its parts, and it is a copy."""


class JoinedProducts:
    """Query, key and value, and gate and up, of every block whose layers are plain and small."""

    def __init__(self, model: GPTModel) -> None:
        self.layers: list[tuple[nn.Linear, ...]] = []
        for block in cast("Sequence[TransformerBlock]", model.blocks):
            groups: list[tuple[nn.Linear, ...]] = [(block.attn.q, block.attn.k, block.attn.v)]
            if block.mlp.gate is not None:
                groups.append((block.mlp.gate, block.mlp.up))
            self.layers.extend(group for group in groups if is_small_and_plain(group))
        self.weights = [torch.cat([layer.weight.detach() for layer in group]) for group in self.layers]
        self.biases = [torch.cat(biases) if (biases := biases_of(group)) else None for group in self.layers]

    @torch.no_grad()
    def renew(self) -> None:
        """Write the weights, which have changed, into the same joined matrices."""
        for group, weight, bias in zip(self.layers, self.weights, self.biases, strict=True):
            torch.cat([layer.weight for layer in group], out=weight)
            if bias is not None:
                torch.cat(biases_of(group), out=bias)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, `linear.project_together` finds the joined matrices."""
        for group, weight, bias in zip(self.layers, self.weights, self.biases, strict=True):
            vars(group[0])["joined"] = (weight, bias)
        try:
            yield
        finally:
            for group in self.layers:
                del vars(group[0])["joined"]


def is_small_and_plain(group: Sequence[nn.Module]) -> bool:
    """Whether joining `group` is possible and pays."""
    if any(type(layer) is not nn.Linear for layer in group):
        return False
    weights = [cast("Tensor", layer.weight) for layer in group]
    return len(biases_of(group)) in (0, len(group)) and sum(w.numel() * w.element_size() for w in weights) <= SMALL


def biases_of(group: Sequence[nn.Module]) -> list[Tensor]:
    """The biases of those layers that have one."""
    return [layer.bias.detach() for layer in group if isinstance(layer.bias, Tensor)]
