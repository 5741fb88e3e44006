"""Adapters inside the compiled pass: against the model itself, beside every kind of weight, and as they are trained."""

from __future__ import annotations

import copy
import platform
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignlab.lm.cache import KVCache
from alignlab.lm.config import GPTConfig
from alignlab.lm.cpu_step.step import CpuStep, open_step
from alignlab.lm.generate import decode
from alignlab.lm.lora import (
    LoraConfig,
    LoRALinear,
    add_lora,
    lora_disabled,
    lora_layers,
    lora_parameters,
    merge_lora,
    unmerge_lora,
)
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.adapted import AdaptedLinear, settle_adapters
from alignlab.lm.quant.apply import quantise
from alignlab.lm.types import SamplingParams

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which("g++") is None, reason="the program needs Linux and g++"
)
SMALL: dict[str, Any] = {
    "vocab_size": 100, "n_ctx": 64, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_mlp": 144,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {
        "n_kv_heads": 4, "positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "gated_mlp": False,
        "qkv_bias": True, "out_bias": True, "mlp_bias": True,
    },
    "neox": {
        "n_kv_heads": 4, "parallel_block": True, "rotary_dim": 8, "norm": "layernorm", "activation": "gelu",
        "gated_mlp": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "tie_embeddings": False,
    },
    "gemma3": {
        "post_norm": True, "norm_offset": True, "qk_norm": True, "activation": "gelu_tanh", "embed_scale": 8.0,
        "window": 5, "window_layers": (True, False), "attn_softcap": 20.0, "logit_softcap": 10.0,
    },
    "one key head, odd widths": {"n_kv_heads": 1, "n_heads": 3, "d_head": 16, "d_model": 80},
}  # fmt: skip
ALL = ("all-linear",)
GREEDY = SamplingParams(max_tokens=10, temperature=0)
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]]


def noise_in(model: nn.Module, size: float, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * size


def adapted(
    family: str = "llama", rank: int = 4, dtype: torch.dtype = torch.float32, targets: tuple[str, ...] = ALL
) -> GPTModel:
    """A model whose adapters matter about as much as its weights."""
    model = GPTModel(GPTConfig(**{**SMALL, **FAMILIES[family]})).eval()
    noise_in(model, 0.1)
    model = model.to(dtype)
    add_lora(model, LoraConfig(rank=rank, alpha=rank / 2, targets=targets))
    set_adapters(model)
    return model


@torch.no_grad()
def set_adapters(model: GPTModel, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.5 / layer.config.rank**0.5, generator=generator)


def opened(model: GPTModel) -> CpuStep:
    step = open_step(model)
    assert step is not None
    return step


@torch.no_grad()
def reads(model: GPTModel, step: CpuStep | None, rows: int = 5) -> list[Tensor]:
    """Hidden states of prompts, then those and the logits of two steps."""
    generator = torch.Generator().manual_seed(5)
    cache = KVCache(model.config, rows, 48, device=torch.device("cpu"), dtype=model.embed.weight.dtype)
    prompts = torch.randint(0, model.config.vocab_size, (rows, 9), generator=generator)
    seen = [(model if step is None else step).hidden_states(prompts, cache=cache)]
    for _ in range(2):
        tokens = torch.randint(0, model.config.vocab_size, (rows,), generator=generator)
        if step is None:
            seen.append(model(tokens[:, None], cache=cache)[:, -1])
        else:
            seen.append(step.read(tokens, cache).logits.clone())
    return seen


def gap(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [float((a.float() - b.float()).abs().max()) for a, b in zip(found, expected, strict=True)]


def largest(found: list[Tensor]) -> float:
    return max(float(x.abs().max()) for x in found)


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 4, 16, 20, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_pass_is_the_models(family: str, rank: int) -> None:
    model = adapted(family, rank)
    expected = reads(model, None)
    assert max(gap(reads(model, opened(model)), expected)) < 1e-5 * max(largest(expected), 1)
    with lora_disabled(model):
        assert max(gap(reads(model, opened(model)), expected)) > 0.1
        assert max(gap(reads(model, opened(model)), reads(model, None))) < 1e-5 * max(largest(expected), 1)


def in_float32(model: GPTModel) -> GPTModel:
    """A float32 model of the numbers that a bfloat16 model multiplies by: of the base and of the adapters."""
    wide = copy.deepcopy(model).float()
    for module in wide.modules():
        names = {LoRALinear: ("lora_A", "lora_B"), AdaptedLinear: ("a", "b")}.get(type(module), ())
        for name in names:
            getattr(module, name).copy_(getattr(module, name).bfloat16().float())
    return wide


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 4, 16, 20])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [5, 33])
def test_bfloat16_pass_is_nearer_to_float32_than_torchs(family: str, rank: int, rows: int) -> None:
    model = adapted(family, rank, torch.bfloat16)
    exact = reads(in_float32(model), None, rows)
    torchs, ours = (gap(reads(model, step, rows), exact) for step in (None, opened(model)))
    assert sum(ours) < sum(torchs)
    assert max(ours) < 0.03 * largest(exact)


@torch.no_grad()
def test_small_updates_are_not_rounded_away() -> None:
    model = adapted(dtype=torch.bfloat16, rank=16)
    for layer in lora_layers(model).values():
        layer.lora_B.mul_(0.01 / float((layer.lora_B @ layer.lora_A).abs().max() * layer.scaling))
    wide = in_float32(model)

    def moved(model: GPTModel, compiled: bool) -> Tensor:
        after = reads(model, opened(model) if compiled else None)
        with lora_disabled(model):
            before = reads(model, opened(model) if compiled else None)
        return torch.cat([(a.float() - b.float()).flatten() for a, b in zip(after, before, strict=True)])

    exact = moved(wide, False)
    ours, torchs = (float(torch.cosine_similarity(moved(model, how), exact, 0)) for how in (True, False))
    assert ours > 0.99
    assert ours > torchs


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 33])
def test_what_lies_between_the_small_matrices_is_not_rounded(rows: int) -> None:
    model = adapted(dtype=torch.bfloat16, rank=2, targets=("down",))
    for layer in lora_layers(model).values():  # two large numbers whose difference matters
        half = layer.in_features // 2
        layer.lora_A[:, :half] = torch.randn(half, generator=torch.Generator().manual_seed(1)).bfloat16() * 64
        layer.lora_A[0, half:] = 0
        layer.lora_A[1, half:] = 0.25
        layer.lora_B[:, 1] = layer.lora_B[:, 0].bfloat16()
        layer.lora_B[:, 0] = -layer.lora_B[:, 1]
    exact = reads(in_float32(model), None, rows)
    torchs, ours = (max(gap(reads(model, step, rows), exact)) for step in (None, opened(model)))
    assert ours < 0.03 * largest(exact) < torchs


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [("q",), ("v", "down"), ("blocks.1.mlp.gate", "blocks.0.attn.k"), ("o", "up")])
def test_some_layers_only(targets: tuple[str, ...], dtype: torch.dtype) -> None:
    model = adapted(targets=targets, dtype=dtype)
    exact = reads(in_float32(model) if dtype is torch.bfloat16 else model, None)
    assert max(gap(reads(model, opened(model)), exact)) < (1e-5 if dtype is torch.float32 else 0.03) * largest(exact)


def assert_near(model: GPTModel) -> None:
    for rows in (1, 5, 33):
        ours = reads(model, opened(model), rows)
        if model.embed.weight.dtype is torch.float32:
            expected = reads(model, None, rows)
            assert max(gap(ours, expected)) < 1e-5 * largest(expected)
        else:
            expected = reads(in_float32(model), None, rows)
            assert max(gap(ours, expected)) < 0.03 * largest(expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["int4", "int8", "nf4"])
@pytest.mark.parametrize("settled", [False, True])
def test_beside_codes(scheme: str, dtype: torch.dtype, settled: bool) -> None:
    model = GPTModel(GPTConfig(**{**SMALL, "d_mlp": 128})).eval().to(dtype)
    quantise(model, scheme, group_size=32)
    add_lora(model, LoraConfig(rank=4, alpha=2, targets=ALL))
    set_adapters(model)
    if settled:  # the adapters become part of constant layers, and others stand beside those
        settle_adapters(model)
        assert not any(isinstance(module, LoRALinear) for module in model.modules())
        assert_near(model)
        add_lora(model, LoraConfig(rank=20, alpha=10, targets=("q", "down")))
        set_adapters(model, 1)
    assert_near(model)


@torch.no_grad()
@pytest.mark.parametrize("rank", [4, 20])
def test_a_row_is_what_it_is_alone(rank: int) -> None:
    model = adapted(rank=rank)
    step = opened(model)
    prompts = torch.randint(0, 100, (150, 7), generator=torch.Generator().manual_seed(2))

    def read(rows: Tensor) -> tuple[Tensor, Tensor]:
        cache = KVCache(model.config, len(rows), 48, device=torch.device("cpu"), dtype=torch.float32)
        hidden = step.hidden_states(rows, cache)
        return hidden, step.read(rows[:, 0], cache).logits.clone()

    together = read(prompts)
    for some in ([0], [149], [3, 77, 78, 140, 141], list(range(33))):
        assert all(torch.equal(whole[some], part) for whole, part in zip(together, read(prompts[some]), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    model, before = adapted(dtype=dtype), torch.get_num_threads()
    step, found = opened(model), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([x for rows in (5, 40) for x in reads(model, step, rows)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def trained_by_adamw(model: GPTModel, fused: bool) -> None:
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=0.3, fused=fused)
    model(torch.tensor([[1, 2, 3]])).square().mean().backward()
    optimizer.step()


@torch.no_grad()
def changed_in_place(model: GPTModel) -> None:
    lora_layers(model)["blocks.1.mlp.down"].lora_B.mul_(-3)


def changed_scale(model: GPTModel) -> None:
    lora_layers(model)["blocks.0.attn.q"].scaling *= -4


def replaced(model: GPTModel) -> None:
    layer = lora_layers(model)["blocks.0.attn.v"]
    layer.lora_A = nn.Parameter(layer.lora_A.detach() * -4)


CHANGES = {
    "in place": changed_in_place,
    "fused AdamW": lambda model: trained_by_adamw(model, True),
    "AdamW": lambda model: trained_by_adamw(model, False),
    "scale": changed_scale,
    "replaced": replaced,
    "one switched off": lambda model: setattr(lora_layers(model)["blocks.1.attn.o"], "enabled", False),
    "one merged": lambda model: lora_layers(model)["blocks.1.attn.o"].merge(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(change: str) -> None:
    model = adapted()
    with torch.no_grad():
        step = opened(model)
        before, base = reads(model, step), step.packed
        assert opened(model).adapters is step.adapters
    CHANGES[change](model)
    with torch.no_grad():
        assert step.is_fresh() == (change in ("scale", "replaced", "one switched off"))
        after = opened(model)
        assert max(gap(reads(model, after), before)) > (1e-3 if change != "one merged" else -1)
        assert max(gap(reads(model, after), reads(model, None))) < 1e-5 * largest(before)
        assert (after.packed is base) == (change != "one merged")


@torch.no_grad()
def test_more_ranks_than_the_program_knows_go_torchs_way() -> None:
    model = adapted(rank=65, targets=("k",))
    assert open_step(model) is None
    with lora_disabled(model):
        assert open_step(model) is not None
    merge_lora(model)
    assert open_step(model) is not None
    assert open_step(adapted(targets=("head",), family="neox")) is None


def generated(model: GPTModel) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for moved in decode(model, PROMPTS, GREEDY, frozenset()):
        found.update({row.index: list(row.tokens) for row in moved})
    return [found[i] for i in range(len(PROMPTS))]


def test_generation_between_training_steps_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounds() -> tuple[list[list[list[int]]], int]:
        model, counted = adapted(rank=16), 0
        read = CpuStep.read

        def counting(*arguments: Any) -> Any:
            nonlocal counted
            counted += 1
            return read(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(CpuStep, "read", counting)
            answers = [generated(model)]
            for _ in range(3):
                trained_by_adamw(model, True)
                answers.append(generated(model))
            with lora_disabled(model):
                answers.append(generated(model))
        return answers, counted

    compiled, n_steps = rounds()
    assert n_steps >= 5 * 9
    monkeypatch.setenv("ALIGNLAB_NO_COMPILER", "1")
    plain, n_steps = rounds()
    assert n_steps == 0
    assert compiled == plain
    assert all(a != b for a, b in zip(compiled[1:], compiled, strict=False))


@torch.no_grad()
def test_an_adapter_that_is_merged_again_into_the_same_memory_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge, read, take out, train, merge: the allocator may give the second merge the memory of the first."""
    model, real, memory = adapted(), LoRALinear.effective_weight, dict[int, Tensor]()

    def in_place(layer: LoRALinear) -> Tensor:
        found = real(layer)
        return memory.setdefault(id(layer), torch.empty_like(found)).copy_(found)

    monkeypatch.setattr(LoRALinear, "effective_weight", in_place)
    for seed in range(3):
        set_adapters(model, seed)
        expected = reads(model, None)
        merge_lora(model)
        assert max(gap(reads(model, opened(model)), expected)) < 1e-5 * max(largest(expected), 1)
        unmerge_lora(model)
