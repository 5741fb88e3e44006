"""The GPU's sweep over a chunk of logits: one Triton program a row reads it for its log-sum-exp, then for its gradient.

The gradient takes the logits' place, so a chunk crosses the memory three times. Import it only where there is Triton.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

BLOCK = 4096
WARPS = 8


@triton.jit
def _capped(raw, softcap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    """`softcap * tanh(raw / softcap)`, or `raw` itself."""
    wide = raw.to(tl.float32)
    if CAPPED:
        wide = softcap * (2.0 * tl.sigmoid(2.0 * wide / softcap) - 1.0)
    return wide


@triton.jit
def _row_kernel(  # type: ignore[no-untyped-def]
    logits,
    stride,
    targets,
    scales,
    losses,
    log_totals,
    softcap,
    z_loss,
    VOCABULARY: tl.constexpr,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    target, scale = tl.load(targets + row), tl.load(scales + row)
    wanted = _capped(tl.load(start + target), softcap, CAPPED)
    highest = -float("inf")
    total = 0.0
    for first in range(0, VOCABULARY, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < VOCABULARY
        x = tl.where(inside, _capped(tl.load(start + column, mask=inside, other=0.0), softcap, CAPPED), -float("inf"))
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    log_total = highest + tl.log(total)
    tl.store(losses + row, log_total - wanted)
    tl.store(log_totals + row, log_total)
    if GRADIENT:
        share = scale * (1.0 + 2.0 * z_loss * log_total)
        for first in range(0, VOCABULARY, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside = column < VOCABULARY
            x = _capped(tl.load(start + column, mask=inside, other=0.0), softcap, CAPPED)
            grad = tl.exp(x - log_total) * share - tl.where(column == target, scale, 0.0)
            if CAPPED:
                grad *= 1.0 - (x / softcap) * (x / softcap)
            tl.store(start + column, grad.to(logits.dtype.element_ty), mask=inside)


def rows_by_kernel(
    raw: Tensor, targets: Tensor, scale: Tensor, softcap: float | None, z_loss: float, want_grad: bool
) -> tuple[Tensor, Tensor]:
    """Each row's negative log-likelihood and log-sum-exp; the gradient of `scale * (nll + z_loss log_total²)` replaces
    the logits where it is wanted.

    Sums over the vocabulary are taken in float32: not for float64 logits.
    """
    losses, log_totals = torch.empty_like(scale), torch.empty_like(scale)
    _row_kernel[(len(raw),)](
        raw,
        raw.stride(0),
        targets,
        scale,
        losses,
        log_totals,
        1.0 if softcap is None else softcap,
        z_loss,
        VOCABULARY=raw.shape[1],
        CAPPED=softcap is not None,
        GRADIENT=want_grad,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return losses, log_totals
