"""Products with packed codes on the CPU by a small program of our own, compiled on first use where there is a compiler.

It multiplies by exactly the numbers that `dequantise` gives, in float32. Without a compiler (or with
ALIGNLAB_NO_COMPILER set) torch's own kernels, and where they do not fit plain products, take its place.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.lm.cpu_step.program import program

if TYPE_CHECKING:
    from alignlab.lm.quant.layers import QuantMatrix

SOURCE = Path(__file__).with_name("product.cpp")
FEW_ROWS = 64
"""Beyond so many rows a plain product with the dequantised matrix is faster."""
_KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


def cpu_product(matrix: QuantMatrix, x: Tensor) -> Tensor | None:
    """`x · weightᵀ` in `x`'s type; None where these operands are not for it."""
    if x.device.type != "cpu" or x.dtype not in _KINDS or matrix.scales.dtype not in _KINDS:
        return None
    rows = x.numel() // x.shape[-1]
    per_word = 32 // matrix.bits
    if not 0 < rows <= FEW_ROWS or matrix.group_size % per_word or x.shape[-1] != matrix.in_features:
        return None
    program = compiled()
    if program is None:
        return None
    wide = x.to(torch.float32).contiguous()
    y = torch.empty(*x.shape[:-1], matrix.out_features)
    offsets, table = matrix.offsets, matrix.table
    sums = None if offsets is None else torch.empty(rows, matrix.scales.shape[1])
    program(
        wide.data_ptr(), _address(sums), y.data_ptr(), rows, matrix.codes.data_ptr(), matrix.scales.data_ptr(),
        _address(offsets), _address(table), matrix.out_features, matrix.in_features, matrix.group_size,
        _KINDS[matrix.scales.dtype], matrix.bits, torch.get_num_threads(),
    )  # fmt: skip
    return y if x.dtype is torch.float32 else y.to(x.dtype)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def compiled() -> Any | None:
    """The program as a function, or None where it cannot be had."""
    made = program(SOURCE)
    if made is None:
        return None
    function: Any = made.alignlab_product
    function.restype = None
    pointer, whole, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    function.argtypes = [pointer] * 3 + [whole] + [pointer] * 4 + [whole] * 3 + [small] * 3
    return function
