"""Hugging Face weights: logits equal transformers' for every family, in both directions, and damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from alignlab.core.errors import ModelError
from alignlab.lm.config import GPTConfig, RopeScaling
from alignlab.lm.hf_config import config_from_hf
from alignlab.lm.hf_config_writer import config_to_hf
from alignlab.lm.hf_export import export_hf, load_hf
from alignlab.lm.lora import LoraConfig, add_lora, lora_parameters
from alignlab.lm.model import GPTModel

VOCAB = 96
BASE = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL = BASE | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
GQA = SMALL | {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}
WINDOWED = {"use_sliding_window": True, "max_window_layers": 1}

CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "gpt2": (hf.GPT2Config, BASE | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "gpt2-inner": (hf.GPT2Config, BASE | {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 40}),
    "pythia": (hf.GPTNeoXConfig, SMALL),
    "neox-serial": (hf.GPTNeoXConfig, SMALL | {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "neox-tied-nobias": (hf.GPTNeoXConfig, SMALL | {"tie_word_embeddings": True, "attention_bias": False}),
    "llama": (hf.LlamaConfig, SMALL),
    "llama-gqa-tied": (hf.LlamaConfig, GQA | {"tie_word_embeddings": True, "rope_theta": 100000.0}),
    "llama-wide-heads": (hf.LlamaConfig, GQA | {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "llama3-rope": (hf.LlamaConfig, GQA | {"rope_parameters": LLAMA3}),
    "linear-rope": (hf.LlamaConfig, GQA | {"rope_parameters": LINEAR}),
    "qwen2": (hf.Qwen2Config, GQA),
    "qwen2-tied-window": (hf.Qwen2Config, GQA | WINDOWED | {"sliding_window": 8, "tie_word_embeddings": True}),
    "qwen3": (hf.Qwen3Config, GQA | {"head_dim": 16}),
    "qwen3-window": (hf.Qwen3Config, GQA | WINDOWED | {"sliding_window": 8, "tie_word_embeddings": True}),
    "gemma": (hf.GemmaConfig, GQA | {"head_dim": 16}),
    "gemma2": (hf.Gemma2Config, GQA | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}),
    "gemma2-wide-window": (hf.Gemma2Config, GQA | {"head_dim": 16, "sliding_window": 60}),
    "gemma3": (hf.Gemma3TextConfig, GQA | {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 7}),
    "gemma3-wide-window": (hf.Gemma3TextConfig, GQA | {"head_dim": 16, "sliding_window": 60, "num_hidden_layers": 7}),
}  # fmt: skip


def reference(case: str, seed: int = 0) -> hf.PreTrainedModel:
    """A random model of transformers whose norms and biases are random too, so that none can be forgotten."""
    cls, fields = CASES[case]
    config = cls(**fields)
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(seed: int = 1, length: int = 40) -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits


class FakeTokenizer:
    """What export needs of a tokenizer, for tests that are about weights."""

    bos_id, eos_id, pad_id, eos_ids = 1, 2, 0, frozenset({2})

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


class FakeLM:
    def __init__(self, model: GPTModel) -> None:
        self.model, self.tokenizer = model, FakeTokenizer()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_and_export_loads_there(case: str, tmp_path: Path) -> None:
    theirs = reference(case)
    theirs.save_pretrained(tmp_path / "in")
    ours = load_hf(tmp_path / "in")
    expected = logits_of(theirs, tokens())
    assert (logits_of(ours, tokens()) - expected).abs().max() <= 1e-4
    export_hf(FakeLM(ours), tmp_path / "out")  # type: ignore[arg-type]
    back = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert type(back) is type(theirs)
    assert (logits_of(back, tokens()) - expected).abs().max() <= 1e-5
    again = load_hf(tmp_path / "out")
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values(), strict=True))


def test_older_config_spellings_mean_the_same(tmp_path: Path) -> None:
    new = json.loads(hf.LlamaConfig(**GQA | {"rope_parameters": LLAMA3}).to_json_string(use_diff=False))
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    old |= {"rope_theta": 10000.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}}
    assert config_from_hf(new) == config_from_hf(old)
    assert config_from_hf(old).rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 16)
    gemma = json.loads(hf.Gemma3TextConfig(**GQA | {"head_dim": 16}).to_json_string(use_diff=False))
    old = {k: v for k, v in gemma.items() if k not in ("rope_parameters", "layer_types", "_sliding_window_pattern")}
    old |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
    assert config_from_hf(gemma) == config_from_hf(old)
    for cls, window in ((hf.Gemma2Config, {}), (hf.Qwen2Config, WINDOWED | {"sliding_window": 8})):
        new = json.loads(cls(**GQA | window).to_json_string(use_diff=False))
        assert any(config_from_hf(new).window_layers)
        assert config_from_hf({k: v for k, v in new.items() if k != "layer_types"}) == config_from_hf(new)
    assert config_from_hf({"model_type": "gemma3", "text_config": gemma}) == config_from_hf(gemma)


def test_checkpoints_without_or_with_a_prefix_load(tmp_path: Path) -> None:
    theirs = reference("gpt2")
    theirs.save_pretrained(tmp_path)
    expected = logits_of(theirs, tokens())
    stored = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}  # a mask buffer that old GPT-2 files carry
    save_file(bare, tmp_path / "model.safetensors")
    assert (logits_of(load_hf(tmp_path), tokens()) - expected).abs().max() <= 1e-4
    gemma = reference("gemma3")
    gemma.save_pretrained(tmp_path / "g")
    stored = load_file(tmp_path / "g" / "model.safetensors")
    for prefix in ("language_model.{}", "model.language_model.{}"):
        renamed = {
            prefix.format(n.removeprefix("model.") if prefix.startswith("model") else n): t.clone()
            for n, t in stored.items()
        }
        renamed["vision_tower.patch.weight"] = torch.zeros(2)
        save_file(renamed, tmp_path / "g" / "model.safetensors")
        ours = load_hf(tmp_path / "g")
        assert (logits_of(ours, tokens()) - logits_of(gemma, tokens())).abs().max() <= 1e-4


def test_dtype_is_the_requested_one_and_shards_load(tmp_path: Path) -> None:
    theirs = reference("llama-gqa-tied")
    theirs.save_pretrained(tmp_path / "in")
    ours = load_hf(tmp_path / "in")
    half = load_hf(tmp_path / "in", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.embed.weight, ours.embed.weight.to(torch.bfloat16))
    export_hf(FakeLM(ours), tmp_path / "out", shard_bytes=8000)  # type: ignore[arg-type]
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(logits_of(load_hf(tmp_path / "out"), tokens()), logits_of(ours, tokens()))
    back = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (logits_of(back, tokens()) - logits_of(ours, tokens())).abs().max() <= 1e-4
    export_hf(FakeLM(ours), tmp_path / "out")  # type: ignore[arg-type]
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


@torch.no_grad()
def test_adapters_are_merged_into_the_export_and_stay_on_the_model(tmp_path: Path) -> None:
    reference("qwen2").save_pretrained(tmp_path / "in")
    # In float64, where the order of additions does not hide behind rounding.
    ours = load_hf(tmp_path / "in", dtype=torch.float64)
    plain = logits_of(ours, tokens())
    add_lora(ours, LoraConfig(rank=2, targets=("q", "o", "mlp.up")))
    for i, parameter in enumerate(lora_parameters(ours)):
        parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(i))
    expected = logits_of(ours, tokens())
    assert (expected - plain).abs().max() > 1e-2
    export_hf(FakeLM(ours), tmp_path / "out")  # type: ignore[arg-type]
    back = load_hf(tmp_path / "out", dtype=torch.float64)
    assert (logits_of(back, tokens()) - expected).abs().max() <= 1e-9
    assert torch.equal(logits_of(ours, tokens()), expected)


def _edited(directory: Path, edit: Any) -> Path:
    reference("llama-gqa-tied").save_pretrained(directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    return directory


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        (lambda t: t.update({"model.layers.9.x": torch.zeros(1)}), r"'model\.layers\.9\.x' has no place"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(5)}), r"has shape \(5,\), expected \(32,\)"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(32, dtype=torch.int64)}), "dtype I64"),
    ],
)
def test_wrong_tensors_are_named(edit: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_hf(_edited(tmp_path, edit))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "unknown architecture 'mamba', known: gpt2, gpt_neox, llama"),
        ({"model_type": ["llama"]}, "unknown architecture"),
        ({"hidden_size": None}, "wrong type"),
        ({"hidden_size": "big"}, "wrong type"),
        ({"hidden_size": -4}, "d_model is -4"),
        ({"hidden_act": "mish"}, "activation 'mish' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn' is not supported"),
        ({"num_key_value_heads": 3}, "n_kv_heads is 3"),
    ],
)
def test_bad_config_is_one_sentence(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    reference("llama-gqa-tied").save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ModelError, match=message):
        load_hf(tmp_path)


def test_missing_config_field_pickles_and_empty_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: cannot be opened"):
        load_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="'num_attention_heads' is missing"):
        load_hf(tmp_path)
    reference("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_hf(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickles"):
        load_hf(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="not valid JSON"):
        load_hf(tmp_path)


def test_export_refuses_what_the_format_cannot_say() -> None:
    with pytest.raises(ModelError, match="norm is 'layernorm', which Hugging Face files of architecture 'llama'"):
        config_to_hf(GPTConfig(norm="layernorm"))
    with pytest.raises(ModelError, match="unknown architecture 'mine'"):
        config_to_hf(replace(GPTConfig(), architecture="mine"))
