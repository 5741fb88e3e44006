"""What a model must become to be written as one of the families in Hugging Face files, with the same logits.

A family's format leaves some things unsaid that a model trained here may say differently: GPT-2 always has biases, and
no family knows muP's factors. Missing biases become zeros, and muP's factors move into the weights that they multiply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.lm.config import GPTConfig

_EXPORTABLE: dict[str, tuple[str, ...]] = {
    "positions": ("rotary", "learned"),
    "activation": ("gelu", "gelu_tanh", "silu", "relu", "relu2"),
    "norm_position": ("pre",),
}
_BIASED = {
    "qkv_bias": ("attn.q", "attn.k", "attn.v"),
    "out_bias": ("attn.o",),
    "mlp_bias": ("mlp.gate", "mlp.up", "mlp.down"),
}


def nearest_family(config: GPTConfig) -> str:
    """The family whose models are most like this one; whether it can hold all of it shows when it is written."""
    if config.positions == "learned":
        return "gpt2"
    if config.norm == "layernorm" and not config.gated_mlp:
        return "gpt_neox"
    if config.norm_offset:
        gemma = "gemma2" if config.post_norm else "gemma"
        return "gemma3_text" if config.post_norm and config.qk_norm else gemma
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.window is not None or (config.qkv_bias and not config.out_bias) else "llama"


def exportable_config(config: GPTConfig) -> GPTConfig:
    """The configuration under which the model is written.

    Raises `ModelError` for a choice that no family has; `config_to_hf` refuses what the chosen one does not have.
    """
    for name, allowed in _EXPORTABLE.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ModelError(
                f"{name} is {value!r}, which no architecture of Hugging Face files that alignlab writes can express; "
                f"those can: {', '.join(allowed)}"
            )
    family = nearest_family(config) if config.architecture == "auto" else config.architecture
    qkv, out, mlp = config.qkv_bias, config.out_bias, config.mlp_bias
    if family == "gpt2":
        qkv = out = mlp = True
    elif family == "gpt_neox":
        qkv, out, mlp = qkv or out, qkv or out, True
    elif family == "qwen2":
        qkv = True
    else:
        qkv = out = qkv or out
    written = replace(config, architecture=family, init="gpt2", qkv_bias=qkv, out_bias=out, mlp_bias=mlp)
    if config.window is not None:
        written = replace(written, window_layers=tuple(config.is_windowed(i) for i in range(config.n_layers)))
    if family in ("gemma2", "gemma3_text"):  # their files name the scale
        written = replace(written, attn_scale=config.score_scale)
    return written


@torch.no_grad()
def exportable_parameters(config: GPTConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a model of `config` that make one of `exportable_config(config)` give the same logits."""
    target = exportable_config(config)
    made = dict(parameters)
    for flag, modules in _BIASED.items():
        if getattr(target, flag) and not getattr(config, flag):
            for name, weight in parameters.items():
                module = name.removesuffix(".weight")
                if name.startswith("blocks.") and name.endswith(".weight") and module.endswith(modules):
                    made[f"{module}.bias"] = weight.new_zeros(len(weight))
    scores = config.score_scale / target.score_scale
    for name in parameters:
        if name.startswith("final_norm."):
            made[name] = _times(made[name], config.output_multiplier, config, name)
        # Where queries are normalised, a factor before that would be lost.
        scaled = (".attn.q_norm.weight", ".attn.q_norm.bias") if config.qk_norm else (".attn.q.weight", ".attn.q.bias")
        if name.endswith(scaled):
            made[name] = _times(made[name], scores, config, name)
    return made


def _times(parameter: Tensor, factor: float, config: GPTConfig, name: str) -> Tensor:
    """The parameter whose effect is `factor` times as large; norms may be stored as the distance from 1."""
    if factor == 1:
        return parameter
    wide = parameter.float()
    if config.norm_offset and name.endswith("norm.weight"):
        return ((1 + wide) * factor - 1).to(parameter.dtype)
    return (wide * factor).to(parameter.dtype)
