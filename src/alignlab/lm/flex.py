"""FlexAttention: windows, documents, ALiBi and soft caps in one fused CUDA kernel, compiled from their definitions.

Unlike the other fast path it never holds a (query, key) mask or bias for the kernel: blocks in which no query may look
at any key are skipped, and the rest is decided, and the score changed, number by number inside the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignlab.lm.config import GPTConfig

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

SMALLEST_HEAD = 16
"""Narrower heads have no kernel."""
KEPT_MASKS = 64


@dataclass(frozen=True)
class FlexPlan:
    """Who may look at whom in one forward pass (a `BlockMask`), and what becomes of a score."""

    mask: Any
    score: ScoreMod | None


def uses_flex(config: GPTConfig, device: torch.device) -> bool:
    """Whether a pass without cache, dropout and watched scores goes through FlexAttention.

    Under `auto` only for training with capped scores, which no other fused kernel computes: compiling for every new
    shape pays where many steps follow.
    """
    if device.type != "cuda" or config.d_head < SMALLEST_HEAD:
        return False
    capped = config.attn_softcap is not None and torch.is_grad_enabled()
    return config.attention == "flex" or (config.attention == "auto" and capped)


def mask_rule(window: int | None, segments: Int[Tensor, "batch pos"] | None) -> MaskMod:
    """`causal_mask` as a rule for one (batch, head, query, key): not later, inside the window, the same document.

    Documents are contiguous, so columns of the row order them as positions do. Padding looks at padding.
    """

    def may_look(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        allowed = k <= q
        if window is not None:
            allowed = allowed & (q - k < window)
        if segments is not None:
            allowed = allowed & (segments[b, q] == segments[b, k])
        return allowed

    return may_look


def score_rule(softcap: float | None, slopes: Float[Tensor, " head"] | None) -> ScoreMod | None:
    """Cap the score, then take ALiBi's penalty for the distance; None where there is neither."""
    if softcap is None and slopes is None:
        return None

    def change(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score - slopes[h] * (q - k)
        return score

    return change


_CAUSAL: dict[tuple[int, int | None, torch.device], Any] = {}


def flex_plan(
    config: GPTConfig,
    length: int,
    window: int | None,
    segments: Int[Tensor, "batch pos"] | None,
    slopes: Float[Tensor, " head"] | None,
    device: torch.device,
) -> FlexPlan:
    """The plan of a pass over `length` columns; masks that do not depend on the documents are made once."""
    from torch.nn.attention.flex_attention import create_block_mask  # pulls in the compiler, which costs seconds

    score = score_rule(config.attn_softcap, slopes)
    if segments is not None:
        rule = mask_rule(window, segments)
        return FlexPlan(create_block_mask(rule, len(segments), None, length, length, device=device), score)
    key = (length, window, device)
    if key not in _CAUSAL:
        if len(_CAUSAL) >= KEPT_MASKS:
            _CAUSAL.clear()
        _CAUSAL[key] = create_block_mask(mask_rule(window, None), None, None, length, length, device=device)
    return FlexPlan(_CAUSAL[key], score)


def flex_attend(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch kv_head pos d_head"],
    v: Float[Tensor, "batch kv_head pos d_head"],
    plan: FlexPlan,
    scale: float,
) -> Float[Tensor, "batch head pos d_head"]:
    """`softmax(score(scale · q kᵀ) + mask) v`: on CUDA one compiled kernel, elsewhere torch's unfused form of it."""
    # Inside a model that is compiled as a whole, the plain function becomes the same kernel.
    fused = q.device.type == "cuda" and not torch.compiler.is_compiling()
    attend = _compiled() if fused else _plain()
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast the rotation leaves them wide
    grouped = q.shape[1] != k.shape[1]
    z: Tensor = attend(q, k, v, score_mod=plan.score, block_mask=plan.mask, scale=scale, enable_gqa=grouped)
    return z


def _plain() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(_plain())
    return compiled
