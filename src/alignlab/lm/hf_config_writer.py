"""The `config.json` of a Hugging Face model from a `GPTConfig`."""

from __future__ import annotations

import dataclasses
from typing import Any

from alignlab.core.errors import ModelError
from alignlab.lm.architectures import family_of
from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_config import config_from_hf

_HF_ACTIVATION = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu", "relu": "relu", "relu2": "relu2"}
_NOT_THE_MODEL = ("architecture", "attention", "dropout", "attn_dropout", "mup_base_width")
"""Fields that do not change the logits of a model that is read back; muP's own field is `init`."""

Json = dict[str, Any]


def config_to_hf(config: GPTConfig) -> Json:
    """The `config.json` of this architecture. Raises `ModelError` where the family's format cannot express a field.

    `exportable_config` first changes what can be said in another way.
    """
    family = family_of(config)
    if config.activation not in _HF_ACTIVATION:
        raise ModelError(f"activation is {config.activation!r}, which Hugging Face files cannot express")
    raw = _gpt2_json(config) if family.name == "gpt2" else _rotary_json(config, family.name)
    raw["model_type"] = family.name
    raw["architectures"] = [family.hf_class]
    back = config_from_hf(raw)
    if family.name == "gemma" and back.activation == "gelu":
        # An old mistake in published files, which readers mend: there it stands for the approximation.
        back = dataclasses.replace(back, activation="gelu_tanh")
    for item in dataclasses.fields(GPTConfig):
        if item.name in _NOT_THE_MODEL:
            continue
        ours, theirs = getattr(config, item.name), getattr(back, item.name)
        close = isinstance(ours, float) and isinstance(theirs, float) and abs(ours - theirs) <= 1e-6 * abs(ours)
        if ours != theirs and not close:
            raise ModelError(
                f"{item.name} is {ours!r}, which Hugging Face files of architecture {family.name!r} "
                f"cannot express (they would say {theirs!r})"
            )
    return raw


def _gpt2_json(config: GPTConfig) -> Json:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.n_ctx,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else _HF_ACTIVATION[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **dict.fromkeys(("embd_pdrop", "resid_pdrop"), config.dropout),
        "attn_pdrop": config.attn_dropout,
    }


def _rope_json(config: GPTConfig) -> Json:
    rope: Json = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_n_ctx,
            }
    return rope


def _rotary_json(config: GPTConfig, family: str) -> Json:
    rope = _rope_json(config)
    raw: Json = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.n_ctx,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_mlp,
        "hidden_act": _HF_ACTIVATION[config.activation],
        "attention_bias": config.out_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": rope,
        # Readers older than `rope_parameters` look here.
        "rope_theta": config.rope_theta,
    }
    if family == "gpt_neox":
        share = config.rotary_dim / config.d_head
        rope["partial_rotary_factor"] = raw["rotary_pct"] = share
        raw |= {"layer_norm_eps": config.norm_eps, "use_parallel_residual": config.parallel_block}
        del raw["head_dim"], raw["num_key_value_heads"]
        return raw
    raw["rms_norm_eps"] = config.norm_eps
    if family == "llama":
        raw["mlp_bias"] = config.mlp_bias
    if family.startswith("qwen"):
        raw["use_sliding_window"] = config.window is not None
    if family.startswith("gemma"):
        raw["hidden_activation"] = raw["hidden_act"]
    if family in ("gemma2", "gemma3_text"):
        raw |= {
            "query_pre_attn_scalar": _scalar_of(config),
            "attn_logit_softcapping": config.attn_softcap,
            "final_logit_softcapping": config.logit_softcap,
        }
    if family == "gemma3_text":
        local = config.rope_local_theta or config.rope_theta
        raw["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        }
        raw["rope_local_base_freq"] = local
    if family in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
        raw["sliding_window"] = config.window
        raw["layer_types"] = [
            "sliding_attention" if config.is_windowed(i) else "full_attention" for i in range(config.n_layers)
        ]
    return raw


def _scalar_of(config: GPTConfig) -> float:
    """`query_pre_attn_scalar`, a whole number wherever it is one, because readers insist."""
    exact = config.d_head if config.attn_scale is None else config.attn_scale**-2
    return round(exact) if abs(exact - round(exact)) < 1e-6 * exact else exact
