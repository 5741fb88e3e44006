"""Attention for training on the CPU: torch's fused forward pass, and a backward pass made of matrix products.

The fused CPU kernel's backward pass takes eight times its forward pass, since it works through blocks too small for the
processor's matrix units. Written out as five batched products it takes half of that, in memory for one row's pattern.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignlab.lm.linear import can_pack


def trains_faster(q: Tensor) -> bool:
    """Whether `attend_for_training` is the faster way for such queries: where bf16 has matrix units of its own."""
    return torch.is_grad_enabled() and q.dtype is torch.bfloat16 and q.device.type == "cpu" and can_pack()


def attend_for_training(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch kv_head pos d_head"],
    v: Float[Tensor, "batch kv_head pos d_head"],
    mask: Bool[Tensor, "mask_batch 1 pos pos"] | None,
    scale: float,
) -> Float[Tensor, "batch head pos d_head"]:
    """`softmax(scale · q kᵀ + mask) v`; None masks what comes after each query. Groups of heads may share a key head.

    The backward pass computes the pattern again, one row of the batch at a time; it cannot be differentiated twice.
    """
    z: Tensor = _Attention.apply(q, k, v, mask, scale)
    return z


class _Attention(torch.autograd.Function):
    """Saves its inputs only."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.scale = scale
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        heads, pos, d_head = q.shape[1:]
        kv_heads = k.shape[1]
        if mask is None:
            mask = torch.ones(1, 1, pos, pos, dtype=torch.bool, device=q.device).tril()
        hidden = ~mask
        # Positions first in memory, as the projections behind them want it.
        grads = [t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in (q, k, v)]
        for row, (k_row, v_row) in enumerate(zip(k, v, strict=True)):
            # The heads of a group stand below each other, so that products over them add up by themselves.
            q_row = q[row].reshape(kv_heads, -1, d_head) * ctx.scale
            z_row = grad[row].reshape(kv_heads, -1, d_head)
            scores = torch.bmm(q_row, k_row.transpose(1, 2)).view(heads, pos, pos)
            scores.masked_fill_(hidden[row if len(hidden) > 1 else 0], float("-inf"))
            pattern = scores.softmax(-1).view(kv_heads, -1, pos)
            slope = torch.bmm(z_row, v_row.transpose(1, 2))
            slope = torch._softmax_backward_data(slope, pattern, -1, pattern.dtype)
            grads[0][row] = torch.bmm(slope, k_row).mul_(ctx.scale).view(heads, pos, d_head)
            grads[1][row] = torch.bmm(slope.transpose(1, 2), q_row)
            grads[2][row] = torch.bmm(pattern.transpose(1, 2), z_row)
        return (*grads, None, None)
