"""Which models the program can carry out, and what their layers multiply by."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from alignlab.lm.attention import MultiHeadAttention
from alignlab.lm.block import MLP, TransformerBlock
from alignlab.lm.config import GPTConfig
from alignlab.lm.cpu_step.adapters import Adapter, Place, adapters_of, can_be_added
from alignlab.lm.cpu_step.pack import SCALES
from alignlab.lm.lora import LoRALinear
from alignlab.lm.model import GPTModel
from alignlab.lm.norm import NormLayer
from alignlab.lm.quant.adapted import AdaptedLinear
from alignlab.lm.quant.layers import QuantEmbedding, QuantLinear, QuantMatrix
from alignlab.lm.quant.layout import LANES

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
"""In the order of vector.h."""

Weight = Tensor | QuantMatrix


def fits(config: GPTConfig) -> bool:
    """Whether the program knows this architecture: pre-norm blocks of whole vectors, no ALiBi, no SoLU."""
    widths = (config.d_model, config.d_mlp, config.d_head)
    return (
        config.activation in ACTIVATIONS
        and config.positions != "alibi"
        and config.norm_position == "pre"
        and all(width % LANES == 0 for width in widths)
    )


def parts(model: GPTModel) -> Iterator[nn.Module]:
    """Everything of `model` that the program does in its place."""
    yield model.final_norm
    for block in model.blocks:
        assert isinstance(block, TransformerBlock)
        attn, mlp = block.attn, block.mlp
        yield from (block, attn, mlp)
        for module in (*linear_layers(block).values(), *norms(block).values()):
            if module is not None:
                yield module
            if isinstance(module, LoRALinear):
                yield module.base


def linear_layers(block: TransformerBlock) -> dict[str, nn.Module | None]:
    """The linear layers of a block."""
    attn, mlp = block.attn, block.mlp
    return {"q": attn.q, "k": attn.k, "v": attn.v, "o": attn.o, "gate": mlp.gate, "up": mlp.up, "down": mlp.down}


def norms(block: TransformerBlock) -> dict[str, NormLayer | None]:
    """The norms of a block, by the names of model.h."""
    attn = block.attn
    return {
        "norm1": block.norm1,
        "norm2": block.norm2,
        "post_attn": block.post_attn_norm,
        "post_mlp": block.post_mlp_norm,
        "q_norm": attn.q_norm,
        "k_norm": attn.k_norm,
    }


KNOWN = (nn.Linear, QuantLinear, AdaptedLinear, LoRALinear, NormLayer, TransformerBlock, MultiHeadAttention, MLP)


def weight_of(layer: nn.Module) -> Weight:
    """What a linear layer multiplies by, apart from adapters beside it."""
    if isinstance(layer, QuantLinear | QuantEmbedding | AdaptedLinear):
        return layer.matrix
    if isinstance(layer, LoRALinear):
        if layer.unmerged is not None:
            return layer.base.weight if layer.enabled else layer.unmerged
        return weight_of(layer.base)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def head_of(model: GPTModel) -> Weight:
    """The unembedding matrix."""
    return weight_of(model.embed if model.head is None else model.head)


def adapters_in(model: GPTModel) -> dict[Place, list[Adapter]]:
    """The adapters that act in the blocks."""
    found = {
        Place(i, name): adapters_of(layer)
        for i, block in enumerate(model.blocks)
        for name, layer in linear_layers(block).items()  # type: ignore[arg-type]
    }
    return {place: some for place, some in found.items() if some}


def can_be_packed(weight: Weight, dtype: torch.dtype) -> bool:
    """Whether the program multiplies by `weight` in a model of type `dtype`."""
    if isinstance(weight, QuantMatrix):
        per_word = 32 // weight.bits
        known = weight.scales.dtype in SCALES and weight.group_size % per_word == 0 and weight.in_features % LANES == 0
        return known and weight.codes.device.type == "cpu" and weight.dtype is dtype
    plain = type(weight) in (Tensor, nn.Parameter)
    return plain and weight.dtype is dtype and weight.device.type == "cpu"


def is_supported(model: GPTModel) -> bool:
    """Whether every part of `model` is one that the program knows, with nobody listening."""
    if type(model) is not GPTModel or not fits(model.config) or type(model.embed) not in (nn.Embedding, QuantEmbedding):
        return False
    dtype = model.embed.weight.dtype
    if dtype not in (torch.bfloat16, torch.float32):
        return False
    for part in parts(model):
        if type(part) not in KNOWN or part._forward_hooks or part._forward_pre_hooks:
            return False
    if adapters_of(model.head) or not all(map(can_be_added, adapters_in(model).values())):
        return False
    layers = [layer for block in model.blocks for layer in linear_layers(block).values() if layer is not None]  # type: ignore[arg-type]
    weights = [head_of(model), *(weight_of(layer) for layer in layers)]
    return all(can_be_packed(weight, dtype) for weight in weights)
