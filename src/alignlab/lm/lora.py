"""LoRA: low-rank adapters beside frozen linear layers (Hu et al. 2021).

A wrapped layer computes `base(x) + scaling * (x Aᵀ) Bᵀ` with `A` (rank, in) and `B` (out, rank). `B` starts at zero, so
a fresh adapter changes nothing. Adapter weights stay in float32 whatever the base is in: beside a bfloat16 base the
small matrices are cast, never the activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alignlab.core.config import require
from alignlab.core.errors import ConfigError, ModelError
from alignlab.core.rng import derive_seed, torch_generator
from alignlab.lm.linear import project, times, times_joined
from alignlab.lm.low_rank import add_low_rank
from alignlab.lm.quant.layers import ConstantLinear

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraConfig:
    """Which layers get adapters, and of what size."""

    rank: int = 8
    """Rank of the update."""
    alpha: float = 16.0
    """Numerator of the scaling `alpha / rank`."""
    targets: tuple[str, ...] = ("q", "v")
    """Ends of the names of linear layers (`q`, `mlp.down`, `blocks.0.attn.o`), or `all-linear` (all but the head)."""
    dropout: float = 0.0
    """Probability of dropping an input of the adapter while training."""
    rslora: bool = False
    """Scale by `alpha / sqrt(rank)` instead (rank-stabilised LoRA, Kalajdzievski 2023)."""
    seed: int = 0
    """Seed of `A`; each layer has its own stream, named after it."""

    def __post_init__(self) -> None:
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)
        require(self.rank >= 1, "rank", self.rank, "a positive whole number")
        require(0 < self.alpha < math.inf, "alpha", self.alpha, "a positive number")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a number from 0 to below 1")
        require(bool(targets) and all(targets), "targets", self.targets, "names of linear layers, or all-linear")

    @property
    def scaling(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoRALinear(nn.Module):
    """A frozen linear layer and its adapter; made by `add_lora`.

    Over a quantised layer this is QLoRA (Dettmers et al. 2023): gradients pass through the weight that the codes stand
    for, which is made anew on the way back instead of being kept. `A` is drawn as `nn.Linear` draws its weight (Kaiming
    uniform with a = √5, as the authors' code and PEFT do).
    """

    def __init__(self, base: nn.Linear | ConstantLinear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.config = base, config
        self.in_features, self.out_features, self.scaling = base.in_features, base.out_features, config.scaling
        self.enabled = True
        wide = torch.float64 if base.weight.dtype == torch.float64 else torch.float32
        a = torch.empty(config.rank, base.in_features, dtype=wide)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        device = base.weight.device
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, dtype=wide, device=device))
        # The unmerged weight while merged: subtracting the update again would not give the same bits back.
        self.unmerged: Tensor | None
        self.register_buffer("unmerged", None, persistent=False)

    @property
    def merged(self) -> bool:
        """Whether the base weight has the update in it."""
        return self.unmerged is not None

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        if (ready := getattr(self, "joined", None)) is not None:  # a recorded step, with narrowed matrices
            return times_joined(x, ready)
        if self.unmerged is not None:
            return times(x, self.base.weight if self.enabled else self.unmerged, self.base.bias)
        if not self.enabled:
            return project(self.base, x)
        if not torch.is_grad_enabled():
            y = project(self.base, x)  # knows the fast way for the few rows of decoding
            inner = F.linear(x, self.lora_A.to(x.dtype))
            b = self.lora_B.to(x.dtype)
            rows = torch.addmm(y.reshape(-1, b.shape[0]), inner.reshape(-1, b.shape[1]), b.T, alpha=self.scaling)
            return rows.view(y.shape)
        if not self._is_plain():
            dropped = F.dropout(x, self.config.dropout, self.training)
            small = F.linear(dropped, self.lora_A.to(x.dtype))
            return self.base(x) + F.linear(small, self.lora_B.to(x.dtype)) * self.scaling
        return add_low_rank(x, self.base.weight, self.base.bias, self.lora_A, self.lora_B, self.scaling)

    @staticmethod
    def project_joined(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor] | None:
        """`[layer(x) for layer in layers]` on a GPU in training, as one product with each of base, `A` and `B`.

        `A`s stand below each other and `B`s on a diagonal of blocks, whose zeros cost less than the wide product gains.
        None where the layers are not alike, or not on a GPU.
        """
        if x.device.type != "cuda" or not torch.is_grad_enabled():
            return None
        alike = [layer for layer in layers if isinstance(layer, LoRALinear) and layer._is_plain()]
        if len(alike) < len(layers) or any(layer.config != alike[0].config for layer in alike):
            return None
        biases: list[Tensor] = [layer.base.bias for layer in alike if isinstance(layer.base.bias, Tensor)]
        if biases and len(biases) < len(alike):
            return None
        frozen: list[Tensor] = [layer.base.weight for layer in alike]
        adapters: list[Tensor] = [layer.lora_A for layer in alike]
        together = add_low_rank(
            x,
            torch.cat(frozen),
            torch.cat(biases) if biases else None,
            torch.cat(adapters),
            torch.block_diag(*(layer.lora_B for layer in alike)),
            alike[0].scaling,
        )
        return list(together.split([layer.out_features for layer in alike], dim=-1))

    def _is_plain(self) -> bool:
        """Whether a training pass is the frozen product plus the adapter's, with nothing dropped."""
        dropping = self.training and self.config.dropout > 0
        if not self.enabled or self.merged or dropping or isinstance(self.base, ConstantLinear):
            return False
        return not self.base.weight.requires_grad

    @torch.no_grad()
    def effective_weight(self) -> Float[Tensor, "out_features in_features"]:
        """The matrix this layer multiplies by, adapter included, in the base's type.

        A new tensor each time unless merged or disabled: for repeated use, `merge_lora` first.
        """
        base = self.base.dequantise() if isinstance(self.base, ConstantLinear) else self.base.weight.detach()
        if self.unmerged is not None:
            return base if self.enabled else self.unmerged
        if not self.enabled:
            return base
        wide = self.lora_A.dtype
        return torch.addmm(base.to(wide), self.lora_B, self.lora_A, alpha=self.scaling).to(base.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the base weight; a copy of the unmerged weight is kept beside it.

        Raises:
            ModelError: the base is quantised.
        """
        if isinstance(self.base, ConstantLinear):
            raise ModelError("codes of few bits take no adapter in: dequantise the model, load the adapter and merge")
        if self.unmerged is None:
            enabled, self.enabled = self.enabled, True
            merged = self.effective_weight()
            self.enabled = enabled
            # A new tensor instead of a change in place: the old one may be shared, or mapped read-only from a file.
            self.unmerged = self._put(merged)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the unmerged base weight back, bit for bit."""
        if self.unmerged is not None:
            self._put(self.unmerged)
            self.unmerged = None

    def _put(self, weight: Tensor) -> Tensor:
        """Swap the base's memory, counted as a write: the next merge often gets the memory that this one frees."""
        before, self.base.weight.data = self.base.weight.data, weight
        if not self.base.weight.is_inference():
            torch.autograd.graph.increment_version(self.base.weight)
        return before

    def extra_repr(self) -> str:
        return f"rank={self.config.rank}, scaling={self.scaling:g}, merged={self.merged}"


def add_lora(model: nn.Module, config: LoraConfig) -> nn.Module:
    """Freeze all of `model` and put an adapter beside every linear layer that `config.targets` names; returns `model`.

    Raises:
        ConfigError: a target that is the end of no linear layer's name.
        ModelError: the model already has adapters.
    """
    refuse_adapters(model)
    names = target_names(model, config.targets)
    model.requires_grad_(False)
    for name in names:
        wrap_linear(model, name, config)
    return model


def refuse_adapters(model: nn.Module) -> None:
    """ModelError where `model` already has adapters."""
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ModelError(
            "the model already has LoRA adapters; remove_lora (after merge_lora, to keep them) comes first"
        )


def wrap_linear(model: nn.Module, name: str, config: LoraConfig) -> LoRALinear:
    """Put an adapter beside the one layer called `name`. ModelError where that is no linear layer."""
    base = model.get_submodule(name)
    if not isinstance(base, nn.Linear | ConstantLinear):
        raise ModelError(f"{name} is {type(base).__name__}, only linear layers take LoRA")
    base.requires_grad_(False)
    parent, _, attribute = name.rpartition(".")
    layer = LoRALinear(base, config, torch_generator(derive_seed(config.seed, "lora", name)))
    setattr(model.get_submodule(parent), attribute, layer.train(base.training))
    return layer


def target_names(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Names of the linear layers that `targets` select, in the model's order; ConfigError where one selects none."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | ConstantLinear)]
    chosen = set()
    for target in targets:
        if target == ALL_LINEAR:
            found = [name for name in linear if name.rpartition(".")[2] not in ("head", "value_head", "reward_head")]
        else:
            found = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(f"targets has {target!r}, which names no linear layer, allowed: {', '.join(ends)}")
        chosen.update(found)
    return [name for name in linear if name in chosen]


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The wrapped layers by name. ModelError where there are none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    if not found:
        raise ModelError(f"{type(model).__name__} has no LoRA adapters; add_lora makes them")
    return found


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The adapters' parameters, `A` then `B` of each layer."""
    return [parameter for layer in lora_layers(model).values() for parameter in (layer.lora_A, layer.lora_B)]


def merge_lora(model: nn.Module) -> nn.Module:
    """Add every adapter to its base weight: as fast as a model without adapters, while `unmerge_lora` stays exact.

    Costs a copy of the wrapped weights until then; `remove_lora` drops it. Merging twice does nothing more.
    """
    for layer in lora_layers(model).values():
        layer.merge()
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Take every adapter out of its base weight again, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()
    return model


def remove_lora(model: nn.Module) -> nn.Module:
    """Put plain linear layers back: with the adapters in their weights if they were merged, without them if not.

    The layers stay frozen, as `add_lora` left everything.
    """
    for name, layer in lora_layers(model).items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.base)
    return model


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is the one the adapters were added to (the reference model of RL), whether merged or not."""
    layers = lora_layers(model).values()
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled
