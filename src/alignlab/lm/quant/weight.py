"""A quantised matrix as a tensor, for code that asks a layer for its `weight`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from alignlab.lm.quant.layers import QuantMatrix


class QuantWeight(Tensor):
    """Shape, type and device of the matrix that the codes stand for; any operation gets that matrix, made for it.

    `alignlab.lm.linear.times` multiplies by the codes instead.
    """

    matrix: QuantMatrix

    @staticmethod
    def __new__(cls, matrix: QuantMatrix) -> QuantWeight:
        shape = (matrix.out_features, matrix.in_features)
        made: QuantWeight = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, dtype=matrix.dtype, device=matrix.codes.device
        )
        made.matrix = matrix
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"QuantWeight({self.matrix.extra_repr()})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].matrix)
        plain = tree_map(lambda a: a.matrix.dequantise() if isinstance(a, QuantWeight) else a, (args, kwargs or {}))
        return func(*plain[0], **plain[1])
