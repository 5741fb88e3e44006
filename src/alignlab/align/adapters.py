"""LoRA adapters in alignment: one set of base weights under policy, reference and reward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from alignlab.lm.lora import LoraConfig, LoRALinear, add_lora, lora_disabled, merge_lora, unmerge_lora
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.adapted import settle_adapters
from alignlab.lm.quant.layers import ConstantLinear


def has_lora(model: nn.Module) -> bool:
    """Whether any layer carries an adapter."""
    return any(isinstance(module, LoRALinear) for module in model.modules())


def ensure_lora(model: nn.Module, config: LoraConfig | None) -> None:
    """Put an adapter on a model that has none; `config=None` leaves the model as it is."""
    if config is not None and not has_lora(model):
        add_lora(model, config)


def reference_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, the adapter is off; a model without one is its own reference."""
    return lora_disabled(model) if has_lora(model) else nullcontext()


@contextmanager
def merged_for_decoding(model: GPTModel) -> Iterator[None]:
    """Inside, a float32 model has its adapter in its weights, which decodes faster; afterwards they are as before.

    Narrower weights would round the adapter away and part the sampler from the trainer, so they stay as they are;
    quantised ones cannot take it in.
    """
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    narrow = model.head_weight.dtype != torch.float32 or any(isinstance(layer.base, ConstantLinear) for layer in layers)
    if not layers or narrow or any(layer.merged for layer in layers):
        yield
        return
    merge_lora(model)
    try:
        yield
    finally:
        unmerge_lora(model)


def share_weights(model: GPTModel) -> GPTModel:
    """A second, frozen model over the same weight tensors; adapters added to one do not show in the other.

    Where the model has an adapter, the layers under it are copied with the adapter merged in, as it is now; quantised
    layers share their codes and have a copy of the adapter beside them.
    """
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in model.parameters()
    }
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    for module in model.modules():  # codes that a kernel keeps in a layout of its own: as large as the weights
        memo |= {id(tensor): tensor for tensor in getattr(module, "_torch_layout", (None, ()))[1]}
    twin = copy.deepcopy(model, memo)
    if has_lora(twin):
        # This makes new tensors, so the original's weights are not touched.
        settle_adapters(twin)
    return twin
