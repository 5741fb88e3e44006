"""Rounding a matrix to few bits, a group of neighbouring columns of a row at a time.

Scales and offsets are themselves rounded to bfloat16 before the codes are chosen, so codes are the best for the numbers
that will be multiplied by, and products in bfloat16 use exactly these scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.core.errors import ModelError

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NormalFloat of 4 bits: quantiles of a normal distribution, scaled to [-1, 1], 0 among them (QLoRA, appendix E)."""
WHOLE = tuple(float(i) for i in range(16))
CENTRED = tuple(float(i - 8) for i in range(16))


@dataclass(frozen=True)
class Rounded:
    """A matrix as `table[codes] * scales + offsets` (no table: the codes themselves; no offsets: 0)."""

    codes: Int[Tensor, "out in"]
    scales: Float[Tensor, "out groups"]
    offsets: Float[Tensor, "out groups"] | None
    bits: int
    table: tuple[float, ...] | None = None


def grouped(weight: Float[Tensor, "out in"], group_size: int) -> Float[Tensor, "out groups group"]:
    """The matrix in float32, its groups as a dimension. ModelError where they do not fill it, or it is not finite."""
    if weight.shape[1] % group_size:
        raise ModelError(f"groups of {group_size} columns do not fill {weight.shape[1]}")
    wide = weight.detach().float()
    if not bool(torch.isfinite(wide).all()):
        raise ModelError("weights that are not finite cannot be quantised")
    return wide.view(len(wide), -1, group_size)


def round_int8(weight: Float[Tensor, "out in"], group_size: int) -> Rounded:
    """Symmetric: the largest magnitude of a group becomes 127."""
    groups = grouped(weight, group_size)
    scales = _up(groups.abs().amax(-1) / 127)
    codes = (groups / _divisor(scales)).round_().clamp_(-127, 127).to(torch.int8)
    return Rounded(codes.flatten(1), scales, None, 8)


def round_int4(weight: Float[Tensor, "out in"], group_size: int) -> Rounded:
    """Asymmetric: sixteen equal steps from a group's smallest number to its largest; the offset is code 8's meaning."""
    groups = grouped(weight, group_size)
    low = groups.amin(-1)
    scales = _up((groups.amax(-1) - low) / 15)
    offsets = (low + 8 * scales.float()).to(torch.bfloat16)
    codes = ((groups - offsets.float()[..., None]) / _divisor(scales)).round_().add_(8).clamp_(0, 15).to(torch.uint8)
    return Rounded(codes.flatten(1), scales, offsets, 4, CENTRED)


def round_nf4(weight: Float[Tensor, "out in"], group_size: int) -> Rounded:
    """The nearest of the sixteen NormalFloat numbers times the group's largest magnitude (QLoRA, equation 1).

    The paper keeps the magnitudes in float32 or quantises them to 8 bits; here they are bfloat16.
    """
    groups = grouped(weight, group_size)
    scales = groups.abs().amax(-1).to(torch.bfloat16)
    return Rounded(_nearest_codes(groups, scales, NF4).flatten(1), scales, None, 4, NF4)


def _nearest_codes(groups: Tensor, scales: Tensor, table: tuple[float, ...]) -> Tensor:
    levels = torch.tensor(table, device=groups.device)
    between = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(groups / _divisor(scales), between).to(torch.uint8)


def _divisor(scales: Tensor) -> Tensor:
    """A group of zeros has scale 0; anything divides it."""
    wide = scales.float()
    return torch.where(wide == 0, 1, wide)[..., None]


def _up(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The next bfloat16 that is not below, so that a range of that many steps covers what it should."""
    near = x.to(torch.bfloat16)
    above = torch.nextafter(near, torch.full_like(near, float("inf")))
    return torch.where(near.float() < x, above, near)
