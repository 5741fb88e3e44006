"""Alignment over quantised weights: the same mathematics as over what the codes stand for, in the codes' memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from torch import nn

from alignlab.__main__ import main
from alignlab.align import pipeline
from alignlab.align.adapters import has_lora, share_weights
from alignlab.align.preference_model import PreferenceModel
from alignlab.core.errors import ModelError
from alignlab.core.files import read_jsonl
from alignlab.core.runs import Run, list_runs
from alignlab.lm.gguf_export import export_gguf
from alignlab.lm.hf_export import export_hf, merged_parameters
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.local import LocalSampler
from alignlab.lm.lora import LoraConfig, add_lora, lora_disabled, lora_parameters, merge_lora, remove_lora
from alignlab.lm.lora_files import load_adapter
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.adapted import AdaptedLinear, settle_adapters
from alignlab.lm.quant.apply import dequantise, quantise
from alignlab.lm.quant.layers import QuantLinear, QuantMatrix
from alignlab.lm.quant.saved import save_quantised
from alignlab.lm.types import SamplingParams
from alignlab.train.resume import fingerprint, persistent_buffers

MakeLm = Callable[..., LanguageModel]
TOKENS = torch.randint(3, 40, (3, 12), generator=torch.Generator().manual_seed(0))
USER = {"role": "user", "content": "a?"}


def with_adapter(model: GPTModel, seed: int, rank: int = 2) -> GPTModel:
    """An adapter on every linear layer that changes something."""
    add_lora(model, LoraConfig(rank=rank, alpha=3.0 * rank, targets=("all-linear",), seed=seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def quantised(lm: LanguageModel, scheme: str = "nf4", *, embeddings: bool = False) -> GPTModel:
    quantise(lm.model, scheme, 8, embeddings=embeddings)
    return lm.model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)  # type: ignore[no-any-return]


def merged(model: GPTModel) -> GPTModel:
    """The plain model with its adapters merged: the other way to the same function."""
    return remove_lora(merge_lora(model))  # type: ignore[return-value]


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
def test_adapters_beside_codes_are_adapters_merged_into_what_they_stand_for(make_lm: MakeLm, scheme: str) -> None:
    """Three adapters on top of each other; after each, the function is that of the dequantised, merged model."""
    packed = quantised(make_lm(), scheme)
    plain = dequantise(copy.deepcopy(packed))
    before = logits(packed)
    for seed in range(3):
        packed, plain = with_adapter(packed, seed), with_adapter(plain, seed)  # type: ignore[arg-type]
        twin, plain = share_weights(packed), merged(plain)
        expected = logits(plain)
        assert (expected - before).abs().max() > 0.05
        torch.testing.assert_close(logits(packed), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits(twin), expected, rtol=1e-4, atol=1e-4)
        packed, before = twin, expected
        assert not has_lora(packed)
        assert not any(parameter.requires_grad for parameter in packed.parameters())
    layer = packed.get_submodule("blocks.0.mlp.up")
    assert isinstance(layer, AdaptedLinear)
    assert layer.a.shape[0] == 6
    # What is exported is that function too.
    again = make_lm().model
    again.load_state_dict(merged_parameters(packed))
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)


def test_a_twin_shares_the_codes_and_nothing_that_is_trained(make_lm: MakeLm) -> None:
    model = with_adapter(quantised(make_lm(), embeddings=True), 0)
    twin = with_adapter(share_weights(model), 1)
    ours, theirs = logits(model), logits(twin)
    codes = [{m.codes.data_ptr() for m in which.modules() if isinstance(m, QuantMatrix)} for which in (model, twin)]
    assert codes[0] == codes[1]
    assert model.embed.matrix.codes.data_ptr() == twin.embed.matrix.codes.data_ptr()  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in lora_parameters(twin):
            parameter.add_(1)
    assert torch.equal(logits(model), ours)
    with torch.no_grad():
        for parameter in lora_parameters(twin):
            parameter.sub_(1)
        for parameter in lora_parameters(model):
            parameter.add_(1)
    torch.testing.assert_close(logits(twin), theirs, rtol=1e-4, atol=1e-4)
    assert not torch.equal(logits(model), ours)


def test_layouts_that_a_kernel_keeps_are_shared_too(make_lm: MakeLm) -> None:
    model = quantised(make_lm())
    matrix = model.get_submodule("blocks.0.attn.q").matrix
    held = (matrix.codes.data_ptr(), (torch.zeros(3), torch.zeros(4)))
    object.__setattr__(matrix, "_torch_layout", held)
    twin = share_weights(model).get_submodule("blocks.0.attn.q").matrix
    assert all(ours is theirs for ours, theirs in zip(held[1], twin._torch_layout[1], strict=True))


def test_a_disabled_adapter_is_not_put_in(make_lm: MakeLm) -> None:
    for model in (make_lm().model, quantised(make_lm())):
        bare = logits(model)
        with lora_disabled(with_adapter(model, 0)):
            torch.testing.assert_close(logits(share_weights(model)), bare, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits(model), bare)


def test_a_step_over_a_settled_adapter_is_the_step_over_merged_weights(make_lm: MakeLm) -> None:
    packed = with_adapter(quantised(make_lm()), 0)
    plain = with_adapter(dequantise(quantised(make_lm())), 0)  # type: ignore[arg-type]
    gradients = []
    for model in (settle_adapters(packed), merged(plain)):
        add_lora(model, LoraConfig(rank=2, targets=("all-linear",), seed=5))
        loss = nn.functional.cross_entropy(model(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        loss.backward()
        gradients.append([parameter.grad for parameter in lora_parameters(model)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_saved_preference_model_knows_its_quantised_base(make_lm: MakeLm, tmp_path: Path) -> None:
    lm = make_lm(chat=True)
    quantised(lm, embeddings=True)
    model = PreferenceModel(lm, lora=LoraConfig(rank=2, targets=("all-linear",)))
    model.save(tmp_path)
    loaded = PreferenceModel.load(tmp_path, lm)
    assert torch.equal(loaded.score(["a b"], ["c"]), model.score(["a b"], ["c"]))
    other = make_lm(seed=1, chat=True)
    quantised(other, embeddings=True)
    settled = with_adapter(share_weights(lm.model), 3)  # what stands beside the codes belongs to the base as well
    for base in (make_lm(chat=True), other, LanguageModel(share_weights(settled), lm.tokenizer, "tiny", "test")):
        with pytest.raises(ModelError, match="another base model"):
            PreferenceModel.load(tmp_path, base)


def test_generation_knows_what_stands_beside_the_codes(make_lm: MakeLm) -> None:
    """With a further adapter on and off, and whatever fast path the engine takes."""
    lm = make_lm()
    settled = share_weights(with_adapter(quantised(lm), 0))
    plain = LanguageModel(dequantise(copy.deepcopy(settled)), lm.tokenizer, "plain", "test")  # type: ignore[arg-type]
    packed = LanguageModel(with_adapter(settled, 1), lm.tokenizer, "packed", "test")
    sampling = SamplingParams(max_tokens=20, temperature=0.0)

    def said(which: LanguageModel) -> list[list[int]]:
        done = LocalSampler(which).generate(["a tide is", "b", "what do you see"], sampling)
        return [list(completion.tokens) for completion in done]

    with lora_disabled(packed.model):
        off = said(packed)
    assert off == said(plain)
    with_adapter(plain.model, 1)
    assert said(packed) == said(plain) != off


def test_checkpoints_leave_the_codes_out(make_lm: MakeLm) -> None:
    """They belong to the base, as frozen parameters do; a checkpoint still knows its base by them."""
    model = with_adapter(share_weights(with_adapter(quantised(make_lm(), embeddings=True), 0)), 1)
    assert not persistent_buffers(model)
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    model.get_submodule("blocks.0.attn.q").base.matrix.codes[0, 0] += 1  # type: ignore[union-attr, operator]
    assert fingerprint(model)["frozen weights"] != before["frozen weights"]


# From end to end


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in codes, and written plain with the weights that the codes stand for."""
    folder = tmp_path_factory.mktemp("bases")
    lm = load(str(tiny_run.build_model(folder / "original")), dtype="float32", device="cpu")
    quantise(lm.model, "nf4", 16, embeddings=True)
    save_quantised(lm, folder / "packed")
    export_hf(lm, folder / "plain")
    export_gguf(lm, folder / "blocks.gguf", "q8_0")
    return {name: folder / name for name in ("packed", "plain")} | {"gguf": folder / "blocks.gguf"}


def run_on(base: Path, method: str, path: Path, **changes: Any) -> Run:
    """A pipeline with even less of everything."""
    config = tiny_run.tiny_config(base, method, name=path.name, n_prompts=3, n_eval=2, revisions=1, **changes)
    run: Run = tiny_run.run_pipeline(config, path)
    return run


def numbers(run: Run, name: str) -> list[float]:
    """All values of the metrics that end so."""
    return [row[key] for row in run.metrics() for key in row if key.endswith(f"/{name}")]


@pytest.mark.parametrize("method", ["ppo", pytest.param("dpo", marks=pytest.mark.slow)])
def test_a_run_on_codes_is_the_run_on_what_they_stand_for(bases: dict[str, Path], tmp_path: Path, method: str) -> None:
    """Same texts, same losses up to the rounding of sums: the peer shares no code with quantised layers."""
    packed, plain = (run_on(bases[name], method, tmp_path / name) for name in ("packed", "plain"))
    for artifact in ("responses", "critiques", "revisions", "pairs-harmful-0"):
        texts = [[row["text"] for row in read_jsonl(r.artifacts / f"{artifact}.jsonl")] for r in (packed, plain)]
        assert texts[0] == texts[1], artifact
    for name in ("loss", "reward" if method == "ppo" else "accuracy"):
        assert numbers(packed, name)
        assert numbers(packed, name) == pytest.approx(numbers(plain, name), rel=2e-3, abs=2e-4), name
    by_hand = load(str(bases["plain"]), dtype="float32", device="cpu").model
    for stage in ("sl-cai", "rl-cai"):
        merged(load_adapter(by_hand, packed.artifacts / f"adapter-{stage}"))
    exported = load("packed", dtype="float32", device="cpu")
    torch.testing.assert_close(logits(exported.model), logits(by_hand), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_stopped_run_goes_on_over_codes(bases: dict[str, Path], tmp_path: Path) -> None:
    run = run_on(bases["packed"], "ppo", tmp_path / "again")
    whole = tiny_run.results(run.path)
    for stage in ("reinforcement", "rl-cai", "export"):
        (run.path / "stages" / f"{stage}.json").unlink()
    run_on(bases["packed"], "ppo", tmp_path / "again")
    again = tiny_run.results(run.path)
    assert [name for name in whole if whole[name] != again[name]] == []


def test_blocks_of_a_gguf_file_are_aligned_packed(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command with --packed trains beside the file's own codes."""
    seen: list[bool] = []
    settle = pipeline.settle_adapters

    def watched(model: GPTModel) -> GPTModel:
        seen.append(any(isinstance(module, QuantLinear) for module in model.modules()))
        return settle(model)  # type: ignore[return-value]

    monkeypatch.setattr(pipeline, "settle_adapters", watched)
    run = run_on(bases["gguf"], "none", tmp_path / "gguf", packed=True)
    assert run.state == "finished"
    assert seen
    assert all(seen)


def test_sft_teaches_a_quantised_model(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    row = {"prompt": [USER], "response": "yes yes"}
    data.write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    before = (bases["packed"] / "model.safetensors").read_bytes()
    flags = [str(data), "--model", str(bases["packed"]), "--name", "taught", "--epochs", "20", "--dtype", "float32"]
    flags += ["--learning-rate", "0.02", "--row-length", "64", "--batch-size", "2", "--rank", "4"]
    assert main(["sft", *flags, "--run", str(tmp_path / "run")]) == 0
    assert "alignlab chat taught" in capsys.readouterr().out
    sampler = LocalSampler(load("taught", dtype="float32", device="cpu"))
    said = sampler.generate([[USER]], SamplingParams(max_tokens=12, temperature=0.0))[0]
    assert said.text == "yes yes"
    assert (bases["packed"] / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("command", "flags", "sentence"),
    [
        ("sft", ["--model", "{packed}", "--rank", "0"], "is quantised, and codes are not trained: take an adapter"),
        ("sft", ["--model", "{plain}", "--packed", "--rank", "0"], "rank is 0, allowed: at least 1 where packed"),
        ("sft", ["--model", "{plain}", "--packed"], "has no packed weights to keep"),
        ("align", ["--model", "{plain}", "--packed"], "has no packed weights to keep"),
    ],
)
def test_what_cannot_be_is_said_before_there_is_a_run(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, flags: list[str], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    data = [str(tmp_path / "data.jsonl")] if command == "sft" else []
    assert main([command, *data, *(flag.format(**bases) for flag in flags)]) == 2
    assert sentence in capsys.readouterr().err
    assert not list_runs(tmp_path / "runs")
