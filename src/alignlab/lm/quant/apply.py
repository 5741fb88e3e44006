"""`quantise` a model in place, with a report of what it cost, and `dequantise` it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.layers import ConstantLinear, QuantEmbedding, QuantLinear, QuantMatrix
from alignlab.lm.quant.report import LayerReport, QuantReport
from alignlab.lm.quant.rounding import Rounded, round_int4, round_int8, round_nf4

SCHEMES: dict[str, Callable[[Tensor, int], Rounded]] = {"int8": round_int8, "int4": round_int4, "nf4": round_nf4}
GROUP_SIZES = {"int8": 64, "int4": 32, "nf4": 64}
"""Columns that share a scale unless said otherwise."""
HEADS = ("head", "value_head", "reward_head")


@torch.no_grad()
def quantise(
    model: nn.Module,
    scheme: str,
    group_size: int | None = None,
    *,
    calibration: Int[Tensor, "batch pos"] | None = None,
    embeddings: bool = False,
) -> QuantReport:
    """Put `QuantLinear` layers where the linear layers of `model` were (heads excepted), and say what that changed.

    `scheme`: int8 (symmetric), int4 (sixteen equal steps over a group's range) or nf4 (QLoRA's NormalFloat).
    `group_size` columns share a scale; in rows that it does not fill, the largest smaller group of a multiple of 8 that
    does. With token ids as `calibration` the report has the error of every layer's outputs, for the inputs that it gets
    in the unquantised model. `embeddings` also puts embedding and head into int8. What remains is frozen.

    Raises:
        ConfigError: an unknown scheme or an impossible group size.
        ModelError: the model has adapters or is quantised already, or weights are not finite; it is then as it was.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme is {scheme!r}, allowed: {', '.join(SCHEMES)}")
    size = GROUP_SIZES[scheme] if group_size is None else group_size
    if type(size) is not int or size < 8 or size % 8:
        raise ConfigError(f"group_size is {size!r}, allowed: multiples of 8")
    refuse_quantised(model)
    before = memory(model)
    made: dict[str, QuantLinear] = {}
    kept = []
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear and name.rpartition(".")[2] not in HEADS:
            group = fitting_group(layer.in_features, size)
            if group is None:
                kept.append(name)
                continue
            made[name] = QuantLinear(_matrix(layer.weight, scheme, group, name), layer.bias)
    if not made:
        raise ModelError(f"{type(model).__name__} has no linear layer that can be quantised")
    ends = _quantised_ends(model) if embeddings else {}
    errors = {} if calibration is None else output_errors(model, made, calibration)
    layers = tuple(_reported(model, name, layer.matrix, errors.get(name)) for name, layer in made.items())
    layers += tuple(_reported(model, name, layer.matrix, None) for name, layer in ends.items())
    model.requires_grad_(False)
    for name, module in {**made, **ends}.items():
        put(model, name, module.train(model.training))
    return QuantReport(scheme, size, layers, tuple(kept), before, memory(model))


def fitting_group(columns: int, size: int) -> int | None:
    """The largest group of at most `size` columns, a multiple of 8, that fills a row."""
    return next((group for group in range(min(size, columns) // 8 * 8, 0, -8) if columns % group == 0), None)


def _matrix(weight: Tensor, scheme: str, group: int, name: str) -> QuantMatrix:
    try:
        return QuantMatrix(SCHEMES[scheme](weight, group), weight.dtype)
    except ModelError as error:
        raise ModelError(f"layer {name}: {error}") from None


def _quantised_ends(model: nn.Module) -> dict[str, QuantEmbedding | QuantLinear]:
    """The embedding and a head of its own, in int8."""
    ends: dict[str, QuantEmbedding | QuantLinear] = {}
    for name, module in model.named_children():
        if not isinstance(module, nn.Embedding | nn.Linear) or name not in ("embed", "head"):
            continue
        group = fitting_group(module.weight.shape[1], GROUP_SIZES["int8"])
        if group is not None:
            matrix = _matrix(module.weight, "int8", group, name)
            ends[name] = QuantEmbedding(matrix) if name == "embed" else QuantLinear(matrix)
    return ends


def _reported(model: nn.Module, name: str, matrix: QuantMatrix, output_error: float | None) -> LayerReport:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    shape = (matrix.out_features, matrix.in_features)
    error = relative_error(weight, matrix.dequantise(torch.float32))
    return LayerReport(name, shape, matrix.bits_per_weight, error, output_error)


def relative_error(exact: Float[Tensor, "*shape"], approximate: Float[Tensor, "*shape"]) -> float:
    """`|exact - approximate| / |exact|` in the Frobenius norm; 0 where both are 0."""
    wide = exact.detach().float()
    norm, distance = wide.norm(), (wide - approximate.float()).norm()
    return float(distance / norm) if float(norm) else float(distance)


def output_errors(
    model: nn.Module, candidates: dict[str, QuantLinear], tokens: Int[Tensor, "batch pos"]
) -> dict[str, float]:
    """Relative error of each candidate's outputs for the inputs that the layer in its place gets from `model`."""
    watchers = {name: _Watcher(model.get_submodule(name), made.matrix) for name, made in candidates.items()}
    with in_place(model, watchers), torch.no_grad():
        hidden = getattr(model, "hidden_states", model)  # no logits are needed
        hidden(tokens.to(next(model.parameters()).device))
    return {name: watcher.error for name, watcher in watchers.items() if watcher.seen}


class _Watcher(nn.Module):
    """A layer that also measures what its quantised form would have answered."""

    def __init__(self, layer: nn.Module, matrix: QuantMatrix) -> None:
        super().__init__()
        self.layer, self.matrix = layer, matrix
        self.distance, self.norm, self.seen = 0.0, 0.0, False

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        exact = F.linear(wide, self.layer.weight.float())  # type: ignore[operator, union-attr, arg-type]
        made = F.linear(wide, self.matrix.dequantise(torch.float32))
        self.distance += float((exact - made).double().square().sum())
        self.norm += float(exact.double().square().sum())
        self.seen = True
        y: Tensor = self.layer(x)
        return y

    @property
    def error(self) -> float:
        return float((self.distance / self.norm) ** 0.5) if self.norm else 0.0


@contextmanager
def in_place(model: nn.Module, modules: dict[str, _Watcher]) -> Iterator[None]:
    """Inside, these modules stand where the layers of these names were."""
    before = {name: model.get_submodule(name) for name in modules}
    for name, module in modules.items():
        put(model, name, module)
    try:
        yield
    finally:
        for name, original in before.items():
            put(model, name, original)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the one called `name` was."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def fill(model: GPTModel, state: dict[str, Tensor], layers: Mapping[str, QuantLinear | QuantEmbedding]) -> GPTModel:
    """Give an empty model its quantised layers and all its other parameters; returns it, frozen."""
    for name, layer in layers.items():
        put(model, name, layer)
    inside = tuple(f"{name}." for name in layers)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(inside)}
    model.load_state_dict(state | own, strict=True, assign=True)
    model.requires_grad_(False)
    return model.eval()


def refuse_quantised(model: nn.Module) -> None:
    """ModelError where `model` is quantised already, or has adapters."""
    for name, module in model.named_modules():
        if isinstance(module, QuantMatrix):
            raise ModelError(f"layer {name} is quantised already; dequantise the model first")
        if type(module).__name__ == "LoRALinear":  # which itself knows quantised layers
            raise ModelError(f"layer {name} has a LoRA adapter; quantise first, add adapters then")


def memory(model: nn.Module) -> int:
    """Bytes of parameters and of what stands in their place; tied ones count once."""
    tensors = {id(p): p for p in model.parameters()}
    plain = sum(p.numel() * p.element_size() for p in tensors.values())
    return plain + sum(module.n_bytes for module in model.modules() if isinstance(module, QuantMatrix))


@torch.no_grad()
def dequantise(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Plain linear layers and embeddings again, with the weights that the codes stand for; returns `model`.

    They stay frozen, as `quantise` left them. `dtype`: each layer's own where None.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, ConstantLinear | QuantEmbedding):
            put(model, name, plain_layer(module, dtype).train(module.training))
    return model


def plain_layer(module: ConstantLinear | QuantEmbedding, dtype: torch.dtype | None = None) -> nn.Module:
    """The layer that `module` stands for."""
    weight = module.dequantise(dtype)
    made: nn.Linear | nn.Embedding
    if isinstance(module, QuantEmbedding):
        made = nn.Embedding.from_pretrained(weight)
    else:
        made = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(weight)
        if module.bias is not None:
            made.bias = nn.Parameter(module.bias.to(weight.dtype))
    return made.requires_grad_(False)


def plain_parameters(parameters: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict whose quantised matrices are plain weights again, under the names that those have."""
    found = dict(parameters)
    for name, module in model.named_modules():
        if isinstance(module, ConstantLinear | QuantEmbedding):
            bias = found.get(f"{name}.bias")
            found = {key: value for key, value in found.items() if not key.startswith(f"{name}.")}
            found[f"{name}.weight"] = module.dequantise()
            if bias is not None:
                found[f"{name}.bias"] = bias
    return found
