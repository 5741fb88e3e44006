"""One function for every projection, which picks the operand order that the CPU's matrix kernels serve fastest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 128
"""Up to this many rows the swapped order wins on AVX-512 and AMX machines (see bench/linear.py)."""


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, through `times` where the layer is a plain linear map."""
    return times(x, layer.weight, layer.bias) if type(layer) is nn.Linear else layer(x)


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x · weightᵀ + bias`.

    Decoding multiplies a few rows of activations by a large weight. oneDNN's bf16 kernels re-pack the right-hand
    operand on every call; in the usual order that is the weight. Computing `weight · xᵀ` makes it the small one.
    """
    rows = x.numel() // x.shape[-1]
    if x.dtype is not torch.bfloat16 or x.device.type != "cpu" or torch.is_grad_enabled() or not 0 < rows <= FEW_ROWS:
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)
    if rows == 1:
        flat = flat.expand(2, -1)  # a single row would go to a much slower matrix-vector kernel
    y = F.linear(weight, flat).t()[:rows]
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], -1)
