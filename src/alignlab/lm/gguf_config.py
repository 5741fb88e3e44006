"""`GPTConfig` from the metadata of a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.architectures import FAMILIES
from alignlab.lm.config import GPTConfig, RopeScaling
from alignlab.lm.gguf_reader import GGUFFile
from alignlab.lm.rotary import frequencies

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, which llama.cpp stores for Llama 3.1 instead of the formula's parameters."""

_BY_GGUF_NAME = {family.gguf_name: family.name for family in FAMILIES.values()}
# Models of these depths scale queries by d_model / n_heads instead of d_head (Gemma 2 and 3 at 27B).
_WIDE_QUERY_DEPTH = {"gemma2": 46, "gemma3_text": 62}
_BIASED = ("gpt2", "gpt_neox")


class _Keys:
    """Typed look-ups in the metadata of one architecture, which fail with the key's name."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def get(self, name: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.architecture}.{name}", default)

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # per-layer values that are all the same
        if type(value) is not int:
            raise ModelError(f"{self.file.path}: {self.architecture}.{name} is {value!r}, expected one whole number")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if type(value) not in (int, float):
            raise ModelError(f"{self.file.path}: {self.architecture}.{name} is {value!r}, expected a number")
        return float(value)


def config_from_gguf(file: GGUFFile) -> GPTConfig:
    """The architecture that the file's metadata describe.

    Raises `ModelError` for an unknown architecture, missing or ill-typed metadata, or a feature we do not compute.
    """
    gguf_name = file.metadata.get("general.architecture")
    if gguf_name not in _BY_GGUF_NAME:
        raise ModelError(f"{file.path}: unknown architecture {gguf_name!r}, known: {', '.join(_BY_GGUF_NAME)}")
    family = _BY_GGUF_NAME[gguf_name]
    keys = _Keys(file, gguf_name)
    if keys.get("expert_count"):
        raise ModelError(f"{file.path}: mixture-of-experts models are not supported")
    fields = _shape(file, keys) | (_layer_norm(keys) if family in _BIASED else _rms_norm(file, keys))
    if family.startswith("gemma"):
        fields |= _gemma(keys, family, fields)
    if family != "gpt2":
        fields |= _rope(file, keys, fields)
    try:
        return GPTConfig(architecture=family, **fields)
    except (ConfigError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(f"{file.path}: {error}") from None


def _shape(file: GGUFFile, keys: _Keys) -> dict[str, Any]:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file.path}: tensor 'token_embd.weight' is missing or not a matrix")
    n_layers, n_heads, d_model = (keys.whole(k) for k in ("block_count", "attention.head_count", "embedding_length"))
    # Every layer has tensors, so a header that claims absurdly many is damaged; building it would take forever.
    if not 0 < n_layers <= len(file.tensors) or n_heads <= 0 or d_model <= 0:
        raise ModelError(
            f"{file.path}: {n_layers} layers, {n_heads} heads and width {d_model} do not fit "
            f"its {len(file.tensors)} tensors"
        )
    return {
        "vocab_size": embedding.shape[0],
        "n_ctx": keys.whole("context_length"),
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": keys.whole("attention.head_count_kv", n_heads),
        "d_head": keys.whole("attention.key_length", d_model // n_heads),
        "d_mlp": keys.whole("feed_forward_length"),
        "tie_embeddings": "output.weight" not in file.tensors,
        "qkv_bias": bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & file.tensors.keys()),
        "out_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _layer_norm(keys: _Keys) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "norm": "layernorm",
        "norm_eps": keys.real("attention.layer_norm_epsilon", 1e-5),
        "gated_mlp": False,
    }
    if keys.architecture == "gpt2":
        return fields | {"positions": "learned", "activation": "gelu_tanh"}
    return fields | {"activation": "gelu", "parallel_block": bool(keys.get("use_parallel_residual", True))}


def _rms_norm(file: GGUFFile, keys: _Keys) -> dict[str, Any]:
    return {
        "norm_eps": keys.real("attention.layer_norm_rms_epsilon", 1e-6),
        "qk_norm": "blk.0.attn_q_norm.weight" in file.tensors,
    }


def _gemma(keys: _Keys, family: str, fields: dict[str, Any]) -> dict[str, Any]:
    gemma: dict[str, Any] = {
        "activation": "gelu_tanh",
        "norm_offset": True,
        "embed_scale": fields["d_model"] ** 0.5,
    }
    if family == "gemma":
        return gemma
    n_layers = fields["n_layers"]
    wide = n_layers == _WIDE_QUERY_DEPTH[family]
    gemma["attn_scale"] = (fields["d_model"] / fields["n_heads"] if wide else fields["d_head"]) ** -0.5
    gemma["post_norm"] = True
    period = 2 if family == "gemma2" else 6
    window = keys.whole("attention.sliding_window", 4096 if family == "gemma2" else 0)
    pattern = keys.get("attention.sliding_window_pattern", period)
    if isinstance(pattern, np.ndarray):
        layers = tuple(bool(x) for x in pattern)
    elif type(pattern) is int and pattern > 0:
        layers = tuple((i + 1) % pattern != 0 for i in range(n_layers))
    else:
        raise ModelError(f"{keys.file.path}: attention.sliding_window_pattern is {pattern!r}, expected a period")
    if window and any(layers):
        gemma |= {"window": window, "window_layers": layers}
    if family == "gemma2":
        gemma["attn_softcap"] = keys.real("attn_logit_softcapping", 50.0)
        gemma["logit_softcap"] = keys.real("final_logit_softcapping", 30.0)
    else:
        gemma["rope_local_theta"] = keys.real("rope.freq_base_swa", 10_000.0)
    return gemma


def _rope(file: GGUFFile, keys: _Keys, fields: dict[str, Any]) -> dict[str, Any]:
    theta = keys.real("rope.freq_base", 1_000_000.0 if "rope_local_theta" in fields else 10_000.0)
    rotary_dim = keys.whole("rope.dimension_count", fields["d_head"])
    rope: dict[str, Any] = {"rope_theta": theta, "rotary_dim": rotary_dim, "rope_scaling": None}
    kind = keys.get("rope.scaling.type", "none")
    if ROPE_FACTORS in file.tensors:
        rope["rope_scaling"] = _llama3_scaling(file, keys, rotary_dim, theta)
    elif kind == "linear":
        rope["rope_scaling"] = RopeScaling("linear", keys.real("rope.scaling.factor"))
    elif kind != "none":
        raise ModelError(f"{file.path}: rope scaling {kind!r} is not supported, allowed: none, linear")
    return rope


def _llama3_scaling(file: GGUFFile, keys: _Keys, rotary_dim: int, theta: float) -> RopeScaling:
    """The Llama 3.1 parameters behind a table of divisors: its largest is the factor, the rest is checked."""
    divisors = file.read(ROPE_FACTORS, torch.float32)
    scaling = None
    if divisors.shape == (rotary_dim // 2,) and bool((divisors >= 1).all()):
        original = keys.whole("rope.scaling.original_context_length", 8192)
        scaling = RopeScaling("llama3", float(divisors.max()), original_n_ctx=original)
        expected = frequencies(rotary_dim, theta, None) / frequencies(rotary_dim, theta, scaling)
    if scaling is None or not torch.allclose(divisors, expected, rtol=1e-3):
        raise ModelError(
            f"{file.path}: the divisors in {ROPE_FACTORS!r} are not Llama 3.1's, which are the supported ones"
        )
    return scaling
