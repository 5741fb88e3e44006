"""How quantised codes lie in memory: sixteen rows side by side, so that a vector register holds a column of them.

A 32-bit word holds neighbouring columns of one row, eight of 4 bits or four of 8, lowest bits first; sixteen words of
sixteen rows stand beside each other, and the blocks of columns follow. A processor with 512-bit registers then meets
sixteen outputs at once and never adds across lanes. Scales lie the same way: (blocks of 16 rows, groups, 16).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor

LANES = 16


def pack_codes(codes: Int[Tensor, "out in"], bits: int) -> Int[Tensor, "blocks words 16"]:
    """Whole numbers of `bits` (4 or 8) bits, as words; missing rows of the last block are zeros.

    8-bit codes may be signed: their two's complement is what is kept.
    """
    per_word = 32 // bits
    wide = pad_rows(codes).to(torch.int32) & (2**bits - 1)
    parts = wide.view(-1, LANES, wide.shape[1] // per_word, per_word)
    words = parts[..., 0].clone()
    for i in range(1, per_word):
        words |= parts[..., i] << (bits * i)
    return words.transpose(1, 2).contiguous()


def unpack_codes(words: Int[Tensor, "blocks words 16"], bits: int, n_rows: int) -> Int[Tensor, "out in"]:
    """`pack_codes` undone: 0 to 15 for 4 bits (uint8), -128 to 127 for 8 (int8)."""
    if bits == 8:
        columns = words.transpose(1, 2).contiguous().view(torch.int8)  # little-endian, as torch's platforms are
        return columns.reshape(-1, columns.shape[-1])[:n_rows]
    pairs = words.transpose(1, 2).contiguous().view(torch.uint8)
    codes = torch.stack([pairs & 15, pairs >> 4], -1)
    return codes.reshape(-1, pairs.shape[-1] * 2)[:n_rows]


def pack_rows(values: Shaped[Tensor, "out groups"]) -> Shaped[Tensor, "blocks groups 16"]:
    """Numbers of each row and group, sixteen rows side by side."""
    padded = pad_rows(values)
    return padded.view(-1, LANES, padded.shape[1]).transpose(1, 2).contiguous()


def unpack_rows(values: Shaped[Tensor, "blocks groups 16"], n_rows: int) -> Shaped[Tensor, "out groups"]:
    """`pack_rows` undone."""
    return values.transpose(1, 2).reshape(-1, values.shape[1])[:n_rows]


def pad_rows(values: Shaped[Tensor, "out columns"]) -> Shaped[Tensor, "padded columns"]:
    """With rows of zeros up to a whole block."""
    missing = -len(values) % LANES
    return F.pad(values, (0, 0, 0, missing)) if missing else values.contiguous()
