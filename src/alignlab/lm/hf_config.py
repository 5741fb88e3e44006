"""`GPTConfig` from the `config.json` of a Hugging Face model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.architectures import FAMILIES
from alignlab.lm.config import Activation, GPTConfig, RopeScaling

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
}
_GEMMA_DEFAULT_THETA = 1_000_000.0
_GEMMA_LOCAL_THETA = 10_000.0

Json = dict[str, Any]


def read_json_object(path: Path) -> Json:
    """The JSON object in `path`. Raises `ModelError` when it is missing, damaged or something else."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be opened: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ModelError(f"{path}: expected a JSON object, got a {type(parsed).__name__}")
    return parsed


def config_from_hf(raw: Json, where: str = "config.json") -> GPTConfig:
    """The architecture that a `config.json` describes.

    Raises `ModelError` for an unknown architecture, a missing or ill-typed field, or a feature we do not compute.
    """
    model_type = raw.get("model_type")
    if model_type == "gemma3" and isinstance(raw.get("text_config"), dict):
        model_type, raw = "gemma3_text", raw["text_config"]
    if not isinstance(model_type, str) or model_type not in _READERS:
        raise ModelError(f"{where}: unknown architecture {model_type!r}, known: {', '.join(FAMILIES)}")
    try:
        return GPTConfig(architecture=model_type, **_READERS[model_type](raw))
    except KeyError as error:
        raise ModelError(f"{where}: field {error.args[0]!r} is missing for architecture {model_type!r}") from None
    except ConfigError as error:
        raise ModelError(f"{where}: {error}") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"{where}: a field has the wrong type for architecture {model_type!r}: {error}") from None


def _activation(name: Any) -> Activation:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported, allowed: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _refuse(raw: Json, **wanted: Any) -> None:
    for name, value in wanted.items():
        if name in raw and raw[name] not in (value, None):
            raise ValueError(f"{name}={raw[name]!r} is not supported, allowed: {value!r}")


def _first(*candidates: Any) -> float:
    """The first that is given, as a number: newer spellings stand before older ones."""
    return float(next(value for value in candidates if value is not None))


def _rope(raw: Json, layer_type: str = "full_attention", theta: float = 10_000.0) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` (newer files) or `rope_theta` and `rope_scaling` (older ones)."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if layer_type in rope:
        rope = rope[layer_type]
    base = _first(rope.get("rope_theta"), raw.get("rope_theta"), raw.get("rotary_emb_base"), theta)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", None):
        return base, None
    if kind == "linear":
        return base, RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return base, RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    raise ValueError(f"rope scaling {kind!r} is not supported, allowed: default, linear, llama3")


def _common(raw: Json, default_tied: bool) -> Json:
    n_heads = int(raw["num_attention_heads"])
    return {
        "vocab_size": int(raw["vocab_size"]),
        "n_ctx": int(raw["max_position_embeddings"]),
        "d_model": int(raw["hidden_size"]),
        "n_layers": int(raw["num_hidden_layers"]),
        "n_heads": n_heads,
        "n_kv_heads": int(raw.get("num_key_value_heads") or n_heads),
        "d_head": int(raw.get("head_dim") or 0),
        "d_mlp": int(raw["intermediate_size"]),
        "tie_embeddings": bool(raw.get("tie_word_embeddings", default_tied)),
    }


def _llama(raw: Json) -> Json:
    theta, scaling = _rope(raw)
    bias = bool(raw.get("attention_bias", False))
    return _common(raw, False) | {
        "activation": _activation(raw.get("hidden_act", "silu")),
        "norm_eps": float(raw.get("rms_norm_eps", 1e-6)),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bool(raw.get("mlp_bias", False)),
    }


def _windows(raw: Json, pattern: Callable[[int], bool]) -> Json:
    """The sliding window and its layers, from `layer_types` (newer files) or the family's `pattern` (older ones)."""
    n_layers, window = int(raw["num_hidden_layers"]), raw.get("sliding_window")
    if raw.get("use_sliding_window") is False or window is None:
        return {}
    types = raw.get("layer_types")
    if types is not None:
        unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
        if unknown or len(types) != n_layers:
            raise ValueError(f"layer_types must name full_attention or sliding_attention for each of {n_layers} layers")
        layers = tuple(kind == "sliding_attention" for kind in types)
    else:
        layers = tuple(pattern(i) for i in range(n_layers))
    return {"window": int(window), "window_layers": layers} if any(layers) else {}


def _qwen2(raw: Json) -> Json:
    first = int(raw.get("max_window_layers", 28))
    windows = _windows(raw, lambda i: i >= first) if raw.get("use_sliding_window") else {}
    return _llama(raw) | windows | {"qkv_bias": True, "out_bias": False, "mlp_bias": False}


def _qwen3(raw: Json) -> Json:
    first = int(raw.get("max_window_layers", 28))
    windows = _windows(raw, lambda i: i >= first) if raw.get("use_sliding_window") else {}
    return _llama(raw) | windows | {"qk_norm": True, "d_head": int(raw.get("head_dim") or 128), "mlp_bias": False}


def _gemma(raw: Json) -> Json:
    _refuse(raw, use_bidirectional_attention=False)
    fields = _llama({**raw, "hidden_act": raw.get("hidden_activation") or "gelu_pytorch_tanh"})
    fields["tie_embeddings"] = bool(raw.get("tie_word_embeddings", True))
    fields["d_head"] = int(raw.get("head_dim") or 256)
    # The original rounds this factor to the activations' type; the model does the same when it multiplies.
    return fields | {"norm_offset": True, "embed_scale": fields["d_model"] ** 0.5, "mlp_bias": False}


def _gemma2(raw: Json) -> Json:
    return (
        _gemma(raw)
        | _windows(raw, lambda i: i % 2 == 0)
        | {
            "post_norm": True,
            "attn_scale": float(raw.get("query_pre_attn_scalar", 256)) ** -0.5,
            "attn_softcap": _optional_float(raw.get("attn_logit_softcapping", 50.0)),
            "logit_softcap": _optional_float(raw.get("final_logit_softcapping", 30.0)),
        }
    )


def _gemma3(raw: Json) -> Json:
    period = int(_first(raw.get("sliding_window_pattern"), raw.get("_sliding_window_pattern"), 6))
    theta, scaling = _rope(raw, "full_attention", _GEMMA_DEFAULT_THETA)
    local, local_scaling = _GEMMA_LOCAL_THETA, None
    if "sliding_attention" in (raw.get("rope_parameters") or {}):
        local, local_scaling = _rope(raw, "sliding_attention", _GEMMA_LOCAL_THETA)
    elif "rope_local_base_freq" in raw:
        local = float(raw["rope_local_base_freq"])
    if local_scaling is not None:
        raise ValueError("scaled rotary frequencies in sliding layers are not supported")
    plain = {k: v for k, v in raw.items() if k not in ("rope_parameters", "rope_scaling")}
    return (
        _gemma(plain)
        | _windows({"sliding_window": 4096, **raw}, lambda i: (i + 1) % period != 0)
        | {
            "post_norm": True,
            "qk_norm": True,
            "rope_theta": theta,
            "rope_scaling": scaling,
            "rope_local_theta": local,
            "attn_scale": float(raw.get("query_pre_attn_scalar", 256)) ** -0.5,
            "attn_softcap": _optional_float(raw.get("attn_logit_softcapping")),
            "logit_softcap": _optional_float(raw.get("final_logit_softcapping")),
        }
    )


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)


def _gpt2(raw: Json) -> Json:
    _refuse(raw, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width = int(raw["n_embd"])
    return {
        "vocab_size": int(raw["vocab_size"]),
        "n_ctx": int(raw.get("n_positions") or raw["n_ctx"]),
        "d_model": width,
        "n_layers": int(raw["n_layer"]),
        "n_heads": int(raw["n_head"]),
        "d_mlp": int(raw.get("n_inner") or 4 * width),
        "activation": _activation(raw.get("activation_function", "gelu_new")),
        "gated_mlp": False,
        "norm": "layernorm",
        "norm_eps": float(raw.get("layer_norm_epsilon", 1e-5)),
        "positions": "learned",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tie_embeddings": bool(raw.get("tie_word_embeddings", True)),
    }


def _neox(raw: Json) -> Json:
    theta, scaling = _rope(raw)
    fields = _common(raw, False)
    d_head = fields["d_model"] // fields["n_heads"]
    rope = raw.get("rope_parameters") or {}
    share = _first(rope.get("partial_rotary_factor"), raw.get("partial_rotary_factor"), raw.get("rotary_pct"), 0.25)
    bias = bool(raw.get("attention_bias", True))
    return fields | {
        "n_kv_heads": 0,
        "activation": _activation(raw.get("hidden_act", "gelu")),
        "gated_mlp": False,
        "norm": "layernorm",
        "norm_eps": float(raw.get("layer_norm_eps", 1e-5)),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rotary_dim": int(d_head * share),
        "parallel_block": bool(raw.get("use_parallel_residual", True)),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": True,
    }


_READERS: dict[str, Callable[[Json], Json]] = {
    "gpt2": _gpt2,
    "gpt_neox": _neox,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
