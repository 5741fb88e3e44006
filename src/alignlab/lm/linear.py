"""Every projection goes through here: without gradients, bf16 weights on the CPU are packed once and kept packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.train.versions import count_fused_updates

count_fused_updates()  # `packed` looks at versions

ROWS_HINT = 32
"""Number of rows that the packed layout is made for; other numbers work as well."""


class Joined(NamedTuple):
    """Layers that read the same input as one: weights below each other, and matrices of their adapters if any."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None = None
    """(rank, in): the adapters' first matrices below each other."""
    b: Tensor | None = None
    """(out, rank): their second ones on a diagonal of blocks."""
    scaling: float = 1.0


def times_joined(x: Tensor, whole: Joined) -> Tensor:
    """What the layers give, side by side."""
    y = F.linear(x, whole.weight, whole.bias)
    if whole.a is None or whole.b is None:
        return y
    inner = F.linear(x, whole.a)
    rows = torch.addmm(y.reshape(-1, y.shape[-1]), inner.reshape(-1, inner.shape[-1]), whole.b.T, alpha=whole.scaling)
    return rows.view(y.shape)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, through `times` where the layer is a plain linear map."""
    return times(x, layer.weight, layer.bias) if type(layer) is nn.Linear else layer(x)


def project_together(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """`[layer(x) for layer in layers]`, as one product where all are plain and it pays.

    On the CPU with packed weights each call costs a barrier; on a GPU a wide product keeps more of it busy, and joining
    the weights is nothing beside a training batch. Layers of a kind of their own may bring `project_joined(layers, x)`,
    which answers None where it does not pay; a layer with the attribute `joined` holds all of them (`Joined`).
    """
    whole: Joined | None = getattr(layers[0], "joined", None)
    if whole is not None:
        return list(times_joined(x, whole).split([int(layer.out_features) for layer in layers], dim=-1))  # type: ignore[arg-type]
    joined: Callable[..., list[Tensor] | None] | None = getattr(type(layers[0]), "project_joined", None)
    found = None if joined is None else joined(layers, x)
    if found is not None:
        return found
    weights = [layer.weight for layer in layers if type(layer) is nn.Linear]
    in_training = x.device.type == "cuda" and torch.is_grad_enabled()
    if len(weights) < len(layers) or not (in_training or uses_packed(x, weights[0])):
        return [project(layer, x) for layer in layers]
    biases = [layer.bias for layer in layers if isinstance(layer.bias, Tensor)]
    bias = torch.cat(biases) if len(biases) == len(layers) else None
    if in_training:
        together = F.linear(x, torch.cat(weights), bias)
    else:
        together = torch.ops.mkldnn._linear_pointwise(x, packed(*weights), bias, "none", [], "")
    return list(together.split([len(weight) for weight in weights], dim=-1))


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x · weightᵀ + bias`.

    oneDNN's bf16 kernels want the weight in blocks and re-pack a plain one on every call, which takes longer than the
    product with a few rows. Without gradients the packed form is made on first use and kept with the weight, until the
    weight changes; it takes as much memory as the weight.
    """
    if not uses_packed(x, weight):
        # A quantised matrix knows its own product (alignlab.lm.quant.weight, which is not imported for its sake).
        matrix = getattr(weight, "matrix", None)
        return F.linear(x, weight, bias) if matrix is None else matrix.product(x, bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed(weight), bias, "none", [], "")  # type: ignore[no-any-return]


def uses_packed(x: Tensor, weight: Tensor) -> bool:
    """Whether the packed product serves these operands: bf16 on the CPU, nothing to learn."""
    return (
        x.dtype is torch.bfloat16
        and weight.dtype is torch.bfloat16
        and not hasattr(weight, "matrix")
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.numel() > 0
        and can_pack()
    )


def packed(*weights: Tensor) -> Tensor:
    """The blocked form of one weight, or of several below each other, made again when one has been written to since."""
    held: tuple[list[tuple[int, int]], Tensor] | None = getattr(weights[0], "_alignlab_packed", None)
    state = [(weight._version, weight.data_ptr()) for weight in weights]
    if held is None or held[0] != state:
        whole = torch.cat([weight.detach() for weight in weights])
        held = (state, torch.ops.mkldnn._reorder_linear_weight(whole, ROWS_HINT))
        weights[0]._alignlab_packed = held  # type: ignore[attr-defined]
    return held[1]


@lru_cache(maxsize=1)
def can_pack() -> bool:
    """Whether this build of torch and this processor have the packed bf16 product."""
    ops = torch.ops.mkldnn
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    return all(hasattr(ops, name) for name in names) and bool(ops._is_mkldnn_bf16_supported())
