"""The metadata of a GGUF file that describe an architecture: the way back of `gguf_config`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.lm.architectures import family_of
from alignlab.lm.config import GPTConfig
from alignlab.lm.gguf_config import ROPE_FACTORS, config_from_gguf
from alignlab.lm.gguf_reader import GGUFFile
from alignlab.lm.rotary import frequencies

_NOT_THE_MODEL = ("architecture", "attention", "dropout", "attn_dropout", "mup_base_width", "init")


def config_to_gguf(config: GPTConfig) -> dict[str, Any]:
    """Metadata of an architecture that a family has; `exportable_config` comes first, `check_config` last."""
    family = family_of(config)
    made: dict[str, Any] = {
        "context_length": config.n_ctx,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.d_mlp,
        "attention.head_count": config.n_heads,
        "vocab_size": config.vocab_size,
    }
    if family.name in ("gpt2", "gpt_neox"):
        made["attention.layer_norm_epsilon"] = config.norm_eps
    else:
        made |= {
            "attention.layer_norm_rms_epsilon": config.norm_eps,
            "attention.head_count_kv": config.n_kv_heads,
            "attention.key_length": config.d_head,
            "attention.value_length": config.d_head,
        }
    if family.name == "gpt_neox":
        made["use_parallel_residual"] = config.parallel_block
    if config.positions == "rotary":
        made |= _rope(config)
    if config.window is not None:
        made["attention.sliding_window"] = config.window
        made["attention.sliding_window_pattern"] = np.array(
            [config.is_windowed(i) for i in range(config.n_layers)], dtype=bool
        )
    if config.attn_softcap is not None:
        made["attn_logit_softcapping"] = config.attn_softcap
    if config.logit_softcap is not None:
        made["final_logit_softcapping"] = config.logit_softcap
    return {"general.architecture": family.gguf_name} | {f"{family.gguf_name}.{k}": v for k, v in made.items()}


def _rope(config: GPTConfig) -> dict[str, Any]:
    made: dict[str, Any] = {"rope.freq_base": config.rope_theta, "rope.dimension_count": config.rotary_dim}
    if config.rope_local_theta is not None:
        made["rope.freq_base_swa"] = config.rope_local_theta
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        made |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    elif scaling is not None:
        made["rope.scaling.original_context_length"] = scaling.original_n_ctx
    return made


def rope_divisors(config: GPTConfig) -> dict[str, Tensor]:
    """Llama 3.1's stretching is a tensor of its own in the file; nothing where there is none."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3":
        return {}
    plain = frequencies(config.rotary_dim, config.rope_theta, None)
    return {ROPE_FACTORS: (plain / frequencies(config.rotary_dim, config.rope_theta, scaling)).float()}


class Announced(GGUFFile):
    """What a reader would see of a file that is not written yet."""

    def __init__(self, path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.path, self.tensors = path, tensors  # type: ignore[assignment]
        self.metadata = {k: float(np.float32(v)) if type(v) is float else v for k, v in metadata.items()}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        return self.tensors[name].to(dtype)  # type: ignore[attr-defined, no-any-return]


def check_config(config: GPTConfig, announced: Announced) -> None:
    """`ModelError` where a reader would take the model for another one."""
    back = config_from_gguf(announced)
    for item in dataclasses.fields(GPTConfig):
        ours, theirs = getattr(config, item.name), getattr(back, item.name)
        if item.name in _NOT_THE_MODEL or ours == theirs:
            continue
        if item.name == "attn_scale" and abs(config.score_scale - back.score_scale) <= 1e-6 * config.score_scale:
            continue
        if item.name in ("rotary_dim", "rope_theta") and config.positions != "rotary":
            continue
        if item.name == "window_layers" and config.window is None:
            continue
        both = isinstance(ours, float) and isinstance(theirs, float)
        if not both or abs(ours - theirs) > 1e-6 * abs(ours):
            raise ModelError(
                f"{item.name} is {ours!r}, which GGUF files of architecture {family_of(config).gguf_name!r} "
                f"cannot express (they would say {theirs!r})"
            )
