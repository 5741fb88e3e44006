"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019), with taps on scale and output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignlab.lm.config import GPTConfig
from alignlab.lm.taps import Taps


class NormLayer(nn.Module):
    """`x / rms(x) · weight`, or for LayerNorm `(x - mean(x)) / std(x) · weight + bias`, over the last dimension.

    With `offset` the weight is stored as its distance from one (Gemma) and applied in float32.
    """

    def __init__(self, width: int, *, eps: float, centred: bool, offset: bool, taps: Taps, name: str | None) -> None:
        super().__init__()
        self.width, self.eps, self.centred, self.offset, self.taps, self.name = width, eps, centred, offset, taps, name
        self.weight = nn.Parameter(torch.zeros(width) if offset else torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if centred else None

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if self.taps and self.name is not None and f"{self.name}.hook_scale" in self.taps:
            out = self.step_by_step(x)
        elif self.centred:
            out = F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        elif self.offset:
            out = rms_norm(x.float(), 1 + self.weight.float(), self.eps).to(x.dtype)
        else:
            out = rms_norm(x, self.weight, self.eps)
        if self.taps and self.name is not None:
            out = self.taps(f"{self.name}.hook_normalized", out)
        return out

    def step_by_step(self, x: Tensor) -> Tensor:
        """The definition in float32, with the scale exposed."""
        wide = x.float()
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        scale = (wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        wide = wide / self.taps(f"{self.name}.hook_scale", scale)
        wide = wide * (1 + self.weight.float() if self.offset else self.weight.float())
        return (wide if self.bias is None else wide + self.bias.float()).to(x.dtype)


def rms_norm(x: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"], eps: float) -> Tensor:
    """`x / √(mean(x²) + eps) · weight` over the last dimension.

    On the CPU torch makes this of a dozen passes over `x` and keeps two wide copies for the backward pass; here it is
    half of them and no copy. That form has no second derivative.
    """
    if x.device.type != "cpu":
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        out: Tensor = _RMSNorm.apply(x, weight, eps)
        return out
    return (x / root_mean_square(x, eps)).mul_(weight).to(x.dtype)


def root_mean_square(x: Float[Tensor, "*batch width"], eps: float) -> Float[Tensor, "*batch 1"]:
    """`√(mean(x²) + eps)`, at least in float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return torch.hypot(norm.mul_(x.shape[-1] ** -0.5), norm.new_full((), eps**0.5))


class _RMSNorm(torch.autograd.Function):
    """Saves its inputs and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = root_mean_square(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x / scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        unit = x / scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        slope = (grad * weight).to(unit.dtype)
        along = torch.linalg.vecdot(slope, unit).unsqueeze(-1).div_(-x.shape[-1])
        return slope.addcmul_(unit, along).div_(scale).to(x.dtype), grad_weight, None


def make_norm(config: GPTConfig, taps: Taps, name: str | None, width: int | None = None) -> NormLayer:
    """The norm that `config` describes; `name` is its tap prefix (None for the per-head norms, which have no tap)."""
    return NormLayer(
        width or config.d_model,
        eps=config.norm_eps,
        centred=config.norm == "layernorm",
        offset=config.norm_offset,
        taps=taps,
        name=name,
    )
