"""Packed products that come with torch: used where they multiply by exactly the numbers that the codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignlab.core.rng import torch_generator
from alignlab.lm.quant.layout import unpack_codes, unpack_rows
from alignlab.lm.quant.rounding import CENTRED

if TYPE_CHECKING:
    from alignlab.lm.quant.layers import QuantMatrix

FEW_ROWS = {"cpu": 4, "cuda": 16}
"""Beyond so many rows a plain product with the dequantised matrix is faster."""
CUDA_K_TILES = 8


@lru_cache(maxsize=8)
def has(name: str) -> bool:
    """Whether this build of torch has the operation."""
    return hasattr(torch.ops.aten, name)


def torch_product(matrix: QuantMatrix, x: Tensor) -> Tensor | None:
    """`x · weightᵀ` for a few rows of bfloat16 (others have no vector code there); None where it cannot."""
    kind = x.device.type
    if x.dtype is not torch.bfloat16 or matrix.scales.dtype is not torch.bfloat16 or kind not in FEW_ROWS:
        return None
    rows = x.reshape(-1, x.shape[-1])
    if not 0 < len(rows) <= FEW_ROWS[kind] or not is_exact(matrix.bits, str(x.device)):
        return None
    y = _product(matrix, rows)
    return None if y is None else y.view(*x.shape[:-1], -1)


@lru_cache(maxsize=16)
def is_exact(bits: int, device: str) -> bool:
    """Whether torch's product on this device is that of the dequantised matrix: tried once, on a small one."""
    from alignlab.lm.quant.layers import QuantMatrix
    from alignlab.lm.quant.rounding import round_int4, round_int8

    generator = torch_generator(0)
    weight = torch.randn(64, 256, generator=generator)
    rounded = round_int8(weight, 256) if bits == 8 else round_int4(weight, 64)
    matrix = QuantMatrix(rounded, torch.bfloat16).to(device)
    x = torch.randn(2, 256, generator=generator).to(device, torch.bfloat16)
    try:
        y = _product(matrix, x)
    except (RuntimeError, NotImplementedError):  # built, but not for this processor
        return False
    if y is None:
        return False
    wide = matrix.dequantise(torch.float32)
    # Either way of rounding weights and result to bfloat16 stays below this.
    bound = (x.float() @ wide.T).abs() / 128 + (x.float().abs() @ wide.abs().T) / 256
    return bool(((y.float() - x.float() @ wide.T).abs() <= bound).all())


def _product(matrix: QuantMatrix, rows: Tensor) -> Tensor | None:
    if matrix.bits == 8:
        return _int8(matrix, rows)
    # Its only rule: an offset for the code 8.
    return _int4(matrix, rows) if matrix.offsets is not None and matrix.rule == CENTRED else None


def _int8(matrix: QuantMatrix, rows: Tensor) -> Tensor | None:
    """For one scale a row."""
    if matrix.scales.shape[1] != 1 or not has("_weight_int8pack_mm") or rows.device.type != "cpu":
        return None
    if matrix.out_features % 16 or matrix.in_features % 16:
        return None
    codes, scales = _kept(matrix, lambda: (_codes(matrix), unpack_rows(matrix.scales, matrix.out_features)[:, 0]))
    return torch.ops.aten._weight_int8pack_mm(rows, codes, scales)  # type: ignore[no-any-return]


def _int4(matrix: QuantMatrix, rows: Tensor) -> Tensor | None:
    """For groups of 32 to 256 columns, each with a scale and an offset."""
    aten = torch.ops.aten
    on_cpu = rows.device.type == "cpu"
    names = ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu")
    if not on_cpu:
        names = ("_convert_weight_to_int4pack", "_weight_int4pack_mm")
    if matrix.group_size not in (32, 64, 128, 256) or not all(map(has, names)):
        return None
    if matrix.out_features % 64 or matrix.in_features % (32 if on_cpu else 16 * CUDA_K_TILES):
        return None

    def pack() -> tuple[Tensor, Tensor]:
        codes = _codes(matrix)
        if on_cpu:
            packed = aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        else:
            packed = aten._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]), CUDA_K_TILES)
        assert matrix.offsets is not None
        scales, offsets = (unpack_rows(t, matrix.out_features) for t in (matrix.scales, matrix.offsets))
        return packed, torch.stack([scales, offsets], -1).transpose(0, 1).contiguous()

    packed, scales = _kept(matrix, pack)
    product = aten._weight_int4pack_mm_for_cpu if on_cpu else aten._weight_int4pack_mm
    return product(rows, packed, matrix.group_size, scales)  # type: ignore[no-any-return]


def _codes(matrix: QuantMatrix) -> Tensor:
    return unpack_codes(matrix.codes, matrix.bits, matrix.out_features)


def _kept(matrix: QuantMatrix, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What `make` gives, kept with the matrix in torch's own layout: the memory of its codes once more."""
    held: tuple[int, tuple[Tensor, Tensor]] | None = getattr(matrix, "_torch_layout", None)
    state = matrix.codes.data_ptr()
    if held is None or held[0] != state:
        held = (state, make())
        object.__setattr__(matrix, "_torch_layout", held)
    return held[1]
