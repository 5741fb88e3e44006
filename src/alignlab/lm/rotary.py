"""Rotary positions (Su et al. 2021): tables of cosines and sines, and their application to queries and keys."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.lm.config import GPTConfig, RopeScaling


class Rotation(NamedTuple):
    """Cosines and signed sines of one forward pass, (batch, pos, 1, rotary_dim), in the activations' type."""

    cos: Tensor
    sin: Tensor


def frequencies(rotary_dim: int, theta: float, scaling: RopeScaling | None) -> Float[Tensor, " half"]:
    """Angular frequency of each pair of dimensions, `theta ** (-2i / rotary_dim)`, stretched by `scaling`."""
    freq = 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    if scaling is None:
        return freq
    if scaling.kind == "linear":
        return freq / scaling.factor
    wavelength = 2 * math.pi / freq
    smooth = (scaling.original_n_ctx / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = smooth.clamp(0, 1)  # 0: stretched fully, 1: untouched
    return smooth * freq + (1 - smooth) * freq / scaling.factor


class RotaryTable:
    """Cosines and sines by position, made on first use on each device (models can start on `meta`), grown as needed."""

    def __init__(self, config: GPTConfig, *, local: bool = False) -> None:
        self.rotary_dim = config.rotary_dim
        self.theta = config.rope_local_theta if local and config.rope_local_theta else config.rope_theta
        self.scaling = None if local and config.rope_local_theta else config.rope_scaling
        self.tables: dict[tuple[torch.device, torch.dtype], Rotation] = {}

    def __call__(self, positions: Int[Tensor, "batch pos"], length: int, dtype: torch.dtype) -> Rotation:
        """Rows of the table at `positions`, all of them below `length`."""
        key = (positions.device, dtype)
        if key not in self.tables or self.tables[key].cos.shape[0] < length:
            rows = torch.arange(1 << max(8, (length - 1).bit_length())).float()
            angle = torch.outer(rows, frequencies(self.rotary_dim, self.theta, self.scaling))
            # The sign of rotate_half lives in the table, so that applying it is one roll and one fused multiply-add.
            cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)
            self.tables[key] = Rotation(cos.to(*key), sin.to(*key))
        table = self.tables[key]
        return Rotation(table.cos[positions].unsqueeze(2), table.sin[positions].unsqueeze(2))


def rotate(x: Float[Tensor, "batch pos head d_head"], rotation: Rotation) -> Float[Tensor, "batch pos head d_head"]:
    """Rotate the leading `rotary_dim` dimensions of every head; the pairs are (i, i + rotary_dim / 2)."""
    dim = rotation.cos.shape[-1]
    if dim == x.shape[-1]:
        return torch.addcmul(x * rotation.cos, x.roll(dim // 2, -1), rotation.sin)
    turned = rotate(x[..., :dim], rotation)
    return torch.cat([turned, x[..., dim:]], -1)
