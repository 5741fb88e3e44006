"""Products with packed codes on the CPU by a small program of our own, compiled on first use where there is a compiler.

It multiplies by exactly the numbers that `dequantise` gives, in float32. It is kept in the user's cache under the hash
of its source and compiler, for this processor alone. Without a compiler (or with ALIGNLAB_NO_COMPILER set) torch's own
kernels, and where they do not fit plain products, take its place.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.core.files import user_dir

if TYPE_CHECKING:
    from alignlab.lm.quant.layers import QuantMatrix

SOURCE = Path(__file__).with_name("product.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast")
FEW_ROWS = 8
"""Beyond so many rows a plain product with the dequantised matrix is faster."""
_KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_TIMEOUT_S = 120


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


@lru_cache(maxsize=1)
def compiled() -> Any | None:
    """The program as a function, or None where it cannot be had."""
    if os.environ.get("ALIGNLAB_NO_COMPILER") or platform.system() not in ("Linux", "Darwin"):
        return None
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    try:
        function = ctypes.CDLL(str(_library(compiler))).alignlab_product
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None  # a compiler that cannot: the other ways give the same numbers
    function.restype = None
    pointer, whole, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    function.argtypes = [pointer] * 3 + [whole] + [pointer] * 4 + [whole] * 3 + [small] * 3
    return function


def _library(compiler: str) -> Path:
    """The compiled program's file, made if it is not there; appears only when it is whole."""
    source = SOURCE.read_bytes()
    identity = "\n".join((compiler, " ".join(FLAGS), _processor(), torch.__version__)).encode()
    path = user_dir("kernels") / f"product-{hashlib.sha256(source + identity).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made, object_file = Path(scratch) / path.name, Path(scratch) / "product.o"
        flags = [flag for flag in FLAGS if flag != "-shared"]
        # Threads are those that torch has already: its library of threads is loaded, a second one beside it would
        # compete for the same processors. So the name is left open here, and found there.
        threads = ["-fopenmp"] if platform.system() == "Linux" else []
        run = {"check": True, "capture_output": True, "timeout": _TIMEOUT_S}
        subprocess.run([compiler, *flags, *threads, "-c", str(SOURCE), "-o", str(object_file)], **run)  # type: ignore[call-overload]
        subprocess.run([compiler, "-shared", str(object_file), "-o", str(made)], **run)  # type: ignore[call-overload]
        made.replace(path)
    return path


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
