"""SmolLM2-135M's shape with random weights, ours and transformers': where only the shape matters."""

from __future__ import annotations

from typing import Any

import torch

from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel

SHAPE = {"vocab_size": 49152, "d_model": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "d_mlp": 1536}


def our_model() -> GPTModel:
    """On the GPU, in bfloat16."""
    return GPTModel(GPTConfig(n_ctx=2048, rope_theta=100_000.0, **SHAPE)).to("cuda", torch.bfloat16)  # type: ignore[arg-type]


def their_model() -> Any:
    """transformers' Llama on the GPU, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SHAPE["vocab_size"],
        hidden_size=SHAPE["d_model"],
        num_hidden_layers=SHAPE["n_layers"],
        num_attention_heads=SHAPE["n_heads"],
        num_key_value_heads=SHAPE["n_kv_heads"],
        intermediate_size=SHAPE["d_mlp"],
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to("cuda", torch.bfloat16)
