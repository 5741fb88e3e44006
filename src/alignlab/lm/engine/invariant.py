"""Attention whose every sum is made in the same order, whoever else is in the batch and however a prompt is cut.

A processor's matrix product is chosen by its shape. With MKL in float32, measured: products with 16 rows or more give
each row the same bits, whatever rows stand beside it; with fewer rows other kernels sum in other orders. A longer inner
dimension adds zeros in the same order up to some length, and is then split. So here every product has at least
`ROWS` rows (the engine fills its passes up to a multiple), keys are padded with zeros to whole blocks, and the sum over
keys goes piece by piece, `KEYS` at a time. (The aim is that of He et al. 2025, "Defeating nondeterminism in LLM
inference", whose kernels are for GPUs.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from alignlab.lm.attention import Extra, MultiHeadAttention

ROWS = 16
"""From this number of rows on, a row's product does not depend on how many there are."""
KEYS = 256
"""Keys whose values are summed in one product."""


def attend_invariantly(
    attention: MultiHeadAttention,
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch kv_head key d_head"],
    v: Float[Tensor, "batch kv_head key d_head"],
    mask: Bool[Tensor, "batch 1 query key"],
    extra: Extra | None = None,
) -> Float[Tensor, "batch query head d_head"]:
    """`attention.attend`, each query's numbers independent of the other queries and of the number of padded keys.

    The number of keys is a multiple of `ROWS`, and `mask` says which of them count. The heads that share keys stand
    below each other in one product.
    """
    batch, n_heads, n_query, d_head = q.shape
    n_kv = k.shape[1]
    rows = n_heads // n_kv * n_query
    q = F.pad(q.reshape(batch, n_kv, rows, d_head), (0, 0, 0, max(0, ROWS - rows)))
    scores = (q @ k.transpose(-1, -2))[:, :, :rows].reshape(batch, n_heads, n_query, -1) * attention.scale
    cap = attention.config.attn_softcap
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~mask, float("-inf")) if extra is None or extra.bias is None else scores + extra.bias
    pattern = F.pad(scores.softmax(-1).view(batch, n_kv, rows, -1), (0, 0, 0, max(0, ROWS - rows)))
    z = torch.zeros(batch, n_kv, pattern.shape[2], d_head, dtype=v.dtype, device=v.device)
    for start in range(0, k.shape[2], KEYS):
        z = z + pattern[..., start : start + KEYS] @ v[:, :, start : start + KEYS]
    return z[:, :, :rows].reshape(batch, n_heads, n_query, d_head).transpose(1, 2)
