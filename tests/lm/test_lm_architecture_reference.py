"""Choices that transformers has equal it: weights of small random models are copied over, and logits compared.

(The families that files are loaded from are compared in `test_lm_hf.py`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from alignlab.lm.config import GPTConfig
from alignlab.lm.model import GPTModel
from alignlab.lm.positions import alibi_slopes

VOCAB, WIDTH, LAYERS = 96, 48, 3
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def reference(config: hf.PretrainedConfig, seed: int = 0) -> hf.PreTrainedModel:
    """A random model whose norms and biases are random too, so that none can be forgotten."""
    config._attn_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def difference(config: GPTConfig, weights: Mapping[str, Tensor], theirs: hf.PreTrainedModel) -> float:
    """Largest distance between our logits with `weights` (norm biases default to zero) and theirs."""
    ours = GPTModel(config).eval()
    zeros = {name: p for name, p in ours.state_dict().items() if "norm" in name and name.endswith("bias")}
    ours.load_state_dict(zeros | dict(weights))
    ids = torch.randint(3, VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids, attention_mask=torch.ones_like(ids)).logits
    assert expected.std() > 0.3
    return float((ours(ids) - expected).abs().max())


def renamed(theirs: hf.PreTrainedModel, names: Mapping[str, str], transposed: bool = False) -> dict[str, Tensor]:
    """Their tensors under our names: `names` maps modules of theirs to ours, {i} for the layer, q+k+v for one of three.

    `transposed` matrices are stored input-first.
    """
    state, found = theirs.state_dict(), {}
    for stored, ours in names.items():
        for i in range(LAYERS if "{i}" in stored else 1):
            for kind in ("weight", "bias"):
                tensor = state.get(f"{stored.format(i=i)}.{kind}")
                if tensor is None:
                    continue
                if transposed and tensor.ndim == 2 and "{i}" in stored:
                    tensor = tensor.t()
                parts, targets = [tensor], [ours]
                if "q+k+v" in ours:
                    width = (len(tensor) - WIDTH) // 2
                    parts, targets = (
                        list(tensor.split([WIDTH, width, width])),
                        [ours.replace("q+k+v", x) for x in "qkv"],
                    )
                for part, target in zip(parts, targets, strict=True):
                    found[f"{target.format(i=i)}.{kind}"] = part
    return found


def fields(**chosen: Any) -> dict[str, Any]:
    small = {"vocab_size": VOCAB, "n_ctx": 64, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": 4, "d_mlp": 4 * WIDTH}
    return small | {"norm": "layernorm", "gated_mlp": False} | chosen


@pytest.mark.parametrize("n_heads", [4, 8])
def test_alibi_equals_mpt(n_heads: int) -> None:
    config = hf.MptConfig(
        vocab_size=VOCAB, d_model=WIDTH, n_layers=LAYERS, n_heads=n_heads, max_seq_len=64, **TOKENS
    )  # fmt: skip
    theirs = reference(config)
    weights = renamed(
        theirs,
        {
            "transformer.wte": "embed", "transformer.norm_f": "final_norm",
            "transformer.blocks.{i}.norm_1": "blocks.{i}.norm1", "transformer.blocks.{i}.norm_2": "blocks.{i}.norm2",
            "transformer.blocks.{i}.attn.Wqkv": "blocks.{i}.attn.q+k+v",
            "transformer.blocks.{i}.attn.out_proj": "blocks.{i}.attn.o",
            "transformer.blocks.{i}.ffn.up_proj": "blocks.{i}.mlp.up",
            "transformer.blocks.{i}.ffn.down_proj": "blocks.{i}.mlp.down",
        },
    )  # fmt: skip
    ours = GPTConfig(**fields(n_heads=n_heads, positions="alibi", activation="gelu"))
    assert difference(ours, weights, theirs) <= 1e-4


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4, 6, 7, 12, 16, 25, 71])
def test_alibi_slopes_equal_blooms(n_heads: int) -> None:
    """BLOOM's tensor grows by the slope from one key to the next."""
    theirs = build_alibi_tensor(torch.ones(1, 5, dtype=torch.long), n_heads, torch.float32)
    assert (theirs[:, 0, 1] - torch.tensor(alibi_slopes(n_heads))).abs().max() <= 1e-6


def test_alibi_slopes_of_the_paper() -> None:
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(6) == [2.0**-i for i in (2, 4, 6, 8, 1, 3)]
    assert alibi_slopes(1) == [2.0**-8]


def test_post_norm_equals_gpt1() -> None:
    config = hf.OpenAIGPTConfig(
        vocab_size=VOCAB, n_positions=64, n_embd=WIDTH, n_layer=LAYERS, n_head=4, afn="gelu", **TOKENS
    )
    theirs = reference(config)
    weights = renamed(
        theirs,
        {
            "transformer.tokens_embed": "embed", "transformer.positions_embed": "pos_embed",
            "transformer.h.{i}.ln_1": "blocks.{i}.norm1", "transformer.h.{i}.ln_2": "blocks.{i}.norm2",
            "transformer.h.{i}.attn.c_attn": "blocks.{i}.attn.q+k+v",
            "transformer.h.{i}.attn.c_proj": "blocks.{i}.attn.o",
            "transformer.h.{i}.mlp.c_fc": "blocks.{i}.mlp.up", "transformer.h.{i}.mlp.c_proj": "blocks.{i}.mlp.down",
        },
        transposed=True,
    )  # fmt: skip
    biases = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
    ours = GPTConfig(**fields(positions="learned", norm_position="post", activation="gelu_tanh", **biases))
    assert difference(ours, weights, theirs) <= 1e-4


def test_multi_query_attention_equals_falcon() -> None:
    config = hf.FalconConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, multi_query=True,
        parallel_attn=False, bias=False, alibi=False, new_decoder_architecture=False, max_position_embeddings=64,
        **TOKENS,
    )  # fmt: skip
    theirs = reference(config)
    weights = renamed(
        theirs,
        {
            "transformer.word_embeddings": "embed", "transformer.ln_f": "final_norm",
            "transformer.h.{i}.input_layernorm": "blocks.{i}.norm1",
            "transformer.h.{i}.post_attention_layernorm": "blocks.{i}.norm2",
            "transformer.h.{i}.self_attention.query_key_value": "blocks.{i}.attn.q+k+v",
            "transformer.h.{i}.self_attention.dense": "blocks.{i}.attn.o",
            "transformer.h.{i}.mlp.dense_h_to_4h": "blocks.{i}.mlp.up",
            "transformer.h.{i}.mlp.dense_4h_to_h": "blocks.{i}.mlp.down",
        },
    )  # fmt: skip
    ours = GPTConfig(**fields(n_kv_heads=1, activation="gelu"))
    assert difference(ours, weights, theirs) <= 1e-4


def test_the_comparison_notices_a_wrong_choice() -> None:
    """With the sizes used here, another choice is far outside the tolerance."""
    theirs = reference(
        hf.MptConfig(vocab_size=VOCAB, d_model=WIDTH, n_layers=LAYERS, n_heads=4, max_seq_len=64, **TOKENS)
    )
    names = {
        "transformer.wte": "embed", "transformer.norm_f": "final_norm",
        "transformer.blocks.{i}.norm_1": "blocks.{i}.norm1", "transformer.blocks.{i}.norm_2": "blocks.{i}.norm2",
        "transformer.blocks.{i}.attn.Wqkv": "blocks.{i}.attn.q+k+v",
        "transformer.blocks.{i}.attn.out_proj": "blocks.{i}.attn.o",
        "transformer.blocks.{i}.ffn.up_proj": "blocks.{i}.mlp.up",
        "transformer.blocks.{i}.ffn.down_proj": "blocks.{i}.mlp.down",
    }  # fmt: skip
    weights = renamed(theirs, names)
    for change in ({"positions": "none"}, {"positions": "rotary"}, {"activation": "relu2"}):
        ours = GPTConfig(**fields(**{"positions": "alibi", "activation": "gelu"} | change))
        assert difference(ours, weights, theirs) > 1e-2
