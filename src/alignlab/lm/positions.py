"""Positions that are not learned and not rotary: ALiBi's penalties (Press et al. 2022) and sinusoids (Vaswani 2017)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def alibi_slopes(n_heads: int) -> list[float]:
    """How much each head loses by token of distance: 2^(-8/n), 2^(-16/n), …, 2^-8 for n heads, n a power of two.

    For other n, as in the authors' code: the slopes of the power of two below, then every second one of twice as many
    heads, from the first on.
    """
    below = 1 << (n_heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / below) for i in range(1, below + 1)]
    return slopes + [2 ** (-4 * i / below) for i in range(1, 2 * below, 2)][: n_heads - below]


class AlibiBias:
    """What is added to the scores; the slopes are made on first use on each device (models can start on `meta`)."""

    def __init__(self, n_heads: int) -> None:
        self.n_heads = n_heads
        self.made: dict[torch.device, Tensor] = {}

    def slopes(self, device: torch.device) -> Float[Tensor, " head"]:
        """One slope a head, in float32."""
        if device not in self.made:
            self.made[device] = torch.tensor(alibi_slopes(self.n_heads), dtype=torch.float32, device=device)
        return self.made[device]

    def __call__(
        self,
        query_positions: Int[Tensor, "batch query"],
        key_positions: Int[Tensor, "batch key"],
        mask: Bool[Tensor, "batch 1 query key"],
        dtype: torch.dtype,
    ) -> Float[Tensor, "batch head query key"]:
        """`-slope · (query - key)`, and -inf where `mask` forbids to look."""
        distance = (query_positions[:, None, :, None] - key_positions[:, None, None, :]).clamp(min=0)
        bias = distance * -self.slopes(mask.device)[:, None, None]
        return bias.to(dtype).masked_fill_(~mask, -math.inf)


class SinusoidTable:
    """`sin(p · w_i)` in dimension 2i and `cos(p · w_i)` in 2i + 1, with `w_i = 10000^(-2i / d)`, by position p.

    Made on first use on each device and in each type, grown as needed.
    """

    def __init__(self, d_model: int) -> None:
        self.d_model = d_model
        self.tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(
        self, positions: Int[Tensor, "batch pos"], length: int, dtype: torch.dtype
    ) -> Float[Tensor, "batch pos d_model"]:
        """Rows of the table at `positions`, all of them below `length`."""
        key = (positions.device, dtype)
        if key not in self.tables or len(self.tables[key]) < length:
            rows = torch.arange(1 << max(8, (length - 1).bit_length()), dtype=torch.float64)
            frequencies = 10_000.0 ** (-torch.arange(0, self.d_model, 2, dtype=torch.float64) / self.d_model)
            angles = torch.outer(rows, frequencies)
            self.tables[key] = torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(*key)
        return self.tables[key][positions]
