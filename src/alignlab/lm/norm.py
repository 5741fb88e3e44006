"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019), with taps on scale and output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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
            out = F.rms_norm(x.float(), (self.width,), 1 + self.weight.float(), self.eps).to(x.dtype)
        else:
            out = F.rms_norm(x, (self.width,), self.weight, self.eps)
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
