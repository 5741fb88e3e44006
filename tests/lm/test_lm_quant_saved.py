"""Quantised models as directories: what is written is what is read, and nothing else is taken for it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignlab.__main__ import main
from alignlab.core.errors import AlignlabError, ModelError
from alignlab.lm import bench_limits
from alignlab.lm.gguf_export import export_gguf
from alignlab.lm.hf_export import export_hf
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora import LoraConfig, add_lora
from alignlab.lm.quant.apply import SCHEMES, memory, quantise
from alignlab.lm.quant.rounding import NF4
from alignlab.lm.quant.saved import load_quantised, save_quantised
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import SamplingParams

RULES = sorted(SCHEMES)
TOKENS = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
Make = Callable[..., LanguageModel]


@pytest.fixture
def tiny(make_lm: Make, byte_level_tokenizer: Tokenizer) -> Make:
    """A quantised model of a family."""

    def make(scheme: str = "nf4", family: str = "llama", *, embeddings: bool = False) -> LanguageModel:
        lm = make_lm(family, tokenizer=byte_level_tokenizer)
        quantise(lm.model, scheme, 8, embeddings=embeddings)
        return lm

    return make


@pytest.fixture
def saved(tiny: Make, tmp_path: Path) -> Path:
    return save_quantised(tiny("int4", embeddings=True), tmp_path / "saved")


def same(ours: LanguageModel, theirs: LanguageModel) -> None:
    """Every bit of every parameter and buffer, types included, and the logits."""
    first, second = ours.model.state_dict(), theirs.model.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name
    with torch.no_grad():
        assert torch.equal(ours.model(TOKENS), theirs.model(TOKENS))


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("scheme", RULES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_what_is_read_is_what_was_written(
    tiny: Make, tmp_path: Path, family: str, scheme: str, embeddings: bool
) -> None:
    lm = tiny(scheme, family, embeddings=embeddings)
    back = load(str(save_quantised(lm, tmp_path)), dtype="float32", device="cpu")
    same(back, lm)
    assert back.model.config == lm.model.config
    assert back.tokenizer.encode("a tide") == lm.tokenizer.encode("a tide")
    assert not any(parameter.requires_grad for parameter in back.model.parameters())
    assert not back.model.training
    # Written again over itself, nothing changes.
    before = (tmp_path / "model.safetensors").read_bytes()
    save_quantised(back, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("scheme", RULES)
def test_the_layout_is_the_one_that_is_described(tiny: Make, tmp_path: Path, scheme: str) -> None:
    """The matrices worked out from the files by numpy alone."""
    lm = tiny(scheme)
    save_quantised(lm, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())["matrices"]
    stored = {k: v.float().numpy() for k, v in load_file(tmp_path / "model.safetensors").items()}
    assert len(described) == 14
    for name, entry in described.items():
        assert entry == {"kind": "linear", "rule": scheme, "group_size": 8, "offsets": scheme == "int4"}
        codes = stored[f"{name}.codes"].astype(np.int64)
        if scheme != "int8":
            codes = np.stack([codes % 16, codes // 16], -1).reshape(len(codes), -1)
        values = np.array(NF4, dtype=np.float32)[codes] if scheme == "nf4" else codes - 8 * (scheme == "int4")
        values = values * np.repeat(stored[f"{name}.scales"], 8, axis=1)
        if entry["offsets"]:
            values = values + np.repeat(stored[f"{name}.offsets"], 8, axis=1)
        np.testing.assert_allclose(values, lm.model.get_submodule(name).dequantise().numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_type_changes_what_is_computed_in_never_the_codes(saved: Path, dtype: str) -> None:
    narrow, wide = load(str(saved), dtype=dtype, device="cpu"), load(str(saved), dtype="float32", device="cpu")
    same(narrow, LanguageModel(wide.model.to(getattr(torch, dtype)), wide.tokenizer, "", ""))
    assert narrow.model.embed.weight.dtype is getattr(torch, dtype)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_packed_gguf_files_are_kept_as_they_are(
    make_lm: Make, byte_level_tokenizer: Tokenizer, tmp_path: Path, kind: Any
) -> None:
    lm = make_lm("llama", tokenizer=byte_level_tokenizer, d_model=64, d_mlp=256)
    lm = LanguageModel(lm.model, byte_level_tokenizer, "tiny", "test")
    packed = load(str(export_gguf(lm, tmp_path / "m.gguf", kind)), dtype="float32", device="cpu", packed=True)
    directory = save_quantised(packed, tmp_path / "kept")
    # A directory of codes is packed whether asked for or not.
    same(load(str(directory), dtype="float32", device="cpu", packed=True), packed)


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def retensor(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


Q = "blocks.0.attn.q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda raw: raw.update(format_version=2),
            "format_version is 2, this alignlab reads versions up to 1; install",
        ),
        (lambda raw: raw.update(format_version="1"), "format_version is '1', allowed: a whole number from 1 to 1"),
        (lambda raw: raw.pop("format_version"), "format_version is None"),
        (lambda raw: raw.pop("matrices"), "'model' and 'matrices' must be objects"),
        (lambda raw: raw["model"].update(format_version=9), "config.json, 'model': format_version is 9"),
        (lambda raw: raw["model"]["config"].pop("d_model"), "field 'd_model' is missing"),
        (
            lambda raw: raw["matrices"][Q].update(rule="int3"),
            "by the rule 'int3', allowed: linear or embedding by int8",
        ),
        (lambda raw: raw["matrices"][Q].update(rule="int8"), "attn.q.codes' is U8 of shape"),
        (lambda raw: raw["matrices"][Q].update(group_size=12), "has groups of 12, which do not fill 32"),
        (lambda raw: raw["matrices"][Q].update(group_size=16), "attn.q.scales' is BF16 of shape"),
        (lambda raw: raw["matrices"][Q].update(kind="embedding"), "is no embedding layer"),
        (lambda raw: raw["matrices"][Q].update(offsets=1), "must have kind, rule, group_size and offsets"),
        (lambda raw: raw["matrices"][Q].update(offsets=False), "attn.q.offsets' has no place in the model"),
        (
            lambda raw: raw["matrices"].update({"blocks.9.attn.q": raw["matrices"][Q]}),
            "is no linear layer of the model",
        ),
        (lambda raw: raw["matrices"].pop(Q), "tensor 'blocks.0.attn.q.weight' is missing"),
        (lambda raw: raw.update(model_type="llama"), "config.json"),
    ],
)
def test_a_config_that_says_something_else_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(saved, change)
    with pytest.raises(ModelError, match=message) as refused:
        load(str(saved))
    assert "\n" not in str(refused.value)


def spoil(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: value(tensors[name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}.codes"), "tensor 'blocks.0.attn.q.codes' is missing"),
        (lambda t: t.update(more=torch.zeros(2)), "tensor 'more' has no place"),
        (spoil(f"{Q}.codes", lambda x: x.to(torch.int8)), "is I8 of shape .* expected U8"),
        (spoil(f"{Q}.codes", lambda x: x[:-1].clone()), "of shape .31, 16., expected U8 of .32, 16."),
        (spoil(f"{Q}.scales", lambda x: x * float("nan")), "scales or offsets that are not finite: damaged file"),
        (spoil("final_norm.weight", lambda x: x.to(torch.int64)), "is I64 of shape"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(
    saved: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    retensor(saved, change)
    with pytest.raises(ModelError, match=message):
        load(str(saved))


def test_a_truncated_file_is_refused_wherever_it_ends(saved: Path) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    for end in [0, 5, 8, 100, *range(200, len(whole), len(whole) // 23), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(ModelError, match="damaged"):
            load_quantised(saved)
    path.unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_quantised(saved)


def test_a_damaged_config_is_an_error_of_ours_or_a_model(saved: Path) -> None:
    """Every fifteenth byte replaced: one sentence, or what describes the same tensors; never another exception."""
    path = saved / "config.json"
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 15):
        path.write_bytes(whole[:place] + b"7" + whole[place + 1 :])
        try:
            load_quantised(saved)
        except AlignlabError:
            refused += 1
    assert refused > len(whole) // 60


def test_an_interrupted_writing_does_not_load(saved: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ModelError("the disk is full")

    monkeypatch.setattr("alignlab.lm.quant.saved.save_tensors", full)
    with pytest.raises(ModelError, match="full"):
        save_quantised(tiny("nf4"), saved)
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(str(saved))


def test_what_cannot_be_saved(make_lm: Make, tiny: Make, byte_level_tokenizer: Tokenizer, tmp_path: Path) -> None:
    plain = make_lm("llama", tokenizer=byte_level_tokenizer)
    with pytest.raises(ModelError, match="no layer of the model is quantised"):
        save_quantised(plain, tmp_path / "new")
    lm = tiny("int8")
    add_lora(lm.model, LoraConfig(rank=2))
    with pytest.raises(ModelError, match=r"layer blocks\.0\.attn\.q has an adapter"):
        save_quantised(lm, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    export_hf(plain, tmp_path / "hf")
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    with pytest.raises(ModelError, match="holds another model, which would be lost"):
        save_quantised(tiny("int8"), tmp_path / "hf")
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        save_quantised(tiny("int8"), tmp_path / "file")
    with pytest.raises(ModelError, match="has no packed weights to keep"):
        load(str(tmp_path / "hf"), packed=True)


def test_gguf_files_without_packable_matrices_are_told(
    make_lm: Make, byte_level_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = export_gguf(make_lm("llama", tokenizer=byte_level_tokenizer), tmp_path / "m.gguf", "f16")
    with pytest.raises(ModelError, match="its matrices are F16, of which none can stay packed"):
        load(str(path), packed=True)


@pytest.mark.parametrize("scheme", ["int4", *(pytest.param(s, marks=pytest.mark.slow) for s in RULES if s != "int4")])
def test_the_command_writes_what_the_others_read(
    make_lm: Make, byte_level_tokenizer: Tokenizer, tmp_path: Path, scheme: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = str(export_hf(make_lm("llama", tokenizer=byte_level_tokenizer), tmp_path / "plain"))
    out, name = tmp_path / "packed", f"small-{scheme}"
    flags = [model, "--scheme", scheme, "--group-size", "8", "--tokens", "40", "--device", "cpu", "--dtype", "float32"]
    assert main(["quantise", *flags, "--embeddings", "--out", str(out), "--name", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["directory"] == str(out)
    assert facts["bytes on disk"] < (tmp_path / "plain" / "model.safetensors").stat().st_size
    ours = load(model, dtype="float32", device="cpu")
    quantise(ours.model, scheme, 8, embeddings=True)
    same(load(name, dtype="float32", device="cpu"), ours)
    sampling = SamplingParams(max_tokens=8, temperature=0.0)
    said = LocalSampler(ours).generate(["The sea is"], sampling)[0].text
    monkeypatch.setattr("sys.stdin", io.StringIO("The sea is"))
    assert main(["chat", str(out), "--max-tokens", "8", "--temperature", "0", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == said
    assert main(["models", "show", str(out)]) == 0
    assert f"14 × {scheme} in groups of 8" in capsys.readouterr().out
    flags = ["--batches", "1", "--prompts", "8", "--new", "4", "--rounds", "1", "--device", "cpu"]
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(bench_limits, "CPU_BYTES", 2**16)
    monkeypatch.setattr(bench_limits, "CPU_SIDE", 32)
    assert main(["bench", "model", str(out), *flags, "--peers"]) == 0
    assert "MiB of weights read a step" in capsys.readouterr().out
    untouched = sum(t.numel() * t.element_size() for t in ours.model.embed.state_dict().values())
    assert bench_limits.weight_bytes(ours.model) == memory(ours.model) - untouched  # a step looks one row up
    # And out again, plain: what the codes stand for.
    assert main(["models", "export", str(out), str(tmp_path / "again")]) == 0
    with torch.no_grad():
        again = load(str(tmp_path / "again"), dtype="float32", device="cpu")
        torch.testing.assert_close(again.model(TOKENS), ours.model(TOKENS), rtol=1e-4, atol=1e-4)


def test_the_command_refuses_before_it_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["quantise", "no-such-model", "--scheme", "int4", "--output", str(tmp_path)]) == 2
    assert "holds another model, which would be lost" in capsys.readouterr().err
    flags = ["--scheme", "int4", "--output", str(tmp_path / "new"), "--name", "two words"]
    assert main(["quantise", "no-such-model", *flags]) == 2
    assert "model name 'two words' is not allowed" in capsys.readouterr().err


def test_the_file_is_plain_safetensors(saved: Path) -> None:
    with safe_open(saved / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {f"{Q}.codes", f"{Q}.scales", f"{Q}.offsets", "embed.codes", "head.codes"} <= names
    assert not any("matrix" in name for name in names)
