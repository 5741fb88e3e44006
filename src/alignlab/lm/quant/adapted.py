"""A quantised layer with a trained adapter that stays beside it: codes cannot take one in without new rounding."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from alignlab.lm.lora import LoRALinear, lora_layers
from alignlab.lm.quant.apply import put
from alignlab.lm.quant.layers import ConstantLinear, QuantLinear, QuantMatrix


class AdaptedLinear(ConstantLinear):
    """`x · (weight + b a)ᵀ + bias`, all of it constant; further adapters may stand beside it as beside any layer."""

    a: Tensor
    b: Tensor

    def __init__(
        self,
        base: QuantLinear | AdaptedLinear,
        a: Float[Tensor, "rank in_features"],
        b: Float[Tensor, "out_features rank"],
    ) -> None:
        super().__init__()
        if isinstance(base, AdaptedLinear):  # one pair of matrices, however many adapters
            a, b = torch.cat([base.a, a]), torch.cat([base.b, b], dim=1)
        self.matrix: QuantMatrix = base.matrix
        self.in_features, self.out_features = base.in_features, base.out_features
        self.register_buffer("bias", base.bias)
        self.register_buffer("a", a.detach().clone())
        self.register_buffer("b", b.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The sum, plain: it has no codes."""
        return self.dequantise()

    def dequantise(self, dtype: torch.dtype | None = None) -> Float[Tensor, "out_features in_features"]:
        """The matrix that is multiplied by, added up in float32."""
        whole = torch.addmm(self.matrix.dequantise(torch.float32), self.b.float(), self.a.float())
        return whole.to(self.matrix.dtype if dtype is None else dtype)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        y = self.matrix.product(x, self.bias)
        return y + F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)).to(y.dtype)


def settle_adapters(model: nn.Module) -> nn.Module:
    """Put every adapter for good where it is trained to be, and leave plain or quantised layers; returns `model`.

    Plain weights take it in (as new tensors: what shares the old ones does not see it), quantised layers become
    `AdaptedLinear`. A disabled adapter is dropped. All layers that had one are frozen.

    Raises:
        ModelError: there are no adapters.
    """
    for name, layer in lora_layers(model).items():
        put(model, name, _settled(layer).train(layer.training))
    return model


def _settled(layer: LoRALinear) -> nn.Linear | ConstantLinear:
    if isinstance(layer.base, nn.Linear):
        if layer.enabled:
            layer.merge()
        else:
            layer.unmerge()
        return layer.base
    assert isinstance(layer.base, QuantLinear | AdaptedLinear)
    if layer.enabled:
        return AdaptedLinear(layer.base, layer.lora_A, layer.lora_B * layer.scaling)
    return layer.base
