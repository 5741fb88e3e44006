"""Encoders of ggml's block formats, as the `gguf` package decodes them.

Layouts: ggml's quants (Q8_0, Q4_0, Q5_0: 32 numbers a block; Q4_K: 256). Where ggml leaves the choice of codes to the
encoder, they are chosen for the scale as it is stored (rounded to float16), which is nearer than for the unrounded one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from jaxtyping import Float, UInt8
from torch import Tensor

from alignlab.core.errors import ModelError

ExportKind = Literal["f32", "f16", "q8_0", "q4_0", "q4_k"]
Blocks = Float[Tensor, "blocks numbers"]
Bytes = UInt8[Tensor, "blocks bytes"]
ROWS_AT_ONCE = 2**22
SEARCH_STEPS = 20


def encode(weight: Float[Tensor, "*shape"], kind: GGMLQuantizationType) -> bytes:
    """The tensor as the file holds it. ModelError where the format cannot hold it.

    Numbers of the last dimension are grouped into blocks; that dimension must be a multiple of the block.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ModelError("weights that are not finite cannot be written")
    if kind is GGMLQuantizationType.F32:
        return weight.detach().float().contiguous().numpy().tobytes()
    block = GGML_QUANT_SIZES[kind][0]
    if weight.shape[-1] % block:
        raise ModelError(f"{kind.name} holds blocks of {block} numbers, which do not fill {weight.shape[-1]}")
    flat = weight.detach().reshape(-1, block)
    step = max(1, ROWS_AT_ONCE // block)
    return b"".join(_ENCODERS[kind](part.float()).numpy().tobytes() for part in flat.split(step))


def _f16(x: Blocks) -> Bytes:
    if float(x.abs().max()) > torch.finfo(torch.float16).max:
        raise ModelError("a weight is beyond the range of float16; choose f32")
    return x.half().view(torch.uint8)


def _scale(x: Float[Tensor, " blocks"]) -> tuple[Float[Tensor, "blocks 1"], Bytes]:
    """The scale as it will be read back, never 0, and its bytes."""
    half = x.half()
    wide = half.float()[:, None]
    return torch.where(wide == 0, 1, wide), half[:, None].view(torch.uint8)


def _q8_0(x: Blocks) -> Bytes:
    divisor, head = _scale(x.abs().amax(1) / 127)
    codes = (x / divisor).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([head, codes.view(torch.uint8)], 1)


def _largest(x: Blocks) -> Float[Tensor, " blocks"]:
    """The number of each block with the largest magnitude, sign included."""
    return x.gather(1, x.abs().argmax(1, keepdim=True)).squeeze(1)


def _q4_0(x: Blocks) -> Bytes:
    divisor, head = _scale(_largest(x) / -8)
    codes = ((x / divisor).round() + 8).clamp(0, 15).to(torch.uint8)
    return torch.cat([head, codes[:, :16] | codes[:, 16:] << 4], 1)


def _q5_0(x: Blocks) -> Bytes:
    divisor, head = _scale(_largest(x) / -16)
    codes = ((x / divisor).round() + 16).clamp(0, 31).to(torch.uint8)
    fifth = (codes >> 4).view(-1, 4, 8) << torch.arange(8, dtype=torch.uint8)
    low = codes & 15
    return torch.cat([head, fifth.sum(-1, dtype=torch.uint8), low[:, :16] | low[:, 16:] << 4], 1)


def _q4_k(x: Blocks) -> Bytes:
    """Eight groups of 32 as `d·sc·code - dmin·m`, with 6-bit `sc` and `m`."""
    groups = x.view(-1, 8, 32)
    scales, minima = fit_range(groups)
    d, d_head = _scale(scales.amax(1) / 63)
    dmin, dmin_head = _scale(minima.amax(1) / 63)
    sc = (scales / d).round().clamp(0, 63)
    m = (minima / dmin).round().clamp(0, 63)
    step = d * sc
    codes = ((groups + (dmin * m)[..., None]) / torch.where(step == 0, 1, step)[..., None]).round().clamp(0, 15)
    nibbles = codes.to(torch.uint8).view(-1, 4, 2, 32)
    small = (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).flatten(1)
    s, n = sc.to(torch.uint8), m.to(torch.uint8)
    packed = torch.cat(
        [s[:, :4] | s[:, 4:] >> 4 << 6, n[:, :4] | n[:, 4:] >> 4 << 6, (s[:, 4:] & 15) | (n[:, 4:] & 15) << 4], 1
    )
    return torch.cat([d_head, dmin_head, packed, small], 1)


def fit_range(groups: Float[Tensor, "blocks group 32"]) -> tuple[Tensor, Tensor]:
    """Scale and minimum (both at least 0) of each group, such that `scale · code - minimum` is near.

    From several divisions of the range into steps the one whose least-squares fit (scale and minimum for its codes) has
    the smallest error, larger numbers counting more, since they meet what matters more often.
    """
    weight = groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    span = groups.amax(-1, keepdim=True) - low
    safe = torch.where(span == 0, 1, span)
    best = torch.full_like(span, float("inf"))
    scale, minimum = span / 15, -low
    total, first = weight.sum(-1, keepdim=True), (weight * groups).sum(-1, keepdim=True)
    for i in range(SEARCH_STEPS + 1):
        steps = 14.0 + 0.1 * i
        codes = ((groups - low) * (steps / safe)).round().clamp(0, 15)
        s1 = (weight * codes).sum(-1, keepdim=True)
        s2 = (weight * codes * codes).sum(-1, keepdim=True)
        cross = (weight * codes * groups).sum(-1, keepdim=True)
        determinant = total * s2 - s1 * s1
        a = (total * cross - s1 * first) / torch.where(determinant == 0, 1, determinant)
        b = (s2 * first - s1 * cross) / torch.where(determinant == 0, 1, determinant)
        alone = cross / torch.where(s2 == 0, 1, s2)  # a minimum above 0 cannot be written
        a, b = torch.where(b > 0, alone, a), b.clamp(max=0)
        error = (weight * (a * codes + b - groups).square()).sum(-1, keepdim=True)
        better = (error < best) & (determinant > 0) & (a > 0)
        best, scale, minimum = (
            torch.where(better, new, old) for new, old in ((error, best), (a, scale), (-b, minimum))
        )
    return scale.squeeze(-1), minimum.squeeze(-1)


_ENCODERS: dict[GGMLQuantizationType, Callable[[Blocks], Bytes]] = {
    GGMLQuantizationType.F16: _f16,
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q5_0: _q5_0,
    GGMLQuantizationType.Q4_K: _q4_k,
}
