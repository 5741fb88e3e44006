"""Weights in the program's order: blocks of sixteen outputs, packed once."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from alignlab.lm.cpu_step.structures import Matrix, Norm
from alignlab.lm.norm import NormLayer
from alignlab.lm.quant.layers import QuantMatrix
from alignlab.lm.quant.layout import LANES, pad_rows

CODES4, CODES8, PAIRS, FLOATS = range(4)
"""Kinds of matrices, as in matrix.h."""
SCALES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
TILE = 32
"""Inputs of a tile."""


class Packer:
    """Makes structures, and holds the tensors that they point into."""

    def __init__(self, n_bytes: int) -> None:
        self.held: list[Tensor] = []
        self.memory, self.used = huge(n_bytes), 0

    def address(self, tensor: Tensor | None) -> int | None:
        """Where `tensor` lies, for as long as this object lives."""
        if tensor is None:
            return None
        self.held.append(tensor)
        return tensor.data_ptr()

    def wide(self, tensor: Tensor) -> int | None:
        """Address of the numbers in float32, filled up to whole blocks."""
        whole = tensor.detach().float().flatten()
        return self.address(torch.cat([whole, whole.new_zeros(-len(whole) % LANES)]))

    def norm(self, layer: NormLayer | None) -> Norm:
        """A norm's weights, as the factors that they stand for."""
        if layer is None:
            return Norm()
        weight = layer.weight.detach().float()
        bias = None if layer.bias is None else self.wide(layer.bias)
        return Norm(self.wide(1 + weight if layer.offset else weight), bias)

    def matrix(self, weight: Tensor | QuantMatrix, bias: Tensor | None = None) -> Matrix:
        """A weight (out, in), plain or in few bits."""
        made = Matrix(bias=None if bias is None else self.wide(bias))
        if isinstance(weight, QuantMatrix):
            made.n_out, made.n_in, made.group = weight.out_features, weight.in_features, weight.group_size
            made.kind = CODES4 if weight.bits == 4 else CODES8
            made.scale_kind = SCALES[weight.scales.dtype]
            made.data, made.scales = self.address(weight.codes), self.address(weight.scales)
            made.offsets, made.table = self.address(weight.offsets), self.address(weight.table)
            return made
        made.n_out, made.n_in = weight.shape
        made.group, made.kind = made.n_in, PAIRS if weight.dtype is torch.bfloat16 else FLOATS
        shape = packed_shape(weight)
        n = math.prod(shape)
        packed = self.memory[self.used : self.used + n * weight.element_size()].view(weight.dtype).view(shape)
        self.used += n * weight.element_size()
        rows = pad_rows(weight.detach())
        if made.kind == FLOATS:
            packed.copy_(rows.view(len(packed), LANES, -1).transpose(1, 2))
        else:
            pairs = weight.shape[1] // 2
            # A pair is moved as one number.
            whole = packed.view(torch.int32).squeeze(-1)
            whole[:, pairs:] = 0
            whole[:, :pairs] = rows.contiguous().view(torch.int32).view(len(packed), LANES, pairs).transpose(1, 2)
        made.data = packed.data_ptr()
        return made


def packed_shape(weight: Tensor) -> tuple[int, ...]:
    """FLOATS: (block, input, 16 outputs). PAIRS: (block, input / 2, 16 outputs, 2 inputs), whole tiles of inputs."""
    blocks, width = -(-len(weight) // LANES), weight.shape[1]
    return (
        (blocks, width, LANES) if weight.dtype is torch.float32 else (blocks, -(-width // TILE) * TILE // 2, LANES, 2)
    )


def packed_bytes(weight: Tensor | QuantMatrix) -> int:
    """Memory that packing takes; codes stay where they are."""
    return 0 if isinstance(weight, QuantMatrix) else math.prod(packed_shape(weight)) * weight.element_size()


def huge(n_bytes: int) -> Tensor:
    """Bytes in large pages where the system has them: they are read from end to end at every step."""
    block = mmap.mmap(-1, n_bytes + mmap.PAGESIZE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.uint8)
