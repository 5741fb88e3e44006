"""A fresh model exports as the family that fits, loads in transformers with equal logits, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from alignlab.core.errors import ModelError
from alignlab.lm.architectures import family_of
from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_config_writer import config_to_hf
from alignlab.lm.hf_export import export_hf, load_hf
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import LoraConfig, add_lora, lora_parameters
from alignlab.lm.model import GPTModel
from alignlab.lm.tokenizer import Tokenizer

SMALL = {"vocab_size": 300, "n_ctx": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_mlp": 48}
GPT2 = {"positions": "learned", "norm": "layernorm", "gated_mlp": False, "activation": "gelu"}
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({}, "llama"),
    "untied-gqa": ({"tie_embeddings": False, "n_kv_heads": 2, "d_head": 12}, "llama"),
    "geglu-mqa": ({"activation": "gelu", "n_kv_heads": 1}, "llama"),
    "attention-biases": ({"qkv_bias": True, "out_bias": True, "mlp_bias": True}, "llama"),
    "only-out-bias": ({"out_bias": True}, "llama"),
    "gpt2": (GPT2 | BIASES | {"activation": "gelu_tanh"}, "gpt2"),
    "gpt2-untied-exact-gelu": (GPT2 | BIASES | {"tie_embeddings": False}, "gpt2"),
    "gpt2-without-biases": (GPT2 | {"dropout": 0.2}, "gpt2"),
    "gpt2-relu2": (GPT2 | {"activation": "relu2", "mlp_bias": True}, "gpt2"),
    "neox-style": ({"norm": "layernorm", "gated_mlp": False, "activation": "gelu", "parallel_block": True}, "gpt_neox"),
    "qkv-bias": ({"qkv_bias": True}, "qwen2"),
    "windows": ({"window": 8, "window_layers": (False, True), "attention": "explicit"}, "qwen2"),
    "qk-norm": ({"qk_norm": True, "tie_embeddings": False}, "qwen3"),
    "qk-norm-windows": ({"qk_norm": True, "window": 8}, "qwen3"),
    "gemma": (
        {"norm_offset": True, "activation": "gelu_tanh", "embed_scale": 32**0.5, "tie_embeddings": True}, "gemma",
    ),
    "gemma2": (
        {
            "norm_offset": True, "activation": "gelu_tanh", "embed_scale": 32**0.5, "post_norm": True,
            "attn_softcap": 5.0, "logit_softcap": 6.0, "window": 8, "window_layers": (True, False),
        },
        "gemma2",
    ),
    "gemma3": (
        {
            "norm_offset": True, "activation": "gelu", "embed_scale": 32**0.5, "post_norm": True, "qk_norm": True,
            "window": 8, "rope_local_theta": 1e3, "init": "mup", "mup_base_width": 16, "dropout": 0.1,
        },
        "gemma3_text",
    ),
    "mup": ({"init": "mup", "mup_base_width": 16}, "llama"),
    "mup-gpt2": (GPT2 | BIASES | {"init": "mup", "mup_base_width": 8, "tie_embeddings": False}, "gpt2"),
    "mup-qk-norm": ({"init": "mup", "mup_base_width": 8, "qk_norm": True}, "qwen3"),
    "mup-offset-norm": (
        {
            "init": "mup", "mup_base_width": 16, "norm_offset": True, "embed_scale": 32**0.5,
            "activation": "gelu_tanh",
        },
        "gemma",
    ),
}  # fmt: skip


def random_lm(fields: dict[str, Any], tokenizer: Tokenizer) -> LanguageModel:
    model = GPTModel(GPTConfig(**SMALL | fields)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return LanguageModel(model, tokenizer, "fresh", "test")


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_fresh_model_exports_as_the_family_that_fits(case: str, tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    fields, family = CASES[case]
    lm = random_lm(fields, byte_tokenizer)
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    tokens = torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(1))
    expected = lm.model(tokens)
    assert expected.std() > 0.05
    export_hf(lm, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert (theirs(tokens).logits - expected).abs().max() <= 1e-5
    back = load_hf(tmp_path)
    assert (back(tokens) - expected).abs().max() <= 1e-5
    assert back.config.architecture == family
    assert all(torch.equal(before[name], p) for name, p in lm.model.state_dict().items())


def test_dropout_is_written_for_those_who_train_on(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    export_hf(random_lm(GPT2 | {"dropout": 0.2, "attn_dropout": 0.1}, byte_tokenizer), tmp_path)
    config = hf.AutoConfig.from_pretrained(tmp_path)
    assert (config.embd_pdrop, config.attn_pdrop, config.resid_pdrop) == (0.2, 0.1, 0.2)
    assert load_hf(tmp_path).config.dropout == 0


@torch.no_grad()
def test_adapters_are_merged_before_mups_factors_are(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    lm = random_lm({"init": "mup", "mup_base_width": 8}, byte_tokenizer)
    add_lora(lm.model, LoraConfig(rank=2, targets=("q", "o")))
    for i, parameter in enumerate(lora_parameters(lm.model)):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    tokens = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(1))
    export_hf(lm, tmp_path)
    assert (load_hf(tmp_path)(tokens) - lm.model(tokens)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": "alibi"}, "positions is 'alibi', which no architecture .* those can: rotary, learned"),
        ({"positions": "sinusoidal"}, "positions is 'sinusoidal', which no architecture"),
        ({"positions": "none"}, "positions is 'none', which no architecture"),
        (GPT2 | {"activation": "solu"}, "activation is 'solu', which no architecture"),
        (GPT2 | {"norm_position": "post"}, "norm_position is 'post', which no architecture"),
        (GPT2 | {"norm": "rmsnorm"}, "norm is 'rmsnorm', which Hugging Face files of architecture 'gpt2'"),
        (GPT2 | {"gated_mlp": True}, "gated_mlp is True, which Hugging Face files of architecture 'gpt2'"),
        (GPT2 | {"n_kv_heads": 1}, "n_kv_heads is 1, which .* 'gpt2' cannot express"),
        (GPT2 | {"window": 4}, "window is 4, which .* 'gpt2' cannot express"),
        (GPT2 | {"architecture": "llama"}, "which Hugging Face files of architecture 'llama' cannot express"),
        ({"norm": "layernorm"}, "norm is 'layernorm', which .* 'llama' cannot express"),
        ({"gated_mlp": False}, "gated_mlp is False, which .* 'llama' cannot express"),
        ({"logit_softcap": 5.0}, "logit_softcap is 5.0, which .* 'llama' cannot express"),
        (
            {"norm_offset": True, "embed_scale": 32**0.5, "activation": "gelu"},
            "activation is 'gelu', which .* 'gemma' cannot express",
        ),
        ({"attn_scale": 0.3}, "attn_scale is 0.3, which .* 'llama' cannot express"),
        ({"qk_norm": True, "attn_softcap": 3.0}, "attn_softcap is 3.0, which .* 'qwen3' cannot express"),
    ],
)
def test_what_no_family_can_hold_is_refused(
    fields: dict[str, Any], message: str, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    with pytest.raises(ModelError, match=message):
        export_hf(random_lm(fields, byte_tokenizer), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_configuration_alone_says_that_mup_needs_its_weights_changed() -> None:
    with pytest.raises(ModelError, match="init is 'mup', which Hugging Face files of architecture 'llama'"):
        config_to_hf(GPTConfig(init="mup"))
    with pytest.raises(ModelError, match="activation is 'solu'"):
        config_to_hf(GPTConfig(activation="solu", gated_mlp=False))


def test_families_in_the_tests_are_found_from_their_fields(families: dict[str, dict[str, Any]]) -> None:
    """Without being told, the nearest family of each pretrained kind is its own."""
    names = {"gpt2": "gpt2", "neox": "gpt_neox", "llama": "llama", "gemma2": "gemma2"}
    assert {name: family_of(GPTConfig(**families[name])).name for name in names} == names
