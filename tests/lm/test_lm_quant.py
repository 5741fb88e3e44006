"""Weights of few bits: exact cases, reference dequantisation, reports, QLoRA."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import nn

from alignlab.core.errors import ConfigError, ModelError
from alignlab.lm.config import GPTConfig
from alignlab.lm.hf_export import merged_parameters
from alignlab.lm.lora import LoraConfig, add_lora, lora_parameters, merge_lora
from alignlab.lm.lora_files import load_adapter, save_adapter
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.apply import SCHEMES, dequantise, fitting_group, memory, plain_parameters, quantise
from alignlab.lm.quant.layers import QuantLinear, QuantMatrix
from alignlab.lm.quant.layout import pack_codes, pack_rows, unpack_codes, unpack_rows
from alignlab.lm.quant.rounding import NF4, grouped

RULES = sorted(SCHEMES)


def made(
    scheme: str, n_out: int = 40, n_in: int = 96, group: int = 32, seed: int = 0
) -> tuple[torch.Tensor, QuantMatrix]:
    weight = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed)) * 0.03
    return weight, QuantMatrix(SCHEMES[scheme](weight, group), torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n_rows", [1, 16, 33])
def test_codes_survive_their_layout(bits: int, n_rows: int) -> None:
    low, high = (0, 16) if bits == 4 else (-128, 128)
    codes = torch.randint(low, high, (n_rows, 24), generator=torch.Generator().manual_seed(bits))
    words = pack_codes(codes, bits)
    assert words.shape == (-(-n_rows // 16), 24 * bits // 32, 16)
    assert torch.equal(unpack_codes(words, bits, n_rows).long(), codes)
    values = torch.randn(n_rows, 3)
    assert torch.equal(unpack_rows(pack_rows(values), n_rows), values)


@pytest.mark.parametrize("scheme", RULES)
def test_a_matrix_on_the_grid_comes_back_exactly(scheme: str) -> None:
    """Planted: weights that the format can express lose nothing."""
    generator = torch.Generator().manual_seed(1)
    scale = 2.0 ** torch.randint(-8, 0, (20, 3, 1), generator=generator)
    if scheme == "int8":
        codes = torch.randint(-127, 128, (20, 3, 32), generator=generator).float()
        codes[..., 0] = 127
    elif scheme == "int4":
        codes = torch.randint(0, 16, (20, 3, 32), generator=generator).float()
        codes[..., 0], codes[..., 1] = 0, 15
    else:
        codes = torch.tensor(NF4)[torch.randint(0, 16, (20, 3, 32), generator=generator)]
        codes[..., 0] = 1
    weight = (codes * scale).flatten(1)
    assert torch.equal(QuantMatrix(SCHEMES[scheme](weight, 32), torch.float32).dequantise(), weight)


@pytest.mark.parametrize(("scheme", "steps"), [("int8", 127), ("int4", 7.5)])
def test_no_number_is_further_from_its_original_than_half_a_step(scheme: str, steps: float) -> None:
    weight, matrix = made(scheme)
    groups = grouped(weight, 32)
    half = (groups.abs().amax(-1) if scheme == "int8" else (groups.amax(-1) - groups.amin(-1)) / 2) / steps / 2
    error = (grouped(matrix.dequantise(), 32) - groups).abs().amax(-1)
    scales = unpack_rows(matrix.scales, 40).float()
    assert bool((scales >= half * 2 * (1 - 1e-6)).all())  # the steps cover the range: nothing is clipped
    # Scales are bfloat16 and rounded up: at most 1/128 wider steps; the offset's own rounding comes on top.
    slack = half / 128 + (groups.abs().amax(-1) / 256 if scheme == "int4" else 0)
    assert bool((error <= half + slack + 1e-7).all())


def test_nf4_is_the_papers_grid_and_every_number_takes_the_nearest_level() -> None:
    """QLoRA's construction (section 3 and its released code): quantiles of the normal on both sides of an exact 0."""
    offset = 0.9677083
    positive = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].numpy())
    negative = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].numpy())
    levels = sorted([*positive, 0.0, *negative])
    expected = torch.tensor(levels) / max(levels)
    assert torch.allclose(torch.tensor(NF4, dtype=torch.float64), expected.double(), atol=1e-5)
    weight, matrix = made("nf4")
    scales = unpack_rows(matrix.scales, 40).float()[..., None]
    distances = (grouped(weight, 32)[..., None] - torch.tensor(NF4) * scales[..., None]).abs()
    chosen = (grouped(weight, 32) - grouped(matrix.dequantise(), 32)).abs()
    assert torch.allclose(chosen, distances.amin(-1), atol=1e-7)


def test_error_falls_as_theory_says() -> None:
    """Uniform weights: a quantiser of step s has error s / sqrt(12), here to 3 % (65,536 draws)."""
    weight = torch.rand(512, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for scheme, levels in (("int8", 255), ("int4", 16)):
        matrix = QuantMatrix(SCHEMES[scheme](weight, 128), torch.float32)
        rms = float((matrix.dequantise() - weight).square().mean().sqrt())
        assert rms == pytest.approx(2 / (levels - 1) / 12**0.5, rel=0.03)


@pytest.mark.parametrize("scheme", RULES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_model_with_codes_is_the_model_of_what_they_stand_for(
    make_model: Callable[..., GPTModel], scheme: str, family: str
) -> None:
    model = make_model(family)
    plain = copy.deepcopy(model)
    before = memory(model)
    tokens = torch.randint(0, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    report = quantise(model, scheme, 8, calibration=tokens, embeddings=True)
    assert report.bytes_before == before
    assert report.bytes_after == memory(model) < before
    assert not report.kept
    assert report.table().count("\n") == len(report.layers)
    # The report's errors are those of the definition.
    for layer in report.layers:
        exact = plain.get_submodule(layer.name).weight.detach()
        held = model.get_submodule(layer.name).dequantise()
        assert layer.weight_error == pytest.approx(float((exact - held).norm() / exact.norm()), rel=1e-4)
    parameters = plain_parameters(model.state_dict(), model)
    again = dequantise(copy.deepcopy(model))
    assert parameters.keys() == plain.state_dict().keys()
    plain.load_state_dict(parameters)
    with torch.no_grad():
        assert torch.equal(again(tokens), plain(tokens))
        assert torch.allclose(model(tokens), plain(tokens), atol=2e-4)


def test_output_error_is_measured_on_the_inputs_of_the_unquantised_model(make_model: Callable[..., GPTModel]) -> None:
    model = make_model("llama")
    tokens = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(model)
    seen: dict[str, torch.Tensor] = {}
    block = plain.blocks[0]
    with torch.no_grad():
        seen["q"] = block.norm1(plain.embed(tokens))  # type: ignore[operator]
    report = quantise(model, "int4", 8, calibration=tokens)
    layer = next(layer for layer in report.layers if layer.name == "blocks.0.attn.q")
    exact = F.linear(seen["q"], plain.get_submodule(layer.name).weight.detach())
    held = F.linear(seen["q"], model.get_submodule(layer.name).dequantise())
    assert layer.output_error == pytest.approx(float((exact - held).norm() / exact.norm()), rel=1e-4)
    assert report.worst(1)[0].output_error == max(layer.output_error or 0 for layer in report.layers)


def test_finer_groups_and_more_bits_lose_less(make_model: Callable[..., GPTModel]) -> None:
    def mean(scheme: str, group: int) -> float:
        layers = quantise(make_model("llama"), scheme, group).layers
        return sum(layer.weight_error for layer in layers) / len(layers)

    assert mean("int8", 32) < mean("int4", 8) < mean("int4", 16) < mean("int4", 32)
    # NormalFloat is made for normal weights and wide groups; small groups are better served by their own ranges.
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    wide = {name: QuantMatrix(SCHEMES[name](weight, 256), torch.float32).dequantise() - weight for name in RULES}
    assert float(wide["int8"].norm()) < float(wide["nf4"].norm()) < 0.95 * float(wide["int4"].norm())


@pytest.mark.parametrize("scheme", RULES)
def test_a_qlora_step_is_the_lora_step_over_the_dequantised_weight(
    make_model: Callable[..., GPTModel], scheme: str
) -> None:
    """Three steps of Adam on both models: same losses, same adapters."""
    quantised = make_model("llama")
    quantise(quantised, scheme, 8)
    plain = dequantise(copy.deepcopy(quantised))
    config = LoraConfig(rank=4, targets=("all-linear",))
    tokens = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(0))
    histories: list[list[float]] = []
    for model in (quantised, plain):
        add_lora(model, config)
        optimiser = torch.optim.Adam(lora_parameters(model), lr=1e-2)
        losses = []
        for _ in range(3):
            optimiser.zero_grad()
            loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        histories.append(losses)
    assert histories[0] == pytest.approx(histories[1], rel=1e-6)
    assert histories[0][-1] < histories[0][0]
    for ours, theirs in zip(lora_parameters(quantised), lora_parameters(plain), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_backward_keeps_no_plain_weight() -> None:
    """What autograd holds between the passes is the input, nothing of the matrix's size."""
    matrix = made("nf4", 256, 256)[1]
    held: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
        QuantLinear(matrix)(torch.randn(2, 256, requires_grad=True)).sum()
    assert max(held, default=0) < 256 * 256


def test_moving_types_keeps_codes_and_scales(make_model: Callable[..., GPTModel]) -> None:
    model = make_model("llama")
    quantise(model, "nf4", 8)
    layer = model.get_submodule("blocks.0.attn.q")
    before = layer.dequantise(torch.float32)
    model.to(torch.bfloat16)
    assert layer.weight.dtype is torch.bfloat16
    assert torch.equal(layer.dequantise(torch.float32), before)
    assert model(torch.tensor([[1, 2, 3]])).dtype is torch.bfloat16


def test_fitting_group() -> None:
    assert [fitting_group(*case) for case in ((576, 64), (48, 32), (20, 32), (36, 64), (8, 64))] == [
        64,
        24,
        None,
        None,
        8,
    ]


def bad_weight(model: GPTModel) -> None:
    with torch.no_grad():
        model.get_submodule("blocks.1.mlp.up").weight[3, 2] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "arguments", "kind", "message"),
    [
        (None, ("int3",), ConfigError, "scheme is 'int3', allowed: int8, int4, nf4"),
        (None, ("int4", 12), ConfigError, "group_size is 12, allowed: multiples of 8"),
        (bad_weight, ("int4", 8), ModelError, "blocks.1.mlp.up: weights that are not finite"),
        (lambda m: quantise(m, "int8", 8), ("int8", 8), ModelError, "is quantised already"),
        (lambda m: add_lora(m, LoraConfig()), ("int8", 8), ModelError, "quantise first, add adapters then"),
    ],
)
def test_what_cannot_be_quantised(
    make_model: Callable[..., GPTModel], spoil: Any, arguments: tuple[Any, ...], kind: type, message: str
) -> None:
    model = make_model("llama")
    if spoil is not None:
        spoil(model)
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(kind, match=message):
        quantise(model, *arguments)
    assert before == {name: id(module) for name, module in model.named_modules()}


def test_models_without_layers_to_quantise_and_merging_are_refused(make_model: Callable[..., GPTModel]) -> None:
    with pytest.raises(ModelError, match="no linear layer"):
        quantise(nn.Sequential(nn.Linear(20, 4)), "int4", 8)
    model = make_model("llama")
    quantise(model, "int4", 8)
    add_lora(model, LoraConfig())
    with pytest.raises(ModelError, match="dequantise"):
        merge_lora(model)


def test_a_quantised_model_with_adapters_exports_and_keeps_them(tmp_path: Path) -> None:
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    shape = GPTConfig(vocab_size=64, n_ctx=16, d_model=64, n_layers=2, n_heads=4, d_mlp=64)
    model = GPTModel(shape, seed=0).eval()
    quantise(model, "int8")
    bare = copy.deepcopy(model)
    add_lora(model, LoraConfig(rank=2, targets=("q", "down")))
    g = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=g))
    plain = GPTModel(shape).eval()
    plain.load_state_dict(merged_parameters(model))
    with torch.no_grad():
        expected = model(tokens)
        torch.testing.assert_close(plain(tokens), expected, rtol=1e-4, atol=1e-4)
        save_adapter(model, tmp_path)
        load_adapter(bare, tmp_path)
        torch.testing.assert_close(bare(tokens), expected, rtol=1e-5, atol=1e-5)
