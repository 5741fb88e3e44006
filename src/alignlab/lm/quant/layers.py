"""Linear layers and embeddings whose weights are kept in few bits.

Every format is one rule, `weight = table[code] * scale + minimum` by group of columns; what differs is the bits of a
code, the table and the type of scales. The layers are frozen: gradients pass through to the input, never to the weight.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignlab.lm.quant.cpu_kernel import cpu_product
from alignlab.lm.quant.layout import LANES, pack_codes, pack_rows, unpack_codes, unpack_rows
from alignlab.lm.quant.rounding import Rounded
from alignlab.lm.quant.torch_kernels import torch_product

DEQUANTISED_TOGETHER = {True: 2**20, False: 2**26}
"""Numbers worked on at a time, by whether it is on the CPU: what comes between should stay in its caches, and small."""


class QuantMatrix(nn.Module):
    """A matrix (out_features, in_features) in few bits; made from what a rule of `rounding` gives.

    `dtype` is what the matrix is in when it meets activations of that type: that of the weight it was made from.
    """

    is_constant = True
    """No training changes it, so checkpoints leave it out."""
    codes: Int[Tensor, "blocks words 16"]
    scales: Float[Tensor, "blocks groups 16"]
    offsets: Float[Tensor, "blocks groups 16"] | None
    table: Float[Tensor, " levels"] | None

    def __init__(self, rounded: Rounded, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = rounded.codes.shape
        self.bits, self.dtype, self.rule = rounded.bits, dtype, rounded.table
        self.group_size = self.in_features // rounded.scales.shape[1]
        device = rounded.codes.device
        self.register_buffer("codes", pack_codes(rounded.codes, rounded.bits))
        self.register_buffer("scales", pack_rows(rounded.scales))
        self.register_buffer("offsets", None if rounded.offsets is None else pack_rows(rounded.offsets))
        table = None if rounded.table is None else torch.tensor(rounded.table, device=device)
        self.register_buffer("table", table, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantMatrix:
        """Moves to other devices; another type changes what the layer computes in, never codes, scales or table."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device))
        self.dtype = probe.dtype
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.to(probe.device)
        return self

    @property
    def weight(self) -> Tensor:
        """The matrix as a tensor that any operation may use: products use the codes, all else what they stand for."""
        from alignlab.lm.quant.weight import QuantWeight  # it needs this class

        return QuantWeight(self)

    @property
    def n_bytes(self) -> int:
        """Memory of codes, scales and offsets."""
        parts = (self.codes, self.scales, self.offsets)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    @property
    def bits_per_weight(self) -> float:
        """Memory of all for each number of the matrix, in bits."""
        return 8 * self.n_bytes / (self.out_features * self.in_features)

    def dequantise(self, dtype: torch.dtype | None = None) -> Float[Tensor, "out_features in_features"]:
        """The matrix that the codes stand for, computed in float32 and rounded to `dtype` (the layer's own if None)."""
        made = torch.empty(self.out_features, self.in_features, dtype=dtype or self.dtype, device=self.codes.device)
        step = len(self.codes)
        if not torch.compiler.is_compiling():
            step = max(1, DEQUANTISED_TOGETHER[self.codes.device.type == "cpu"] // (LANES * self.in_features))
        for start in range(0, len(self.codes), step):
            part = made[LANES * start : LANES * (start + step)]
            part.copy_(self._rows_of(slice(start, start + step), len(part)))
        return made

    def _rows_of(self, blocks: slice, n_rows: int) -> Float[Tensor, "n_rows in_features"]:
        """The first rows of some blocks, in float32."""
        if self.bits == 4 and self.table is not None:
            # A byte is two codes: one look-up gives both numbers.
            pairs = torch.stack([self.table.repeat(16), self.table.repeat_interleave(16)], -1)
            both = self.codes[blocks].transpose(1, 2).contiguous().view(torch.uint8).flatten()
            values = pairs.index_select(0, both.int()).view(-1, self.in_features)[:n_rows]
        else:
            codes = unpack_codes(self.codes[blocks], self.bits, n_rows)
            values = codes.float() if self.table is None else self.table[codes.int()]
        offsets = None if self.offsets is None else unpack_rows(self.offsets[blocks], n_rows)
        return self._scaled(values, unpack_rows(self.scales[blocks], n_rows), offsets)

    def looked_up(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n in_features"]:
        """Some rows of `dequantise()`, without the others."""
        block, lane = rows // LANES, rows % LANES
        codes = unpack_codes(self.codes[block, :, lane][..., None], self.bits, len(rows))  # blocks of one lane
        offsets = None if self.offsets is None else self.offsets[block, :, lane]
        values = codes.float() if self.table is None else self.table[codes.int()]
        return self._scaled(values, self.scales[block, :, lane], offsets).to(self.dtype)

    def _scaled(self, values: Tensor, scales: Tensor, offsets: Tensor | None) -> Tensor:
        """Overwrites `values`."""
        groups = values.view(*scales.shape, self.group_size).mul_(scales.float()[..., None])
        if offsets is not None:
            groups.add_(offsets.float()[..., None])
        return groups.flatten(1)

    def product(
        self, x: Float[Tensor, "*batch in_features"], bias: Float[Tensor, " out_features"] | None = None
    ) -> Float[Tensor, "*batch out_features"]:
        """`x · weightᵀ + bias` by the fastest way that these operands have."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if torch.compiler.is_compiling():  # it decides itself what to compute again on the way back
            return F.linear(x, self.dequantise(x.dtype), None if bias is None else bias.to(x.dtype))
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _FrozenProduct.apply(x, self)
        else:
            y = self.product_without_gradient(x)
        return y if bias is None else y + bias.to(y.dtype)

    def product_without_gradient(self, x: Tensor) -> Tensor:
        """`x · weightᵀ`: by a packed product where there is one for these operands, by dequantising elsewhere."""
        y = cpu_product(self, x)
        if y is None:
            y = torch_product(self, x)
        return F.linear(x, self.dequantise(x.dtype)) if y is None else y

    def extra_repr(self) -> str:
        return f"{self.out_features}x{self.in_features}, {self.bits} bits, groups of {self.group_size}, {self.dtype}"


class _FrozenProduct(torch.autograd.Function):
    """`x Wᵀ` with `W` constant: dequantised again on the way back, so that no plain copy lives in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: QuantMatrix) -> Tensor:
        ctx.matrix, ctx.dtype = matrix, x.dtype
        return F.linear(x, matrix.dequantise(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad.to(ctx.dtype) @ ctx.matrix.dequantise(ctx.dtype)), None


class ConstantLinear(nn.Module):
    """A linear layer whose weight is no parameter: nothing trains it, nothing can be added to it in place."""

    is_constant = True
    in_features: int
    out_features: int
    bias: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The matrix, usable as a tensor."""
        raise NotImplementedError

    def dequantise(self, dtype: torch.dtype | None = None) -> Float[Tensor, "out_features in_features"]:
        """The matrix that is multiplied by, plain."""
        raise NotImplementedError


class QuantLinear(ConstantLinear):
    """`x · weightᵀ + bias` with the weight in few bits; what `quantise` puts where an `nn.Linear` was."""

    def __init__(self, matrix: QuantMatrix, bias: Tensor | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.in_features, self.out_features = matrix.in_features, matrix.out_features
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The matrix, usable as a tensor."""
        return self.matrix.weight

    def dequantise(self, dtype: torch.dtype | None = None) -> Float[Tensor, "out_features in_features"]:
        """The matrix that is multiplied by, plain."""
        return self.matrix.dequantise(dtype)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        return self.matrix.product(x, self.bias)


class QuantEmbedding(nn.Module):
    """Rows of a matrix in few bits, looked up by number; as `weight` also the unembedding where the two are tied."""

    def __init__(self, matrix: QuantMatrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.num_embeddings, self.embedding_dim = matrix.out_features, matrix.in_features

    @property
    def weight(self) -> Tensor:
        """The matrix, usable as a tensor."""
        return self.matrix.weight

    def dequantise(self, dtype: torch.dtype | None = None) -> Float[Tensor, "num_embeddings embedding_dim"]:
        """The matrix whose rows are looked up, plain."""
        return self.matrix.dequantise(dtype)

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch embedding_dim"]:
        matrix = self.matrix
        return matrix.looked_up(tokens.reshape(-1)).view(*tokens.shape, matrix.in_features)
