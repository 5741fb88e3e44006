"""Adapter files against PEFT itself, both ways, and adapters that do not fit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignlab.core.errors import ModelError
from alignlab.lm.hf_config import config_from_hf
from alignlab.lm.hf_export import load_hf
from alignlab.lm.lora import LoraConfig, add_lora, lora_layers
from alignlab.lm.lora_files import load_adapter, save_adapter
from alignlab.lm.model import GPTModel

peft = pytest.importorskip("peft")
# PEFT asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES: dict[str, Any] = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SIZES | {"intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 16}
HF: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA),
    "gemma2": lambda: transformers.Gemma2Config(**LLAMA, head_dim=4, attn_implementation="eager"),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=4),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **SIZES, intermediate_size=24, max_position_embeddings=16, rotary_pct=0.5
    ),
}
LLAMA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
TARGETS = {"gpt2": ("o", "up"), "gpt_neox": ("o", "up", "down")}


def twins(family: str) -> tuple[GPTModel, Any]:
    """The same random weights as a model of ours and one of Hugging Face's."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(HF[family]()).eval().float()
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        ours = load_hf(directory)
    return ours, theirs


def tokens() -> Tensor:
    return torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(4))


def shake(parameters: list[Tensor]) -> None:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0, 0.3, generator=g)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", HF)
def test_peft_loads_what_we_save(family: str, rslora: bool, tmp_path: Path) -> None:
    ours, theirs = twins(family)
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=1e-4, atol=1e-5)
    add_lora(ours, LoraConfig(3, 5.0, TARGETS.get(family, LLAMA_TARGETS), rslora=rslora))
    shake([p for layer in lora_layers(ours).values() for p in (layer.lora_A, layer.lora_B)])
    with torch.no_grad():
        base = theirs(tokens()).logits
        wrapped = peft.PeftModel.from_pretrained(theirs, save_adapter(ours, tmp_path / "adapter"))
        expected = wrapped(tokens()).logits
    assert (expected - base).abs().max() > 1e-2
    torch.testing.assert_close(ours(tokens()), expected, rtol=1e-4, atol=1e-5)


PEFT_TARGETS = {"gpt2": ["attn.c_proj", "mlp.c_fc"], "gpt_neox": ["dense", "dense_4h_to_h"]}


@pytest.mark.parametrize("family", HF)
def test_we_load_what_peft_saves(family: str, tmp_path: Path) -> None:
    ours, theirs = twins(family)
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=PEFT_TARGETS.get(family, ["q_proj", "down_proj"]), lora_dropout=0.1,
        task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    wrapped = peft.get_peft_model(theirs, config).eval()
    shake([p for name, p in wrapped.named_parameters() if "lora_" in name])
    wrapped.save_pretrained(tmp_path)
    load_adapter(ours, tmp_path).eval()
    assert len(lora_layers(ours)) == 4
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens()), wrapped(tokens()).logits, rtol=1e-4, atol=1e-5)
    assert {p.requires_grad for n, p in ours.named_parameters() if "lora_" not in n} == {False}


def test_gradients_and_an_adamw_step_equal_pefts() -> None:
    ours, theirs = twins("llama")
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    wrapped = peft.get_peft_model(theirs, config).train()
    add_lora(ours, LoraConfig(4, 16.0, ("all-linear",))).train()
    names = {}
    with torch.no_grad():
        for name, layer in lora_layers(ours).items():
            i, part = name.split(".")[1], name.split(".", 2)[2]
            stored = f"base_model.model.model.layers.{i}.{part.replace('attn', 'self_attn')}_proj"
            for matrix, parameter in (("A", layer.lora_A), ("B", layer.lora_B)):
                twin = wrapped.get_parameter(f"{stored}.lora_{matrix}.default.weight")
                parameter.copy_(twin)
                names[f"{name}.lora_{matrix}"] = (parameter, twin)
    assert len(names) == 28 == sum(p.requires_grad for p in wrapped.parameters())
    batch = tokens()
    for logits in (ours(batch), wrapped(batch).logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
    for mine, twin in names.values():
        assert mine.grad is not None
        assert twin.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, twin.grad, rtol=0, atol=1e-5)
    for parameters in zip(*names.values(), strict=True):
        # A large eps keeps the step a smooth function of the gradient: Adam's first step is otherwise its sign.
        torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3).step()
    for mine, twin in names.values():
        torch.testing.assert_close(mine, twin, rtol=0, atol=1e-5)


def test_round_trip_keeps_the_bits(tmp_path: Path) -> None:
    ours, _ = twins("llama")
    add_lora(ours, LoraConfig(3, 1.5, ("q", "blocks.1.mlp.up")))
    shake([p for layer in lora_layers(ours).values() for p in (layer.lora_A, layer.lora_B)])
    save_adapter(ours, tmp_path, base_model="someone/base")
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert raw["target_modules"] == ["model.layers.1.mlp.up_proj", "q_proj"]
    assert raw["base_model_name_or_path"] == "someone/base"
    assert raw["lora_alpha"] == 1.5
    again, _ = twins("llama")
    load_adapter(again, tmp_path)
    assert list(lora_layers(again)) == list(lora_layers(ours))
    assert torch.equal(again(tokens()), ours(tokens()))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_fused_projections_are_refused(family: str, tmp_path: Path) -> None:
    ours, _ = twins(family)
    add_lora(ours, LoraConfig(targets=("o", "v")))
    with pytest.raises(ModelError, match=r"blocks.0.attn.v has an adapter, but .* one matrix.*targets down, o, up, or"):
        save_adapter(ours, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def saved(directory: Path) -> Path:
    ours, _ = twins("llama")
    return save_adapter(add_lora(ours, LoraConfig(3, targets=("q",))), directory)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "describes 'IA3', allowed: an adapter of peft_type 'LORA'"),
        ({"use_dora": True}, "uses use_dora"),
        ({"bias": "all"}, "uses bias"),
        ({"init_lora_weights": "pissa"}, "uses init_lora_weights"),
        ({"rank_pattern": {"q_proj": 2}}, "uses rank_pattern"),
        ({"r": "3"}, "r='3'"),
        ({"r": 4}, "where this model and rank 4 need"),
        ({"lora_alpha": None}, "lora_alpha=None"),
    ],
)
def test_another_kind_of_adapter_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = saved(tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    ours, _ = twins("llama")
    with pytest.raises(ModelError, match=message):
        load_adapter(ours, tmp_path)
    assert all(p.requires_grad for p in ours.parameters())


def test_damaged_and_unfitting_files_are_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path) / "adapter_model.safetensors"
    content, tensors = weights.read_bytes(), load_file(weights)
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    ours, _ = twins("llama")
    small = GPTModel(config_from_hf(transformers.LlamaConfig(**LLAMA | {"num_hidden_layers": 1}).to_dict(), "test"))
    with pytest.raises(ModelError, match=r"has weights for model.layers.1.self_attn.q_proj, which llama has not"):
        load_adapter(small, tmp_path)
    save_file({k: v for k, v in tensors.items() if k != first}, weights)
    with pytest.raises(ModelError, match=r"only lora_B for model.layers.0.self_attn.q_proj"):
        load_adapter(ours, tmp_path)
    save_file(tensors | {"extra": torch.zeros(1)}, weights)
    with pytest.raises(ModelError, match="has tensor 'extra'"):
        load_adapter(ours, tmp_path)
    save_file({}, weights)
    with pytest.raises(ModelError, match="holds no adapter weights"):
        load_adapter(ours, tmp_path)
    for bad in (content[:-9], content[:40], b"", b"\xff" * 64):
        weights.write_bytes(bad)
        with pytest.raises(ModelError, match="cannot read adapter weights"):
            load_adapter(ours, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="is no adapter"):
        load_adapter(ours, tmp_path)
    with pytest.raises(ModelError, match="is no adapter"):
        load_adapter(ours, tmp_path / "nowhere")
    assert all(p.requires_grad for p in ours.parameters())
