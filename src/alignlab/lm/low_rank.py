"""The product of a LoRA layer, with its gradient by hand."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def add_low_rank(
    x: Float[Tensor, "*batch in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, " out_features"] | None,
    a: Float[Tensor, "rank in_features"],
    b: Float[Tensor, "out_features rank"],
    scaling: float,
) -> Float[Tensor, "*batch out_features"]:
    """`x Wᵀ + bias + scaling (x aᵀ) bᵀ` with gradients for `x`, `a` and `b` alone."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))  # before it is saved, so that the narrow copy is
    with torch.autocast(x.device.type, enabled=False):
        if not torch.compiler.is_compiling():
            y: Tensor = _LoRAFunction.apply(x, weight, bias, a, b, scaling)
            return y
        # A compiler sees through plain products, finds the same savings by itself, and is done sooner.
        base = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        return base + F.linear(F.linear(x, a.to(x.dtype)), (b * scaling).to(x.dtype))


class _LoRAFunction(torch.autograd.Function):
    """`x Wᵀ + b + scaling (x Aᵀ) Bᵀ` with `W` and `b` constant.

    Saves `x`, the matrices and `x Aᵀ` (rank columns), no copy of a wider base; adds the two terms in place on the way
    forward and back, so that no second tensor of the output's or the input's size exists.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        small_a, small_b = a.to(x.dtype), b.to(x.dtype)
        y = F.linear(rows, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        inner = rows @ small_a.T  # (n, rank)
        y.addmm_(inner, small_b.T, alpha=scaling)
        ctx.save_for_backward(x, weight, small_a, small_b, inner)
        ctx.scaling, ctx.dtype = scaling, a.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        grad = grad.reshape(rows.shape[0], -1).to(rows.dtype)
        grad_inner = (grad @ b).mul_(ctx.scaling)  # (n, rank)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight.to(grad.dtype)).addmm_(grad_inner, a).view(x.shape)
        grad_a = (grad_inner.T @ rows).to(ctx.dtype) if ctx.needs_input_grad[3] else None
        grad_b = (grad.T @ inner).to(ctx.dtype).mul_(ctx.scaling) if ctx.needs_input_grad[4] else None
        return grad_x, None, None, grad_a, grad_b, None
