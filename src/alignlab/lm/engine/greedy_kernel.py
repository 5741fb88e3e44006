"""The most likely token and its log-probability in one sweep over the logits, a Triton program a row.

The same by torch takes a dozen kernels, each of which reads the logits again. Import it only where there is Triton.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from jaxtyping import Float, Int
from torch import Tensor

TILE = 4096
WARPS = 8


@triton.jit
def _greedy_kernel(  # type: ignore[no-untyped-def]
    logits, stride, tokens, logprobs, VOCABULARY: tl.constexpr, TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    highest, total, token = -float("inf"), 0.0, 0
    for first in range(0, VOCABULARY, TILE):
        column = first + tl.arange(0, TILE)
        inside = column < VOCABULARY
        x = tl.load(logits + row * stride + column, mask=inside, other=-float("inf")).to(tl.float32)
        best = tl.max(x, 0)
        token = tl.where(best > highest, first + tl.argmax(x, 0), token)
        higher = tl.maximum(highest, best)
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    tl.store(tokens + row, token)
    tl.store(logprobs + row, -tl.log(total))


def most_likely(logits: Float[Tensor, "row vocab"]) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """The first largest entry of each row, and its log-probability (float32), not finite where the logits are not."""
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    logprobs = torch.empty(len(logits), device=logits.device)
    _greedy_kernel[(len(logits),)](
        logits, logits.stride(0), tokens, logprobs, VOCABULARY=logits.shape[1], TILE=TILE, num_warps=WARPS
    )
    return tokens, logprobs
