"""The native format brings every model back as it was, and names whatever is wrong with a directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignlab.core.errors import ModelError, SamplerError
from alignlab.lm import native
from alignlab.lm.config import GPTConfig, RopeScaling
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora import LoraConfig, add_lora, lora_parameters
from alignlab.lm.lora_files import load_adapter, save_adapter, store_adapter
from alignlab.lm.model import GPTModel
from alignlab.lm.models_cli import describe, models
from alignlab.lm.native import config_from_native, export_model, export_native, hf_refusal, load_directory, load_native
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import SamplingParams

SMALL = {"vocab_size": 300, "n_ctx": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_mlp": 48}
GPT2 = {"norm": "layernorm", "gated_mlp": False, "activation": "gelu"}
HOMELESS: dict[str, dict[str, Any]] = {
    "alibi-solu": GPT2 | {"positions": "alibi", "activation": "solu", "tie_embeddings": False},
    "sinusoidal-post-norm": GPT2 | {"positions": "sinusoidal", "norm_position": "post", "embed_scale": 32**0.5},
    "no-positions": {"positions": "none", "n_kv_heads": 2, "qkv_bias": True},
    "parallel-swiglu": {"parallel_block": True, "out_bias": True, "mlp_bias": True},
    "mup-alibi-windows": {
        "init": "mup", "mup_base_width": 8, "positions": "alibi", "window": 5, "window_layers": (False, True),
    },
    "caps-and-qk-norm": {
        "qk_norm": True, "attn_softcap": 3.0, "logit_softcap": 4.0, "attn_scale": 0.3, "post_norm": True,
        "norm_offset": True, "rope_scaling": RopeScaling("llama3", 8.0, original_n_ctx=16), "rope_local_theta": 1e3,
        "attention": "explicit", "dropout": 0.1,
    },
}  # fmt: skip


def make(choices: dict[str, Any], tokenizer: Tokenizer, seed: int = 2) -> LanguageModel:
    """A random model whose norms and biases matter too."""
    model = GPTModel(GPTConfig(**SMALL | choices)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return LanguageModel(model, tokenizer, "fresh", "test")


def some_tokens() -> torch.Tensor:
    return torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", HOMELESS)
@torch.no_grad()
def test_what_no_family_holds_comes_back_bit_for_bit(case: str, tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    lm = make(HOMELESS[case], byte_tokenizer)
    exported = export_model(lm, tmp_path)
    assert exported.format == "native"
    assert exported.why == hf_refusal(lm.model.config)
    assert str(exported) == f"model written in alignlab's own format, because {exported.why}: {tmp_path}"
    back = load(str(tmp_path), dtype="float32", device="cpu")
    assert back.model.config == lm.model.config
    assert torch.equal(back.model(some_tokens()), lm.model(some_tokens()))
    assert back.tokenizer.encode("abcd é") == lm.tokenizer.encode("abcd é")
    assert back.tokenizer.eos_ids == lm.tokenizer.eos_ids
    sampling = SamplingParams(max_tokens=5, temperature=1.0, seed=3)
    assert LocalSampler(back).generate(["ab"], sampling) == LocalSampler(lm).generate(["ab"], sampling)


def test_what_a_family_holds_is_written_as_ever(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    for choices in ({}, GPT2 | {"positions": "learned"}, {"init": "mup", "mup_base_width": 8}):
        lm = make(choices, byte_tokenizer)
        exported = export_model(lm, tmp_path / "chosen")
        export_hf(lm, tmp_path / "hf")
        assert str(exported) == f"model written in Hugging Face format: {tmp_path / 'chosen'}"
        for file in (tmp_path / "hf").iterdir():
            assert (tmp_path / "chosen" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.no_cover
def test_every_two_choices_find_a_format_that_holds_them(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Wherever `hf_refusal` is silent the family does hold the model: over all pairs of a few values of each choice."""
    values: dict[str, tuple[Any, ...]] = {
        "positions": ("learned", "alibi"), "norm": ("layernorm",), "norm_position": ("post",), "gated_mlp": (False,),
        "activation": ("solu", "gelu_tanh", "relu2"), "parallel_block": (True,), "qk_norm": (True,),
        "norm_offset": (True,), "post_norm": (True,), "init": ("mup",), "window": (4,), "n_kv_heads": (1,),
        "qkv_bias": (True,), "logit_softcap": (5.0,), "embed_scale": (2.0,), "tie_embeddings": (False,),
    }  # fmt: skip
    single = [(name, value) for name, options in values.items() for value in options]
    seen = {"hf": 0, "native": 0}
    for i, first in enumerate(single):
        for second in single[:i]:
            choices = dict([first, second]) | ({"gated_mlp": False} if "solu" in (first[1], second[1]) else {})
            if "norm_position" in choices and choices.keys() & {"post_norm", "parallel_block"}:
                continue
            lm = make({"n_layers": 1, "d_model": 8, "d_mlp": 8, "n_heads": 2} | choices, byte_tokenizer)
            seen[export_model(lm, tmp_path).format] += 1
            with torch.no_grad():
                assert (load_directory(tmp_path)(some_tokens()) - lm.model(some_tokens())).abs().max() <= 1e-5, choices
    assert min(seen.values()) > 10


def test_adapters_are_merged_and_an_older_model_is_replaced(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    export_hf(make({}, byte_tokenizer), tmp_path, shard_bytes=8000)
    lm = make(HOMELESS["alibi-solu"], byte_tokenizer)
    add_lora(lm.model, LoraConfig(rank=2, targets=("q", "up")))
    for i, parameter in enumerate(lora_parameters(lm.model)):
        parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))
    export_model(lm, tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    with torch.no_grad():
        assert (load_native(tmp_path)(some_tokens()) - lm.model(some_tokens())).abs().max() <= 1e-5


def test_an_interrupted_export_does_not_load(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make(HOMELESS["no-positions"], byte_tokenizer)
    export_native(lm, tmp_path)
    monkeypatch.setattr(native, "write_tokenizer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export_native(lm, tmp_path)
    with pytest.raises(ModelError, match="neither a model directory"):
        load(str(tmp_path))


def test_bfloat16_is_kept_and_said(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    lm = make(HOMELESS["parallel-swiglu"], byte_tokenizer)
    lm.model.bfloat16()
    export_native(lm, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    half = load_native(tmp_path, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(half[name], value) for name, value in lm.model.state_dict().items())
    assert {t.dtype for t in load_native(tmp_path).state_dict().values()} == {torch.float32}


def test_the_commands_know_the_format(
    tmp_path: Path, byte_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    export_native(make(HOMELESS["alibi-solu"], byte_tokenizer), tmp_path / "mine")
    facts = describe(str(tmp_path / "mine"))
    assert (facts["architecture"], facts["layers"], facts["tensor types"]) == ("alignlab", 2, "F32 × 28")
    assert models(["export", str(tmp_path / "mine"), str(tmp_path / "copy"), "--format", "native"]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("mine", "copy"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ModelError, match="positions is 'alibi', which no architecture"):
        models(["export", str(tmp_path / "mine"), str(tmp_path / "hf")])


def edit_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        raw = json.loads((directory / "config.json").read_text())
        change(raw)
        (directory / "config.json").write_text(json.dumps(raw))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_config(lambda raw: raw["config"].update(positionz="alibi")), "unknown key 'positionz', did you mean"),
        (edit_config(lambda raw: raw["config"].pop("positions")), "field 'positions' is missing from 'config'"),
        (edit_config(lambda raw: raw["config"].update(positions="spiral")), "positions is 'spiral', allowed: 'rotary'"),
        (edit_config(lambda raw: raw["config"].update(n_layers="2")), "n_layers is '2', allowed: a whole number"),
        (edit_config(lambda raw: raw["config"].update(n_heads=5, d_head=0)), "n_heads is 5, allowed: a divisor"),
        (edit_config(lambda raw: raw.update(config=[])), "'config' is a list, allowed: an object"),
        (edit_config(lambda raw: raw.update(format_version=2)), "format_version is 2, this alignlab reads versions up"),
        (edit_config(lambda raw: raw.update(format_version="1")), "format_version is '1', allowed: a whole number"),
        (edit_config(lambda raw: raw.pop("format_version")), "format_version is None, allowed: a whole number"),
        (edit_config(lambda raw: raw.update(model_type="alignlob")), "unknown architecture 'alignlob'"),
        (edit_config(lambda raw: raw["config"].update(n_layers=3)), "tensor 'blocks.2.norm1.weight' is missing"),
        (edit_config(lambda raw: raw["config"].update(n_layers=1)), "tensor 'blocks.1.attn.k.weight' has no place in"),
        (edit_config(lambda raw: raw["config"].update(d_mlp=40)), r"blocks.0.mlp.up.weight' has shape \(48, 32\), exp"),
        (edit_config(lambda raw: raw["config"].update(tie_embeddings=True)), "tensor 'head.weight' has no place in"),
        (edit_tensors(lambda t: t.pop("head.weight")), "tensor 'head.weight' is missing"),
        (edit_tensors(lambda t: t.update(extra=torch.ones(2))), "tensor 'extra' has no place in the model that its"),
        (edit_tensors(lambda t: t.update({"embed.weight": torch.ones(299, 32)})), r"shape \(299, 32\), expected"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\0" * 30), "damaged safetensors file"),
        (lambda path: (path / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda path: (path / "config.json").write_text("{"), "not valid JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    edit: Callable[[Path], None], message: str, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    export_native(make(HOMELESS["alibi-solu"], byte_tokenizer), tmp_path)
    edit(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load(str(tmp_path), dtype="float32", device="cpu")
    assert str(tmp_path) in str(caught.value)


def test_what_families_are_known_to_store_is_refused_too(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    export_native(make(HOMELESS["no-positions"], byte_tokenizer), tmp_path)
    edit_tensors(lambda tensors: tensors.update({"lm_head.weight": torch.ones(300, 32)}))(tmp_path)
    with pytest.raises(ModelError, match=r"tensor 'lm_head\.weight' has no place in the model that its config"):
        load_native(tmp_path)


def test_a_new_field_of_the_configuration_makes_a_new_version() -> None:
    """Version 1 has these fields. One that is added needs a line in `ADDED_IN` and a higher `VERSION`."""
    first = {
        "vocab_size", "n_ctx", "d_model", "n_layers", "n_heads", "d_mlp", "n_kv_heads", "d_head", "activation",
        "gated_mlp", "norm", "norm_eps", "norm_offset", "norm_position", "post_norm", "qk_norm", "positions",
        "rope_theta", "rope_local_theta", "rope_scaling", "rotary_dim", "parallel_block", "qkv_bias", "out_bias",
        "mlp_bias", "attn_scale", "attn_softcap", "logit_softcap", "window", "window_layers", "embed_scale",
        "tie_embeddings", "dropout", "attn_dropout", "attention", "init", "mup_base_width", "architecture",
    }  # fmt: skip
    assert {f.name for f in fields(GPTConfig)} - native.ADDED_IN.keys() == first
    assert max(native.ADDED_IN.values(), default=1) == native.VERSION


def test_fields_of_later_versions_take_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "VERSION", 2)
    monkeypatch.setattr(native, "ADDED_IN", {"dropout": 2})
    kept = {f.name: getattr(GPTConfig(), f.name) for f in fields(GPTConfig) if f.name != "dropout"}
    raw = {"format_version": 1, "config": kept}
    assert config_from_native(raw) == GPTConfig()
    with pytest.raises(ModelError, match="field 'dropout' is missing"):
        config_from_native(raw | {"format_version": 2})


@pytest.mark.parametrize(
    "choices", [HOMELESS["alibi-solu"], HOMELESS["no-positions"], GPT2 | {"positions": "learned"}, GPT2]
)
@torch.no_grad()
def test_adapters_that_peft_has_no_place_for(
    choices: dict[str, Any], tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    model = make(choices, byte_tokenizer).model
    add_lora(model, LoraConfig(rank=2, alpha=6.0, targets=("all-linear",), rslora=True))
    for i, parameter in enumerate(lora_parameters(model)):
        parameter.normal_(generator=torch.Generator().manual_seed(i))
    store_adapter(model, tmp_path, base_model="mine")
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (raw["peft_type"], raw["base_model_name_or_path"]) == ("ALIGNLAB", "mine")
    again = load_adapter(make(choices, byte_tokenizer).model, tmp_path)
    assert torch.equal(again(some_tokens()), model(some_tokens()))
    with pytest.raises(ModelError, match=r"has weights for blocks\.1"):
        load_adapter(make(choices | {"n_layers": 1}, byte_tokenizer).model, tmp_path)


def test_adapters_that_peft_has_a_place_for_are_its_own(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    model = make({}, byte_tokenizer).model
    add_lora(model, LoraConfig(rank=2, targets=("all-linear",)))
    for name, write in (("a", save_adapter), ("b", store_adapter)):
        write(model, tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_prompt_longer_than_the_context_is_refused(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """ALiBi has no table of positions, but what the model was made for still holds after loading."""
    export_native(make(HOMELESS["alibi-solu"], byte_tokenizer), tmp_path)
    with pytest.raises(SamplerError, match="the model reads at most 63 before answering"):
        LocalSampler(load(str(tmp_path), dtype="float32")).generate(["ab" * 200], SamplingParams(max_tokens=2))
